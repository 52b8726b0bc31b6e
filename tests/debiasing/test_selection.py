"""Data sets made of weights: what each mode promises; and the sampler."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_vae.debiasing.sampling import WeightedRowSampler
from anomaly_vae.debiasing.selection import MODES, select
from anomaly_vae.errors import ConfigError, ShapeError
from anomaly_vae.options import MODES as NAMES

WEIGHTS = np.random.default_rng(0).gamma(0.5, size=500)


def test_registry_and_settings_agree():
    assert set(NAMES) == set(MODES)


def test_an_oversample_keeps_every_row_and_repeats_by_weight():
    chosen = select(WEIGHTS, mode="oversample", size=1500)
    counts = np.bincount(chosen, minlength=500)
    assert len(chosen) == 1500
    assert counts.min() == 1
    scaled = WEIGHTS * (counts[WEIGHTS.argmax()] / WEIGHTS.max())
    assert np.abs(counts - np.maximum(1, scaled)).max() < 1.5
    assert len(select(WEIGHTS, mode="oversample")) == 1000
    assert select(WEIGHTS, mode="oversample", size=500).tolist() == list(range(500))


def test_a_subsample_repeats_nothing_and_follows_the_weights():
    chosen = np.concatenate([select(WEIGHTS, mode="subsample", size=100, seed=s) for s in range(400)])
    counts = np.bincount(chosen, minlength=500)
    assert len(np.unique(select(WEIGHTS, mode="subsample", size=100))) == 100
    small = np.quantile(WEIGHTS, 0.6) > WEIGHTS
    assert counts[small].sum() / 400 == pytest.approx(100 * WEIGHTS[small].sum() / WEIGHTS.sum(), rel=0.5)
    assert len(select(WEIGHTS, mode="subsample", share=0.5)) == 250


def test_thinning_keeps_what_is_rare():
    chosen = select(WEIGHTS, mode="thin")
    kept = np.isin(np.arange(500), chosen)
    assert kept[WEIGHTS.mean() <= WEIGHTS].all()
    assert len(chosen) == pytest.approx(np.minimum(1, WEIGHTS / WEIGHTS.mean()).sum(), abs=1)


def test_the_same_seed_gives_the_same_rows():
    for mode in MODES:
        np.testing.assert_array_equal(select(WEIGHTS, mode=mode, seed=3), select(WEIGHTS, mode=mode, seed=3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"mode": "oversample", "size": 499}, "size must be at least 500, each row once, got 499"),
        ({"mode": "subsample", "size": 501}, "size must be at most 500, the rows of positive weight, got 501"),
        ({"mode": "smote"}, "mode must be one of weights, oversample, subsample, thin, got 'smote'"),
    ],
)
def test_impossible_sizes_are_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        select(WEIGHTS, **call)


def test_bad_weights_are_refused():
    with pytest.raises(ConfigError, match="weights must be finite, not negative"):
        select(np.array([1.0, np.inf]), mode="thin")
    with pytest.raises(ShapeError, match=r"weights must have shape \(n,\)"):
        select(np.ones((2, 2)), mode="thin")
    with pytest.raises(ConfigError, match="weights must be finite"):
        WeightedRowSampler([-1.0, 2.0])


def test_a_sampler_follows_the_weights_and_its_seed():
    sampler = WeightedRowSampler(WEIGHTS, num_samples=200_000, seed=1)
    counts = np.bincount(list(sampler), minlength=500) / 200_000
    assert np.abs(counts - WEIGHTS / WEIGHTS.sum()).max() < 0.003
    assert list(sampler)[:50] == list(WeightedRowSampler(WEIGHTS, num_samples=200_000, seed=1))[:50]
    first = list(sampler)[:50]
    sampler.set_epoch(1)
    assert list(sampler)[:50] != first


@pytest.mark.parametrize("replacement", [True, False])
def test_ranks_share_the_draws_of_one(replacement, monkeypatch):
    monkeypatch.setattr("anomaly_vae.debiasing.sampling.CHUNK", 7)
    options = {"num_samples": 100, "seed": 5, "replacement": replacement}
    alone = list(WeightedRowSampler(WEIGHTS, **options))
    parts = [list(WeightedRowSampler(WEIGHTS, rank=r, world=3, **options)) for r in range(3)]
    assert [len(p) for p in parts] == [33, 33, 33]
    assert [row for trio in zip(*parts, strict=True) for row in trio] == alone[:99]
    if not replacement:
        assert len(set(alone)) == 100


def test_a_sampler_refuses_what_it_cannot_do():
    with pytest.raises(ConfigError, match="rank must be from 0 to world - 1 = 1, got 2"):
        WeightedRowSampler(WEIGHTS, rank=2, world=2)
    with pytest.raises(ConfigError, match="at most 1, the rows of positive weight, got 2"):
        WeightedRowSampler([0.0, 1.0], replacement=False)


@pytest.mark.slow
def test_a_sampler_takes_more_rows_than_torch_does():
    n = 2**24 + 5
    weights = np.zeros(n)
    weights[[3, n - 1]] = 1.0
    assert set(WeightedRowSampler(weights, num_samples=50)) == {3, n - 1}
