"""Whether rows still come from where the training and calibration rows came from: scores, columns, plain sentences.

Arrays and counts in, dataclasses out. While nothing changes, anything is alarmed with a probability of at most `level`:
half of it is spent on the martingale of the scores, half on the columns, whose tests are corrected together (Holm 1979,
valid however they depend on each other); without columns the martingale has it all. The martingale's share holds for
streams of any length that are looked at as often as one likes; that of the columns for one job.

A column's change must be more than certain: with a million rows anything is. It is alarmed where its population
stability index is at least `least_psi`, or its share of missing cells has moved by at least `least_missing`.

References:
    Holm (1979), A simple sequentially rejective multiple test procedure.
    Yurdakul & Naranjo (2020), Statistical properties of the population stability index, J. Risk Model Validation 14(4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2_contingency, fisher_exact, kstwo

from ..data.profile import ColumnProfile, Profile
from ..errors import ShapeError
from ..options import MonitorConfig
from .martingale import Evidence

PSI_BINS = 10
FEWEST_EXPECTED = 5.0
NO_PROFILE = "The model has no profile of its training rows, so columns are not compared; the scores alone are judged."
NO_ROWS = "No rows were given beside their scores, so columns are not compared; the scores alone are judged."


@dataclass(frozen=True, kw_only=True)
class ColumnDrift:
    """One column of new rows beside the training rows.

    Attributes:
        name: The column.
        kind: continuous, count, binary or categorical.
        test: "ks" (Kolmogorov-Smirnov, over the profile's edges) or "chi2" (categories); "" without observed cells.
        statistic: Its statistic.
        p_value: Its p-value.
        corrected: The same corrected for all tests of all columns.
        psi: Population stability index over at most `PSI_BINS` bins.
        missing_before: Share of missing cells in training.
        missing_now: Share of missing cells in the new rows.
        missing_p: p-value of their difference (chi-square, or Fisher's exact test where few are expected).
        missing_corrected: The same corrected for all tests of all columns.
        drifted: Whether the observed cells have changed, certainly and by enough to matter.
        missing_drifted: Whether the share of missing cells has.
        largest: The bin whose share has moved most: its number, its share before and now.
    """

    name: str
    kind: str
    test: str
    statistic: float
    p_value: float
    corrected: float
    psi: float
    missing_before: float
    missing_now: float
    missing_p: float
    missing_corrected: float
    drifted: bool = False
    missing_drifted: bool = False
    largest: tuple[int, float, float] = (0, 0.0, 0.0)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What has changed, in plain words."""
        out = []
        if self.drifted:
            test = "Kolmogorov-Smirnov" if self.test == "ks" else "chi-square"
            out.append(
                f"Column {self.name!r} is distributed otherwise than in training: stability index {self.psi:.2f}, "
                f"{test} corrected p = {self.corrected:.2g}."
            )
        if self.missing_drifted:
            out.append(
                f"Column {self.name!r} lacks {self.missing_now:.1%} of its cells, in training "
                f"{self.missing_before:.1%} (corrected p = {self.missing_corrected:.2g})."
            )
        return tuple(out)


@dataclass(frozen=True, kw_only=True)
class Drift:
    """The outcome of monitoring.

    Attributes:
        scores: The martingale on the scores.
        columns: Each column beside training; empty where they were not compared.
        rows: Rows whose columns were compared.
        notes: What could not be judged, and why.
        level: Probability of any alarm while nothing changes, at most.
    """

    scores: Evidence
    columns: tuple[ColumnDrift, ...]
    rows: int
    notes: tuple[str, ...]
    level: float

    @property
    def alarm(self) -> bool:
        """Whether anything has changed."""
        return self.scores.alarm or any(c.drifted or c.missing_drifted for c in self.columns)

    @property
    def sentences(self) -> tuple[str, ...]:
        """The verdict in plain words."""
        found = [text for c in sorted(self.columns, key=lambda c: -c.psi) for text in c.sentences]
        if self.columns and not found:
            found = [
                f"None of the {len(self.columns)} columns has changed, by {self.rows:,} rows, by enough to matter."
            ]
        return (self.scores.sentence, *found, *self.notes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values, with the verdict."""
        columns = [dataclasses.asdict(c) for c in self.columns]
        return {
            "alarm": self.alarm,
            "sentences": list(self.sentences),
            "level": self.level,
            "scores": self.scores.to_dict(),
            "columns": [{**c, "largest": list(c["largest"])} for c in columns],
            "rows": self.rows,
            "notes": list(self.notes),
        }

    def metrics(self) -> dict[str, float]:
        """Return the figures that are worth following over days, by name."""
        out = {
            "drift_alarm": float(self.alarm),
            "drift_score_alarms": float(len(self.scores.alarms)),
            "drift_log_capital": self.scores.log_capital,
            "drift_largest_log_capital": self.scores.log_largest,
            "drift_rows": float(self.scores.rows),
            "drift_columns": float(sum(c.drifted or c.missing_drifted for c in self.columns)),
        }
        if self.columns:
            out["drift_largest_psi"] = max(c.psi for c in self.columns)
        return out


def score_level(config: MonitorConfig, *, columns: bool) -> float:
    """Return the part of the level that the martingale has.

    Args:
        config: Settings.
        columns: Whether columns are compared too.
    """
    return config.level / 2 if columns else config.level


def judge(
    scores: Evidence, trained: Profile | None, seen: Profile | None, config: MonitorConfig, *, notes: Sequence[str] = ()
) -> Drift:
    """Judge scores, and columns where there are profiles of both.

    Args:
        scores: The martingale's outcome, at `score_level`.
        trained: Profile of the training rows.
        seen: Profile of the new rows, in the same bins.
        config: Settings.
        notes: What else is to be said.
    """
    columns: tuple[ColumnDrift, ...] = ()
    rows = 0
    if trained is not None and seen is not None:
        columns, rows = column_drift(trained, seen, config, level=config.level / 2), seen.rows
    return Drift(scores=scores, columns=columns, rows=rows, notes=tuple(notes), level=config.level)


def column_drift(trained: Profile, seen: Profile, config: MonitorConfig, *, level: float) -> tuple[ColumnDrift, ...]:
    """Compare each column of new rows with the training rows.

    Args:
        trained: Profile of the training rows.
        seen: Profile of the new rows, in the same bins.
        config: What is large enough to matter.
        level: Probability of any finding while nothing changes.

    Raises:
        ShapeError: The profiles have different columns.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> edges = np.linspace(-2, 2, 20)
        >>> empty = ColumnProfile("x", "continuous", edges, np.zeros(0, int), np.zeros(21, int), 0)
        >>> before, now = (Profile((empty.of(rng.normal(shift, 1, 2000)),)) for shift in (0.0, 0.5))
        >>> [c.drifted for c in column_drift(before, now, MonitorConfig(), level=0.01)]
        [True]
    """
    if [c.name for c in trained.columns] != [c.name for c in seen.columns]:
        raise ShapeError("profiles must have the same columns in the same order, got others. Count in the same bins.")
    found = [_compared(a, b) for a, b in zip(trained.columns, seen.columns, strict=True)]
    corrected = holm([p for c in found for p in (c.p_value, c.missing_p)])
    out = []
    for c, (p, missing_p) in zip(found, corrected.reshape(-1, 2).tolist(), strict=True):
        moved = abs(c.missing_now - c.missing_before) >= config.least_missing
        drifted, lacks = p <= level and c.psi >= config.least_psi, missing_p <= level and moved
        out.append(replace(c, corrected=p, missing_corrected=missing_p, drifted=drifted, missing_drifted=lacks))
    return tuple(out)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return p-values corrected for their number, (t,): rejecting those up to a level errs anywhere at most so often.

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    out = np.empty(len(p))
    out[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))))
    return out


def stability_index(before: ArrayLike, now: ArrayLike) -> float:
    r"""Return the population stability index :math:`\sum_b (q_b - p_b) \log(q_b / p_b)` of two sets of counts, (b,).

    Half a row is added to each bin, so that an empty one is finite. Under 0.1 is usually called stable, over 0.25 a
    shift; a normal column that moves by a third of its standard deviation has 0.1.

    Example:
        >>> stability_index([500, 500], [500, 500]), round(stability_index([500, 500], [600, 400]), 3)
        (0.0, 0.04)
    """
    p, q = ((np.asarray(c, dtype=np.float64) + 0.5) / (np.sum(c) + 0.5 * len(np.asarray(c))) for c in (before, now))
    return float(((q - p) * np.log(q / p)).sum())


def stability_indices(trained: Profile, seen: Profile) -> NDArray[np.float64]:
    """Return the population stability index of each column, (m,), missing cells being a bin of their own.

    Observed cells are in at most `PSI_BINS` bins, of categories the most common in training and one for all others, so
    that columns of many categories are not noisier: undisturbed, n rows have about `PSI_BINS` / n.

    Args:
        trained: Profile of the training rows.
        seen: Profile of the new rows, in the same bins.
    """
    return np.array([_index_of(a, b) for a, b in zip(trained.columns, seen.columns, strict=True)])


def _index_of(before: ColumnProfile, now: ColumnProfile) -> float:
    groups = _commonest(before.counts) if len(before.bin_of) else _tenths(before.counts)
    counts = [np.append(np.bincount(groups, weights=c.counts), c.missing) for c in (before, now)]
    some = counts[0] + counts[1] > 0
    return stability_index(counts[0][some], counts[1][some])


def _commonest(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a group for each category: the most common ones have theirs, all others share the last."""
    rank = np.empty(len(counts), dtype=np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return np.minimum(rank, PSI_BINS - 1)


def _compared(before: ColumnProfile, now: ColumnProfile) -> ColumnDrift:
    test, statistic, p_value, psi, largest = "", 0.0, 1.0, 0.0, (0, 0.0, 0.0)
    if before.observed and now.observed:
        shares = before.counts / before.observed, now.counts / now.observed
        most = int(np.abs(shares[1] - shares[0]).argmax())
        largest = most, float(shares[0][most]), float(shares[1][most])
        if len(before.bin_of):
            test, (statistic, p_value) = "chi2", _chi_square(before.counts, now.counts)
            psi = stability_index(before.counts, now.counts)
        else:
            test, (statistic, p_value) = "ks", _kolmogorov_smirnov(before.counts, now.counts)
            tenths = _tenths(before.counts)
            psi = stability_index(*(np.bincount(tenths, weights=c) for c in (before.counts, now.counts)))
    lacking = np.array([[c.missing, c.observed] for c in (before, now)])
    return ColumnDrift(
        name=before.name, kind=before.kind, test=test, statistic=statistic, p_value=p_value, corrected=1.0, psi=psi,
        missing_before=before.missing / max(1, before.rows), missing_now=now.missing / max(1, now.rows),
        missing_p=_two_by_two(lacking), missing_corrected=1.0, largest=largest,
    )  # fmt: skip


def _tenths(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return which of at most `PSI_BINS` neighbouring groups of about equal counts each bin belongs to."""
    middle = (np.cumsum(counts) - counts / 2) / max(1, counts.sum())
    return np.unique((middle * PSI_BINS).astype(np.int64), return_inverse=True)[1]


def _kolmogorov_smirnov(before: NDArray[np.int64], now: NDArray[np.int64]) -> tuple[float, float]:
    """Return the statistic over the edges between bins and its p-value.

    Over some places only, the largest difference is no larger than over all: the p-value is the usual one, or higher.
    """
    n, m = int(before.sum()), int(now.sum())
    largest = float(np.abs(np.cumsum(before) / n - np.cumsum(now) / m).max())
    return largest, float(np.clip(kstwo.sf(largest, max(1, round(n * m / (n + m)))), 0.0, 1.0))


def _chi_square(before: NDArray[np.int64], now: NDArray[np.int64]) -> tuple[float, float]:
    """Return the statistic and its p-value; categories of which few are expected are taken together."""
    table = np.array([before, now])
    table = table[:, table.sum(0) > 0]
    expected = table.sum(0) * table.sum(1).min() / table.sum()
    few = expected < FEWEST_EXPECTED
    if few.any():
        table = np.column_stack([table[:, ~few], table[:, few].sum(1)])
    if table.shape[1] < 2:
        return 0.0, 1.0
    if table.shape[1] == 2:
        return 0.0, _two_by_two(table)
    found = chi2_contingency(table, correction=False)
    return float(found.statistic), float(found.pvalue)


def _two_by_two(table: NDArray[np.int64]) -> float:
    if not table.sum(0).all() or not table.sum(1).all():
        return 1.0
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    if expected.min() < 10 * FEWEST_EXPECTED:
        return float(min(1.0, fisher_exact(table).pvalue))
    return float(chi2_contingency(table, correction=True).pvalue)
