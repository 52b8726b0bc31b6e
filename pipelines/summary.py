"""What a comparison came to: standings by protocol, as sheets of text and as figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sheet import Sheet

from anomaly_vae.errors import ShapeError
from anomaly_vae.evaluation.comparison import Comparison, compare

YARDSTICK = "pyod_vae"
METRICS = {"auroc": "AUROC", "average_precision": "AP"}
PER_CENT = 100


@dataclass(frozen=True)
class Summary:
    """Standings of contenders under one protocol.

    Attributes:
        protocol: Its name.
        labels: The contenders.
        tables: Names of the tables.
        seeds: Number of seeds.
        comparisons: Metric to means and ranks of the contenders.
        by_table: Metric to means over the seeds, (contenders, tables), NaN where there is none.
        seconds: Fit and score seconds of each contender over all its runs.
        times_yardstick: Seconds in units of PyOD's VAE over the runs that both have, NaN where there are none.
        failures: Runs of each contender that failed.
        reasons: One line for each contender and reason of failure.
    """

    protocol: str
    labels: tuple[str, ...]
    tables: tuple[str, ...]
    seeds: int
    comparisons: dict[str, Comparison]
    by_table: dict[str, NDArray[np.float64]]
    seconds: NDArray[np.float64]
    times_yardstick: NDArray[np.float64]
    failures: NDArray[np.int64]
    reasons: tuple[str, ...]


def summarise(results: pd.DataFrame, protocol: str, labels: Sequence[str], *, n_boot: int = 2000) -> Summary:
    """Compare the contenders over all tables and seeds of a protocol.

    Args:
        results: Rows as `runs.Store.frame` returns them.
        protocol: Which of them.
        labels: The contenders, in their order.
        n_boot: Repetitions of the bootstrap.

    Raises:
        ShapeError: Every run failed.
    """
    rows = results[results.protocol == protocol]
    ok = rows[rows.status == "ok"].assign(seconds=lambda t: t.fit_seconds + t.score_seconds)
    if ok.empty:
        raise ShapeError(f"at least one run must succeed, got {len(rows)} failures; the first: {rows.reason.iloc[0]}.")
    tables = tuple(dict.fromkeys(rows.table))
    seeds = sorted(set(rows.seed))
    index = pd.MultiIndex.from_product([labels, tables, seeds])
    shape = (len(labels), len(tables), len(seeds))

    def cube(column: str) -> NDArray[np.float64]:
        series = ok.set_index(["label", "table", "seed"])[column]
        return series.reindex(index).to_numpy(dtype=np.float64).reshape(shape)

    figures = {metric: cube(metric) for metric in METRICS}
    seconds = cube("seconds")
    times = np.full(len(labels), np.nan)
    if YARDSTICK in labels:
        of_yardstick = seconds[list(labels).index(YARDSTICK)]
        both = ~np.isnan(seconds) & ~np.isnan(of_yardstick)
        spent, beside = np.where(both, seconds, 0).sum((1, 2)), np.where(both, of_yardstick, 0).sum((1, 2))
        times = np.divide(spent, beside, out=times, where=beside > 0)
    failed = rows[rows.status != "ok"]
    counts = failed.groupby(["label", "reason"], sort=False).table.agg(
        ["size", lambda names: ", ".join(dict.fromkeys(names))]
    )
    return Summary(
        protocol=protocol,
        labels=tuple(labels),
        tables=tables,
        seeds=len(seeds),
        comparisons={metric: compare(values, n_boot=n_boot) for metric, values in figures.items()},
        by_table={metric: _mean_over_seeds(values) for metric, values in figures.items()},
        seconds=np.nansum(seconds, axis=(1, 2)),
        times_yardstick=times,
        failures=np.array([(failed.label == label).sum() for label in labels]),
        reasons=tuple(
            f"{label}, {_count(n, 'run')} failed ({names}): {why}"
            for (label, why), (n, names) in zip(counts.index, counts.to_numpy(), strict=True)
        ),
    )


def standings(summary: Summary) -> Sheet:
    """One row for each contender, the best mean AUROC first."""
    found = summary.comparisons
    cells, several = found["auroc"].cells, found["auroc"].tables > 1  # one table leaves no interval
    title = (
        f"{summary.protocol.capitalize()}: {_count(found['auroc'].tables, 'table')}, "
        f"{_count(summary.seeds, 'seed')}, mean % and mean rank"
        + (" [95 % over the choice of tables]" if several else "")
    )
    columns = ("detector", "AUROC", "AP", "rank by AUROC", "rank by AP", "seconds", "times PyOD's VAE", "failed")
    sheet = Sheet(title, columns)
    for i in np.argsort(-np.nan_to_num(found["auroc"].mean, nan=-1), kind="stable"):
        of = [found[metric].of(int(i)) for metric in METRICS]
        means = [_interval(f["mean"], f["mean_low"], f["mean_high"], scale=PER_CENT, several=several) for f in of]
        ranks = [_interval(f["rank"], f["rank_low"], f["rank_high"], several=several) for f in of]
        times = summary.times_yardstick[i]
        sheet.rows.append(
            (
                summary.labels[i] + ("" if of[0]["runs"] == cells else " †"),
                *means,
                *ranks,
                _seconds(summary.seconds[i]),
                "" if np.isnan(times) else f"{times:.2g}",
                str(summary.failures[i]) if summary.failures[i] else "",
            )
        )
    if any(row[0].endswith(" †") for row in sheet.rows):
        sheet.notes.append("† lacks runs: its mean is over those it has, and it is not ranked.")
    sheet.notes += summary.reasons
    return sheet


def by_table(summary: Summary) -> Sheet:
    """AUROC and average precision of each contender on each table."""
    sheet = Sheet(f"{summary.protocol.capitalize()}, AUROC / AP by table, %", ("table", *summary.labels))
    for j, name in enumerate(summary.tables):
        pairs = zip(*(PER_CENT * summary.by_table[metric][:, j] for metric in METRICS), strict=True)
        sheet.rows.append((name, *("" if np.isnan(a) else f"{a:.1f} / {b:.1f}" for a, b in pairs)))
    return sheet


def _interval(value: float, low: float, high: float, *, scale: float = 1, several: bool) -> str:
    if np.isnan(value):
        return ""
    return f"{scale * value:.2f}" + (f" [{scale * low:.2f}, {scale * high:.2f}]" if several else "")


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _mean_over_seeds(values: NDArray[np.float64]) -> NDArray[np.float64]:
    known = (~np.isnan(values)).sum(axis=2)
    return np.divide(np.nansum(values, axis=2), known, out=np.full(known.shape, np.nan), where=known > 0)
