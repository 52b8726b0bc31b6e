"""Tables from files as a stream of frames, and reproducible splits of rows.

A path is a CSV or Parquet file, or a folder of them (read in order of name).
"""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import ConfigError, SchemaError, UnreadableDataError
from .bounds import bounded_lines, check_columns, check_header
from .cells import row_label
from .sources import PARQUET_SUFFIXES, TableFile, table_files

MOST_CELLS = 1 << 23
"""Cells of a frame at most: 64 MiB of numbers, however wide the table."""
TRUE_LABELS = frozenset({"1", "1.0", "true", "yes", "y", "t", "anomaly", "anomalous", "outlier"})
FALSE_LABELS = frozenset({"0", "0.0", "false", "no", "n", "f", "normal", "inlier"})


def read_frames(
    path: str | Path | TableFile,
    *,
    batch_rows: int = 65_536,
    text: Collection[str] = (),
    may_be_empty: bool = False,
) -> Iterator[pd.DataFrame]:
    """Yield a table's rows as frames of at most `batch_rows`, indexed by row number from 0 over all files.

    Args:
        path: CSV or Parquet file, or a folder of them; or one of `sources.parts_of`.
        batch_rows: Rows per frame; fewer where the table is so wide that a frame would pass `MOST_CELLS` cells.
        text: Columns that stay text in CSV ("007" is not 7).
        may_be_empty: Whether a file may be without rows.

    Raises:
        UnreadableDataError: A file is empty, has no rows, is damaged, or names a column twice.
    """
    start = 0
    for file in [path] if isinstance(path, TableFile) else map(TableFile.at, table_files(path)):
        frames = _csv_frames if file.is_csv else _parquet_frames
        first = start
        try:
            for frame in frames(file, batch_rows, text):
                if len(frame):
                    frame.index = pd.RangeIndex(start, start + len(frame))
                    start += len(frame)
                    yield frame
        except (pa.ArrowException, pd.errors.ParserError, UnicodeDecodeError, OSError, EOFError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UnreadableDataError(
                f"{file.name!r} must be a readable table, got an error after row {start}: {reason}"
            ) from error
        if start == first and not may_be_empty:
            raise UnreadableDataError(
                f"{file.name!r} must have rows, got a header and nothing under it. Check the export."
            )


def read_table(path: str | Path, *, text: Collection[str] = ()) -> pd.DataFrame:
    """Return a whole table; see `read_frames`.

    Raises:
        UnreadableDataError: See `read_frames`; also when the files of a folder differ in their columns.
    """
    frames = list(read_frames(path, text=text, batch_rows=1 << 20))
    for frame in frames[1:]:
        if set(frame.columns) != set(frames[0].columns):
            differ = sorted(map(str, set(frame.columns) ^ set(frames[0].columns)))
            raise UnreadableDataError(
                f"the files of {str(path)!r} must have the same columns, got {differ[:5]} in some only."
            )
    return pd.concat(frames) if len(frames) > 1 else frames[0]


def read_tables(path: str | Path, *, batch_rows: int = 65_536, text: Collection[str] = ()) -> Iterator[pa.Table]:
    """Yield the rows that `read_frames` yields, in its order, as Arrow tables: those of Parquet keep their types.

    Raises:
        UnreadableDataError: See `read_frames`.
    """
    for file in table_files(path):
        if not file.name.lower().endswith(PARQUET_SUFFIXES):
            for frame in read_frames(file, batch_rows=batch_rows, text=text):
                yield pa.Table.from_pandas(frame, preserve_index=False)
            continue
        try:
            with pq.ParquetFile(file, pre_buffer=False) as table:
                for batch in table.iter_batches(_frame_rows(batch_rows, len(table.schema_arrow.names))):
                    yield pa.Table.from_batches([batch])
        except (pa.ArrowException, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UnreadableDataError(f"{file.name!r} must be a readable table, got an error: {reason}") from error


def _frame_rows(batch_rows: int, columns: int) -> int:
    return max(1, min(batch_rows, MOST_CELLS // max(1, columns)))


def _parquet_frames(file: TableFile, batch_rows: int, text: Collection[str]) -> Iterator[pd.DataFrame]:
    if file.size == 0:
        raise UnreadableDataError(f"{file.name!r} must be a Parquet file, got an empty file. Check the export.")
    with opened_parquet(file) as table:
        check_columns(table.metadata.num_columns, file.name)
        _refuse_duplicates(table.schema_arrow.names, file)
        for batch in table.iter_batches(_frame_rows(batch_rows, len(table.schema_arrow.names))):
            yield batch.to_pandas(integer_object_nulls=True)  # as floats, whole numbers over 2^53 would lose digits


def opened_parquet(file: TableFile) -> pq.ParquetFile:
    """Open a Parquet file, to be read a part at a time."""
    return pq.ParquetFile(file.path or file.open(), pre_buffer=False)


def _csv_frames(file: TableFile, batch_rows: int, text: Collection[str]) -> Iterator[pd.DataFrame]:
    separator = "\t" if file.name.lower().endswith(".tsv") else ","
    with _opened(file) as stream:
        check_header(stream, separator, file.name)
    try:
        # pandas renames a repeated name silently, so the header is read as plain cells first
        with _opened(file) as stream:
            header = pd.read_csv(
                stream, sep=separator, header=None, nrows=1, dtype=str, keep_default_na=False, engine="c"
            )
    except pd.errors.EmptyDataError as error:
        raise UnreadableDataError(
            f"{file.name!r} must be a CSV file with a header, got an empty file. Check the export."
        ) from error
    names = [str(name) for name in header.iloc[0]]
    _refuse_duplicates(names, file)
    dtypes = {name: "str" for name in text if name in names}
    batch_rows = _frame_rows(batch_rows, len(names))
    with (
        bounded_lines(_opened(file), file.name) as lines,
        pd.read_csv(
            lines, sep=separator, chunksize=batch_rows, dtype=dtypes, low_memory=False, quoting=csv.QUOTE_MINIMAL
        ) as chunks,
    ):
        yield from chunks


def _opened(file: TableFile) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(file.path or file.open())) if file.name.lower().endswith(".gz") else file.open()


def _refuse_duplicates(names: list[str], file: TableFile) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UnreadableDataError(
            f"column names must differ, got {twice[0]!r} more than once in {file.name!r}. Rename one."
        )


def labels(column: pd.Series) -> NDArray[np.bool_]:
    """Return anomaly labels as booleans: 1, true, yes, anomaly and their opposites, in any case.

    Raises:
        SchemaError: A label is missing or is none of these.
    """
    texts = column.astype(str).str.strip().str.lower().where(column.notna(), "")
    known = texts.isin(TRUE_LABELS | FALSE_LABELS).to_numpy()
    if not known.all():
        row = row_label(column, ~known)
        raise SchemaError(
            f"label column {column.name!r} must be true/false or 1/0 in every row, got "
            f"{str(column[~known].iloc[0])!r} in row {row!r}. Correct or drop the row.",
            column=column.name,
            row=row,
        )
    return texts.isin(TRUE_LABELS).to_numpy()


def split_rows(rows: int | pd.Series, *, fractions: Mapping[str, float], seed: int = 0) -> dict[str, NDArray[np.intp]]:
    """Split rows into named parts, reproducibly.

    Args:
        rows: Their number (an exact split, by seed), or a key per row (by a hash of key and seed: a row with the same
            key falls into the same part in every table, and equal keys stay together).
        fractions: Share of each held-out part; what is left is the part "train".
        seed: Seed.

    Returns:
        Sorted row positions of each part.

    Raises:
        ConfigError: The fractions are negative or leave nothing for "train".

    Example:
        >>> {name: len(part) for name, part in split_rows(10, fractions={"calibration": 0.2}).items()}
        {'calibration': 2, 'train': 8}
    """
    held = sum(fractions.values())
    if min(fractions.values(), default=0) < 0 or held >= 1:
        raise ConfigError(f"held-out fractions must be at least 0 and add up to less than 1, got {dict(fractions)}.")
    if isinstance(rows, int):
        order = np.random.default_rng(seed).permutation(rows)
        position = np.empty(rows)
        position[order] = (np.arange(rows) + 0.5) / max(rows, 1)
    else:
        digits = pd.util.hash_pandas_object(rows.astype(str), index=False, hash_key=f"anomaly-{seed % 10**8:08d}")
        position = digits.to_numpy(dtype=np.uint64) / 2.0**64
    parts: dict[str, NDArray[np.intp]] = {}
    low = 0.0
    for name, fraction in fractions.items():
        parts[name] = np.flatnonzero((position >= low) & (position < low + fraction))
        low += fraction
    parts["train"] = np.flatnonzero(position >= low)
    return parts
