"""Files in, rebalanced files out: a table is gone through twice, to weigh it and to write it; images once.

Beside OUTPUT stand OUTPUT.weights.parquet, one row for each row of the input, and OUTPUT.report.json. All three appear
when all are whole. The input is only read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..data.image_source import FILE
from ..data.images import ImageSchema
from ..data.rows import read_frames, read_tables
from ..data.schema import Schema
from ..data.sources import CSV_SUFFIXES, PARQUET_SUFFIXES, table_files
from ..debiasing.resampling import ResampleReport
from ..debiasing.selection import select
from ..debiasing.weigher import CodedRows
from ..detection.detector import Detector
from ..errors import ConfigError, OutputExistsError, SchemaError, UnreadableDataError, redacted
from ..options import ResampleConfig, ScoreConfig
from ..row_weigher import GUARDED, WEIGHT_COLUMNS, RowWeigher, coded, joined
from .outputs import appearing, check_output, write_errors_of, write_tables
from .streams import ROW, Stream, beyond, stream

SAMPLE_WEIGHT, COPIES = "sample_weight", "copies"
MARK = "anomaly_vae.resampled"
"""Key of a Parquet output's metadata, and kind of a report: how an output is known again."""
BATCH_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class Resampled:
    """What a resampling did.

    Attributes:
        path: The rebalanced data set; of images a manifest: file, class, weight and copies.
        weights: The file of weights, a row for each row of the input.
        report_path: The file of the report.
        model: What weighed the rows, and weighs further ones.
        report: The same report.
        data_digest: SHA-256 of the input.
        seconds: Wall time.
        unreadable: Images that could not be read.
        errors: The file that lists them, if there are any.
    """

    path: Path
    weights: Path
    report_path: Path
    model: RowWeigher
    report: ResampleReport
    data_digest: str
    seconds: float
    unreadable: int = 0
    errors: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """What a job of weighing did: the output, its rows, and seconds of wall time."""

    path: Path
    rows: int
    seconds: float


@dataclass(frozen=True)
class _Coded:
    """A source, gone through once.

    Attributes:
        rows: Its rows, coded.
        keys: Row numbers, and of images the files' names.
        text: Columns that stay text in CSV.
        stream: Where it came from.
        digest: Of images' content; empty for a table.
        schemas: Arrow schemas of a table's parts: of Parquet its own, of CSV as pandas takes it.
    """

    rows: CodedRows
    keys: dict[str, Any]
    text: frozenset[str]
    stream: Stream
    digest: str
    schemas: tuple[pa.Schema, ...]


