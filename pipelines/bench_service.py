"""What the service stands: speed beside a model that computes nothing, memory over many requests, and rubbish.

Three parts, all by default; all on this machine's loopback, each ending by itself:

speed   1 and 1,000 rows a request, by 1, 16 and 64 clients, at `anomaly-vae serve` and, in turns of a few seconds, at
        `mlflow models serve` of a pass-through model with the same signature (its columns declared, and not)
memory  the worker's resident bytes while it answers many requests
fuzz    thousands of requests that nobody should send (see `fuzzing.py`)

Example:
    python pipelines/bench_service.py speed --seconds 60 --markdown service.md
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import mlflow
import numpy as np
import pandas as pd
from fuzzing import Fuzzer
from rich.console import Console
from sheet import Sheet

from anomaly_vae import Detector, TrainConfig, fit_detector
from anomaly_vae.options import ServeConfig
from anomaly_vae.serving import flavor

HERE = Path(__file__).resolve().parent
PARTS = ("speed", "memory", "fuzz")
TURN_SECONDS = 5.0
OURS, DECLARED, BARE = "anomaly-vae serve", "pass-through, columns declared", "pass-through, no columns"


def made_up(n: int, seed: int) -> pd.DataFrame:
    """Eight dependent numbers, a category and a count: a table whose content does not matter."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)) @ np.random.default_rng(0).normal(size=(3, 8)) + 0.5 * rng.normal(size=(n, 8))
    frame = pd.DataFrame(x, columns=[f"x{i}" for i in range(8)])
    return frame.assign(site=rng.choice(["Oslo", "Rome", "Bern"], n), stops=rng.poisson(2, n))


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def served(words: Sequence[str], log: Path) -> Iterator[int]:
    """A server process and its port, from its first answer on."""
    port = free_port()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", *words, "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + 180
            while True:
                with contextlib.suppress(OSError):
                    if urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).status == 200:
                        break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise click.ClickException(f"the server did not start:\n{log.read_text()}")
                time.sleep(0.3)
            yield port
        finally:
            process.terminate()
            process.wait(timeout=90)


@dataclass
class Load:
    """Answers to one kind of request: seconds of each, and how many were errors."""

    seconds: list[float] = field(default_factory=list)
    errors: int = 0
    wall: float = 0.0

    def milliseconds(self, share: float) -> float:
        """Return a quantile."""
        return float(np.quantile(self.seconds, share)) * 1000


def ask_for(seconds: float, port: int, body: bytes, clients: int, load: Load, *, most: int | None = None) -> None:
    """Let clients with connections of their own ask, one request after the other, and add up what they saw."""
    begun = time.monotonic()

    def client(_: int) -> tuple[list[float], int]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        seen: list[float] = []
        errors = 0
        while time.monotonic() - begun < seconds and (most is None or len(seen) < most):
            started = time.perf_counter()
            try:
                connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                errors += answer.status != 200
            except OSError:
                errors += 1
                connection.close()
            seen.append(time.perf_counter() - started)
        connection.close()
        return seen, errors

    with ThreadPoolExecutor(clients) as pool:
        for seen, errors in pool.map(client, range(clients)):
            load.seconds += seen
            load.errors += errors
    load.wall += time.monotonic() - begun


def body_of(frame: pd.DataFrame, **params: Any) -> bytes:
    """Return a request in the format that most clients send."""
    split = json.loads(frame.to_json(orient="split", index=False, double_precision=15))
    return json.dumps({"dataframe_split": split, **({"params": params} if params else {})}).encode()


def speed(detector: Detector, folder: Path, rows: Sequence[int], clients: Sequence[int], seconds: float) -> Sheet:
    """Compare the service with pass-through models, in turns."""
    detector.save(folder / "detector")
    for name, declared in (("declared", True), ("bare", False)):
        signature = flavor.signature(detector.schema, declare_inputs=declared)
        code = str(HERE / "passthrough.py")
        mlflow.pyfunc.save_model(folder / name, python_model=code, signature=signature, pip_requirements=[])
    plain = ["mlflow", "models", "serve", "--env-manager", "local", "-m"]
    frame = made_up(max(rows), seed=2)
    columns = ("rows", "clients", "server", "requests/s", "p50 ms", "p95 ms", "p99 ms", "errors", "p50 ratio")
    sheet = Sheet("Requests on loopback", columns)
    with (
        served(["anomaly_vae.cli", "serve", str(folder / "detector")], folder / "ours.log") as ours,
        served([*plain, str(folder / "declared")], folder / "declared.log") as declared_port,
        served([*plain, str(folder / "bare")], folder / "bare.log") as bare_port,
    ):
        contenders = ((f"{OURS}, k = 1", ours), (OURS, ours), (DECLARED, declared_port), (BARE, bare_port))
        for n in rows:
            for some in clients:
                loads = {name: Load() for name, _ in contenders}
                turns = max(1, round(seconds / TURN_SECONDS))
                for _ in range(turns):
                    for name, port in contenders:
                        body = body_of(frame.iloc[:n], k=1) if name.endswith("k = 1") else body_of(frame.iloc[:n])
                        ask_for(seconds / turns, port, body, some, loads[name])
                base = loads[DECLARED].milliseconds(0.5)
                for name, load in loads.items():
                    quantiles = [f"{load.milliseconds(q):.1f}" for q in (0.5, 0.95, 0.99)]
                    rate, ratio = len(load.seconds) / load.wall, load.milliseconds(0.5) / base
                    cells = (f"{n:,}", str(some), name, f"{rate:.1f}", *quantiles, str(load.errors), f"{ratio:.2f}")
                    sheet.rows.append(cells)
    sheet.notes.append(f"Ratios to {DECLARED}. {seconds:g} s each, in turns; clients, servers: one machine.")
    return sheet


