"""What is kept of scored rows, however many: histograms, counts, the strangest rows and a random sample.

Streams of arrays in, dataclasses out. The stream is gone through twice: once for the range of the scores, the strangest
rows and the sample, once for the counts. Memory does not grow with the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import ShapeError

Floats = NDArray[np.float64]
Positions = NDArray[np.int64]

BINS = 48
GRID = 2000
"""P-values are counted at every multiple of 1 / GRID."""
KINDS = ("all", "normal", "anomalous")


@dataclass(frozen=True, eq=False)
class ScoredRows:
    """Rows that were scored, a part of a stream.

    Attributes:
        scores: Anomaly scores, (n,), nats; not finite where a row has none.
        p_values: P-values, (n,), NaN where there is none.
        flags: Whether a row was flagged, (n,).
        anomalous: Whether it is known to be anomalous, (n,); None where that is not known.
    """

    scores: Floats
    p_values: Floats
    flags: NDArray[np.bool_]
    anomalous: NDArray[np.bool_] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Spread:
    """The first pass over a stream: how many rows, the range of their scores, who is strangest, who is in the sample.

    Attributes:
        rows: Their number.
        edges: Bin edges over the bulk of the scores and the threshold, (BINS + 1,), nats.
        top: Positions of the highest scores, the highest first.
        sample: Positions of a random sample without replacement, ascending.
    """

    rows: int
    edges: Floats
    top: Positions
    sample: Positions


@dataclass(frozen=True, kw_only=True, eq=False)
class Counts:
    """What was counted of rows of one kind.

    Attributes:
        rows: Their number.
        flagged: How many of them were flagged.
        bins: How many scores fall between edges, (BINS,); those beyond the ends count in the outermost bins.
        below: Scores under the lowest edge.
        above: Scores over the highest.
        p_counts: How many p-values are at most i / GRID, (GRID + 1,).
        p_rows: Rows that have a p-value.
    """

    rows: int
    flagged: int
    bins: NDArray[np.int64]
    below: int
    above: int
    p_counts: NDArray[np.int64]
    p_rows: int

    def share_at_most(self, alpha: Floats) -> Floats:
        """Return the share of rows with p <= alpha, for multiples of 1 / GRID."""
        return self.p_counts[np.rint(alpha * GRID).astype(int)] / max(self.p_rows, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreSummary:
    """What a report shows of scored rows.

    Attributes:
        spread: Range, strangest rows and sample.
        threshold: The score above which rows were flagged, nats; None where there is none, or more than one.
        counts: "all", or "normal" and "anomalous" where it is known which rows are.
    """

    spread: Spread
    threshold: float | None
    counts: dict[str, Counts]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.spread.rows

    @property
    def flagged(self) -> int:
        """Rows that were flagged."""
        return sum(counts.flagged for counts in self.counts.values())


def summarise(
    parts: Callable[[], Iterable[ScoredRows]],
    *,
    threshold: float | None,
    top: int = 6,
    sample: int = 20_000,
    seed: int = 0,
) -> ScoreSummary:
    """Go through scored rows twice and return what is kept of them.

    Args:
        parts: Called twice; yields the rows in one order.
        threshold: The score above which rows were flagged, nats, if it is one.
        top: How many of the strangest rows to keep.
        sample: How many rows to draw.
        seed: Of the draw.

    Raises:
        ShapeError: There is no row.

    Example:
        >>> rows = ScoredRows(np.array([1.0, 9.0, 2.0]), np.array([0.9, 0.1, 0.5]), np.array([False, True, False]))
        >>> found = summarise(lambda: [rows], threshold=5.0, top=1)
        >>> found.flagged, found.spread.top.tolist(), int(found.counts["all"].bins.sum())
        (1, [1], 3)
    """
    spread = spread_of((part.scores for part in parts()), threshold=threshold, top=top, sample=sample, seed=seed)
    counter = ScoreCounter(spread, threshold=threshold)
    for part in parts():
        counter.add(part)
    return counter.summary()


class ScoreCounter:
    """The second pass of `summarise`: counts rows part by part.

    Args:
        spread: Of the first pass over the same rows.
        threshold: The score above which rows were flagged, nats, if it is one.
    """

    def __init__(self, spread: Spread, *, threshold: float | None) -> None:
        self.spread, self.threshold = spread, threshold
        self._tallies: dict[str, _Tally] = {}

    def add(self, part: ScoredRows) -> None:
        """Count some rows."""
        kinds = {"all": None} if part.anomalous is None else {"normal": ~part.anomalous, "anomalous": part.anomalous}
        for kind, chosen in kinds.items():
            self._tallies.setdefault(kind, _Tally(self.spread.edges)).add(part, chosen)

    def summary(self) -> ScoreSummary:
        """Return what was counted."""
        counts = {kind: self._tallies[kind].counts() for kind in KINDS if kind in self._tallies}
        return ScoreSummary(spread=self.spread, threshold=self.threshold, counts=counts)


def spread_of(
    parts: Iterable[Floats], *, threshold: float | None = None, top: int = 6, sample: int = 20_000, seed: int = 0
) -> Spread:
    """Return the first pass of `summarise`, over scores (n,) alone.

    Raises:
        ShapeError: There is no row with a finite score.
    """
    rng = np.random.default_rng(seed)
    drawn, values = np.empty(sample, dtype=np.int64), np.empty(sample)
    best, best_scores = np.empty(0, dtype=np.int64), np.empty(0)
    seen, low, high = 0, np.inf, -np.inf
    for scores in parts:
        positions = np.arange(seen, seen + len(scores))
        place = _places(rng, positions, sample)  # algorithm R: row i replaces one of those drawn with sample / (i + 1)
        kept = place < sample
        drawn[place[kept]], values[place[kept]] = positions[kept], scores[kept]
        seen += len(scores)
        finite = np.isfinite(scores)
        if finite.any():
            low, high = min(low, scores[finite].min()), max(high, scores[finite].max())
            best = np.concatenate([best, positions[finite]])
            best_scores = np.concatenate([best_scores, scores[finite]])
            order = np.argsort(-best_scores, kind="stable")[:top]
            best, best_scores = best[order], best_scores[order]
    if not np.isfinite(low):
        raise ShapeError(f"scored rows must hold a finite score, got none in {seen} rows. Check the scored file.")
    drawn, values = drawn[: min(seen, sample)], values[: min(seen, sample)]
    bulk = np.concatenate([values[np.isfinite(values)], [low, high]])
    ends = _ends(bulk, threshold)
    return Spread(rows=seen, edges=np.linspace(*ends, BINS + 1), top=best, sample=np.sort(drawn))


def _ends(values: Floats, threshold: float | None) -> tuple[float, float]:
    """Return the ends of an axis that shows most scores, (n,), and the threshold.

    The normal rows are what lies below the threshold; an axis over all that lies above it would press them flat.
    """
    smallest, lower, tenth, upper, largest = np.quantile(values, [0, 0.01, 0.1, 0.9, 1])
    mark = upper if threshold is None or not np.isfinite(threshold) else threshold
    reach = abs(mark - tenth) or largest - smallest
    low, high = max(smallest, min(lower, mark) - reach), min(largest, mark + 3 * reach)
    low, high = min(low, mark), max(high, mark)
    if high - low <= 1e-12 * max(1.0, abs(high)):
        return float(low - 0.5), float(high + 0.5)
    return float(low), float(high)


@dataclass
class _Tally:
    edges: Floats
    rows: int = 0
    flagged: int = 0
    below: int = 0
    above: int = 0
    p_rows: int = 0
    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    p_bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(GRID + 1, dtype=np.int64))

    def add(self, part: ScoredRows, chosen: NDArray[np.bool_] | None) -> None:
        scores, p_values, flags = part.scores, part.p_values, part.flags
        if chosen is not None:
            scores, p_values, flags = scores[chosen], p_values[chosen], flags[chosen]
        self.rows += len(scores)
        self.flagged += int(flags.sum())
        scores = scores[np.isfinite(scores)]
        low, high = self.edges[0], self.edges[-1]
        self.below += int((scores < low).sum())
        self.above += int((scores > high).sum())
        width = (high - low) / BINS
        place = np.clip(((np.clip(scores, low, high) - low) / width).astype(np.int64), 0, BINS - 1)
        self.bins += np.bincount(place, minlength=BINS)
        known = p_values[~np.isnan(p_values)]
        self.p_rows += len(known)
        # the least multiple of 1 / GRID that p does not exceed; p = j / (c + 1) may be a rounding error above one
        at = np.clip(np.ceil(known * GRID - 1e-7), 0, GRID).astype(np.int64)
        self.p_bins += np.bincount(at, minlength=GRID + 1)

    def counts(self) -> Counts:
        return Counts(
            rows=self.rows, flagged=self.flagged, bins=self.bins, below=self.below, above=self.above,
            p_counts=np.cumsum(self.p_bins), p_rows=self.p_rows,
        )  # fmt: skip


def _places(rng: np.random.Generator, positions: Positions, sample: int) -> Positions:
    """Return where in a reservoir each row goes, (n,); at least `sample` = nowhere."""
    drawn = np.floor(rng.random(len(positions)) * (positions + 1)).astype(np.int64)
    return np.where(positions < sample, positions, drawn)
