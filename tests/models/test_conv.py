"""The images' VAE: sizes, the root's bounds, and the same bits for the same image wherever it stands in a block."""

from __future__ import annotations

import pytest
import torch

from anomaly_vae.errors import ShapeError
from anomaly_vae.models import bounds
from anomaly_vae.models.conv import ImageVAE
from anomaly_vae.models.pixels import PIXEL_LIKELIHOODS
from anomaly_vae.options import ImageConfig

SMALL = ImageConfig(latent=6, channels=16)


def images(n: int, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    m = shape[0] * shape[1] * shape[2]
    return torch.randint(0, 256, (n, m), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def made(shape: tuple[int, int, int], config: ImageConfig = SMALL, classes: int = 0) -> ImageVAE:
    """A model none of whose layers is zero any more."""
    torch.manual_seed(0)
    model = ImageVAE(shape, config, classes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (3, 28, 28), (1, 27, 33), (3, 5, 3), (1, 1, 1), (1, 8, 40), (3, 128, 128)]
)
def test_it_takes_images_of_any_size(shape):
    model = made(shape)
    x, noise = images(2, shape), torch.randn(3, 6)
    t = bounds.terms(model, x, noise)
    assert t.log_px.shape == (3, 2, model.columns)
    assert t.log_weights.isfinite().all()
    assert model.reconstruct(t.z).shape == (3, 2, model.columns)
    drawn = model.sample(4, torch.Generator().manual_seed(0))
    assert drawn.shape == (4, model.columns)
    assert (drawn == drawn.round()).all()
    assert 0 <= drawn.min() <= drawn.max() <= 255


@pytest.mark.parametrize("pixels", list(PIXEL_LIKELIHOODS))
def test_the_scorer_computes_what_the_root_does(pixels):
    model = made((3, 9, 8), ImageConfig(latent=6, channels=16, pixels=pixels))
    x, noise = images(16, model.shape), torch.randn(4, 6)
    with torch.inference_mode():
        t, scorer = bounds.terms(model, x, noise), model.scorer()
        rows = scorer.rows(x)
        log_px, log_weights = scorer.log_densities(rows, noise)
        torch.testing.assert_close(log_weights, t.log_weights, rtol=1e-5, atol=1e-2)
        torch.testing.assert_close(scorer.log_px(rows, noise).sum(-1), log_px)
        torch.testing.assert_close(scorer.log_densities(rows.part(slice(4, 8)), noise)[0], log_px[:, 4:8])
        assert (t.log_px.sum(-1) <= model.best(x).sum(-1) + 1e-3).all()


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("prior", ["aggregated_posterior", "exemplars"])
def test_an_image_has_the_same_bits_wherever_it_stands(shape, k, prior):
    model = made(shape, ImageConfig(latent=32, channels=16, prior=prior))
    x, noise = images(64, shape), torch.randn(k, 32)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        scorer = model.scorer()
        here, there = (scorer.log_densities(scorer.rows(rows), noise) for rows in (x, x[order]))
        alone = x.clone()
        alone[1:] = 0
        padded = scorer.log_densities(scorer.rows(alone), noise)
    for a, b, c in zip(here, there, padded, strict=True):
        assert torch.equal(a[:, order], b)
        assert torch.equal(a[:, 0], c[:, 0])


@pytest.mark.parametrize("pixels", list(PIXEL_LIKELIHOODS))
def test_gradients_reach_every_parameter_by_name(pixels):
    model = made((1, 8, 8), ImageConfig(latent=6, channels=16, pixels=pixels, mixed_precision=False), classes=3).train()
    x = images(6, model.shape)
    t = bounds.terms(model.given(torch.tensor([0, 1, 2, 0, 1, 2])), x, torch.randn(2, 6, 6))
    bounds.elbo(t.log_weights).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not (p.grad.abs() > 0).any()]
    assert without == []


def test_training_starts_from_the_standard_normal_and_one_image():
    model = ImageVAE((1, 8, 8), SMALL).eval()
    mean, log_scale = model.posterior(images(3, model.shape))
    assert not mean.any()
    assert not log_scale.any()
    assert len(model.reconstruct(torch.randn(5, 6)).unique(dim=0)) == 1


def test_mixed_precision_is_for_training_alone():
    model = made((1, 28, 28))
    x, z = images(8, model.shape), torch.randn(2, 8, 6)
    exact = model.log_px_given_z(x, z)
    assert torch.equal(model.train(False).log_px_given_z(x, z), exact)
    rough = model.train().log_px_given_z(x, z)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.sum(-1), exact.sum(-1), rtol=0.02, atol=2.0)


def test_a_class_changes_the_density_and_its_view_serves_the_root():
    model = made((1, 8, 8), SMALL, classes=3)
    x, noise = images(4, model.shape), torch.randn(2, 6)
    first, second = (bounds.terms(model.given(torch.full((4,), c)), x, noise).log_weights for c in (0, 1))
    unknown = bounds.terms(model, x, noise).log_weights
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, unknown)
    scorer = model.scorer()
    rows = scorer.rows(x, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(scorer.log_densities(rows, noise)[1], first)
    torch.testing.assert_close(scorer.log_densities(rows.part(slice(1, 3)), noise)[1], first[:, 1:3])


def test_a_row_of_another_size_is_refused():
    with pytest.raises(ShapeError, match="1 x 8 x 8 = 64"):
        ImageVAE((1, 8, 8), SMALL).posterior(torch.zeros(2, 63))
