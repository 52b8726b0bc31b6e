"""The whole product on one real table: train, register, score a file, serve, explain; on images; and rebalanced.

The table is scikit-learn's breast-cancer data: 569 tumours, 30 measurements of cell nuclei each. Half of the
benign tumours are learnt; the other half and all malignant ones are the test, which no model sees before.
The images are its 1,797 digits, of which one is not learnt. Labels are used for the split and for the figures, never
in training. All is kept under mlruns/.

Example:
    python pipelines/demo.py
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pandas as pd
from contenders import PPCA, pca_residual
from debias import demonstrated
from labelled import one_class
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.ensemble import IsolationForest

from anomaly_vae import Detector, ImageConfig, ScoreConfig, TrainConfig
from anomaly_vae.data.images import frame_of
from anomaly_vae.evaluation.metrics import auroc_ap, flag_rate
from anomaly_vae.serving import tracking
from anomaly_vae.serving.batch import score_file, strangest_rows
from anomaly_vae.serving.pictures import strangest_of, write_pictures
from anomaly_vae.serving.provenance import recorded
from anomaly_vae.serving.report import write_data_report

NAME = "breast-cancer"
SEED = 0
OUTLIER = 3
START_SECONDS = 120
UI = "mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///mlruns/mlflow.db"
ROOT = Path(__file__).resolve().parents[1]

console = Console(highlight=False, soft_wrap=True)


@contextlib.contextmanager
def step(number: int, title: str) -> Iterator[None]:
    """Print a numbered heading and, at the end, the time it took."""
    console.print(f"\n[bold blue]{number}[/]  [bold]{title}[/]")
    start = time.perf_counter()
    yield
    console.print(f"   [dim]{time.perf_counter() - start:.1f} s[/]")


def say(text: str) -> None:
    """Print an indented line."""
    console.print(f"   {text}")


def prepare(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, NDArray[np.bool_]]:
    """Keep both parts of the table as Parquet; return training rows, test rows and the test's truth."""
    table = load_breast_cancer(as_frame=True)
    x, malignant = table.data.to_numpy(), (table.target == 0).to_numpy()
    learnt, (tested, truth) = one_class(x, malignant, SEED)
    train = pd.DataFrame(learnt, columns=table.data.columns)
    test = pd.DataFrame(tested, columns=table.data.columns)
    folder.mkdir(parents=True, exist_ok=True)
    train.to_parquet(folder / "train.parquet")
    test.to_parquet(folder / "test.parquet")
    return train, test, truth


def ask(url: str, body: bytes | None = None) -> str:
    """Send a request and return the answer's text."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


@contextlib.contextmanager
def served(uri: str, log: Path) -> Iterator[str]:
    """Serve a model on a free port of this machine while the block runs, and yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "anomaly_vae.cli", "serve", uri, "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                ask(f"{address}/ping")
                break
            except (urllib.error.URLError, ConnectionError):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise click.ClickException(f"the server did not start:\n{log.read_text()}") from None
                time.sleep(0.2)
        yield address
    finally:
        # Its whole group: the command, MLflow under it and the worker under that.
        for sign in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(timeout=10)
                break


def compare_with_server(address: str, detector: Detector, test: pd.DataFrame) -> float:
    """Return the largest difference between the service's scores and the library's."""
    request = {"dataframe_split": test.to_dict(orient="split"), "params": {"explain": 1}}
    answer = json.loads(ask(f"{address}/invocations", json.dumps(request).encode()))["predictions"]
    ours = detector.score_frame(test, explain=1)
    gaps = [np.abs(np.array(answer[name]) - ours[name]).max() for name in ("anomaly_score", "p_value", "mc_se")]
    if answer["is_anomaly"] != ours["is_anomaly"].tolist():
        raise click.ClickException("the service must flag the rows that the library flags, and does not.")
    return float(max(gaps))


def show_reasons(detector: Detector, path: Path, truth: NDArray[np.bool_]) -> None:
    """Print why the five strangest rows are strange."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("row", "score", "p-value", "is", "because of", "nats", "value", "expected"):
        table.add_column(name, justify="left" if name in ("is", "because of") else "right")
    for row, found in strangest_rows(detector, path, top=5, columns=3).iterrows():
        facts = [f"{row}", f"{found.anomaly_score:.1f}", f"{found.p_value:.3f}"]
        facts.append("malignant" if truth[int(str(row))] else "benign")
        for reason in json.loads(found.attributions):
            cells = [f"{reason[name]:.4g}" if name in reason else "" for name in ("value", "expected")]
            table.add_row(*facts, reason["column"], f"{reason['nats']:.1f}", *cells)
            facts = [""] * 4
        table.add_section()
    console.print(table)


def show_summary(scores: dict[str, NDArray[np.float64]], truth: NDArray[np.bool_], flags: NDArray[np.bool_]) -> None:
    """Print accuracy beside the peers' and the false alarms."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("", "AUROC", "95 %", "average precision", "95 %"):
        table.add_column(name, justify="left" if not name else "right")
    for name, values in scores.items():
        r = auroc_ap(truth, values)
        intervals = [f"{low:.3f} to {high:.3f}" for low, high in ((r.auroc_low, r.auroc_high), (r.ap_low, r.ap_high))]
        table.add_row(name, f"{r.auroc:.3f}", intervals[0], f"{r.average_precision:.3f}", intervals[1])
    console.print(table)
    alarms = flag_rate(flags[~truth])
    say(
        f"flagged: {flags[truth].mean():.0%} of the malignant and {alarms.rate:.1%} of the benign test rows "
        f"(95 %: {alarms.low:.1%} to {alarms.high:.1%}; promised: {ScoreConfig.alpha:.0%} on average)"
    )


