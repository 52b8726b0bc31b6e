"""Files in, scored files out, in constant memory.

An output appears under its name only when whole: written beside it under a temporary name, flushed and renamed.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from ..data.image_source import FILE
from ..data.images import ImageSchema
from ..data.rows import labels
from ..data.schema import Schema
from ..detection.calibration import discovery_cutoff
from ..errors import SchemaError, UnreadableDataError
from ..evaluation.metrics import Ranking, Rate, auroc_ap, flag_rate
from ..models.threads import take_part
from ..options import ScoreConfig
from .outputs import appearing, check_output, temporary, write_errors_of, write_tables
from .streams import ROW, beyond, group_names, stream

MOST_WORKERS = 8

SCORE_FIELDS = (
    ("anomaly_score", pa.float64()),
    ("score_kind", pa.string()),
    ("p_value", pa.float64()),
    ("is_anomaly", pa.bool_()),
    ("threshold", pa.float64()),
    ("mc_se", pa.float64()),
    ("ess", pa.float64()),
    ("reliable", pa.bool_()),
    ("attributions", pa.string()),
    ("model_version", pa.string()),
)
LIKELIHOOD_FIELDS = (
    ("log_likelihood", pa.float64()),
    ("log_likelihood_se", pa.float64()),
    ("log_likelihood_k", pa.int64()),
    ("log_likelihood_reached", pa.bool_()),
)
"""Appended where `ScoreConfig.mc_se` asks for log p(x) to a stated error."""


class Scorer(Protocol):
    """What batch scoring needs of a model."""

    def score_frame(
        self,
        frame: pd.DataFrame,
        *,
        alpha: float = 0.05,
        fdr: float | None = None,
        k: int | None = None,
        explain: int = 0,
        allow_missing: bool = False,
        mc_se: float | None = None,
        groups: ArrayLike | None = None,
    ) -> pd.DataFrame:
        """Return one row of scores for each row, with the same index."""

    def threshold(self, alpha: float, *, k: int | None = None) -> float:
        """Return the score above which the p-value is at most alpha."""


@dataclass(frozen=True, kw_only=True)
class ScoredFile:
    """What a batch job did.

    Attributes:
        path: The output.
        rows: Rows scored.
        flagged: Rows flagged as anomalous.
        unreliable: Rows whose effective sample size was too small to trust their score.
        unreached: Rows whose log p(x) did not reach the error asked for (`ScoreConfig.mc_se`).
        seconds: Wall time.
        unreadable: Images that could not be read.
        errors: The file that lists them, if there are any: name of the output and `.errors.csv`.
    """

    path: Path
    rows: int
    flagged: int
    unreliable: int
    unreached: int
    seconds: float
    unreadable: int = 0
    errors: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a detector does on labelled rows.

    Attributes:
        ranking: AUROC and average precision.
        false_alarms: Share of normal rows that were flagged.
        detections: Share of anomalous rows that were flagged.
        alpha: The false-alarm rate that was promised.
    """

    ranking: Ranking
    false_alarms: Rate
    detections: Rate
    alpha: float


@dataclass(kw_only=True)
class Tally:
    """Counts of the rows of tables of scores; see `ScoredFile`."""

    rows: int = 0
    flagged: int = 0
    unreliable: int = 0
    unreached: int = 0

    def add(self, table: pa.Table) -> None:
        """Count the rows of a table in."""
        self.rows += len(table)
        self.flagged += pc.sum(table["is_anomaly"]).as_py() or 0
        self.unreliable += pc.sum(pc.invert(table["reliable"])).as_py() or 0
        if "log_likelihood_reached" in table.column_names:
            self.unreached += pc.sum(pc.invert(table["log_likelihood_reached"])).as_py() or 0


