"""What a report keeps of a scored data set, in constant memory: counts, the strangest rows, a random sample.

A scored file is gone through twice, the data beside it once; nothing is scored here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..data.rows import PARQUET_SUFFIXES, labels, read_frames
from ..errors import SchemaError
from ..evaluation.summaries import ScoreCounter, ScoredRows, ScoreSummary, spread_of
from ..options import ReportConfig

NEEDED = ("anomaly_score", "p_value", "is_anomaly")
MOST_CELLS = 1 << 23
"""Cells of a sample at most, however wide the table."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some rows, in their order.

    Attributes:
        scores: Columns `NEEDED`, n rows.
        rows: The rows themselves, n, with whatever columns they have; None where only scores are at hand.
    """

    scores: pd.DataFrame
    rows: pd.DataFrame | None = None


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What is kept.

    Attributes:
        summary: Counts, positions of the strangest rows and of the sample.
        top: The strangest rows, the strangest first; None where only scores are at hand.
        sample: The rows of the sample; None likewise.
        sample_scores: Their scores, p-values and flags.
        anomalous: Which rows of the sample are labelled anomalous, (s,); None where there are no labels.
        top_anomalous: The same of the strangest rows.
        missing: Missing cells of each column among all rows.
    """

    summary: ScoreSummary
    top: pd.DataFrame | None
    sample: pd.DataFrame | None
    sample_scores: pd.DataFrame
    anomalous: NDArray[np.bool_] | None
    top_anomalous: NDArray[np.bool_] | None
    missing: dict[str, int]


