"""Scores of images: exact parts, errors, batch invariance, calibration, and what plain likelihood gets wrong."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture

from anomaly_vae import AnomalyDetector, Detector, ImageConfig, TrainConfig, fit_detector
from anomaly_vae.data.images import frame_of
from anomaly_vae.detection import artifact, complexity
from anomaly_vae.detection.adaptive import log_likelihoods
from anomaly_vae.detection.image_scores import IMAGE_SCORES, STATISTICS, components_for, score_images, statistics
from anomaly_vae.detection.regret import likelihood_regret
from anomaly_vae.detection.scores import IMAGE_ROWS
from anomaly_vae.detection.statistics import StatisticsDensity
from anomaly_vae.errors import ArtifactError, ConfigError, SchemaError
from anomaly_vae.models import bounds, refinement
from anomaly_vae.models.subspace import tones
from anomaly_vae.options import IMAGE_SCORE_KINDS
from tests.conftest import IMAGE_CONFIG, digit_images


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return digit_images()[0]


def test_settings_and_scores_agree() -> None:
    assert set(IMAGE_SCORES) == set(IMAGE_SCORE_KINDS)


@pytest.mark.parametrize("kind", IMAGE_SCORES)
@pytest.mark.parametrize("k", [1, 4])
def test_an_image_scores_the_same_bits_in_any_company(image_detector: Detector, images, kind, k) -> None:
    x = image_detector.encode(frame_of(images[:150]))
    noise = image_detector.noise[:k]

    def score(rows: torch.Tensor) -> np.ndarray:
        return score_images(image_detector.model, rows, noise=noise, kind=kind, density=image_detector.statistics).value

    all_at_once, alone = score(x), np.concatenate([score(x[i : i + 1]) for i in range(0, 150, 10)])
    assert (alone == all_at_once[::10]).all()
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    assert (score(x[order]) == all_at_once[order.numpy()]).all()


def test_few_images_do_not_cost_what_many_do(image_detector: Detector, images) -> None:
    seen: list[int] = []
    hook = image_detector.model.encoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    try:
        image_detector.score_frame(frame_of(images[:1]))
        assert sum(seen) == IMAGE_ROWS
        seen.clear()
        image_detector.score_frame(frame_of(images[:70]))
        assert sum(seen) == 3 * IMAGE_ROWS
    finally:
        hook.remove()


def test_log_likelihoods_come_by_posteriors_of_their_own(image_detector: Detector, images, monkeypatch) -> None:
    """The encoder's samples are low, by more than they say; those of own posteriors agree within their errors."""
    monkeypatch.setattr(refinement, "PIXELS", 8 * 64 * refinement.SAMPLES)
    frame = frame_of(images[:8])
    own = image_detector.estimate_log_likelihood(frame, mc_se=0.2)
    assert own.reached.all()
    x, model = image_detector.encode(frame), image_detector.model
    again = log_likelihoods(model, x, mc_se=0.2, seed=77)
    assert (np.abs(own.value - again.value) < 3 * np.hypot(own.mc_se, again.mc_se)).mean() > 0.8
    encoders = log_likelihoods(model, x, mc_se=0.2, own_posteriors=False)
    assert (own.value - encoders.value).mean() > 0.2
    assert encoders.k.mean() > 2 * own.k.mean()


def test_corrected_is_the_elbo_less_a_perfect_reconstruction(image_detector: Detector, images) -> None:
    model, x = image_detector.model, image_detector.encode(frame_of(images[:20]))
    noise = image_detector.noise[:4]
    with torch.no_grad():
        plain = bounds.elbo(bounds.terms(model, x, noise).log_weights) - model.best(x).sum(1)
    scores = score_images(model, x, noise=noise, kind="corrected")
    assert scores.value == pytest.approx(-plain.numpy(), abs=2e-3)