def score_frames(
    scorer: Scorer,
    frames: Iterable[pd.DataFrame],
    config: ScoreConfig,
    *,
    model_version: str = "",
    schema: Schema | ImageSchema | None = None,
) -> Iterator[pd.DataFrame]:
    """Score a stream of frames, a few at a time in threads, in their order.

    Args:
        scorer: The model.
        frames: Rows, indexed by row number.
        config: Threshold, samples, attributions and key columns. A false discovery rate holds per frame here;
            `score_file` keeps it over the whole job.
        model_version: Written beside every row.
        schema: The model's columns: it is not shown keys beyond them.

    Returns:
        Frames of the key columns as they came (or the row number), then the scores and the model's version.

    Raises:
        SchemaError: A key column is absent.
    """
    key = config.key or ((FILE,) if isinstance(schema, ImageSchema) else ())
    unknown = beyond(schema, *key, config.group) if schema is not None else []

    def scored(frame: pd.DataFrame) -> pd.DataFrame:
        keys = _keys(frame, key)
        extra: dict[str, Any] = {} if config.mc_se is None else {"mc_se": config.mc_se}
        if config.group is not None:
            extra["groups"] = group_names(frame, config.group).to_numpy()
        scores = scorer.score_frame(
            frame.drop(columns=[*unknown, *_beside(frame, schema)]),
            alpha=config.alpha,
            fdr=config.fdr,
            k=config.k,
            explain=config.explain,
            allow_missing=config.allow_missing,
            **extra,
        )
        if len(scores) < len(keys):  # the scorer has set rows aside
            keys = keys.loc[scores.index]
        return pd.concat([keys, scores.assign(model_version=model_version)], axis=1)

    return _in_order(scored, frames, config.workers or min(os.cpu_count() or 1, MOST_WORKERS))


def _in_order(
    function: Callable[[pd.DataFrame], pd.DataFrame], frames: Iterable[pd.DataFrame], workers: int
) -> Iterator[pd.DataFrame]:
    """Map in threads, keeping the order and holding at most one frame more than there are threads."""
    if workers == 1:
        yield from map(function, frames)
        return
    with ThreadPoolExecutor(workers, initializer=take_part) as pool:
        waiting: deque[Future[pd.DataFrame]] = deque()
        for frame in frames:
            waiting.append(pool.submit(function, frame))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def score_file(
    scorer: Scorer,
    source: str | Path,
    output: str | Path,
    config: ScoreConfig | None = None,
    *,
    model_version: str = "",
    schema: Schema | ImageSchema | None = None,
    on_rows: Callable[[int, int], None] | None = None,
) -> ScoredFile:
    """Score a file or folder of CSV or Parquet, or images, into one file.

    Args:
        scorer: The model.
        source: CSV or Parquet file, or a folder of them; for a model of images see `data.image_files.open_images`.
        output: File to write, `.parquet` or `.csv`.
        config: How to score; by default `ScoreConfig()`.
        model_version: Written beside every row.
        schema: The model's columns: its text columns stay text when read from CSV, and it is not shown other keys.
        on_rows: Called with the number of rows done and the pass (1, or 2 under a false discovery rate).

    Raises:
        OutputExistsError: The output is there and may not be overwritten.
        ConfigError: The output's name or place cannot be used, or a key has the name of an output column.
        SchemaError: A key column is absent, or the rows do not fit the model.
        UnreadableDataError: No image could be read.
    """
    config = config or ScoreConfig()
    output = Path(output)
    check_output(output, Path(source), config, {name for name, _ in score_fields(config)})
    started = time.perf_counter()
    report = on_rows or (lambda rows, turn: None)
    group = next(iter(beyond(schema, config.group)), None)
    data = stream(source, schema, batch_rows=config.batch_rows, key=config.key, label=group)
    scored = score_frames(scorer, data.frames, config, model_version=model_version, schema=schema)
    tables = tables_of(scored, data.types, score_fields(config))
    if config.fdr is None:
        with appearing(output) as aside:
            tally = written(tables, aside, output.suffix, lambda n: report(n, 1))
    else:
        tally = _score_under_fdr(scorer, tables, output, config, report)
    listed = write_errors_of(output, data.errors)
    seconds = time.perf_counter() - started
    return ScoredFile(path=output, seconds=seconds, unreadable=len(data.errors), errors=listed, **vars(tally))