def gathered(
    parts: Callable[[], Iterable[Part]],
    scores: Callable[[], Iterable[NDArray[np.float64]]],
    *,
    threshold: float | None,
    config: ReportConfig,
    label: str | None = None,
    groups: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> Gathered:
    """Go through scored rows and keep what a report shows.

    Args:
        parts: Called once; yields all rows.
        scores: Called once, before; yields their anomaly scores.
        threshold: The score above which rows were flagged, if it is one.
        config: How many rows to keep.
        label: Column that is true for anomalous rows.
        groups: Columns that must be there.
        columns: Columns whose missing cells are counted.

    Raises:
        SchemaError: A named column is absent, or a label is none.
        ShapeError: There is no row.
    """
    most = max(1, min(config.sample, MOST_CELLS // max(1, len(columns) + len(groups))))
    spread = spread_of(scores(), threshold=threshold, top=config.top, sample=most, seed=config.seed)
    counter, missing = ScoreCounter(spread, threshold=threshold), dict.fromkeys(columns, 0)
    order = np.argsort(spread.top)
    sampled, sampled_scores, strangest, truth, top_truth = [], [], [], [], []
    start = 0
    for part in parts():
        anomalous = None
        drawn = _within(spread.sample, start, len(part.scores))
        strange = _within(spread.top[order], start, len(part.scores))
        if part.rows is not None:
            _check(part.rows, [*([label] if label else []), *groups])
            anomalous = labels(part.rows[label]) if label else None
            for name in columns:
                if name in part.rows.columns:
                    missing[name] += int(part.rows[name].isna().sum())
                else:
                    missing[name] += len(part.rows)
            sampled.append(part.rows.iloc[drawn])
            strangest.append(part.rows.iloc[strange])
        counter.add(scored_rows(part.scores, anomalous))
        sampled_scores.append(part.scores[list(NEEDED)].iloc[drawn])
        if anomalous is not None:
            truth.append(anomalous[drawn])
            top_truth.append(anomalous[strange])
        start += len(part.scores)
    back = np.argsort(order)
    return Gathered(
        summary=counter.summary(),
        top=pd.concat(strangest).iloc[back] if strangest else None,
        sample=pd.concat(sampled) if sampled else None,
        sample_scores=pd.concat(sampled_scores),
        anomalous=np.concatenate(truth) if truth else None,
        top_anomalous=np.concatenate(top_truth)[back] if top_truth else None,
        missing=missing,
    )


def scored_rows(scores: pd.DataFrame, anomalous: NDArray[np.bool_] | None = None) -> ScoredRows:
    """Return scores, p-values and flags as arrays."""
    flags = scores["is_anomaly"].astype("boolean").fillna(False).to_numpy(dtype=bool)
    values, p = (pd.to_numeric(scores[name]).to_numpy(dtype=np.float64, na_value=np.nan) for name in NEEDED[:2])
    return ScoredRows(values, p, flags, anomalous)


def scored_frames(path: str | Path, columns: Sequence[str], *, batch_rows: int = 1 << 18) -> Iterator[pd.DataFrame]:
    """Yield some columns of a scored file, in frames.

    Raises:
        SchemaError: A column is absent.
        UnreadableDataError: The file cannot be read.
    """
    path = Path(path)
    if path.is_file() and path.name.lower().endswith(PARQUET_SUFFIXES):
        with pq.ParquetFile(path) as file:
            _check_scored(file.schema_arrow.names, columns, path)
            for batch in file.iter_batches(batch_rows, columns=list(columns)):
                yield batch.to_pandas()
        return
    for frame in read_frames(path, batch_rows=batch_rows):
        _check_scored(list(frame.columns), columns, path)
        yield frame[list(columns)]


def rows_at(path: str | Path, positions: NDArray[np.int64]) -> pd.DataFrame:
    """Return rows of a scored file with all their columns, in the order given."""
    path, order = Path(path), np.argsort(positions)
    wanted, found, start = positions[order], [], 0
    if path.is_file() and path.name.lower().endswith(PARQUET_SUFFIXES):
        with pq.ParquetFile(path) as file:
            for i in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(i).num_rows
                mine = _within(wanted, start, rows)
                if len(mine):
                    found.append(file.read_row_group(i).take(mine).to_pandas())
                start += rows
    else:
        for frame in read_frames(path):
            found.append(frame.iloc[_within(wanted, start, len(frame))])
            start += len(frame)
    return pd.concat(found, ignore_index=True).iloc[np.argsort(order)].reset_index(drop=True)


def beside(frames: Iterable[pd.DataFrame], scored: Iterable[pd.DataFrame], *, data: str, file: str) -> Iterator[Part]:
    """Yield rows and their scores together: a scored file has the rows of its input in their order.

    Raises:
        SchemaError: There are more rows, or fewer, than scores.
    """
    left, rest, rows = iter(scored), pd.DataFrame(), 0
    for frame in frames:
        waiting, held = [rest], len(rest)
        while held < len(frame):
            more = next(left, None)
            if more is None:
                raise SchemaError(
                    f"a scored file must have a row for each of the data's, got {rows + held:,} in {file!r} and more "
                    f"in {data!r}. Name the data that were scored."
                )
            waiting.append(more)
            held += len(more)
        joined = pd.concat([part for part in waiting if len(part)] or waiting)
        yield Part(scores=joined.iloc[: len(frame)], rows=frame)
        rest, rows = joined.iloc[len(frame) :], rows + len(frame)
    if len(rest) or any(len(frame) for frame in left):
        raise SchemaError(
            f"a scored file must have a row for each of the data's, got {rows:,} in {data!r} and more in {file!r}. "
            "Name the data that were scored."
        )


def _within(positions: NDArray[np.int64], start: int, rows: int) -> NDArray[np.int64]:
    """Return which rows of a part that begins at `start` are among ascending positions."""
    low, high = np.searchsorted(positions, [start, start + rows])
    return positions[low:high] - start


def _check(rows: pd.DataFrame, names: Sequence[str]) -> None:
    for name in names:
        if name not in rows.columns:
            listed = ", ".join(repr(str(column)) for column in rows.columns[:8])
            raise SchemaError(f"a named column must be in the data, got {name!r}. They have {listed}.", column=name)


def _check_scored(names: Sequence[Any], columns: Sequence[str], path: Path) -> None:
    absent = [name for name in columns if name not in names]
    if absent:
        raise SchemaError(
            f"a scored file must have the columns that `anomaly-vae score` writes, got none called {absent[0]!r} in "
            f"{path.name!r}. Score the data first.",
            column=absent[0],
        )
