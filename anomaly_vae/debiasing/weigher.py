"""Space, strata, density, guards and tempering, fitted together: rows in, weights out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, ShapeError
from ..options import ResampleConfig
from .density import CodeDensity, codes_held, fit_density
from .neighbours import Isolation, LabelDisagreement, long_tail
from .resampling import Flags, Floats, Weighing, weigh
from .spaces import Space, Tail, fit_space, surface
from .strata import Strata

ANOMALY, ISOLATED, MISLABELLED = "anomaly", "isolated", "label"
"""Names of the guards: improbable, unlike every other row, nearer to another class."""


@dataclass(frozen=True)
class CodedRows:
    """What of rows is needed to weigh them.

    Attributes:
        codes: Posterior means, (n, l).
        surface: The rows as the encoder sees them, (n, d).
        log_scales: Posterior log standard deviations, (n, l).
        p_values: Conformal p-values, (n,); None where there is no calibration.
        surprises: Minus their ELBO, (n,), nats; None where no guard asks for it.
        labels: Labels, (n,), if there are any.
        images: Whether the rows are images.
    """

    codes: NDArray[np.floating]
    surface: NDArray[np.floating]
    log_scales: NDArray[np.floating] | None = None
    p_values: Floats | None = None
    surprises: Floats | None = None
    labels: ArrayLike | None = None
    images: bool = False

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True)
class Judged:
    """Weights of rows and what they come from.

    Attributes:
        weights: Weight of each row, (n,), in units of the mean of the rows that were fitted.
        log_density: Log density of each row's code within its stratum, (n,), nats; 0 where there is none.
        flags: For each guard, which rows it flags, (n,).
    """

    weights: Floats
    log_density: Floats
    flags: dict[str, Flags]


@dataclass(frozen=True)
class Weigher:
    """The weights of rows, and what is needed to weigh further rows alike.

    Attributes:
        config: Settings, the guard among them that was meant by default.
        strata: Strata of the labels.
        density: Density of codes within each stratum that density is measured in.
        space: Where density is measured.
        surface: Where guards look at rows.
        isolation: Tells rows that resemble no other; None = not asked for.
        disagreement: Tells rows that look mislabelled; None = not asked for, or there are no labels.
        fence: Rows of a larger surprise are anomalies, nats; None = not asked for.
        weighing: Weights of the rows that it was fitted to (none after loading), how they came about, and the report.
        guards: For each guard, which of the rows that it was fitted to it flags, (n,); empty after loading.
    """

    config: ResampleConfig
    strata: Strata
    space: Space
    density: CodeDensity
    surface: Space
    isolation: Isolation | None
    disagreement: LabelDisagreement | None
    fence: float | None
    weighing: Weighing
    guards: dict[str, Flags] = field(default_factory=dict)

    @property
    def rows_held(self) -> int:
        """How many of the rows it was fitted to can be read out of it, as the encoder sees them; 0 = codes alone."""
        parts = [] if self.isolation is None else [len(self.isolation.references)]
        parts += [] if self.disagreement is None else [sum(map(len, self.disagreement.references))]
        rows_are_coordinates = self.space.kind != "latent"
        parts += [codes_held(self.density)] if rows_are_coordinates else []
        return max(parts, default=0)

    @classmethod
    def fit(
        cls,
        rows: CodedRows,
        config: ResampleConfig,
        *,
        facts: dict[str, Any] | None = None,
        notes: Sequence[str] = (),
    ) -> Self:
        """Weigh rows.

        Args:
            rows: The rows, n >= 1.
            config: Settings.
            facts: Further facts for the report.
            notes: Further notes for it.

        Raises:
            ConfigError: Labels are missing, weights would be infinite, or the classes leave less than the floor.
            ShapeError: Arrays differ in length.
        """
        _check_lengths(rows)
        config = dataclasses.replace(config, guard=config.guard_of(images=rows.images))
        strata = Strata.fit(rows.labels, kind=config.label_kind, bins=config.label_bins)
        of = strata.of(rows.labels, rows=len(rows))
        guards_at = surface(rows.surface)
        looked = config.isolation_guard is not None or config.label_guard is not None
        look = guards_at.coordinates(rows.surface) if looked else np.zeros((len(rows), 0), dtype=np.float32)
        isolation = Isolation.fit(look, seed=config.seed) if config.isolation_guard else None
        judged = config.label_guard is not None and strata.kind != "none"
        disagreement = LabelDisagreement.fit(look, of, ordered=strata.ordered, seed=config.seed) if judged else None
        fence = _fence(rows.surprises, config.fence)
        guards = _flags(config, isolation, disagreement, fence, rows, look, of)
        apart = (strata, of) if config.within_class else (Strata.fit(None), np.zeros_like(of))
        kind = config.measured_in(images=rows.images)
        tail = _tail(config, apart[1], guards)
        space = fit_space(kind, _points(rows, kind), codes=rows.codes.shape[1], tail=tail)
        log_scales = space.log_scales(rows.log_scales) if kind == "latent" else None
        points = space.coordinates(_points(rows, kind))
        density = fit_density(points, config, strata=apart[0], of=apart[1], log_scales=log_scales)
        notes = [*notes, *density.notes]
        if config.guard and rows.p_values is None:
            notes.append("the detector gives no p-values, having no calibration rows: no row is guarded as an anomaly.")
        weighing = weigh(density.own, config, strata=strata, of=of, guards=guards, notes=notes)
        measured: dict[str, Any] = {"space": kind, "space_width": space.width}
        if space.parts:
            measured["space_parts"] = ", ".join(f"{name} {part:.2g}" for name, part in space.parts.items())
        report = dataclasses.replace(weighing.report, facts={**measured, **(facts or {})})
        weighing = dataclasses.replace(weighing, report=report)
        return cls(config, strata, space, density, guards_at, isolation, disagreement, fence, weighing, guards)

    def weights(self, rows: CodedRows) -> Floats:
        """Return the weights of rows, (n,), in units of the fitted rows' mean; see `judge`."""
        return self.judge(rows).weights

    def judge(self, rows: CodedRows) -> Judged:
        """Return the weights of rows with what they come from; fitted ones get what they got then.

        Args:
            rows: Any rows of the same model.

        Raises:
            ConfigError: Labels are absent though there were some, missing, or of an unknown class.
            ShapeError: Arrays differ in length, or are of another model.
        """
        _check_lengths(rows)
        of = self.strata.of(rows.labels, rows=len(rows))
        points = self.space.coordinates(_points(rows, self.space.kind))
        log_density = self.density.log_density(points, of if self.config.within_class else np.zeros_like(of))
        guarded = self.isolation is not None or self.disagreement is not None
        look = self.surface.coordinates(rows.surface) if guarded else points
        flags = _flags(self.config, self.isolation, self.disagreement, self.fence, rows, look, of)
        either = np.logical_or.reduce(list(flags.values())) if flags else np.zeros(len(rows), dtype=bool)
        return Judged(self.weighing.weigh(log_density, of, either), log_density, flags)


