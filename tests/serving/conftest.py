"""One small detector, one tracking store and one server for all tests of this room."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from anomaly_vae import Detector, TrainConfig
from anomaly_vae.serving import tracking

NAME = "pumps"


def make_rows(n: int, *, seed: int, strange: int = 0) -> pd.DataFrame:
    """Mixed columns with missing cells; the last `strange` rows break the link between load and heat."""
    rng = np.random.default_rng(seed)
    load = rng.normal(100, 20, n)
    frame = pd.DataFrame(
        {
            "load": load,
            "heat": 0.3 * load + rng.normal(0, 1, n),
            "age": rng.integers(18, 90, n),
            "stops": rng.poisson(2, n),
            "site": rng.choice(["Oslo", "Rome", "Bern"], n),
            "code": rng.choice(["007", "12", "0990"], n),
            "leaky": rng.random(n) < 0.3,
        }
    )
    frame.loc[frame.index[5::31], "heat"] = np.nan
    frame.loc[frame.index[7::37], "site"] = None
    if strange:
        frame.loc[frame.index[-strange:], "heat"] = rng.normal(90, 5, strange)
    return frame


@pytest.fixture(scope="session")
def rows() -> pd.DataFrame:
    """Rows that the detector was not trained on, the last ten strange."""
    return make_rows(300, seed=1, strange=10)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tracking database for the session, used instead of the folder's own."""
    folder = tmp_path_factory.mktemp("store")
    before = os.environ.get("MLFLOW_TRACKING_URI")
    with tracking.quiet():
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        mlflow.create_experiment(NAME, artifact_location=(folder / "artifacts").as_uri())
        yield folder
        mlflow.set_tracking_uri(None)
    if before is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before


@pytest.fixture(scope="session")
def registered(store: Path) -> tracking.Registered:
    """A detector trained, tracked and registered with labels, the champion of its name."""
    frame = make_rows(800, seed=0, strange=20)
    labels = np.arange(len(frame)) >= len(frame) - 20
    config = TrainConfig(
        score_kind="likelihood",
        steps=200,
        hidden=(32,),
        latent=3,
        calibration_k=(1, 16),
        columns={"code": "categorical"},
    )
    return tracking.train_and_register(frame, config, name=NAME, labels=labels, source="made up for the tests")


@pytest.fixture(scope="session")
def detector(registered: tracking.Registered) -> Detector:
    """The registered detector."""
    return registered.detector


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder in which MLflow has been told nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str], port: int, *, log: Path | None = None, probe: str = "/ping", **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A server process, from its first answer on; it is stopped at the end if it still runs."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment |= variables
    with (
        Path(log or os.devnull).open("wb") as output,
        subprocess.Popen([sys.executable, "-m", *command], env=environment, stdout=output, stderr=output) as process,
    ):
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(lambda: urllib.request.urlopen(address + probe, timeout=2).status == 200, process)
            yield process
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def server(registered: tracking.Registered) -> Iterator[str]:
    """Address of a real `anomaly-vae serve` process."""
    port = free_port()
    with running(["anomaly_vae.cli", "serve", f"models:/{NAME}@champion", "--port", str(port)], port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def plain_server(registered: tracking.Registered) -> Iterator[str]:
    """Address of MLflow's own server of the same model."""
    port = free_port()
    words = ["mlflow", "models", "serve", "-m", registered.uri, "--port", str(port), "--env-manager", "local"]
    with running(words, port):
        yield f"http://127.0.0.1:{port}"


def _wait(ready: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        try:
            if ready():
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError("the server did not answer in time")
