"""A column of images within a table, as pandas has it: found, judged, taken together."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from ..errors import SchemaError
from .pixels import format_of

IMAGE = "image"
"""Default name of the column of images."""


def only_column(frame: pd.DataFrame) -> str:
    """Return the name of a table's only column; of several the default name."""
    names = [str(name) for name in frame.columns]
    return names[0] if len(names) == 1 else IMAGE


def cells_of(frame: pd.DataFrame, column: str) -> list[Any]:
    """Return the cells of the column of images.

    Raises:
        SchemaError: It is absent, or there twice.
    """
    matches = [i for i, name in enumerate(frame.columns) if str(name) == column]
    if not matches:
        names = [str(name) for name in frame.columns]
        near = difflib.get_close_matches(column, names, n=1) or names[:1] * (len(names) == 1)
        hint = f"Is it {near[0]!r}? Rename it." if near else f"The table has {', '.join(map(repr, names[:8]))}."
        raise SchemaError(f"a table of images must have the column {column!r}, got none. {hint}", absent=(column,))
    if len(matches) > 1:
        raise SchemaError(f"column names must differ, got {column!r} more than once. Rename one.", column=column)
    return frame.iloc[:, matches[0]].tolist()


def alike(cells: Sequence[Any]) -> NDArray[Any] | None:
    """Return the cells as one array (n, h, w) or (n, h, w, c), if they are arrays of one valid shape and dtype."""
    if not cells or not all(isinstance(cell, np.ndarray) for cell in cells):
        return None
    first = cells[0]
    if first.size == 0 or first.ndim not in (2, 3) or (first.ndim == 3 and first.shape[2] not in (1, 3)):
        return None
    if any(cell.shape != first.shape or cell.dtype != first.dtype for cell in cells):
        return None
    return np.stack(cells)


def checked(images: NDArray[Any]) -> NDArray[Any]:
    """Return an array as it is.

    Raises:
        SchemaError: It is not of the shape of images.
    """
    array = np.asarray(images)
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)) or 0 in array.shape[1:]:
        hint = " Channels come last." if array.ndim == 4 and array.shape[1] in (1, 3) else ""
        raise SchemaError(
            f"an array of images must have the shape (n, h, w), (n, h, w, 1) or (n, h, w, 3), got {array.shape}."
            f"{hint} Reshape or convert it."
        )
    return array


def is_image_column(frame: pd.DataFrame) -> bool:
    """Whether a table is one column of images: arrays, Pillow images, or bytes that begin as an image file does."""
    if frame.shape[1] != 1 or not len(frame):
        return False
    column = frame.iloc[:, 0]
    if column.dtype != object:
        return False
    cell = next((cell for cell in column if cell is not None), None)
    if isinstance(cell, bytes | bytearray | memoryview):
        return format_of(bytes(cell[:16])) is not None
    return isinstance(cell, Image.Image) or (isinstance(cell, np.ndarray) and cell.ndim in (2, 3))
