"""The demo, whole: what it prints is true, what it leaves is there, and it can be repeated."""

from __future__ import annotations

import importlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import click
import mlflow
import pandas as pd
import pytest

pytestmark = pytest.mark.whole
DEMO = Path(__file__).resolve().parents[2] / "pipelines" / "demo.py"


def run_demo(root: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "COLUMNS": "140", **variables}
    command = [sys.executable, str(DEMO), "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("demo")
    done = run_demo(root)
    assert done.returncode == 0, done.stdout + done.stderr
    return root, done.stdout


def test_it_shows_the_whole_way(demo: tuple[Path, str]) -> None:
    _, output = demo
    assert re.findall(r"^(\d)  ", output, re.MULTILINE) == list("123456789")
    assert "178 benign tumours to learn; 179 benign, 212 malignant to test" in output
    assert "models:/breast-cancer/1" in output
    assert "mlflow ui" in output


def test_the_service_answered_as_the_library_does(demo: tuple[Path, str]) -> None:
    gap = re.search(r"largest difference from the library is (\S+)", demo[1])
    assert gap
    assert float(gap[1]) <= 1e-6


def test_it_ranks_malignant_rows_first(demo: tuple[Path, str]) -> None:
    figures = dict(re.findall(r"^(anomaly_vae|isolation forest|probabilistic PCA)\s+(0\.\d+)", demo[1], re.MULTILINE))
    assert set(figures) == {"anomaly_vae", "isolation forest", "probabilistic PCA"}
    assert min(float(value) for value in figures.values()) > 0.9


def test_reasons_of_each_of_five_rows_sum_to_its_score(demo: tuple[Path, str]) -> None:
    text = demo[1].split("Explain")[1].split("Summary")[0]
    starts = list(re.finditer(r"^\s*(\d+)\s+([\d.]+)\s+0\.\d+\s+(malignant|benign)", text, re.MULTILINE))
    assert len(starts) == 5
    ends = [s.start() for s in starts[1:]] + [len(text)]
    for start, end in zip(starts, ends, strict=True):
        nats = re.findall(
            r"(?:benign|malignant|^ {10,})\s*[a-z(][a-z ()-]*?\s{2,}(-?\d+\.\d)", text[start.start() : end], re.M
        )
        assert len(nats) == 6, text[start.start() : end]
        assert sum(map(float, nats)) == pytest.approx(float(start[2]), abs=0.3)


def test_everything_lies_under_mlruns(demo: tuple[Path, str]) -> None:
    root, _ = demo
    assert [p.name for p in root.iterdir()] == ["mlruns"]
    scores = pd.read_parquet(root / "mlruns/demo/scores.parquet")
    assert len(scores) == 391
    assert set(scores["model_version"]) == {"models:/breast-cancer/1"}
    client = mlflow.MlflowClient(f"sqlite:///{root}/mlruns/mlflow.db")
    assert str(client.get_model_version_by_alias("breast-cancer", "champion").version) == "1"


def test_the_report_is_where_it_says_and_about_the_test_rows(demo: tuple[Path, str]) -> None:
    root, output = demo
    named = re.search(r"report: (\S+\.html)", output)
    assert named
    assert 50_000 < (root / named[1]).stat().st_size < 2_000_000
    twin = json.loads((root / named[1]).with_suffix(".json").read_text(encoding="utf-8"))
    tiles = {tile["name"]: tile["value"] for tile in twin["tiles"]}
    assert tiles["rows scored"] == 391
    auroc = re.search(r"^anomaly_vae\s+(0\.\d+)", output, re.MULTILINE)
    assert auroc
    assert tiles["AUROC"] == auroc[1]


def test_no_server_is_left_behind(demo: tuple[Path, str]) -> None:
    port = re.search(r"http://127\.0\.0\.1:(\d+)/invocations", demo[1])
    assert port
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(port[1]))) != 0


@pytest.mark.slow
def test_it_can_be_repeated(demo: tuple[Path, str]) -> None:
    done = run_demo(demo[0])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "models:/breast-cancer/2" in done.stdout


def test_a_server_that_does_not_start_is_said_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DEMO.parent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    demo = importlib.import_module("demo")
    with (
        pytest.raises(click.ClickException, match=r"did not start:\nError: the model must be in a registry"),
        demo.served("models:/absent/1", tmp_path / "server.log"),
    ):
        pass


def test_a_broken_place_is_not_reported_as_done(tmp_path: Path) -> None:
    (tmp_path / "mlruns").write_text("a file where a folder must be")
    done = run_demo(tmp_path)
    assert done.returncode != 0
    assert "Done" not in done.stdout
