"""p-values, thresholds and discovery control against their definitions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from anomaly_vae.detection.calibration import Calibration, discovery_cutoff
from anomaly_vae.errors import CalibrationError, ShapeError
from tests.conftest import mixed_frame

scores = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=60)


@given(scores, scores)
def test_p_values_by_definition(held, new):
    p = Calibration({3: np.sort(held)}).p_values(new, k=3)
    wanted = [(1 + sum(h >= s for h in held)) / (len(held) + 1) for s in new]
    np.testing.assert_allclose(p, wanted)


@given(scores, scores, st.sampled_from([0.01, 0.05, 0.1, 0.2, 0.25, 0.5, 0.9]))
def test_the_threshold_flags_what_the_p_value_flags(held, new, alpha):
    calibration = Calibration({1: np.sort(held)})
    if int(np.ceil(1 / alpha)) - 1 > len(held):
        with pytest.raises(CalibrationError, match="must have at least"):
            calibration.threshold(alpha, k=1)
        return
    threshold = calibration.threshold(alpha, k=1)
    np.testing.assert_array_equal(np.array(new) > threshold, calibration.p_values(new, k=1) <= alpha * (1 + 1e-12))


def test_the_number_of_rows_needed_is_exact():
    for alpha in (0.05, 0.1, 0.01, 0.3):
        with pytest.raises(CalibrationError) as caught:
            Calibration({1: np.zeros(1)}).threshold(alpha, k=1)
        needed = caught.value.needed
        Calibration({1: np.zeros(needed)}).threshold(alpha, k=1)
        with pytest.raises(CalibrationError):
            Calibration({1: np.zeros(needed - 1)}).threshold(alpha, k=1)


@given(
    st.lists(st.integers(1, 30).map(lambda i: i / 30), min_size=1, max_size=80),
    st.sampled_from([0.05, 0.1, 0.3]),
)
def test_discovery_cutoff_is_benjamini_hochberg(p, q):
    cutoff = discovery_cutoff(*np.unique(p, return_counts=True), q=q)
    np.testing.assert_array_equal(np.array(p) <= cutoff, false_discovery_control(p) <= q * (1 + 1e-12))


def test_each_group_is_calibrated_by_itself():
    rng = np.random.default_rng(0)
    groups = np.repeat(["calm", "wild"], [1600, 400])
    spread = np.repeat([1.0, 5.0], [1600, 400])
    calibration = Calibration.of({2: spread * rng.normal(size=2000)}, groups)
    new = spread * rng.normal(size=2000)
    p = calibration.grouped_p_values(new, groups, k=2)
    for name in ("calm", "wild"):
        alone = calibration.within(name)
        np.testing.assert_array_equal(p[groups == name], alone.p_values(new[groups == name], k=2))
    np.testing.assert_array_equal(p <= 0.05, new > calibration.grouped_thresholds(groups, 0.05, k=2))
    pooled = calibration.p_values(new, k=2) <= 0.05
    assert pooled[groups == "wild"].mean() > 0.15
    assert (p <= 0.05)[groups == "wild"].mean() < 0.12


def test_a_group_without_enough_rows_is_refused():
    calibration = Calibration.of({1: np.arange(30.0)}, ["a"] * 25 + ["b"] * 5)
    with pytest.raises(CalibrationError, match=r"a group must be one with calibration rows \(a, b\), got 'c'"):
        calibration.grouped_p_values([1.0], ["c"], k=1)
    with pytest.raises(
        CalibrationError, match=r"group 'b': alpha = 0\.05 must have at least 19 calibration rows, got 5"
    ):
        calibration.grouped_thresholds(["a", "b"], 0.05, k=1)
    with pytest.raises(ShapeError, match="groups must be one for each of the rows"):
        calibration.grouped_p_values([1.0], ["a", "b"], k=1)


@pytest.mark.slow
def test_the_false_alarm_rate_holds_in_each_group():
    """Mean over 400 calibrations of 39 rows a group; the bound is four standard errors."""
    rng = np.random.default_rng(0)
    groups = np.repeat(["calm", "wild"], 39)
    spread = np.repeat([1.0, 5.0], 39)
    alarms = []
    for _ in range(400):
        calibration = Calibration.of({1: spread * rng.normal(size=78)}, groups)
        p = calibration.grouped_p_values(spread * rng.normal(size=78), groups, k=1)
        alarms.append([(p[groups == g] <= 0.05).mean() for g in ("calm", "wild")])
    rates, errors = np.mean(alarms, axis=0), np.std(alarms, axis=0) / 20
    assert (rates <= 0.05 + 4 * errors).all()
    assert (rates >= 0.05 - 4 * errors).all()


def test_a_detector_judges_rows_within_their_groups(detector, tmp_path):
    held, new = mixed_frame(400, seed=5), mixed_frame(200, seed=6)
    grouped = detector.calibrate(held, groups=held.member)
    out = grouped.score_frame(new, groups=new.member)
    scores = grouped.score_frame(new)
    np.testing.assert_array_equal(out.anomaly_score, scores.anomaly_score)
    assert out.threshold.nunique() == 2
    assert (out.is_anomaly == (out.p_value <= 0.05)).all()
    assert scores.threshold.nunique() == 1
    by_fdr = grouped.score_frame(new, groups=new.member, fdr=0.3)
    assert by_fdr.is_anomaly.sum() <= (by_fdr.p_value <= 0.3).sum()
    grouped.save(tmp_path / "m")
    again = type(detector).load(tmp_path / "m")
    pd.testing.assert_frame_equal(again.score_frame(new, groups=new.member), out)
    with pytest.raises(CalibrationError, match="there are none"):
        detector.score_frame(new, groups=new.member)
