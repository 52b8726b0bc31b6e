"""Divergences against integrals and sums, perplexity against counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Distribution,
    Exponential,
    Gamma,
    Independent,
    Laplace,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Poisson,
    Uniform,
)

from anomaly_vae.errors import ConfigError, ShapeError
from anomaly_vae.evaluation.divergences import LARGEST_JS, js, kl, mean_log_likelihood, perplexities


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


LINE, HALF, UNIT = (-40.0, 40.0), (1e-12, 80.0), (1e-12, 1 - 1e-12)
PAIRS = [
    (Normal(t(0.3), t(1.2)), Normal(t(-0.5), t(0.7)), LINE),
    (Laplace(t(0.0), t(1.0)), Laplace(t(1.0), t(2.0)), LINE),
    (Gamma(t(2.0), t(1.0)), Gamma(t(3.0), t(1.5)), HALF),
    (Exponential(t(1.0)), Exponential(t(2.0)), HALF),
    (LogNormal(t(0.0), t(0.5)), LogNormal(t(0.3), t(0.6)), HALF),
    (Beta(t(2.0), t(3.0)), Beta(t(4.0), t(2.5)), UNIT),
]


def density(p: Distribution, x: float) -> float:
    return float(p.log_prob(t(x)).exp())


def integrated_kl(p: Distribution, q: Distribution, ends: tuple[float, float]) -> float:
    def integrand(x: float) -> float:
        log_p, log_q = float(p.log_prob(t(x))), float(q.log_prob(t(x)))
        return math.exp(log_p) * (log_p - log_q)

    return quad(integrand, *ends, limit=400, points=[0.0, 0.5, 1.0, 5.0], epsabs=1e-10)[0]


def integrated_js(p: Distribution, q: Distribution, ends: tuple[float, float]) -> float:
    def integrand(x: float) -> float:
        a, b = density(p, x), density(q, x)
        m = 0.5 * (a + b)
        return 0.5 * sum(v * math.log(v / m) for v in (a, b) if v > 0)

    return quad(integrand, *ends, limit=400, points=[0.0, 0.5, 1.0, 5.0], epsabs=1e-10)[0]


@pytest.mark.parametrize(("p", "q", "ends"), PAIRS, ids=lambda v: type(v).__name__)
def test_closed_forms_of_kl_are_the_integral(p: Distribution, q: Distribution, ends: tuple[float, float]) -> None:
    found = kl(p, q)
    assert found.method == "closed form"
    assert found.se == 0
    assert found.value == pytest.approx(integrated_kl(p, q, ends), abs=1e-6)


@pytest.mark.parametrize(("p", "q", "ends"), PAIRS[:3], ids=lambda v: type(v).__name__)
def test_sampled_js_is_the_integral_within_its_error(
    p: Distribution, q: Distribution, ends: tuple[float, float]
) -> None:
    found = js(p, q, seed=3)
    assert found.method == "Monte Carlo"
    assert found.se < 2e-3
    assert abs(found.value - integrated_js(p, q, ends)) < 4 * found.se
    assert js(q, p, seed=8).value == pytest.approx(found.value, abs=6 * found.se)


def test_discrete_divergences_are_sums() -> None:
    p, q = t(0.2, 0.5, 0.3), t(0.4, 0.4, 0.2)
    m = (p + q) / 2
    want_kl = sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    want_js = sum(
        0.5 * a * math.log(a / c) + 0.5 * b * math.log(b / c)
        for a, b, c in zip(*map(torch.Tensor.tolist, (p, q, m)), strict=True)
    )
    assert kl(Categorical(p), Categorical(q)).value == pytest.approx(want_kl, abs=1e-12)
    assert js(Categorical(p), Categorical(q)).value == pytest.approx(want_js, abs=1e-12)
    assert js(Categorical(p), Categorical(q)).se == 0
    two = [Categorical(t(1 - a, a)) for a in (0.1, 0.7)]
    assert js(Bernoulli(t(0.1)), Bernoulli(t(0.7))).value == pytest.approx(js(*two).value, abs=1e-12)
    assert kl(Bernoulli(t(0.1)), Bernoulli(t(0.7))).value == pytest.approx(kl(*two).value, abs=1e-12)
    counts = torch.arange(200, dtype=torch.float64)
    log_a, log_b = (Poisson(t(rate)).log_prob(counts) for rate in (3.0, 4.5))
    want = float((log_a.exp() * (log_a - log_b)).sum())
    assert kl(Poisson(t(3.0)), Poisson(t(4.5))).value == pytest.approx(want, abs=1e-9)


def test_full_gaussians_agree_with_the_formula_and_with_draws() -> None:
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(2, 3, 3))
    cov = [torch.from_numpy(r @ r.T + 0.5 * np.eye(3)) for r in roots]
    p, q = (MultivariateNormal(torch.from_numpy(rng.normal(size=3)), c) for c in cov)
    inverse, shift = torch.linalg.inv(cov[1]), q.mean - p.mean
    want = 0.5 * (
        torch.trace(inverse @ cov[0]) + shift @ inverse @ shift - 3 + torch.logdet(cov[1]) - torch.logdet(cov[0])
    )
    found = kl(p, q)
    assert found.value == pytest.approx(float(want), abs=1e-9)
    x = p.sample((20_000,))
    gap = p.log_prob(x) - q.log_prob(x)
    assert abs(float(gap.mean()) - found.value) < 5 * float(gap.std()) / math.sqrt(20_000)
    diagonal = Independent(Normal(t(0.0, 1.0), t(1.0, 2.0)), 1)
    other = Independent(Normal(t(0.5, 0.0), t(1.5, 1.0)), 1)
    columns = [Normal(m, s) for d in (diagonal, other) for m, s in zip(d.base_dist.loc, d.base_dist.scale, strict=True)]
    by_column = sum(integrated_kl(columns[j], columns[j + 2], LINE) for j in range(2))
    assert kl(diagonal, other).value == pytest.approx(by_column, abs=1e-6)


def test_a_mixture_has_no_closed_form_and_an_error() -> None:
    mixture = MixtureSameFamily(Categorical(t(0.5, 0.5)), Normal(t(-2.0, 2.0), t(0.5, 0.5)))
    found = kl(mixture, Normal(t(0.0), t(2.0)), seed=1)
    assert found.method == "Monte Carlo"
    assert abs(found.value - integrated_kl(mixture, Normal(t(0.0), t(2.0)), LINE)) < 4 * found.se
    assert found == kl(mixture, Normal(t(0.0), t(2.0)), seed=1)


def test_distributions_apart() -> None:
    far = js(Normal(t(0.0), t(1.0)), Normal(t(100.0), t(1.0)), draws=1000)
    assert far.value == pytest.approx(LARGEST_JS, abs=1e-9)
    disjoint = js(Uniform(t(0.0), t(1.0)), Uniform(t(5.0), t(6.0)), draws=100)
    assert disjoint.value == pytest.approx(LARGEST_JS, abs=1e-9)
    half = js(Uniform(t(0.0), t(1.0)), Uniform(t(0.5), t(1.5)), draws=20_000)
    assert abs(half.value - 0.5 * LARGEST_JS) < 4 * half.se
    assert kl(Uniform(t(0.0), t(2.0)), Uniform(t(0.0), t(1.0))).to_dict()["value"] is None


def test_draws_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    js(Normal(t(0.0), t(1.0)), Normal(t(1.0), t(1.0)), draws=10)
    assert torch.equal(before, torch.get_rng_state())


def test_mean_log_likelihood() -> None:
    found = mean_log_likelihood(-math.log(2) * np.array([3.0, 5.0]), dimensions=4)
    assert found.bits_per_dimension == pytest.approx(1.0)
    assert found.se == pytest.approx(math.log(2))
    assert mean_log_likelihood([1.0], dimensions=1).to_dict()["se"] is None


def test_perplexity_against_counts_and_of_absent_cells() -> None:
    rng = np.random.default_rng(0)
    shares = np.array([0.7, 0.2, 0.1])
    cells = rng.choice(3, size=(4000, 1), p=shares).astype(float)
    found = perplexities(np.log(shares)[cells.astype(int)], cells, ["city"])[0]
    entropy = -(shares * np.log(shares)).sum()
    assert abs(found.value - math.exp(entropy)) < 4 * found.se
    assert found.alone <= found.value
    cells[::2] = np.nan
    assert perplexities(np.zeros((4000, 1)), cells, ["city"])[0].value == 1.0
    assert perplexities(np.zeros((4000, 1)), np.full((4000, 1), np.nan), ["city"])[0].to_dict()["value"] is None


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="draws must be at least 2"):
        js(Normal(t(0.0), t(1.0)), Normal(t(1.0), t(1.0)), draws=1)
    with pytest.raises(ShapeError, match="one shape"):
        kl(Normal(t(0.0, 1.0), t(1.0, 1.0)), Normal(t(1.0), t(1.0)))
    with pytest.raises(ShapeError, match="log-likelihoods"):
        mean_log_likelihood([], dimensions=1)
    with pytest.raises(ShapeError, match="same columns"):
        perplexities([[0.0]], [[0.0, 1.0]], ["a"])
