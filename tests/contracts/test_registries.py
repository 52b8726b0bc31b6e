"""What every member of a registry must keep."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from anomaly_vae import TrainConfig, fit_detector
from anomaly_vae.detection.scores import SCORES
from anomaly_vae.errors import ConfigError
from anomaly_vae.models.priors import PRIORS
from tests.conftest import mixed_frame


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_integrates_to_one_and_samples_itself(name):
    prior = PRIORS[name](1).double()
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)[:, None]
    density = prior.log_prob(z).exp()
    assert torch.trapezoid(density, z[:, 0]).item() == pytest.approx(1.0, abs=1e-6)
    drawn = prior.sample(100_000, torch.Generator().manual_seed(0))[:, 0].double()
    mean = torch.trapezoid(z[:, 0] * density, z[:, 0])
    variance = torch.trapezoid((z[:, 0] - mean) ** 2 * density, z[:, 0])
    assert drawn.mean().item() == pytest.approx(mean.item(), abs=0.02)
    assert drawn.var().item() == pytest.approx(variance.item(), rel=0.02)


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_is_a_valid_setting(name):
    assert TrainConfig(prior=name).prior == name


def test_registries_and_settings_agree():
    from anomaly_vae.options import SCORE_KINDS

    assert set(SCORE_KINDS) == set(SCORES)
    with pytest.raises(ConfigError):
        TrainConfig(prior="flow")


@pytest.mark.parametrize("kind", SCORES)
def test_a_score_rises_as_a_row_moves_away(detector, kind):
    row = mixed_frame(20, seed=7).dropna()[:1]
    scores = [
        detector.log_likelihood(row.assign(weight=row.weight + shift), k=64, kind=kind).value[0]
        for shift in (0.0, 10.0, 40.0, 160.0)
    ]
    assert scores == sorted(scores)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"continuous": "fixed_gaussian"},
        {"objective": "iwae", "train_k": 4},
        {"hidden": ()},
        {"prior": "aggregated_posterior"},
        {"prior": "exemplars"},
    ],
)
def test_every_way_to_train_gives_a_finite_calibrated_detector(change, tmp_path):
    config = dataclasses.replace(TrainConfig(steps=200, learning_rate=0.01, hidden=(16,)), **change)
    detector = fit_detector(mixed_frame(300), config).detector
    out = detector.score_frame(mixed_frame(100, seed=8), explain=1)
    assert np.isfinite(out["anomaly_score"]).all()
    assert 0 <= out["is_anomaly"].mean() < 0.2
    detector.save(tmp_path / "m")
    again = type(detector).load(tmp_path / "m").score_frame(mixed_frame(100, seed=8))
    np.testing.assert_array_equal(again["anomaly_score"], out["anomaly_score"])
