"""Files in, scored files out, in constant memory.

An output appears under its name only when it is whole: it is written beside it under a temporary name, flushed to the
disk and renamed.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from ..data.rows import PARQUET_SUFFIXES, labels, read_frames, table_files
from ..data.schema import Schema
from ..detection.calibration import discovery_cutoff
from ..errors import ConfigError, OutputExistsError, SchemaError
from ..evaluation.metrics import Ranking, Rate, auroc_ap, flag_rate
from ..options import ScoreConfig

ROW = "row"
"""The key column of an output that was given no key: the row's number in the input, from 0."""
MOST_WORKERS = 8
OUTPUT_SUFFIXES = (".parquet", ".pq", ".csv")

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
    """

    path: Path
    rows: int
    flagged: int
    unreliable: int
    unreached: int
    seconds: float


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
class _Tally:
    rows: int = 0
    flagged: int = 0
    unreliable: int = 0
    unreached: int = 0

    def add(self, table: pa.Table) -> None:
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
    schema: Schema | None = None,
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
    beyond = [name for name in config.key if schema is not None and name not in schema.names]

    def scored(frame: pd.DataFrame) -> pd.DataFrame:
        keys = _keys(frame, config.key)
        extra = {} if config.mc_se is None else {"mc_se": config.mc_se}
        scores = scorer.score_frame(
            frame.drop(columns=beyond),
            alpha=config.alpha,
            fdr=config.fdr,
            k=config.k,
            explain=config.explain,
            allow_missing=config.allow_missing,
            **extra,
        )
        return pd.concat([keys, scores.assign(model_version=model_version)], axis=1)

    return _in_order(scored, frames, config.workers or min(os.cpu_count() or 1, MOST_WORKERS))


def _in_order(
    function: Callable[[pd.DataFrame], pd.DataFrame], frames: Iterable[pd.DataFrame], workers: int
) -> Iterator[pd.DataFrame]:
    """Map in threads, keeping the order and holding at most one frame more than there are threads."""
    if workers == 1:
        yield from map(function, frames)
        return
    with ThreadPoolExecutor(workers) as pool:
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
    schema: Schema | None = None,
    on_rows: Callable[[int, int], None] | None = None,
) -> ScoredFile:
    """Score a file or folder of CSV or Parquet into one file.

    Args:
        scorer: The model.
        source: CSV or Parquet file, or a folder of them.
        output: File to write, `.parquet` or `.csv`.
        config: How to score; by default `ScoreConfig()`.
        model_version: Written beside every row.
        schema: The model's columns: its text columns stay text when read from CSV, and it is not shown other keys.
        on_rows: Called with the number of rows done and the pass (1, or 2 under a false discovery rate).

    Raises:
        OutputExistsError: The output is there and may not be overwritten.
        ConfigError: The output's name or place cannot be used, or a key has the name of an output column.
        SchemaError: A key column is absent, or the rows do not fit the model.
    """
    config = config or ScoreConfig()
    output = Path(output)
    _check_output(output, Path(source), config)
    started = time.perf_counter()
    report = on_rows or (lambda rows, turn: None)
    text = {*_text(schema), *config.key}
    frames = read_frames(source, batch_rows=config.batch_rows, text=text)
    scored = score_frames(scorer, frames, config, model_version=model_version, schema=schema)
    tables = _tables(scored, _key_types(Path(source), config.key), _score_fields(config))
    if config.fdr is None:
        with _appearing(output) as temporary:
            tally = _write(tables, temporary, output.suffix, lambda n: report(n, 1))
    else:
        tally = _score_under_fdr(scorer, tables, output, config, report)
    return ScoredFile(path=output, seconds=time.perf_counter() - started, **vars(tally))


def evaluate_file(
    scorer: Scorer,
    source: str | Path,
    label: str,
    *,
    alpha: float = ScoreConfig.alpha,
    schema: Schema | None = None,
    on_rows: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score labelled rows and compare.

    Args:
        scorer: The model.
        source: CSV or Parquet file, or a folder of them.
        label: Column that is true or 1 for anomalous rows.
        alpha: False-alarm rate to flag at.
        schema: The model's columns: its text columns stay text when read from CSV.
        on_rows: Called with the number of rows done and the pass, 1.

    Raises:
        SchemaError: The label column is absent or holds something else than labels.
        ShapeError: The rows are all of one kind.
    """
    truth, score, flag, rows = [], [], [], 0
    for frame in read_frames(source, text={*_text(schema), label}):
        if label not in frame.columns:
            raise SchemaError(
                f"the label must be a column of the table, got {label!r}. It has {_listed(frame)}.", column=label
            )
        scores = scorer.score_frame(frame.drop(columns=label), alpha=alpha)
        truth.append(labels(frame[label]))
        score.append(scores["anomaly_score"].to_numpy())
        flag.append(scores["is_anomaly"].to_numpy(dtype=bool))
        rows += len(frame)
        if on_rows:
            on_rows(rows, 1)
    anomalous, flags = np.concatenate(truth), np.concatenate(flag)
    return Evaluation(
        ranking=auroc_ap(anomalous, np.concatenate(score)),
        false_alarms=flag_rate(flags[~anomalous]),
        detections=flag_rate(flags[anomalous]),
        alpha=alpha,
    )


