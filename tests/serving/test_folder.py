"""Folder jobs: the scores of each part, what is refused, what is set aside, and that nothing is lost or mixed."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly_vae import Detector
from anomaly_vae.errors import (
    ConfigError,
    DataWarning,
    LockedError,
    OutputExistsError,
    SchemaError,
    UnreadableDataError,
)
from anomaly_vae.options import BatchConfig
from anomaly_vae.serving import folder as module
from anomaly_vae.serving.batch import SCORE_FIELDS, score_file
from anomaly_vae.serving.folder import Progress, is_folder, score_folder
from anomaly_vae.serving.lock import held

COLUMNS = ["file", "row", *(name for name, _ in SCORE_FIELDS)]


@pytest.fixture
def parts(rows: pd.DataFrame, tmp_path: Path) -> Path:
    """Five parts of 60 rows, one of them in a sub-folder, one in CSV."""
    folder = tmp_path / "in"
    (folder / "late").mkdir(parents=True)
    for i, name in enumerate(["a.parquet", "b.parquet", "c.csv", "d.parquet", "late/a.parquet"]):
        write(rows.iloc[60 * i : 60 * i + 60], folder / name)
    return folder


def write(frame: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path, index=False, row_group_size=25)


def run(detector: Any, source: object, output: Path, model_version: str = "models:/pumps/1", **settings: Any) -> Any:
    config = BatchConfig(**{"batch_rows": 20, "workers": 1, **settings})
    return score_folder(
        detector, str(source), output, config, model_version=model_version, schema=getattr(detector, "schema", None)
    )


def content(output: Path) -> dict[str, pa.Table]:
    """Every part's rows by name; what a job keeps for itself is not among them."""
    found = {}
    for path in sorted(p for p in output.rglob("*") if p.is_file()):
        name = path.relative_to(output).as_posix()
        if not name.startswith((".", "_")):
            found[name] = pq.read_table(path) if path.suffix == ".parquet" else path.read_bytes()
    return found


def test_each_part_has_its_rows_scores(detector: Detector, rows: pd.DataFrame, parts: Path, tmp_path: Path) -> None:
    done = run(detector, parts, tmp_path / "out", explain=2)
    got = content(tmp_path / "out")
    assert list(got) == ["a.parquet", "b.parquet", "c.csv.parquet", "d.parquet", "late/a.parquet"]
    want = detector.score_frame(rows, explain=2)
    for i, (name, table) in enumerate(got.items()):
        assert table.column_names == COLUMNS
        assert set(table["file"].to_pylist()) == {name.replace(".csv.parquet", ".csv")}
        assert table["row"].to_pylist() == list(range(60))
        if ".csv" not in name:
            for column in ("anomaly_score", "p_value", "is_anomaly", "attributions"):
                assert table[column].to_pylist() == want[column].iloc[60 * i : 60 * i + 60].tolist()
    assert (done.rows, done.parts, done.resumed, done.errors) == (300, 5, 0, 0)
    assert done.flagged == sum(sum(table["is_anomaly"].to_pylist()) for table in got.values()) > 0
    whole = pd.read_parquet(tmp_path / "out")  # a folder that others read as one table
    assert len(whole) == 300
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_file() and p.suffix != ".parquet") == [
        ".lock", "_done.jsonl", "_manifest.json", "_summary.json",
    ]  # fmt: skip
    assert json.loads((tmp_path / "out" / "_summary.json").read_text())["rows"] == 300


@pytest.mark.whole
def test_processes_give_the_same_parts(detector: Detector, parts: Path, tmp_path: Path) -> None:
    run(detector, parts, tmp_path / "one")
    told: list[Progress] = []
    config = BatchConfig(processes=2, batch_rows=20)
    done = score_folder(
        detector, parts, tmp_path / "two", config, model_version="models:/pumps/1",
        schema=detector.schema, on_progress=told.append,
    )  # fmt: skip
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert done.peak_bytes > 50 << 20
    assert (told[-1].done, told[-1].parts, told[-1].rows, told[-1].share) == (5, 5, 300, 1.0)
    assert [one.rows for one in told] == sorted(one.rows for one in told)
    assert any(0 < one.share < 1 for one in told)


