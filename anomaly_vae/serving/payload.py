"""What a request says: its content type and bytes as rows of the model's columns, and the settings it asks for.

The formats are those of MLflow's scoring server. What its parser lets pass and no JSON standard allows, NaN tokens,
keys given twice, is refused here; so is whatever is small as bytes and huge as a table. Only the model's own columns
are ever built.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NoReturn

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..data.bounds import MOST_COLUMNS
from ..data.images import ImageSchema
from ..data.rows import MOST_CELLS
from ..data.schema import Schema
from ..errors import AnomalyVaeError, SchemaError
from .flavor import request_frame

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
FORMATS = ("dataframe_split", "dataframe_records", "inputs", "instances")
PARAMS = "params"
MOST_DEPTH = 8
"""Brackets within brackets: a table in columns whose cells are images in colour has seven."""
PARQUET_SWELLING = 16
"""A Parquet file may unpack to so many times the bytes that a request may have."""
SHOWN_EXTRAS = 50
_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_LONG_RUN = b"0" * 19
_LONG_NUMBER = re.compile(rb"[\s\[,:-]\d{19}")


class RefusedError(AnomalyVaeError, ValueError):
    """A request that is answered with an error.

    Args:
        message: What its sender is told.
        status: HTTP status.
        reason: One of `REASONS`, for logs and metrics.
    """

    status: int
    reason: str

    def __init__(self, message: str, *, status: int = 400, reason: str = "malformed") -> None:
        super().__init__(message, status=status, reason=reason)


def media_type(content_type: str | None, content_encoding: str | None = None) -> str:
    """Return a request's media type.

    Raises:
        RefusedError: 415; it is absent, not read here, or not in UTF-8.
    """
    known = f"{JSON}, {CSV} or {PARQUET}"
    media, *parameters = (part.strip() for part in (content_type or "").split(";"))
    media = media.lower()
    if media not in (JSON, CSV, PARQUET):
        raise _unsupported(f"the Content-Type must be {known}, got {_short(content_type)}. Name the body's format.")
    for parameter in filter(None, parameters):
        key, _, value = parameter.partition("=")
        if key.strip().lower() != "charset" or value.strip().strip('"').lower() not in ("utf-8", "utf8"):
            raise _unsupported(
                f"the Content-Type must have no parameter but charset=utf-8, got {_short(parameter)}. Leave it out."
            )
    if content_encoding not in (None, "", "identity"):
        raise _unsupported(
            f"the body must be sent as it is, got Content-Encoding {_short(content_encoding)}. Do not compress it."
        )
    return media


def read(
    body: bytes, media: str, schema: Schema | ImageSchema, *, max_rows: int, also: Sequence[str] = ()
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return a request's rows, and its parameters.

    Args:
        body: The bytes.
        media: `JSON`, `CSV` or `PARQUET`; the last two carry no parameters.
        schema: The model's.
        max_rows: Rows at most.
        also: Columns that the schema does not know and the caller wants as they came.

    Raises:
        RefusedError: The bytes are not what the media type says, or there are no rows or too many.
        SchemaError: The rows cannot be those of the schema.
    """
    wanted, params = tuple(dict.fromkeys((*schema.names, *also))), dict[str, Any]()
    if media == JSON:
        kind, value, params = _opened(strict_json(body))
        given = _given(kind, value, schema, wanted, max_rows)
    else:
        given = _csv(body, max_rows) if media == CSV else _parquet(body, wanted, max_rows)
    frame = request_frame(given, schema)
    if isinstance(given, pd.DataFrame):
        frame = frame.assign(**{name: given[name] for name in also if name in given and name not in frame})
    if not len(frame):
        raise RefusedError("a request must have rows, got none. Send at least one.")
    return frame, params


