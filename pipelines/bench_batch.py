"""What scoring a folder of Parquet parts costs: rows per second beside scoring in memory, memory, growth with the rows.

The parts are made up, so many rows of ten columns; a job over a quarter of them, one over half and one over all. Beside
each, in turns, as many processes as the job has score the same rows from memory at the same time: the ceiling.

With --spark instead: the same job by the local engine and by Spark with as many of this machine's cores, in turns;
Spark's first job has the start of its session and workers in it. Outputs must be the same to the last bit.

Example:
    python pipelines/bench_batch.py --rows 1000000 --processes 2
    python pipelines/bench_batch.py --rows 200000 --processes 2 --spark
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from sheet import Sheet

from anomaly_vae import Detector, TrainConfig, fit_detector
from anomaly_vae.options import BatchConfig
from anomaly_vae.serving.folder import Progress, score_folder

SHARES = (4, 2, 1)
SITES = ("Oslo", "Rome", "Bern", "Lima")
ROW_GROUP = 100_000
IN_MEMORY = """
import sys, time
import pandas as pd
from anomaly_vae import Detector
from anomaly_vae.models.threads import threads_worth

if __name__ == "__main__":
    detector, frame, k = Detector.load(sys.argv[1]), pd.read_parquet(sys.argv[2]), int(sys.argv[3]) or None
    with threads_worth(0):
        detector.score_frame(frame.iloc[:1024], k=k)
        print("ready", flush=True)
        sys.stdin.readline()
        start = time.perf_counter()
        for first in range(0, len(frame), 65_536):
            detector.score_frame(frame.iloc[first : first + 65_536], k=k)
        print(len(frame) / (time.perf_counter() - start), flush=True)
"""


@dataclass(frozen=True)
class Timed:
    """One job, or the scoring in memory beside it.

    Attributes:
        rows: Rows scored.
        seconds: From the call to the end.
        scoring: Seconds from the first rows on, which leaves out how long processes take to start.
        rate: Rows per second from the first rows on.
        peak: Most memory of a process, MiB.
    """

    rows: int
    seconds: float
    scoring: float
    rate: float
    peak: float


def made_up(n: int, *, seed: int) -> pd.DataFrame:
    """Ten columns that depend on each other: seven of numbers, a count, two of categories."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, 3))
    mixing = np.random.default_rng(0).normal(size=(3, 7))
    frame = pd.DataFrame(hidden @ mixing + 0.3 * rng.normal(size=(n, 7))).add_prefix("x")
    frame["stops"] = rng.poisson(np.exp(0.5 * hidden[:, 0]))
    frame["site"] = np.asarray(SITES)[np.clip((2 + hidden[:, 1]).astype(int), 0, 3)]
    return frame.assign(wet=hidden[:, 2] + rng.normal(size=n) > 0)


def write_parts(folder: Path, rows: int, part_rows: int) -> list[Path]:
    """Write made-up rows as Parquet parts of several row groups."""
    folder.mkdir()
    paths = []
    for i, first in enumerate(range(0, rows, part_rows)):
        left = min(part_rows, rows - first)
        paths.append(folder / f"part-{i:05d}.parquet")
        with ExitStack() as stack:
            writer: pq.ParquetWriter | None = None
            for begin in range(0, left, ROW_GROUP):
                frame = made_up(min(ROW_GROUP, left - begin), seed=first + begin + 1)
                table = pa.Table.from_pandas(frame, preserve_index=False)
                writer = writer or stack.enter_context(pq.ParquetWriter(paths[-1], table.schema))
                writer.write_table(table)
    return paths


def streamed(detector: Detector, source: Path, output: Path, config: BatchConfig) -> Timed:
    """Time a folder job."""
    seen: list[tuple[float, int]] = []

    def note(progress: Progress) -> None:
        seen.append((time.perf_counter(), progress.rows))

    start = time.perf_counter()
    done = score_folder(detector, source, output, config, schema=detector.schema, on_progress=note)
    end = time.perf_counter()
    began, before = seen[0]
    scoring = end - began
    rate = (done.rows - before) / scoring
    return Timed(done.rows, end - start, scoring * done.rows / (done.rows - before), rate, done.peak_bytes / 2**20)


def in_memory(model: Path, part: Path, processes: int, k: int | None) -> float:
    """Rows per second of several processes that score rows they hold in memory, at the same time, in sum."""
    command = [sys.executable, "-c", IN_MEMORY, str(model), str(part), str(k or 0)]
    with ExitStack() as stack:
        crew = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
            )
            for _ in range(processes)
        ]
        for one in crew:
            assert one.stdout is not None
            if one.stdout.readline() != "ready\n":
                raise click.ClickException("scoring in memory failed; its error stands above.")
        for one in crew:
            assert one.stdin is not None
            one.stdin.write("go\n")
        return sum(float(one.stdout.readline()) for one in crew if one.stdout is not None)


def exponent(jobs: list[Timed]) -> float:
    """The slope of log seconds over log rows: 1 where the cost is linear."""
    slope, _ = np.polyfit(np.log([job.rows for job in jobs]), np.log([job.scoring for job in jobs]), 1)
    return float(slope)