@pytest.mark.parametrize("fdr", [0.05, 0.4])
def test_a_false_discovery_rate_holds_over_all_parts(
    fdr: float, detector: Detector, parts: Path, tmp_path: Path
) -> None:
    score_file(detector, parts, tmp_path / "want.parquet", BatchConfig(fdr=fdr), schema=detector.schema)
    want = pd.read_parquet(tmp_path / "want.parquet")
    done = run(detector, parts, tmp_path / "out", fdr=fdr)
    got = pa.concat_tables(content(tmp_path / "out").values()).to_pandas()
    for column in ("anomaly_score", "p_value", "is_anomaly", "threshold"):
        assert got[column].equals(want[column]), column
    assert done.flagged == want["is_anomaly"].sum()
    assert not (tmp_path / "out" / ".work").exists()


@pytest.mark.parametrize("settings", [{}, {"fdr": 0.4}, {"format": "csv"}])
@pytest.mark.parametrize("at", [1, 3])
def test_an_interrupted_job_goes_on_where_it_stood(
    at: int, settings: dict[str, Any], detector: Detector, parts: Path, tmp_path: Path
) -> None:
    run(detector, parts, tmp_path / "want", **settings)

    class InterruptionError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.done == at:
            raise InterruptionError

    config = BatchConfig(batch_rows=20, workers=1, **settings)
    with pytest.raises(InterruptionError):
        score_folder(
            detector, parts, tmp_path / "out", config, model_version="models:/pumps/1",
            schema=detector.schema, on_progress=stop,
        )  # fmt: skip
    assert not (tmp_path / "out" / "_summary.json").exists()
    (tmp_path / "out" / ".work" / "half.tmp").write_text("what a killed process left")
    with (tmp_path / "out" / "_done.jsonl").open("a") as journal:
        journal.write('{"part": 4, "tu')  # the power failed in the middle of a line
    counting = _Counting(detector)
    done = run(counting, parts, tmp_path / "out", **settings)
    assert counting.rows == 300 - 60 * at  # finished parts are not scored again
    assert done.rows_now == 300 - 60 * at
    assert done.resumed == (at if "fdr" not in settings else 0)  # with a rate, nothing is finished before the flags
    assert content(tmp_path / "out") == content(tmp_path / "want")
    again = run(counting, parts, tmp_path / "out", **settings)
    assert (again.rows, again.flagged, again.resumed, again.rows_now) == (300, done.flagged, 5, 0)
    assert counting.rows == 300 - 60 * at


class _Counting:
    """A detector that counts the rows it is asked for."""

    def __init__(self, detector: Detector) -> None:
        self.detector, self.rows = detector, 0
        self.digest, self.schema = detector.digest, detector.schema

    def score_frame(self, frame: pd.DataFrame, **options: Any) -> pd.DataFrame:
        self.rows += len(frame)
        return self.detector.score_frame(frame, **options)

    def threshold(self, alpha: float, *, k: int | None = None) -> float:
        return self.detector.threshold(alpha, k=k)


