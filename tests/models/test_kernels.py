"""The compiled code against plain torch, and how it is left out."""

from __future__ import annotations

import copy
import ctypes
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from anomaly_vae.models import bounds, compiled, kernels
from anomaly_vae.models.fused import FusedMLP
from anomaly_vae.models.heads import Heads
from anomaly_vae.models.kernels import AnyColumns, Columns, Drawn, Kernel, kernel
from anomaly_vae.models.likelihoods import TableLikelihood
from anomaly_vae.models.networks import MLP
from anomaly_vae.options import COUNTS
from tests.conftest import columns_of_every_kind, rows_of_every_kind

PRECISIONS = [
    pytest.param(p, marks=pytest.mark.skipif(p not in compiled.precisions(), reason=f"no compiled code for {p} here"))
    for p in ("float32", "bf16")
]
"""bfloat16 is compared with float32: its numbers have 8 bits."""
SOURCES = ("kernels.c", "steps.c")
NEAR = {"float32": 1e-5, "bf16": 0.03}


@pytest.fixture(autouse=True)
def _switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiled.SWITCH, raising=False)


def network(inputs: int, hidden: tuple[int, ...], outputs: int) -> MLP:
    """A network whose hidden layers, which start at zero, count."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = MLP(inputs, hidden, outputs).requires_grad_(False)
        if found.out is not None:
            found.out.weight.normal_(std=0.1)
    return found


def drawn_of(n: int, k: int, latent: int, seed: int = 0) -> Drawn:
    generator = torch.Generator().manual_seed(seed)
    mean, noise = torch.randn(n, latent, generator=generator), torch.randn(k, latent, generator=generator)
    scale = torch.rand(n, latent, generator=generator) + 0.01
    return Drawn(mean, scale, scale.log().sum(-1), noise)


def columns_of(m: int, *, student: bool) -> Columns:
    generator = torch.Generator().manual_seed(m)
    inverse, constant = torch.rand(m, generator=generator) + 0.1, torch.randn(m, generator=generator)
    return Columns(network(3, (), m).linear.bias[:m].clone(), inverse, constant, 3.0 if student else 1.0, student)


def rows_of(n: int, m: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = 3 * torch.randn(n, m, generator=generator)
    return x.masked_fill(torch.rand(n, m, generator=generator) < 0.1, torch.nan)


def plain_log_px(net: MLP, z: torch.Tensor, x: torch.Tensor, columns: Columns) -> torch.Tensor:
    """log p(x|z), (k, n), float64, by the definition."""
    output = net(z).double() - net.linear.bias[: x.shape[1]].double()
    r = (x.double() - columns.bias - output) * columns.inverse
    parts = columns.constant - columns.weight * (r.square().log1p() if columns.student else r.square())
    return torch.where(x.isnan(), 0.0, parts).sum(-1)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("latent", "hidden", "m"),
    [(1, (), 1), (3, (16,), 7), (8, (128, 128), 20), (20, (100, 40, 24), 31), (33, (64,), 70), (70, (48, 8), 150)],
)
@pytest.mark.parametrize("student", [True, False])
def test_log_densities_are_those_of_the_definition(precision, latent, hidden, m, student):
    net, columns = network(latent, hidden, m), columns_of(m, student=student)
    for n, k in product((16, 48, 144), (1, 5, 64)):
        drawn, x = drawn_of(n, k, latent), rows_of(n, m)
        z = drawn.mean + drawn.scale * drawn.noise[:, None]
        log_px = plain_log_px(net, z, x, columns)
        log_q = -0.5 * drawn.noise.square().sum(-1, keepdim=True) - drawn.spread
        log_w = log_px - 0.5 * z.square().sum(-1) - log_q
        laid_out = Kernel(net, precision)
        found = laid_out.log_densities(drawn, x, columns)
        for got, wanted in zip(found, (log_px, log_w), strict=True):
            assert ((got - wanted).abs() / wanted.abs().clamp(min=1)).max() < NEAR[precision]
        assert ((laid_out.log_px(z, x, columns) - found[0]).abs() / log_px.abs().clamp(min=1)).max() < NEAR[precision]
        decoded = laid_out.decode(z.reshape(-1, latent))[:, :m] + net.linear.bias[:m]
        assert (decoded - net(z).view(-1, m)).abs().max() < NEAR[precision]


def any_columns(counts: str) -> tuple[MLP, TableLikelihood, AnyColumns]:
    likelihood = TableLikelihood(columns_of_every_kind(), continuous="student_t", counts=counts)
    net = network(6, (48, 32), likelihood.width)
    return net, likelihood, AnyColumns(net.linear.bias.clone(), Heads(likelihood, trained=False))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("counts", COUNTS)
def test_log_densities_of_columns_of_any_kind(precision, counts):
    net, likelihood, columns = any_columns(counts)
    exact, laid_out = copy.deepcopy(likelihood).double(), Kernel(net, precision)
    for n, k in product((16, 48, 144), (1, 5, 64)):
        drawn, x = drawn_of(n, k, 6), rows_of_every_kind(n)
        z = drawn.mean + drawn.scale * drawn.noise[:, None]
        log_px = exact.log_prob(net(z).double(), x.double()).sum(-1)
        log_q = -0.5 * drawn.noise.square().sum(-1, keepdim=True) - drawn.spread
        log_w = log_px - 0.5 * z.square().sum(-1) - log_q
        found = laid_out.log_densities(drawn, x, columns)
        for got, wanted in zip(found, (log_px, log_w), strict=True):
            assert ((got - wanted).abs() / wanted.abs().clamp(min=1)).max() < NEAR[precision]
        assert torch.equal(laid_out.log_px(z, x, columns), laid_out.log_px(z.flip(0), x, columns).flip(0))
        index = torch.arange(n, dtype=torch.int32) % k
        chosen = laid_out.chosen(drawn, x, columns, index)
        for got, wanted in zip(chosen, found, strict=True):
            assert torch.equal(got, wanted.gather(0, index.long()[None])[0])
        for rows in (slice(0, 16), torch.arange(n).flip(0)):
            part = Drawn(*(v[rows] for v in drawn[:3]), drawn.noise)
            for got, wanted in zip(laid_out.copy().log_densities(part, x[rows], columns), found, strict=True):
                assert torch.equal(got, wanted[:, rows])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_columns_that_do_not_fit_the_heads_are_refused(precision):
    net, _, columns = any_columns("zero_inflated")
    laid_out, drawn, x = Kernel(net, precision), drawn_of(16, 4, 6), rows_of_every_kind(16)
    with pytest.raises(ValueError, match="columns of all heads"):
        laid_out.log_densities(drawn, x[:, :7], columns)
    with pytest.raises(ValueError, match="bias must be"):
        laid_out.log_densities(drawn, x, columns._replace(bias=columns.bias[:-1]))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_has_the_same_bits_in_any_company(precision):
    columns, x, drawn = columns_of(20, student=True), rows_of(160, 20), drawn_of(160, 33, 8)
    laid_out = Kernel(network(8, (128, 40), 20), precision)
    whole = laid_out.log_densities(drawn, x, columns)
    for rows in (slice(0, 16), slice(16, 48), slice(144, 160), torch.arange(160).flip(0)):
        part = Drawn(*(v[rows] for v in drawn[:3]), drawn.noise)
        for got, wanted in zip(laid_out.copy().log_densities(part, x[rows], columns), whole, strict=True):
            assert torch.equal(got, wanted[:, rows])
    few = laid_out.log_densities(drawn._replace(noise=drawn.noise[5:6]), x, columns)[1]
    assert torch.equal(few[0], whole[1][5])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_far_cells_and_extreme_arguments_are_finite(precision):
    net = network(4, (32,), 3)
    net.layers[0].bias[:] = torch.linspace(-200, 200, 32)  # SiLU far to either side
    columns, drawn = columns_of(3, student=True), drawn_of(16, 4, 4)
    x = torch.full((16, 3), 1e12)
    x[8:] = torch.nan
    z = drawn.mean + drawn.scale * drawn.noise[:, None]
    got, wanted = Kernel(net, precision).log_px(z, x, columns), plain_log_px(net, z, x, columns)
    assert got.isfinite().all()
    assert ((got - wanted).abs() / wanted.abs().clamp(min=1)).max() < NEAR[precision]
    assert (got[:, 8:] == 0).all()
    y = Kernel(net, precision).decode(z.reshape(-1, 4))[:, :3] + net.linear.bias[:3]
    assert ((y - net(z).view(-1, 3)).abs() / net(z).view(-1, 3).abs().clamp(min=1)).max() < NEAR[precision]


def test_the_cells_of_an_activation_are_near_it():
    x = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    t = x * kernels.PER_UNIT
    n = t.clamp(-kernels.LAST_CELL, kernels.LAST_CELL).round()
    p = kernels._cells().double()[:, n.long() % 32]
    error = (p[0] + (t - n) * (p[1] + (t - n) * p[2]) - F.silu(x)).abs()
    assert error[x.abs() < 7.25].max() < 2.5e-4
    assert (error / x.abs())[x.abs() > 7.25].max() < 2**-10, "beyond: less than bfloat16 rounds its argument by"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_does_not_fit_is_refused_before_it_is_read(precision):
    laid_out, columns = Kernel(network(4, (16,), 7), precision), columns_of(7, student=True)
    drawn, x = drawn_of(16, 4, 4), rows_of(16, 7)
    with pytest.raises(ValueError, match="multiples of 16"):
        laid_out.decode(torch.zeros(24, 4))
    with pytest.raises(ValueError, match=r"inputs must be torch.float32 \(16, 4\), got torch.float64"):
        laid_out.decode(torch.zeros(16, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="inputs must be"):
        laid_out.decode(torch.zeros(16, 5))
    with pytest.raises(ValueError, match="mean must be"):
        laid_out.log_densities(drawn_of(32, 4, 4), x, columns)
    with pytest.raises(ValueError, match="noise must be"):
        laid_out.log_densities(drawn._replace(noise=torch.zeros(4, 3)), x, columns)
    with pytest.raises(ValueError, match="bias must be"):
        laid_out.log_densities(drawn, rows_of(16, 8), columns)
    with pytest.raises(ValueError, match="at most 16 columns"):
        laid_out.log_densities(drawn, rows_of(16, 17), columns_of(17, student=True))
    with pytest.raises(ValueError, match="multiples of 16"):
        laid_out.log_densities(drawn_of(8, 4, 4), rows_of(8, 7), columns)
    turned = rows_of(7, 16).T
    assert torch.equal(laid_out.log_densities(drawn, turned, columns)[0],
                       laid_out.log_densities(drawn, turned.contiguous(), columns)[0])  # fmt: skip


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_sample_of_each_row_is_one_of_all(precision):
    laid_out, columns = Kernel(network(8, (128,), 20), precision), columns_of(20, student=True)
    drawn, x = drawn_of(48, 33, 8), rows_of(48, 20)
    index = torch.randint(33, (48,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    for one, of_all in zip(
        laid_out.chosen(drawn, x, columns, index), laid_out.log_densities(drawn, x, columns), strict=True
    ):
        assert torch.equal(one, of_all.gather(0, index[None].long())[0])
    for outside in (-1, 33):
        with pytest.raises(ValueError, match="numbered from 0 to 32"):
            laid_out.chosen(drawn, x, columns, torch.full((48,), outside, dtype=torch.int32))


@pytest.mark.parametrize("precision", PRECISIONS[:1])
@pytest.mark.parametrize(("latent", "hidden", "m"), [(3, (), 2), (8, (128, 40), 20), (20, (64,), 33)])
def test_posteriors_are_those_of_torch(precision, latent, hidden, m):
    net, x = network(2 * m, hidden, 2 * latent), rows_of(48, m)
    x[0], x[1, 0], x[2, 0] = 1e12, torch.inf, -torch.inf
    bias = net.linear.bias + 0.0
    bias[latent] += 20.0  # past the limit
    entered = torch.cat([x.clamp(-10, 10).nan_to_num(0.0), x.isnan().float()], 1)
    y = net.out(F.silu(net.layers[0](entered))) if len(hidden) == 1 else net(entered) - net.linear.bias[: 2 * latent]
    if len(hidden) == 1:
        y = y + entered @ net.linear.weight.T
    y = y[:, : 2 * latent] + bias[: 2 * latent]
    log_scale = y[:, latent:].clamp(-7, 7)
    wanted = (y[:, :latent], log_scale, log_scale.exp(), log_scale.sum(-1))
    found = Kernel(net, precision).posteriors(x, bias, latent, bound=10.0, limit=7.0)
    for got, one in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, one, rtol=2e-5, atol=2e-5)
    part = Kernel(net, precision).posteriors(x[32:], bias, latent, bound=10.0, limit=7.0)
    assert all(torch.equal(got[32:], one) for got, one in zip(found, part, strict=True))
    with pytest.raises(ValueError, match="rows must be"):
        Kernel(net, precision).posteriors(x[:, 1:], bias, latent, bound=10.0, limit=7.0)
    with pytest.raises(ValueError, match="at most"):
        Kernel(net, precision).posteriors(x, bias, net.linear.out_features, bound=10.0, limit=7.0)


@pytest.mark.skipif(not compiled.precisions(), reason="no compiled code here")
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("k", [2, 16, 64, 1000])
def test_what_a_score_is_made_of_is_what_torch_makes(weighted, k):
    generator = torch.Generator().manual_seed(k)
    spread = torch.logspace(-1, 1.5, 48)
    log_w = torch.randn(k, 48, generator=generator) * spread - 30
    log_w[:, 0], log_w[-1, 1], log_w[0, 2] = -torch.inf, -torch.inf, torch.nan
    log_w[:, 3] = log_w[0, 3].clone()
    got = kernels.reduced(log_w, weighted=weighted)
    wanted = bounds.reduced(log_w.double(), weighted=weighted)
    assert got.shape == wanted.shape
    torch.testing.assert_close(got[:3], wanted[:3], rtol=2e-5, atol=2e-5, equal_nan=True)
    if weighted:
        torch.testing.assert_close(got[3:, 4:], wanted[3:, 4:], rtol=1e-3, atol=1e-4)
    assert torch.equal(kernels.reduced(log_w[:, 16:32], weighted=weighted), got[:, 16:32])


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("inputs", [1, 4])
def test_weights_are_copied(inputs):
    net = network(inputs, (16,), 7)
    fused, z = FusedMLP(net), torch.randn(16, inputs, generator=torch.Generator().manual_seed(0))
    before = fused.without_bias(z).clone()
    for p in net.parameters():
        p += 1
    assert torch.equal(fused.without_bias(z), before)


def test_networks_that_it_does_not_suit_are_left_to_torch(monkeypatch):
    wide = network(8, (512, 512), 8)
    assert kernel(wide, "float32") is None
    assert kernel(network(4, (16,), 7).double(), "float32") is None
    here = kernel(network(4, (16,), 7), "float32") is not None
    assert here == ("float32" in compiled.precisions())
    monkeypatch.setenv(compiled.SWITCH, "off")
    assert kernel(network(4, (16,), 7), "float32") is None


def test_code_of_another_form_is_left_alone(monkeypatch):
    monkeypatch.setattr(compiled, "FORM", -1)
    compiled.library.cache_clear()
    compiled.precisions.cache_clear()
    try:
        assert compiled.precisions() == ()
        assert kernel(network(4, (16,), 7), "float32") is None
    finally:
        compiled.library.cache_clear()
        compiled.precisions.cache_clear()


def test_the_sources_compile_without_a_warning_and_says_the_form(tmp_path):
    sources, into = [str(Path(kernels.__file__).with_name(name)) for name in SOURCES], tmp_path / "compiled.so"
    try:
        subprocess.run(["cc", "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no C compiler")
    if sys.platform != "linux":
        pytest.skip("written for Linux")
    done = subprocess.run(
        ["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(into), *sources],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ctypes.CDLL(str(into)).form() == compiled.FORM
