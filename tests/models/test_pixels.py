"""Likelihoods of pixels: each sums or integrates to 1, is stable at its edges, and knows its best."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anomaly_vae.models.pixels import BRIGHTEST, LARGEST_ETA, LEVELS, PIXEL_LIKELIHOODS, log_sinhc
from anomaly_vae.options import PIXELS

NAMES = list(PIXEL_LIKELIHOODS)
WHOLE = ("bernoulli", "discretized_logistic")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def maps(likelihood: nn.Module, n: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(n, likelihood.width, 1, 1, generator=generator())


def test_the_registry_has_what_the_options_name():
    assert tuple(PIXEL_LIKELIHOODS) == PIXELS


@pytest.mark.parametrize("size", [0.01, 1.0, 6.0])
@pytest.mark.parametrize("name", NAMES)
def test_it_sums_or_integrates_to_one(name, size):
    likelihood = PIXEL_LIKELIHOODS[name](1).double()
    params = maps(likelihood, 20, size).double()
    if name == "discretized_logistic":
        grid, step = torch.arange(LEVELS), 1.0
    elif name == "bernoulli":
        grid, step = torch.tensor([0.0, BRIGHTEST]), 1.0
    else:
        width = BRIGHTEST if name == "continuous_bernoulli" else 2e4
        params = params if name == "continuous_bernoulli" else params.clamp(max=2.5)
        step = width / 400_000
        low = 0.0 if name == "continuous_bernoulli" else -1e4
        grid = low + step * (torch.arange(400_000) + 0.5)
    total = [step * likelihood.log_prob(p, grid.double().view(-1, 1, 1, 1)).exp().sum() for p in params[:, None]]
    torch.testing.assert_close(torch.stack(total), torch.ones(20, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_float32_agrees_with_float64_at_every_level_and_its_gradients_are_finite(name):
    torch.manual_seed(0)
    likelihood = PIXEL_LIKELIHOODS[name](1)
    params = torch.cat([maps(likelihood, 50, size) for size in (1e-6, 1e-2, 1.0, 5.0, 50.0)])[None]
    params = params[0][:, None].requires_grad_()
    x = torch.arange(LEVELS).view(-1, 1, 1, 1).float()
    single = likelihood.log_prob(params, x)
    single.sum().backward()
    assert params.grad is not None
    assert params.grad.isfinite().all()
    double = likelihood.double().log_prob(params.detach().double(), x.double()).float()
    torch.testing.assert_close(single.detach(), double, atol=2e-4, rtol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_no_parameters_beat_the_best(name):
    likelihood = PIXEL_LIKELIHOODS[name](3)
    x = torch.randint(0, LEVELS, (16, 3, 4, 4), generator=generator()).float()
    x[:, :, 0], x[:, :, 1] = 0, BRIGHTEST
    params = torch.randn(200, 16, likelihood.width, 4, 4, generator=generator()) * 30
    assert (likelihood.log_prob(params, x) <= likelihood.best(x) + 1e-4).all()
    assert likelihood.best(x).shape == (16, 48)


def test_the_best_continuous_bernoulli_is_attained():
    likelihood = PIXEL_LIKELIHOODS["continuous_bernoulli"](1)
    x = torch.tensor([0.0, 1.0, 60.0, 127.5, 254.0, 255.0]).view(-1, 1, 1, 1)
    eta = torch.linspace(-LARGEST_ETA, LARGEST_ETA, 100_001).double()
    v = x.view(-1, 1).double() / BRIGHTEST
    found = (eta * (v - 0.5) - log_sinhc(eta / 2)).amax(1) - torch.tensor(BRIGHTEST).log()
    torch.testing.assert_close(likelihood.best(x.round()).double()[:, 0], found, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_draws_have_the_mean_and_lie_where_they_should(name):
    likelihood = PIXEL_LIKELIHOODS[name](3)
    params = torch.randn(1, likelihood.width, 2, 2, generator=generator()).expand(20_000, -1, -1, -1)
    drawn, mean = likelihood.sample(params, generator()), likelihood.mean(params[:1])
    assert drawn.shape == (20_000, 12)
    assert mean.shape == (1, 12)
    error = 5 * drawn.std(0) / 20_000**0.5
    edges = 0.5 if name == "discretized_logistic" else 0.0  # whole levels at the edges take half a step more
    assert ((drawn.mean(0) - mean[0]).abs() <= error + edges).all()
    if name in WHOLE:
        assert (drawn == drawn.round()).all()
    if name != "gaussian":
        assert drawn.min() >= 0
        assert drawn.max() <= BRIGHTEST


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_map_and_parameter(name):
    likelihood = PIXEL_LIKELIHOODS[name](3)
    params = torch.zeros(2, likelihood.width, 4, 4, requires_grad=True)
    x = torch.randint(0, LEVELS, (2, 3, 4, 4), generator=generator()).float()
    likelihood.log_prob(params, x).sum().backward()
    assert params.grad is not None
    assert (params.grad.abs().sum((0, 2, 3)) > 0).all()
    for parameter_name, parameter in likelihood.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert (parameter.grad.abs() > 0).all(), parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_samples_of_a_row_broadcast(name):
    likelihood = PIXEL_LIKELIHOODS[name](3)
    params = torch.randn(5, 2, likelihood.width, 4, 3, generator=generator())
    x = torch.randint(0, LEVELS, (2, 3, 4, 3), generator=generator()).float()
    together = likelihood.log_prob(params, x)
    assert together.shape == (5, 2, 36)
    torch.testing.assert_close(together[3], likelihood.log_prob(params[3], x))
