"""On a CUDA device the same models train, and what they give is used on the processor afterwards."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from anomaly_vae import Detector, ImageConfig, TrainConfig, fit_detector, training
from anomaly_vae.data.images import frame_of
from anomaly_vae.debiasing.in_training import InTrainingWeights
from tests.conftest import digit_images, mixed_frame
from tests.test_training import fresh

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TABLE = TrainConfig(device="cuda", steps=300, hidden=(32,), learning_rate=0.01, patience=100)
IMAGES = ImageConfig(device="cuda", steps=300, channels=16, batch_size=64)


@pytest.mark.parametrize("change", [{}, {"prior": "exemplars"}, {"objective": "iwae", "train_k": 5}], ids=str)
def test_a_table_is_learned_as_well_as_on_the_processor(change) -> None:
    config, ends = dataclasses.replace(TABLE, **change), []
    for device in ("cpu", "cuda"):
        model, x, held = fresh(config, rows=600)
        placed = dataclasses.replace(config, device=device)
        ends.append(max(e.validation_elbo for e in training.fit(model, x, validation=held, config=placed)))
    assert ends[1] == pytest.approx(ends[0], abs=0.3)


def test_a_detector_of_a_table_is_used_on_the_processor(tmp_path: Path) -> None:
    detector = fit_detector(mixed_frame(600), TABLE).detector
    assert detector.device.type == "cpu"
    rows = mixed_frame(200, seed=1)
    strange = rows.assign(height=rows.height.sample(frac=1, random_state=0).to_numpy() + 60)
    scores = [detector.score_frame(frame, explain=2).anomaly_score.to_numpy() for frame in (rows, strange)]
    assert roc_auc_score(np.repeat([0, 1], 200), np.concatenate(scores)) > 0.95
    detector.save(tmp_path / "detector")
    assert np.array_equal(Detector.load(tmp_path / "detector").score_frame(rows).anomaly_score, scores[0])


@pytest.mark.parametrize("change", [{}, {"model": "ladder"}, {"prior": "exemplars"}], ids=str)
def test_images_are_learned_and_scored_there(change, tmp_path: Path) -> None:
    images, digit = digit_images()
    detector = fit_detector(images[digit != 3][:1000], dataclasses.replace(IMAGES, **change)).detector
    normal, strange = images[digit != 3][1000:1300], 255 - images[digit != 3][1000:1300]
    there = detector.on("cuda")
    a, b = (there.score_frame(frame_of(x)).anomaly_score.to_numpy() for x in (normal, strange))
    assert roc_auc_score(np.repeat([0, 1], 300), np.concatenate([a, b])) > 0.95
    here = detector.score_frame(frame_of(normal)).anomaly_score.to_numpy()
    assert a == pytest.approx(here, rel=1e-4, abs=1e-2)
    few = frame_of(normal[:4])
    one, other = (placed.estimate_log_likelihood(few, mc_se=0.3) for placed in (there, detector))
    assert (np.abs(one.value - other.value) < 4 * np.hypot(one.mc_se, other.mc_se)).all()
    detector.save(tmp_path / "detector")
    kept = Detector.load(tmp_path / "detector").score_frame(frame_of(normal)).anomaly_score
    assert np.array_equal(kept, here)


def test_a_killed_training_goes_on_as_it_would_have(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def stop(epoch) -> None:
        if epoch.step >= 150:
            raise KilledError

    ends = []
    for interrupted in (False, True):
        model, x, held = fresh(TABLE)
        if interrupted:
            with pytest.raises(KilledError):
                training.fit(model, x, validation=held, config=TABLE, checkpoint=tmp_path / "state", on_epoch=stop)
            model, x, held = fresh(TABLE)
        checkpoint = tmp_path / "state" if interrupted else None
        ends.append(training.fit(model, x, validation=held, config=TABLE, checkpoint=checkpoint)[-1].validation_elbo)
    assert ends[1] == pytest.approx(ends[0], abs=1e-3)


def test_weights_found_in_training_are_found_there() -> None:
    model, x, held = fresh(TABLE)
    history = training.fit(model, x, validation=held, config=TABLE, weights=InTrainingWeights())
    assert np.isfinite(history[-1].validation_elbo)
