"""The martingale is one, finds what it should, and does not depend on how its rows arrive."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import kstest

from anomaly_vae.errors import CalibrationError, ConfigError, ShapeError
from anomaly_vae.evaluation.martingale import BETS, MEMORIES, Martingale, Ranker, ranks_of_p_values


def watched(calibration: np.ndarray, stream: np.ndarray, *, level: float = 0.01, seed: int = 0) -> Martingale:
    martingale = Martingale(len(calibration), level=level, seed=seed)
    martingale.update(Ranker(calibration, seed=seed)(stream))
    return martingale


@pytest.mark.parametrize("rounded", [False, True], ids=["distinct", "tied"])
def test_online_p_values_are_uniform_and_independent(rounded):
    """Over fresh calibration sets, with twenty rows of calibration and many ties: exactly, so a plain test applies."""
    rng = np.random.default_rng(0)
    found = []
    for seed in range(800):
        scores = rng.normal(size=60)
        scores = np.round(scores) if rounded else scores
        martingale = Martingale(20, level=0.01, seed=seed)
        found.append(martingale._online(Ranker(scores[:20], seed=seed)(scores[20:])))
    u = np.array(found)
    assert kstest(u.ravel(), "uniform").pvalue > 0.001
    assert kstest(u[:, -1], "uniform").pvalue > 0.001
    pairs = np.corrcoef(u.T)[np.triu_indices(40, 1)]
    assert abs(pairs.mean()) < 4 / np.sqrt(800 * len(pairs))
    # the offline p-values of one calibration set go together, which is what has to be undone
    scores = rng.normal(size=(800, 60))
    offline = np.array([Ranker(s[:20], seed=i)(s[20:]) for i, s in enumerate(scores)])
    assert np.corrcoef(offline.T)[np.triu_indices(40, 1)].mean() > 0.02


@pytest.mark.parametrize("bet", BETS)
def test_a_bet_is_a_density(bet):
    u = (np.arange(2_000_000) + 0.5) / 2_000_000
    assert np.exp(BETS[bet](u)).mean() == pytest.approx(1.0, abs=2e-2 if bet == "far too many anomalous" else 2e-3)


def test_bets_learnt_from_the_stream_are_fair():
    """Given the past, the urn's mean of a bet's factor is 1: checked by going through all ranks of the next row."""
    rng = np.random.default_rng(1)
    past = rng.integers(0, 30, 200)
    factors = []
    for rank in range(41):
        martingale = Martingale(40, level=0.01)
        martingale.update(past)
        weight = martingale._counts[rank] / martingale._counts.sum()
        learnt = martingale._learnt(martingale._interval[np.array([rank])])
        factors.append(weight * np.exp([log_factor[0] for log_factor in learnt]))
    np.testing.assert_allclose(np.sum(factors, axis=0), np.ones(len(MEMORIES)), rtol=1e-12)


def test_capital_is_what_a_plain_loop_gives():
    rng = np.random.default_rng(2)
    ranks = rng.integers(0, 100, 700)
    martingale = Martingale(99, level=1e-9, seed=3)
    martingale.update(ranks)
    twin = Martingale(99, level=1e-9, seed=3)
    learnt = twin._learnt(twin._interval[ranks])
    u = twin._online(ranks)
    gains = np.exp(np.stack([*(bet(u) for bet in BETS.values()), *learnt]))
    cash, invested = 1.0, np.zeros(len(gains))
    for t in range(len(ranks)):
        released = cash / (t + 2)
        cash -= released
        invested = (invested + released / len(gains)) * gains[:, t]
    assert martingale.evidence().log_capital == pytest.approx(np.log(cash + invested.sum()), rel=1e-9)


def test_arrival_in_parts_changes_nothing():
    rng = np.random.default_rng(3)
    ranks = np.concatenate([rng.integers(0, 500, 6000), rng.integers(0, 250, 3000)])
    whole, parts = Martingale(499, level=0.05), Martingale(499, level=0.05)
    whole.update(ranks)
    for part in np.split(ranks, [1, 2, 700, 4097, 6500]):
        parts.update(part)
    a, b = whole.evidence(), parts.evidence()
    assert a.alarms == b.alarms
    assert a.alarms
    assert a.log_capital == pytest.approx(b.log_capital, abs=1e-6)
    assert a.direction == b.direction


def test_a_shift_is_found_and_named():
    rng = np.random.default_rng(4)
    calibration, quiet = rng.normal(size=1000), rng.normal(size=1000)
    up = watched(calibration, np.concatenate([quiet, rng.normal(1, 1, 500)])).evidence()
    assert 1000 < up.alarms[0] < 1150
    assert "anomalous" in up.direction
    assert "alarm at row" in up.sentence
    down = watched(calibration, np.concatenate([quiet, rng.normal(-1, 1, 500)])).evidence()
    assert 1000 < down.alarms[0] < 1150
    assert down.direction in ("less anomalous on the whole", "far too many typical", *MEMORIES)
    calm = watched(calibration, quiet).evidence()
    assert not calm.alarm
    assert "agree" in calm.sentence


def test_it_starts_anew_after_an_alarm():
    rng = np.random.default_rng(5)
    evidence = watched(rng.normal(size=2000), rng.normal(2, 1, 300)).evidence()
    assert len(evidence.alarms) > 2
    gaps = np.diff([-1, *evidence.alarms])
    assert gaps.min() >= 2, "from a capital of 1, no one row is enough here"
    assert evidence.log_largest >= np.log(100)
    assert evidence.log_capital < np.log(100)


def test_what_it_keeps_is_bounded_and_can_be_written():
    rng = np.random.default_rng(6)
    martingale = Martingale(200, level=0.01)
    for _ in range(30):
        martingale.update(rng.integers(0, 201, 1500))
    evidence = martingale.evidence()
    assert 200 < len(evidence.path) <= 1600
    rows = [row for row, _ in evidence.path]
    assert rows == sorted(set(rows))
    facts = json.loads(json.dumps(evidence.to_dict(), allow_nan=False))
    assert facts["rows"] == 45_000
    assert facts["sentence"] == evidence.sentence


def test_ranks_are_those_of_the_p_values():
    rng = np.random.default_rng(7)
    calibration, scores = rng.normal(size=99), rng.normal(size=50)
    p = (1 + (calibration[None] >= scores[:, None]).sum(1)) / 100
    assert ranks_of_p_values(p, 99).tolist() == Ranker(calibration)(scores).tolist()
    with pytest.raises(ConfigError, match="multiples of 1 / 98"):
        ranks_of_p_values(p, 97)
    tied = Ranker(np.zeros(9), seed=0)(np.zeros(5000))
    assert np.bincount(tied, minlength=10).min() > 0, "ties fall on either side"


def test_what_cannot_be_watched_is_refused():
    with pytest.raises(CalibrationError, match="must come from calibration rows"):
        Martingale(0, level=0.01)
    with pytest.raises(ConfigError, match="level must be a number between 0 and 1"):
        Martingale(9, level=1.0)
    with pytest.raises(ConfigError, match="ranks must be from 0 to 9"):
        Martingale(9, level=0.1).update([10])
    with pytest.raises(ShapeError, match="ranks must have shape"):
        Martingale(9, level=0.1).update([[1]])
