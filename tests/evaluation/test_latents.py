"""The latent space's figures against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from anomaly_vae.errors import ShapeError
from anomaly_vae.evaluation.latents import bounds_by_k, prior_agreement, smoothness
from anomaly_vae.models import bounds
from anomaly_vae.models.linear import ProbabilisticPCA
from tests.conftest import low_rank_rows


def agreement(x: torch.Tensor, model: ProbabilisticPCA):
    mean, log_scale = model.posterior(x)
    z = mean + log_scale.exp() * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0), dtype=mean.dtype)
    return prior_agreement(z, mean, log_scale, model.prior.log_prob(z))


def test_the_exact_model_s_aggregated_posterior_is_its_prior() -> None:
    x = low_rank_rows(3000, 5, rank=1, noise=1.0)
    model = ProbabilisticPCA.fit(x, latent=1)
    found = agreement(x, model)
    assert abs(found.marginal_kl) < 0.02
    # of a Gaussian channel: I(x; z) = 0.5 log(|W'W + s^2| / s^2)
    information = 0.5 * math.log(float((model.loadings.square().sum() + model.variance) / model.variance))
    assert found.mutual_information == pytest.approx(information, abs=0.05)
    assert found.kl == pytest.approx(found.mutual_information + found.marginal_kl)
    assert found.log_rows == math.log(3000)


def test_a_shifted_posterior_is_as_far_as_its_kl() -> None:
    z = np.random.default_rng(0).normal(size=(2000, 1)) + 2.0
    found = prior_agreement(
        z, np.full((2000, 1), 2.0), np.zeros((2000, 1)), -0.5 * z[:, 0] ** 2 - 0.5 * math.log(2 * math.pi)
    )
    assert found.mutual_information == pytest.approx(0.0, abs=1e-9)  # all codes are drawn alike
    assert abs(found.marginal_kl - 2.0) < 4 * found.marginal_se


def test_smoothness_of_straight_bent_and_broken_paths() -> None:
    t = np.linspace(0, 1, 33)
    half_circle = np.stack([np.cos(math.pi * t), np.sin(math.pi * t)], 1)[None]
    assert smoothness(half_circle).detour == pytest.approx(math.pi / 2, abs=1e-2)
    assert smoothness(half_circle).largest_step == pytest.approx(1.0, abs=1e-9)
    jump = (t > 0.5).astype(float)[None, :, None]
    assert smoothness(jump).largest_step == pytest.approx(32.0)
    standing = np.concatenate([half_circle, np.zeros_like(half_circle)])
    assert smoothness(standing).paths == 1
    with pytest.raises(ShapeError, match="lead somewhere"):
        smoothness(np.zeros((2, 5, 3)))


def test_bounds_rise_with_k_to_the_likelihood() -> None:
    x = low_rank_rows(200, 6, rank=2, noise=0.5)
    model = ProbabilisticPCA.fit(x, latent=2)
    mean, log_scale = model.posterior(x)
    noise = torch.randn(256, 200, 2, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    exact = bounds_by_k(bounds.terms(model, x, noise).log_weights)
    truth = float(model.log_likelihood(x).mean())
    assert [b.k for b in exact] == [1, 4, 16, 64, 256]
    for bound in exact:
        assert bound.value == pytest.approx(truth, abs=1e-8)
        assert bound.ess == pytest.approx(bound.k)
        assert bound.gap == pytest.approx(0.0, abs=1e-9)
    worse = bounds_by_k(bounds.terms(model, x, noise, posterior=(mean + 0.3, log_scale + 0.3)).log_weights)
    values = [b.value for b in worse]
    assert np.all(np.diff(values) > 0)
    assert values[-1] < truth + 0.05
    assert worse[0].gap > 0.1
    assert all(b.ess < b.k for b in worse[1:])
    assert [b.k for b in bounds_by_k(np.zeros((20, 3)))] == [1, 4, 16]
    with pytest.raises(ShapeError, match="log weights"):
        bounds_by_k(np.zeros((0, 3)))