def images(folder: Path) -> Path:
    """Learn digits but for one, register the detector, tell that one from the others; return the sheet's path."""
    digits = load_digits()
    x, odd = np.round(digits.images * 255 / 16).astype(np.uint8), digits.target == OUTLIER
    known = np.random.default_rng(SEED).permutation(np.flatnonzero(~odd))
    learnt, tested = known[: len(known) * 2 // 3], np.concatenate([known[len(known) * 2 // 3 :], np.flatnonzero(odd)])
    made = tracking.train_and_register(
        frame_of(x[learnt]), ImageConfig(seed=SEED, steps=600), name="digits", source="sklearn"
    )
    frame = frame_of(x[tested]).assign(file=[f"{digits.target[i]}, number {i}" for i in tested])
    scores = made.detector.score_frame(frame_of(x[tested]))
    r = auroc_ap(odd[tested], scores["anomaly_score"])
    say(f"registered as [green]{made.uri}[/]; {len(learnt)} images to learn, {len(tested)} to tell apart")
    residual = auroc_ap(odd[tested], pca_residual(x[learnt])(x[tested]))
    say(f"AUROC {r.auroc:.3f} ({r.auroc_low:.3f} to {r.auroc_high:.3f}); PCA's residual: {residual.auroc:.3f}")
    alarms = flag_rate(scores["is_anomaly"].to_numpy(dtype=bool)[~odd[tested]])
    say(f"false alarms {alarms.rate:.1%} (95 %: {alarms.low:.1%} to {alarms.high:.1%}; promised: 5% on average)")
    strangest = strangest_of(made.detector, frame, top=12)
    return write_pictures(made.detector, strangest, folder / "strangest", overwrite=True)[0]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--root", type=click.Path(file_okay=False, path_type=Path), default=ROOT, help="Folder of mlruns/.")
def main(root: Path) -> None:
    """Train, register, score a file, serve, explain and rebalance on data that scikit-learn ships."""
    root.mkdir(parents=True, exist_ok=True)
    os.chdir(root)  # tracking, its artifacts and the outputs all lie under mlruns/ of the current folder
    started = time.perf_counter()
    folder = Path("mlruns/demo")
    console.print("[bold]anomaly_vae, from a table to a served, explained detector[/]")

    with step(1, "Split the breast-cancer table"):
        train, test, truth = prepare(folder)
        say(f"{len(train)} benign tumours to learn; {(~truth).sum()} benign, {truth.sum()} malignant to test")

    with step(2, "Train, track and register"):
        source = str(folder / "train.parquet")
        made = tracking.train_and_register(train, TrainConfig(seed=SEED), name=NAME, source=source)
        say(f"registered as [green]{made.uri}[/]" + (", the champion" if made.champion else ""))

    with step(3, "Score a file"):
        detector = tracking.load(made.uri).detector
        config = ScoreConfig(explain=3, overwrite=True)
        done = score_file(detector, folder / "test.parquet", folder / "scores.parquet", config, model_version=made.uri)
        scored = pd.read_parquet(done.path)
        say(f"{done.rows} rows in {done.seconds:.2f} s, {done.flagged} flagged")
        say(f"written to {done.path}")

    with step(4, "Serve it and ask over HTTP"), served(made.uri, folder / "server.log") as address:
        say(f"anomaly-vae serve {made.uri}  ->  {address}/invocations")
        gap = compare_with_server(address, detector, test)
        if not gap <= 1e-6:
            raise click.ClickException(f"the service must answer as the library does, got a difference of {gap:.2g}.")
        say(f"{len(test)} rows asked; the largest difference from the library is {gap:.1g}")

    with step(5, "Explain the five strangest rows (nats: the parts sum to the score)"):
        show_reasons(detector, folder / "test.parquet", truth)

    with step(6, f"The same of images: digits without a {OUTLIER}"):
        sheet = images(folder)
        say(f"the strangest images, what was expected and what cost the nats: {sheet}")

    with step(7, "Rebalance: digits of which a few are turned, which nobody is told"):
        demonstrated(say, console)

    with step(8, "Show it as one page that opens offline"):
        page = folder / "report.html"
        labelled = folder / "labelled.parquet"
        test.assign(malignant=truth).to_parquet(labelled)
        written = write_data_report(
            detector, page, model=made.uri, recorded=recorded(made.uri), data=labelled, scored=done.path,
            label="malignant", overwrite=True,
        )  # fmt: skip
        say(f"report: {written.path} ({page.stat().st_size / 1000:,.0f} kB), the numbers in it: {written.twin}")

    with step(9, "Summary"):
        x, y = train.to_numpy(), test.to_numpy()
        scores = {"anomaly_vae": scored["anomaly_score"].to_numpy()}
        scores["isolation forest"] = -IsolationForest(random_state=SEED).fit(x).score_samples(y)
        scores["probabilistic PCA"] = PPCA().fit(x).decision_function(y)
        show_summary(scores, truth, scored["is_anomaly"].to_numpy())

    console.print(f"\n[bold green]Done in {time.perf_counter() - started:.0f} s.[/]")
    say(f"outputs: {folder}/")
    store = tracking.connect()
    local = store.startswith("sqlite:") and Path("mlruns/mlflow.db").exists()
    say(f"to look at the run: {UI if local else f'the tracking server at {store}'}")


if __name__ == "__main__":
    main()
