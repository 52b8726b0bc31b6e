"""Results as small pieces of HTML for a notebook: escaped, without scripts, in the notebook's own colours."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

MOST_ROWS = 12
MOST_TEXT = 120
_CELL = "text-align:left;vertical-align:top;padding:2px 12px 2px 0"


def card(
    title: str,
    facts: Mapping[str, Any],
    *,
    lists: Mapping[str, Sequence[str]] | None = None,
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> str:
    """Return a title, facts, lists of sentences and tables as HTML.

    Args:
        title: What it is.
        facts: Name -> value.
        lists: Heading -> sentences; empty ones are left out.
        tables: Heading -> rows, each a mapping of the same columns; the first `MOST_ROWS` are shown.

    Example:
        >>> "&lt;b&gt;" in card("A", {"<b>": 1}) and "<b>" not in card("A", {"<b>": 1})
        True
    """
    parts = [f"<p><strong>{text_of(title)}</strong></p>"]
    if facts:
        rows = [f'<tr><th scope="row" style="{_CELL}">{text_of(k)}</th>{_cell(v)}</tr>' for k, v in facts.items()]
        parts.append(f"<table>{''.join(rows)}</table>")
    for heading, sentences in (lists or {}).items():
        if sentences:
            items = "".join(f"<li>{text_of(sentence, 400)}</li>" for sentence in sentences[:MOST_ROWS])
            parts.append(f"<p>{text_of(heading)}{_more(sentences)}</p><ul>{items}</ul>")
    for heading, entries in (tables or {}).items():
        if entries:
            head = "".join(f'<th scope="col" style="{_CELL}">{text_of(k)}</th>' for k in entries[0])
            body = "".join(f"<tr>{''.join(map(_cell, entry.values()))}</tr>" for entry in entries[:MOST_ROWS])
            parts.append(
                f"<details><summary>{text_of(heading)}{_more(entries)}</summary>"
                f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></details>"
            )
    return f"<div>{''.join(parts)}</div>"


class Carded:
    """A result dataclass that a notebook shows as its facts, sentences and tables."""

    def _repr_html_(self) -> str:
        facts: dict[str, Any] = {}
        lists: dict[str, Sequence[str]] = {}
        tables: dict[str, Sequence[Mapping[str, Any]]] = {}
        for one in dataclasses.fields(self):  # type: ignore[arg-type]
            name, value = one.name.replace("_", " "), getattr(self, one.name)
            if isinstance(value, tuple) and value and isinstance(value[0], str):
                lists[name] = value
            elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
                tables[name] = [_fields(entry) for entry in value]
            elif isinstance(value, Mapping):
                tables[name] = [{"name": k, "value": v} for k, v in value.items()]
            elif not isinstance(value, tuple):
                facts[name] = value
        title = "".join(f" {c.lower()}" if c.isupper() else c for c in type(self).__name__).strip()
        return card(title.capitalize(), facts, lists=lists, tables=tables)


def text_of(value: Any, most: int = MOST_TEXT) -> str:
    """Return a value as escaped text of at most so many characters.

    Example:
        >>> text_of("<script>"), text_of(0.123456789), text_of(None)
        ('&lt;script&gt;', '0.1235', '–')
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = _fields(value)
        if set(found) == {"value", "low", "high"}:
            return f"{text_of(found['value'])} ({text_of(found['low'])} to {text_of(found['high'])})"
        return ", ".join(f"{text_of(k)} {text_of(v)}" for k, v in found.items() if not isinstance(v, tuple))
    text = str(value)
    return escape(text if len(text) <= most else text[: most - 1] + "…")


def _fields(value: Any) -> dict[str, Any]:
    return {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}


def _cell(value: Any) -> str:
    return f'<td style="{_CELL}">{text_of(value)}</td>'


def _more(entries: Sequence[Any]) -> str:
    return f" ({MOST_ROWS} of {len(entries):,})" if len(entries) > MOST_ROWS else ""
