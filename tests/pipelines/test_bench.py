"""The benchmark measures what it says: protocol, shapes, peaks, and visible gaps."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from anomaly_vae import TrainConfig, fit_detector

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(PIPELINES)
    return importlib.import_module("bench")


def test_one_class_trains_on_half_of_the_normal_rows_and_tests_on_the_rest(bench: ModuleType) -> None:
    x, y = np.arange(100.0)[:, None], np.arange(100) >= 80
    train, (test, truth) = bench.one_class(x, y, seed=3)
    normal = np.random.default_rng(3).permutation(np.flatnonzero(~y))
    assert train[:, 0].tolist() == normal[:40].tolist()
    assert truth.sum() == 20
    assert sorted([*train[:, 0], *test[:, 0]]) == list(range(100))
    assert (test[truth, 0] >= 80).all()


def test_large_tables_are_drawn_down_without_repetition(bench: ModuleType) -> None:
    x, y = np.arange(25_000.0)[:, None], np.arange(25_000) % 10 == 0
    train, (test, _) = bench.one_class(x, y, seed=0)
    kept = np.concatenate([train[:, 0], test[:, 0]])
    assert len(kept) == len(set(kept)) == 10_000
    assert set(kept) == set(np.random.default_rng(0).choice(25_000, 10_000, replace=False))


def test_the_chain_multiplies_the_shapes_that_scoring_multiplies(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Multiply-adds of the chain against those that PyTorch counts while rows are scored."""
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.setattr(bench, "COLUMNS", 6)
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(300, 6)), columns=list("abcdef"))
    detector = fit_detector(frame, TrainConfig(steps=20, hidden=(16, 24), calibration_k=(1, 16, 64))).detector
    for k in (1, 16, 64):
        counts = []
        for call in (lambda k=k: detector.score_frame(frame, k=k), bench.matmul_chain(detector, len(frame), k)):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                call()
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1] > 0


def test_tables_are_found_by_name_and_absent_ones_are_visible(bench: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("38_thyroid", "2_annthyroid"):
        y = np.arange(60) < 10
        np.savez(tmp_path / f"{name}.npz", X=rng.normal(size=(60, 3)) + 9 * y[:, None], y=y.astype(int))
    found = dict(bench.labelled_tables(tmp_path, ["thyroid", "vowels"]))
    assert list(found) == ["breast-cancer", "thyroid", "vowels"]
    assert found["thyroid"][0].shape == (60, 3)
    assert found["vowels"] is None
    cancer, malignant = found["breast-cancer"]
    assert (cancer.shape, malignant.sum()) == ((569, 30), 212)


@pytest.mark.parametrize("scorer", ["anomaly_vae", "isolation forest", "probabilistic PCA"])
def test_every_scorer_finds_what_cannot_be_missed(bench: ModuleType, scorer: str) -> None:
    rng = np.random.default_rng(0)
    train, normal = rng.normal(size=(200, 4)), rng.normal(size=(50, 4))
    scores = bench.SCORERS[scorer](train, np.vstack([normal, normal + 12]), 0)
    assert scores[50:].min() > scores[:50].max()


def test_memory_is_measured_in_processes_of_their_own(bench: ModuleType) -> None:
    ballast = np.ones(60_000_000)  # 458 MiB here must not count there
    result = bench.memory(rows=20_000)
    few, many = (float(row[1].replace(",", "")) for row in result.rows)
    assert [row[0] for row in result.rows] == ["200", "20,000"]
    assert 100 < few <= many + 50
    assert many < few + 200
    if Path("/proc/self/status").exists():
        status = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]
        assert many < int(status) / 1024, "the peak of this process must not be inherited"
    assert ballast[0] == 1


def test_the_command_prints_and_writes_its_tables(bench: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "bench.md"
    arguments = ["speed", "--speed-rows", "2048", "--markdown", str(path)]
    done = CliRunner().invoke(bench.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert "matmul chain" in done.output
    text = path.read_text()
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| score")]
    assert [row[0].strip() for row in rows] == ["score, k = 1", "score, k = 16", "score, k = 64"]
    for row in rows:
        ours, chain, ratio = (float(cell.replace(",", "")) for cell in row[1:])
        assert ratio == pytest.approx(chain / ours, rel=0.01, abs=0.006)


def test_an_unknown_part_is_refused(bench: ModuleType) -> None:
    done = CliRunner().invoke(bench.main, ["sped"])
    assert done.exit_code == 2
    assert "speed" in done.output
