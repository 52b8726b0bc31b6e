"""One column of a pandas table as numbers or as category codes, with errors that name the row.

Shapes: every function takes a Series of n cells and returns an array (n,).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import SchemaError

UNSEEN = "(unseen)"
"""What an unseen category decodes to."""


def row_label(series: pd.Series, where: NDArray[np.bool_]) -> Any:
    """Return the index label of the first marked row, as plain Python."""
    label = series.index[int(np.argmax(where))]
    return label.item() if isinstance(label, np.generic) else label


def is_text(series: pd.Series) -> bool:
    """Whether the cells are strings, categories or arbitrary objects rather than numbers, booleans or times."""
    dtype = series.dtype
    return bool(
        isinstance(dtype, pd.CategoricalDtype)
        or pd.api.types.is_object_dtype(dtype)
        or pd.api.types.is_string_dtype(dtype)
    )


_OF_OBJECTS = {
    "integer": "Int64",
    "boolean": "boolean",
    "floating": "Float64",
    "mixed-integer-float": "Float64",
    "decimal": "Float64",
}


def unwrapped(series: pd.Series) -> pd.Series:
    """Return object cells that are all numbers or all booleans as such (gaps allowed), others as they are."""
    if not pd.api.types.is_object_dtype(series.dtype):
        return series
    dtype = _OF_OBJECTS.get(pd.api.types.infer_dtype(series, skipna=True))
    return series.astype(dtype) if dtype else series.infer_objects()


def numbers(series: pd.Series, name: str) -> NDArray[np.float64]:
    """Return cells as float64, missing = NaN; times become seconds since 1970.

    Raises:
        SchemaError: A cell is text, complex or infinite; the first such row is named by its index label.
    """
    dtype = series.dtype
    if pd.api.types.is_datetime64_any_dtype(dtype) or pd.api.types.is_timedelta64_dtype(dtype):
        unit = "timedelta64[ns]" if pd.api.types.is_timedelta64_dtype(dtype) else "datetime64[ns]"
        plain = series.dt.tz_convert(None) if getattr(dtype, "tz", None) else series
        ticks = plain.to_numpy().astype(unit)
        return np.where(np.isnat(ticks), np.nan, ticks.astype(np.int64) / 1e9)
    if pd.api.types.is_complex_dtype(dtype):
        raise SchemaError(f"column {name!r} must hold real numbers, got complex data. Complex data not supported.")
    if is_text(series):
        plain = series.astype(object)
        values = _parsed(plain, name)
    else:
        values = series.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
    infinite = np.isinf(values)
    if infinite.any():
        row = row_label(series, infinite)
        raise SchemaError(
            f"column {name!r} must be finite, got infinity in row {row!r}. "
            "Replace it by a number, or leave the cell empty if the value is unknown.",
            column=name,
            row=row,
        )
    return values


def times(series: pd.Series, name: str) -> pd.Series:
    """Return text cells as times (CSV and JSON have no times of their own); other cells as they are.

    Raises:
        SchemaError: A text is no time; the first such row is named.
    """
    if not is_text(series):
        return series
    parsed = pd.to_datetime(series.astype(object), errors="coerce", utc=True, format="ISO8601")
    bad = (parsed.isna() & series.notna()).to_numpy()
    if bad.any():
        position = int(np.argmax(bad))
        raise SchemaError(
            f"column {name!r} must hold times such as 2024-01-31T12:00:00, got {_short(series.iloc[position])} in row "
            f"{row_label(series, bad)!r}. Correct the cell or leave it empty.",
            column=name,
            row=row_label(series, bad),
        )
    return parsed


def _parsed(cells: pd.Series, name: str) -> NDArray[np.float64]:
    try:
        values = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
    except TypeError as error:
        raise SchemaError(
            f"column {name!r} must hold one value a cell, got nested data. {error}.", column=name
        ) from error
    bad = np.isnan(values) & cells.notna().to_numpy()
    if bad.any():
        position = int(np.argmax(bad))
        row, value = row_label(cells, bad), cells.iloc[position]
        raise SchemaError(
            f"column {name!r} must hold numbers, got {_short(value)} in row {row!r}. Correct the cell, leave it empty, "
            "or declare the column categorical before training.",
            column=name,
            row=row,
            value=value,
        )
    return values


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def text_of(value: Any) -> str:
    """Return the canonical text of a category: 1, 1.0 and True-as-number agree, strings stay as they are.

    Example:
        >>> text_of(1.0), text_of(True), text_of("a")
        ('1', 'True', 'a')
    """
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return str(int(number)) if math.isfinite(number) and number.is_integer() else repr(number)
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    return str(value)


def levels(series: pd.Series, name: str) -> tuple[NDArray[np.intp], list[Any]]:
    """Return the code of each cell, shape (n,), -1 = missing, and the distinct values in order of appearance.

    Raises:
        SchemaError: The cells are not scalars.
    """
    try:
        codes, values = pd.factorize(series)
    except TypeError as error:
        raise SchemaError(
            f"column {name!r} must hold one value a cell, got nested data ({error}). "
            "Flatten it or drop the column: argument must be a string or a number.",
            column=name,
        ) from error
    return codes, list(values)


def category_codes(
    series: pd.Series, name: str, categories: Mapping[str, int], *, boolean: bool
) -> NDArray[np.float32]:
    """Return each cell's index among the categories, NaN = missing, len(categories) = unseen."""
    codes, values = levels(series, name)
    table = np.full(len(values) + 1, np.nan, dtype=np.float32)  # the last entry serves code -1, missing
    for i, value in enumerate(values):
        text = text_of(value)
        if boolean and text not in categories:  # a boolean may come back from a file or JSON as 0/1 or as text
            text = {"1": "True", "0": "False", "true": "True", "false": "False"}.get(text, text)
        table[i] = categories.get(text, len(categories))
    return table[codes]
