"""The comparison of ways to rebalance: planted groups, closed forms, and that finished runs are not run again."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]
FAST = ["--set", "steps=20", "--set", "channels=8", "--set", "calibration_k=[1, 4]"]
METHODS = ["no weights", "default", "DB-VAE, product", "oracle"]


def module(name: str) -> Any:
    sys.path.insert(0, str(ROOT / "pipelines"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


planted, methods, debias = module("planted"), module("debias_methods"), module("debias")


def run(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "pipelines/debias.py"), "--out", str(out), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def digits():
    return planted.planted("digits", None, 0)


def test_the_group_is_rare_in_training_and_half_of_the_test(digits) -> None:
    assert digits.train.rare.mean() == pytest.approx(0.05, abs=1e-3)
    assert digits.test.rare.mean() == pytest.approx(0.5, abs=1e-2)
    again, other = planted.planted("digits", None, 0), planted.planted("digits", None, 1)
    assert (again.train.y == digits.train.y).all()
    assert not (other.train.y == digits.train.y).all()


def test_training_and_test_rows_differ(digits) -> None:
    seen = {cell.tobytes() for cell in digits.train.frame.image} | {
        np.rot90(cell, -1).tobytes() for cell in digits.train.frame.image[digits.train.rare]
    }
    shared = sum(cell.tobytes() in seen for cell in digits.test.frame.image[~digits.test.rare])
    assert shared <= 2  # scikit-learn's digits hold a few equal images


def test_colour_tells_the_class_in_training_alone() -> None:
    x, y = planted._digits()
    data = planted.coloured(np.repeat(np.repeat(x, 3, 1), 3, 2), y, 0, rows=300, test_rows=100)
    assert data.train.frame.image[0].shape == (24, 24, 3)
    means = np.stack([cell.reshape(-1, 3).mean(0) for cell in data.train.frame.image])
    usual = ~data.train.rare
    centres = np.stack([means[usual & (data.train.y == c)].mean(0) for c in range(10)])
    own = np.linalg.norm(means[:, None] - centres, axis=2).argmin(1) == data.train.y
    assert own[usual].mean() > 0.7
    assert own[~usual].mean() < 0.3


def test_a_table_loses_most_of_one_cell() -> None:
    rng = np.random.default_rng(0)
    y, rare = rng.random(12_000) < 0.3, rng.random(12_000) < 0.5
    data = planted.of_a_table("t", pd.DataFrame({"a": rng.normal(size=12_000)}), y, rare, 0, "women")
    assert np.bincount(data.train.group)[3] == 30
    assert len(set(np.bincount(data.test.group))) == 1


@pytest.mark.parametrize("how", ["garbage", "flips"])
def test_two_per_cent_are_spoilt(digits, how) -> None:
    spoilt = planted.spoilt(digits, how, 0)
    flags = spoilt.train.spoilt
    assert flags.sum() == round(0.02 * len(flags))
    changed = spoilt.train.y != digits.train.y
    assert not changed[~flags].any()
    assert changed[flags].all() if how == "flips" else changed[flags].any()
    same = [np.array_equal(a, b) for a, b in zip(spoilt.train.frame.image, digits.train.frame.image, strict=True)]
    assert np.array_equal(~np.array(same), flags) == (how == "garbage")


def test_weights_by_the_true_groups_are_their_closed_forms(digits) -> None:
    train = planted.spoilt(digits, "flips", 0).train
    weights = methods.equal_cells(train)
    assert weights.mean() == pytest.approx(1)
    assert (weights[train.spoilt] == 1).all()
    cell = 2 * train.y + train.rare
    masses = np.bincount(cell, weights * ~train.spoilt)
    assert masses[masses > 0] == pytest.approx(masses.max())
    fair = methods.reweighing(train)
    joint = np.bincount(cell, fair, minlength=20).reshape(10, 2) / fair.sum()
    assert joint == pytest.approx(joint.sum(1, keepdims=True) * joint.sum(0))


def test_a_fixed_set_keeps_every_row() -> None:
    weights = np.r_[np.full(90, 0.5), np.full(10, 5.5)]
    rows = methods._fixed(weights, 200 // methods.BATCH, np.random.default_rng(0), 0)
    assert set(methods._fixed(weights, 10, np.random.default_rng(0), 0).ravel()) == set(range(100))
    assert rows.shape[1] == methods.BATCH
    drawn = methods._drawn(weights, 400, np.random.default_rng(0))
    assert (drawn >= 90).mean() == pytest.approx(0.55, abs=0.02)


def test_a_classifier_is_judged_by_group() -> None:
    test = planted.Part(
        pd.DataFrame(),
        np.array([0, 1, 0, 1]),
        np.array([False, False, True, True]),
        np.array([0, 0, 1, 1]),
        np.zeros(4),
    )
    found = methods.judged(np.array([0, 1, 0, 0]), test)
    assert found["worst"] == 0.5
    assert found["usual"] == 1.0
    assert found["variance"] == pytest.approx(np.var([100, 50]))
    assert found["precision"] == pytest.approx((2 / 3 + 1) / 2)


def test_a_seeds_figures_are_means_over_its_classifiers(digits) -> None:
    def worst(seed: int, classifiers: int) -> float:
        (row,) = debias.compared(digits, None, ["no weights"], seed, "digits", ("draws",), 0.0, classifiers)
        return float(row["worst"])

    one, other = worst(3, 1), worst(3 + debias.APART, 1)
    assert one != other
    assert worst(3, 2) == pytest.approx((one + other) / 2)


def test_shares_cover_the_truth_as_often_as_they_say() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        common = rng.normal(0, 1, 8)
        share = methods.recovered(7 + common + rng.normal(0, 1, 8), 10 + common + rng.normal(0, 1, 8))
        held += share.low <= 0.7 <= share.high
    assert 0.91 < held / 400 < 0.985


def test_no_share_is_quoted_of_a_gain_that_may_be_chance() -> None:
    weak = methods.recovered(np.array([0.01, 0.02, -0.01]), np.array([0.03, -0.02, 0.02]))
    assert not weak.quotable
    assert math.isinf(weak.low)
    assert not methods.recovered(np.array([0.1]), np.array([0.2])).quotable
    assert methods.recovered(np.array([0.1, 0.11]), np.array([0.2, 0.21])).value == pytest.approx(0.105 / 0.205)


@pytest.mark.slow
def test_the_whole_comparison_and_no_run_twice(tmp_path) -> None:
    words = [word for method in METHODS for word in ("--method", method)]
    made = run(tmp_path, *words, "--seeds", "1", *FAST)
    assert made.returncode == 0, made.stderr[-2000:]
    results = pd.read_parquet(tmp_path / "results.parquet")
    assert set(results.method) == set(METHODS)
    assert set(results.delivery) == {"draws", "fixed"}
    assert len(results) == 2 * len(METHODS)
    mean = results[results.delivery == "draws"].groupby("method").mean(numeric_only=True)
    assert mean.loc["oracle", "rare_mass"] > 0.4
    assert mean.loc["oracle", "worst"] > mean.loc["no weights", "worst"] + 0.02
    assert mean.loc["default", "ess"] > 0.198  # the floor; 20 steps leave the latent little to spend it on
    kept = tmp_path / "runs.jsonl"
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        for row in line["rows"]:
            row["worst"] = 0.125  # what no run would give
    kept.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert run(tmp_path, *words, "--seeds", "1", *FAST).returncode == 0
    assert (pd.read_parquet(tmp_path / "results.parquet").worst == 0.125).all()
    assert "no share of it is quoted" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_misuse_is_a_line(tmp_path) -> None:
    made = CliRunner().invoke(debias.main, ["--out", str(tmp_path), "--protocol", "rotation"])
    assert made.exit_code == 2
    assert "--data must name the folder" in made.stderr
    words = ["--protocol", "adult", "--data", str(tmp_path), "--spoil", "garbage"]
    made = CliRunner().invoke(debias.main, ["--out", str(tmp_path), *words])
    assert made.exit_code == 2
    assert "garbage must be planted among images" in made.stderr
