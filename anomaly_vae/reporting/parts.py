"""What a report is made of, as plain JSON-able values: sections, figures, tables, cards, facts.

A section is a mapping with `key`, `title` and any of

- `sentences`: paragraphs of text;
- `facts`: `{"name", "value"}` pairs;
- `figures`: see `drawing`; besides its kinds `images`, whose data is `{"images": [{"caption", "source", "text"}]}`;
- `tables`: `{"caption", "columns", "rows"}`; a cell is text, a number, None, `{"share"}` or `{"spark", "text"}`;
- `cards`: smaller sections of the same kind, side by side;
- `absent`: the sentence that stands in its place where there is nothing to show.

Text is text: whatever stands in it is escaped when the page is made.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ConfigError
from .drawing import DRAWINGS

Section = dict[str, Any]
MOST_TEXT = 160
"""Characters of a cell, name or caption; the rest is cut off."""
MOST_ROWS = 200
"""Rows of a table that the page shows; the JSON beside it has them all."""
FIELDS = ("key", "title", "sentences", "facts", "figures", "tables", "cards", "absent")


def section(key: str, title: str, **parts: Any) -> Section:
    """Return a section; its parts as in the module's text, those that are empty left out."""
    return {"key": key, "title": title, **{name: part for name, part in parts.items() if part}}


def absent(key: str, title: str, sentence: str) -> Section:
    """Return what stands for a section that has nothing to show."""
    return {"key": key, "title": title, "absent": sentence}


def figure(
    kind: str, title: str, text: str, data: Mapping[str, Any], legend: Sequence[Sequence[str]] = ()
) -> dict[str, Any]:
    """Return a figure.

    Args:
        kind: A name in `drawing.DRAWINGS`, or "images".
        title: What it is.
        text: What it shows, in words: its alternative for those who do not see it.
        data: What is drawn.
        legend: Name, colour and mark (box, line, dash, dot) of each thing drawn.
    """
    entries = [{"name": name, "colour": colour, "mark": mark} for name, colour, mark in legend]
    return {"kind": kind, "title": title, "text": text, "data": dict(data), "legend": entries}


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Return a table; columns of numbers are set to the right."""
    return {"caption": caption, "columns": list(columns), "rows": [list(row) for row in rows]}


def custom(given: Mapping[str, Any]) -> Section:
    """Return a section of somebody else's making, checked: title, sentences, table or tables, figure or figures.

    Args:
        given: The parts. A table may also be a list of mappings with the same keys.

    Raises:
        ConfigError: It has no title, an unknown part, or a figure of an unknown kind.
    """
    parts = dict(given)
    title = str(parts.pop("title", "")).strip()
    if not title:
        raise ConfigError(f"a section must have a title, got {sorted(map(str, given))}. Give one.")
    for one, many in (("table", "tables"), ("figure", "figures"), ("sentence", "sentences")):
        if one in parts:
            parts[many] = [*parts.get(many, ()), parts.pop(one)]
    key = str(parts.pop("key", title))
    unknown = [name for name in parts if name not in FIELDS]
    if unknown:
        raise ConfigError(f"a section must have parts of {', '.join(FIELDS)}, got {unknown[0]!r}. Rename it.")
    if isinstance(parts.get("sentences"), str):
        parts["sentences"] = [parts["sentences"]]
    parts["tables"] = [_table(one) for one in parts.get("tables", ())]
    parts["figures"] = [_figure(one) for one in parts.get("figures", ())]
    if isinstance(parts.get("facts"), Mapping):
        parts["facts"] = facts(parts["facts"])
    return section(key, title, **parts)


def facts(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return pairs of name and value; what is None is left out."""
    return [{"name": name, "value": value} for name, value in values.items() if value is not None]


def plain(value: Any) -> Any:
    """Return values as JSON holds them: floats to 6 digits, not finite = None, long text cut, dataclasses as mappings.

    Example:
        >>> plain({"a": np.float64(1.23456789), "b": (np.nan, np.int64(2))})
        {'a': 1.23457, 'b': [None, 2]}
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (bool, np.bool_)):
        return None if value is None else bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    text = str(value)
    return text if text.startswith("data:image/png;base64,") else cropped(text, 2000)


def cropped(text: Any, most: int = MOST_TEXT) -> str:
    """Return text of at most so many characters."""
    text = str(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def png(levels: NDArray[np.uint8], *, least: int = 0) -> str:
    """Return an image, (h, w), (h, w, 1) or (h, w, 3) levels, as a data URI.

    Args:
        levels: The image.
        least: Smaller images are enlarged by a whole factor until their longer side has so many pixels.
    """
    pixels = levels[..., 0] if levels.ndim == 3 and levels.shape[-1] == 1 else levels
    factor = max(1, -(-least // max(pixels.shape[:2])))
    image = Image.fromarray(np.ascontiguousarray(pixels.repeat(factor, 0).repeat(factor, 1)))
    image.thumbnail((MOST_PIXELS, MOST_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


MOST_PIXELS = 128
"""Longer side of an image in a report: a page of them stays small."""


def _table(given: Any) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return {"caption": "", **given}
    rows = [dict(row) for row in given]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return table("", columns, [[row.get(name) for name in columns] for row in rows])


def _figure(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping) or given.get("kind") not in (*DRAWINGS, "images"):
        kind = given.get("kind") if isinstance(given, Mapping) else given
        raise ConfigError(f"a figure's kind must be one of {', '.join(DRAWINGS)}, images, got {kind!r}. Choose one.")
    missing = [name for name in ("title", "text", "data") if not given.get(name)]
    if missing:
        raise ConfigError(f"a figure must have title, text and data, got none as {missing[0]}. Give it.")
    return {"legend": [], **given}
