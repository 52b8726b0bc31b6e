"""Means and mean ranks against hand-computed values; the bootstrap against the exact law of its means."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from anomaly_vae.errors import ConfigError, ShapeError
from anomaly_vae.evaluation.comparison import compare

NAN = float("nan")
# three detectors, two tables, two seeds
FIGURES = np.array(
    [
        [[0.9, 0.8], [0.5, 0.7]],
        [[0.8, 0.8], [0.6, 0.6]],
        [[0.1, 0.2], [0.9, 0.1]],
    ]
)


def test_means_and_ranks_by_hand() -> None:
    found = compare(FIGURES)
    np.testing.assert_allclose(found.mean, [0.725, 0.7, 0.325])
    # ranks by cell: table 1 seed 1: 1 2 3; seed 2: 1.5 1.5 3; table 2 seed 1: 3 2 1; seed 2: 1 2 3
    np.testing.assert_allclose(found.rank, [6.5 / 4, 7.5 / 4, 10 / 4])
    assert found.runs.tolist() == [4, 4, 4]
    assert (found.cells, found.tables) == (4, 2)
    assert found.of(0)["mean"] == pytest.approx(0.725)
    assert set(found.of(0)) == {"mean", "mean_low", "mean_high", "rank", "rank_low", "rank_high", "runs"}


def test_lower_can_be_better() -> None:
    np.testing.assert_allclose(compare(-FIGURES, higher_is_better=False).rank, compare(FIGURES).rank)


def test_an_incomplete_detector_has_a_mean_but_no_rank() -> None:
    figures = FIGURES.copy()
    figures[1, 0] = NAN  # table 1 failed
    figures[2, 1, 1] = NAN
    found = compare(figures)
    np.testing.assert_allclose(found.mean, [0.725, 0.6, (0.15 + 0.9) / 2])
    assert found.rank[0] == 1.0
    assert np.isnan(found.rank[1:]).all()
    assert np.isnan(found.rank_low[1:]).all()
    assert found.runs.tolist() == [4, 2, 3]
    assert found.cells == 4


def test_cells_and_tables_that_nobody_has_do_not_count() -> None:
    figures = np.concatenate([FIGURES, np.full((3, 1, 2), NAN)], axis=1)
    figures[:, 1, 0] = NAN
    found = compare(figures)
    assert (found.cells, found.tables) == (3, 2)
    np.testing.assert_allclose(found.mean, [(0.85 + 0.7) / 2, (0.8 + 0.6) / 2, (0.15 + 0.1) / 2])
    # by table: 1.25 and 1, 1.75 and 2, 3 and 3
    np.testing.assert_allclose(found.rank, [1.125, 1.875, 3.0])


def test_a_detector_without_any_run_is_all_missing() -> None:
    found = compare(np.concatenate([FIGURES, np.full((1, 2, 2), NAN)]))
    assert np.isnan(found.mean[3])
    assert np.isnan(found.mean_low[3])
    np.testing.assert_allclose(found.rank[:3], compare(FIGURES).rank)


def test_intervals_resample_tables_and_keep_seeds_together() -> None:
    """With three tables all 27 draws can be listed: the quantiles must be those of the exact law."""
    figures = np.array([[[0.2, 0.4], [0.5, 0.5], [0.9, 1.0]], [[0.3, 0.3], [0.4, 0.4], [0.8, 0.8]]])
    found = compare(figures, n_boot=20_000, level=0.8)
    tables = figures.mean(axis=2)
    law = np.array([tables[:, list(draw)].mean(axis=1) for draw in itertools.product(range(3), repeat=3)])
    low, high = np.quantile(law, [0.1, 0.9], axis=0, method="inverted_cdf")
    np.testing.assert_allclose(found.mean_low, low)
    np.testing.assert_allclose(found.mean_high, high)
    # ranks of the first by table: 1.5, 1, 1
    assert (found.rank_low[0], found.rank_high[0]) == pytest.approx((1.0, 1 + 1 / 3))


def test_one_table_leaves_no_interval_and_the_seed_fixes_it() -> None:
    one = compare(FIGURES[:, :1])
    np.testing.assert_array_equal(one.mean_low, one.mean_high)
    many = np.random.default_rng(0).random((3, 8, 2))
    a, b, c = compare(many), compare(many), compare(many, seed=1)
    np.testing.assert_array_equal(a.mean_low, b.mean_low)
    assert not np.array_equal(a.mean_low, c.mean_low)


@pytest.mark.parametrize("figures", [[0.1, 0.2], [[[NAN]], [[NAN]]], np.empty((0, 2, 2))])
def test_what_is_not_a_comparison_is_refused(figures: object) -> None:
    with pytest.raises(ShapeError, match="figures must have shape"):
        compare(figures)  # type: ignore[arg-type]


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="level must be between 0 and 1"):
        compare(FIGURES, level=1.0)
    with pytest.raises(ConfigError, match="n_boot must be at least 1"):
        compare(FIGURES, n_boot=0)
