"""The aggregated posterior is the mixture it says it is, and a training row never vouches for itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from anomaly_vae import Detector, ImageConfig, TrainConfig, fit_detector
from anomaly_vae.data.images import frame_of
from anomaly_vae.models.priors import EXEMPLARS, NARROWEST, AggregatedPosterior, Exemplars
from tests.conftest import digit_images, mixed_frame


@pytest.fixture
def posterior() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(30, 3, generator=generator), 0.5 * torch.randn(30, 3, generator=generator) - 1


def oracle(means: torch.Tensor, log_scales: torch.Tensor) -> MixtureSameFamily:
    components = Independent(Normal(means, log_scales.clamp(min=NARROWEST).exp()), 1)
    return MixtureSameFamily(Categorical(torch.ones(len(means))), components)


def test_the_density_is_that_of_the_mixture(posterior):
    prior = AggregatedPosterior(3)
    prior.keep(posterior)
    z = 2 * torch.randn(4, 50, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(prior.log_prob(z), oracle(*posterior).log_prob(z), rtol=1e-5, atol=1e-4)


def test_a_row_is_left_out_of_its_own_prior(posterior):
    rows = torch.tensor([3, 7, 29])
    own = rows[:, None] == torch.arange(30)
    z = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1))
    got = AggregatedPosterior.around(posterior, own).log_prob(z)
    for i, row in enumerate(rows):
        others = torch.arange(30) != row
        wanted = oracle(posterior[0][others], posterior[1][others]).log_prob(z[:, i])
        torch.testing.assert_close(got[:, i], wanted, rtol=1e-5, atol=1e-4)


def test_before_training_it_is_the_standard_normal_and_keeps_what_fits(posterior):
    prior = AggregatedPosterior(2)
    z = torch.randn(9, 2)
    torch.testing.assert_close(prior.log_prob(z), Normal(0.0, 1.0).log_prob(z).sum(-1))
    many = torch.randn(EXEMPLARS + 10, 2)
    prior.keep((many, torch.zeros_like(many)))
    assert torch.equal(prior.means, many[:EXEMPLARS])
    assert prior.log_weights.exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("name", ["aggregated_posterior", "exemplars"])
def test_training_keeps_codes_of_training_rows_and_the_detector_saves_them(name, tmp_path):
    frame = mixed_frame(900)
    config = TrainConfig(steps=200, hidden=(16,), prior=name)
    fit = fit_detector(frame, config)
    detector, fresh = fit.detector, mixed_frame(200, seed=1)
    prior = detector.model.prior
    codes = detector.model.posterior(detector.encode(frame.iloc[fit.split["train"]]))[0]
    distance = torch.cdist(prior.means, codes, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    assert len(prior.means) == EXEMPLARS
    assert name == "exemplars" or (prior.log_weights > -torch.inf).all()
    assert distance.max() < 1e-4, "every component is the posterior of a training row under the final weights"
    scores = detector.score_frame(fresh)["anomaly_score"]
    detector.save(tmp_path / "m")
    np.testing.assert_array_equal(Detector.load(tmp_path / "m").score_frame(fresh)["anomaly_score"], scores)
    alone = [detector.score_frame(fresh[i : i + 1])["anomaly_score"].iloc[0] for i in range(30)]
    np.testing.assert_array_equal(scores[:30], alone)


def test_exemplars_of_one_width_are_a_density_wherever_they_lie():
    prior = Exemplars(2, count=7).double()
    with torch.no_grad():
        prior.log_scale.copy_(torch.tensor([[-0.5, 0.2]]))
    prior.keep(torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3.0)
    axis = torch.linspace(-10, 16, 400, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    total = prior.log_prob(grid).detach().exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(total) == pytest.approx(1.0, abs=1e-5)
    drawn = prior.float().sample(20_000, torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn.mean(0), prior.means.mean(0), atol=0.05, rtol=0)


def test_far_from_zero_float32_still_knows_distances():
    means = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    z = means[:5] + 0.3
    near, far = Exemplars(8), Exemplars(8)
    near.keep(means)
    far.keep(means + 100.0)
    torch.testing.assert_close(near.log_prob(z), far.log_prob(z + 100.0), atol=1e-3, rtol=0)


def test_an_exemplar_is_no_reason_for_itself():
    prior = Exemplars(2)
    means = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    own = torch.eye(2, dtype=torch.bool)
    left_out = prior.around(means, own).log_prob(means)
    expected = -0.5 * 9.0 - math.log(2 * math.pi)
    torch.testing.assert_close(left_out, torch.full((2,), expected))


def image_fit(count: int):
    """A detector of so many digits under exemplars, the images, and others."""
    images, _ = digit_images()
    config = ImageConfig(
        prior="exemplars", steps=30, latent=4, channels=16, k=1, calibration_k=(1, 4), score_kind="likelihood"
    )
    return (
        fit_detector(frame_of(images[:count]), config),
        frame_of(images[:count]),
        frame_of(images[count : count + 40]),
    )


@pytest.mark.filterwarnings("ignore:the posterior collapsed")  # few steps: what counts is what is kept
@pytest.mark.parametrize("count", [250, 900])
def test_images_of_few_or_many_rows_keep_exemplars_and_score_the_same_in_any_company(count, tmp_path):
    fit, given, fresh = image_fit(count)
    detector, prior = fit.detector, fit.detector.model.prior
    codes = detector.model.posterior(detector.encode(given.iloc[fit.split["train"]]))[0]
    assert len(prior.means) == min(EXEMPLARS, len(fit.split["train"]))
    nearest = torch.cdist(prior.means, codes, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    assert nearest.max() < 1e-4, "every exemplar is a training image under the final weights"
    assert not torch.equal(prior.log_scale, torch.zeros(1, 4)), "its width is learned"
    scores = detector.score_frame(fresh)["anomaly_score"].to_numpy()
    alone = [detector.score_frame(fresh.iloc[i : i + 1])["anomaly_score"].iloc[0] for i in range(6)]
    np.testing.assert_array_equal(scores[:6], alone)
    np.testing.assert_array_equal(detector.score_frame(fresh.iloc[::-1])["anomaly_score"].to_numpy()[::-1], scores)
    detector.save(tmp_path / "m")
    for shared in (False, True):
        again = Detector.load(tmp_path / "m", shared=shared)
        np.testing.assert_array_equal(again.score_frame(fresh)["anomaly_score"], scores)
    drawn = again.model.sample(50, torch.Generator().manual_seed(0))
    assert drawn.shape == (50, 64)


@pytest.mark.filterwarnings("ignore:the posterior collapsed")
def test_in_training_no_row_is_its_own_exemplar(monkeypatch):
    seen = []
    around = Exemplars.around

    def watched(self, means, own=None):
        if own is not None:
            seen.append((means.requires_grad, own))
        return around(self, means, own)

    monkeypatch.setattr(Exemplars, "around", watched)
    fit = fit_detector(
        mixed_frame(150), TrainConfig(prior="exemplars", steps=10, hidden=(8,), batch_size=32, companions=())
    )
    rows = len(fit.split["train"])
    assert len(seen) == 10
    for learned, own in seen:
        assert learned
        assert own.shape == (32, rows)  # all rows are exemplars where they are few
        assert (own.sum(1) == 1).all()


def test_a_file_may_hold_as_many_exemplars_as_it_likes_of_the_same_width():
    few = Exemplars(3)
    few.keep(torch.randn(7, 3, generator=torch.Generator().manual_seed(0)))
    fresh = Exemplars(3)
    fresh.load_state_dict(few.state_dict())
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(fresh.log_prob(z), few.log_prob(z))
    with pytest.raises(RuntimeError, match="size mismatch"):
        Exemplars(4).load_state_dict(few.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        fresh.load_state_dict({**few.state_dict(), "means": torch.zeros(0, 3)})
