"""Spark gives the numbers of the local engine, and loses nothing with a worker."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly_vae import Detector, ScoreConfig
from anomaly_vae.errors import ConfigError, SchemaError
from anomaly_vae.options import BatchConfig
from anomaly_vae.serving.folder import Progress, score_folder

pyspark = pytest.importorskip("pyspark", reason="needs pip install 'anomaly-vae[spark]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java 17"),
]
PARTS = 8


@pytest.fixture(scope="module")
def local_ip() -> Iterator[None]:
    """Keep Spark on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Standalone:
    """A master and two workers of one core each, on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.master = self._start(
            "master", "org.apache.spark.deploy.master.Master", "--host", "127.0.0.1", "--port", self.port,
            "--webui-port", free_port(),
        )  # fmt: skip
        self._until("master", "I have been elected leader")
        self.workers = [self.add_worker(i) for i in range(2)]

    @property
    def url(self) -> str:
        return f"spark://127.0.0.1:{self.port}"

    def add_worker(self, i: int) -> subprocess.Popen[bytes]:
        worker = self._start(
            f"worker{i}", "org.apache.spark.deploy.worker.Worker", "--host", "127.0.0.1", "--cores", 1,
            "--memory", "1g", "--webui-port", free_port(), "--work-dir", self.folder / f"work{i}", self.url,
        )  # fmt: skip
        self._until(f"worker{i}", "Successfully registered with master")
        return worker

    def _start(self, name: str, *words: object) -> subprocess.Popen[bytes]:
        home = Path(pyspark.__file__).parent
        environment = {**os.environ, "SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1"}
        with (self.folder / f"{name}.log").open("wb") as log:
            command = [str(home / "bin" / "spark-class"), *map(str, words)]
            # a group of its own, so that what it starts dies with it
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def _until(self, name: str, text: str) -> None:
        deadline = time.monotonic() + 90
        log = self.folder / f"{name}.log"
        while text not in log.read_text(errors="replace"):
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-2000:]
            time.sleep(0.2)

    def stop(self) -> None:
        for process in [*self.workers, self.master]:
            kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def cluster(local_ip: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standalone]:
    made = Standalone(tmp_path_factory.mktemp("cluster"))
    yield made
    made.stop()


@pytest.fixture
def parts(rows: pd.DataFrame, tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(PARTS):
        part = pd.concat([rows] * 3).sample(frac=1, random_state=i).assign(ticket=[f"{i}-{j}" for j in range(900)])
        if i == 1:
            part.to_csv(folder / f"{i}.csv", index=False)
        else:
            part.to_parquet(folder / f"{i}.parquet", index=False)
    return folder


def content(output: Path) -> dict[str, pa.Table]:
    return {path.name: pq.read_table(path) for path in sorted(output.glob("*.parquet"))}


def on_spark(detector: Detector, source: Path, output: Path, master: str, **settings: Any) -> Any:
    from anomaly_vae.serving.spark import score_on_spark

    on_progress = settings.pop("on_progress", None)
    return score_on_spark(
        detector, source, output, BatchConfig(**settings), model_version="models:/pumps/1", master=master,
        on_progress=on_progress,
    )  # fmt: skip


def locally(detector: Detector, source: Path, output: Path, **settings: Any) -> Any:
    config = BatchConfig(**settings)
    return score_folder(detector, source, output, config, model_version="models:/pumps/1", schema=detector.schema)


@pytest.mark.filterwarnings("ignore::anomaly_vae.errors.DataWarning")
def test_two_workers_give_the_local_numbers(
    cluster: Standalone, detector: Detector, parts: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any]
    for name, settings in {"plain": {"explain": 2}, "rate": {"fdr": 0.3}}.items():
        want = locally(detector, parts, tmp_path / f"local-{name}", **settings)
        done = on_spark(detector, parts, tmp_path / f"spark-{name}", cluster.url, **settings)
        assert content(tmp_path / f"spark-{name}") == content(tmp_path / f"local-{name}")  # to the last bit
        assert (done.rows, done.flagged) == (want.rows, want.flagged) == (900 * PARTS, want.flagged)
    locally(detector, parts, tmp_path / "spark-plain", explain=2)  # the same job, whoever goes on with it


@pytest.mark.filterwarnings("ignore::anomaly_vae.errors.DataWarning")
def test_bad_rows_are_said_and_set_aside(cluster: Standalone, detector: Detector, parts: Path, tmp_path: Path) -> None:
    bad = pd.read_parquet(parts / "3.parquet").astype({"load": object})
    bad.loc[5, "load"] = "heavy"
    bad.to_csv(parts / "3.csv", index=False)
    (parts / "3.parquet").unlink()
    with pytest.raises(SchemaError, match=r"in '3.csv': column 'load' must hold numbers, got 'heavy' in row 5"):
        on_spark(detector, parts, tmp_path / "out", cluster.url)
    done = on_spark(detector, parts, tmp_path / "out", cluster.url, on_error="quarantine")
    assert (done.rows, done.errors) == (900 * PARTS - 1, 1)
    with pytest.raises(ConfigError, match="left to Spark"):
        on_spark(detector, parts, tmp_path / "none", cluster.url, processes=2)


@pytest.mark.filterwarnings("ignore::anomaly_vae.errors.DataWarning")
def test_a_killed_worker_loses_nothing(
    cluster: Standalone, detector: Detector, rows: pd.DataFrame, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for i in range(16):
        pd.concat([rows] * 7).sample(frac=1, random_state=i).to_parquet(source / f"{i:02d}.parquet", index=False)
    locally(detector, source, tmp_path / "local", explain=7)
    seen: list[int] = []
    killed = threading.Event()

    def watch(progress: Progress) -> None:
        seen.append(progress.done)
        if progress.done == 4:
            kill(cluster.workers[1])  # in the middle of its next part
            killed.set()

    done = on_spark(detector, source, tmp_path / "spark", cluster.url, explain=7, on_progress=watch)
    assert killed.is_set()
    assert (done.rows, done.parts, seen[-1]) == (16 * 2100, 16, 16)
    assert content(tmp_path / "spark") == content(tmp_path / "local")
    cluster.workers[1] = cluster.add_worker(1)


def test_tables_of_spark_are_scored(
    local_ip: None, detector: Detector, rows: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process, with several batches of a task and rows whose order Spark does not keep."""
    from anomaly_vae.serving.spark import flag_table, score_table, session

    monkeypatch.delenv("PYSPARK_PYTHON")
    spark = session("local[2]")
    try:
        assert spark.range(1).rdd.map(lambda _: sys.executable).first() == sys.executable  # of this very Python
        keyed = rows.assign(ticket=np.arange(300), loaded=lambda t: t["load"].round().astype("int64"))
        keyed.to_parquet(tmp_path / "in.parquet", index=False)
        spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "70")
        table = spark.read.parquet(str(tmp_path / "in.parquet")).repartition(3)
        config = ScoreConfig(key=("ticket", "site"), explain=1)
        made = score_table(table, detector, config, model_version="models:/pumps/1")
        got = made.toPandas().sort_values("ticket")
        want = detector.score_frame(rows, explain=1)
        assert got["site"].where(got["site"].notna(), None).tolist() == rows["site"].tolist()
        for name in ("anomaly_score", "p_value", "is_anomaly", "threshold", "attributions"):
            assert got[name].tolist() == want[name].tolist(), name
        flags = flag_table(made.cache(), detector, 0.9).toPandas().sort_values("ticket")
        expected = detector.score_frame(rows, fdr=0.9)
        assert flags["is_anomaly"].tolist() == expected["is_anomaly"].tolist()
        assert 0 < flags["is_anomaly"].sum() < 300
        assert flags["threshold"].tolist() == expected["threshold"].tolist()
        weights = score_table(
            table, Weigher(), ScoreConfig(key=("ticket",)), columns=pa.schema([("weight", pa.float64())])
        )
        found = weights.toPandas().sort_values("ticket")
        assert list(found.columns) == ["ticket", "weight"]
        assert found["weight"].tolist() == (1 / rows["age"]).tolist()
        with pytest.raises(ConfigError, match="flag_table"):
            score_table(table, detector, ScoreConfig(fdr=0.1))
    finally:
        spark.stop()


