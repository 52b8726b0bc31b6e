"""The benchmark of folder jobs measures jobs that score every row, and fits the exponent of what it measured."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(PIPELINES)
    return importlib.import_module("bench_batch")


def test_parts_hold_the_rows_asked_for(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ROW_GROUP", 30)
    paths = bench.write_parts(tmp_path / "parts", 250, 100)
    files = [pq.ParquetFile(path) for path in paths]
    assert [file.metadata.num_rows for file in files] == [100, 100, 50]
    assert files[0].num_row_groups == 4
    assert files[0].metadata.num_columns == 10
    whole = pq.read_table(tmp_path / "parts").to_pandas()
    assert len(whole.drop_duplicates()) == 250


@pytest.mark.parametrize("power", [1.0, 1.5])
def test_the_exponent_is_that_of_the_seconds(power: float, bench: ModuleType) -> None:
    jobs = [bench.Timed(rows, 9.0, 0.01 * rows**power, 0.0, 0.0) for rows in (100, 200, 400)]
    assert bench.exponent(jobs) == pytest.approx(power)


@pytest.mark.slow
def test_a_small_run_prints_its_figures(bench: ModuleType, tmp_path: Path) -> None:
    words = ["--rows", "4000", "--processes", "1", "--steps", "20", "--k", "1", "--markdown", str(tmp_path / "out.md")]
    made = CliRunner().invoke(bench.main, words)
    assert made.exit_code == 0, made.output
    lines = [
        line.split("|")[1:-1] for line in (tmp_path / "out.md").read_text(encoding="utf-8").splitlines() if "%" in line
    ]
    assert [line[0].strip() for line in lines] == ["1,000", "2,000", "4,000"]
    assert [line[1].strip() for line in lines] == ["4", "8", "16"]
    assert all(float(line[6].replace(",", "")) > 50 for line in lines)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java 17")
def test_spark_is_measured_beside_the_local_engine(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyspark", reason="needs pip install 'anomaly-vae[spark]'")
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    words = ["--rows", "4000", "--processes", "2", "--steps", "20", "--k", "1", "--spark"]
    made = CliRunner().invoke(bench.main, [*words, "--markdown", str(tmp_path / "out.md")])
    assert made.exit_code == 0, made.output
    rows = [line.split("|")[1:-1] for line in (tmp_path / "out.md").read_text(encoding="utf-8").splitlines()]
    found = [[cell.strip() for cell in row[:2]] for row in rows if len(row) == 4]
    assert found[-4:] == [["local", "first"], ["spark", "first"], ["local", "second"], ["spark", "second"]]
