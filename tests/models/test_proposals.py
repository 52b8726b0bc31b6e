"""Samples of a mixture of scales weigh what samples of it must, and are better where a posterior is too narrow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from anomaly_vae.errors import ShapeError
from anomaly_vae.models.proposals import scales, widened


def noise(k: int, latent: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(k, latent, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("latent", [1, 3, 40])
def test_the_correction_is_the_ratio_of_the_densities(latent):
    z, correction = widened(noise(64, latent))
    each = [multivariate_normal(cov=t**2).logpdf(z).ravel() if latent == 1 else
            multivariate_normal(np.zeros(latent), t**2 * np.eye(latent)).logpdf(z) for t in scales(latent)]  # fmt: skip
    expected = each[0] - np.logaddexp.reduce(each) + math.log(4)
    np.testing.assert_allclose(correction.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert correction.max() <= math.log(4) + 1e-6, "a defensive mixture: no weight grows beyond fourfold"


@pytest.mark.parametrize("latent", [2, 12, 1000])
def test_weights_have_the_expectation_one(latent):
    _, correction = widened(noise(40_000, latent))
    weights = correction.exp()
    assert float(weights.mean()) == pytest.approx(1, abs=4 * float(weights.std()) / 200)
    assert float(weights.sum() ** 2 / weights.square().sum()) > 0.35 * len(weights), "of an exact posterior"


def test_more_dimensions_have_narrower_scales():
    assert scales(2) == scales(8) == pytest.approx((1.0, 1.1, 1.25, 1.5))
    assert all(a < b for a, b in zip(scales(200)[1:], scales(20)[1:], strict=True))


def test_a_posterior_that_is_too_narrow_is_mended():
    """log of the integral of N(z; 0, s² I) by samples of N(0, I), whose log weights are N(z; 0, s²) - N(z; 0, 1)."""
    latent, wide = 6, 1.35

    def errors(change) -> float:
        found = []
        for seed in range(200):
            z, correction = change(noise(64, latent, seed))
            log_w = correction - latent * math.log(wide) - 0.5 * z.double().square().sum(1) * (wide**-2 - 1)
            found.append(float(torch.logsumexp(log_w, 0)) - math.log(64))
        return float(np.sqrt(np.mean(np.square(found))))

    plain = errors(lambda z: (z, torch.zeros(len(z), dtype=torch.float64)))
    assert errors(widened) < 0.6 * plain


def test_samples_come_in_fours():
    with pytest.raises(ShapeError, match="a multiple of 4, got 6"):
        widened(noise(6, 2))