def test_the_first_statistics_are_those_of_the_bounds(image_detector: Detector, images) -> None:
    model, x = image_detector.model, image_detector.encode(frame_of(images[:20]))
    values, samples = statistics(model, x, noise=image_detector.noise[:4])
    assert values == pytest.approx(samples.mean(0))
    with torch.no_grad():
        t = bounds.terms(model, x, image_detector.noise[:4])
    assert values[:, STATISTICS.index("kl")] == pytest.approx(bounds.kl(t).numpy(), abs=1e-3)


def test_tones_are_an_images_levels_in_order_wherever_they_lie() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (20, 3 * 8 * 12), dtype=np.uint8)
    got = tones(torch.from_numpy(x), (3, 8, 12)).view(20, 3, -1)
    ordered = np.sort(x.reshape(20, 3, 96), axis=2) / 255
    assert got[:, :, :32].numpy() == pytest.approx(ordered.reshape(20, 3, 32, 3).mean(3), abs=1e-6)
    assert got[:, :, 32:].numpy() == pytest.approx(ordered[:, :, [0, -1]], abs=1e-6)
    moved = rng.permuted(x.reshape(20, 3, 96), axis=2).reshape(20, -1)
    assert torch.equal(tones(torch.from_numpy(moved), (3, 8, 12)).view(20, 3, -1), got)
    assert tones(torch.zeros(2, 9, dtype=torch.uint8), (1, 3, 3)).shape == (2, 34), "fewer pixels than tones"


def test_the_density_of_tones_is_both_parts_in_one(image_detector: Detector, images) -> None:
    model, x = image_detector.model, image_detector.encode(frame_of(images[:100]))
    mixture, features = model.companions["tones"], tones(x, model.shape)
    within, left = mixture.statistics(features).T
    y = (features - mixture.mean) @ mixture.directions
    beyond = (features - mixture.mean - y @ mixture.directions.T).square().sum(1)
    dimensions = features.shape[1] - mixture.directions.shape[1]
    whole = within - dimensions / 2 * (beyond.double() + 1e-3).log()
    values = statistics(model, x, noise=image_detector.noise[:4])[0]
    assert values[:, STATISTICS.index("tone_density")] == pytest.approx(whole.numpy(), rel=1e-4)
    assert left.numpy() == pytest.approx((beyond.double() + 1e-3).log().numpy(), abs=1e-3)


