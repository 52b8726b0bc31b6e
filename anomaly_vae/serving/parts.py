"""One part of a folder job: rows of one file in, scores into a temporary file out."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from ..data.image_parts import ImagePart
from ..data.image_source import ImageError
from ..data.images import ImageSchema
from ..data.rows import opened_parquet
from ..data.schema import Schema
from ..data.sources import TableFile
from ..errors import AnomalyVaeError, DataWarning, SchemaError, UnreadableDataError
from ..options import BatchConfig
from .batch import Scorer, score_fields, score_frames, tables_of, written
from .outputs import write_tables
from .streams import ROW, Stream, beyond, stream

FILE_COLUMN = "file"
"""Beside the row number, where a job has no keys: the part that a row is of."""
ERROR_SCHEMA = pa.schema([("file", pa.string()), ("row", pa.int64()), ("reason", pa.string())])
LONGEST_REASON = 500


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be done with one part.

    Attributes:
        part: Its position in the job.
        file: The rows, or images.
        aside: File to write the scores into.
        errors: File to list rows in that cannot be scored; written if there are any.
        suffix: Format of the scores, `.parquet` or `.csv`.
    """

    part: int
    file: TableFile | ImagePart
    aside: Path
    errors: Path
    suffix: str


@dataclass(frozen=True, kw_only=True)
class PartScored:
    """What came of it; see `manifest.PartDone`.

    Attributes:
        written: Whether there is a file of scores.
        warnings: Texts of the warnings about the data, each once.
    """

    rows: int
    flagged: int
    unreliable: int
    unreached: int
    errors: int
    written: bool
    seconds: float
    warnings: tuple[str, ...]


class Quarantine:
    """A scorer that sets aside rows that another cannot score, instead of failing.

    Which row a frame fails by is found by halving it. A fault of all rows alike, such as an absent column, is still
    raised.

    Attributes:
        errors: Row and reason of each row set aside, in any order.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.errors: list[tuple[int, str]] = []
        self._lock = threading.Lock()

    def score_frame(self, frame: pd.DataFrame, **options: Any) -> pd.DataFrame:
        """Score the rows that can be scored; see `batch.Scorer`."""
        try:
            return self.scorer.score_frame(frame, **options)
        except SchemaError as error:
            if hasattr(error, "absent"):
                raise
            if len(frame) == 1:
                with self._lock:
                    self.errors.append((int(frame.index[0]), _reason(error)))
                return pd.DataFrame(index=frame.index[:0])
        scored = []
        for part in (slice(None, len(frame) // 2), slice(len(frame) // 2, None)):
            groups = {"groups": options["groups"][part]} if "groups" in options else {}
            scored.append(self.score_frame(frame.iloc[part], **{**options, **groups}))
        kept = [part for part in scored if len(part)]
        return pd.concat(kept) if kept else scored[0]

    def threshold(self, alpha: float, *, k: int | None = None) -> float:
        """See `batch.Scorer`."""
        return self.scorer.threshold(alpha, k=k)


def score_part(
    scorer: Scorer,
    order: Order,
    config: BatchConfig,
    *,
    model_version: str = "",
    schema: Schema | ImageSchema | None = None,
    report: Callable[[int, int | None], None] = lambda rows, total: None,
) -> PartScored:
    """Score one part into its temporary file.

    Images that cannot be read are set aside in any case.

    Args:
        scorer: The model.
        order: The part.
        config: How to score.
        model_version: Written beside every row.
        schema: The model's columns.
        report: Called with the rows done and the part's rows, None where that is not known.

    Raises:
        AnomalyVaeError: A row or the file cannot be scored, and is not to be set aside; the file is named. Also when
            the file was changed meanwhile.
    """
    started = time.perf_counter()
    careful = Quarantine(scorer) if config.on_error == "quarantine" else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        try:
            tally, unreadable = _scored(careful or scorer, order, config, model_version, schema, report)
            errors: list[tuple[str, int | None, str]] = []
            errors += [(order.file.name, *error) for error in sorted(careful.errors)] if careful else []
            errors += [_listed(error, order.file) for error in unreadable]
        except SchemaError as error:
            if careful is None:
                raise _in_file(error, order.file) from error
            order.aside.unlink(missing_ok=True)
            tally = {"rows": 0, "flagged": 0, "unreliable": 0, "unreached": 0}
            errors = [(order.file.name, None, _reason(error))]
        except AnomalyVaeError as error:
            raise _in_file(error, order.file) from error
    if order.file.now() != order.file:
        raise UnreadableDataError(
            f"{order.file.name!r} must stay as it is during the job, and was changed. Begin anew with --overwrite."
        )
    if errors:
        table = pa.table(list(zip(*errors, strict=True)), schema=ERROR_SCHEMA)
        write_tables([table], order.errors, ".parquet", lambda _: None)
    return PartScored(
        **tally,
        errors=len(errors),
        written=order.aside.exists(),
        seconds=time.perf_counter() - started,
        warnings=tuple(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, DataWarning))),
    )


def _scored(
    scorer: Scorer,
    order: Order,
    config: BatchConfig,
    model_version: str,
    schema: Schema | ImageSchema | None,
    report: Callable[[int, int | None], None],
) -> tuple[dict[str, int], list[ImageError]]:
    """Write a part's scores and count them; return also the images that could not be read."""
    total = order.file.rows if isinstance(order.file, ImagePart) else _rows_of(order.file)
    group = next(iter(beyond(schema, config.group)), None)
    data = stream(order.file, schema, batch_rows=config.batch_rows, key=config.key, label=group, may_be_empty=True)
    frames, types, fields = _readable(data), data.types, score_fields(config)
    of_files = isinstance(order.file, ImagePart) and bool(order.file.files)  # whose names tell images apart
    by_row = not config.key and not of_files
    if by_row and isinstance(order.file, ImagePart):
        config, types = replace(config, key=(ROW,)), {ROW: pa.int64()}
        frames = (frame.assign(**{ROW: frame.index}) for frame in frames)
    scored = score_frames(scorer, frames, config, model_version=model_version, schema=schema)
    tables = _at_least(
        pa.schema([*types.items(), *fields]).empty_table(),
        tables_of((frame for frame in scored if len(frame)), types, fields),
    )
    named = _named(tables, order.file.name) if by_row else tables
    return vars(written(named, order.aside, order.suffix, lambda rows: report(rows, total))), data.errors


