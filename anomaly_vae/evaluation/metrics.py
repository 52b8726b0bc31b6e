"""Ranking quality and false alarms, from arrays alone.

Every figure comes with an interval: a bootstrap one for rankings, an exact one for rates. Rows of one machine, patient
or writer are alike, so many rows of few of them say less than their number: with `groups` intervals are by groups.

References:
    Korn & Graubard (1998), Confidence intervals for proportions with small expected number of positive counts estimated
        from survey data, Survey Methodology 24.
    Hesterberg (2015), What teachers should know about the bootstrap, American Statistician 69, section 4.
    Rao & Wu (1988), Resampling inference with complex survey data, JASA 83.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..cards import Carded
from ..errors import ConfigError, ShapeError

# Bootstrap counts held at once: 2^22 numbers are 32 MiB, whatever the number of rows or repetitions.
_CELLS = 2**22


@dataclass(frozen=True, kw_only=True)
class Ranking(Carded):
    """How well a score ranks anomalous rows above normal ones.

    Attributes:
        auroc: Probability that an anomalous row outscores a normal one, ties counted half.
        auroc_low: Lower end of its bootstrap interval.
        auroc_high: Upper end of its bootstrap interval.
        average_precision: Mean precision over the anomalous rows, as scikit-learn defines it.
        ap_low: Lower end of its bootstrap interval.
        ap_high: Upper end of its bootstrap interval.
        n_normal: Normal rows seen.
        n_anomalous: Anomalous rows seen.
        level: Confidence level of both intervals.
        n_groups: Groups that the intervals are by; None = rows count as independent.
    """

    auroc: float
    auroc_low: float
    auroc_high: float
    average_precision: float
    ap_low: float
    ap_high: float
    n_normal: int
    n_anomalous: int
    level: float
    n_groups: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share of rows with its exact interval.

    Attributes:
        rate: The share observed, count / n.
        low: Lower end of the Clopper-Pearson interval.
        high: Upper end of the Clopper-Pearson interval.
        count: Rows flagged.
        n: Rows seen.
        level: Confidence level of the interval.
        n_groups: Groups that the interval is by; None = rows count as independent.
    """

    rate: float
    low: float
    high: float
    count: int
    n: int
    level: float
    n_groups: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return dataclasses.asdict(self)


