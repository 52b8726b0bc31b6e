"""The root against an exact model: probabilistic PCA, whose log p(x) is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import skew
from sklearn.decomposition import PCA

from anomaly_vae.errors import ShapeError
from anomaly_vae.models import bounds
from anomaly_vae.models.linear import ProbabilisticPCA
from tests.conftest import low_rank_rows


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return low_rank_rows(400, 6, rank=3, noise=0.3)


@pytest.fixture(scope="module")
def model(rows: torch.Tensor) -> ProbabilisticPCA:
    return ProbabilisticPCA.fit(rows, latent=2)


@dataclass(frozen=True)
class WorsePosterior:
    """The same model with an encoder that is off: shifted and too wide."""

    exact: ProbabilisticPCA

    @property
    def prior(self):
        return self.exact.prior

    def posterior(self, x):
        mean, log_scale = self.exact.posterior(x)
        return mean + 0.2, log_scale + 0.3

    def log_px_given_z(self, x, z):
        return self.exact.log_px_given_z(x, z)


def draws(k: int, latent: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(k, latent, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_probabilistic_pca_equals_scikit_learn(rows, model):
    oracle = PCA(n_components=2, svd_solver="full").fit(rows.numpy())
    np.testing.assert_allclose(
        model.log_likelihood(rows).numpy(), oracle.score_samples(rows.numpy()), rtol=0, atol=1e-8
    )


def test_probabilistic_pca_marginalises_exactly(rows, model):
    observed = torch.tensor([True, False, True, True, False, True])
    mean = model.mean[observed].numpy()
    covariance = (model.loadings @ model.loadings.T + model.variance * torch.eye(6, dtype=torch.float64)).numpy()
    from scipy.stats import multivariate_normal

    keep = observed.numpy()
    oracle = multivariate_normal(mean, covariance[np.ix_(keep, keep)]).logpdf(rows.numpy()[:, keep])
    np.testing.assert_allclose(model.log_likelihood(rows, observed).numpy(), oracle, atol=1e-8)


def test_every_bound_is_exact_under_the_exact_posterior(rows, model):
    t = bounds.terms(model, rows, draws(7))
    exact = model.log_likelihood(rows)
    for bound in (bounds.elbo(t.log_weights), bounds.importance_weighted_bound(t.log_weights)):
        torch.testing.assert_close(bound, exact, rtol=0, atol=1e-6)
    assert bounds.monte_carlo_error(t.log_weights, "elbo").max() < 1e-6
    assert bounds.monte_carlo_error(t.log_weights, "likelihood").max() < 1e-6
    torch.testing.assert_close(bounds.effective_sample_size(t.log_weights), torch.full_like(exact, 7.0))


def test_bounds_rise_with_k_towards_the_exact_value(rows, model):
    worse = WorsePosterior(model)
    noise = torch.randn(4096, 400, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    w = bounds.terms(worse, rows, noise).log_weights
    exact = float(model.log_likelihood(rows).mean())
    values = [float(bounds.elbo(w).mean())]
    for k in (2, 8, 64):  # each IWAE_k averaged over disjoint groups of samples
        groups = w.reshape(4096 // k, k, 400)
        values.append(float((torch.logsumexp(groups, 1) - np.log(k)).mean()))
    assert values == sorted(values)
    assert values[-1] <= exact + 1e-3
    assert exact - values[0] > 0.01, "the encoder must be off for this test to mean something"
    assert float(bounds.importance_weighted_bound(w).mean()) == pytest.approx(exact, abs=2e-3)


def test_columns_minus_kl_sum_to_the_elbo(rows, model):
    t = bounds.terms(WorsePosterior(model), rows, draws(5))
    torch.testing.assert_close(t.log_px.mean(0).sum(-1) - bounds.kl(t), bounds.elbo(t.log_weights))
    torch.testing.assert_close(bounds.beta_elbo(t, 1.0), bounds.elbo(t.log_weights))
    torch.testing.assert_close(bounds.beta_elbo(t, 0.0), bounds.reconstruction(t))


@pytest.mark.parametrize("bound", ["elbo", "likelihood"])
def test_the_stated_error_is_the_spread_over_repetitions(rows, model, bound):
    worse, k, repetitions = WorsePosterior(model), 64, 400
    noise = torch.randn(repetitions * k, 20, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    w = bounds.terms(worse, rows[:20], noise).log_weights.reshape(repetitions, k, 20)
    reduce = bounds.elbo if bound == "elbo" else bounds.importance_weighted_bound
    estimates = torch.stack([reduce(group) for group in w])
    stated = torch.stack([bounds.monte_carlo_error(group, bound) for group in w])
    ratio = stated.square().mean(0).sqrt() / estimates.std(0)
    assert ratio.mean().item() == pytest.approx(1.0, abs=0.1)


def test_errors_are_the_textbook_ones(rows, model):
    w = bounds.terms(WorsePosterior(model), rows, draws(16)).log_weights
    torch.testing.assert_close(bounds.monte_carlo_error(w, "elbo"), w.std(0) / 4)
    found, v = bounds.weight_moments(w), (w - w.amax(0)).exp()
    torch.testing.assert_close(found.delta, v.std(0) / (4 * v.mean(0)))
    torch.testing.assert_close(found.effective, bounds.effective_sample_size(w))
    torch.testing.assert_close(found.spread, w.std(0, correction=0))
    torch.testing.assert_close(found.skewness, torch.from_numpy(skew(w.numpy())))


def test_one_sample_has_no_error(rows, model):
    t = bounds.terms(model, rows, draws(1))
    assert bounds.monte_carlo_error(t.log_weights, "elbo").isnan().all()


def test_noise_of_the_wrong_width_is_refused(rows, model):
    with pytest.raises(ShapeError, match=r"noise must have shape \(k, 400, 2\)"):
        bounds.terms(model, rows, draws(3, latent=4))
