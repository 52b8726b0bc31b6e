"""Every likelihood sums or integrates to 1, and its gradients reach every parameter."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from anomaly_vae.data.schema import Column
from anomaly_vae.models.likelihoods import LIKELIHOODS, TableLikelihood, _log_normal_mass
from anomaly_vae.models.vae import VAE
from anomaly_vae.options import TrainConfig

COLUMNS = {
    "gaussian": Column(name="a", kind="continuous", dtype="float64", center=3.0, scale=20.0),
    "student_t": Column(name="a", kind="continuous", dtype="float64", center=3.0, scale=20.0),
    "fixed_gaussian": Column(name="a", kind="continuous", dtype="float64", center=3.0, scale=20.0),
    "bernoulli": Column(name="b", kind="binary", dtype="bool", categories=("False", "True"), unseen=0.01),
    "categorical": Column(name="c", kind="categorical", dtype="string", categories=("x", "y", "z"), unseen=0.02),
    "rounded_log_normal": Column(name="n", kind="count", dtype="int64", center=1.0, scale=0.5),
    "zero_inflated": Column(name="n", kind="count", dtype="int64", center=2.0, scale=1.5),
}
MIXED = [
    Column(name="n", kind="count", dtype="int64", center=1.0, scale=0.5),
    COLUMNS["categorical"],
    Column(name="u", kind="continuous", dtype="float64", scale=2.0),
    COLUMNS["bernoulli"],
    Column(name="v", kind="continuous", dtype="float64", scale=0.5),
]


def test_every_registered_likelihood_is_tested():
    assert set(COLUMNS) == set(LIKELIHOODS)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_total_probability_is_one(name):
    column = COLUMNS[name]
    head = LIKELIHOODS[name]([column])
    torch.manual_seed(0)
    distribution = head(0.5 * torch.randn(1, head.width))
    if column.kind == "continuous":  # in the user's units: du = dx / scale
        u = torch.linspace(-40, 40, 400_001, dtype=torch.float64)[:, None]
        density = distribution.log_prob(u).exp()[:, 0]
        total = torch.trapezoid(density, u[:, 0] * column.scale).item()
    else:
        cells = torch.arange(-1.0, 50_000.0) if column.kind == "count" else torch.arange(len(column.categories) + 1.0)
        total = distribution.log_prob(cells[:, None]).double().exp().sum().item()
    assert total == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_samples_have_the_stated_mean(name):
    head = LIKELIHOODS[name]([COLUMNS[name]])
    torch.manual_seed(0)
    distribution = head(0.5 * torch.randn(1, head.width).expand(40_000, -1))
    drawn = distribution.sample(torch.Generator().manual_seed(1))
    if COLUMNS[name].kind == "count":
        assert drawn.median() == distribution.mean[0, 0]
    elif COLUMNS[name].kind == "continuous":
        assert abs(drawn.mean() - distribution.mean[0, 0]) < 5 * drawn.std() / 200
    else:
        values, counts = drawn.unique(return_counts=True)
        stated = distribution.log_prob(values[:1, None])[0, 0].exp()
        assert values[counts.argmax()] == distribution.mean[0, 0]
        assert counts[0].item() / 40_000 == pytest.approx(stated.item(), abs=0.03)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("location", [-3.0, 0.0, 2.0, 6.0])
@torch.no_grad()
def test_counts_have_the_mass_that_scipy_gives_their_cell(location):
    """From the lower tail to the upper, in narrow and wide cells."""
    head = LIKELIHOODS["rounded_log_normal"]([COLUMNS["rounded_log_normal"]])
    noise = float(0.01 + np.exp(-0.5))
    counts = np.array([0.0, 1, 2, 7, 30, 1000, 100_000])
    got = head(torch.tensor([[location]])).log_prob(torch.tensor(counts, dtype=torch.float32)[:, None])
    edges = [np.where(counts > 0, np.log(counts + 0.5), -1e9), np.log(counts + 1.5)]
    a, b = (((edge - 1.0) / 0.5 - location) / noise for edge in edges)
    flip = a > 0
    low, high = np.where(flip, -b, a), np.where(flip, -a, b)
    wanted = stats.norm.logcdf(high) + np.log1p(-np.exp(stats.norm.logcdf(low) - stats.norm.logcdf(high)))
    np.testing.assert_allclose(got[:, 0].detach().numpy(), wanted + np.log1p(-1e-6), rtol=2e-4, atol=1e-5)


@pytest.mark.usefixtures("arithmetic")
def test_the_normal_mass_keeps_its_digits_in_either_tail():
    points = torch.tensor(
        [-1e8, -1e4, -38.0, -9.0, -3.0, -0.5, 0.0, 1e-4, 0.2, 1.0, 5.0, 8.5, 40.0, 1e3], dtype=torch.float64
    )
    widths = torch.tensor([1e-6, 5e-4, 2e-3, 0.1, 1.0, 30.0, 1e4], dtype=torch.float64)
    a = points.repeat_interleave(len(widths))
    b = a + widths.repeat(len(points))
    got = _log_normal_mass(a, b)
    with mpmath.workdps(60):
        for low, high, value in zip(a.tolist(), b.tolist(), got.tolist(), strict=True):
            wanted = _exact_log_mass(low, high)
            near = 1e-6 if high - low < 1e-3 else 1e-11  # density times width
            assert value == pytest.approx(wanted, rel=near, abs=near), (low, high)


def _exact_log_mass(a: float, b: float) -> float:
    low, high = (mpmath.mpf(v) / mpmath.sqrt(2) for v in ((-b, -a) if a > 0 else (a, b)))
    mass = (
        (mpmath.erfc(-high) - mpmath.erfc(-low)) / 2 if high <= 0 else 1 - (mpmath.erfc(high) + mpmath.erfc(-low)) / 2
    )
    return float(mpmath.log(mass))


@pytest.mark.parametrize("gate", [-30.0, -1.0, 0.3, 30.0])
def test_zeros_beyond_those_of_the_log_normal(gate):
    plain = LIKELIHOODS["rounded_log_normal"]([COLUMNS["zero_inflated"]])(torch.tensor([[0.4]]))
    head = LIKELIHOODS["zero_inflated"]([COLUMNS["zero_inflated"]])
    counts = torch.tensor([[-1.0], [0.0], [1.0], [9.0], [4000.0]])
    inner, got = plain.log_prob(counts).exp(), head(torch.tensor([[0.4, gate]])).log_prob(counts).exp()
    share = torch.tensor(gate).sigmoid()
    expected = (1 - share) * inner
    expected[1] += share * (1 - COLUMNS["zero_inflated"].unseen)
    expected[0] = inner[0]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", ["rounded_log_normal", "zero_inflated"])
def test_counts_keep_finite_values_and_gradients_everywhere(name):
    head = LIKELIHOODS[name]([COLUMNS["rounded_log_normal"]] * 2)
    h = torch.tensor([[-40.0, 40.0], [0.0, 3.0], [500.0, -500.0]]).repeat(1, head.width // 2).requires_grad_()
    for count in (0.0, 1.0, 5.0, 1e4, 1e9, -1.0):
        value = head(h).log_prob(torch.full((3, 2), count))
        gradient = torch.autograd.grad(value.sum(), [h, head.noise_log], allow_unused=count < 0)
        assert value.isfinite().all(), count
        assert all(g is None or g.isfinite().all() for g in gradient), count


def test_fixed_gaussian_is_the_textbook_loss():
    """Minus log p is C (x - f)^2 + constant with C = 1 / (2c)."""
    head = LIKELIHOODS["fixed_gaussian"]([COLUMNS["fixed_gaussian"]], variance=0.25)
    loss = [-head(torch.zeros(1, 1)).log_prob(torch.tensor([[u]])).item() for u in (0.0, 1.0, 3.0)]
    assert loss[1] - loss[0] == pytest.approx(1 / (2 * 0.25), rel=1e-5)
    assert loss[2] - loss[0] == pytest.approx(9 / (2 * 0.25), rel=1e-5)


def test_columns_come_back_in_their_order_and_missing_cells_contribute_nothing():
    likelihood = TableLikelihood(MIXED)
    torch.manual_seed(0)
    h = torch.randn(2, likelihood.width)
    x = torch.tensor([[3.0, 1.0, 0.2, 1.0, -0.4], [torch.nan, 3.0, torch.nan, 2.0, torch.nan]])
    log_p = likelihood.log_prob(h, x)
    assert log_p[1, [0, 2, 4]].tolist() == [0.0, 0.0, 0.0]
    assert log_p[1, 1].item() == pytest.approx(np.log(0.02), rel=1e-5)
    assert log_p[1, 3].item() == pytest.approx(np.log(0.01), rel=1e-5)
    moved = x.clone()
    moved[0, 2] += 0.5
    changed = (likelihood.log_prob(h, moved) != log_p)[0]
    assert changed.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("continuous", ["student_t", "gaussian", "fixed_gaussian"])
def test_gradients_reach_every_parameter(continuous):
    torch.manual_seed(0)
    model = VAE(MIXED, TrainConfig(hidden=(8, 8), latent=3, continuous=continuous))
    for parameter in model.parameters():  # the last layers start at zero, which stops gradients before the first step
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.tensor([[3.0, 1.0, 0.2, 1.0, -0.4], [0.0, 2.0, 1.0, 0.0, 0.3]])
    from anomaly_vae.models import bounds

    t = bounds.terms(model, x, torch.randn(4, 2, 3))
    (-bounds.elbo(t.log_weights)).mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_a_masked_column_is_marginalised():
    """With one column hidden, log p equals that of the model of the other columns, for the same codes."""
    likelihood = TableLikelihood(MIXED)
    h = torch.randn(6, 1, likelihood.width, generator=torch.Generator().manual_seed(0))
    x = torch.tensor([[3.0, 1.0, 0.2, 1.0, -0.4]])
    hidden = x.clone()
    hidden[0, 1] = torch.nan
    full, part = likelihood.log_prob(h, x), likelihood.log_prob(h, hidden)
    torch.testing.assert_close(part.sum(-1), full[..., [0, 2, 3, 4]].sum(-1))
