"""The gradient written out against automatic differentiation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from anomaly_vae import TrainConfig
from anomaly_vae.data.schema import Column
from anomaly_vae.models import bounds
from anomaly_vae.models.gradients import FlatParameters, WrittenOutGradient
from anomaly_vae.models.vae import VAE
from anomaly_vae.options import CONTINUOUS


def case(config: TrainConfig, k: int) -> tuple[VAE, torch.Tensor, torch.Tensor, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VAE([Column(name=f"x{j}", kind="continuous", dtype="float64", scale=2.0) for j in range(5)], config)
        for parameter in model.double().parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        with torch.no_grad():
            model.encoder.linear.bias[config.latent] = 9.0  # beyond the bound, where the gradient is none
        rows = 2 * torch.randn(24, 5, dtype=torch.float64)
        rows[torch.rand(24, 5) < 0.2] = torch.nan
        entered = model.input(rows) + 0.1 * torch.randn(24, model.input.width, dtype=torch.float64)
        return model, rows, entered, torch.randn(k, 24, 3, dtype=torch.float64)


@pytest.mark.parametrize("continuous", CONTINUOUS)
@pytest.mark.parametrize("hidden", [(), (20,), (24, 40, 16)])
@pytest.mark.parametrize(("k", "beta", "weighted"), [(1, 1.0, False), (4, 0.3, False), (3, 1.0, True)])
@pytest.mark.parametrize("rows_of_step", [1, 1 << 30], ids=["numpy", "torch"])
def test_it_is_the_gradient_of_autograd(continuous, hidden, k, beta, weighted, rows_of_step):
    config = TrainConfig(latent=3, hidden=hidden, continuous=continuous)
    model, rows, entered, noise = case(config, k)
    weights = torch.linspace(0, 2, 24, dtype=torch.float64) if weighted else None
    t = bounds.terms(model, rows, noise, posterior=model.encoded(entered))
    objective = bounds.beta_elbo(t, beta)
    loss = -(objective if weights is None else objective * weights).mean()
    wanted = dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))
    assert WrittenOutGradient.serves(model)
    FlatParameters(list(model.parameters()))
    observed = (~rows.isnan()).double()
    gradient = WrittenOutGradient(model, rows_of_step)
    assert gradient.xp is (np if rows_of_step == 1 else torch)
    got = gradient(rows.nan_to_num(0.0), observed, entered, noise, beta=beta, weights=weights)
    each = -objective if weights is None else -objective * weights
    for mine, theirs in zip(got, (each, bounds.kl(t), bounds.reconstruction(t)), strict=True):
        torch.testing.assert_close(mine, theirs.detach())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], msg=lambda m, name=name: f"{name}: {m}")
        assert wanted[name].abs().max() > 1e-6, name


def test_it_serves_continuous_columns_and_a_normal_prior_alone():
    mixed = [Column(name="a", kind="continuous", dtype="float64"), Column(name="b", kind="count", dtype="int64")]
    assert not WrittenOutGradient.serves(VAE(mixed, TrainConfig()))
    assert WrittenOutGradient.serves(VAE(mixed[:1], TrainConfig()))
    assert not WrittenOutGradient.serves(VAE(mixed[:1], TrainConfig(prior="aggregated_posterior")))


def test_flat_parameters_are_views_until_released():
    model, *_ = case(TrainConfig(latent=3, hidden=(20,)), 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flat = FlatParameters(list(model.parameters()))
    with torch.no_grad():
        flat.vector += 1.0
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.detach(), before[name] + 1.0)
    flat.set_gradients(3.0 * model.decoder.linear.bias.sum())
    assert (model.decoder.linear.bias.grad == 3.0).all()
    flat.clip(1.0)
    assert torch.linalg.vector_norm(flat.vector.grad).item() == pytest.approx(1.0, abs=1e-5)
    flat.clip(10.0)
    assert torch.linalg.vector_norm(flat.vector.grad).item() == pytest.approx(1.0, abs=1e-5)
    flat.release()
    assert all(p.grad is None and p.untyped_storage().nbytes() == p.numel() * 8 for p in model.parameters())


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("change", [{}, {"input_noise": 0.0}, {"continuous": "gaussian", "train_k": 3}])
def test_training_by_either_gradient_ends_alike(change, monkeypatch):
    from anomaly_vae import training

    config = dataclasses.replace(TrainConfig(latent=2, hidden=(16,), steps=60, validation=0.0, warmup=0.0), **change)
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)).cumsum(1)
    ends = []
    for serves in (True, False):
        monkeypatch.setattr(WrittenOutGradient, "serves", staticmethod(lambda model, serves=serves: serves))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = VAE([Column(name=f"x{j}", kind="continuous", dtype="float64") for j in range(4)], config)
        ends.append(training.fit(model, x, validation=x[:50], config=config)[-1])
    assert ends[0].validation_elbo == pytest.approx(ends[1].validation_elbo, abs=1e-3)
    assert ends[0].loss == pytest.approx(ends[1].loss, abs=1e-3)
    assert ends[0].kl == pytest.approx(ends[1].kl, abs=1e-3)
