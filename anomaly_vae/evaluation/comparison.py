"""Several detectors over several tables: means and mean ranks, with intervals over the choice of tables.

The tables are what is drawn at random, not the rows in them: an interval says what another collection of such tables
might have shown. The seeds of a table are repetitions on the same rows and stay together.

References:
    Demšar (2006), Statistical comparisons of classifiers over multiple data sets, JMLR 7.
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from ..errors import ConfigError, ShapeError

Figures = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """One figure of d detectors over the same tables.

    Attributes:
        mean: Mean over the tables of the mean over their seeds, (d,); of a detector that lacks runs, over those it has.
        mean_low: Lower ends of its bootstrap intervals, (d,).
        mean_high: Upper ends, (d,).
        rank: Mean rank among the complete detectors, 1 = best, ties share their ranks, (d,); NaN for the others.
        rank_low: Lower ends of its bootstrap intervals, (d,).
        rank_high: Upper ends, (d,).
        runs: Runs that each detector has, (d,).
        cells: Runs that a complete detector has: pairs of table and seed for which anything is known.
        tables: Tables among them.
        level: Confidence level of the intervals.
    """

    mean: Figures
    mean_low: Figures
    mean_high: Figures
    rank: Figures
    rank_low: Figures
    rank_high: Figures
    runs: NDArray[np.int64]
    cells: int
    tables: int
    level: float

    def of(self, detector: int) -> dict[str, Any]:
        """Return the figures of one detector, by its position, as numbers."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value[detector].item() for name, value in fields.items() if isinstance(value, np.ndarray)}


def compare(
    figures: ArrayLike, *, higher_is_better: bool = True, n_boot: int = 2000, seed: int = 0, level: float = 0.95
) -> Comparison:
    """Means and mean ranks of detectors, with percentile intervals from resampled tables.

    Detectors are ranked within each pair of table and seed, and only those that have a figure for all of them: a
    detector that fails on hard tables must not rise by it.

    Args:
        figures: One figure for each detector, table and seed, (d, t, s), NaN where there is none. Pairs of table and
            seed without any figure do not count.
        higher_is_better: Whether rank 1 is the highest figure.
        n_boot: Repetitions of the bootstrap.
        seed: Seed of the bootstrap.
        level: Confidence level, between 0 and 1.

    Raises:
        ShapeError: The figures are not of three dimensions, or hold no number.
        ConfigError: A setting is out of range.

    Example:
        >>> found = compare([[[0.9], [0.7]], [[0.8], [0.8]], [[0.5], [0.6]]])
        >>> found.mean.round(2).tolist(), found.rank.tolist()
        ([0.8, 0.8, 0.55], [1.5, 1.5, 3.0])
    """
    values = np.asarray(figures, dtype=np.float64)
    if values.ndim != 3 or np.isnan(values).all():
        raise ShapeError(
            f"figures must have shape (detectors, tables, seeds) and hold numbers, got shape {values.shape}. "
            "Pass NaN only where a run is missing.",
            shape=values.shape,
        )
    if not 0 < level < 1:
        raise ConfigError(f"level must be between 0 and 1, got {level!r}. Use 0.95 for a 95 % interval.", level=level)
    if n_boot < 1:
        raise ConfigError(f"n_boot must be at least 1, got {n_boot}. Use 2000 for a 95 % interval.", n_boot=n_boot)
    known: NDArray[np.bool_] = np.any(~np.isnan(values), axis=0)  # (t, s): cells that count
    kept = np.flatnonzero(known.any(axis=1))
    values, known = values[:, kept], known[kept]
    complete = ~np.isnan(values[:, known]).any(axis=1)
    ranks = np.full_like(values, np.nan)
    if complete.any():
        better = -values[complete] if higher_is_better else values[complete]
        ranks[complete] = np.where(known, rankdata(better, axis=0), np.nan)
    per_table, rank_per_table = _mean(values, axis=2), _mean(ranks, axis=2)  # (d, t)
    drawn = np.random.default_rng(seed).integers(values.shape[1], size=(n_boot, values.shape[1]))
    means, mean_ranks = (_mean(x[:, drawn], axis=2) for x in (per_table, rank_per_table))  # (d, n_boot)
    tails = [(1 - level) / 2, (1 + level) / 2]
    (mean_low, mean_high), (rank_low, rank_high) = _quantiles(means, tails), _quantiles(mean_ranks, tails)
    return Comparison(
        mean=_mean(per_table, axis=1),
        mean_low=mean_low,
        mean_high=mean_high,
        rank=_mean(rank_per_table, axis=1),
        rank_low=rank_low,
        rank_high=rank_high,
        runs=(~np.isnan(values)).sum(axis=(1, 2)),
        cells=int(known.sum()),
        tables=values.shape[1],
        level=level,
    )


def _mean(values: Figures, *, axis: int) -> Figures:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of nothing: NaN, which is what it is
        return np.asarray(np.nanmean(values, axis=axis), dtype=np.float64)


def _quantiles(values: Figures, shares: list[float]) -> Figures:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanquantile(values, shares, axis=1), dtype=np.float64)
