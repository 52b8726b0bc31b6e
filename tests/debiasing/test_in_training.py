"""Weights found while training: bounded, guarded, and the same after an interruption."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from anomaly_vae import TrainConfig, training
from anomaly_vae.data.schema import Schema
from anomaly_vae.debiasing.in_training import InTrainingWeights
from anomaly_vae.errors import ConfigError, TrainingError
from anomaly_vae.models.vae import VAE
from anomaly_vae.options import ResampleConfig

CONFIG = TrainConfig(steps=200, hidden=(16,), latent=2, companions=(), learning_rate=0.01, batch_size=64)


def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(560, 3)), rng.normal(size=(40, 3)) * 0.5 + 4])
    return pd.DataFrame(points, columns=list("abc"))


def trained(weights, config=CONFIG, **options):
    frame = table()
    schema = Schema.fit(frame)
    torch.manual_seed(0)
    model = VAE(schema.modelled, config)
    x = torch.from_numpy(schema.encode(frame))
    return model, training.fit(model, x, validation=x[:0], config=config, weights=weights, **options)


def test_weights_are_found_anew_each_epoch_and_stay_bounded():
    seen = []
    found = InTrainingWeights(ResampleConfig(density="dbvae", smoothing_alpha=0.001, ess=0.3))

    def watched(model, x, epoch, previous):
        weights = found(model, x, epoch, previous)
        seen.append(weights.numpy())
        return weights

    trained(watched)
    assert len(seen) > 4
    assert (seen[0] == 1).all()
    shares = [w.sum() ** 2 / (w**2).sum() / len(w) for w in seen]
    assert min(shares) > 0.27
    assert seen[-1][560:].mean() > 1.2
    assert all(w.max() <= 10.5 for w in seen)


def test_the_published_rule_has_no_such_bound():
    paper = ResampleConfig(
        density="dbvae", smoothing_alpha=1e-4, ess=None, cap=None, floor=None, guard=0, class_mass="kept"
    )
    found = InTrainingWeights(paper, damping=1.0, start=1)
    shares = []

    def watched(model, x, epoch, previous):
        weights = found(model, x, epoch, previous)
        shares.append(float(weights.sum() ** 2 / (weights**2).sum() / len(weights)))
        return weights

    trained(watched)
    assert min(shares) < 0.1


@pytest.mark.parametrize("start", [1, 2])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(start, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    labels = np.arange(600) % 2
    weights = InTrainingWeights(ResampleConfig(density="knn"), labels=labels, start=start)
    whole, history = trained(weights)

    class StopError(Exception):
        pass

    def stop(epoch):
        if epoch.epoch == 4:
            raise StopError

    path = tmp_path / "run.safetensors"
    with pytest.raises(StopError):
        trained(weights, checkpoint=path, on_epoch=stop)
    again, resumed = trained(dataclasses.replace(weights), checkpoint=path)
    assert [e.loss for e in resumed] == [e.loss for e in history]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    with pytest.raises(TrainingError, match="must be of the same data and settings"):
        trained(dataclasses.replace(weights, damping=0.9), checkpoint=path)


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="damping must be a share above 0 and at most 1, got 0"):
        InTrainingWeights(damping=0)
    with pytest.raises(ConfigError, match="space must be latent"):
        InTrainingWeights(ResampleConfig(space="raw"))
