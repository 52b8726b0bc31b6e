"""The ladder: the root's bounds through its own hook, ancestral samples, and the outer interface of the images' VAE."""

from __future__ import annotations

import pytest
import torch

from anomaly_vae.errors import ConfigError, ShapeError
from anomaly_vae.models import bounds
from anomaly_vae.models.ladder import LadderVAE
from anomaly_vae.options import ImageConfig

SMALL = ImageConfig(latent=6, channels=16, model="ladder", mixed_precision=False)


def images(n: int, shape: tuple[int, int, int]) -> torch.Tensor:
    m = shape[0] * shape[1] * shape[2]
    return torch.randint(0, 256, (n, m), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def made(shape: tuple[int, int, int], config: ImageConfig = SMALL, classes: int = 0, size: float = 0.05) -> LadderVAE:
    torch.manual_seed(0)
    model = LadderVAE(shape, config, classes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (1, 27, 33), (3, 5, 3), (1, 64, 64)])
def test_it_takes_images_of_any_size(shape):
    model = made(shape)
    t = bounds.terms(model, images(2, shape), torch.randn(3, model.latent))
    assert t.log_px.shape == (3, 2, model.columns)
    assert t.z.shape == (3, 2, model.latent)
    assert t.log_weights.isfinite().all()
    drawn = model.sample(4, torch.Generator().manual_seed(0))
    assert drawn.shape == (4, model.columns)
    assert 0 <= drawn.min() <= drawn.max() <= 255


def test_codes_that_are_given_decode_as_those_that_were_drawn():
    model = made((1, 28, 28))
    x = images(3, model.shape)
    t = bounds.terms(model, x, torch.randn(2, 3, model.latent))
    torch.testing.assert_close(model.log_px_given_z(x, t.z), t.log_px, rtol=1e-4, atol=1e-4)


def test_the_posterior_is_that_of_the_path_of_means():
    model = made((1, 8, 8))
    x = images(3, model.shape)
    mean, log_scale = model.posterior(x)
    t = bounds.terms(model, x, torch.zeros(1, model.latent))
    torch.testing.assert_close(t.z[0], mean)
    expected = -(log_scale + bounds.HALF_LOG_2PI).sum(-1)
    torch.testing.assert_close(t.log_qz[0], expected, rtol=1e-4, atol=1e-3)


def test_log_q_is_the_density_of_its_own_draws():
    """The gap between log q and the volume by which noise is stretched is the noise's own log density."""
    model = made((1, 8, 8)).double()
    x = images(1, model.shape)
    noise = torch.randn(1, 1, model.latent, dtype=torch.float64, requires_grad=True)

    def codes(e: torch.Tensor) -> torch.Tensor:
        return bounds.terms(model, x, e[None, None]).z[0, 0]

    jacobian = torch.autograd.functional.jacobian(codes, noise[0, 0].detach())
    expected = -(0.5 * noise.square() + bounds.HALF_LOG_2PI).sum() - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(bounds.terms(model, x, noise).log_qz[0, 0], expected, rtol=1e-4, atol=1e-3)


def test_where_the_posterior_says_nothing_it_costs_nothing():
    model = LadderVAE((1, 28, 28), SMALL).eval()
    t = bounds.terms(model, images(3, model.shape), torch.randn(4, model.latent))
    torch.testing.assert_close(t.log_pz, t.log_qz)


def test_weights_of_importance_average_to_one_over_images_of_the_model():
    """E over x ~ p(x) and z ~ q(z|x) of p(x', z)/q summed over all images x' is 1: with one pixel, two images."""
    model = made((1, 1, 1), ImageConfig(latent=2, channels=16, pixels="bernoulli", mixed_precision=False), size=0.2)
    x = torch.tensor([[0.0], [255.0]])
    noise = torch.randn(20_000, model.latent, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        likelihood = bounds.importance_weighted_bound(bounds.terms(model, x, noise).log_weights).exp()
    assert float(likelihood.sum()) == pytest.approx(1.0, abs=0.02)


def test_the_scorer_computes_what_the_root_does_and_each_image_has_its_bits():
    model = made((1, 28, 28))
    x, noise = images(64, model.shape), torch.randn(2, model.latent)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        t, scorer = bounds.terms(model, x, noise), model.scorer()
        rows = scorer.rows(x)
        log_px, log_weights = scorer.log_densities(rows, noise)
        torch.testing.assert_close(log_weights, t.log_weights, rtol=1e-5, atol=1e-2)
        torch.testing.assert_close(scorer.codes(rows, noise), t.z)
        torch.testing.assert_close(scorer.log_px(rows, noise).sum(-1), log_px)
        there = scorer.log_densities(scorer.rows(x[order]), noise)
    assert torch.equal(log_px[:, order], there[0])
    assert torch.equal(log_weights[:, order], there[1])


def test_gradients_reach_every_parameter_by_name():
    model = made((1, 8, 8), classes=3).train()
    x = images(6, model.shape)
    view = model.given(torch.tensor([0, 1, 2, 0, 1, 2]))
    t = bounds.terms(view, x, torch.randn(2, 6, model.latent), posterior=view.encoded(model.input(x)))
    bounds.elbo(t.log_weights).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not (p.grad.abs() > 0).any()]
    assert without == []


def test_a_class_changes_the_density():
    model = made((1, 8, 8), classes=3)
    x, noise = images(4, model.shape), torch.randn(2, model.latent)
    first, second = (bounds.terms(model.given(torch.full((4,), c)), x, noise).log_weights for c in (0, 1))
    assert not torch.allclose(first, second)
    scorer = model.scorer()
    rows = scorer.rows(x, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(scorer.log_densities(rows, noise)[1], first)


def test_another_prior_or_another_size_is_refused():
    with pytest.raises(ConfigError, match="standard_normal"):
        LadderVAE((1, 8, 8), ImageConfig(model="ladder", prior="aggregated_posterior"))
    with pytest.raises(ShapeError, match="1 x 8 x 8 = 64"):
        LadderVAE((1, 8, 8), SMALL).posterior(torch.zeros(2, 63))


def test_a_posterior_that_is_given_outright_is_the_same_where_it_is_the_models_own():
    model = made((1, 8, 8))
    x, still = images(3, model.shape), torch.zeros(1, model.latent)
    own, outright = bounds.terms(model, x, still), bounds.terms(model, x, still, posterior=model.posterior(x))
    for part in ("log_px", "log_pz", "log_qz", "z"):
        torch.testing.assert_close(getattr(own, part), getattr(outright, part), rtol=1e-4, atol=1e-3)
