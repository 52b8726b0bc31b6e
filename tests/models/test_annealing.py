"""Annealed samples: unbiased however they move, less spread the more steps, the same in any company."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from anomaly_vae import ImageConfig, fit_detector
from anomaly_vae.detection import adaptive
from anomaly_vae.detection.adaptive import log_likelihoods
from anomaly_vae.models import annealing, bounds
from anomaly_vae.models.annealing import annealed
from anomaly_vae.models.conditional import with_classes
from anomaly_vae.models.family import image_model
from anomaly_vae.models.ladder import LadderVAE
from anomaly_vae.models.linear import ProbabilisticPCA
from anomaly_vae.models.vae import VAE
from tests.conftest import digit_images, linear_vae, low_rank_rows

LADDER = ImageConfig(model="ladder", latent=4, channels=8, blocks=1, steps=150, batch_size=64, k=4, device="cpu")


@pytest.fixture(scope="module")
def linear() -> tuple[VAE, ProbabilisticPCA, torch.Tensor]:
    """Probabilistic PCA as a VAE whose encoder is off: means too small, scales too wide."""
    rows = low_rank_rows(200, 5, rank=3, noise=0.4)
    exact = ProbabilisticPCA.fit(rows, latent=3)
    return linear_vae(exact, slope=0.8, wider=0.7).requires_grad_(False), exact, rows[:12]


@pytest.fixture(scope="module")
def ladder() -> LadderVAE:
    images, digit = digit_images()
    model = fit_detector(images[digit != 3], LADDER).detector.model
    assert isinstance(model, LadderVAE)
    return model


def levels(count: int) -> torch.Tensor:
    return torch.from_numpy(digit_images()[0][:count].reshape(count, -1)).float()


@pytest.mark.parametrize(("angle", "refused"), [(0.65, (0.0, 0.2)), (1.4, (0.2, 0.9))], ids=["usual", "too far"])
@pytest.mark.parametrize("steps", [2, 7])
def test_the_mean_weight_is_the_exact_density(linear, monkeypatch, angle, refused, steps):
    """Few steps, many walks, also where many moves are refused: each estimate within a few of its standard errors."""
    model, exact, x = linear
    monkeypatch.setattr(annealing, "ANGLE", angle)
    decided, where = [], torch.where
    monkeypatch.setattr(annealing.torch, "where", lambda c, *rest: decided.append(c) or where(c, *rest))
    log_w = annealed(model, x, samples=40_000, steps=steps, generator=torch.Generator().manual_seed(0))
    monkeypatch.undo()
    share = 1 - torch.cat([d.double().flatten() for d in decided]).mean()
    assert refused[0] <= share <= refused[1]
    apart = (log_w - exact.log_likelihood(x)).exp()
    errors = apart.std(0) / math.sqrt(len(apart))
    assert errors.max() < 0.2
    assert ((apart.mean(0) - 1) / errors).abs().max() < 3.5


def test_one_step_is_importance_sampling(linear):
    model, _, x = linear
    log_w = annealed(model, x, samples=16, steps=1, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(16, 1, 3, generator=torch.Generator().manual_seed(3)).double().expand(-1, len(x), -1)
    torch.testing.assert_close(log_w, bounds.terms(model, x, noise).log_weights)


def test_a_conditional_ladder_keeps_its_classes():
    torch.manual_seed(0)
    model = image_model((1, 8, 8), ImageConfig(model="ladder", latent=4, channels=8), classes=3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    x = with_classes(levels(1).expand(3, -1), torch.arange(3))
    log_w = annealed(model, x, samples=8, steps=1, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(8, 1, model.latent, generator=torch.Generator().manual_seed(3)).expand(-1, 3, -1)
    with torch.no_grad():
        torch.testing.assert_close(log_w, bounds.terms(model, x, noise).log_weights.double())
    walked = annealed(model, x, samples=8, steps=4, generator=torch.Generator().manual_seed(3))
    assert walked.isfinite().all()
    assert (walked[:, 0] - walked[:, 1]).abs().min() > 1e-3


def test_more_steps_leave_less_spread(linear):
    model, _, x = linear
    spreads = [
        annealed(model, x, samples=200, steps=steps, generator=torch.Generator().manual_seed(0)).std(0).mean()
        for steps in (1, 8, 64)
    ]
    assert spreads[1] < 0.7 * spreads[0]
    assert spreads[2] < 0.7 * spreads[1]


def test_of_a_ladder_they_agree_with_very_many_of_the_encoders(ladder):
    """Digits of 8 x 8 pixels: 15,000 samples of the encoder's do, where 64 annealed ones do."""
    x = levels(6)
    before = [parameter.grad for parameter in ladder.parameters()]
    log_w = annealed(ladder, x, samples=64, steps=32, generator=torch.Generator().manual_seed(0))
    assert all(p.grad is g for p, g in zip(ladder.parameters(), before, strict=True))
    with torch.inference_mode():
        g = torch.Generator().manual_seed(1)
        noise = (torch.randn(500, 6, ladder.latent, generator=g) for _ in range(30))
        many = torch.cat([bounds.terms(ladder, x, part).log_weights for part in noise]).double()
    assert log_w.std(0).mean() < 0.5 * many.std(0).mean()
    found, wanted = (bounds.importance_weighted_bound(w) for w in (log_w, many))
    errors = torch.hypot(*(bounds.monte_carlo_error(w, "likelihood") for w in (log_w, many)))
    assert errors.max() < 0.5
    assert ((found - wanted).abs() / errors).max() < 3