def metric(port: int, name: str) -> float:
    """Return a value of /metrics."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).read().decode()
    found = re.search(rf"^anomaly_vae_{name} (\S+)$", text, re.MULTILINE)
    assert found, name
    return float(found[1])


def memory(detector: Detector, folder: Path, requests: int) -> Sheet:
    """Watch the worker's memory over many requests."""
    detector.save(folder / "watched")
    sheet = Sheet("Memory of a worker", ("requests", "resident MiB", "errors"))
    with served(["anomaly_vae.cli", "serve", str(folder / "watched")], folder / "memory.log") as port:
        frame, load = made_up(200, seed=3), Load()
        for tenth in range(11):
            if tenth:
                body = body_of(frame.iloc[: (1, 5, 200)[tenth % 3]], k=1)
                ask_for(1e9, port, body, 4, load, most=max(1, requests // 40))
            mebibytes = metric(port, "resident_bytes") / (1 << 20)
            sheet.rows.append((f"{len(load.seconds):,}", f"{mebibytes:.0f}", str(load.errors)))
    return sheet


def fuzz(detector: Detector, folder: Path, requests: int, seed: int) -> Sheet:
    """Send rubbish."""
    detector.save(folder / "fuzzed")
    bounds = ServeConfig(max_bytes=4 << 20, read_timeout_s=5.0)
    words = ["anomaly_vae.cli", "serve", str(folder / "fuzzed"), "--max-bytes", str(bounds.max_bytes)]
    sheet = Sheet("Requests that nobody should send", ("what", "count"))
    with served([*words, "--read-timeout-s", str(bounds.read_timeout_s)], folder / "fuzz.log") as port:
        fuzzer = Fuzzer(port, made_up(50, seed=4), seed=seed, max_bytes=bounds.max_bytes)
        outcome = fuzzer.run(requests, threads=8)
        sheet.notes.append(f"{metric(port, 'in_flight'):.0f} in flight afterwards; seed {seed}")
    sheet.rows = [(f"sent: {kind}", f"{n:,}") for kind, n in sorted(outcome.kinds.items())]
    sheet.rows += [(f"answered {status or 'by closing'}", f"{n:,}") for status, n in sorted(outcome.statuses.items())]
    sheet.rows.append(("other answers, or none in time", str(len(outcome.unexpected))))
    sheet.rows.append(("good requests answered wrongly", str(outcome.wrong_answers)))
    sheet.notes.append(f"slowest answer {outcome.slowest:.1f} s")
    sheet.notes += outcome.unexpected[:20]
    return sheet


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(PARTS))
@click.option("--seconds", default=60.0, show_default=True, help="Of each kind of request, at each server.")
@click.option("--rows", multiple=True, type=int, default=(1, 1000), show_default=True, help="Rows of a request.")
@click.option("--clients", multiple=True, type=int, default=(1, 16, 64), show_default=True, help="Clients at once.")
@click.option("--requests", default=100_000, show_default=True, help="Over which memory is watched.")
@click.option("--rubbish", default=10_000, show_default=True, help="Fuzzed requests.")
@click.option("--seed", default=0, show_default=True, help="Of the fuzzed requests.")
@click.option("--steps", default=500, show_default=True, help="Of training the model that answers.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Write the tables there too.")
def main(
    parts: tuple[str, ...], seconds: float, rows: tuple[int, ...], clients: tuple[int, ...], markdown: Path | None,
    **given: int,
) -> None:  # fmt: skip
    """Load a service on loopback with requests, good and bad."""
    console, sheets = Console(), []
    detector = fit_detector(made_up(2000, seed=1), TrainConfig(steps=given["steps"], calibration_k=(1, 16))).detector
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for part in parts or PARTS:
            if part == "speed":
                sheets.append(speed(detector, folder, rows, clients, seconds))
            elif part == "memory":
                sheets.append(memory(detector, folder, given["requests"]))
            else:
                sheets.append(fuzz(detector, folder, given["rubbish"], given["seed"]))
            sheets[-1].notes.append(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
            sheets[-1].show(console)
    if markdown is not None:
        markdown.write_text("\n".join(sheet.to_markdown() for sheet in sheets), encoding="utf-8")


if __name__ == "__main__":
    main()
