"""The image benchmark on digits: its figures are those of the detector, and finished runs are not run again."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_sample_images

from anomaly_vae import ImageConfig, fit_detector

ROOT = Path(__file__).resolve().parents[2]
FAST = ["--set", "steps=20", "--set", "channels=16", "--set", "latent=4", "--set", "calibration_k=[1, 4]"]


def run(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "pipelines/bench_images.py"), "--out", str(out), *words, *FAST]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("bench")
    words = ["--protocol", "ood", "--protocol", "one-class", "--class", "3", "--peer", "pca_residual"]
    made = run(out, *words)
    assert made.returncode == 0, made.stderr[-2000:]
    return out, made.stdout


@pytest.mark.slow
def test_every_pair_and_detector_has_a_figure(done: tuple[Path, str]) -> None:
    results = pd.read_parquet(done[0] / "results.parquet")
    ood = results[(results.protocol == "ood") & ~results.against.str.startswith("false")]
    assert set(ood.against) == {"noise", "constant", "inverted", "half contrast", "flipped"}
    assert {"statistics", "corrected", "elbo", "complexity", "pca_residual"} <= set(ood.detector)
    assert ood.auroc.between(0, 1).all()
    one = results[results.protocol == "one-class"].set_index("detector").auroc
    assert one["pca_residual"] > 0.9
    assert "pca_residual" in (done[0] / "report.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_finished_runs_are_not_run_again(done: tuple[Path, str]) -> None:
    kept = done[0] / "runs.jsonl"
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        for row in line["rows"]:
            row["auroc"] = 0.125  # what no run would give
    kept.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    words = ["--protocol", "ood", "--protocol", "one-class", "--class", "3", "--peer", "pca_residual"]
    assert run(done[0], *words).returncode == 0
    assert np.allclose(pd.read_parquet(done[0] / "results.parquet").auroc, 0.125)


def test_a_file_that_lacks_its_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "half.npz", x_train=np.zeros((3, 4, 4), np.uint8))
    made = run(tmp_path / "out", "--data", str(tmp_path / "half.npz"))
    assert made.returncode == 2
    assert "y_train" in made.stderr


def test_squares_of_photographs_for_testing_touch_none_for_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "pipelines"))
    bench = importlib.import_module("bench_images")
    photos = dict(zip(("china", "flower"), load_sample_images().images, strict=True))
    for data in bench.photographs(train=40, test=10):
        photo, places = photos[data.name][..., 0], []
        for part in (data.train, data.test):
            assert (part.shape[1:], part.dtype) == ((32, 32, 3), np.uint8)
            found = [_place(photo, square[..., 0]) for square in part[:10]]
            places.append({tuple(corner // 64) for corner in found} | {tuple((corner + 31) // 64) for corner in found})
        assert not places[0] & places[1]


def test_colour_is_measured_as_grey_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "pipelines"))
    bench = importlib.import_module("bench_images")
    china, flower = bench.photographs(train=150, test=10)
    config = ImageConfig(steps=5, channels=16, latent=4, calibration_k=(1, 4))
    rows = pd.DataFrame(bench.ood(china, [flower], 0, config))
    found = rows.pivot_table(index="detector", columns="against", values="auroc")
    assert {"flower", "red and blue swapped", "no colour", "noise"} <= set(found.columns)
    assert found.loc["complexity", "noise"] == 1.0, "noise is hard to compress"
    assert found.loc["complexity", "constant"] == 0.0
    assert found.loc["complexity", "no colour"] < 0.5, "one channel instead of three"


def test_false_alarms_are_counted_among_images_that_chance_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "pipelines"))
    bench = importlib.import_module("bench_images")
    digits, config = bench.read(None), ImageConfig(steps=100, channels=16, latent=4, calibration_k=(1, 4))
    other = replace(digits, test=255 - digits.test)  # test images unlike those for training, as a set may have them
    rows = pd.DataFrame(bench.alarms(other, 0, config))
    assert list(rows.against[::2]) == ["false alarms at .01", "false alarms at .05", "false alarms at .1"]
    assert rows.auroc.between(rows.low / 3, rows.high * 2 + 0.01).all(), "near what was promised"
    assert list(rows.detector[:2]) == ["statistics", "pca_residual"]
    ours, pca = bench.false_alarms(fit_detector(other.train, config), other.train, other.test, [0.05], 0.0)
    assert min(ours["auroc"], pca["auroc"]) > 0.5, "the set's own test images are strange, whoever looks"


def _place(photo: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Return the upper left corner at which a square was cut."""
    rows, columns = square.shape
    corners = np.argwhere(photo[: 1 - rows, : 1 - columns] == square[0, 0])
    return next(c for c in corners if (photo[c[0] : c[0] + rows, c[1] : c[1] + columns] == square).all())