def test_log_likelihoods_of_a_ladder_are_the_same_in_any_company(ladder, monkeypatch):
    """Images whose samples of the first length are far off go on to longer ones; none knows of the others."""
    monkeypatch.setattr(adaptive, "WALK_STEPS", (4, 16))
    monkeypatch.setattr(adaptive, "NEAR", 0.3)
    lengths = []
    real = adaptive.annealed
    monkeypatch.setattr(adaptive, "annealed", lambda *a, **kw: lengths.append(kw["steps"]) or real(*a, **kw))
    x = levels(9)
    whole = log_likelihoods(ladder, x, mc_se=0.3, max_k=256)
    assert set(lengths) == {4, 16}
    assert len(set(whole.k.tolist())) > 1
    assert whole.reached.any()
    for index in (torch.arange(3, 4), torch.arange(8, -1, -1)):
        part = log_likelihoods(ladder, x[index], mc_se=0.3, max_k=256)
        for field in dataclasses.fields(whole):
            got, wanted = (getattr(found, field.name) for found in (part, whole))
            assert (got == wanted[index.numpy()]).all(), field.name


def test_large_images_take_fewer_walks_at_once(ladder, monkeypatch):
    x = levels(2)
    monkeypatch.setattr(adaptive, "FITTING", 1.1)  # the encoder's samples never do
    whole = log_likelihoods(ladder, x, mc_se=0.3, max_k=64)
    monkeypatch.setattr(adaptive, "PIXELS", 8 * 64)
    parts = log_likelihoods(ladder, x, mc_se=0.3, max_k=64)
    assert (parts.value != whole.value).all(), "other noise"
    assert (abs(parts.value - whole.value) < 4 * (parts.mc_se + whole.mc_se)).all()


def test_an_image_that_no_walk_comes_near_is_given_up(ladder, monkeypatch):
    """A usual one gets all the walks that it may have, for an error that these do not reach."""
    monkeypatch.setattr(adaptive, "WALK_STEPS", (16, 32))
    noise = torch.randint(0, 256, (1, 64), generator=torch.Generator().manual_seed(0)).float()
    found = log_likelihoods(ladder, torch.cat([noise, levels(1)]), mc_se=0.01, max_k=192)
    assert found.k.tolist() == [adaptive.WALKS, adaptive.WALKED * 192 // 16 // 32 * 32]
    assert not found.reached.any()
    assert found.mc_se[0] > 1
