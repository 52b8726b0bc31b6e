"""The resampler's artifact: what comes back weighs as what was saved, and nothing else is taken for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from anomaly_vae import ResampleConfig, RowWeigher
from anomaly_vae.data.images import frame_of
from anomaly_vae.errors import AnomalyVaeError, ArtifactError, OutputExistsError
from anomaly_vae.options import DENSITIES, SPACES
from anomaly_vae.resampler import LatentDensityResampler
from anomaly_vae.row_weigher import WEIGHT_COLUMNS, coded, joined
from tests.conftest import digit_images, mixed_frame

ROWS = 240


@pytest.fixture(scope="module")
def rows():
    return mixed_frame(ROWS, seed=4)


@pytest.fixture(scope="module")
def answers(rows):
    return pd.Series(np.where(rows.member, "yes", "no"), name="answer")


@pytest.fixture(scope="module")
def saved(detector, rows, answers, tmp_path_factory):
    model = RowWeigher.fit(detector, rows, labels=answers, label_column="answer")
    folder = tmp_path_factory.mktemp("weigher") / "model"
    model.save(folder)
    return model, folder


def equal_weights(a: RowWeigher, b: RowWeigher, frame: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(a.score_frame(frame), b.score_frame(frame))


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("kind", ["none", "classes", "continuous"])
def test_every_density_comes_back(detector, rows, tmp_path, density, kind):
    labels = {"none": None, "classes": np.arange(ROWS) % 3, "continuous": rows.height.to_numpy()}[kind]
    config = ResampleConfig(density=density, neighbours=5, clusters=4)
    model = RowWeigher.fit(detector, rows, config, labels=labels, label_column="y")
    model.save(tmp_path / "model")
    loaded = RowWeigher.load(tmp_path / "model")
    fresh = mixed_frame(60, seed=9).assign(y=None if labels is None else labels[:60])
    equal_weights(loaded, model, fresh)
    assert loaded.digest == model.digest
    assert loaded.weigher.weighing.report == model.weigher.weighing.report


@pytest.mark.parametrize("space", SPACES)
def test_every_space_comes_back(detector, rows, tmp_path, space):
    model = RowWeigher.fit(detector, rows, ResampleConfig(space=space))
    model.save(tmp_path / "model")
    equal_weights(RowWeigher.load(tmp_path / "model"), model, mixed_frame(60, seed=9))


def test_images_come_back(image_detector, tmp_path):
    images, digit = digit_images()
    frame = frame_of(images[:150])
    model = RowWeigher.fit(image_detector, frame, labels=digit[:150])
    model.save(tmp_path / "model")
    loaded = RowWeigher.load(tmp_path / "model")
    equal_weights(loaded, model, frame_of(images[150:190]).assign(label=digit[150:190]))


def test_a_fresh_process_weighs_alike(saved, rows, answers, tmp_path):
    model, folder = saved
    frame = rows.assign(answer=answers)
    frame.to_parquet(tmp_path / "rows.parquet")
    program = f"""
import pandas as pd
from anomaly_vae import RowWeigher
frame = pd.read_parquet({str(tmp_path / "rows.parquet")!r})
RowWeigher.load({str(folder)!r}).score_frame(frame).to_parquet({str(tmp_path / "out.parquet")!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    out = pd.read_parquet(tmp_path / "out.parquet")
    assert tuple(out.columns) == WEIGHT_COLUMNS
    np.testing.assert_allclose(out.weight, model.score_frame(frame).weight, rtol=1e-5)
    np.testing.assert_allclose(out.weight, model.weigher.weighing.weights, rtol=1e-4)


def test_what_guards_hold_down_is_told(detector, rows):
    strange = rows.copy()
    strange.loc[0, "weight"] = 400.0
    model = RowWeigher.fit(detector, strange, ResampleConfig(guard=0.05))
    out = model.score_frame(strange)
    held = out.guarded_anomaly | out.guarded_isolated
    assert held[0]
    assert (out.weight[held] <= 1).all()
    guards = {guard.name: guard.rows for guard in model.weigher.weighing.report.guards}
    assert guards == {"anomaly": out.guarded_anomaly.sum(), "isolated": out.guarded_isolated.sum()}


def test_a_guard_that_cannot_see_is_said(detector, rows):
    notes = RowWeigher.fit(detector, rows, ResampleConfig(guard=0.001)).weigher.weighing.report.notes
    assert any("is above the guard of 0.001: no row is guarded as an anomaly" in note for note in notes)


def test_it_says_how_many_rows_it_holds(detector, rows, answers):
    assert RowWeigher.fit(detector, rows, labels=answers).describe()["rows_held"] == ROWS
    bare = ResampleConfig(isolation_guard=None, label_guard=None, space="joint")
    assert RowWeigher.fit(detector, rows, bare, labels=answers).describe()["rows_held"] == ROWS
    codes = ResampleConfig(isolation_guard=None, label_guard=None)
    assert RowWeigher.fit(detector, rows, codes, labels=answers).describe()["rows_held"] == 0
    raw = ResampleConfig(isolation_guard=None, label_guard=None, space="raw")
    assert RowWeigher.fit(detector, rows, raw).describe()["rows_held"] == ROWS


def test_labels_may_come_as_text_or_numbers(detector, rows, tmp_path):
    numbers = np.arange(ROWS) % 3
    model = RowWeigher.fit(detector, rows, labels=numbers, label_column="y")
    expected = model.score_frame(rows.assign(y=numbers))
    pd.testing.assert_frame_equal(model.score_frame(rows.assign(y=numbers.astype(str))), expected)
    texts = RowWeigher.fit(detector, rows, labels=numbers.astype(str), label_column="y")
    pd.testing.assert_frame_equal(texts.score_frame(rows.assign(y=numbers)), expected)


def test_rows_in_parts_are_weighed_as_at_once(detector, rows, answers):
    config = ResampleConfig()
    parts = [coded(detector, rows[i : i + 70], config, answers[i : i + 70]) for i in range(0, ROWS, 70)]
    together = RowWeigher.of_coded(detector, joined(parts), config)
    at_once = RowWeigher.fit(detector, rows, config, labels=answers)
    np.testing.assert_array_equal(together.weigher.weighing.weights, at_once.weigher.weighing.weights)


def test_the_estimator_has_the_model(detector, rows, answers, tmp_path):
    resampler = LatentDensityResampler(detector).fit(rows, answers)
    resampler.model_.save(tmp_path / "model")
    loaded = RowWeigher.load(tmp_path / "model")
    assert loaded.label_column == "answer"
    weights = loaded.score_frame(rows.assign(answer=answers)).weight
    np.testing.assert_allclose(weights, resampler.weights_, rtol=1e-4)


def altered(folder, name, change):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


def settings(content: bytes) -> bytes:
    facts = json.loads(content)
    facts["weigher"]["config"]["cap"] = 99.0
    return json.dumps(facts).encode()


def format_9(content: bytes) -> bytes:
    return json.dumps(json.loads(content) | {"format_version": 9}).encode()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("weigher.safetensors", lambda c: c[:-1] + bytes([c[-1] ^ 1]), "weigher.safetensors must be as it was saved"),
        ("golden.json", lambda c: c.replace(b"weights", b"waights"), "golden.json must be as it was saved"),
        ("config.json", settings, "config.json must be as it was saved"),
        ("config.json", lambda c: b"[]", "config.json must be a JSON object"),
        ("config.json", lambda c: c.replace(b'"kind": "resampler"', b'"kind": "x"'), "must be a resampler's"),
        ("config.json", format_9, "must be of format 1 or older, got format 9"),
        ("detector/golden.json", lambda c: c + b" ", "golden.json must be as it was saved"),
    ],
)
def test_damage_is_found(saved, tmp_path, name, change, message):
    model, _ = saved
    model.save(tmp_path / "model")
    altered(tmp_path / "model", name, change)
    with pytest.raises(ArtifactError, match=message):
        RowWeigher.load(tmp_path / "model")


