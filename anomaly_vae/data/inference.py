"""Which kind each column of a table is, by rules that can be read in one place.

=====================================  =====================================================================
a column that is                       becomes
=====================================  =====================================================================
declared                               what was declared
empty in every row                     ignored
a date, a time or a duration           ignored; declared continuous it is modelled as seconds
one value in every row                 categorical with that one value: any other is an unseen value
two values, no floating-point numbers  binary
numbers with fractions, or negative    continuous
whole numbers from 0 up                count; ignored as an identifier when all differ and they either increase from
                                       row to row or the column's name says so (20 rows or more)
text or a pandas category              categorical; ignored as an identifier when over half of its values differ
                                       (and over 20 do)
=====================================  =====================================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..errors import SchemaError
from .cells import is_text, levels, numbers, row_label, text_of

IDENTIFIER_NAME = re.compile(r"(^|[_ .-])(id|uuid|guid|index|key|rownum|row_number)$", re.IGNORECASE)
IDENTIFIER_ROWS = 20
LARGEST_COUNT = 1e9
NUMERIC_SHARE = 0.9


@dataclass(frozen=True, kw_only=True)
class Inferred:
    """What one column was taken for.

    Attributes:
        kind: One of `options.KINDS`.
        dtype: What the cells are to the user: float64, int64, bool, string or datetime64[ns].
        reason: Why, in a few words, where the choice may surprise; else empty.
    """

    kind: str
    dtype: str
    reason: str = ""


def infer_kind(series: pd.Series, name: str, declared: str | None = None) -> Inferred:
    """Infer what one column is.

    Args:
        series: The column's cells, shape (n,), already unwrapped from object dtype where they are numbers.
        name: Name for messages.
        declared: The kind the user declared, if any.

    Raises:
        SchemaError: The column mixes numbers and text, or cannot be of the declared kind.
    """
    dtype = _dtype(series, name)
    present = series.dropna()
    if declared == "ignored":
        return Inferred(kind="ignored", dtype=dtype, reason="declared ignored")
    if present.empty:
        if declared:
            raise SchemaError(f"column {name!r} must have a value in some row to be {declared}, got none.", column=name)
        return Inferred(kind="ignored", dtype=dtype, reason="every cell is missing")
    if declared:
        return Inferred(kind=declared, dtype=_declared_dtype(present, name, declared, dtype), reason="declared")
    if dtype == "datetime64[ns]":
        return Inferred(kind="ignored", dtype=dtype, reason="a time; declare it continuous to model it in seconds")
    n_distinct = len(levels(present, name)[1])
    if dtype == "string":
        return _infer_text(present, name, n_distinct)
    if n_distinct == 1:
        return Inferred(kind="categorical", dtype=dtype, reason="constant: any other value is unseen")
    if n_distinct == 2 and dtype != "float64":
        return Inferred(kind="binary", dtype=dtype)
    if dtype == "int64":
        values = numbers(present, name)
        if len(values) >= IDENTIFIER_ROWS and n_distinct == len(values) == len(series):
            if (np.diff(values) > 0).all():
                return Inferred(kind="ignored", dtype=dtype, reason="an identifier: it increases from row to row")
            if IDENTIFIER_NAME.search(name):
                return Inferred(kind="ignored", dtype=dtype, reason="an identifier, by its name: all values differ")
        if values.min() >= 0 and values.max() <= LARGEST_COUNT:
            return Inferred(kind="count", dtype=dtype)
    return Inferred(kind="continuous", dtype=dtype)


def _infer_text(present: pd.Series, name: str, n_distinct: int) -> Inferred:
    if not isinstance(present.dtype, pd.CategoricalDtype):
        numeric = pd.to_numeric(present.astype(object), errors="coerce").notna()
        if NUMERIC_SHARE <= numeric.mean() < 1:
            row, value = row_label(present, ~numeric.to_numpy()), present[~numeric].iloc[0]
            raise SchemaError(
                f"column {name!r} must hold numbers only or text only, got {value!r} in row {row!r} among numbers. "
                "Correct the cell, leave it empty, or declare the column categorical.",
                column=name,
                row=row,
                value=value,
            )
    if n_distinct > IDENTIFIER_ROWS and n_distinct > 0.5 * len(present):
        reason = f"an identifier: {n_distinct} different values in {len(present)} rows"
        return Inferred(kind="ignored", dtype="string", reason=reason)
    if n_distinct == 1:
        return Inferred(kind="categorical", dtype="string", reason="constant: any other value is unseen")
    return Inferred(kind="binary" if n_distinct == 2 else "categorical", dtype="string")


def _dtype(series: pd.Series, name: str) -> str:
    dtype = series.dtype
    if pd.api.types.is_bool_dtype(dtype):
        return "bool"
    if pd.api.types.is_datetime64_any_dtype(dtype) or pd.api.types.is_timedelta64_dtype(dtype):
        return "datetime64[ns]"
    if is_text(series):
        return "string"
    if pd.api.types.is_integer_dtype(dtype):
        return "int64"
    if series.isna().any() and series.notna().any():  # whole numbers with gaps arrive as floats
        values = numbers(series, name)
        values = values[~np.isnan(values)]
        if (values == np.round(values)).all() and np.abs(values).max() < 2**53:
            return "int64"
    return "float64"


def _declared_dtype(present: pd.Series, name: str, declared: str, dtype: str) -> str:
    if declared in ("continuous", "count"):
        values = numbers(present, name)
        outside = (values < 0) | (values != np.round(values))
        if declared == "count" and outside.any():
            row = row_label(present, outside)
            raise SchemaError(
                f"count column {name!r} must hold whole numbers from 0 up, got {text_of(values[outside][0])} in "
                f"row {row!r}. Declare it continuous, or correct the cell.",
                column=name,
                row=row,
            )
        if dtype == "datetime64[ns]":
            return dtype
        return "int64" if declared == "count" or dtype == "int64" else "float64"
    if declared == "binary" and len(levels(present, name)[1]) > 2:
        raise SchemaError(
            f"binary column {name!r} must have at most two values, got {len(levels(present, name)[1])}. "
            "Declare it categorical.",
            column=name,
        )
    return "string" if dtype == "datetime64[ns]" else dtype