def _tail(config: ResampleConfig, strata: NDArray[np.intp], guards: dict[str, Flags]) -> Tail:
    """Return how far rare rows stand out at coordinates (n, l), rows that a guard flags left out."""
    kept = ~np.logical_or.reduce([np.zeros(len(strata), dtype=bool), *guards.values()])
    known = {"k": config.neighbours, "smoothing": config.smoothing, "seed": config.seed}
    return lambda coordinates: long_tail(coordinates[kept], strata[kept], **known)


def _points(rows: CodedRows, space: str) -> NDArray[np.floating]:
    if space == "joint":
        return np.concatenate([rows.codes, rows.surface], axis=1)
    return rows.codes if space == "latent" else rows.surface


def _flags(
    config: ResampleConfig,
    isolation: Isolation | None,
    disagreement: LabelDisagreement | None,
    fence: float | None,
    rows: CodedRows,
    look: NDArray[np.float32],
    of: NDArray[np.intp],
) -> dict[str, Flags]:
    flags: dict[str, Flags] = {}
    improbable = []
    if config.guard and rows.p_values is not None:
        improbable.append(rows.p_values <= config.guard)
    if fence is not None and rows.surprises is not None:
        improbable.append(rows.surprises > fence)
    if improbable:
        flags[ANOMALY] = np.logical_or.reduce(improbable)
    if isolation is not None and config.isolation_guard is not None:
        flags[ISOLATED] = isolation.flagged(look, config.isolation_guard)
    if disagreement is not None and config.label_guard is not None:
        flags[MISLABELLED] = disagreement.log_ratio(look, of)[0] > np.log(config.label_guard)
    return flags


def _fence(surprises: Floats | None, ranges: float | None) -> float | None:
    """Return the surprise that lies so many interquartile ranges above the upper quartile (Tukey 1977, section 2D).

    A p-value compares with calibration rows, which hold as much garbage as the others: of 2 % of garbage half has
    p-values above .01. Quartiles do not move with it.
    """
    if surprises is None or ranges is None:
        return None
    low, high = np.quantile(surprises, [0.25, 0.75])
    return float(high + ranges * (high - low))


def _check_lengths(rows: CodedRows) -> None:
    lengths = {
        name: len(np.asarray(value))
        for name in ("codes", "surface", "log_scales", "p_values", "surprises", "labels")
        if (value := getattr(rows, name)) is not None
    }
    if not len(rows) or len(set(lengths.values())) > 1:
        told = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise ShapeError(f"rows and labels must be as many, and at least one, got {told}. Give one label a row.")
    if rows.p_values is not None and not np.isfinite(rows.p_values).all():
        raise ConfigError("p-values must be numbers, got one that is not. Look at the rows without a score.")
