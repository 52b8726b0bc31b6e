"""What the p-values and flags promise, over many draws (slow)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import betabinom

from anomaly_vae import TrainConfig, fit_detector
from anomaly_vae.detection.calibration import Calibration, discovery_cutoff
from tests.conftest import mixed_frame

pytestmark = pytest.mark.slow

HELD, FRESH, DRAWS = 400, 400, 500


@pytest.fixture(scope="module")
def scores() -> np.ndarray:
    """Scores of a large pool of normal rows, from which calibration and fresh rows are drawn."""
    detector = fit_detector(mixed_frame(2000), TrainConfig(steps=1000, hidden=(32,), learning_rate=0.01)).detector
    return detector.log_likelihood(mixed_frame(40_000, seed=9), k=16).value


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1])
def test_false_alarms_follow_the_beta_binomial_law(scores, alpha):
    """Given c calibration rows, false alarms among n fresh rows are BetaBinomial(n, a, c + 1 - a) with
    a = floor(alpha (c+1)), for scores without ties; a sum over draws is compared with that law's mean and spread."""
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(DRAWS):
        drawn = rng.choice(scores, HELD + FRESH, replace=False)
        p = Calibration({1: np.sort(drawn[:HELD])}).p_values(drawn[HELD:], k=1)
        alarms.append(int((p <= alpha).sum()))
    a = int(np.floor(alpha * (HELD + 1)))
    law = betabinom(FRESH, a, HELD + 1 - a)
    assert np.mean(alarms) <= alpha * FRESH + 3 * law.std() / np.sqrt(DRAWS)
    assert abs(np.mean(alarms) - law.mean()) < 4 * law.std() / np.sqrt(DRAWS)
    inside = np.mean([law.ppf(0.005) <= x <= law.ppf(0.995) for x in alarms])
    assert inside > 0.97


def test_p_values_are_super_uniform(scores):
    rng = np.random.default_rng(1)
    p = []
    for _ in range(DRAWS):
        drawn = rng.choice(scores, HELD + 1, replace=False)
        p.append(Calibration({1: np.sort(drawn[:HELD])}).p_values(drawn[HELD:], k=1)[0])
    for level in np.linspace(0.01, 0.99, 50):
        error = np.sqrt(level * (1 - level) / DRAWS)
        assert np.mean(np.array(p) <= level) <= level + 4 * error


def test_the_false_discovery_rate_stays_under_q(scores):
    """10 % planted anomalies: the mean share of normal rows among the flagged is at most q (times their share)."""
    rng = np.random.default_rng(2)
    q, shares = 0.1, []
    for _ in range(DRAWS):
        drawn = rng.choice(scores, HELD + FRESH, replace=False)
        new = drawn[HELD:].copy()
        new[: FRESH // 10] += rng.normal(30, 5, FRESH // 10)
        p = Calibration({1: np.sort(drawn[:HELD])}).p_values(new, k=1)
        flagged = p <= discovery_cutoff(*np.unique(p, return_counts=True), q=q)
        shares.append(flagged[FRESH // 10 :].sum() / max(1, flagged.sum()))
    assert np.mean(shares) <= q * 0.9 + 3 * np.std(shares) / np.sqrt(DRAWS)
    assert np.mean(shares) > 0, "a rate of exactly 0 would mean that nothing was put to the test"


def test_the_whole_detector_keeps_its_promise_on_fresh_rows():
    """Ten detectors, each with its own split, each judged on 2000 fresh normal rows."""
    rates = []
    for seed in range(10):
        config = TrainConfig(steps=300, hidden=(16,), learning_rate=0.01, seed=seed)
        detector = fit_detector(mixed_frame(1500, seed=seed), config).detector
        rates.append(detector.score_frame(mixed_frame(2000, seed=1000 + seed))["is_anomaly"].mean())
    rows = detector.calibration.rows
    a = np.floor(0.05 * (rows + 1))
    spread = betabinom(2000, a, rows + 1 - a).std() / 2000
    assert np.mean(rates) <= 0.05 + 3 * spread / np.sqrt(10)
    assert np.mean(rates) >= 0.05 - 3 * spread / np.sqrt(10) - 1 / rows


def test_imputation_beats_the_mean():
    """Hidden cells of a complete table are guessed better from the other cells than by the column's mean."""
    import torch

    from anomaly_vae.detection.scores import expected_cells

    frame = mixed_frame(4000).dropna()[["height", "weight"]].reset_index(drop=True)
    detector = fit_detector(frame[:2000], TrainConfig(hidden=(32,))).detector
    fresh = frame[2000:]
    x = detector.encode(fresh)
    guess = expected_cells(detector.model, x, torch.ones(len(x), dtype=torch.long), noise=detector.noise)
    error = pd.Series(guess - x[:, 1].numpy()).pow(2).mean()
    assert error < 0.15, "the exact conditional variance is 0.06 of the column's"
