"""Files in, scored files out: values, keys, false discovery rate, and that nothing half-written is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import false_discovery_control

from anomaly_vae import Detector, ScoreConfig
from anomaly_vae.detection.detector import LIKELIHOOD_COLUMNS
from anomaly_vae.errors import ConfigError, DataWarning, OutputExistsError, SchemaError, UnreadableDataError
from anomaly_vae.serving.batch import evaluate_file, score_file, score_frames, strangest_rows

COLUMNS = [
    "row", "anomaly_score", "score_kind", "p_value", "is_anomaly", "threshold", "mc_se", "ess", "reliable",
    "attributions", "model_version",
]  # fmt: skip


@pytest.fixture
def table(rows: pd.DataFrame, tmp_path: Path) -> Path:
    path = tmp_path / "in.parquet"
    rows.to_parquet(path, index=False)
    return path


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batch_rows", [1, 7, 300, 65_536])
def test_batches_and_workers_give_the_whole_frames_scores(
    batch_rows: int, workers: int, detector: Detector, rows: pd.DataFrame, table: Path, tmp_path: Path
) -> None:
    sample = rows.iloc[:40] if batch_rows == 1 else rows
    sample.to_parquet(table, index=False)
    config = ScoreConfig(batch_rows=batch_rows, explain=2, workers=workers)
    done = score_file(detector, table, tmp_path / "out.parquet", config, model_version="models:/pumps/1")
    got = pd.read_parquet(done.path)
    want = detector.score_frame(sample, explain=2)
    assert list(got.columns) == COLUMNS
    assert got["row"].tolist() == list(range(len(sample)))
    for name in ("anomaly_score", "p_value", "is_anomaly", "threshold", "mc_se", "ess", "attributions"):
        assert got[name].tolist() == want[name].tolist(), name
    assert set(got["model_version"]) == {"models:/pumps/1"}
    assert (done.rows, done.flagged) == (len(sample), want["is_anomaly"].sum())
    assert done.unreliable == (~want["reliable"]).sum()


@pytest.mark.parametrize("fdr", [None, 0.2])
@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_log_likelihoods_are_appended_on_demand(
    fdr: float | None, suffix: str, detector: Detector, rows: pd.DataFrame, table: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"out{suffix}"
    done = score_file(detector, table, out, ScoreConfig(mc_se=0.008, batch_rows=70, fdr=fdr))
    got = pd.read_csv(out) if suffix == ".csv" else pd.read_parquet(out)
    want = detector.score_frame(rows, mc_se=0.008)
    assert list(got.columns) == [*COLUMNS, *LIKELIHOOD_COLUMNS]
    for name in ("anomaly_score", *LIKELIHOOD_COLUMNS):
        assert got[name].tolist() == want[name].tolist(), name
    assert done.unreached == (~want["log_likelihood_reached"]).sum() > 0
    assert score_file(detector, table, out, ScoreConfig(overwrite=True)).unreached == 0


def test_folder_of_csv_and_parquet_is_one_job(detector: Detector, rows: pd.DataFrame, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    rows.iloc[:100].to_csv(folder / "a.csv", index=False)
    rows.iloc[100:].to_parquet(folder / "b.parquet", index=False)
    out = tmp_path / "out.parquet"
    score_file(detector, folder, out, ScoreConfig(batch_rows=64), schema=detector.schema)
    got = pd.read_parquet(out)
    assert got["row"].tolist() == list(range(300))
    np.testing.assert_allclose(got["anomaly_score"], detector.score_frame(rows)["anomaly_score"], rtol=1e-6)


def test_csv_output_reads_back(detector: Detector, rows: pd.DataFrame, table: Path, tmp_path: Path) -> None:
    score_file(detector, table, tmp_path / "out.csv", ScoreConfig(explain=1, batch_rows=50))
    got = pd.read_csv(tmp_path / "out.csv")
    want = detector.score_frame(rows, explain=1)
    assert list(got.columns) == COLUMNS
    assert got["anomaly_score"].tolist() == want["anomaly_score"].tolist()
    assert [json.loads(text) for text in got["attributions"]] == [json.loads(text) for text in want["attributions"]]


def test_keys_are_copied_as_they_came(detector: Detector, rows: pd.DataFrame, tmp_path: Path) -> None:
    keyed = rows.assign(ticket=[f"{i:05d}" for i in range(300)])
    keyed.to_csv(tmp_path / "in.csv", index=False)
    config = ScoreConfig(key=("ticket", "age"), batch_rows=100)
    score_file(detector, tmp_path / "in.csv", tmp_path / "out.parquet", config, schema=detector.schema)
    got = pd.read_parquet(tmp_path / "out.parquet")
    assert got["ticket"].tolist() == keyed["ticket"].tolist()
    assert got["age"].tolist() == keyed["age"].astype(str).tolist()  # in CSV the characters are the value
    np.testing.assert_allclose(got["anomaly_score"], detector.score_frame(rows)["anomaly_score"], rtol=1e-6)


def test_parquet_keys_keep_their_type_over_batches(detector: Detector, rows: pd.DataFrame, tmp_path: Path) -> None:
    ticket = pa.array([None if 50 <= i < 100 else i for i in range(300)], pa.int32())
    when = pa.array(pd.date_range("2026-01-01", periods=300), pa.timestamp("us"))
    data = pa.Table.from_pandas(rows, preserve_index=False).append_column("ticket", ticket).append_column("when", when)
    pq.write_table(data, tmp_path / "in.parquet")
    config = ScoreConfig(key=("ticket", "when"), batch_rows=50)
    score_file(detector, tmp_path / "in.parquet", tmp_path / "out.parquet", config, schema=detector.schema)
    got = pq.read_table(tmp_path / "out.parquet")
    assert got["ticket"].combine_chunks() == ticket
    assert got["when"].combine_chunks() == when


@pytest.mark.parametrize("q", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_false_discovery_rate_holds_over_the_whole_job(
    q: float, suffix: str, detector: Detector, rows: pd.DataFrame, table: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"out{suffix}"
    done = score_file(detector, table, out, ScoreConfig(fdr=q, batch_rows=37))
    got = pd.read_csv(out) if suffix == ".csv" else pd.read_parquet(out)
    want = false_discovery_control(detector.score_frame(rows)["p_value"]) <= q
    assert got["is_anomaly"].tolist() == want.tolist()
    assert done.flagged == want.sum()
    if want.any():
        assert got["is_anomaly"].tolist() == (got["anomaly_score"] > got["threshold"]).tolist()
    else:
        assert got["threshold"].isna().all()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([table.name, out.name])


def test_an_output_is_not_replaced_unasked(detector: Detector, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    out.write_text("precious")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        score_file(detector, table, out)
    assert out.read_text() == "precious"
    score_file(detector, table, out, ScoreConfig(overwrite=True))
    assert len(pd.read_parquet(out)) == 300


@pytest.mark.parametrize(
    ("output", "config", "said"),
    [
        ("out.xlsx", ScoreConfig(), "must end in"),
        ("nowhere/out.csv", ScoreConfig(), "folder must exist"),
        ("in.parquet", ScoreConfig(overwrite=True), "outside the input"),
        ("out.csv", ScoreConfig(key=("p_value",)), "name of an output column"),
        ("out.csv", ScoreConfig(key=("age", "age")), "named once"),
    ],
)
def test_unusable_outputs_are_refused(
    output: str, config: ScoreConfig, said: str, detector: Detector, table: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        score_file(detector, table, tmp_path / output, config)


def test_an_output_inside_the_input_folder_is_refused(detector: Detector, table: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="outside the input"):
        score_file(detector, tmp_path, tmp_path / "out.parquet")


def test_an_absent_key_is_named(detector: Detector, table: Path, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="'serial'"):
        score_file(detector, table, tmp_path / "out.parquet", ScoreConfig(key=("serial",)))


@pytest.mark.parametrize("content", ["", "load,heat\n", "load,load\n1,2\n"])
def test_unreadable_input_is_said(content: str, detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(content)
    with pytest.raises(UnreadableDataError):
        score_file(detector, tmp_path / "in.csv", tmp_path / "out.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["in.csv"]


class _Failing:
    """Scores two batches and then fails, as a bad row in the middle of a file makes it."""

    def __init__(self, detector: Detector) -> None:
        self.detector, self.calls = detector, 0

    def score_frame(self, frame: pd.DataFrame, **options: Any) -> pd.DataFrame:
        self.calls += 1
        if self.calls == 3:
            raise SchemaError("a bad cell")
        return self.detector.score_frame(frame, **options)

    def threshold(self, alpha: float, *, k: int | None = None) -> float:
        return self.detector.threshold(alpha, k=k)


def test_absent_columns_are_missing_cells_on_demand(detector: Detector, rows: pd.DataFrame, tmp_path: Path) -> None:
    rows.drop(columns="heat").to_parquet(tmp_path / "less.parquet", index=False)
    rows.assign(heat=np.nan).to_parquet(tmp_path / "empty.parquet", index=False)
    with pytest.raises(SchemaError, match="column 'heat' absent"):
        score_file(detector, tmp_path / "less.parquet", tmp_path / "out.parquet")
    config = ScoreConfig(allow_missing=True, explain=7, batch_rows=100, workers=1)
    with pytest.warns(DataWarning, match="absent columns count as missing cells: 'heat'"):
        score_file(detector, tmp_path / "less.parquet", tmp_path / "out.parquet", config)
    score_file(detector, tmp_path / "empty.parquet", tmp_path / "want.parquet", config)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out.parquet"), pd.read_parquet(tmp_path / "want.parquet"))


@pytest.mark.parametrize("fdr", [None, 0.1])
def test_a_failed_job_leaves_nothing_behind(fdr: float | None, detector: Detector, table: Path, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="bad cell"):
        score_file(_Failing(detector), table, tmp_path / "out.parquet", ScoreConfig(batch_rows=50, fdr=fdr))
    assert [p.name for p in tmp_path.iterdir()] == [table.name]


def test_kill_9_leaves_no_output(detector: Detector, rows: pd.DataFrame, table: Path, tmp_path: Path) -> None:
    detector.save(tmp_path / "saved")
    program = """
