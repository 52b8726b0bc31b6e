"""Champion and challenger: DeLong's test against its own definition, and the rule of promotion."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import betabinom
from sklearn.metrics import roc_auc_score

from anomaly_vae.errors import ConfigError, ShapeError
from anomaly_vae.evaluation.challenge import MARGIN, alarms, contest, delong


def drawn(n: int, m: int, seed: int, gain: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and two correlated scores; the second separates better by `gain` standard deviations."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n + m) >= n
    common = rng.normal(size=n + m)
    one, other = (common + rng.normal(size=n + m) + labels * (1.5 + g) for g in (0.0, gain))
    return labels, one, other


def test_the_areas_are_scikit_learns_with_ties():
    labels, one, other = drawn(80, 30, 0)
    one, other = np.round(one), np.round(other, 1)
    found = delong(labels, one, other)
    assert found.champion == pytest.approx(roc_auc_score(labels, one))
    assert found.challenger == pytest.approx(roc_auc_score(labels, other))


def test_the_variance_is_that_of_its_definition():
    """The placements of DeLong et al., pair by pair."""
    labels, one, other = drawn(40, 25, 1)
    kernel = [(s[labels][:, None] > s[~labels]) + 0.5 * (s[labels][:, None] == s[~labels]) for s in (one, other)]
    v10, v01 = (np.stack([k.mean(axis) for k in kernel]) for axis in (1, 0))
    cov = np.cov(v10) / 25 + np.cov(v01) / 40
    error = np.sqrt(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1])
    found = delong(labels, one, other)
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * error, rel=1e-6)


def test_intervals_cover_and_the_test_holds_its_level():
    found = [delong(*drawn(150, 50, seed)) for seed in range(400)]
    assert np.mean([r.p_value < 0.05 for r in found]) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert np.mean([r.low <= 0 <= r.high for r in found]) > 0.95 - 3 * np.sqrt(0.05 * 0.95 / 400)


def test_the_same_scores_do_not_differ():
    labels, one, _ = drawn(50, 20, 2)
    found = delong(labels, one, one)
    assert (found.difference, found.p_value, found.low, found.high) == (0.0, 1.0, 0.0, 0.0)


def test_alarms_follow_the_law_of_calibration():
    rng = np.random.default_rng(3)
    kept = [
        alarms((1 + (rng.random(99) >= u[:, None]).sum(1)) / 100, calibration_rows=99, alpha=0.05).kept
        for u in rng.random((300, 200))
    ]
    assert np.mean(kept) > 0.98
    found = alarms(np.full(200, 0.5), calibration_rows=99, alpha=0.05)
    assert found.high == betabinom(200, 5, 95).ppf(0.995)
    assert not alarms(np.full(200, 0.01), calibration_rows=99, alpha=0.05).kept


def sides(one: np.ndarray, other: np.ndarray, p_one: float = 0.5, p_other: float = 0.5):
    p = [np.full(200, p_one), np.full(200, p_other)]
    return tuple((s, alarms(q, calibration_rows=99, alpha=0.05)) for s, q in zip((one, other), p, strict=True))


def test_a_challenger_that_is_not_worse_is_promoted():
    labels, one, other = drawn(1500, 500, 4, gain=0.5)
    found = contest(*sides(one, other), labels=labels)
    assert found.promote
    assert found.ranking.low > 0
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["promote"] is True
    worse = contest(*sides(other, one), labels=labels)
    assert not worse.promote
    assert worse.ranking.low < -MARGIN
    assert "AUROC" in worse.reasons[0]


def test_false_alarms_that_calibration_does_not_explain_count_against_it():
    rng = np.random.default_rng(5)
    one = rng.normal(size=200)
    noisy = contest(*sides(one, one, p_other=0.01))
    assert not noisy.promote
    assert "calibration does not explain" in noisy.reasons[0]
    assert contest(*sides(one, one, p_one=0.01, p_other=0.01)).promote, "the champion is no better"


def test_without_labels_the_density_decides():
    rng = np.random.default_rng(6)
    one = rng.normal(size=200)
    better, worse = one - 0.3 + 0.1 * rng.standard_cauchy(200), one + 0.3 + 0.1 * rng.standard_cauchy(200)
    assert contest(*sides(one, better)).promote
    found = contest(*sides(one, worse))
    assert not found.promote
    assert found.closer < 0.5
    assert contest(*sides(one, worse), comparable=False).promote, "scores of other columns are not compared"
    few = np.arange(200) < 3
    assert contest(*sides(one, worse), labels=few).ranking is None, "three labelled rows decide nothing"


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ShapeError, match="same rows"):
        delong([True, False, False], [1, 2, 3], [1, 2, 3])
    with pytest.raises(ConfigError, match="level"):
        delong([True, False] * 5, np.arange(10), np.arange(10), level=1.0)