def _readable(data: Stream) -> Iterator[pd.DataFrame]:
    """Yield a part's frames; none where it has images alone that cannot be read."""
    try:
        yield from data.frames
    except UnreadableDataError:
        if data.source is None or sum(error.row is not None for error in data.errors) != data.source.count:
            raise


def _listed(error: ImageError, part: TableFile | ImagePart) -> tuple[str, int | None, str]:
    """An image that could not be read as a line of the list: by its file, or by its row in the part."""
    alone = isinstance(part, ImagePart) and part.files
    return (error.file, None, error.reason) if alone or error.row is None else (part.name, error.row, error.reason)


def _named(tables: Iterable[pa.Table], name: str) -> Iterator[pa.Table]:
    """Put the part's name before each row."""
    for table in tables:
        yield table.add_column(0, pa.field(FILE_COLUMN, pa.string()), pa.repeat(pa.scalar(name), len(table)))


def _at_least(empty: pa.Table, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the tables, or the empty one if there are none: a file of no rows has columns all the same."""
    none = True
    for table in tables:
        none = False
        yield table
    if none:
        yield empty


def _rows_of(file: TableFile) -> int | None:
    if file.is_csv or file.size == 0:
        return None
    try:
        with opened_parquet(file) as table:
            return int(table.metadata.num_rows)
    except (pa.ArrowException, OSError):
        return None  # said when the rows are read


def _in_file(error: AnomalyVaeError, file: TableFile | ImagePart) -> AnomalyVaeError:
    """The same error, naming the file."""
    if repr(file.name) in str(error):
        return error
    return type(error)(f"in {file.name!r}: {error}", **error.facts)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:LONGEST_REASON]
