"""A saved detector is the same detector in a fresh process, and a changed one is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from anomaly_vae import Detector, TrainConfig, fit_detector
from anomaly_vae.data.images import frame_of
from anomaly_vae.detection.artifact import FORMAT_VERSION
from anomaly_vae.errors import ArtifactError, OutputExistsError
from tests.conftest import digit_images, mixed_frame


@pytest.fixture
def folder(tmp_path, detector):
    detector.save(tmp_path / "model")
    return tmp_path / "model"


def test_the_files_are_json_and_safetensors(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "golden.json", "model.safetensors"]
    json.loads((folder / "config.json").read_text())
    load_file(folder / "model.safetensors")


def test_a_fresh_process_gives_the_same_bits(folder, detector, fresh_rows, tmp_path):
    fresh_rows.to_parquet(tmp_path / "rows.parquet")
    code = (
        "import sys, pandas as pd; from anomaly_vae import Detector; "
        "out = Detector.load(sys.argv[1]).score_frame(pd.read_parquet(sys.argv[2]), explain=2); "
        "out.to_parquet(sys.argv[3])"
    )
    paths = [folder, tmp_path / "rows.parquet", tmp_path / "out.parquet"]
    subprocess.run([sys.executable, "-c", code, *map(str, paths)], check=True)
    got, here = pd.read_parquet(paths[2]), detector.score_frame(fresh_rows, explain=2)
    np.testing.assert_array_equal(got["anomaly_score"], here["anomaly_score"])
    assert got["attributions"].tolist() == here["attributions"].tolist()
    assert Detector.load(folder).digest == detector.digest


def test_no_training_row_is_in_it(folder, training_rows):
    golden = json.loads((folder / "golden.json").read_text())
    exact = set(training_rows["height"])
    assert not any(row["height"] in exact for row in golden["rows"])


def test_the_profile_of_the_training_rows_comes_back(folder, detector):
    again = Detector.load(folder)
    for a, b in zip(again.profile.columns, detector.profile.columns, strict=True):
        assert (a.name, a.kind, a.missing) == (b.name, b.kind, b.missing)
        np.testing.assert_array_equal(a.counts, b.counts)
        np.testing.assert_array_equal(a.edges, b.edges)
    assert again.profile.rows > 400


def change_config(folder, change):
    facts = json.loads((folder / "config.json").read_text())
    change(facts)
    (folder / "config.json").write_text(json.dumps(facts))


def tamper_weights(folder):
    arrays = load_file(folder / "model.safetensors")
    arrays["model.decoder.linear.weight"] = arrays["model.decoder.linear.weight"] + 1e-3
    save_file(arrays, folder / "model.safetensors")


TAMPERINGS = {
    "weights": (tamper_weights, "model.safetensors must be as it was saved"),
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        "model.safetensors must be as it was saved",
    ),
    "schema": (
        lambda f: change_config(f, lambda c: c["schema"]["columns"][0].update(center=0.0)),
        "settings or schema were changed",
    ),
    "golden": (lambda f: (f / "golden.json").write_text("{}"), "golden.json must be as it was saved"),
    "absent": (lambda f: (f / "model.safetensors").unlink(), "must have the file model.safetensors"),
    "no json": (
        lambda f: (f / "config.json").write_text("{"),
        "config.json must be JSON, got a damaged file",
    ),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "config.json must be a JSON object"),
    "newer": (
        lambda f: change_config(f, lambda c: c.update(format_version=99, package_version="9.0")),
        "must be of format 7 or older, got format 99, written by anomaly-vae 9.0. Upgrade",
    ),
    "no version": (
        lambda f: change_config(f, lambda c: c.pop("format_version")),
        "must state a format version",
    ),
    "no schema": (lambda f: change_config(f, lambda c: c.pop("schema")), "must be as it was saved"),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_a_changed_artifact_is_refused(folder, tampering):
    change, message = TAMPERINGS[tampering]
    change(folder)
    with pytest.raises(ArtifactError, match=message):
        Detector.load(folder)


def test_golden_rows_catch_a_consistent_forgery(folder, monkeypatch):
    """With all digests made right again, changed weights still do not score the golden rows as before."""
    from anomaly_vae.detection import artifact

    tamper_weights(folder)
    content = (folder / "model.safetensors").read_bytes()

    def redo(facts):
        facts["sha256"]["model.safetensors"] = artifact.hashlib.sha256(content).hexdigest()
        facts["digest"] = artifact._digest(facts["config"], facts["schema"], content)

    change_config(folder, redo)
    with pytest.raises(ArtifactError, match="must score its golden rows as when it was saved"):
        Detector.load(folder)


def test_saving_never_overwrites_and_leaves_nothing_half_written(folder, detector, monkeypatch, tmp_path):
    with pytest.raises(OutputExistsError, match="must be new or empty"):
        detector.save(folder)
    from anomaly_vae.detection import artifact

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(artifact.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        detector.save(tmp_path / "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_recalibration_changes_the_p_values_alone(detector, fresh_rows):
    again = detector.calibrate(fresh_rows)
    before, after = detector.score_frame(fresh_rows), again.score_frame(fresh_rows)
    np.testing.assert_array_equal(before["anomaly_score"], after["anomaly_score"])
    assert again.calibration.rows == 300
    assert again.digest != detector.digest
    assert after["is_anomaly"].mean() == pytest.approx(0.05, abs=0.01)


@pytest.mark.filterwarnings("ignore::anomaly_vae.errors.TrainingWarning")
def test_dates_survive_the_golden_rows(tmp_path):
    frame = pd.DataFrame({"when": pd.date_range("2024-01-01", periods=60, freq="h"), "x": np.linspace(0, 1, 60) ** 2})
    config = TrainConfig(steps=50, hidden=(8,), columns={"when": "continuous"})
    detector = fit_detector(frame, config).detector
    detector.save(tmp_path / "m")
    out = Detector.load(tmp_path / "m").score_frame(frame, explain=1, alpha=0.2)
    assert np.isfinite(out["anomaly_score"]).all()


FROZEN = {
    "format_6": (
        "d8b6e62b5a46ccf6",
        [22.44374524693556, 21.80286969224703, 21.30490760022658, 21.891357725388367, 21.247785799063525],
        [13, 23, 30, 21, 30],
        39,
    ),
    "format_5": (
        "b957f703bb88cf64",
        [23.37930812456365, 22.639208649745463, 22.027431548218118, 22.70934203707315, 22.01502540243208],
        [11, 20, 30, 20, 30],
        39,
    ),
    "format_1": (
        "9988582e08ab30fd",
        [21.671177864074707, 22.025004982948303, 22.848371386528015, 23.35243844985962, 22.472612857818604],
        [35, 32, 21, 14, 26],
        40,
    ),
    "format_2": (
        "ca9d1deeb53123fa",
        [23.75742024136095, 22.178746163118973, 22.45189320026595, 22.49082671173346, 22.151054991198425],
        [10, 31, 29, 29, 32],
        39,
    ),
    "format_4": (
        "b59cf5060a737849",
        [24.837755550562974, 24.015595102291794, 23.311988722780697, 24.025418108068035, 23.471410483808885],
        [8, 15, 29, 15, 26],
        39,
    ),
    "format_3": (
        "a654fbf9e5f8ddfe",
        [24.782831800005415, 23.990731310819903, 23.249384974770216, 23.95773403560072, 23.381186883570845],
        [8, 14, 29, 17, 28],
        39,
    ),
}
"""Digest; of five rows the scores and ranks among the calibration rows when the files were saved; calibration rows."""


@pytest.mark.parametrize("name", FROZEN)
def test_released_formats_stay_readable(name):
    """Detectors in the repository as 0.1.0 to 0.4.0, 0.12.0 and 0.14.0 wrote them: they score as they did then."""
    digest, scores, ranks, calibration_rows = FROZEN[name]
    frozen = Detector.load(Path(__file__).parent / name)
    rows = mixed_frame(5, seed=1).assign(when=pd.Timestamp("2024-01-03"))
    out = frozen.score_frame(rows, alpha=0.2, explain=2)
    np.testing.assert_allclose(out["anomaly_score"], scores, rtol=1e-5)
    np.testing.assert_allclose(out["p_value"] * (calibration_rows + 1), ranks)
    assert frozen.digest.startswith(digest)
    assert (frozen.profile is not None) == (int(name[-1]) >= 4), "training rows are counted since format 4"
    assert (frozen.model.second is not None) == (int(name[-1]) >= 5), "there are two autoencoders since format 5"
    assert (frozen.config.marginal_weight > 0) == (int(name[-1]) >= 6), "marginals count for less since format 6"


FROZEN_IMAGES = {
    "images_6": (
        "1c86abdf6e05fb8f",
        [19.549595183108508, 14.363404853388673, 16.446875640049097, 12.635434300843617, 32.2162317872838],
        [8, 33, 17, 39, 1],
    ),
    "images_7": (
        "657e1c6a74c23157",
        [29.396457723524364, 17.142014419447438, 19.219047243599476, 19.356280166313137, 35.27317522875552],
        [2, 32, 20, 19, 1],
    ),
}
"""As above; of 40 calibration images."""


@pytest.mark.parametrize("name", FROZEN_IMAGES)
def test_released_formats_of_images_stay_readable(name):
    """Detectors of digits as 0.16.0 and 0.17.0 wrote them."""
    digest, scores, ranks = FROZEN_IMAGES[name]
    frozen = Detector.load(Path(__file__).parent / name)
    out = frozen.score_frame(frame_of(digit_images()[0][200:205]), alpha=0.2, explain=8)
    np.testing.assert_allclose(out["anomaly_score"], scores, rtol=1e-5)
    np.testing.assert_allclose(out["p_value"] * 41, ranks)
    assert frozen.digest.startswith(digest)
    for text, score in zip(out["attributions"], scores, strict=True):
        parts = {part["column"]: part["nats"] for part in json.loads(text)}
        assert ("tone_density" in parts) == (int(name[-1]) >= 7), "tones are looked at since format 7"
        assert sum(parts.values()) == pytest.approx(score)


def test_each_format_has_its_frozen_files():
    assert {int(name[-1]) for name in (FROZEN | FROZEN_IMAGES)} == set(range(1, FORMAT_VERSION + 1))