def test_images_at_half_contrast_are_found(image_detector: Detector, images) -> None:
    fresh = images[-300:]
    scores = [image_detector.score_frame(frame_of(x))["anomaly_score"] for x in (fresh, fresh // 2)]
    assert roc_auc_score(np.arange(600) >= 300, np.concatenate(scores)) > 0.98
    named = image_detector.score_frame(frame_of(fresh // 2), explain=1)["attributions"].map(json.loads)
    assert np.mean([text[0]["column"] == "tone_density" for text in named]) > 0.5


@pytest.mark.parametrize("kind", ["statistics", "corrected", "elbo"])
def test_reasons_sum_to_the_score(images, image_detector: Detector, kind) -> None:
    from dataclasses import replace

    detector = replace(image_detector, config=replace(IMAGE_CONFIG, score_kind=kind))
    scored = detector.score_frame(frame_of(images[:12]), explain=3)
    for score, text in zip(scored["anomaly_score"], scored["attributions"], strict=True):
        parts = json.loads(text)
        assert sum(part["nats"] for part in parts) == pytest.approx(score, abs=1e-4 * max(1, abs(score)))
        assert parts[0]["nats"] == max(part["nats"] for part in parts[:3])
        assert {"value", "expected"} <= set(parts[0])


def test_heat_maps_and_the_latent_part_are_the_corrected_score(image_detector: Detector, images) -> None:
    frame = frame_of(images[:8])
    maps = image_detector.heat_maps(frame)
    assert maps.shape == (8, 8, 8)
    k = image_detector.config.k
    corrected = image_detector.log_likelihood(frame, k=k, kind="corrected").value
    x = image_detector.encode(frame)
    with torch.no_grad():
        kl = bounds.kl(bounds.terms(image_detector.model, x, image_detector.noise[:k])).numpy()
    assert maps.sum((1, 2)) + kl == pytest.approx(corrected, abs=5e-3)


def test_a_heat_map_shows_where_an_image_was_damaged(image_detector: Detector, images) -> None:
    whole = images[40:80]
    damaged = whole.copy()
    damaged[:, 0, 0] = 255  # no digit reaches this corner
    added = image_detector.heat_maps(frame_of(damaged)) - image_detector.heat_maps(frame_of(whole))
    hottest = added.reshape(len(added), -1).argmax(1)
    assert (hottest == 0).mean() > 0.9


def test_the_error_is_that_of_other_noise(image_detector: Detector, images) -> None:
    x = image_detector.encode(frame_of(images[:60]))
    generator = torch.Generator().manual_seed(5)
    found = [
        score_images(
            image_detector.model,
            x,
            noise=torch.randn(16, image_detector.model.latent, generator=generator),
            kind="statistics",
            density=image_detector.statistics,
        )
        for _ in range(30)
    ]
    spread = np.std([f.value for f in found], axis=0, ddof=1)
    stated = np.mean([f.mc_se for f in found], axis=0)
    assert 0.7 < np.median(spread / stated) < 1.4


def test_a_digit_never_seen_is_stranger_than_the_others(image_detector: Detector) -> None:
    images, digit = digit_images()
    order = np.random.default_rng(0).permutation(len(images))[:700]
    scored = image_detector.score_frame(frame_of(images[order]))
    assert roc_auc_score(digit[order] == 3, scored["anomaly_score"]) > 0.75
    noise = np.random.default_rng(0).integers(0, 256, (100, 8, 8), dtype=np.uint8)
    assert image_detector.score_frame(frame_of(noise))["is_anomaly"].mean() > 0.95


def test_saved_and_loaded_it_scores_the_same_bits(image_detector: Detector, images, tmp_path) -> None:
    image_detector.save(tmp_path / "model")
    loaded = Detector.load(tmp_path / "model")
    assert loaded.digest == image_detector.digest
    frame = frame_of(images[:30])
    assert (loaded.score_frame(frame)["anomaly_score"] == image_detector.score_frame(frame)["anomaly_score"]).all()
    assert not [p for p in (tmp_path / "model").iterdir() if p.suffix not in (".json", ".safetensors")]


def test_another_compressor_is_refused(image_detector: Detector, tmp_path, monkeypatch) -> None:
    image_detector.save(tmp_path / "model")
    monkeypatch.setattr(artifact, "COMPRESSOR", "zlib 9.9.9")
    with pytest.raises(ArtifactError, match=r"compressor.*got zlib 9\.9\.9"):
        Detector.load(tmp_path / "model")


def test_the_estimator_takes_arrays_of_images(images) -> None:
    clf = AnomalyDetector(IMAGE_CONFIG, random_state=0).fit(images[:300])
    assert clf.predict(images[300:310]).shape == (10,)
    assert clf.score_samples(images[300:304] / 255.0) == pytest.approx(clf.score_samples(images[300:304]), abs=1e-6)
    with pytest.raises(SchemaError, match=r"\[0, 1\]"):
        clf.score_samples(images[:2] * 1.5)


def test_settings_of_the_other_kind_are_refused(images) -> None:
    with pytest.raises(ConfigError, match="ImageConfig"):
        fit_detector(images, TrainConfig())
    with pytest.raises(ConfigError, match="TrainConfig"):
        fit_detector(frame_of(images).assign(other=1), ImageConfig())


def test_one_image_is_refused(images) -> None:
    with pytest.raises(SchemaError, match="at least 10"):
        fit_detector(images[:1], IMAGE_CONFIG)


def test_compressed_length_is_that_of_the_filtered_rows() -> None:
    rng = np.random.default_rng(0)
    smooth = np.tile(np.arange(16, dtype=np.uint8) * 3, (1, 16, 1))
    noise = rng.integers(0, 256, (1, 16, 16), dtype=np.uint8)
    lengths = complexity.compressed_nats(np.concatenate([smooth, noise]).reshape(2, -1), (1, 16, 16))
    assert lengths[0] < 0.3 * lengths[1]
    assert lengths[1] >= len(zlib.compress(noise.tobytes(), 9)) * 0.9 * 8 * np.log(2)


def test_the_density_is_the_mixture_and_its_parts_sum() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=(300, 3)), rng.normal(5, 0.5, size=(200, 3))]) * [1, 50, 1e-3]
    density = StatisticsDensity.fitted(values, components=2, seed=0)
    z = (values - density.center) / density.scale
    oracle = GaussianMixture(2, reg_covar=1e-3, random_state=0).fit(z)
    assert density.log_prob(values) == pytest.approx(oracle.score_samples(z) - np.log(density.scale).sum())
    parts, rest, _ = density.split(values)
    assert parts.sum(1) + rest == pytest.approx(-density.log_prob(values))
    step = 1e-6 * density.scale
    for i in range(3):
        moved = np.zeros(3)
        moved[i] = step[i]
        slope = (density.log_prob(values + moved) - density.log_prob(values - moved)) / (2 * step[i])
        assert density.gradient(values)[:, i] * density.scale[i] == pytest.approx(slope * density.scale[i], abs=1e-3)


def test_one_component_is_a_normal_density() -> None:
    values = np.random.default_rng(1).normal(size=(40, 2))
    density = StatisticsDensity.fitted(values, components=1, seed=0)
    z = (values - density.center) / density.scale
    covariance = np.cov(z.T, ddof=0) + 1e-3 * np.eye(2)
    wanted = multivariate_normal(z.mean(0), covariance).logpdf(z) - np.log(density.scale).sum()
    assert density.log_prob(values) == pytest.approx(wanted)


def test_more_held_out_images_make_a_finer_density(image_detector: Detector) -> None:
    assert [components_for(n) for n in (10, 99, 100, 180, 600, 1200, 6000)] == [1, 1, 2, 3, 4, 8, 12]
    assert len(image_detector.statistics.means) == 3, "180 images were held out"


def test_regret_is_positive_and_greater_for_what_was_never_seen(image_detector: Detector, images) -> None:
    noise = image_detector.noise[:1]
    strange = np.random.default_rng(0).integers(0, 256, (16, 8, 8), dtype=np.uint8)
    regrets = [
        likelihood_regret(image_detector.model, image_detector.encode(frame_of(some)), noise=noise, steps=20)
        for some in (images[:16], strange)
    ]
    assert (np.concatenate(regrets) >= 0).all()
    assert np.median(regrets[1]) > np.median(regrets[0])


def test_a_detector_computes_where_it_is_told(image_detector: Detector, images) -> None:
    here = image_detector.on("cpu")
    assert here.model is not image_detector.model
    assert here.digest == image_detector.digest
    frame = frame_of(images[:5])
    assert here.score_frame(frame).anomaly_score.tolist() == image_detector.score_frame(frame).anomaly_score.tolist()
    absent = next(name for name in ("cuda", "mps") if name != here.device.type and not _present(name))
    with pytest.raises(ConfigError, match=f"got '{absent}'"):
        image_detector.on(absent)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_scores(image_detector: Detector, images) -> None:
    frame = frame_of(images[:100])
    there = image_detector.on("cuda")
    for kind in IMAGE_SCORES:
        ours, theirs = (d.log_likelihood(frame, k=4, kind=kind).value for d in (image_detector, there))
        # a density of statistics that are close to dependent multiplies their rounding
        bound = 1e-2 if kind == "statistics" else 1e-3
        assert theirs == pytest.approx(ours, rel=1e-5, abs=bound), kind
    assert there.heat_maps(frame) == pytest.approx(image_detector.heat_maps(frame), abs=1e-2)


def _present(name: str) -> bool:
    return torch.cuda.is_available() if name == "cuda" else torch.backends.mps.is_available()


def test_steps_by_default_grow_with_the_images() -> None:
    assert [ImageConfig().steps_for(n) for n in (100, 64_000, 128_000, 10**8)] == [1000, 1000, 2000, 20_000]
    assert ImageConfig(steps=7).steps_for(10**6) == 7
    assert TrainConfig().steps_for(10) == 2000
