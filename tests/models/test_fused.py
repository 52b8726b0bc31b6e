"""The fast form of the log densities against the plain one, and its reduced precision."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from anomaly_vae import Detector, TrainConfig, fit_detector
from anomaly_vae.data.schema import Schema
from anomaly_vae.detection.scores import ONE_OF, SCORES, score_rows, split_scores
from anomaly_vae.models import bounds
from anomaly_vae.models.fused import FusedEnsemble, FusedVAE
from anomaly_vae.models.vae import VAE
from anomaly_vae.options import CONTINUOUS, PRIORS
from tests.conftest import low_rank_rows, mixed_frame

pytestmark = pytest.mark.usefixtures("arithmetic")
CONFIG = TrainConfig(latent=3, hidden=(24, 40), steps=150, device="cpu")


def continuous_frame(n: int, seed: int = 0) -> pd.DataFrame:
    frame = pd.DataFrame(low_rank_rows(1000, 7, rank=2, noise=0.3)[seed * 40 :][:n].numpy()).add_prefix("x")
    return frame.mask(np.random.default_rng(seed).random(frame.shape) < 0.05)


def untrained(frame: pd.DataFrame, config: TrainConfig) -> tuple[VAE, torch.Tensor]:
    """A model whose hidden layers, which start at zero, count."""
    schema = Schema.fit(frame)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VAE(schema.modelled, config).eval().requires_grad_(False)
        for network in (model.encoder, model.decoder):
            if network.out is not None:
                network.out.weight.normal_(std=0.1)
    return model, torch.from_numpy(schema.encode(frame))


@pytest.mark.parametrize("kind", ["continuous", "mixed"])
@pytest.mark.parametrize(("score_beta", "both"), [(1.0, False), (0.5, False), (1.0, True), (0.3, True)])
def test_an_ensembles_densities_are_the_plain_ones(kind, score_beta, both):
    frame = mixed_frame(64) if kind == "mixed" else continuous_frame(64)
    model, x = untrained(frame, dataclasses.replace(CONFIG, score_beta=score_beta))
    if both:
        model.second = copy.deepcopy(model)
        for p in model.second.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    terms = [bounds.terms(one, x, noise) for one in ([model, model.second] if both else [model])]
    wanted_px = torch.stack([t.log_px for t in terms]).mean(0)
    kl = torch.stack([t.log_px.sum(-1) - t.log_weights for t in terms]).mean(0)
    fused = FusedEnsemble(model)
    rows = fused.rows(x)
    log_px, w = (t.clone() for t in fused.log_densities(rows, noise))
    torch.testing.assert_close(log_px, wanted_px.sum(-1), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(w, wanted_px.sum(-1) - score_beta * kl, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(fused.log_px(rows, noise), wanted_px, rtol=1e-4, atol=1e-3)
    part = fused.log_densities(rows.part(slice(16, 32)), noise)[1]
    torch.testing.assert_close(part, w[:, 16:32], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("continuous", [*CONTINUOUS, "mixed"])
@pytest.mark.parametrize("hidden", [(), (24,), (24, 40)])
def test_fused_densities_are_the_plain_ones(prior, continuous, hidden):
    frame = mixed_frame(64) if continuous == "mixed" else continuous_frame(64)
    config = dataclasses.replace(
        CONFIG, prior=prior, hidden=hidden, continuous="student_t" if continuous == "mixed" else continuous
    )
    model, x = untrained(frame, config)
    noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    wanted = bounds.terms(model, x, noise)
    fused = FusedVAE(model)
    assert (fused.summed is not None) == (continuous != "mixed")
    rows = fused.rows(x)
    log_px, log_w = (t.clone() for t in fused.log_densities(rows, noise))
    size = wanted.log_weights.abs().clamp(min=1.0)
    assert ((log_px - wanted.log_px.sum(-1)).abs() / size).max() < 1e-5
    assert ((log_w - wanted.log_weights).abs() / size).max() < 1e-5
    torch.testing.assert_close(fused.log_px(rows, noise), wanted.log_px, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fused.codes(rows, noise), wanted.z, rtol=1e-5, atol=1e-5)
    again = fused.log_densities(rows, noise)
    assert torch.equal(again[0], log_px), "buffers carry nothing over from call to call"


@pytest.fixture(scope="module", params=["continuous", "mixed"])
def pair(request: pytest.FixtureRequest) -> tuple[Detector, VAE, torch.Tensor]:
    """A detector, its model in bfloat16, and rows."""
    make = continuous_frame if request.param == "continuous" else mixed_frame
    detector = fit_detector(make(600), dataclasses.replace(CONFIG, steps=400)).detector
    half = copy.deepcopy(detector.model)
    half.precision = "bf16"
    return detector, half.eval().requires_grad_(False), detector.encode(make(300, seed=9))


@pytest.mark.parametrize("k", [1, 16, 64, 70])
@pytest.mark.parametrize("kind", SCORES)
def test_bf16_scores_are_near_and_the_same_bits_in_any_company(pair, kind, k):
    detector, half, x = pair
    noise = detector._noise(k)
    full = score_rows(detector.model, x, noise=noise, kind=kind).value
    whole = score_rows(half, x, noise=noise, kind=kind).value
    assert not np.array_equal(full, whole)
    assert np.quantile(np.abs(whole - full), 0.99) < (0.05 if k > 1 else 0.1)
    alone = np.concatenate([score_rows(half, x[i : i + 1], noise=noise, kind=kind).value for i in range(20)])
    np.testing.assert_array_equal(whole[:20], alone)
    for size in (7, 64, 299):
        parts = [score_rows(half, part, noise=noise, kind=kind).value for part in x.split(size)]
        np.testing.assert_array_equal(whole, np.concatenate(parts))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(whole[order], score_rows(half, x[order], noise=noise, kind=kind).value)


@pytest.mark.parametrize("k", [16, 64])
def test_a_bf16_likelihood_has_the_sample_of_largest_weight_in_float32(pair, k, monkeypatch):
    detector, half, x = pair
    noise = detector._noise(k)
    continuous = torch.tensor([column.kind == "continuous" for column in half.described])
    x = x + 3.0 * continuous * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))  # few samples count
    full = score_rows(detector.model, x, noise=noise, kind="likelihood").value
    errors = []
    for one_of in (ONE_OF, k + 1):
        monkeypatch.setattr("anomaly_vae.detection.scores.ONE_OF", one_of)
        errors.append(np.quantile(np.abs(score_rows(half, x, noise=noise, kind="likelihood").value - full), 0.99))
    assert errors[0] < 0.7 * errors[1]


def test_noise_may_be_a_rows_own(pair):
    detector, _, x = pair
    fused, noise = FusedVAE(detector.model), detector._noise(3)
    rows = fused.rows(x[:64])
    wanted = [part.clone() for part in fused.log_densities(rows, noise)]
    for got, one in zip(fused.log_densities(rows, noise[:, None].expand(-1, 64, -1)), wanted, strict=True):
        torch.testing.assert_close(got, one)


@pytest.mark.parametrize("kind", SCORES)
def test_bf16_parts_sum_to_the_score(pair, kind):
    detector, half, x = pair
    noise = detector._noise(16)
    score = score_rows(half, x, noise=noise, kind=kind).value
    parts = split_scores(half, x, noise=noise, kind=kind)
    total = parts.columns.sum(1) + parts.latent + parts.dependence
    assert np.max(np.abs(total - score) / np.maximum(1, np.abs(score))) < 1e-5


def test_a_bf16_detector_is_calibrated_saved_and_loaded_as_one(tmp_path):
    config = dataclasses.replace(CONFIG, precision="bf16")
    detector = fit_detector(continuous_frame(400), config).detector
    assert detector.model.precision == "bf16"
    detector.save(tmp_path / "m")
    again = Detector.load(tmp_path / "m")
    rows = continuous_frame(50, seed=3)
    pd.testing.assert_frame_equal(again.score_frame(rows, explain=2), detector.score_frame(rows, explain=2))
    assert again.digest == detector.digest
    assert again.digest != fit_detector(continuous_frame(400), CONFIG).detector.digest
