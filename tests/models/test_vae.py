"""The table's VAE against probabilistic PCA, through every layer from columns to score."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import subspace_angles

from anomaly_vae import TrainConfig, fit_detector, training
from anomaly_vae.data.schema import Schema
from anomaly_vae.detection.scores import score_rows, split_scores
from anomaly_vae.models.linear import ProbabilisticPCA
from anomaly_vae.models.vae import VAE, active_units
from tests.conftest import linear_vae, low_rank_rows

LINEAR = TrainConfig(hidden=(), latent=2, input_noise=0.0, hide=0.0, warmup=0.0, continuous="gaussian")


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return low_rank_rows(500, 5, rank=2, noise=0.4)


@pytest.fixture(scope="module")
def pair(rows) -> tuple[VAE, ProbabilisticPCA]:
    """A linear VAE that was given probabilistic PCA's loadings and exact posterior, in float64."""
    exact = ProbabilisticPCA.fit(rows, latent=2)
    return linear_vae(exact), exact


@pytest.mark.parametrize("kind", ["elbo", "likelihood"])
@pytest.mark.parametrize("k", [1, 16])
def test_with_the_exact_posterior_every_score_is_exact(rows, pair, kind, k):
    model, exact = pair
    noise = torch.randn(k, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scores = score_rows(model, rows, noise=noise, kind=kind)
    np.testing.assert_allclose(-scores.value, exact.log_likelihood(rows).numpy(), atol=1e-6)
    if k > 1:
        assert scores.mc_se.max() < 1e-6


def test_a_missing_column_gives_the_marginal_likelihood_of_the_others(rows, pair):
    model, exact = pair
    hidden = rows[:60].clone()
    hidden[:, 3] = torch.nan
    observed = torch.tensor([True, True, True, False, True])
    noise = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    scores = score_rows(model, hidden, noise=noise)
    wanted = -exact.log_likelihood(rows[:60], observed).numpy()
    assert (np.abs(scores.value - wanted) < 4 * scores.mc_se + 1e-6).all()
    assert np.abs(scores.value - wanted).max() < 0.1
    assert (split_scores(model, hidden, noise=noise[:16]).columns[:, 3] == 0).all()


def test_a_linear_vae_reaches_the_subspace_of_pca():
    """With one fixed noise variance the optimum is probabilistic PCA's (Lucas et al. 2019, arXiv:1911.02469)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 2)) @ rng.normal(size=(2, 6)) + 0.3 * rng.normal(size=(2000, 6))
    frame = pd.DataFrame(x / x.std(0)).add_prefix("x")
    schema = Schema.fit(frame)
    encoded = torch.from_numpy(schema.encode(frame))
    config = TrainConfig(**{**LINEAR.to_dict(), "hidden": (), "calibration_k": (1, 16), "companions": (),
                            "continuous": "fixed_gaussian",
                            "variance": 0.1, "steps": 2000, "learning_rate": 0.01})  # fmt: skip
    torch.manual_seed(0)
    model = VAE(schema.modelled, config)
    training.fit(model, encoded, validation=encoded[:0], config=config)
    learned = model.decoder.linear.weight[:6].detach().numpy()
    components = np.linalg.svd(encoded.numpy() - encoded.numpy().mean(0), full_matrices=False)[2][:2].T
    assert np.degrees(subspace_angles(learned, components)).max() < 2.0


@pytest.mark.parametrize("factor", [1e-6, 1000.0])
def test_scores_are_in_the_users_units(factor):
    """Densities transform by the Jacobian: in units a factor smaller, each column's log density falls by its log."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=300)}).assign(b=lambda t: t.a + 0.3 * rng.normal(size=300))
    config = TrainConfig(steps=300, hidden=(8,), learning_rate=0.01)
    plain = fit_detector(frame, config).detector.score_frame(frame)["anomaly_score"]
    scaled = fit_detector(frame * factor, config).detector.score_frame(frame * factor)["anomaly_score"]
    np.testing.assert_allclose(scaled - plain, 2 * np.log(factor), atol=0.02)


def test_active_units():
    means = torch.stack([torch.linspace(-1, 1, 100), torch.zeros(100), 0.05 * torch.linspace(-1, 1, 100)], 1)
    assert active_units(means) == 1