def test_another_detector_is_not_taken(saved, tmp_path, image_detector):
    model, _ = saved
    model.save(tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "detector")
    image_detector.save(tmp_path / "model" / "detector")
    with pytest.raises(ArtifactError, match="its settings or its detector were changed"):
        RowWeigher.load(tmp_path / "model")


def test_misuse_is_refused(saved, rows, detector, tmp_path):
    model, folder = saved
    with pytest.raises(OutputExistsError, match="the folder must be new or empty"):
        model.save(folder)
    with pytest.raises(AnomalyVaeError, match="must have the column of labels 'answer'"):
        model.score_frame(rows)
    with pytest.raises(AnomalyVaeError, match="a label must be one of no, yes, got 'maybe'"):
        model.score_frame(rows.assign(answer="maybe"))
    with pytest.raises(ArtifactError, match="a resampler must have the file"):
        RowWeigher.load(tmp_path)
    odd = RowWeigher.fit(detector, rows, labels=pd.Series(pd.date_range("2020", periods=2).repeat(ROWS // 2)))
    with pytest.raises(AnomalyVaeError, match="class labels must be text, numbers or booleans"):
        odd.save(tmp_path / "odd")


def test_garbage_that_calibrates_itself_is_still_held_back(image_detector):
    """Of 5 % garbage some has p-values above .01 where the calibration rows hold as much; its ELBO gives it away."""
    images = digit_images()[0][:300]
    garbage = np.random.default_rng(0).integers(0, 256, (15, *images.shape[1:]), dtype=np.uint8)
    frame = frame_of(np.concatenate([images, garbage]))
    contaminated, flagged = image_detector.calibrate(frame), {}
    for fence in (None, 2.5):
        config = ResampleConfig(guard=0.01, fence=fence, isolation_guard=None)
        flagged[fence] = RowWeigher.fit(contaminated, frame, config).weigher.guards["anomaly"]
    assert flagged[None][300:].mean() < 0.5
    assert flagged[2.5][300:].all()
    assert flagged[2.5][:300].mean() < 0.05


def test_images_behind_a_fence_are_not_held_back_for_a_p_value(image_detector):
    """Of any rows 1 % have a p-value of .01 or less; it is the default guard only where there is no fence."""
    frame = frame_of(digit_images()[0][:300])
    for config, guard in (
        (ResampleConfig(), 0.0),
        (ResampleConfig(fence=None), 0.01),
        (ResampleConfig(guard=0.05), 0.05),
    ):
        rows = coded(image_detector, frame, config)
        assert (rows.p_values is None) == (guard == 0)
        weigher = RowWeigher.of_coded(image_detector, rows, config).weigher
        assert weigher.config.guard == guard
        improbable = np.zeros(300, dtype=bool) if not guard else rows.p_values <= guard
        np.testing.assert_array_equal(
            weigher.guards["anomaly"],
            improbable if config.fence is None else improbable | (rows.surprises > weigher.fence),
        )


def test_tables_have_no_fence(detector, rows):
    """Of few columns the ELBO is skewed: a rare cluster would lie beyond it."""
    assert coded(detector, rows, ResampleConfig()).surprises is None
    assert RowWeigher.fit(detector, rows).weigher.fence is None