def resample_file(
    detector: Detector,
    source: str | Path,
    output: str | Path,
    config: ResampleConfig | None = None,
    *,
    label: str | None = None,
    model_uri: str = "",
    overwrite: bool = False,
    on_rows: Callable[[int, int], None] | None = None,
) -> Resampled:
    """Weigh the rows of a table, or images, by how rare their codes are, and write the rebalanced data set.

    Args:
        detector: Whose latent to measure in.
        source: CSV or Parquet file, or a folder of them; for a detector of images see `data.image_files.open_images`.
        output: File to write, `.parquet` or `.csv`: the table's own columns in their order and, where the mode is
            "weights", `sample_weight`. Columns that the detector does not know are carried along, as text from CSV.
        config: Settings; by default `ResampleConfig()`.
        label: Column of classes, or of a continuous target.
        model_uri: Of the detector, for the report.
        overwrite: Whether to replace outputs that exist.
        on_rows: Called with the number of rows done and the pass, 1 or 2.

    Raises:
        OutputExistsError: An output is there and may not be overwritten.
        ConfigError: The source is itself the output of a resampling, a label is missing, settings and data do not go
            together, or an output's name or place cannot be used.
        SchemaError: The rows do not fit the detector, or the label is no column.
    """
    config, output, started = config or ResampleConfig(), Path(output), time.perf_counter()
    places = _places(output, Path(source), overwrite=overwrite)
    _refuse_output(source)
    told = on_rows or (lambda rows, turn: None)
    found = _coded(detector, source, config, label, lambda n: told(n, 1))
    model = RowWeigher.of_coded(detector, found.rows, config, label_column=label)
    weighing = model.weigher.weighing
    chosen = select(weighing.weights, mode=config.mode, size=config.size, share=config.ess, seed=config.seed)
    copies = np.bincount(chosen, minlength=len(weighing.weights))
    report = dataclasses.replace(weighing.report, mode=config.mode, rows_out=len(chosen))
    digest = found.digest or digest_of_files(source)
    facts: dict[str, Any] = {
        "kind": MARK, "model": redacted(model_uri), "detector": detector.digest, "resampler": model.digest,
        "source": redacted(str(source)), "data_digest": digest, "label": label,
    }  # fmt: skip
    tables: Iterable[pa.Table]
    if isinstance(detector.schema, ImageSchema):
        tables = [_manifest(found, label, weighing.weights, copies)]
    else:
        tables = _rebalanced(source, found, weighing.weights, copies, config.mode, facts, lambda n: told(n, 2))
    _write(places, tables, _weights(found, model, label, copies), {**facts, "report": report.to_dict()})
    return Resampled(
        path=output, weights=places.weights, report_path=places.report, model=model, report=report, data_digest=digest,
        seconds=time.perf_counter() - started, unreadable=len(found.stream.errors),
        errors=write_errors_of(output, found.stream.errors),
    )  # fmt: skip


class _Places(NamedTuple):
    """Where the outputs go."""

    output: Path
    weights: Path
    report: Path


def _places(output: Path, source: Path, *, overwrite: bool) -> _Places:
    """Return where the outputs go, or refuse a place that cannot be used."""
    weights, report = (output.with_name(f"{output.name}.{end}") for end in ("weights.parquet", "report.json"))
    for path in (output, weights):
        check_output(path, source, ScoreConfig(overwrite=overwrite), ())
    if report.exists() and not overwrite:
        raise OutputExistsError(f"an output must not exist yet, got {str(report)!r}. Use --overwrite to replace it.")
    return _Places(output, weights, report)


def _write(places: _Places, tables: Iterable[pa.Table], weights: pa.Table, facts: dict[str, Any]) -> None:
    """Write all outputs aside, then let them appear: the data set last, so that where it is, all are."""
    with contextlib.ExitStack() as outputs:
        aside, report_aside, weights_aside = (
            outputs.enter_context(appearing(path)) for path in (places.output, places.report, places.weights)
        )
        write_tables([weights], weights_aside, ".parquet", lambda table: None)
        try:
            write_tables(tables, aside, places.output.suffix, lambda table: None)
        except pa.ArrowException as error:
            raise ConfigError(
                f"an output must hold the table's cells, got {places.output.suffix}: {error}. Use .parquet."
            ) from error
        _write_json(report_aside, {**facts, "output_sha256": _sha256(aside)})


def weigh_file(
    model: RowWeigher,
    source: str | Path,
    output: str | Path,
    *,
    model_version: str = "",
    overwrite: bool = False,
    on_rows: Callable[[int, int], None] | None = None,
) -> Weighed:
    """Weigh the rows of a file into a file, in constant memory.

    Args:
        model: The resampler.
        source: Rows, or images, as it was fitted to, with their labels if it needs them.
        output: File to write: row number (of images the file), `row_weigher.WEIGHT_COLUMNS`, and the model's version.
        model_version: Written beside every row.
        overwrite: Whether to replace an output that exists.
        on_rows: Called with the number of rows done and the pass, 1.

    Raises:
        OutputExistsError: The output is there and may not be overwritten.
        SchemaError: The rows do not fit the model.
    """
    started, output, schema, done = time.perf_counter(), Path(output), model.detector.schema, 0
    check_output(output, Path(source), ScoreConfig(overwrite=overwrite), ())
    data = _opened(source, schema, model.label_column)
    key = FILE if isinstance(schema, ImageSchema) else ROW

    def tables() -> Iterator[pa.Table]:
        nonlocal done
        for frame in data.frames:
            out = model.score_frame(frame).assign(model_version=model_version)
            out.insert(0, key, frame[FILE] if key == FILE else frame.index)
            done += len(frame)
            yield pa.Table.from_pandas(out, preserve_index=False)

    with appearing(output) as aside:
        write_tables(tables(), aside, output.suffix, lambda table: on_rows(done, 1) if on_rows else None)
    write_errors_of(output, data.errors)
    return Weighed(path=output, rows=done, seconds=time.perf_counter() - started)


