"""What the detector is worth: ranking of anomalies on labelled tables, beside PyOD's detectors in the same run.

Two protocols: one-class (half of the normal rows are learnt, the rest is scored) and contaminated (all rows are learnt
and scored, anomalies included). Each finished run is kept at once under --out, and a later call goes on from there.

Example:
    python pipelines/benchmark.py --data adbench/ --detector anomaly_vae --detector anomaly_vae:k=64 --detector knn
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import pandas as pd
from contenders import DEFAULT, DETECTORS, OURS, Contender, contender
from labelled import PROTOCOLS, find_tables
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from runs import Run, Store, measure
from summary import METRICS, Summary, by_table, standings, summarise
from workers import carry_out

from anomaly_vae.errors import AnomalyVaeError

EXPERIMENT = "benchmark"


def free_cores() -> int:
    """Return the number of processes to start by default: one for each core that nobody uses, one or two."""
    if not hasattr(os, "sched_getaffinity"):
        return 1
    return max(1, min(2, round(len(os.sched_getaffinity(0)) - os.getloadavg()[0])))


def compute(runs: Sequence[Run], store: Store, *, jobs: int, limit: float, retry: bool, console: Console) -> set[str]:
    """Carry out what is not done yet, keep each result at once, and return the labels that have new results."""
    missing = [run for run in runs if not store.is_done(run, limit=limit, retry=retry)]
    todo = {run.key: run for run in missing}  # two names of the same settings are one run
    if len(missing) < len(runs):
        console.print(f"{len(runs) - len(missing)} of {len(runs)} runs are there already", style="dim", highlight=False)
    if not todo:
        return set()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console, transient=True) as progress:
        bar = progress.add_task("starting", total=len(todo))
        for run, outcome in carry_out(list(todo.values()), measure, jobs=jobs, limit=limit):
            store.add(run, outcome, limit=limit)
            words = f"{run.table.name}, {run.protocol}, seed {run.seed}, {run.contender.label}"
            if outcome.status != "ok":
                progress.console.print(f"{words}: {outcome.reason}", style="yellow", highlight=False, markup=False)
            progress.update(bar, advance=1, description=words)
    return {run.contender.label for run in missing}


def write_whole(frame: pd.DataFrame, path: Path) -> None:
    """Write a Parquet file under a temporary name and rename it."""
    part = path.with_suffix(f".{os.getpid()}.part")
    frame.to_parquet(part, index=False)
    part.replace(path)


def report(summaries: Sequence[Summary], out: Path, console: Console) -> list[Path]:
    """Print the standings; write report.md and a figure of mean ranks for each protocol, and return their paths."""
    from anomaly_vae.reporting.figures import mean_ranks

    for protocol in PROTOCOLS:  # those of an earlier call may not fit this one
        (out / f"{protocol}.png").unlink(missing_ok=True)
    parts, written = [], [out / "report.md"]
    for summary in summaries:
        overall, tables = standings(summary), by_table(summary)
        overall.show(console)
        tables.show(console)
        parts += [overall.to_markdown(), tables.to_markdown()]
        ranked = summary.comparisons["auroc"]
        if (ranked.runs == ranked.cells).sum() > 1:
            written.append(out / f"{summary.protocol}.png")
            mean_ranks(summary.labels, ranked, metric=f"AUROC, {summary.protocol}").savefig(written[-1], dpi=150)
            parts.append(f"![mean ranks by AUROC]({summary.protocol}.png)\n")
    written[0].write_text("\n".join(parts), encoding="utf-8")
    return written


def log(
    summaries: Sequence[Summary], contenders: Sequence[Contender], results: pd.DataFrame, files: Sequence[Path]
) -> None:
    """Record the comparison as an MLflow run, with one run inside it for each detector."""
    import mlflow

    from anomaly_vae.serving import tracking

    with tracking.quiet(), tracking.tracked_run(EXPERIMENT):
        for path in files:
            mlflow.log_artifact(str(path))
        for one in contenders:
            with mlflow.start_run(run_name=one.label, nested=True), tempfile.TemporaryDirectory() as folder:
                mlflow.log_params({"detector": one.name, "label": one.label, "seeds": summaries[0].seeds})
                mlflow.log_params({f"config.{key}": json.dumps(value) for key, value in one.settings.items()})
                mlflow.log_params({f"version.{key}": value for key, value in one.versions.items()})
                for summary in summaries:
                    mlflow.log_metrics(metrics_of(summary, summary.labels.index(one.label)))
                path = Path(folder) / "results.parquet"
                results[results.label == one.label].to_parquet(path, index=False)
                mlflow.log_artifact(str(path))


def metrics_of(summary: Summary, i: int) -> dict[str, float]:
    """Return the figures of a contender under names such as one-class/auroc_low, those that there are."""
    figures = {"seconds": float(summary.seconds[i]), "failures": float(summary.failures[i])}
    figures["times_pyod_vae"] = float(summary.times_yardstick[i])
    for metric in METRICS:
        found = summary.comparisons[metric].of(i)
        names = {"mean": metric, "mean_low": f"{metric}_low", "mean_high": f"{metric}_high"}
        names |= {f"rank{end}": f"{metric}_rank{end}" for end in ("", "_low", "_high")}
        figures |= {names[key]: value for key, value in found.items() if key in names}
    return {f"{summary.protocol}/{name}": value for name, value in figures.items() if value == value}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of labelled tables, .npz with X and y, 1 = anomaly; without it scikit-learn's breast-cancer table.",
)
@click.option("--table", "names", multiple=True, help="A table of that folder, repeatable; all by default.")
@click.option(
    "--detector",
    "labels",
    multiple=True,
    default=DEFAULT,
    help=f"One of {', '.join(DETECTORS)}, repeatable; {OURS} takes settings: {OURS}:prior=aggregated_posterior,k=1. "
    f"By default {', '.join(DEFAULT)}.",
)
@click.option("--protocol", type=click.Choice([*PROTOCOLS, "both"]), default="both", show_default=True)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Repetitions of each table.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes; by default one a free core, at most 2.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("mlruns/benchmark"),
    show_default=True,
    help="Folder of results.parquet, report.md, figures, and runs/ to go on from.",
)
@click.option("--fresh", is_flag=True, help="Forget the runs that are there.")
@click.option("--retry", is_flag=True, help="Try again what failed or took too long.")
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    default=1800.0,
    show_default=True,
    help="Seconds a run may take.",
)
def main(
    data: Path | None,
    names: tuple[str, ...],
    labels: tuple[str, ...],
    protocol: str,
    seeds: int,
    jobs: int | None,
    out: Path,
    fresh: bool,
    retry: bool,
    time_limit: float,
) -> None:
    """Compare detectors on labelled tables; print and keep the standings."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 200))  # a log has no width
    try:
        contenders = [contender(label) for label in dict.fromkeys(labels)]
        tables = find_tables(data, names)
    except AnomalyVaeError as error:
        raise click.UsageError(str(error)) from None
    protocols = list(PROTOCOLS) if protocol == "both" else [protocol]
    # table outermost: a process keeps the last table it has read
    runs = [Run(t, p, s, c) for t in tables for s in range(seeds) for p in protocols for c in contenders]
    store = Store(out / "runs")
    if fresh:
        store.forget()
    new = compute(runs, store, jobs=jobs or free_cores(), limit=time_limit, retry=retry, console=console)
    results = store.frame(runs)
    write_whole(results, out / "results.parquet")
    try:
        summaries = [summarise(results, p, [c.label for c in contenders]) for p in protocols]
    except AnomalyVaeError as error:
        raise click.ClickException(str(error)) from None
    files = [out / "results.parquet", *report(summaries, out, console)]
    if new:
        log(summaries, [c for c in contenders if c.label in new], results, files)
    console.print(f"written to {out / 'report.md'} and {out / 'results.parquet'}", highlight=False)


if __name__ == "__main__":
    main()
