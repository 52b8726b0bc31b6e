"""The benchmark of costs measures what it says: shapes and peaks."""

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
from anomaly_vae.models import compiled

pytestmark = pytest.mark.whole
PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(PIPELINES)
    return importlib.import_module("bench")


def test_the_chain_multiplies_the_shapes_that_scoring_multiplies(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Multiply-adds of the chain against those that PyTorch counts while rows are scored, by its own operations."""
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.setenv(compiled.SWITCH, "off")
    monkeypatch.setattr(bench, "COLUMNS", 6)
    whole_groups = 1024
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(whole_groups, 6)), columns=list("abcdef"))
    config = TrainConfig(steps=20, hidden=(16, 24), calibration_k=(1, 16, 64), companions=())
    detector = fit_detector(frame.head(300), config).detector
    for k in (1, 16, 64):
        counts = []
        for call in (lambda k=k: detector.score_frame(frame, k=k), bench.matmul_chain(detector, len(frame), k)):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                call()
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1] > 0


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_command_prints_and_writes_its_tables(bench: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "bench.md"
    arguments = ["speed", "--speed-rows", "2048", "--markdown", str(path)]
    done = CliRunner().invoke(bench.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert "matmul chain" in done.output
    text = path.read_text()
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| score")]
    assert [row[0].strip() for row in rows] == [
        "score, k = 1",
        "score, k = 16",
        "score, k = 64",
        "score, ensemble, k = 16",
    ]
    for row in rows[:-1]:  # the ensemble is not all products of a network
        ours, chain, ratio = (float(cell.replace(",", "")) for cell in row[1:])
        assert ratio == pytest.approx(chain / ours, rel=0.01, abs=0.006)


def test_an_unknown_part_is_refused(bench: ModuleType) -> None:
    done = CliRunner().invoke(bench.main, ["sped"])
    assert done.exit_code == 2
    assert "speed" in done.output


def test_speed_without_pyod_says_what_is_left_out(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = importlib.import_module("bench_speed")
    monkeypatch.setattr(speed, "pyod_is_there", lambda: False)
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(300, 4))).add_prefix("x")
    detector = fit_detector(frame, TrainConfig(steps=20, hidden=(16,))).detector
    (sheet,) = speed.sheets(detector, frame, None, rows=300, repeats=1)
    assert speed.ABSENT in sheet.notes
    for kind in ("elbo", "likelihood"):
        gain = next(row for row in sheet.rows if row[0] == f"{kind}: rows/s")
        wide, half = (float(cell.replace(",", "")) for cell in gain[1:3])
        assert float(gain[3].split()[0]) == pytest.approx(half / wide, abs=0.01)


def test_pyods_vae_is_measured_in_the_same_run(bench: ModuleType) -> None:
    pytest.importorskip("pyod")
    speed = importlib.import_module("bench_speed")
    data = speed.split(None, 400)
    assert data.anomalous.any()
    assert len(data.train) <= 400
    sheet = speed.beside_pyod(data, repeats=1)
    assert len(sheet.rows) == 6
    for row in sheet.rows:
        ours, theirs, ratio = (float(cell.replace(",", "")) for cell in row[1:])
        assert ratio == pytest.approx(ours / theirs, rel=0.05, abs=0.06)