def test_two_processes_of_a_cluster_train_the_model_of_one(cluster: Standalone, tmp_path: Path) -> None:
    from anomaly_vae import TrainConfig, fit_detector
    from anomaly_vae.serving.spark import Trainers
    from tests.serving.conftest import make_rows

    config = TrainConfig(steps=75, batch_size=33, hidden=(16,), latent=2, companions=(2,), k=4, calibration_k=(4,))
    frame = make_rows(400, seed=0)
    alone = fit_detector(frame, config)
    told: list[int] = []
    together = fit_detector(
        frame, config, elsewhere=Trainers(2, tmp_path / "shared", cluster.url), on_epoch=lambda e: told.append(e.step)
    )
    assert told == [25, 50, 75] == [epoch.step for epoch in together.history]
    elbos = ([epoch.validation_elbo for epoch in fit.history] for fit in (together, alone))
    np.testing.assert_allclose(*elbos, atol=1e-3)
    scores = (fit.detector.score_frame(frame)["anomaly_score"] for fit in (together, alone))
    np.testing.assert_allclose(*scores, rtol=1e-3, atol=1e-2)
    assert not list((tmp_path / "shared").iterdir())


def test_a_training_that_fails_says_why(cluster: Standalone, tmp_path: Path) -> None:
    from anomaly_vae import TrainConfig, fit_detector
    from anomaly_vae.errors import TrainingError
    from anomaly_vae.serving.spark import Trainers
    from tests.serving.conftest import make_rows

    trainers = Trainers(2, tmp_path, cluster.url)
    config = TrainConfig(steps=50, hidden=(8,), latent=2, companions=(), k=4, calibration_k=(4,), learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"the training loss must be finite, got .* Lower learning_rate"):
        fit_detector(make_rows(200, seed=0), config, elsewhere=trainers)


class Weigher:
    """Not a detector: whatever has its `score_frame` is mapped likewise."""

    def score_frame(self, frame: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"weight": 1 / frame["age"]})