def _opened(source: str | Path, schema: Schema | ImageSchema, label: str | None) -> Stream:
    """Open a source; columns of a CSV that the model does not know stay text."""
    if isinstance(schema, ImageSchema):
        return stream(source, schema, batch_rows=BATCH_ROWS, label=label)
    names = next(read_frames(source, batch_rows=1)).columns
    unknown = beyond(schema, *map(str, names))
    if label is not None and label not in names:
        shown = ", ".join(repr(str(name)) for name in names[:8])
        raise SchemaError(f"the label must be a column of the table, got {label!r}. It has {shown}.", column=label)
    return stream(source, schema, batch_rows=BATCH_ROWS, key=unknown, label=label)


def _coded(
    detector: Detector, source: str | Path, config: ResampleConfig, label: str | None, told: Callable[[int], None]
) -> _Coded:
    opened, images = _opened(source, detector.schema, label), isinstance(detector.schema, ImageSchema)
    schemas = [] if images else _schemas_of_parquet(source)
    typed = images or bool(schemas)
    parts, rows, files, digest, done = [], [], [], hashlib.sha256(), 0
    for frame in opened.frames:
        parts.append(coded(detector, frame, config, frame[label] if label else None))
        rows.append(frame.index.to_numpy())
        if images:
            files.append(frame[FILE])
            for cell in frame[detector.schema.names[0]]:
                digest.update(np.asarray(cell).tobytes())
        elif not typed:
            taken = pa.Schema.from_pandas(frame, preserve_index=False).remove_metadata()
            schemas += [] if schemas and taken == schemas[-1] else [taken]
        done += len(frame)
        told(done)
    together = joined(parts)
    if label is not None:
        together = dataclasses.replace(together, labels=_numbers(pd.Series(together.labels)))
    keys: dict[str, Any] = {ROW: np.concatenate(rows)}
    if images:
        keys[FILE] = pd.concat(files, ignore_index=True).astype(str)
    text = frozenset(opened.types) | (detector.schema.text_columns if isinstance(detector.schema, Schema) else set())
    return _Coded(together, keys, text, opened, digest.hexdigest() if images else "", tuple(schemas))


def _schemas_of_parquet(source: str | Path) -> list[pa.Schema]:
    """Return the schemas of Parquet files; none where one is CSV, which has types only as it is read."""
    files = table_files(source)
    whole = all(file.name.lower().endswith(PARQUET_SUFFIXES) for file in files)
    return [pq.read_schema(file) for file in files] if whole else []


def _numbers(labels: pd.Series) -> pd.Series:
    """Return labels that are all numbers, and stay as different as they are, as numbers: from CSV they come as text."""
    if pd.api.types.is_numeric_dtype(labels.dtype) or isinstance(labels.dtype, pd.CategoricalDtype):
        return labels
    found = pd.to_numeric(labels, errors="coerce")
    as_many = found.notna().sum() == labels.notna().sum() and found.nunique() == labels.nunique()
    return found if as_many and found.notna().any() else labels


