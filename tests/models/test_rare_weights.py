"""The error of a mean of weights whose large ones are rare."""

from __future__ import annotations

import math

import pytest
import torch

from anomaly_vae.models import bounds
from anomaly_vae.models.rare_weights import (
    DOUBTED,
    ROOT_MEAN_SQUARES,
    SAMPLES,
    SKEWNESSES,
    SPREADS,
    stated_error,
    uncertainty,
    unseen_error,
    usual_effective,
)


def drawn(spread: float, k: int, n: int, skewness: float = 0.0, seed: int = 0) -> torch.Tensor:
    """Log weights (k, n) whose mean weight is 1 in expectation."""
    generator = torch.Generator().manual_seed(seed)
    if not skewness:
        return spread * torch.randn(k, n, generator=generator, dtype=torch.float64) - spread**2 / 2
    a = 4 / skewness**2
    gamma = torch._standard_gamma(torch.full((k, n), a, dtype=torch.float64), generator=generator)
    return spread * (a - gamma) / math.sqrt(a) - spread * math.sqrt(a) + a * math.log1p(spread / math.sqrt(a))


@pytest.mark.parametrize(
    ("spread", "skewness", "k"),
    [(0.5, 0.0, 4), (1.0, 0.0, 16), (3.0, 0.0, 256), (6.0, 0.5, 64), (2.0, 1.0, 16), (4.0, 2.0, 256)],
)
def test_the_table_is_what_a_simulation_gives(spread: float, skewness: float, k: int) -> None:
    found = bounds.importance_weighted_bound(drawn(spread, k, 4000, skewness)).square().mean().sqrt()
    stated = unseen_error(torch.tensor([spread]), torch.tensor([-skewness - DOUBTED]), k)
    assert float(stated) == pytest.approx(float(found), rel=0.08)


def test_between_and_beyond_the_entries() -> None:
    none = torch.zeros(1)
    first, second = ROOT_MEAN_SQUARES[0][1][1:3]
    between = unseen_error(torch.tensor([1.25]), none, 16) / 1.25
    assert float(between) == pytest.approx(math.sqrt(first * second / 1.5), rel=1e-5)
    at = [float(unseen_error(torch.tensor([1.0]), none, torch.tensor([k]))) for k in (1024, 4096, 16_384)]
    assert at[2] == pytest.approx(at[1] ** 2 / at[0], rel=1e-5)
    assert unseen_error(torch.tensor([20.0]), none, 64) == 2 * unseen_error(torch.tensor([10.0]), none, 64)
    assert float(unseen_error(torch.tensor([0.0]), torch.tensor([torch.nan]), 4)) == 0


def test_it_grows_with_the_spread_and_falls_with_samples_and_skewness() -> None:
    table = torch.tensor(ROOT_MEAN_SQUARES)
    assert table.shape == (len(SKEWNESSES), len(SAMPLES), len(SPREADS))
    assert (table.diff(dim=2) > 0).all()
    assert (table.diff(dim=1) < 0).all()
    assert (table.diff(dim=0) < 0).all()


def test_the_delta_method_is_left_alone_where_it_is_larger_or_more_samples_count_than_is_usual() -> None:
    spread, none = torch.tensor([1.5]), torch.zeros(1)
    unseen = unseen_error(spread * (1 + uncertainty(64)), none, 64)
    assert stated_error(unseen * 1.1, torch.tensor([20.0]), spread, none, 64) == unseen * 1.1
    assert stated_error(unseen / 1.1, torch.tensor([20.0]), spread, none, 64) == unseen
    assert stated_error(unseen / 1.1, torch.tensor([22.0]), spread, none, 64) == unseen / 1.1


@pytest.mark.parametrize(("spread", "k"), [(0.5, 16), (1.5, 64), (3.0, 256), (2.0, 1024), (1.2, 100)])
def test_what_is_usual_is_what_a_simulation_gives(spread: float, k: int) -> None:
    z = drawn(1.0, k, 8000, seed=1)
    w = (z - z.mean(0)) / z.std(0, correction=0) * spread
    found = bounds.effective_sample_size(w).quantile(0.875)
    assert float(usual_effective(torch.tensor([spread]), k)) == pytest.approx(float(found), rel=0.05)


def test_bounded_weights_are_left_to_the_delta_method() -> None:
    """Log weights minus a chi-squared variable: spread wide, but many near the bound."""
    z = torch.randn(64, 2000, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for scale in (1.0, 2.0, 4.0):
        w = -scale * z.square().sum(-1) / 2
        error = bounds.importance_weighted_bound(w) + math.log1p(scale)
        stated = bounds.monte_carlo_error(w, "likelihood")
        assert float(stated.square().mean().sqrt() / error.square().mean().sqrt()) == pytest.approx(1.0, abs=0.1)


def test_the_spread_is_known_only_so_well() -> None:
    for k in (4, 16, 256):
        found = torch.randn(k, 20_000, generator=torch.Generator().manual_seed(k)).std(0).std()
        assert float(uncertainty(k)) == pytest.approx(float(found), rel=0.06)


@pytest.mark.parametrize(("k", "covered", "by_delta"), [(16, 0.8, 0.5), (64, 0.85, 0.6), (256, 0.87, 0.7)])
def test_the_stated_error_covers_where_the_delta_method_does_not(k: int, covered: float, by_delta: float) -> None:
    w = drawn(2.8, k, 2000)
    estimate, stated = bounds.importance_weighted_bound(w), bounds.monte_carlo_error(w, "likelihood")
    v = w.exp()
    delta = v.std(0) / (v.mean(0) * math.sqrt(k))
    assert (estimate.abs() <= 2 * stated).double().mean() >= covered
    assert (estimate.abs() <= 2 * delta).double().mean() <= by_delta