def strict_json(body: bytes) -> Any:
    """Return what a JSON text says.

    Raises:
        RefusedError: It is not JSON in UTF-8, has NaN or Infinity, a key twice, a whole number of more than 64 bits, or
            is nested more than `MOST_DEPTH` deep.

    Example:
        >>> strict_json(b'{"a": [1, null]}')
        {'a': [1, None]}
    """
    _refuse_depth(body)
    # Long fractions are common and harmless; the pattern is slow, and asked only where a run of digits is so long.
    long_numbers = _LONG_RUN in body.translate(_DIGITS) and bool(_LONG_NUMBER.search(body))
    if not long_numbers:
        with contextlib.suppress(orjson.JSONDecodeError):  # what is wrong, the slower parser says
            parsed = orjson.loads(body)
            if _keys(parsed) == body.count(b":"):  # else some key came twice, or a text has a colon
                return parsed
    try:
        text = body.decode("utf-8")
        # A hook for whole numbers is called for each of them: only where one may be too long.
        whole = _whole if long_numbers else None
        parsed = json.loads(text, parse_constant=_no_constant, parse_int=whole, object_pairs_hook=_unique)
        if _SURROGATE.search(body):  # half a character, which no encoding can write
            json.dumps(parsed, ensure_ascii=False).encode()
        return parsed
    except RefusedError:
        raise
    except UnicodeEncodeError:
        raise RefusedError(
            r"text must be Unicode, got half of a surrogate pair (\ud800 to \udfff). Correct it."
        ) from None
    except UnicodeDecodeError as error:
        raise RefusedError(
            f"the body must be JSON in UTF-8, got another encoding at byte {error.start}. Encode it as UTF-8."
        ) from None
    except json.JSONDecodeError as error:
        raise RefusedError(
            f"the body must be JSON, got an error at character {error.pos}: {error.msg}. Correct it."
        ) from None
    except (ValueError, RecursionError):
        raise RefusedError("the body must be JSON, got numbers or brackets beyond all bounds. Correct it.") from None


def _keys(parsed: Any) -> int:
    """Return how many keys the objects in a request's usual places have."""
    if not isinstance(parsed, dict):
        return 0
    inner = [row for value in parsed.values() if isinstance(value, list) for row in value if isinstance(row, dict)]
    inner += [value for value in parsed.values() if isinstance(value, dict)]
    return len(parsed) + sum(map(len, inner))


def _refuse_depth(body: bytes) -> None:
    def deepest(text: bytes) -> int:
        brackets = np.frombuffer(text.translate(None, _BRACKETS), dtype=np.uint8)
        steps = np.where((brackets == ord("[")) | (brackets == ord("{")), 1, -1)
        return int(np.cumsum(steps).max(initial=0))

    # Brackets within strings are none; but looking for strings takes longer, and few texts need it.
    if deepest(body) > MOST_DEPTH and deepest(_STRING.sub(b"", body)) > MOST_DEPTH:
        raise RefusedError(
            f"the body must be nested at most {MOST_DEPTH} deep, got more. Send one value a cell, or an image."
        )


def _no_constant(token: str) -> NoReturn:
    raise RefusedError(f"the body must be JSON, which has no {token}, got it. Send null for a missing cell.")


def _whole(digits: str) -> int:
    if len(digits) > 21 or not -(2**63) <= int(digits) < 2**64:
        raise RefusedError(
            f"a whole number must fit into 64 bits, got one of {len(digits.lstrip('-'))} digits. "
            "Send it as a decimal number, or as text."
        )
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise RefusedError(f"an object's keys must differ, got {_short(twice)} more than once. Send it once.")
    return made


def _opened(parsed: Any) -> tuple[str, Any, dict[str, Any]]:
    """Return a request's format, what is under it, and its parameters."""
    known = ", ".join(FORMATS)
    if not isinstance(parsed, dict):
        raise RefusedError(f"the body must be an object with one of {known}, got {_kind(parsed)}. Wrap the rows in it.")
    kinds = [key for key in parsed if key in FORMATS]
    strange = [key for key in parsed if key not in (*FORMATS, PARAMS)]
    if len(kinds) != 1 or strange:
        got = ", ".join(_short(key) for key in islice(parsed, 5)) or "none"
        raise RefusedError(
            f"the body must have exactly one of {known}, and may have params, got {got}. Rename or drop."
        )
    params = parsed.get(PARAMS)
    if params is not None and not isinstance(params, dict):
        raise RefusedError(
            f"params must be an object of names and values, got {_kind(params)}. Write for example {{}}."
        )
    return kinds[0], parsed[kinds[0]], params or {}