def auroc_ap(
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Ranking:
    """AUROC and average precision of a score, with bootstrap intervals.

    Normal and anomalous rows are drawn again separately, so each repetition has the table's own prevalence,
    on which average precision depends. With groups it is whole groups that are drawn, one fewer than there are, which
    makes the variance unbiased (Rao and Wu 1988), and percentiles lie as far out as Student's t for so many groups
    (Hesterberg 2015).

    Args:
        labels: True (or 1) for anomalous rows, shape (n,).
        scores: High = anomalous, finite, shape (n,).
        groups: What rows belong together by, (n,).
        n_boot: Repetitions of the bootstrap.
        seed: Seed of the bootstrap.
        level: Confidence level, between 0 and 1.

    Returns:
        The two figures and their percentile intervals.

    Raises:
        ShapeError: The arrays differ in length, are not one-dimensional, or hold rows of one kind only, or either kind
            in one group only.
        ConfigError: A score is not finite, or a setting is out of range.

    Example:
        >>> auroc_ap([False, False, True, True], [0.1, 0.4, 0.35, 0.8], n_boot=10).auroc
        0.75
    """
    from scipy.stats import norm, t
    from sklearn.metrics import average_precision_score, roc_auc_score

    anomalous, values = _checked(labels, scores)
    _check_level(level)
    if n_boot < 1:
        raise ConfigError(f"n_boot must be at least 1, got {n_boot}. Use 1000 for a 95 % interval.", n_boot=n_boot)
    rng, tail, number = np.random.default_rng(seed), (1 - level) / 2, None
    if groups is None:
        aurocs, precisions = _bootstrap(values[~anomalous], values[anomalous], n_boot, rng)
    else:
        of_group = _numbered(groups, len(values))
        _check_groups(of_group, anomalous)
        aurocs, precisions = _bootstrap_of_groups(values, anomalous, of_group, n_boot, rng)
        number = int(of_group.max()) + 1
        tail = norm.cdf(t.ppf(tail, number - 1))
    tails = [tail, 1 - tail]
    (auroc_low, auroc_high), (ap_low, ap_high) = np.quantile(aurocs, tails), np.quantile(precisions, tails)
    return Ranking(
        auroc=float(roc_auc_score(anomalous, values)),
        auroc_low=float(auroc_low),
        auroc_high=float(auroc_high),
        average_precision=float(average_precision_score(anomalous, values)),
        ap_low=float(ap_low),
        ap_high=float(ap_high),
        n_normal=int((~anomalous).sum()),
        n_anomalous=int(anomalous.sum()),
        level=level,
        n_groups=number,
    )


def flag_rate(flags: ArrayLike, *, groups: ArrayLike | None = None, level: float = 0.95) -> Rate:
    """Share of rows that were flagged, with its exact (Clopper-Pearson) interval.

    Of normal rows it is the false-alarm rate, of anomalous ones the share found. With groups the interval is that of as
    many independent rows as would make the rate vary as it does between groups, and by Student's t for their number
    (Korn and Graubard 1998): it says where the rate of other groups lies.

    Args:
        flags: True where a row was flagged, shape (n,).
        groups: What rows belong together by, (n,).
        level: Confidence level, between 0 and 1.

    Raises:
        ShapeError: There is no row, the array is not one-dimensional, or all rows are of one group.
        ConfigError: The level is out of range.

    Example:
        >>> rate = flag_rate([True] + [False] * 19)
        >>> rate.rate, round(rate.high, 3)
        (0.05, 0.249)
        >>> apart = flag_rate([True] * 10 + [False] * 90, groups=np.arange(100) // 10)
        >>> apart.rate, round(apart.high, 3)  # one of ten groups was flagged whole
        (0.1, 0.536)
    """
    from scipy.stats import beta

    flags = np.asarray(flags, dtype=bool)
    _check_level(level)
    if flags.ndim != 1 or not flags.size:
        raise ShapeError(
            f"flags must have shape (n,) with n >= 1, got {flags.shape}. Pass one flag for each row.",
            shape=flags.shape,
        )
    count, n, tail = int(flags.sum()), flags.size, (1 - level) / 2
    worth, number = float(n), None
    if groups is not None:
        of_group = _numbered(groups, n)
        number = int(of_group.max()) + 1
        worth = _independent_rows(flags, of_group, level)
    seen = worth * count / n
    low = 0.0 if count == 0 else float(beta.ppf(tail, seen, worth - seen + 1))
    high = 1.0 if count == n else float(beta.ppf(1 - tail, seen + 1, worth - seen))
    return Rate(rate=count / n, low=low, high=high, count=count, n=n, level=level, n_groups=number)


def _independent_rows(flags: NDArray[np.bool_], of_group: NDArray[np.intp], level: float) -> float:
    """Return as how many independent rows these count: the effective sample size of their share of flags.

    It is at most their number, and that where all rows are flagged alike, since nothing is then known of how alike the
    rows of a group are.
    """
    from scipy.stats import t

    n, sizes = flags.size, np.bincount(of_group)
    if len(sizes) < 2:
        raise ShapeError(
            f"an interval by groups must have rows of at least 2 groups, got {len(sizes)}. Leave groups out.",
            groups=len(sizes),
        )
    rate = flags.mean()
    off = np.bincount(of_group, weights=flags) - rate * sizes
    variance = len(sizes) / (len(sizes) - 1) * (off @ off) / n**2
    if variance == 0:
        return float(n)
    tail = (1 + level) / 2
    few = t.ppf(tail, n - 1) / t.ppf(tail, len(sizes) - 1)
    return float(min(n, rate * (1 - rate) / variance * few**2))


def _bootstrap(
    normal: NDArray[np.float64], anomalous: NDArray[np.float64], n_boot: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUROC and average precision of `n_boot` stratified resamples, each of shape (n_boot,).

    Both figures depend on the normal rows only through how many fall on and between the distinct anomalous
    scores. So a resample is two multinomial draws over those levels, cheap for any number of normal rows.
    """
    distinct, anomalous_level = np.unique(anomalous, return_inverse=True)
    # Level 2i holds what lies just below the i-th distinct anomalous score, level 2i + 1 what equals it.
    normal_level = np.searchsorted(distinct, normal, "left") + np.searchsorted(distinct, normal, "right")
    n_levels = 2 * len(distinct) + 1
    normal_share = np.bincount(normal_level, minlength=n_levels) / len(normal)
    anomalous_share = np.bincount(2 * anomalous_level + 1, minlength=n_levels) / len(anomalous)
    chunk = max(1, _CELLS // n_levels)
    of_normal, of_anomalous = rng.spawn(2)  # one stream each, so that the chunks leave no trace in the draws
    parts = []
    for start in range(0, n_boot, chunk):
        size = min(chunk, n_boot - start)
        false = of_normal.multinomial(len(normal), normal_share, size=size)
        true = of_anomalous.multinomial(len(anomalous), anomalous_share, size=size)
        parts.append(_ranking_of_counts(false, true))
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _bootstrap_of_groups(
    values: NDArray[np.float64],
    anomalous: NDArray[np.bool_],
    of_group: NDArray[np.intp],
    n_boot: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUROC and average precision of resamples of whole groups, each of shape (at most n_boot,).

    Resamples without a normal or an anomalous row have neither figure and are left out. Counts as in `_bootstrap`.
    """
    from scipy.sparse import coo_array

    distinct = np.unique(values[anomalous])
    level = np.searchsorted(distinct, values, "left") + np.searchsorted(distinct, values, "right")
    shape = (2 * len(distinct) + 1, int(of_group.max()) + 1)
    counts = [  # levels x groups
        coo_array((np.ones(rows.sum(), dtype=np.int64), (level[rows], of_group[rows])), shape=shape).tocsr()
        for rows in (~anomalous, anomalous)
    ]
    chunk = max(1, _CELLS // max(shape))
    parts = []
    for start in range(0, n_boot, chunk):
        size = min(chunk, n_boot - start)
        drawn = rng.multinomial(shape[1] - 1, np.full(shape[1], 1 / shape[1]), size=size)
        false, true = ((of_kind @ drawn.T).T for of_kind in counts)
        whole = (false.sum(1) > 0) & (true.sum(1) > 0)
        parts.append(_ranking_of_counts(false[whole], true[whole]))
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _ranking_of_counts(
    false: NDArray[np.int64], true: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUROC and average precision from rows per ascending score level, each (repetitions, levels)."""
    n_false, n_true = false.sum(1), true.sum(1)
    below = np.cumsum(false, axis=1) - 0.5 * false
    auroc = (true * below).sum(1) / (n_false * n_true)
    caught, alarms = (np.cumsum(x[:, ::-1], axis=1)[:, ::-1] for x in (true, false))
    precision = caught / np.maximum(caught + alarms, 1)
    return auroc, (true * precision).sum(1) / n_true


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    raw, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if raw.ndim != 1 or raw.shape != values.shape:
        raise ShapeError(
            f"labels and scores must have the same shape (n,), got {raw.shape} and {values.shape}. "
            "Pass one label and one score for each row.",
            labels=raw.shape,
            scores=values.shape,
        )
    if not np.isin(raw, (0, 1)).all():
        strange = raw[~np.isin(raw, (0, 1))][0]
        raise ConfigError(f"labels must be 0 or 1, got {strange!r}. Mark anomalous rows 1.", value=strange)
    anomalous = raw.astype(bool)
    if anomalous.all() or not anomalous.any():
        raise ShapeError(
            f"labels must hold normal and anomalous rows, got {int(anomalous.sum())} anomalous of "
            f"{len(raw)}. A ranking needs both.",
            n=len(raw),
        )
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ConfigError(
            f"scores must be finite, got {values[row]} in row {row}. Leave out rows without a score.", row=row
        )
    return anomalous, values


def _numbered(groups: ArrayLike, n: int) -> NDArray[np.intp]:
    """Return the number of each row's group, from 0, (n,)."""
    names = np.asarray(groups)
    if names.shape != (n,):
        raise ShapeError(
            f"groups must be one for each of the {n:,} rows, got shape {names.shape}. Pass as many.", shape=names.shape
        )
    number: NDArray[np.intp] = np.unique(names, return_inverse=True)[1]
    return number


def _check_groups(of_group: NDArray[np.intp], anomalous: NDArray[np.bool_]) -> None:
    for kind, rows in (("normal", ~anomalous), ("anomalous", anomalous)):
        if len(np.unique(of_group[rows])) < 2:
            raise ShapeError(
                f"an interval by groups must have {kind} rows of at least 2 groups, got 1: nothing tells how groups "
                "differ. Add rows of others, or leave groups out.",
                kind=kind,
            )


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"level must be between 0 and 1, got {level!r}. Use 0.95 for a 95 % interval.", level=level)
