"""Linear autoencoders against principal components; noise-free ones against the VAE they are made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.decomposition import PCA

from anomaly_vae import ImageConfig, TrainConfig, training
from anomaly_vae.data.schema import Schema
from anomaly_vae.errors import ShapeError
from anomaly_vae.models.autoencoder import Autoencoder, ImageAutoencoder, LinearAutoencoder
from anomaly_vae.models.linear import ProbabilisticPCA
from anomaly_vae.models.vae import VAE
from tests.conftest import low_rank_rows, mixed_frame

POINTS = torch.tensor([[-0.5, -0.4], [-0.4, -0.1], [0.1, 0.0], [0.3, 0.3], [0.5, 0.2]], dtype=torch.float64)
CODES = [-0.63, -0.39, 0.09, 0.41, 0.53]
DECODED = [[-0.54, -0.33], [-0.34, -0.20], [0.07, 0.04], [0.35, 0.21], [0.45, 0.27]]


def largest_angle(x: torch.Tensor, decoder: torch.Tensor) -> float:
    """Degrees between a decoder's subspace and that of as many principal components."""
    components = PCA(len(decoder)).fit(x.numpy()).components_
    return float(np.degrees(subspace_angles(components.T, decoder.T.numpy()).max()))


@pytest.mark.parametrize("seed", range(3))
def test_five_points_by_hand(seed: int) -> None:
    model = LinearAutoencoder.fit(POINTS, latent=1, seed=seed).principal(POINTS)
    codes = model.encode(POINTS)
    np.testing.assert_allclose(codes[:, 0], CODES, atol=0.01)
    np.testing.assert_allclose(model.decode(codes), DECODED, atol=0.01)


def test_a_linear_autoencoder_reaches_the_principal_subspace() -> None:
    x = low_rank_rows(400, 8, rank=3, noise=0.3)
    for seed in range(2):
        model = LinearAutoencoder.fit(x, latent=3, seed=seed)
        assert largest_angle(x, model.decoder) < 0.01
    cancer = torch.from_numpy(load_breast_cancer().data)
    standardised = (cancer - cancer.mean(0)) / cancer.std(0)
    assert largest_angle(standardised, LinearAutoencoder.fit(standardised, latent=6).decoder) < 0.1
    digits = torch.from_numpy(load_digits().data) / 16
    fitted = LinearAutoencoder.fit(digits, latent=8)
    assert largest_angle(digits, fitted.decoder) < 1
    want = PCA(8).fit(digits.numpy())
    error = (fitted.decode(fitted.encode(digits)) - digits).square().mean()
    best = np.square(want.inverse_transform(want.transform(digits.numpy())) - digits.numpy()).mean()
    assert float(error) == pytest.approx(best, rel=1e-4)


def test_principal_codes_are_those_of_pca() -> None:
    x = low_rank_rows(300, 6, rank=3, noise=0.2)
    fitted = LinearAutoencoder.fit(x, latent=3)
    turned = fitted.principal(x)
    want = PCA(3).fit_transform(x.numpy())
    np.testing.assert_allclose(turned.encode(x).abs(), np.abs(want), atol=1e-4)
    np.testing.assert_allclose(turned.decode(turned.encode(x)), fitted.decode(fitted.encode(x)), atol=1e-9)


def test_a_linear_autoencoder_refuses_what_has_no_subspace() -> None:
    with pytest.raises(ShapeError, match="latent from 1 to m"):
        LinearAutoencoder.fit(POINTS, latent=3)
    constant = torch.ones(4, 2, dtype=torch.float64)
    assert torch.equal(
        LinearAutoencoder.fit(constant, latent=1).decode(torch.zeros(4, 1, dtype=torch.float64)), constant
    )


@pytest.mark.parametrize("latent", [1, 3, 6])
def test_probabilistic_pca_is_that_of_scikit_learn(latent: int) -> None:
    x = low_rank_rows(200, 7, rank=3, noise=0.5)
    got = ProbabilisticPCA.fit(x, latent=latent).log_likelihood(x)
    np.testing.assert_allclose(got, PCA(latent).fit(x.numpy()).score_samples(x.numpy()), atol=1e-8, rtol=0)


def test_an_autoencoder_reconstructs_better_than_the_vae_it_is_made_of() -> None:
    frame = mixed_frame(400)
    schema = Schema.fit(frame)
    x = torch.from_numpy(schema.encode(frame))
    errors = {}
    for kind, beta in ((VAE, 1.0), (Autoencoder, 0.0)):
        config = TrainConfig(steps=150, hidden=(16,), latent=2, companions=(), beta=beta, hide=0.0, input_noise=0.0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = kind(schema.modelled, config)
        history = training.fit(model, x, validation=x[:50], config=config)
        with torch.no_grad():
            z = model.posterior(x)[0]
            errors[kind] = float(-model.log_px_given_z(x, z[None]).sum(-1).mean())
        assert history[-1].validation_elbo > history[0].validation_elbo
    assert errors[Autoencoder] < errors[VAE]


def test_codes_of_an_autoencoder_are_certain_and_cost_nothing() -> None:
    model = ImageAutoencoder((1, 8, 8), ImageConfig(latent=3, channels=16))
    x = torch.randint(0, 256, (4, 64)).float()
    mean, log_scale = model.posterior(x)
    assert (log_scale == log_scale[0, 0]).all()
    assert float(log_scale[0, 0].detach().exp()) < 1e-3
    assert torch.equal(model.prior.log_prob(mean), torch.zeros(4))