def _rebalanced(
    source: str | Path,
    found: _Coded,
    weights: NDArray[np.float64],
    copies: NDArray[np.intp],
    mode: str,
    facts: dict[str, Any],
    told: Callable[[int], None],
) -> Iterator[pa.Table]:
    """Yield the rows again, each as often as it is wanted, under one schema that says where they come from."""
    schema = _unified(found.schemas)
    if mode == "weights" and SAMPLE_WEIGHT in schema.names:
        raise ConfigError(
            f"the table must not have a column {SAMPLE_WEIGHT!r} yet, got one. Rename it, or take another mode."
        )
    mark = {MARK: json.dumps({**facts, "mode": mode})}
    start = 0
    for table in read_tables(source, batch_rows=BATCH_ROWS, text=found.text):
        part = slice(start, start + len(table))
        start += len(table)
        if start > len(copies):
            break
        try:
            taken = table.select(schema.names).cast(schema).take(np.repeat(np.arange(len(table)), copies[part]))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError) as error:
            raise SchemaError(
                f"columns must have one type in all files, got another after row {part.start} ({error}). "
                "Convert them first."
            ) from error
        if mode == "weights":
            taken = taken.append_column(SAMPLE_WEIGHT, pa.array(weights[part]))
        told(start)
        if len(taken):
            yield taken.replace_schema_metadata({**(schema.metadata or {}), **mark})
    if start != len(copies):
        raise UnreadableDataError(
            f"the input must stay as it is while it is read, got {start:,} rows after {len(copies):,}. Try again."
        )


def _unified(schemas: Sequence[pa.Schema]) -> pa.Schema:
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SchemaError(
            f"columns must have one type in all files, got another ({error}). Convert them first."
        ) from error


def _manifest(found: _Coded, label: str | None, weights: NDArray[np.float64], copies: NDArray[np.intp]) -> pa.Table:
    frame = pd.DataFrame({FILE: found.keys[FILE]})
    if label is not None:
        frame[label] = pd.Series(found.rows.labels).astype(str)
    frame = frame.assign(weight=weights, copies=copies)
    return pa.Table.from_pandas(frame[copies > 0], preserve_index=False)


def _weights(found: _Coded, model: RowWeigher, label: str | None, copies: NDArray[np.intp]) -> pa.Table:
    weigher = model.weigher
    frame = pd.DataFrame(found.keys)
    if label is not None and label not in (*frame.columns, *WEIGHT_COLUMNS, COPIES):
        frame[label] = pd.Series(found.rows.labels).astype(str)
    frame = frame.assign(weight=weigher.weighing.weights, log_density=weigher.density.own)
    off = np.zeros(len(frame), dtype=bool)
    flags = {column: weigher.guards.get(guard, off) for guard, column in GUARDED.items()}
    return pa.Table.from_pandas(frame.assign(**flags, copies=copies), preserve_index=False)


def _refuse_output(source: str | Path) -> None:
    """Refuse what a resampling wrote: weights upon weights would count rare rows twice.

    Raises:
        ConfigError: The source, or a file in it, is such an output.
    """
    path = Path(source)
    if not path.exists():
        return
    suffixes = (*CSV_SUFFIXES, *PARQUET_SUFFIXES)
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.name.lower().endswith(suffixes)]
    for file in files:
        report = file.with_name(f"{file.name}.report.json")
        if _is_marked(file) or (report.is_file() and _is_output(file, report)):
            raise ConfigError(
                f"the input must not be the output of a resampling, got {str(file)!r}. Resample what it was made of.",
                path=file,
            )


def _is_marked(file: Path) -> bool:
    if not file.name.lower().endswith(PARQUET_SUFFIXES):
        return False
    try:
        return MARK.encode() in (pq.read_schema(file).metadata or {})
    except (pa.ArrowException, OSError):
        return False  # reading it will say what is wrong


def _is_output(file: Path, report: Path) -> bool:
    try:
        facts = json.loads(report.read_text(encoding="utf-8"))
        return facts.get("kind") == MARK and facts.get("output_sha256") == _sha256(file)
    except (ValueError, AttributeError, OSError):
        return False


def digest_of_files(source: str | Path) -> str:
    """Return the SHA-256 of a table's files, names and content."""
    digest = hashlib.sha256()
    for file in table_files(source):
        digest.update(f"{file.name}:{_sha256(file)}\n".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
