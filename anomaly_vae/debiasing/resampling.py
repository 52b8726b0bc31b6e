r"""Log densities in, weights and a report out.

.. math:: w_i = \min(\max(c \, p_i^{-\gamma}, \text{floor}), \text{cap}_i) \cdot f_{y_i}

within each class, where c makes the mean 1 and gamma is the largest for which the effective sample size stays above its
floor. f is the factor of the class's mass, measured and reported apart. A guarded row has a cap of 1 in units of
the mean of all rows: it is never weighted up, and never dropped either.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cards import Carded
from ..errors import ConfigError, ShapeError
from ..options import ResampleConfig
from .strata import Strata

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

SUMMARY = 4096
"""Quantiles that stand for a larger class where gamma is sought; the constant c is exact."""
STEPS = 60
STEEPEST = 1e3
"""Gamma is at most this, in units of one over the spread of the log densities."""
TIED = 1e-9
"""Spreads of log density below this are rounding."""


@dataclass(frozen=True, kw_only=True)
class ClassReport:
    """What became of one class (or stratum).

    Attributes:
        name: Its name.
        rows: Its rows.
        share: Its share of the rows.
        mass: Its share of the weight.
        factor: What all its rows are multiplied by: the class's part of the weights.
        gamma: How strongly density was inverted, 0 = not at all, 1 = entirely.
        ess: Effective sample size of the density's part, as a share of its rows.
    """

    name: str
    rows: int
    share: float
    mass: float
    factor: float
    gamma: float
    ess: float


@dataclass(frozen=True, kw_only=True)
class GuardReport:
    """What a guard did.

    Attributes:
        name: What it guards against.
        rows: Rows it flagged.
        share: Their share of the rows.
        mass_before: Their share of the weight without any guard.
        mass_after: Their share of the weight.
    """

    name: str
    rows: int
    share: float
    mass_before: float
    mass_after: float

    @property
    def moved(self) -> float:
        """The share of the weight that was moved to other rows."""
        return self.mass_before - self.mass_after


@dataclass(frozen=True, kw_only=True)
class ResampleReport(Carded):
    """What was done to a data set, and what it cost.

    Attributes:
        rows: Rows that were weighed.
        ess: Effective sample size of the weights, as a share of the rows.
        ess_floor: The floor asked for, or None.
        ess_classes: Effective sample size that the classes' factors alone would leave.
        class_strength: 1 = classes have equal mass, 0 = their own.
        largest: Largest weight; the mean is 1.
        least: Least weight.
        classes: Each class.
        guards: Each guard.
        notes: What was done otherwise than asked, and why.
        mode: What was made of the weights.
        rows_out: Rows of the result.
        settings: The settings, JSON-able.
        facts: Further facts of whoever made the weights: space, its width, the detector's digest.
    """

    rows: int
    ess: float
    ess_floor: float | None
    ess_classes: float
    class_strength: float
    largest: float
    least: float
    classes: tuple[ClassReport, ...]
    guards: tuple[GuardReport, ...]
    notes: tuple[str, ...]
    mode: str = "weights"
    rows_out: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        out = dataclasses.asdict(self)
        for guard, described in zip(self.guards, out["guards"], strict=True):
            described["moved"] = guard.moved
        return out


@dataclass(frozen=True)
class Tempering:
    """How the log densities of one class become weights.

    Attributes:
        gamma: Power to which density is inverted.
        log_constant: Log of c.
        factor: The class's factor.
        floor: Least weight, before the factor.
        cap: Largest weight, before the factor.
    """

    gamma: float
    log_constant: float
    factor: float
    floor: float
    cap: float

    def weights(self, log_density: Floats, guarded: Flags) -> Floats:
        """Return the weights of rows, (n,), in units of the mean of all rows.

        Args:
            log_density: Shape (n,), nats.
            guarded: Rows that are not to be weighted up, (n,).
        """
        with np.errstate(over="ignore"):
            raw = np.exp(self.log_constant - self.gamma * log_density)
        weights = self.factor * np.clip(raw, self.floor, self.cap)
        return np.where(guarded, np.minimum(weights, min(1.0, self.factor)), weights)


@dataclass(frozen=True)
class Weighing:
    """The weights of rows, and how further rows are weighed alike.

    Attributes:
        weights: Weight of each row, (n,), mean 1.
        temperings: That of each stratum.
        scale: Multiplies all weights of rows that are not guarded, last.
        report: What was done.
    """

    weights: Floats
    temperings: tuple[Tempering, ...]
    scale: float
    report: ResampleReport

    def weigh(self, log_density: Floats, of: NDArray[np.intp], guarded: Flags) -> Floats:
        """Return the weights of other rows, (n,), in units of the mean of the rows that were fitted.

        Args:
            log_density: Shape (n,), nats.
            of: Stratum of each row, (n,).
            guarded: Rows that are not to be weighted up, (n,).
        """
        return _weights(self.temperings, self.scale, log_density, of, guarded)


def effective_share(weights: Floats) -> float:
    """Return the effective sample size of weights (n,) as a share of their number (Kish).

    Example:
        >>> effective_share(np.array([1.0, 1.0, 0.0, 0.0]))
        0.5
    """
    return float(weights.sum() ** 2 / np.square(weights).sum() / len(weights))


def weigh(
    log_density: Floats,
    config: ResampleConfig,
    *,
    strata: Strata | None = None,
    of: NDArray[np.intp] | None = None,
    guards: Mapping[str, Flags] | None = None,
    notes: Sequence[str] = (),
) -> Weighing:
    """Turn log densities into weights.

    Args:
        log_density: Of each row, (n,), nats; -inf is allowed where weights have a cap.
        config: `ess`, `cap`, `floor` and `class_mass`.
        strata: Strata of the labels; by default one.
        of: Stratum of each row, (n,).
        guards: For each guard, which rows it flags, (n,).
        notes: What was noted before, carried on into the report.

    Raises:
        ConfigError: A density is NaN, weights would be infinite, or classes of equal mass leave less than the floor.
        ShapeError: Arrays differ in length, or there is no row.

    Example:
        >>> dense_then_thin = np.array([0.0] * 90 + [-3.0] * 10)
        >>> weighing = weigh(dense_then_thin, ResampleConfig())
        >>> weighing.weights[[0, -1]].round(2).tolist(), round(weighing.report.ess, 2)
        ([0.5, 5.5], 0.31)
    """
    strata = strata or Strata("none", ("all",))
    n = len(log_density)
    of = np.zeros(n, dtype=np.intp) if of is None else of
    guards = dict(guards or {})
    _check(log_density, of, guards)
    said = list(notes)
    log_density = _finite(log_density, config, said)
    counts = np.bincount(of, minlength=len(strata.names))
    factors, strength, ess_classes = _class_factors(counts, strata, config, said)
    within = None if config.ess is None else min(1.0, config.ess / ess_classes)
    guarded = np.logical_or.reduce(list(guards.values())) if guards else np.zeros(n, dtype=bool)
    if guarded.all():
        said.append("every row is guarded: all weights are 1.")
        temperings = tuple(Tempering(0.0, 0.0, 1.0, 1.0, 1.0) for _ in strata.names)
        weights, scale, unguarded = np.ones(n), 1.0, np.ones(n)
    else:
        rows = [np.flatnonzero(of == i) for i in range(len(strata.names))]
        temperings = _temperings(log_density, rows, guarded, factors, config, within)
        weights, scale = _scaled(temperings, log_density, of, guarded)
        unguarded = weights
        if guarded.any():
            free = np.zeros(n, dtype=bool)
            unguarded, _ = _scaled(_temperings(log_density, rows, free, factors, config, within), log_density, of, free)
    classes = tuple(
        ClassReport(
            name=name, rows=int(count), share=float(count / n), mass=float(weights[of == i].sum() / n),
            factor=t.factor, gamma=t.gamma, ess=effective_share(weights[of == i]),
        )
        for i, (name, count, t) in enumerate(zip(strata.names, counts, temperings, strict=True)) if count
    )  # fmt: skip
    ess = effective_share(weights)
    if config.ess is not None and ess < 0.99 * config.ess:
        said.append(
            f"the effective sample size is {ess:.3f} of the rows, under the floor: guarded rows gave up weight."
        )
    report = ResampleReport(
        rows=n, ess=ess, ess_floor=config.ess, ess_classes=ess_classes, class_strength=strength,
        largest=float(weights.max()), least=float(weights.min()), classes=classes,
        guards=tuple(_guard_report(name, flags, unguarded, weights) for name, flags in guards.items()),
        notes=tuple(said), settings=config.to_dict(),
    )  # fmt: skip
    return Weighing(weights, temperings, scale, report)


def _guard_report(name: str, flags: Flags, before: Floats, after: Floats) -> GuardReport:
    n = len(flags)
    masses = (float(w[flags].sum() / n) for w in (before, after))
    return GuardReport(
        name=name, rows=int(flags.sum()), share=float(flags.mean()), mass_before=next(masses), mass_after=next(masses)
    )


def _check(log_density: Floats, of: NDArray[np.intp], guards: Mapping[str, Flags]) -> None:
    n = len(log_density)
    lengths = {"strata": len(of)} | {name: len(flags) for name, flags in guards.items()}
    if not n or any(length != n for length in lengths.values()):
        raise ShapeError(
            f"log_density, strata and guards must have one length n >= 1, got {n} and {lengths}. Give each row one."
        )
    if np.isnan(log_density).any():
        row = int(np.flatnonzero(np.isnan(log_density))[0])
        raise ConfigError(f"log densities must be numbers, got NaN in row {row}. Look at that row.", row=row)


def _finite(log_density: Floats, config: ResampleConfig, said: list[str]) -> Floats:
    finite = np.isfinite(log_density)
    if finite.all():
        return log_density
    count = int((~finite).sum())
    if config.cap is None or (log_density == np.inf).any():
        raise ConfigError(
            f"weights must be finite, got infinite ones in {count} rows, where the density is 0. "
            "Set a cap, or a larger smoothing_alpha.",
            rows=count,
        )
    known = log_density[finite]
    lowest = float(known.min() - np.ptp(known) - 1.0) if len(known) else 0.0
    said.append(f"the density is 0 in {count} rows: they are taken for rarer than all others.")
    return np.where(finite, log_density, lowest)


def _class_factors(
    counts: NDArray[np.intp], strata: Strata, config: ResampleConfig, said: list[str]
) -> tuple[Floats, float, float]:
    """Return each stratum's factor, the strength of balancing, and the effective sample size it leaves by itself.

    The masses are proportional to n_c^(1 - strength). Tempered balancing may spend half the budget, so that
    density has the other half: at least sqrt(ess) is left.
    """
    present = counts > 0
    n = counts.sum()

    def factors(strength: float) -> Floats:
        masses = np.where(present, np.maximum(counts, 1.0) ** (1 - strength), 0.0)
        return np.divide(n * masses / masses.sum(), counts, out=np.zeros(len(counts)), where=present)

    def left(strength: float) -> float:
        return float(n / (counts * factors(strength) ** 2).sum())

    if config.class_mass == "kept" or strata.kind == "none" or present.sum() < 2:
        if strata.kind == "classes" and present.sum() < 2:
            said.append(f"there is one class, {strata.names[int(present.argmax())]}: no classes to balance.")
        return present.astype(np.float64), 0.0, 1.0
    floor = config.ess or 0.0
    if config.class_mass == "equal" and left(1.0) < floor:
        raise ConfigError(
            f"ess must be at most {left(1.0):.3g}, what classes of equal mass leave, got {floor:g}. "
            "Lower it, or choose class_mass=tempered.",
            ess=floor,
        )
    strength = 1.0
    if config.class_mass == "tempered" and left(1.0) < math.sqrt(floor):
        low, high = 0.0, 1.0
        for _ in range(STEPS):
            strength = 0.5 * (low + high)
            low, high = (strength, high) if left(strength) > math.sqrt(floor) else (low, strength)
        strength = low
        said.append(
            f"classes are balanced with strength {strength:.2f}: equal masses would leave an effective sample size of "
            f"{left(1.0):.3g} of the rows."
        )
    return factors(strength), strength, left(strength)


def _temperings(
    log_density: Floats,
    rows: Sequence[NDArray[np.intp]],
    guarded: Flags,
    factors: Floats,
    config: ResampleConfig,
    ess: float | None,
) -> tuple[Tempering, ...]:
    found = []
    for chosen, factor in zip(rows, factors, strict=True):
        floor = 0.0 if config.floor is None else config.floor
        cap = math.inf if config.cap is None else config.cap
        caps = np.where(guarded[chosen], min(1.0, 1.0 / factor if factor else 1.0), cap)
        gamma, log_constant = _solve(log_density[chosen], caps, floor, ess)
        found.append(Tempering(gamma, log_constant, float(factor), floor, cap))
    return tuple(found)


def _scaled(
    temperings: Sequence[Tempering], log_density: Floats, of: NDArray[np.intp], guarded: Flags
) -> tuple[Floats, float]:
    """Return weights of mean 1, and by how much rows without a guard had to be scaled for it."""
    weights = _weights(temperings, 1.0, log_density, of, guarded)
    scale = float((len(weights) - weights[guarded].sum()) / weights[~guarded].sum())
    return np.where(guarded, weights, scale * weights), scale


def _weights(
    temperings: Sequence[Tempering], scale: float, log_density: Floats, of: NDArray[np.intp], guarded: Flags
) -> Floats:
    out = np.empty(len(log_density))
    for i, tempering in enumerate(temperings):
        rows = np.flatnonzero(of == i)
        out[rows] = tempering.weights(log_density[rows], guarded[rows])
    return np.where(guarded, out, scale * out)


def _solve(log_density: Floats, caps: Floats, floor: float, ess: float | None) -> tuple[float, float]:
    """Return gamma and log c of one class: mean 1, and an effective sample size of at least `ess`."""
    spread = float(np.std(log_density)) if len(log_density) > 1 else 0.0
    if spread < TIED:
        return 0.0, _log_constant(np.zeros(len(caps)), caps, floor, np.ones(len(caps))) if len(caps) else 0.0
    gamma = 1.0
    if ess is not None:
        gamma = _gamma(*_summary(log_density, caps), floor, ess, STEEPEST / spread)
    return gamma, _log_constant(-gamma * log_density, caps, floor, np.ones(len(caps)))


def _gamma(log_density: Floats, caps: Floats, counts: Floats, floor: float, ess: float, steepest: float) -> float:
    def left(gamma: float) -> float:
        t = -gamma * log_density
        with np.errstate(over="ignore"):
            w = np.clip(np.exp(t + _log_constant(t, caps, floor, counts)), floor, caps)
        return float((counts * w).sum() ** 2 / (counts * w * w).sum() / counts.sum())

    low, high = 0.0, min(1.0, steepest)
    while left(high) > ess:
        if high >= steepest:
            return steepest
        low, high = high, min(2 * high, steepest)
    for _ in range(STEPS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if left(middle) > ess else (low, middle)
    return low


def _summary(log_density: Floats, caps: Floats) -> tuple[Floats, Floats, Floats]:
    """Return log densities, caps and counts of at most `SUMMARY` groups of alike rows for each cap."""
    parts = []
    for cap in np.unique(caps):
        values = np.sort(log_density[caps == cap])
        starts = np.unique(np.linspace(0, len(values), min(len(values), SUMMARY) + 1).astype(np.intp))[:-1]
        counts = np.diff(np.append(starts, len(values))).astype(np.float64)
        parts.append((np.add.reduceat(values, starts) / counts, np.full(len(counts), cap), counts))
    values, caps, counts = (np.concatenate(part) for part in zip(*parts, strict=True))
    return values, caps, counts


def _log_constant(t: Floats, caps: Floats, floor: float, counts: Floats) -> float:
    """Return log c with which clip(c exp(t), floor, caps) has mean 1; where caps forbid it, the mean is less."""
    total = counts.sum()
    log_floor = math.log(floor) if floor > 0 else -math.inf
    with np.errstate(divide="ignore"):
        log_caps = np.log(caps)

    def mean(log_constant: float) -> float:
        with np.errstate(over="ignore"):
            return float((counts * np.exp(np.minimum(np.maximum(t + log_constant, log_floor), log_caps))).sum() / total)

    low, high = -float(t.max()) - 1.0, -float(t.min()) + 1.0
    while mean(low) > 1 and low > -1e6:
        low = 2 * low - high
    widest = high + 50.0
    while mean(high) < 1 and high < widest:
        high += 10.0
    for _ in range(STEPS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if mean(middle) > 1 else (middle, high)
    return low