def strangest_rows(
    scorer: Scorer, source: str | Path, *, top: int, columns: int, schema: Schema | None = None
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
    best = pd.DataFrame()
    for frame in read_frames(source, text=_text(schema)):
        frame = frame.assign(**{_SCORE: scorer.score_frame(frame)["anomaly_score"]})
        best = pd.concat([best, frame.nlargest(top, _SCORE)]).nlargest(top, _SCORE)
    return scorer.score_frame(best.drop(columns=_SCORE), explain=columns)


def _text(schema: Schema | None) -> frozenset[str]:
    return schema.text_columns if schema else frozenset()


_SCORE = "\0anomaly_score"  # a name that no table has


def _score_under_fdr(
    scorer: Scorer, tables: Iterable[pa.Table], output: Path, config: ScoreConfig, report: Callable[[int, int], None]
) -> _Tally:
    """Score once into a temporary file while counting p-values, then write the flags that the counts decide."""
    assert config.fdr is not None
    counts: Counter[float] = Counter()

    def counted() -> Iterator[pa.Table]:
        for table in tables:
            values, times = np.unique(table["p_value"].to_numpy(), return_counts=True)
            counts.update(dict(zip(values.tolist(), times.tolist(), strict=True)))
            yield table

    with _temporary(output) as first:
        _write(counted(), first, ".parquet", lambda n: report(n, 1))
        last = discovery_cutoff(list(counts), list(counts.values()), q=config.fdr)
        # With nothing to flag there is no score above which a row would be flagged.
        threshold = scorer.threshold(last, k=config.k) if last else None

        def flagged() -> Iterator[pa.Table]:
            with pq.ParquetFile(first) as scored:
                for batch in scored.iter_batches(config.batch_rows):
                    part = pa.Table.from_batches([batch])
                    part = _replaced(part, "is_anomaly", pc.less_equal(part["p_value"], last))
                    yield _replaced(part, "threshold", pa.repeat(pa.scalar(threshold, pa.float64()), len(part)))

        with _appearing(output) as temporary:
            return _write(flagged(), temporary, output.suffix, lambda n: report(n, 2))


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


def _key_types(source: Path, key: Sequence[str]) -> dict[str, pa.DataType]:
    """Arrow types of the keys: those of the Parquet input, text from CSV (where the characters are the value)."""
    if not key:
        return {ROW: pa.int64()}
    first = table_files(source)[0]
    if not first.name.lower().endswith(PARQUET_SUFFIXES):
        return {name: pa.string() for name in key}
    fields = pq.read_schema(first)
    return {name: fields.field(name).type if name in fields.names else pa.string() for name in key}


def _score_fields(config: ScoreConfig) -> tuple[tuple[str, pa.DataType], ...]:
    return SCORE_FIELDS if config.mc_se is None else SCORE_FIELDS + LIKELIHOOD_FIELDS


def _tables(
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


def _write(tables: Iterable[pa.Table], path: Path, suffix: str, report: Callable[[int], None]) -> _Tally:
    tally = _Tally()
    with path.open("wb") as file, contextlib.ExitStack() as open_writers:
        writer: pq.ParquetWriter | pyarrow.csv.CSVWriter | None = None
        for table in tables:
            if writer is None and suffix == ".csv":
                writer = open_writers.enter_context(pyarrow.csv.CSVWriter(file, table.schema))
            elif writer is None:
                writer = open_writers.enter_context(pq.ParquetWriter(file, table.schema, compression="zstd"))
            writer.write_table(table)
            tally.add(table)
            report(tally.rows)
        open_writers.close()  # the last bytes of a file are its footer
        file.flush()
        os.fsync(file.fileno())
    return tally


@contextlib.contextmanager
def _temporary(output: Path) -> Iterator[Path]:
    """A temporary path beside the output, removed at the end whatever happens."""
    path = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _appearing(output: Path) -> Iterator[Path]:
    """A temporary path that becomes the output if the block succeeds."""
    with _temporary(output) as path:
        yield path
        path.replace(output)
        if hasattr(os, "O_DIRECTORY"):  # the new name must outlive a power failure too
            folder = os.open(output.parent, os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _check_output(output: Path, source: Path, config: ScoreConfig) -> None:
    if output.suffix not in OUTPUT_SUFFIXES:
        raise ConfigError(f"an output must end in one of {', '.join(OUTPUT_SUFFIXES)}, got {output.name!r}. Rename it.")
    if not output.parent.is_dir():
        raise ConfigError(f"an output's folder must exist, got {str(output.parent)!r}. Make it first.")
    if output.is_dir():
        raise ConfigError(f"an output must be a file, got the folder {str(output)!r}. Name a file in it.")
    inside = source.is_dir() and output.resolve().is_relative_to(source.resolve())
    if inside or output.resolve() == source.resolve():
        raise ConfigError(f"an output must lie outside the input, got {str(output)!r}. Write it somewhere else.")
    taken = {name for name, _ in _score_fields(config)}
    for name in config.key:
        if name in taken or config.key.count(name) > 1:
            rule = "not have the name of an output column" if name in taken else "be named once"
            raise ConfigError(f"a key must {rule}, got {name!r}. Rename the column, or use another key.", column=name)
    if output.exists() and not config.overwrite:
        raise OutputExistsError(
            f"an output must not exist yet, got {str(output)!r}. Use --overwrite to replace it.", path=output
        )
