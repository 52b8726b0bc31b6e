"""p-values, thresholds and discovery control against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from anomaly_vae.detection.calibration import Calibration, discovery_cutoff
from anomaly_vae.errors import CalibrationError

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