import sys, time
from anomaly_vae import Detector, ScoreConfig
from anomaly_vae.serving.batch import score_file
slow = lambda rows, turn: (print(rows, flush=True), time.sleep(0.2))
score_file(Detector.load(sys.argv[1]), sys.argv[2], sys.argv[3], ScoreConfig(batch_rows=10), on_rows=slow)
"""
    out = tmp_path / "out.parquet"
    command = [sys.executable, "-c", program, str(tmp_path / "saved"), str(table), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        assert process.stdout is not None
        process.stdout.readline()  # at least one batch is written
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not out.exists()
    assert score_file(detector, table, out).rows == len(rows)  # and the job can simply be run again


@pytest.mark.parametrize("workers", [1, 2])
def test_no_more_frames_are_held_than_there_are_workers(workers: int, detector: Detector, rows: pd.DataFrame) -> None:
    drawn = []

    def frames() -> Iterator[pd.DataFrame]:
        for start in range(0, 300, 30):
            drawn.append(start)
            yield rows.iloc[start : start + 30]

    scored = score_frames(detector, frames(), ScoreConfig(workers=workers))
    first = next(scored)
    assert len(drawn) == {1: 1, 2: 3}[workers]
    assert first.index.equals(rows.index[:30])


def test_evaluation_of_a_file(detector: Detector, rows: pd.DataFrame, tmp_path: Path) -> None:
    from sklearn.metrics import roc_auc_score

    truth = np.arange(300) >= 290
    rows.assign(bad=np.where(truth, "yes", "no")).to_csv(tmp_path / "in.csv", index=False)
    got = evaluate_file(detector, tmp_path / "in.csv", "bad", schema=detector.schema)
    scores = detector.score_frame(rows)
    assert got.ranking.auroc == pytest.approx(roc_auc_score(truth, scores["anomaly_score"]))
    assert got.false_alarms.count == scores["is_anomaly"][~truth].sum()
    assert (got.detections.n, got.false_alarms.n) == (10, 290)
    with pytest.raises(SchemaError, match="leaky"):  # a column of the model's is not shown to it as a label
        evaluate_file(detector, tmp_path / "in.csv", "leaky", schema=detector.schema)
    with pytest.raises(SchemaError, match="'worse'"):
        evaluate_file(detector, tmp_path / "in.csv", "worse", schema=detector.schema)


def test_strangest_rows_come_first_and_explained(detector: Detector, rows: pd.DataFrame, table: Path) -> None:
    got = strangest_rows(detector, table, top=4, columns=2)
    scores = detector.score_frame(rows)["anomaly_score"]
    assert got.index.tolist() == scores.nlargest(4).index.tolist()
    for text, score in zip(got["attributions"], got["anomaly_score"], strict=True):
        assert sum(part["nats"] for part in json.loads(text)) == pytest.approx(score, abs=1e-4)


def test_memory_does_not_grow_with_the_file(detector: Detector, rows: pd.DataFrame, tmp_path: Path) -> None:
    writer = None
    with (tmp_path / "big.parquet").open("wb") as file:
        for _ in range(100):
            part = pa.Table.from_pandas(rows, preserve_index=False)
            writer = writer or pq.ParquetWriter(file, part.schema)
            writer.write_table(part)
        assert writer is not None
        writer.close()
    held = []

    def look(rows_done: int, turn: int) -> None:
        held.append(pa.total_allocated_bytes())

    score_file(detector, tmp_path / "big.parquet", tmp_path / "out.parquet", ScoreConfig(batch_rows=1000), on_rows=look)
    assert max(held[len(held) // 2 :]) < 2 * max(held[: len(held) // 2]) + (8 << 20)