def measure(folder: Path, *, rows: int, part_rows: int, processes: int, steps: int, k: int | None) -> Sheet:
    """Score a quarter, half and all of the rows, and the like in memory between the jobs."""
    detector = fit_detector(made_up(20_000, seed=0), TrainConfig(steps=steps, device="cpu")).detector
    model = folder / "model"
    detector.save(model)
    paths = write_parts(folder / "parts", rows, part_rows)
    width = sum(path.stat().st_size for path in paths) / 2**20
    sheet = Sheet(
        f"Folders of {part_rows:,} rows a part, 10 columns, {processes} processes, k = {k or detector.config.k}",
        ("rows", "parts", "seconds", "rows/s", "in memory, rows/s", "of it", "peak of a process, MiB"),
    )
    jobs, ceilings = [], [in_memory(model, paths[0], processes, k)]
    for share in SHARES:
        some = folder / f"some-{share}"
        some.mkdir()
        for path in paths[: max(1, len(paths) // share)]:
            os.link(path, some / path.name)
        job = streamed(detector, some, folder / f"scored-{share}", BatchConfig(processes=processes, k=k))
        shutil.rmtree(folder / f"scored-{share}")
        jobs.append(job)
        ceilings.append(in_memory(model, paths[0], processes, k))
        beside = (ceilings[-1] + ceilings[-2]) / 2
        sheet.rows.append((
            f"{job.rows:,}", str(len(list(some.iterdir()))), f"{job.seconds:.1f}", f"{job.rate:,.0f}", f"{beside:,.0f}",
            f"{job.rate / beside:.0%}", f"{job.peak:,.0f}",
        ))  # fmt: skip
    sheet.notes.append(
        f"Seconds of scoring grow as rows ** {exponent(jobs):.3f}. Rates are from the first rows on; seconds include "
        f"the start of the processes. The parts hold {width:,.0f} MiB. In memory: as many processes, one thread each, "
        "with the rows in a DataFrame, before and after each job."
    )
    return sheet


def beside_spark(folder: Path, *, rows: int, part_rows: int, processes: int, steps: int, k: int | None) -> Sheet:
    """Score all rows by either engine in turns, twice, and check that they wrote the same."""
    try:
        from anomaly_vae.serving.spark import score_on_spark, session
    except ModuleNotFoundError as error:
        raise click.ClickException(f"--spark must have pyspark, got no module {error.name!r}.") from error
    detector = fit_detector(made_up(20_000, seed=0), TrainConfig(steps=steps, device="cpu")).detector
    parts = write_parts(folder / "parts", rows, part_rows)
    sheet = Sheet(
        f"{rows:,} rows of 10 columns in {len(parts)} parts, {processes} processes, k = {k or detector.config.k}",
        ("engine", "job", "seconds", "rows/s"),
    )
    spark, written = None, []
    try:
        for job in ("first", "second"):
            for engine in ("local", "spark"):
                output, start = folder / f"{engine}-{job}", time.perf_counter()
                if engine == "local":
                    score_folder(detector, folder / "parts", output, BatchConfig(processes=processes, k=k))
                else:
                    spark = spark or session(f"local[{processes}]")
                    score_on_spark(detector, folder / "parts", output, BatchConfig(k=k))
                seconds = time.perf_counter() - start
                sheet.rows.append((engine, job, f"{seconds:.1f}", f"{rows / seconds:,.0f}"))
                written.append([pq.read_table(path) for path in sorted(output.glob("*.parquet"))])
    finally:
        if spark is not None:
            spark.stop()
    if not all(tables == written[0] for tables in written):
        raise click.ClickException("the engines wrote different scores.")
    sheet.notes.append(
        "Seconds are from the call to the end, the start of processes in them. All outputs are the same."
    )
    return sheet


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rows", type=click.IntRange(min=4), default=200_000, show_default=True, help="Rows of the largest job.")
@click.option(
    "--part-rows", type=click.IntRange(min=1), help="Rows of a part.  [default: a sixteenth, at most 500,000]"
)
@click.option("--processes", type=int, default=os.cpu_count(), show_default=True, help="Processes that score.")
@click.option("--steps", type=int, default=500, show_default=True, help="Of training the model.")
@click.option("--k", type=int, help="Posterior samples per row.  [default: the model's]")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Where to write; must not exist.")
@click.option("--spark", is_flag=True, help="Compare with Spark on this machine instead of with scoring in memory.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Also write the table here.")
def main(
    rows: int,
    part_rows: int | None,
    processes: int,
    steps: int,
    k: int | None,
    folder: Path | None,
    spark: bool,
    markdown: Path | None,
) -> None:
    """Score made-up Parquet parts in a stream and print what it costs."""
    part_rows = part_rows or max(1, min(500_000, rows // 16))
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder.mkdir(parents=True)
        measured = beside_spark if spark else measure
        sheet = measured(folder, rows=rows, part_rows=part_rows, processes=processes, steps=steps, k=k)
    sheet.notes.append(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    sheet.show(Console())
    if markdown is not None:
        markdown.write_text(sheet.to_markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()
