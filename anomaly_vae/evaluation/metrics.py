"""Ranking quality and false alarms, from arrays alone.

Every figure comes with an interval: a bootstrap one for rankings, an exact one for rates.
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
    """

    rate: float
    low: float
    high: float
    count: int
    n: int
    level: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return dataclasses.asdict(self)


def auroc_ap(
    labels: ArrayLike, scores: ArrayLike, *, n_boot: int = 1000, seed: int = 0, level: float = 0.95
) -> Ranking:
    """AUROC and average precision of a score, with stratified bootstrap intervals.

    Normal and anomalous rows are drawn again separately, so each repetition has the table's own prevalence,
    on which average precision depends.

    Args:
        labels: True (or 1) for anomalous rows, shape (n,).
        scores: High = anomalous, finite, shape (n,).
        n_boot: Repetitions of the bootstrap.
        seed: Seed of the bootstrap.
        level: Confidence level, between 0 and 1.

    Returns:
        The two figures and their percentile intervals.

    Raises:
        ShapeError: The arrays differ in length, are not one-dimensional, or hold rows of one kind only.
        ConfigError: A score is not finite, or a setting is out of range.

    Example:
        >>> auroc_ap([False, False, True, True], [0.1, 0.4, 0.35, 0.8], n_boot=10).auroc
        0.75
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    anomalous, values = _checked(labels, scores)
    _check_level(level)
    if n_boot < 1:
        raise ConfigError(f"n_boot must be at least 1, got {n_boot}. Use 1000 for a 95 % interval.", n_boot=n_boot)
    aurocs, precisions = _bootstrap(values[~anomalous], values[anomalous], n_boot, np.random.default_rng(seed))
    tails = [(1 - level) / 2, (1 + level) / 2]
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
    )


def flag_rate(flags: ArrayLike, *, level: float = 0.95) -> Rate:
    """Share of rows that were flagged, with its exact (Clopper-Pearson) interval.

    Of normal rows it is the false-alarm rate, of anomalous ones the share found.

    Args:
        flags: True where a row was flagged, shape (n,).
        level: Confidence level, between 0 and 1.

    Raises:
        ShapeError: There is no row, or the array is not one-dimensional.
        ConfigError: The level is out of range.

    Example:
        >>> rate = flag_rate([True] + [False] * 19)
        >>> rate.rate, round(rate.high, 3)
        (0.05, 0.249)
    """
    from scipy.stats import binomtest

    flags = np.asarray(flags, dtype=bool)
    _check_level(level)
    if flags.ndim != 1 or not flags.size:
        raise ShapeError(
            f"flags must have shape (n,) with n >= 1, got {flags.shape}. Pass one flag for each row.",
            shape=flags.shape,
        )
    count, n = int(flags.sum()), flags.size
    interval = binomtest(count, n).proportion_ci(confidence_level=level, method="exact")
    return Rate(rate=count / n, low=float(interval.low), high=float(interval.high), count=count, n=n, level=level)


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


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"level must be between 0 and 1, got {level!r}. Use 0.95 for a 95 % interval.", level=level)
