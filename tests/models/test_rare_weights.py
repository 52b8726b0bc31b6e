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


def test_the_delta_method_is_left_alone_where_it_is_near_or_many_weights_count() -> None:
    spread, none, few = torch.tensor([1.0]), torch.zeros(1), torch.tensor([9.0])
    unseen = unseen_error(spread * (1 + uncertainty(64)), none, 64)
    assert stated_error(unseen / 1.4, few, spread, none, 64) == unseen / 1.4
    assert stated_error(unseen / 1.6, few, spread, none, 64) == unseen
    assert stated_error(unseen / 1.6, torch.tensor([11.0]), spread, none, 64) == unseen / 1.6


@pytest.mark.parametrize(("k", "threshold"), [(16, 10), (64, 10), (256, 25.6), (4096, 100)])
def test_few_weights_are_a_share_of_the_samples_within_bounds(k: int, threshold: float) -> None:
    delta, spread, none = torch.tensor([1e-3]), torch.tensor([3.0]), torch.zeros(1)
    stated = [stated_error(delta, torch.tensor([threshold + side]), spread, none, k) for side in (-0.1, 0.1)]
    assert stated[0] > 100 * delta
    assert stated[1] == delta


def test_the_spread_is_known_only_so_well() -> None:
    for k in (4, 16, 256):
        found = torch.randn(k, 20_000, generator=torch.Generator().manual_seed(k)).std(0).std()
        assert float(uncertainty(k)) == pytest.approx(float(found), rel=0.06)


@pytest.mark.parametrize(("k", "covered", "by_delta"), [(16, 0.88, 0.5), (64, 0.9, 0.6), (256, 0.94, 0.7)])
def test_the_stated_error_covers_where_the_delta_method_does_not(k: int, covered: float, by_delta: float) -> None:
    w = drawn(2.8, k, 2000)
    estimate, stated = bounds.importance_weighted_bound(w), bounds.monte_carlo_error(w, "likelihood")
    v = w.exp()
    delta = v.std(0) / (v.mean(0) * math.sqrt(k))
    assert (estimate.abs() <= 2 * stated).double().mean() >= covered
    assert (estimate.abs() <= 2 * delta).double().mean() <= by_delta
