"""Text that a spreadsheet would run: in CSV files written here it begins with an apostrophe.

A cell such as `=HYPERLINK(...)` comes from whoever filled in the table, and is run by whoever opens the file. Parquet
keeps all text as it is.
"""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
_FORMULA = re.compile(rf"(?!{_NUMBER}\Z)[=+\-@\t\r\n]")


def harmless(text: str) -> str:
    """Return text that no spreadsheet takes for a formula; numbers stay as they are.

    Example:
        >>> harmless("=1+1"), harmless("-12.5"), harmless("a=b")
        ("'=1+1", '-12.5', 'a=b')
    """
    return "'" + text if _FORMULA.match(text) else text


def harmless_table(table: pa.Table) -> pa.Table:
    """Return a table whose text cells and column names no spreadsheet takes for formulas."""
    columns = [_harmless_column(column) for column in table.columns]
    return pa.table(columns, names=[harmless(name) for name in table.column_names])


def _harmless_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    risky = pc.match_substring_regex(column, r"^[=+\-@\t\r\n]")
    if not pc.any(risky).as_py():
        return column
    return pa.chunked_array([[None if text is None else harmless(text) for text in column.to_pylist()]], column.type)