def test_a_lost_part_is_made_again(detector: Detector, parts: Path, tmp_path: Path) -> None:
    for settings in ({}, {"fdr": 0.4}):
        output = tmp_path / f"out{len(settings)}"
        run(detector, parts, output, **settings)
        want = content(output)
        (output / "b.parquet").unlink()
        (output / "d.parquet").write_bytes(b"cut off")
        done = run(detector, parts, output, **settings)
        assert (done.resumed, done.rows_now) == (3, 120)
        assert content(output) == want


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda parts, detector: {"alpha": 0.1}, "setting alpha: 0.05 before, 0.1 now"),
        (lambda parts, detector: {"key": ("age",)}, "setting key"),
        (lambda parts, detector: {"format": "csv"}, "setting format"),
        (lambda parts, detector: {"model_version": "models:/pumps/2"}, "model's uri"),
        (lambda parts, detector: {"detector": _retrained(detector)}, "model's digest"),
        (lambda parts, detector: (parts / "b.parquet").unlink(), "input 'b.parquet' is gone"),
        (lambda parts, detector: (parts / "new.csv").write_text("load\n1\n"), "input 'new.csv' is new"),
        (lambda parts, detector: os.utime(parts / "b.parquet", (1, 1)), "input 'b.parquet' was changed"),
    ],
)
def test_nothing_changed_is_mixed_into_an_old_output(
    change: Callable[[Path, Detector], dict[str, Any] | None],
    said: str,
    detector: Detector,
    parts: Path,
    tmp_path: Path,
) -> None:
    run(detector, parts, tmp_path / "out")
    before = content(tmp_path / "out")
    settings = change(parts, detector)
    settings = settings if isinstance(settings, dict) else {}
    chosen = settings.pop("detector", detector)
    with pytest.raises(OutputExistsError, match=said):
        run(chosen, parts, tmp_path / "out", **settings)
    assert content(tmp_path / "out") == before
    if (parts / "new.csv").exists():
        return  # which has not the model's columns
    run(chosen, parts, tmp_path / "out", overwrite=True, **settings)
    run(chosen, parts, tmp_path / "want", **settings)
    assert content(tmp_path / "out") == content(tmp_path / "want")


def _retrained(detector: Detector) -> Detector:
    return dataclasses.replace(detector, noise=detector.noise + 0.01)


def test_overwriting_removes_no_file_of_others(detector: Detector, parts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match=r"'thesis.txt' and no _manifest.json"):
            run(detector, parts, output, overwrite=overwrite)
    assert [p.name for p in output.iterdir()] == ["thesis.txt"]
    (output / "thesis.txt").unlink()
    run(detector, parts, output)
    (output / "thesis.txt").write_text("precious")
    (tmp_path / "outside.parquet").write_text("precious")
    manifest = json.loads((output / "_manifest.json").read_text())
    run(detector, parts / "late", output, overwrite=True)
    assert sorted(content(output)) == ["a.parquet", "thesis.txt"]
    assert (output / "thesis.txt").read_text() == "precious"
    manifest["parts"][0]["output"] = "../outside.parquet"
    (output / "_manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(OutputExistsError, match="lies outside"):
        run(detector, parts, output, overwrite=True)
    assert (tmp_path / "outside.parquet").read_text() == "precious"


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("in", "in/out"),
        ("in", "in"),
        ("in", "."),
        ("in/*.parquet", "in"),
        ("in/**/*.parquet", "in/out"),
        ("in/a.parquet", "in"),
    ],
)
def test_outputs_that_would_be_inputs_are_refused(
    source: str, output: str, detector: Detector, parts: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ConfigError, OutputExistsError)):
        run(detector, tmp_path / source, tmp_path / output)
    assert sorted(tmp_path.rglob("*")) == before


def test_globs_and_urls_name_parts(detector: Detector, parts: Path, tmp_path: Path) -> None:
    run(detector, parts / "**" / "a.parquet", tmp_path / "out")
    assert list(content(tmp_path / "out")) == ["a.parquet", "late/a.parquet"]
    run(detector, f"file://{parts}", tmp_path / "url")
    run(detector, parts, tmp_path / "want")
    assert content(tmp_path / "url") == content(tmp_path / "want")
    with pytest.raises(UnreadableDataError, match="got none"):
        run(detector, parts / "*.xlsx", tmp_path / "none")


