"""What the detector costs and what it is worth, measured beside honest peers in the same run.

Three parts, all by default: `speed` (rows per second beside a plain chain of matrix products of the same
shapes), `memory` (what a hundred times more rows add to the peak) and `tables` (accuracy beside an isolation
forest and probabilistic PCA).

Example:
    python pipelines/bench.py speed tables --data adbench/ --markdown bench.md
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table as RichTable
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from anomaly_vae import Detector, TrainConfig, fit_detector
from anomaly_vae.detection.scores import BLOCK_SAMPLES, SMALLEST_BLOCK, block_rows
from anomaly_vae.models.linear import ProbabilisticPCA

PARTS = ("speed", "memory", "tables")
COLUMNS = 20
LARGEST_TABLE = 10_000

Labelled = tuple[NDArray[np.float64], NDArray[np.bool_]]


@dataclass
class Result:
    """One table of figures, for the terminal and for Markdown."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def show(self, console: Console) -> None:
        """Print the table."""
        table = RichTable(title=self.title, title_justify="left", title_style="bold")
        for i, name in enumerate(self.columns):
            table.add_column(name, justify="left" if i == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        for note in self.notes:
            console.print(note, style="dim", highlight=False)
        console.print()

    def to_markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [f"## {self.title}", "", f"| {' | '.join(self.columns)} |"]
        lines.append("|---|" + "---:|" * (len(self.columns) - 1))
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join([*lines, "", *self.notes]).rstrip() + "\n"


def synthetic(n: int, seed: int) -> pd.DataFrame:
    """Correlated Gaussian rows: a table whose content does not matter, only its shape."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(5, COLUMNS))
    x = rng.normal(size=(n, 5)) @ mixing + 0.5 * rng.normal(size=(n, COLUMNS))
    return pd.DataFrame(x, columns=[f"x{i}" for i in range(COLUMNS)])


def shortest(call: Callable[[], object], *, repeats: int) -> float:
    """Return the shortest of some wall times, in seconds: the one that other processes disturbed least."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def on_threads(threads: int, call: Callable[[], object], *, repeats: int) -> float:
    """Return the shortest wall time on a number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return shortest(call, repeats=repeats)
    finally:
        torch.set_num_threads(before)


def matmul_chain(detector: Detector, n: int, k: int) -> Callable[[], None]:
    """Return a call that does only the matrix products of scoring n rows with k samples."""
    rows = block_rows(k, COLUMNS)
    chunk = min(k, BLOCK_SAMPLES // SMALLEST_BLOCK)
    networks = ((detector.model.encoder, rows, 1), (detector.model.decoder, rows * chunk, -(-k // chunk)))
    products = []
    for network, height, times in networks:
        for layer in (m for m in network.modules() if isinstance(m, torch.nn.Linear)):
            products += [(torch.randn(height, layer.in_features), layer.weight.detach().T.contiguous())] * times

    @torch.inference_mode()
    def run() -> None:
        for _ in range(-(-n // rows)):
            for a, b in products:
                a @ b

    return run


def speed(*, rows: int, repeats: int) -> Result:
    """Rows per second of scoring, and of training."""
    threads = torch.get_num_threads()
    fit = fit_detector(synthetic(20_000, 1), TrainConfig(steps=500, device="cpu"))
    frame = synthetic(rows, 2)
    result = Result(
        f"Speed, {COLUMNS} columns, float32, {threads} threads",
        ("job", "rows/s", "matmul chain, rows/s", "times the chain's time"),
    )
    for k in (1, 16, 64):
        part = frame.iloc[: max(2048, rows // k)]
        n = len(part)
        ours = shortest(partial(fit.detector.score_frame, part, k=k), repeats=repeats)
        chain = min(on_threads(t, matmul_chain(fit.detector, n, k), repeats=repeats) for t in {1, threads})
        cells = (f"{n / ours:,.0f}", f"{n / chain:,.0f}", f"{ours / chain:.2f}")
        result.rows.append((f"score, k = {k}", *cells))
    trained = fit.history[-1]
    seen = trained.step * fit.detector.config.batch_size
    result.rows.append(("train", f"{seen / trained.seconds:,.0f}", "", ""))
    result.notes.append(
        "Scoring goes from a DataFrame to a DataFrame with p-values. The chain is the bare products of the "
        "same layers in blocks of the same shape: no activation, no likelihood, no table; on one "
        "thread or on all, whichever is faster."
    )
    return result


SCORE_ONCE = """
import sys
from pathlib import Path
from anomaly_vae import Detector
from anomaly_vae.serving.batch import score_file

score_file(Detector.load(sys.argv[1]), sys.argv[2], sys.argv[3])
status = Path("/proc/self/status")
if status.exists():
    # not getrusage: its peak survives exec and so begins with that of the parent
    print(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")))
else:
    import resource
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def write_rows(path: Path, rows: int) -> None:
    """Write synthetic rows as Parquet without holding them all."""
    schema = pa.schema([(f"x{i}", pa.float64()) for i in range(COLUMNS)])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 100_000):
            frame = synthetic(min(100_000, rows - start), seed=start + 7)
            writer.write_table(pa.Table.from_pandas(frame, schema=schema, preserve_index=False))


def memory(*, rows: int) -> Result:
    """Peak memory of scoring few and many rows from Parquet, each in a process of its own."""
    result = Result("Memory of scoring a Parquet file", ("rows", "peak, MiB", "seconds", "rows/s"))
    peaks = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fit_detector(synthetic(5_000, 1), TrainConfig(steps=200)).detector.save(folder / "detector")
        for n in (rows // 100, rows):
            write_rows(folder / f"{n}.parquet", n)
            arguments = [
                str(folder / "detector"),
                str(folder / f"{n}.parquet"),
                str(folder / f"{n}.scores.parquet"),
            ]
            start = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", SCORE_ONCE, *arguments], capture_output=True, text=True)
            seconds = time.perf_counter() - start
            if done.returncode:
                raise click.ClickException(f"scoring {n} rows failed:\n{done.stderr}")
            written = pq.read_metadata(folder / f"{n}.scores.parquet").num_rows
            if written != n:
                raise click.ClickException(f"{n} rows must give {n} scores, got {written}.")
            peaks.append(int(done.stdout.split()[-1]) / 1024)
            result.rows.append((f"{n:,}", f"{peaks[-1]:,.0f}", f"{seconds:.1f}", f"{n / seconds:,.0f}"))
    result.notes.append(
        f"A hundred times the rows add {peaks[1] - peaks[0]:,.0f} MiB to the peak. Seconds include imports."
    )
    return result


def one_class(x: NDArray[np.float64], y: NDArray[np.bool_], seed: int) -> tuple[NDArray[np.float64], Labelled]:
    """Half of the normal rows to train on; the other half and all anomalies to test on."""
    rng = np.random.default_rng(seed)
    if len(x) > LARGEST_TABLE:
        rows = rng.choice(len(x), LARGEST_TABLE, replace=False)
        x, y = x[rows], y[rows]
    normal = rng.permutation(np.flatnonzero(~y))
    train = normal[: len(normal) // 2]
    test = np.setdiff1d(np.arange(len(x)), train)
    return x[train], (x[test], y[test])


def vae_scores(train: NDArray[np.float64], test: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Scores of this package with its defaults."""
    names = [f"x{i}" for i in range(train.shape[1])]
    detector = fit_detector(pd.DataFrame(train, columns=names), TrainConfig(seed=seed)).detector
    # alpha only sets the flags, which are not looked at: 0.5 can be had from any number of calibration rows
    return detector.score_frame(pd.DataFrame(test, columns=names), alpha=0.5)["anomaly_score"].to_numpy()


def forest_scores(train: NDArray[np.float64], test: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Scores of scikit-learn's isolation forest with its defaults."""
    return -IsolationForest(random_state=seed).fit(train).score_samples(test)


def ppca_scores(train: NDArray[np.float64], test: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Exact -log p(x) of probabilistic PCA on standardised columns, latent width half their number."""
    scaler = StandardScaler().fit(train)
    latent = max(1, train.shape[1] // 2)
    model = ProbabilisticPCA.fit(torch.from_numpy(scaler.transform(train)), latent=latent)
    return -model.log_likelihood(torch.from_numpy(scaler.transform(test))).numpy()


SCORERS = {"anomaly_vae": vae_scores, "isolation forest": forest_scores, "probabilistic PCA": ppca_scores}


def labelled_tables(data: Path | None, names: Sequence[str]) -> Iterator[tuple[str, Labelled | None]]:
    """Yield the tables by name, None where the file is not there."""
    cancer = load_breast_cancer()
    yield "breast-cancer", (cancer.data, cancer.target == 0)
    files = {p.stem.split("_", 1)[-1].lower(): p for p in data.glob("*.npz")} if data else {}
    for name in names:
        path = files.get(name.lower())
        if path is None:
            yield name, None
            continue
        with np.load(path) as arrays:
            yield name, (arrays["X"].astype(np.float64), arrays["y"].astype(bool))


def tables(*, data: Path | None, names: Sequence[str], seeds: int, console: Console) -> Result:
    """AUROC and average precision beside peers, trained on half of the normal rows."""
    columns = ("table", *(f"{name}, AUROC / AP" for name in SCORERS))
    result = Result(f"Accuracy, trained on normal rows, mean of {seeds} seeds, %", columns)
    for name, table in labelled_tables(data, names):
        if table is None:
            result.rows.append((name, *["skipped"] * len(SCORERS)))
            continue
        cells = []
        for scorer in SCORERS.values():
            figures = []
            for seed in range(seeds):
                train, (test, truth) = one_class(*table, seed)
                scores = scorer(train, test, seed)
                figures.append((roc_auc_score(truth, scores), average_precision_score(truth, scores)))
            auroc, precision = (100 * statistics.fmean(column) for column in zip(*figures, strict=True))
            cells.append(f"{auroc:.1f} / {precision:.1f}")
        result.rows.append((name, *cells))
        console.print(f"{name} done", style="dim")
    if any("skipped" in row for row in result.rows):
        result.notes.append(
            "Skipped: no file NUMBER_NAME.npz of that name; give the folder of ADBench tables as --data."
        )
    return result


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("parts", nargs=-1, type=click.Choice(PARTS))
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of ADBench .npz.")
@click.option("--table", "names", multiple=True, default=("cardio", "thyroid", "vowels"), show_default=True)
@click.option("--seeds", default=3, show_default=True, help="Repetitions of each table.")
@click.option("--speed-rows", default=65_536, show_default=True, help="Rows scored at k = 1; fewer at larger k.")
@click.option("--memory-rows", default=2_000_000, show_default=True, help="Rows of the larger file.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Also write the tables here.")
def main(
    parts: tuple[str, ...],
    data: Path | None,
    names: tuple[str, ...],
    seeds: int,
    speed_rows: int,
    memory_rows: int,
    markdown: Path | None,
) -> None:
    """Measure PARTS (speed, memory, tables; all by default) and print what was found."""
    console = Console()
    machine = f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}"
    console.print(machine, style="dim", highlight=False)
    jobs: dict[str, Callable[[], Result]] = {
        "speed": lambda: speed(rows=speed_rows, repeats=5),
        "memory": lambda: memory(rows=memory_rows),
        "tables": lambda: tables(data=data, names=names, seeds=seeds, console=console),
    }
    written = [f"{machine}\n"]
    for part in parts or PARTS:
        result = jobs[part]()
        result.show(console)
        written.append(result.to_markdown())
    if markdown:
        markdown.write_text("\n".join(written), encoding="utf-8")


if __name__ == "__main__":
    main()
