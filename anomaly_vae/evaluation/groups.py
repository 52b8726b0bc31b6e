"""Groups of rows compared: rates, densities, p-values, with intervals and tests. Arrays in, dataclasses out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import fisher_exact, ks_2samp, kstwobign, mannwhitneyu

from ..errors import ConfigError, ShapeError
from ..options import AuditConfig

Floats = NDArray[np.float64]

MOST_GROUPS = 20
"""Numeric columns of more distinct values are cut at their quartiles."""
MISSING = "(missing)"
REST = "the rest"
RATES = ("flag_rate", "false_alarm_rate")
APART = 0.1
"""Distances between distributions (Kolmogorov-Smirnov) and shifts of rank (from one half) up to this are no finding."""
FISHER_ROWS = 100_000


@dataclass(frozen=True)
class Measured:
    """What is known of rows, all of shape (n,).

    Attributes:
        flags: Whether a row was flagged.
        p_values: Conformal p-values.
        normal: Whether it is known to be normal; None where nothing is known.
        log_density: Log density of its code, nats, or None.
        calibration_rows: Rows behind the p-values; None if unknown.
    """

    flags: NDArray[np.bool_]
    p_values: Floats
    normal: NDArray[np.bool_] | None = None
    log_density: Floats | None = None
    calibration_rows: int | None = None

    def part(self, rows: NDArray[np.bool_]) -> Measured:
        """Return some of the rows."""
        normal = None if self.normal is None else self.normal[rows]
        density = None if self.log_density is None else self.log_density[rows]
        return replace(self, flags=self.flags[rows], p_values=self.p_values[rows], normal=normal, log_density=density)

    @property
    def judged_p_values(self) -> Floats:
        """P-values of normal rows, where it is known which these are."""
        return self.p_values if self.normal is None else self.p_values[self.normal]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """One group.

    Attributes:
        column: The column that defines it; of two columns "a x b".
        group: Its value.
        rows: Its rows.
        share: Their share of all rows.
        flag_rate: Share of its rows that were flagged.
        false_alarm_rate: Share of its normal rows that were flagged; None where it is not known which these are.
        median_log_density: Median log density of its codes; None where none was given.
        p_value_distance: Largest distance between the distribution of its p-values and the uniform one.
        uniformity: Probability of at least that distance if its p-values are uniform, given the calibration rows.
        judged: Whether it has rows enough to be judged.
    """

    column: str
    group: str
    rows: int
    share: float
    flag_rate: Estimate
    false_alarm_rate: Estimate | None
    median_log_density: Estimate | None
    p_value_distance: float
    uniformity: float
    judged: bool


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A group beside another, or beside the rest.

    Attributes:
        column: The column.
        group: The group.
        other: The other group, or "the rest".
        measure: "flag_rate", "false_alarm_rate", "density" or "p_values".
        group_value: The measure in the group: a rate, a median; for p-values the mean.
        other_value: The same in the other.
        difference: Group minus other.
        ratio: Group over other; None where it means nothing.
        p_value: Of the test that both are alike.
        corrected: The same, corrected for the number of tests in the audit (Holm).
        size: How far apart they are, in the measure's own terms: ratio (at least 1), or distance (0 to 1).
        found: Whether it is both certain and large enough for a finding.
    """

    column: str
    group: str
    other: str
    measure: str
    group_value: float
    other_value: float
    difference: Estimate
    ratio: Estimate | None
    p_value: float
    corrected: float
    size: float
    found: bool


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The largest difference and ratio between groups of one column, as fairlearn's MetricFrame has them.

    Attributes:
        column: The column.
        measure: The rate.
        overall: Over all rows.
        difference: Largest minus least.
        ratio: Least over largest.
    """

    column: str
    measure: str
    overall: float
    difference: float
    ratio: float


def group_labels(values: ArrayLike, name: str) -> NDArray[np.object_]:
    """Return each row's group, (n,), text: values, quartiles of numbers with many values, or "(missing)".

    Args:
        values: The column, (n,).
        name: Its name, for errors.

    Raises:
        ConfigError: No cell has a value.
    """
    column = values if isinstance(values, pd.Series) else pd.Series(np.asarray(values))
    if column.notna().sum() == 0:
        raise ConfigError(f"a group column must have values, got none in {name!r}. Choose another.", column=name)
    numeric = pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)
    if numeric and column.nunique() > MOST_GROUPS:
        cut = pd.qcut(column.astype(float), 4, duplicates="drop", precision=3)
        column = cut.astype(object)
    return np.where(column.notna(), column.astype(str), MISSING).astype(object)


def group_columns(groups: Mapping[str, ArrayLike], rows: int) -> dict[str, NDArray[np.object_]]:
    """Return the groups of each column and of each pair of columns ("a x b"), (n,) each.

    Raises:
        ConfigError: A column has no values.
        ShapeError: A column has another number of rows.
    """
    single = {}
    for name, values in groups.items():
        if len(np.asarray(values)) != rows:
            raise ShapeError(
                f"group column {name!r} must have {rows} rows, got {len(np.asarray(values))}. Give as many."
            )
        single[name] = group_labels(values, name)
    crossed = {
        f"{a} x {b}": np.array([f"{u} x {v}" for u, v in zip(single[a], single[b], strict=True)], dtype=object)
        for a, b in itertools.combinations(single, 2)
    }
    return single | crossed


def describe_group(column: str, group: str, part: Measured, total: int, config: AuditConfig) -> GroupRow:
    """Return the figures of one group."""
    rng = np.random.default_rng(config.seed)
    p_values = part.judged_p_values
    distance, uniformity = _uniformity(p_values, part.calibration_rows)
    alarms = None if part.normal is None or not part.normal.any() else part.flags[part.normal]
    return GroupRow(
        column=column,
        group=group,
        rows=len(part.flags),
        share=len(part.flags) / total,
        flag_rate=_estimate(float(part.flags.mean()), _rates(part.flags, config, rng)),
        false_alarm_rate=None if alarms is None else _estimate(float(alarms.mean()), _rates(alarms, config, rng)),
        median_log_density=None
        if part.log_density is None
        else _estimate(float(np.median(part.log_density)), _medians(part.log_density, config, rng)),
        p_value_distance=distance,
        uniformity=uniformity,
        judged=len(part.flags) >= config.fewest_rows,
    )


def compare(
    column: str, names: tuple[str, str], first: Measured, second: Measured, config: AuditConfig
) -> list[Comparison]:
    """Return the comparisons of two sets of rows, not yet corrected."""
    rng = np.random.default_rng(config.seed)
    found = []

    def add(measure: str, values: tuple[float, float], draws: tuple[Floats, Floats], p: float, size: float) -> None:
        rate = measure in RATES
        difference = _estimate(values[0] - values[1], draws[0] - draws[1])
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = _estimate(float(np.divide(*values)), np.nan_to_num(draws[0] / draws[1], nan=1.0)) if rate else None
        found.append(
            Comparison(
                column=column, group=names[0], other=names[1], measure=measure,
                group_value=values[0], other_value=values[1], difference=difference, ratio=ratio,
                p_value=p, corrected=p, size=size, found=False,
            )
        )  # fmt: skip

    rates = {"flag_rate": (first.flags, second.flags)}
    if first.normal is not None and second.normal is not None and first.normal.any() and second.normal.any():
        rates["false_alarm_rate"] = (first.flags[first.normal], second.flags[second.normal])
    for measure, (a, b) in rates.items():
        values = (float(a.mean()), float(b.mean()))
        least, most = min(values), max(values)
        size = most / least if least else (np.inf if most else 1.0)
        add(measure, values, (_rates(a, config, rng), _rates(b, config, rng)), _same_rate(a, b), size)
    if first.log_density is not None and second.log_density is not None:
        one, two = first.log_density, second.log_density
        test = mannwhitneyu(one, two, method="asymptotic")
        shift = abs(test.statistic / (len(one) * len(two)) - 0.5)
        medians = (float(np.median(one)), float(np.median(two)))
        draws = (_medians(one, config, rng), _medians(two, config, rng))
        add("density", medians, draws, float(test.pvalue), float(shift))
    p, q = first.judged_p_values, second.judged_p_values
    if len(p) and len(q):
        test = ks_2samp(p, q, method="asymp")
        means = (float(p.mean()), float(q.mean()))
        draws = (_means(p, config, rng), _means(q, config, rng))
        add("p_values", means, draws, float(test.pvalue), float(test.statistic))
    return found


def corrected(comparisons: list[Comparison], config: AuditConfig) -> list[Comparison]:
    """Correct for the number of tests (Holm 1979), and say which are findings."""
    order = np.argsort([c.p_value for c in comparisons], kind="stable")
    out, reached = list(comparisons), 0.0
    for place, i in enumerate(order):
        c = comparisons[i]
        reached = max(reached, min(1.0, c.p_value * (len(order) - place)))
        large = c.size > (config.largest_ratio if c.measure in RATES else APART)
        out[i] = replace(c, corrected=reached, found=bool(reached <= config.level and large))
    return out


def gaps(column: str, labels: NDArray[np.object_], measured: Measured) -> list[Gap]:
    """Return the gaps between the groups of a column.

    Raises:
        ConfigError: fairlearn is not installed.
    """
    try:
        from fairlearn.metrics import MetricFrame, selection_rate
    except ImportError as error:
        raise ConfigError(
            "fairlearn must be installed to compare groups, got none. Run pip install 'anomaly-vae[audit]'."
        ) from error
    rows = {"flag_rate": np.ones(len(labels), dtype=bool)}
    if measured.normal is not None and measured.normal.any():
        rows["false_alarm_rate"] = measured.normal
    out = []
    for measure, chosen in rows.items():
        flags = measured.flags[chosen].astype(int)
        frame = MetricFrame(
            metrics=selection_rate,
            y_true=flags,
            y_pred=flags,
            sensitive_features=pd.Series(labels[chosen], name=column),
        )
        largest = float(frame.by_group.max())
        ratio = float(frame.ratio()) if largest > 0 else 1.0
        out.append(
            Gap(
                column=column, measure=measure, overall=float(frame.overall),
                difference=float(frame.difference()), ratio=ratio,
            )
        )  # fmt: skip
    return out


def _uniformity(p_values: Floats, calibration_rows: int | None) -> tuple[float, float]:
    """Return the distance to uniform, and its probability: that of two samples, of these rows and of calibration."""
    n = len(p_values)
    if not n:
        return 0.0, 1.0
    ordered = np.sort(p_values)
    ranks = np.arange(n) / n
    distance = float(np.maximum(ranks + 1 / n - ordered, ordered - ranks).max())
    behind = n if calibration_rows is None else n * calibration_rows / (n + calibration_rows)
    return distance, float(kstwobign.sf(distance * np.sqrt(behind)))


def _same_rate(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    table = np.array([[a.sum(), len(a) - a.sum()], [b.sum(), len(b) - b.sum()]])
    if table.sum() <= FISHER_ROWS:
        return float(fisher_exact(table).pvalue)
    from scipy.stats import chi2_contingency

    return 1.0 if not table.sum(0).all() else float(chi2_contingency(table).pvalue)


def _estimate(value: float, draws: Floats) -> Estimate:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value=value, low=float(low), high=float(high))


def _rates(flags: NDArray[np.bool_], config: AuditConfig, rng: np.random.Generator) -> Floats:
    """Return bootstrap draws of a share: a resample of n rows has binomially many of them."""
    return rng.binomial(len(flags), flags.mean(), config.bootstrap) / len(flags)


def _medians(values: Floats, config: AuditConfig, rng: np.random.Generator) -> Floats:
    """Return bootstrap draws of a median: that of a resample is the order statistic at a beta-distributed rank."""
    n = len(values)
    ranks = np.floor(n * rng.beta(0.5 * (n + 1), 0.5 * (n + 1), config.bootstrap)).astype(np.intp)
    return np.sort(values)[np.minimum(ranks, n - 1)]


def _means(values: Floats, config: AuditConfig, rng: np.random.Generator) -> Floats:
    """Return bootstrap draws of a mean, by its normal limit."""
    return rng.normal(values.mean(), values.std() / np.sqrt(len(values)), config.bootstrap)
