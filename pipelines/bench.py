"""What the detector costs, measured beside the bare arithmetic in the same run.

Two parts, both by default: `speed` (rows per second beside a plain chain of matrix products of the same shapes, beside
PyOD's VAE, and in reduced precision) and `memory` (what a hundred times more rows add to the peak). What it is worth:
`benchmark.py`.

Example:
    python pipelines/bench.py speed --markdown bench.md
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import bench_speed
import click
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from sheet import Sheet

from anomaly_vae import Detector, TrainConfig, fit_detector
from anomaly_vae.detection.scores import BLOCK_SAMPLES, SMALLEST_BLOCK, block_rows, group_rows

PARTS = ("speed", "memory")
COLUMNS = 20
FEWEST_ROWS = 8192
"""Scored at once at least: of fewer, starting a second thread takes a visible share."""


def synthetic(n: int, seed: int) -> pd.DataFrame:
    """Correlated Gaussian rows: a table whose content does not matter, only its shape."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(5, COLUMNS))
    x = rng.normal(size=(n, 5)) @ mixing + 0.5 * rng.normal(size=(n, COLUMNS))
    return pd.DataFrame(x, columns=[f"x{i}" for i in range(COLUMNS)])


def on_threads(threads: int, call: Callable[[], object]) -> float:
    """Return the wall time of a call on a number of threads, seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return bench_speed.timed(call)
    finally:
        torch.set_num_threads(before)


def matmul_chain(detector: Detector, n: int, k: int) -> Callable[[], None]:
    """Return a call that does only the matrix products of scoring n rows with k samples."""
    rows = block_rows(k, COLUMNS)
    chunk = min(k, BLOCK_SAMPLES // SMALLEST_BLOCK)
    group = group_rows(k, COLUMNS)
    blocks, groups = -(-n // rows), -(-n // group)
    networks = (
        (detector.model.encoder, group, groups),
        (detector.model.decoder, rows * chunk, blocks * -(-k // chunk)),
    )
    chains = []
    for network, height, times in networks:
        layers = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
        chain = [(torch.randn(height, m.in_features), m.weight.detach().T.contiguous()) for m in layers]
        chains.append((chain, times))

    @torch.inference_mode()
    def run() -> None:
        for chain, times in chains:
            for _ in range(times):
                for a, b in chain:
                    a @ b

    return run


def speed(*, rows: int, repeats: int, table: Path | None = None) -> list[Sheet]:
    """Rows per second of scoring and of training; then beside PyOD's VAE and in reduced precision."""
    threads = torch.get_num_threads()
    alone = TrainConfig(steps=500, device="cpu", score_kind="likelihood", companions=())
    fit = fit_detector(synthetic(20_000, 1), alone)
    frame = synthetic(rows, 2)
    result = Sheet(
        f"Speed, {COLUMNS} columns, float32, {threads} threads",
        ("job", "rows/s", "matmul chain, rows/s", "times the chain's time"),
    )
    for k in (1, 16, 64):
        part = frame.iloc[: max(FEWEST_ROWS, rows // k)]
        n = len(part)
        calls = {"ours": partial(bench_speed.timed, partial(fit.detector.score_frame, part, k=k))}
        product = matmul_chain(fit.detector, n, k)
        calls |= {f"chain on {t}": partial(on_threads, t, product) for t in {1, threads}}
        for call in calls.values():
            call()
        seconds = bench_speed.in_turns(calls, repeats=repeats)
        ours = seconds.pop("ours")
        chain = min(seconds.values())
        cells = (f"{n / ours:,.0f}", f"{n / chain:,.0f}", f"{ours / chain:.2f}")
        result.rows.append((f"score, k = {k}", *cells))
    whole = fit_detector(synthetic(20_000, 1), TrainConfig(steps=500, device="cpu")).detector
    some = frame.iloc[: max(FEWEST_ROWS, rows // 16)]
    shortest = min(bench_speed.timed(partial(whole.score_frame, some)) for _ in range(repeats))
    result.rows.append(("score, ensemble, k = 16", f"{len(some) / shortest:,.0f}", "", ""))
    trained = fit.history[-1]
    seen = trained.step * fit.detector.config.batch_size
    result.rows.append(("train", f"{seen / trained.seconds:,.0f}", "", ""))
    result.notes.append(
        "Scoring goes from a DataFrame to a DataFrame with p-values, by importance sampling of the autoencoder alone "
        "unless said. The chain is the bare products of the "
        "same layers in blocks of the same shape: no activation, no likelihood, no table; on one "
        "thread or on all, whichever is faster."
    )
    part = frame.iloc[: max(bench_speed.FEWEST_ROWS, rows // bench_speed.SAMPLES)]
    labelled_rows = min(bench_speed.TRAIN_ROWS, rows)
    return [result, *bench_speed.sheets(fit.detector, part, table, rows=labelled_rows, repeats=repeats)]


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


def memory(*, rows: int) -> Sheet:
    """Peak memory of scoring few and many rows from Parquet, each in a process of its own."""
    result = Sheet("Memory of scoring a Parquet file", ("rows", "peak, MiB", "seconds", "rows/s"))
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


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("parts", nargs=-1, type=click.Choice(PARTS))
@click.option("--speed-rows", default=65_536, show_default=True, help="Rows scored at k = 1; fewer at larger k.")
@click.option("--memory-rows", default=2_000_000, show_default=True, help="Rows of the larger file.")
@click.option(
    "--table",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="NAME.npz",
    help="Labelled table with X and y for the comparison with PyOD's VAE; by default a made-up one.",
)
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Also write the tables here.")
def main(
    parts: tuple[str, ...],
    speed_rows: int,
    memory_rows: int,
    table: Path | None,
    markdown: Path | None,
) -> None:
    """Measure PARTS (speed, memory; both by default) and print what was found."""
    console = Console()
    machine = f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}"
    console.print(machine, style="dim", highlight=False)
    jobs: dict[str, Callable[[], list[Sheet]]] = {
        "speed": lambda: speed(rows=speed_rows, repeats=5, table=table),
        "memory": lambda: [memory(rows=memory_rows)],
    }
    written = [f"{machine}\n"]
    for part in parts or PARTS:
        for result in jobs[part]():
            result.show(console)
            written.append(result.to_markdown())
    if markdown:
        markdown.write_text("\n".join(written), encoding="utf-8")


if __name__ == "__main__":
    main()
