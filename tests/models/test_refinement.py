"""Posteriors of single rows: against the exact one, never worse than the encoder's, the same in any company."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from anomaly_vae import ImageConfig
from anomaly_vae.models import bounds, refinement
from anomaly_vae.models.family import image_model
from anomaly_vae.models.fused import Rows
from anomaly_vae.models.linear import ProbabilisticPCA
from anomaly_vae.models.refinement import GROUP, refined, refines
from anomaly_vae.models.vae import VAE
from tests.conftest import digit_images, linear_vae, low_rank_rows


@pytest.fixture(scope="module")
def linear() -> tuple[VAE, ProbabilisticPCA, torch.Tensor]:
    """Probabilistic PCA with loadings that are not orthogonal, as a VAE whose encoder is off: means of 0, too wide."""
    rows = low_rank_rows(200, 5, rank=3, noise=0.4)
    exact = ProbabilisticPCA.fit(rows, latent=3)
    mixed = torch.tensor([[1.0, 0.6, 0.0], [0.0, 0.8, -0.6], [0.0, 0.0, 0.8]], dtype=torch.float64)
    exact = dataclasses.replace(exact, loadings=exact.loadings @ torch.linalg.qr(mixed)[0])
    model = linear_vae(exact)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.zero_()
        model.encoder.linear.bias[3:6] = math.log(0.4)
    return model.requires_grad_(False), exact, rows[:40]


def test_of_a_linear_model_it_is_the_exact_posterior(linear):
    model, exact, x = linear
    own = refined(model, model.scorer().rows(x), seed=0)
    precision = torch.eye(3) + exact.loadings.T @ exact.loadings / exact.variance
    covariance = torch.linalg.inv(precision)
    mean = (x - exact.mean) @ exact.loadings / exact.variance @ covariance
    deviations = covariance.diagonal().sqrt()
    errors = ((own.mean - mean) / deviations).abs()
    assert errors.max() < 0.5
    assert errors.mean() < 0.1
    assert own.root is not None
    got = own.root @ own.root.mT
    assert ((got - covariance) / deviations / deviations[:, None]).abs().max() < 0.2
    torch.testing.assert_close(own.spread, own.root.diagonal(dim1=-2, dim2=-1).log().sum(-1))
    noise = torch.randn(64, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    padded = own.part(torch.arange(48) % 40)
    weights = model.scorer().log_densities(padded, noise)[1][:, :40]
    assert weights.std(0).median() < 0.15, "log weights of the exact posterior do not vary"
    assert weights.std(0).max() < 0.5
    value = bounds.importance_weighted_bound(weights)
    torch.testing.assert_close(value, exact.log_likelihood(x), atol=0.05, rtol=0.0)


def test_a_row_whose_bound_is_not_raised_keeps_the_encoders_posterior(linear, monkeypatch):
    model, _, x = linear
    rows = model.scorer().rows(x)
    monkeypatch.setattr("anomaly_vae.models.refinement.LEARNING_RATE", 1e6)
    own = refined(model, rows, seed=0)
    assert own.root is not None
    torch.testing.assert_close(own.mean, rows.mean)
    torch.testing.assert_close(own.root, torch.diag_embed(rows.scale))
    torch.testing.assert_close(own.spread, rows.spread)


def test_rows_with_a_root_are_scored_as_bounds_has_it(detector, fresh_rows):
    """With a diagonal root the densities are those of the posterior with these scales."""
    model = detector.model
    fused, x = model.scorer(), detector.encode(fresh_rows)[:48]
    rows, noise = fused.rows(x), torch.randn(64, model.latent, generator=torch.Generator().manual_seed(0))
    plain = [part.clone() for part in fused.log_densities(rows, noise)]
    rooted = Rows(**{**vars(rows), "root": torch.diag_embed(rows.scale)})
    for got, wanted in zip(fused.log_densities(rooted, noise), plain, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-5)


def test_the_bound_of_real_rows_rises(detector, fresh_rows):
    """Mixed columns with gaps: the mean bound rises, and by more than sampling could make it."""
    model, x = detector.model, detector.encode(fresh_rows)[: 2 * GROUP]
    fused = model.scorer()
    noise = torch.randn(512, model.latent, generator=torch.Generator().manual_seed(3))
    rows = fused.rows(x)
    before = fused.log_densities(rows, noise)[1].clone()
    after = fused.log_densities(refined(model, rows, seed=0), noise)[1]
    rise = bounds.elbo(after) - bounds.elbo(before)
    assert rise.mean() > 0.005
    assert rise.min() > -0.05
    assert after.var(0).mean() < 0.8 * before.var(0).mean(), "log weights vary less"


def test_posteriors_are_not_fitted_to_the_noise_that_they_are_sampled_with(detector, fresh_rows, monkeypatch):
    """They would look too good: estimates of log p(x) were then .1 to .3 nats too high."""
    drawn = []
    pairs = refinement._pairs
    monkeypatch.setattr(refinement, "_pairs", lambda *args: drawn.append(pairs(*args)) or drawn[-1])
    model = detector.model
    refined(model, model.scorer().rows(detector.encode(fresh_rows)[:16]), seed=5)
    bank = torch.randn(6000, model.latent, generator=torch.Generator().manual_seed(5))
    apart = torch.cdist(torch.cat(drawn), bank)
    assert apart.min() > 1e-6


@pytest.fixture
def eights(monkeypatch) -> None:
    """Digits are fitted eight at a time."""
    monkeypatch.setattr(refinement, "PIXELS", 8 * 64 * refinement.SAMPLES)


def test_images_get_their_own_as_well_and_the_model_keeps_its_gradients(image_detector, eights):
    model = image_detector.model
    assert refines(model)
    x = torch.from_numpy(digit_images()[0][:16].reshape(16, -1))  # levels, as they are encoded
    rows, noise = model.scorer().rows(x), torch.randn(64, model.latent, generator=torch.Generator().manual_seed(3))
    before = [p.grad for p in model.parameters()]
    own = refined(model, rows, seed=0)
    assert all(p.grad is g for p, g in zip(model.parameters(), before, strict=True))
    with torch.inference_mode():
        spreads = [model.scorer().log_densities(part, noise)[1].std(0).mean() for part in (rows, own)]
    assert spreads[1] < 0.7 * spreads[0]


def test_an_image_has_the_same_posterior_in_any_company(image_detector, eights):
    model = image_detector.model
    rows = model.scorer().rows(torch.from_numpy(digit_images()[0][:20].reshape(20, -1)).float())
    whole = refined(model, rows, seed=0)
    for index in (torch.arange(5, 6), torch.arange(19, -1, -1)):
        part = refined(model, rows.part(index), seed=0)
        torch.testing.assert_close(part.mean, whole.mean[index], atol=0, rtol=0)
        torch.testing.assert_close(part.root, whole.root[index], atol=0, rtol=0)


def test_ladders_are_not_refined(image_detector):
    assert not refines(image_model((1, 8, 8), ImageConfig(model="ladder", latent=4)))