def _given(kind: str, value: Any, schema: Schema | ImageSchema, wanted: Sequence[str], max_rows: int) -> Any:
    """Return the rows of a JSON request: a table, or images as they came."""
    records = isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    more = len(wanted) > len(schema.names)
    plain = kind in ("inputs", "instances") and not records and not more
    if plain and isinstance(schema, ImageSchema) and schema.classes is None:
        values = value.get(schema.column) if isinstance(value, dict) else value
        _refuse_rows(len(values) if isinstance(values, list) else 1, max_rows)
        return value
    if kind == "dataframe_split":
        return _table(_of_split(value, wanted, max_rows))
    if kind == "dataframe_records" or records:
        return _table(_of_records(value, wanted, max_rows))
    return _table(_of_columns(value, wanted, max_rows))


def _table(columns: dict[str, list[Any]]) -> pd.DataFrame:
    return pd.DataFrame({name: _typed(cells) for name, cells in columns.items()})


def _typed(cells: list[Any]) -> list[Any] | NDArray[Any]:
    """Return cells as pandas would have them, for most columns in a fraction of the time."""
    kinds = set(map(type, cells))
    if kinds == {float} or kinds == {float, type(None)}:
        return np.array(cells, dtype=np.float64)
    if kinds == {int}:
        with contextlib.suppress(OverflowError):
            return np.array(cells, dtype=np.int64)
    return cells


def _of_split(value: Any, wanted: Sequence[str], max_rows: int) -> dict[str, list[Any]]:
    if not isinstance(value, dict) or not set(value) <= {"columns", "data", "index"} or "data" not in value:
        got = ", ".join(map(_short, islice(value, 5))) if isinstance(value, dict) else _kind(value)
        raise RefusedError(f"dataframe_split must be an object with columns and data, got {got or 'none'}. Add them.")
    rows = value["data"]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise RefusedError("dataframe_split.data must be a list of rows, each a list of cells, got others. Nest them.")
    _refuse_rows(len(rows), max_rows)
    names = value.get("columns")
    if names is None:
        names = list(range(len(rows[0]) if rows else 0))
    if not isinstance(names, list) or not all(isinstance(name, (str, int, float)) for name in names):
        raise RefusedError("dataframe_split.columns must be a list of names, got another. Send texts.")
    if set(map(len, rows)) - {len(names)}:
        i = next(i for i, row in enumerate(rows) if len(row) != len(names))
        raise RefusedError(
            f"each row must have a cell for each of the {len(names)} columns, got {len(rows[i])} in row {i}. "
            "Send null for a missing cell."
        )
    texts = [str(name) for name in names]
    _refuse_twice(texts)
    place = {name: i for i, name in enumerate(texts)}
    cells = list(zip(*rows, strict=True)) or [()] * len(texts)
    found = {name: list(cells[place[name]]) for name in wanted if name in place}
    return _with_extras(found, wanted, texts, len(rows))


def _of_records(value: Any, wanted: Sequence[str], max_rows: int) -> dict[str, list[Any]]:
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        got = _kind(value) if not isinstance(value, list) else "a list with others in it"
        raise RefusedError(f"rows must be a list of objects, one a row, got {got}. Send column names with each row.")
    _refuse_rows(len(value), max_rows)
    found = {name: [row.get(name) for row in value] for name in wanted if any(name in row for row in value)}
    return _with_extras(found, wanted, (key for row in value for key in row), len(value))


def _of_columns(value: Any, wanted: Sequence[str], max_rows: int) -> dict[str, list[Any]]:
    if not isinstance(value, dict):
        raise SchemaError(
            f"rows must come with column names, got {_kind(value)}. Send a list of objects, or an object of columns."
        )
    columns = {name: cells if isinstance(cells, list) else [cells] for name, cells in value.items()}
    rows = len(next(iter(columns.values()))) if columns else 0
    _refuse_rows(max(map(len, columns.values()), default=0), max_rows)
    for name, cells in columns.items():
        if len(cells) != rows:
            raise SchemaError(
                f"columns must have the same number of rows, got {len(cells)} in {_short(name)} and {rows} before it. "
                "Send null for a missing cell.",
            )
    found = {name: columns[name] for name in wanted if name in columns}
    return _with_extras(found, wanted, columns, rows)


