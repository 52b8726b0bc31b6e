"""What is kept of a stream is what the whole would have said."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from anomaly_vae.errors import ShapeError
from anomaly_vae.evaluation.summaries import BINS, GRID, ScoredRows, spread_of, summarise


def stream(rows: ScoredRows, size: int) -> Callable[[], Iterator[ScoredRows]]:
    """The rows in parts, as often as they are asked for."""

    def parts() -> Iterator[ScoredRows]:
        for start in range(0, len(rows.scores), size):
            at = slice(start, start + size)
            known = None if rows.anomalous is None else rows.anomalous[at]
            yield ScoredRows(rows.scores[at], rows.p_values[at], rows.flags[at], known)

    return parts


def some_rows(n: int, *, labelled: bool = True) -> ScoredRows:
    rng = np.random.default_rng(3)
    scores = rng.gamma(3, 10, n)
    p = (1 + rng.integers(0, 200, n)) / 201
    return ScoredRows(scores, p, p <= 0.05, rng.random(n) < 0.1 if labelled else None)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_parts_count_as_the_whole(size: int) -> None:
    rows = some_rows(700)
    found = summarise(stream(rows, size), threshold=60.0, top=5, sample=100)
    assert rows.anomalous is not None
    assert found.rows == 700
    assert found.flagged == rows.flags.sum()
    assert found.spread.top.tolist() == np.argsort(-rows.scores)[:5].tolist()
    for kind, chosen in (("normal", ~rows.anomalous), ("anomalous", rows.anomalous)):
        counts, edges = found.counts[kind], found.spread.edges
        assert counts.rows == chosen.sum() == counts.bins.sum()
        inside = np.clip(rows.scores[chosen], edges[0], edges[-1])
        assert np.abs(counts.bins - np.histogram(inside, edges)[0]).sum() <= 2  # a score on an edge may go either way
        assert counts.above == (rows.scores[chosen] > edges[-1]).sum()
        for alpha in (0.05, 0.1, 0.5, 1.0):
            assert counts.share_at_most(np.array([alpha]))[0] == pytest.approx((rows.p_values[chosen] <= alpha).mean())


def test_p_values_on_the_grid_count_as_at_most_themselves() -> None:
    """Conformal p-values are fractions that rounding may put above the rate they equal."""
    p = np.arange(1, 20 + 1) / 20
    found = summarise(lambda: [ScoredRows(np.ones(20), p, p <= 0.05)], threshold=None)
    shares = found.counts["all"].share_at_most(p)
    np.testing.assert_allclose(shares, p)
    assert GRID % 20 == 0


def test_the_sample_is_uniform_and_without_replacement() -> None:
    """Each of 60 rows is drawn in 10 of 60 places; over 2,000 seeds that is 333 times, with a deviation of 17."""
    counts = np.zeros(60)
    scores = np.arange(60.0)
    for seed in range(2000):
        drawn = spread_of((scores[i : i + 13] for i in range(0, 60, 13)), sample=10, seed=seed).sample
        assert len(set(drawn.tolist())) == 10
        counts[drawn] += 1
    assert np.abs(counts - 2000 / 6).max() < 5 * np.sqrt(2000 * (1 / 6) * (5 / 6))


def test_the_axis_shows_threshold_and_normal_rows() -> None:
    """A few absurd scores do not press the rest into one bar."""
    scores = np.concatenate([np.random.default_rng(0).normal(0, 1, 1000), [1e9]])
    found = summarise(lambda: [ScoredRows(scores, np.full(1001, np.nan), scores > 2)], threshold=2.0)
    edges = found.spread.edges
    assert edges[0] <= scores.min() + 1
    assert 2.0 < edges[-1] < 50
    assert (found.counts["all"].bins > 0).sum() > BINS / 3
    assert found.counts["all"].above == 1
    assert found.counts["all"].p_rows == 0


def test_scores_that_are_all_alike_have_an_axis() -> None:
    found = summarise(lambda: [ScoredRows(np.full(5, 3.0), np.ones(5), np.zeros(5, dtype=bool))], threshold=3.0)
    assert found.spread.edges[0] < 3 < found.spread.edges[-1]
    assert found.counts["all"].bins.sum() == 5


def test_rows_without_any_score_are_refused() -> None:
    with pytest.raises(ShapeError, match="a finite score, got none in 2 rows"):
        spread_of([np.array([np.nan, np.inf])])