def evaluate_file(
    scorer: Scorer,
    source: str | Path,
    label: str,
    *,
    group_by: str | None = None,
    alpha: float = ScoreConfig.alpha,
    schema: Schema | ImageSchema | None = None,
    on_rows: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score labelled rows and compare.

    Args:
        scorer: The model.
        source: CSV or Parquet file, or a folder of them.
        label: Column that is true or 1 for anomalous rows.
        group_by: Column of what makes rows alike, such as machines: intervals are then by its groups.
        alpha: False-alarm rate to flag at.
        schema: The model's columns: its text columns stay text when read from CSV.
        on_rows: Called with the number of rows done and the pass, 1.

    Raises:
        SchemaError: The label column is absent or holds something else than labels, or that of groups is.
        ShapeError: The rows are all of one kind, or one kind's are all of one group.
    """
    truth, score, flag, group, rows = [], [], [], [], 0
    unseen = [label, *beyond(schema, group_by)]
    for frame in stream(source, schema, label=label, key=[group_by] if group_by else []).frames:
        if label not in frame.columns:
            raise SchemaError(
                f"the label must be a column of the table, got {label!r}. It has {_listed(frame)}.", column=label
            )
        if group_by is not None:
            group.append(group_names(frame, group_by).to_numpy(dtype=str))
        scores = scorer.score_frame(frame.drop(columns=[*unseen, *_beside(frame, schema)]), alpha=alpha)
        truth.append(labels(frame[label]))
        score.append(scores["anomaly_score"].to_numpy())
        flag.append(scores["is_anomaly"].to_numpy(dtype=bool))
        rows += len(frame)
        if on_rows:
            on_rows(rows, 1)
    anomalous, flags, groups = np.concatenate(truth), np.concatenate(flag), np.concatenate(group) if group else None
    alarms, found = (
        flag_rate(flags[kind], groups=None if groups is None else groups[kind]) for kind in (~anomalous, anomalous)
    )
    ranking = auroc_ap(anomalous, np.concatenate(score), groups=groups)
    return Evaluation(ranking=ranking, false_alarms=alarms, detections=found, alpha=alpha)


def strangest_rows(
    scorer: Scorer, source: str | Path, *, top: int, columns: int, schema: Schema | ImageSchema | None = None
) -> pd.DataFrame:
    """Return the highest-scoring rows of a table with their attributions, the strangest first.

    Args:
        scorer: The model.
        source: CSV or Parquet file, or a folder of them.
        top: How many rows.
        columns: How many columns each explanation names.
        schema: The model's columns: its text columns stay text when read from CSV.

    Returns:
        Scores indexed by row number, with `attributions`.
    """
    best = strangest(scorer, source, top=top, schema=schema)
    return scorer.score_frame(best.drop(columns=_beside(best, schema)), explain=columns)


def strangest(
    scorer: Scorer, source: str | Path, *, top: int, schema: Schema | ImageSchema | None = None
) -> pd.DataFrame:
    """Return the highest-scoring rows, or images, themselves, as they were read; see `strangest_rows`."""
    best = pd.DataFrame()
    for frame in stream(source, schema).frames:
        scores = scorer.score_frame(frame.drop(columns=_beside(frame, schema)))["anomaly_score"]
        frame = frame.assign(**{_SCORE: scores})
        best = pd.concat([best, frame.nlargest(top, _SCORE)]).nlargest(top, _SCORE)
    if best.empty:
        raise UnreadableDataError(f"the input must hold something readable, got nothing in {str(source)!r}.")
    return best.drop(columns=_SCORE)


def _beside(frame: pd.DataFrame, schema: Schema | ImageSchema | None) -> list[str]:
    """Return the columns that a stream of images has beside the images."""
    return [FILE] if isinstance(schema, ImageSchema) and FILE in frame.columns else []


_SCORE = "\0anomaly_score"  # a name that no table has


def _score_under_fdr(
    scorer: Scorer, tables: Iterable[pa.Table], output: Path, config: ScoreConfig, report: Callable[[int, int], None]
) -> Tally:
    """Score once into a temporary file while counting p-values, then write the flags that the counts decide."""
    assert config.fdr is not None
    counts: Counter[float] = Counter()

    def counted() -> Iterator[pa.Table]:
        for table in tables:
            values, times = np.unique(table["p_value"].to_numpy(), return_counts=True)
            counts.update(dict(zip(values.tolist(), times.tolist(), strict=True)))
            yield table

    with temporary(output) as first:
        written(counted(), first, ".parquet", lambda n: report(n, 1))
        last = discovery_cutoff(list(counts), list(counts.values()), q=config.fdr)
        # With nothing to flag there is no score above which a row would be flagged; with groups there are several.
        threshold = scorer.threshold(last, k=config.k) if last and config.group is None else None

        with appearing(output) as aside:
            flags = flagged(first, last, threshold, batch_rows=config.batch_rows)
            return written(flags, aside, output.suffix, lambda n: report(n, 2))


def flagged(first: Path, last: float, threshold: float | None, *, batch_rows: int) -> Iterator[pa.Table]:
    """Yield a scored Parquet file with the flags of a false discovery rate.

    Args:
        first: The file.
        last: Largest p-value to flag.
        threshold: Score above which a row is flagged; None: no row is.
        batch_rows: Rows of a table.
    """
    with pq.ParquetFile(first) as scored:
        for batch in scored.iter_batches(batch_rows):
            part = pa.Table.from_batches([batch])
            part = _replaced(part, "is_anomaly", pc.less_equal(part["p_value"], last))
            yield _replaced(part, "threshold", pa.repeat(pa.scalar(threshold, pa.float64()), len(part)))


def _replaced(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def _keys(frame: pd.DataFrame, key: Sequence[str]) -> pd.DataFrame:
    if not key:
        return pd.DataFrame({ROW: frame.index}, index=frame.index)
    absent = [name for name in key if name not in frame.columns]
    if absent:
        raise SchemaError(
            f"a key must be a column of the table, got {absent[0]!r}. It has {_listed(frame)}.", column=absent[0]
        )
    return frame[list(key)]


def _listed(frame: pd.DataFrame) -> str:
    names = [repr(str(name)) for name in frame.columns[:8]]
    return ", ".join(names) + (", ..." if frame.shape[1] > 8 else "")


def score_fields(config: ScoreConfig) -> tuple[tuple[str, pa.DataType], ...]:
    """Return names and types of an output's columns besides the keys."""
    return SCORE_FIELDS if config.mc_se is None else SCORE_FIELDS + LIKELIHOOD_FIELDS


def tables_of(
    scored: Iterable[pd.DataFrame], key_types: dict[str, pa.DataType], fields: tuple[tuple[str, pa.DataType], ...]
) -> Iterator[pa.Table]:
    """Every batch under one schema, whatever types pandas chose for it."""
    schema = pa.schema([*key_types.items(), *fields])
    for frame in scored:
        try:
            yield pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise SchemaError(
                f"key columns must have one type in all files, got another after row {frame.index[0]} ({error}). "
                "Convert them to text first."
            ) from error


def written(tables: Iterable[pa.Table], path: Path, suffix: str, report: Callable[[int], None]) -> Tally:
    """Write tables into a file and count their rows; see `outputs.write_tables`."""
    tally = Tally()

    def counted(table: pa.Table) -> None:
        tally.add(table)
        report(tally.rows)

    write_tables(tables, path, suffix, counted)
    return tally