def _with_extras(
    found: dict[str, list[Any]], wanted: Sequence[str], names: Iterable[str], rows: int
) -> dict[str, list[Any]]:
    """Where a column is absent, name some of those that came in its place: one may be it, misspelt."""
    if len(found) == len(wanted):
        return found
    extras = islice(dict.fromkeys(name for name in names if name not in found), SHOWN_EXTRAS)
    return {**found, **{name: [None] * rows for name in extras}}


def _csv(body: bytes, max_rows: int) -> pd.DataFrame:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefusedError(
            f"CSV must be in UTF-8, got another encoding at byte {error.start}. Encode it as UTF-8."
        ) from None
    try:
        first = list(islice((row for row in csv.reader(io.StringIO(text, newline="")) if row), 2))
        if not first:
            raise RefusedError("CSV must have a header, got an empty body. Send column names in the first line.")
        names = first[0]
        _refuse_columns(len(names))
        _refuse_twice(names)
        if len(first) > 1 and len(first[1]) > len(names):  # pandas would take the first cells for names of rows
            raise RefusedError(
                f"each row must have {len(names)} cells, got {len(first[1])} in the first. Quote commas."
            )
        if (text.count("\n") + text.count("\r") + 1) * len(names) > max(MOST_CELLS, 2 * max_rows):
            raise _too_many(f"a table must have at most {MOST_CELLS:,} cells", "more")
        frame = pd.read_csv(io.StringIO(text), nrows=max_rows + 1, low_memory=False)
    except AnomalyVaeError:
        raise
    except (csv.Error, pd.errors.ParserError, pd.errors.EmptyDataError, ValueError, OverflowError):
        raise RefusedError(
            "the body must be CSV with a header, got rows that cannot be told apart. Check it."
        ) from None
    _refuse_rows(len(frame), max_rows)
    return frame


def _parquet(body: bytes, wanted: Sequence[str], max_rows: int) -> pd.DataFrame:
    most = PARQUET_SWELLING * max(len(body), 1 << 20)
    try:
        with pq.ParquetFile(pa.BufferReader(body), thrift_string_size_limit=1 << 24) as file:
            facts, names = file.metadata, file.schema_arrow.names
            _refuse_columns(facts.num_columns)
            _refuse_rows(facts.num_rows, max_rows)
            _refuse_twice(names)
            present = [name for name in wanted if name in names]
            size = sum(facts.row_group(i).total_byte_size for i in range(facts.num_row_groups))
            if size > most:
                raise _too_many(f"a Parquet file must unpack to at most {most >> 20} MiB", f"{size >> 20} MiB")
            tables, unpacked = [], 0
            for batch in file.iter_batches(max(1, min(1024, most // max(1, size))), columns=present):
                batch.validate(full=True)  # text that is not Unicode would be found out much later
                unpacked += batch.nbytes
                if unpacked > most:  # a value that a dictionary holds once may stand in every row
                    raise _too_many(f"a Parquet file must unpack to at most {most >> 20} MiB", "more")
                tables.append(batch.to_pandas(integer_object_nulls=True, ignore_metadata=True))
    except AnomalyVaeError:
        raise
    except Exception:  # a damaged file fails in many ways, and all of them are the sender's
        raise RefusedError("the body must be a Parquet file, got a damaged one, or another. Check it.") from None
    extras = [name for name in names if name not in present][:SHOWN_EXTRAS]
    if not tables:
        return pd.DataFrame(columns=present)
    frame = pd.concat(tables, ignore_index=True) if len(tables) > 1 else tables[0]
    return frame if len(present) == len(wanted) else frame.assign(**dict.fromkeys(extras))


def _refuse_rows(rows: int, most: int) -> None:
    if rows > most:
        raise _too_many(f"a request must have at most {most:,} rows", f"{rows:,}" if rows > most + 1 else "more")


def _refuse_columns(columns: int) -> None:
    if columns > MOST_COLUMNS:
        raise _too_many(f"a table must have at most {MOST_COLUMNS:,} columns", f"{columns:,}")


def _refuse_twice(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise SchemaError(f"column names must differ, got {_short(twice)} more than once. Rename one.")


def _too_many(rule: str, got: str) -> RefusedError:
    return RefusedError(f"{rule}, got {got}. Send it in parts.", status=413, reason="too_large")


def _unsupported(message: str) -> RefusedError:
    return RefusedError(message, status=415, reason="content_type")


def _kind(value: Any) -> str:
    names: Mapping[type, str] = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