def test_a_store_that_fsspec_reads(detector: Detector, parts: Path, tmp_path: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    for path in parts.rglob("*.*"):
        store.pipe_file(f"/bucket/{path.relative_to(parts).as_posix()}", path.read_bytes())
    try:
        run(detector, "memory://bucket", tmp_path / "out")
        run(detector, parts, tmp_path / "want")
        assert content(tmp_path / "out") == content(tmp_path / "want")
        run(detector, "memory://bucket/*.parquet", tmp_path / "some")
        assert list(content(tmp_path / "some")) == ["a.parquet", "b.parquet", "d.parquet"]
        store.pipe_file("/bucket/b.parquet", (parts / "a.parquet").read_bytes())
        with pytest.raises(OutputExistsError, match=r"'b\.parquet' was changed"):
            run(detector, "memory://bucket/*.parquet", tmp_path / "some")
    finally:
        store.rm("/bucket", recursive=True)
    with pytest.raises(UnreadableDataError, match="must be a file, folder or glob that can be read"):
        run(detector, "memory://bucket/none.parquet", tmp_path / "none")


def test_an_s3_store(detector: Detector, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moto = pytest.importorskip("moto.server", reason="needs a store: pip install 'moto[server]'")
    from pyarrow.fs import LocalFileSystem, S3FileSystem, copy_files

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        store = S3FileSystem(
            endpoint_override=f"{host}:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True
        )
        store.create_dir("bucket")
        copy_files(str(parts), "bucket/day", source_filesystem=LocalFileSystem(), destination_filesystem=store)
        options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        run(detector, f"s3://bucket/day?{options}", tmp_path / "out")
        run(detector, parts, tmp_path / "want")
        assert content(tmp_path / "out") == content(tmp_path / "want")
        run(detector, f"s3://bucket/day/*.parquet?{options}", tmp_path / "some")
        assert list(content(tmp_path / "some")) == ["a.parquet", "b.parquet", "d.parquet"]
    finally:
        server.stop()


def spoilt(rows: pd.DataFrame, parts: Path) -> None:
    """Bad cells in rows 3, 7 and 44 of a part, a part of no rows, a damaged one, and one without a column."""
    bad = rows.iloc[:60].astype({"load": object})
    bad.iloc[[3, 44], 0] = ["heavy", "light"]
    bad.loc[bad.index[7], "heat"] = np.inf
    write(bad, parts / "c.csv")
    write(rows.iloc[:0], parts / "empty.parquet")
    write(rows.iloc[:20].drop(columns="heat"), parts / "less.parquet")
    (parts / "torn.parquet").write_bytes((parts / "a.parquet").read_bytes()[:-100])


@pytest.mark.parametrize("settings", [{}, {"fdr": 0.4}, {"format": "csv"}, {"processes": 2, "workers": None}])
def test_rows_that_cannot_be_scored_are_set_aside(
    settings: dict[str, Any], detector: Detector, rows: pd.DataFrame, parts: Path, tmp_path: Path
) -> None:
    spoilt(rows, parts)
    done = run(detector, parts, tmp_path / "out", on_error="quarantine", **settings)
    assert (done.parts, done.rows, done.errors) == (8, 297, 5)
    assert done.listed is not None
    listed = pd.read_csv(done.listed) if settings.get("format") == "csv" else pd.read_parquet(done.listed)
    assert listed["file"].tolist() == ["c.csv"] * 3 + ["less.parquet", "torn.parquet"]
    assert listed["row"].fillna(-1).tolist() == [3, 7, 44, -1, -1]
    for reason, said in zip(listed["reason"], ["'heavy'", "infinity", "'light'", "'heat' absent", "torn"], strict=True):
        assert said in reason
    got = content(tmp_path / "out")
    suffix = ".csv" if settings.get("format") == "csv" else ".parquet"
    assert not {"less.parquet" + suffix, "torn.parquet", "torn.parquet.csv"} & set(got)
    if suffix == ".parquet":
        assert got["empty.parquet"].num_rows == 0
        assert got["empty.parquet"].schema == got["a.parquet"].schema
        kept = got["c.csv.parquet"]
        assert kept["row"].to_pylist() == [i for i in range(60) if i not in (3, 7, 44)]
        want = detector.score_frame(rows.iloc[kept["row"].to_pylist()])
        np.testing.assert_allclose(kept["anomaly_score"], want["anomaly_score"], rtol=1e-6)
    again = run(detector, parts, tmp_path / "out", on_error="quarantine", **settings)
    assert (again.rows_now, again.errors) == (0, 5)


def test_groups_are_judged_by_their_own_rows(
    detector: Detector, rows: pd.DataFrame, parts: Path, tmp_path: Path
) -> None:
    from tests.serving.conftest import make_rows

    held = make_rows(400, seed=5)
    grouped = detector.calibrate(held, groups=held["leaky"].map(str).to_numpy())
    bad = rows.iloc[:60].astype({"load": object})
    bad.iloc[[3, 44], 0] = ["heavy", "light"]
    write(bad, parts / "c.csv")
    done = run(grouped, parts, tmp_path / "out", group="leaky", on_error="quarantine", fdr=0.4)
    assert done.errors == 2
    got = content(tmp_path / "out")
    for name, first in (("a.parquet", 0), ("c.csv.parquet", 0), ("d.parquet", 180)):
        frame = rows.iloc[[first + row for row in got[name]["row"].to_pylist()]]
        want = grouped.score_frame(frame, groups=frame["leaky"].map(str).to_numpy())["p_value"]
        assert got[name]["p_value"].to_pylist() == want.tolist()


def test_the_first_bad_row_fails_a_job_that_can_then_set_it_aside(
    detector: Detector, rows: pd.DataFrame, parts: Path, tmp_path: Path
) -> None:
    spoilt(rows, parts)
    with pytest.raises(SchemaError, match=r"in 'c.csv': column 'load' must hold numbers, got 'heavy' in row 3"):
        run(detector, parts, tmp_path / "out")
    assert list(content(tmp_path / "out")) == ["a.parquet", "b.parquet"]
    done = run(detector, parts, tmp_path / "out", on_error="quarantine")
    assert (done.resumed, done.rows, done.errors) == (2, 297, 5)
    with pytest.raises(SchemaError, match="'heavy'"):
        run(detector, parts, tmp_path / "out")  # without the option, those rows fail it again


def test_a_job_that_failed_before_its_first_part_holds_nobody_to_it(
    detector: Detector, rows: pd.DataFrame, parts: Path, tmp_path: Path
) -> None:
    write(rows.iloc[:60].drop(columns="heat"), parts / "a.parquet")
    with pytest.raises(SchemaError, match=r"in 'a\.parquet': "):
        run(detector, parts, tmp_path / "out")
    write(rows.iloc[:60], parts / "a.parquet")
    assert run(detector, parts, tmp_path / "out", alpha=0.1).rows == 300


def test_a_job_without_a_row_to_score_is_an_error(
    detector: Detector, rows: pd.DataFrame, parts: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnreadableDataError, match=r"_errors\.parquet"):
        run(detector, parts, tmp_path / "out", key=("serial",), on_error="quarantine")
    assert "'serial'" in pd.read_parquet(tmp_path / "out" / "_errors.parquet")["reason"][0]


def test_warnings_of_parts_are_given_once_each(
    detector: Detector, rows: pd.DataFrame, parts: Path, tmp_path: Path
) -> None:
    write(rows.iloc[:50].assign(extra=1), parts / "a.parquet")
    with pytest.warns(DataWarning, match="'extra'") as given:
        run(detector, parts, tmp_path / "out")
    assert len(given) == 1


def test_a_file_that_changes_during_the_job_is_refused(
    detector: Detector, rows: pd.DataFrame, parts: Path, tmp_path: Path
) -> None:
    class Meddling(_Counting):
        def score_frame(self, frame: pd.DataFrame, **options: Any) -> pd.DataFrame:
            os.utime(parts / "a.parquet", (1, 1))
            return super().score_frame(frame, **options)

    with pytest.raises(UnreadableDataError, match=r"'a\.parquet' must stay as it is"):
        run(Meddling(detector), parts, tmp_path / "out")
    assert content(tmp_path / "out") == {}


def test_two_jobs_do_not_share_an_output(detector: Detector, parts: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (
        held(tmp_path / "out" / ".lock", "an output folder"),
        pytest.raises(LockedError, match=f"process {os.getpid()}"),
    ):
        run(detector, parts, tmp_path / "out")
    assert run(detector, parts, tmp_path / "out").rows == 300


def test_a_dead_process_keeps_no_lock(tmp_path: Path) -> None:
    program = """
import subprocess, sys, time
from pathlib import Path
from anomaly_vae.serving.lock import held
with held(Path(sys.argv[1]), "a test"):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"], stdout=subprocess.DEVNULL)
    print("held", flush=True)
    time.sleep(20)
"""
    command = [sys.executable, "-c", program, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(LockedError, match=f"process {process.pid}"), held(tmp_path / ".lock", "a test"):
            pass
        process.kill()
        process.wait()
    with held(tmp_path / ".lock", "a test"):  # though a child of it still runs
        pass


def test_memory_does_not_grow_with_a_part(detector: Detector, rows: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    table = pa.Table.from_pandas(rows, preserve_index=False)
    with pq.ParquetWriter(tmp_path / "in" / "big.parquet", table.schema) as writer:
        for _ in range(100):
            writer.write_table(table)
    held_bytes: list[int] = []
    config = BatchConfig(batch_rows=1000)
    score_folder(
        detector, tmp_path / "in", tmp_path / "out", config,
        schema=detector.schema, on_progress=lambda _: held_bytes.append(pa.total_allocated_bytes()),
    )  # fmt: skip
    half = len(held_bytes) // 2
    assert half > 10
    assert max(held_bytes[half:]) < 2 * max(held_bytes[:half]) + (8 << 20)


def test_which_outputs_are_folders(tmp_path: Path) -> None:
    (tmp_path / "v1.2").mkdir()
    assert [is_folder(tmp_path / name) for name in ("out", "v1.2", "a.parquet", "a.csv", "a.xlsx")] == [
        True, True, False, False, False,
    ]  # fmt: skip
    assert is_folder(f"{tmp_path}/v1.3/")


def test_strangers_are_refused(detector: Detector, parts: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="several processes must have a Detector"):
        run(_Counting(detector), parts, tmp_path / "out", processes=2, workers=None)
    with pytest.raises(ConfigError, match="in one that exists"):
        run(detector, parts, tmp_path / "no" / "out")
    assert not (tmp_path / "out").exists()


def test_mapped_weights_score_alike(detector: Detector, rows: pd.DataFrame, tmp_path: Path) -> None:
    detector.save(tmp_path / "saved")
    shared = Detector.load(tmp_path / "saved", shared=True)
    pd.testing.assert_frame_equal(shared.score_frame(rows), detector.score_frame(rows))
    assert shared.digest == detector.digest
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path / "saved" / "model.safetensors") in maps.read_text()


JOB = """
import sys
from anomaly_vae import Detector
from anomaly_vae.options import BatchConfig
from anomaly_vae.serving.folder import score_folder
if __name__ == "__main__":
    model, source, output, fdr = sys.argv[1:]
    detector = Detector.load(model)
    config = BatchConfig(processes=2, batch_rows=100, fdr=float(fdr) or None)
    print("begun", flush=True)
    score_folder(detector, source, output, config, model_version="models:/pumps/1", schema=detector.schema,
                 on_progress=lambda progress: print(progress.rows, flush=True))
"""


def kill_at_random_moments(
    moments: int, detector: Detector, rows: pd.DataFrame, tmp_path: Path, *, parts: int, seed: int
) -> None:
    """Kill the process that hands out the parts, nothing else, and resume; the rows must be those of a whole run."""
    source, model, script = tmp_path / "in", tmp_path / "model", tmp_path / "job.py"
    source.mkdir()
    for i in range(parts):
        write(pd.concat([rows] * 2).sample(frac=1, random_state=i), source / f"{i:03d}.parquet")
    detector.save(model)
    script.write_text(JOB)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(output: Path, fdr: float) -> subprocess.Popen[bytes]:
        command = [sys.executable, script, model, source, output, str(fdr)]
        return subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, env=environment)

    want = {}
    for fdr in (0.0, 0.3) if moments > 2 else (0.0,):
        run(detector, source, tmp_path / f"want-{fdr}", fdr=fdr or None, batch_rows=100)
        want[fdr] = content(tmp_path / f"want-{fdr}")
        assert len(want[fdr]) == parts
    rng, found = random.Random(seed), []
    for moment in range(moments):
        fdr = 0.3 if moment % 3 == 2 else 0.0
        output = tmp_path / f"out-{moment}"
        with start(output, fdr) as process:
            assert process.stdout is not None
            for _ in range(1 + rng.randrange(parts * (8 if fdr else 7))):  # for 100 rows, a part, a part's flags
                process.stdout.readline()
            time.sleep(rng.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.read()  # which ends when the last process that can write ends: no orphan is left
        finished = len(content(output)) if output.exists() else 0
        settings = {"fdr": fdr or None, "batch_rows": 100}
        done = run(detector, source, output, **settings)
        found.append((finished, content(output) == want[fdr], done.rows == 600 * parts))
        assert sorted(p.name for p in output.glob("[._]*")) == [
            ".lock", "_done.jsonl", "_manifest.json", "_summary.json",
        ]  # fmt: skip
    assert all(same and counted for _, same, counted in found), found
    if moments > 2:
        assert any(0 < finished < parts for finished, _, _ in found), f"no kill fell into the middle: {found}"


@pytest.mark.whole
def test_kill_9_and_resume(detector: Detector, rows: pd.DataFrame, tmp_path: Path) -> None:
    kill_at_random_moments(2, detector, rows, tmp_path, parts=12, seed=1)


@pytest.mark.slow
def test_kill_9_at_twenty_moments_and_resume(detector: Detector, rows: pd.DataFrame, tmp_path: Path) -> None:
    kill_at_random_moments(20, detector, rows, tmp_path, parts=60, seed=2)


def test_a_process_that_dies_is_said(
    detector: Detector, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shoot(order: Any, rows: int, total: int | None) -> None:
        import multiprocessing

        for child in multiprocessing.active_children():
            child.kill()

    original = module.crew.carry_out
    monkeypatch.setattr(
        module.crew, "carry_out", lambda *args, **options: original(*args, **{**options, "on_rows": shoot})
    )
    with pytest.raises(RuntimeError, match="ended by signal 9"):
        run(detector, parts, tmp_path / "out", processes=2, workers=None)
    monkeypatch.undo()
    assert run(detector, parts, tmp_path / "out").rows == 300


def test_how_far_a_job_is_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    from anomaly_vae.reporting.terminal import counting_parts, parts_line

    at = Progress(turn=1, done=3, parts=12, rows=1500, share=0.25)
    assert parts_line(at, seconds=3, lately=(2, 0.2)) == "3 of 12 parts, 1,500 rows, 500 a second, 8 s left"
    assert parts_line(at, seconds=3, lately=(2000, 0.2)).endswith(", 2 h 5 min left")
    assert parts_line(at, seconds=3, lately=(0, 0)).endswith("500 a second")
    with counting_parts(shown=False) as nobody:
        assert nobody is None
    with counting_parts(shown=True) as on_progress:
        assert on_progress is not None
        on_progress(at)
        on_progress(dataclasses.replace(at, turn=2, share=0.5))
