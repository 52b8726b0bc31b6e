"""Compiled steps of training against the gradient in float64 and against torch's AdamW."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from anomaly_vae import TrainConfig
from anomaly_vae.data.schema import Column
from anomaly_vae.models import bounds, compiled
from anomaly_vae.models.gradients import FlatParameters, WrittenOutGradient, written_out
from anomaly_vae.models.steps import LARGEST, CompiledGradient, descend
from anomaly_vae.models.vae import VAE
from anomaly_vae.options import CONTINUOUS, COUNTS
from tests.conftest import columns_of_every_kind, rows_of_every_kind

pytestmark = pytest.mark.skipif(not compiled.precisions(), reason="no compiled code here")


@pytest.fixture(autouse=True)
def _switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiled.SWITCH, raising=False)


def vae_of(m: int, config: TrainConfig) -> VAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VAE([Column(name=f"x{j}", kind="continuous", dtype="float64", scale=1.0 + j) for j in range(m)], config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5 / parameter.shape[-1] ** 0.5)
        if m > 1:
            with torch.no_grad():
                model.encoder.linear.bias[model.latent] = 9.0  # beyond the bound, where the gradient is none
    return model


def batch_of(model: VAE, b: int, k: int) -> tuple[torch.Tensor, ...]:
    """What a step is given of b rows, some cells of which are missing, and k samples of each."""
    generator = torch.Generator().manual_seed(b)
    x = 2 * torch.randn(b, model.columns, generator=generator)
    x = x.masked_fill(torch.rand(x.shape, generator=generator) < 0.2, torch.nan)
    entered = model.input(x)
    entered = entered + 0.1 * torch.randn(entered.shape, generator=generator)
    noise = torch.randn(k, b, model.latent, generator=generator)
    return x.nan_to_num(0.0), (~x.isnan()).float(), entered, noise


@pytest.mark.parametrize("continuous", CONTINUOUS)
@pytest.mark.parametrize(
    ("m", "latent", "hidden"),
    [(1, 1, ()), (5, 3, (20,)), (9, 2, (128, 64, 32)), (20, 17, (48, 16)), (33, 32, (112,)), (150, 16, (16, 80))],
)
def test_it_is_the_gradient_in_float64(continuous, m, latent, hidden):
    model = vae_of(m, TrainConfig(latent=latent, hidden=hidden, continuous=continuous))
    exact = copy.deepcopy(model).double()
    flats = [FlatParameters(list(some.parameters())) for some in (model, exact)]
    for b, k, beta, weighted in ((5, 3, 1.0, 0), (32, 1, 0.3, 0), (49, 2, 0.0, 1), (100, 1, 1.0, 1), (1, 1, 1.0, 0)):
        batch, weights = batch_of(model, b, k), torch.linspace(0, 2, b) if weighted else None
        assert CompiledGradient.serves(model, b * k)
        for flat in flats:
            flat.gradient.fill_(torch.nan)  # which must all be overwritten
        got = CompiledGradient(model)(*batch, beta=beta, weights=weights)
        wide = None if weights is None else weights.double()
        wanted = WrittenOutGradient(exact, 1)(*(part.double() for part in batch), beta=beta, weights=wide)
        for mine, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-4)
        for (name, p), other in zip(model.named_parameters(), exact.parameters(), strict=True):
            error, size = (p.grad.double() - other.grad).abs().max(), other.grad.abs().max()
            assert error <= 2e-5 * size, f"{name} of {b} rows: off by {error:.1e} of {size:.1e}"


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("chosen", [range(8), [0], [3, 3], [2], [4, 7, 5], [1, 0]])
def test_of_any_columns_it_is_the_gradient_of_autograd_in_float64(counts, chosen):
    columns = [dataclasses.replace(columns_of_every_kind()[c], name=f"{i}") for i, c in enumerate(chosen)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = VAE(columns, TrainConfig(latent=4, hidden=(32, 16), counts=counts))
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(
                parameter, mean=-1.0 if "noise" in name else 0.0, std=0.6 / parameter.shape[-1] ** 0.5
            )
    exact = copy.deepcopy(model).double()
    FlatParameters(list(model.parameters()))
    for b, k, beta in ((64, 1, 1.0), (37, 3, 0.4)):
        x, generator = rows_of_every_kind(b)[:, list(chosen)], torch.Generator().manual_seed(k)
        noise, weights = torch.randn(k, b, 4, generator=generator), torch.linspace(0, 2, b)
        entered = model.input(x)
        assert isinstance(written_out(model, "elbo", b * k), CompiledGradient)
        got = CompiledGradient(model)(
            x.nan_to_num(0.0), (~x.isnan()).float(), entered, noise, beta=beta, weights=weights
        )
        t = bounds.terms(exact, x.double(), noise.double(), posterior=exact.encoded(entered.double()))
        loss = -bounds.beta_elbo(t, beta) * weights
        wanted = torch.autograd.grad(loss.mean(), list(exact.parameters()))
        for mine, theirs in zip(got, (loss, bounds.kl(t), bounds.reconstruction(t)), strict=True):
            torch.testing.assert_close(mine.double(), theirs.detach(), rtol=2e-5, atol=1e-3)
        for (name, p), right in zip(model.named_parameters(), wanted, strict=True):
            error, size = (p.grad.double() - right).abs().max(), right.abs().max()
            assert error <= 5e-5 * size, f"{name} of {b} rows: off by {error:.1e} of {size:.1e}"


def test_rows_that_are_far_or_empty_have_finite_gradients():
    model = vae_of(70, TrainConfig(latent=8, hidden=(32,)))
    flat = FlatParameters(list(model.parameters()))
    filled, observed, entered, noise = batch_of(model, 40, 1)
    filled[:5] = 1e12
    observed[5:9] = 0.0
    loss, kl, reconstruction = CompiledGradient(model)(filled, observed, entered, noise, beta=1.0)
    assert all(part.isfinite().all() for part in (loss, kl, reconstruction, flat.gradient))
    assert (reconstruction[5:9] == 0).all()


def test_what_is_not_finite_is_said_by_the_loss():
    model = vae_of(5, TrainConfig(latent=3, hidden=(16,)))
    FlatParameters(list(model.parameters()))
    filled, observed, entered, noise = batch_of(model, 40, 1)
    entered[7, 1] = torch.nan
    loss, *_ = CompiledGradient(model)(filled, observed, entered, noise, beta=1.0)
    assert loss.isnan().nonzero().ravel().tolist() == [7]


def test_what_does_not_fit_is_refused():
    model = vae_of(5, TrainConfig(latent=3, hidden=(16,)))
    flat = FlatParameters(list(model.parameters()))
    gradient, (filled, observed, entered, noise) = CompiledGradient(model), batch_of(model, 40, 2)
    for name, parts in {
        "filled": (filled[:, :4], observed, entered, noise),
        "observed": (filled, observed[:39], entered, noise),
        "entered": (filled, observed, entered.double(), noise),
        "noise": (filled, observed, entered, noise[:, :, :2]),
    }.items():
        with pytest.raises(ValueError, match=rf"^{name} must be torch.float32"):
            gradient(*parts, beta=1.0)
    with pytest.raises(ValueError, match=r"^weights must be torch.float32"):
        gradient(filled, observed, entered, noise, beta=1.0, weights=torch.ones(39))
    assert (flat.gradient == 0).all()


def test_it_serves_what_it_suits(monkeypatch):
    model = vae_of(5, TrainConfig(latent=3, hidden=(16,)))
    FlatParameters(list(model.parameters()))
    assert isinstance(written_out(model, "elbo", 32), CompiledGradient)
    assert written_out(model, "iwae", 32) is None
    wide = VAE(model.described, TrainConfig(hidden=(512, 512)))
    assert sum(p.numel() for p in wide.parameters()) > LARGEST
    assert not CompiledGradient.serves(wide, 32)
    assert not CompiledGradient.serves(model, 1 << 26)
    assert not CompiledGradient.serves(copy.deepcopy(model).double(), 32)
    monkeypatch.setenv(compiled.SWITCH, "off")
    assert isinstance(written_out(model, "elbo", 32), WrittenOutGradient)


@pytest.mark.parametrize("n", [2, 63, 1000])
@pytest.mark.parametrize("norm", [0.1, 1e6])
def test_descent_is_that_of_adamw(n, norm):
    generator = torch.Generator().manual_seed(n)
    start = torch.randn(n, generator=generator)
    mine, wanted = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.double())
    settings = {"lr": 0.01, "weight_decay": 0.1}
    ours, theirs = (torch.optim.AdamW([p], fused=True, **settings) for p in (mine, wanted))
    for step in range(50):
        gradient = torch.randn(n, generator=generator) * 10.0 ** (step % 7 - 3)
        gradient[::3] = 0.0
        if step % 5 == 4:
            gradient[1::3] = 1e-30
        wanted.grad = gradient.double()
        torch.nn.utils.clip_grad_norm_([wanted], norm)
        theirs.step()
        mine.grad = gradient.clone()
        if step == 0:
            torch.nn.utils.clip_grad_norm_([mine], norm)
            ours.step()
        else:
            with torch.no_grad():
                descend(mine.detach(), mine.grad, ours.state[mine], ours.param_groups[0], norm=norm)
    torch.testing.assert_close(mine.double(), wanted, rtol=1e-5, atol=1e-6)
    assert ours.state[mine]["step"] == 50
    for name in ("exp_avg", "exp_avg_sq"):
        got, right = ours.state[mine][name].double(), theirs.state[wanted][name]
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-6 * float(right.abs().max()))
    assert (mine - start).abs().max() > 0.01
