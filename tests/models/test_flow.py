"""The flow: a density that integrates to one, in the rows' own units."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from anomaly_vae.errors import ConfigError
from anomaly_vae.models import flow
from anomaly_vae.models.flow import Flow

pytest.importorskip("zuko", reason="a flow needs zuko: pip install 'anomaly-vae[flows]'")


@pytest.fixture(scope="module")
def fitted() -> tuple[Flow, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    covariance = np.array([[4.0, 1.5], [1.5, 1.0]])
    x = rng.multivariate_normal([10.0, -3.0], covariance, size=1500).astype(np.float32)
    rows = torch.from_numpy(x)
    return (
        Flow.fit(rows[:1000], validation=rows[1000:], steps=150, hidden=(32,), layers=2, learning_rate=5e-3),
        x,
        covariance,
    )


def test_it_comes_near_the_true_density(fitted: tuple[Flow, np.ndarray, np.ndarray]) -> None:
    made, x, covariance = fitted
    true = multivariate_normal([10.0, -3.0], covariance).logpdf(x[1000:])
    got = made.log_likelihood(torch.from_numpy(x[1000:])).numpy()
    assert abs(float(true.mean() - got.mean())) < 0.1


def test_it_integrates_to_one(fitted: tuple[Flow, np.ndarray, np.ndarray]) -> None:
    made = fitted[0]
    a, b = torch.linspace(-5, 25, 400), torch.linspace(-11, 5, 400)
    grid = torch.cartesian_prod(a, b)
    mass = made.log_likelihood(grid).double().exp().sum() * float(a[1] - a[0]) * float(b[1] - b[0])
    assert float(mass) == pytest.approx(1.0, abs=0.01)


def test_draws_come_from_it(fitted: tuple[Flow, np.ndarray, np.ndarray]) -> None:
    made, x, _ = fitted
    before = torch.get_rng_state()
    drawn = made.sample(2000, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(drawn, made.sample(2000, seed=1))
    np.testing.assert_allclose(drawn.mean(0), x.mean(0), atol=0.3)
    np.testing.assert_allclose(drawn.std(0), x.std(0), rtol=0.1)


def test_a_constant_column_has_a_density_all_the_same() -> None:
    x = torch.cat([torch.randn(64, 1), torch.ones(64, 1)], 1)
    made = Flow.fit(x, validation=x, steps=5, hidden=(8,), layers=1)
    assert math.isfinite(float(made.log_likelihood(x).mean()))


def test_without_zuko_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "flows_available", lambda: False)
    with pytest.raises(ConfigError, match="zuko installed"):
        Flow.fit(torch.randn(8, 2), validation=torch.randn(2, 2), steps=1)
