"""A report: one HTML page that opens offline, and its twin in JSON.

Built in one direction: results -> sections of plain values (`sections`, `reasons`, `findings`) -> figures (`drawing`)
-> page. The page is a function of the JSON alone, so what is pictured is what stands there. It loads nothing: no
script, no font, no image from elsewhere, and its own policy forbids any.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..errors import ConfigError, OutputExistsError
from .drawing import svg
from .findings import audit_section, drift_section, resample_section
from .parts import MOST_ROWS, Section, custom, plain
from .svg import PALETTE

__all__ = [
    "MOST_BYTES", "audit_section", "custom", "drift_section", "page", "resample_section", "twin_of", "write_report",
]  # fmt: skip

FORMAT = 1
MOST_BYTES = 2_000_000
"""A page is smaller than this. A section that would take it further is left to the JSON, and the page says so."""


def write_report(
    sections: Sequence[Mapping[str, Any]],
    path: str | Path,
    *,
    title: str = "Report",
    subtitle: str = "",
    tiles: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a page and its twin beside it, the same name with `.json`; both appear only when whole.

    Args:
        sections: As the builders of this package return them, or any mapping that `custom` takes.
        path: The page, `.html`.
        title: Of the page.
        subtitle: A line under it.
        tiles: A few figures for the top of the page, by name.
        overwrite: Whether to replace files that exist.

    Returns:
        The page's path.

    Raises:
        ConfigError: The path is not of a page in a folder that exists, or a section is not one.
        OutputExistsError: The page or its twin is there.
    """
    path = Path(path)
    check_path(path, overwrite=overwrite)
    whole = report_of(sections, title=title, subtitle=subtitle, tiles=tiles)
    _write(twin_of(path), json.dumps(whole, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
    _write(path, page(whole))
    return path


def report_of(
    sections: Sequence[Mapping[str, Any]], *, title: str, subtitle: str = "", tiles: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return a report as JSON-able values: what `page` is made of.

    Raises:
        ConfigError: A section is not one.
    """
    named = [{"name": name, "value": value} for name, value in (tiles or {}).items() if value is not None]
    made = [custom(one) for one in sections]
    report: dict[str, Any] = plain(
        {"format": FORMAT, "title": title, "subtitle": subtitle, "tiles": named, "sections": made}
    )
    return report


def page(report: Mapping[str, Any]) -> str:
    """Return the HTML of a report.

    Args:
        report: As `report_of` returns it, or as its twin in JSON holds it.
    """
    environment = _environment()
    template = environment.get_template("section.html")
    shown = [dict(one) for one in report["sections"] if "absent" not in one]
    missing = [one for one in report["sections"] if "absent" in one]
    anchors = _anchors(shown)
    bodies = [template.render(section=one, anchor=anchor) for one, anchor in zip(shown, anchors, strict=True)]
    room = MOST_BYTES - 100_000  # for what is around the sections
    while sum(len(body.encode()) for body in bodies) > room:
        largest = max(range(len(bodies)), key=lambda i: len(bodies[i]))
        sentence = "This section would make the page larger than 2 MB. It is whole in the JSON file beside this page."
        stub: Section = {"key": shown[largest]["key"], "title": shown[largest]["title"], "sentences": [sentence]}
        bodies[largest] = template.render(section=stub, anchor=anchors[largest])
    return environment.get_template("page.html").render(
        report=report,
        links=list(zip(anchors, (one["title"] for one in shown), strict=True)),
        bodies=[Markup(body) for body in bodies],
        missing=missing,
        light={name: light for name, (light, _) in PALETTE.items()},
        dark={name: dark for name, (_, dark) in PALETTE.items()},
    )


def twin_of(path: Path) -> Path:
    """Return where the JSON of a page lies."""
    return path.with_suffix(".json")


def check_path(path: Path, *, overwrite: bool) -> None:
    """Refuse a path that no page can be written to.

    Raises:
        ConfigError: It does not end in .html, or its folder does not exist.
        OutputExistsError: The page or its twin is there and may not be replaced.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"a report must end in .html, got {path.name!r}. Rename it.")
    if not path.parent.is_dir():
        raise ConfigError(f"a report's folder must exist, got {str(path.parent)!r}. Make it first.")
    for one in (path, twin_of(path)):
        if one.is_dir():
            raise ConfigError(f"a report must be a file, got the folder {str(one)!r}. Name a file in it.")
        if one.exists() and not overwrite:
            raise OutputExistsError(
                f"a report must not exist yet, got {str(one)!r}. Use --overwrite to replace it.", path=one
            )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("anomaly_vae.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "drawn": _drawn}
    environment.globals["most_rows"] = MOST_ROWS
    return environment


def number(value: float | None) -> str:
    """Return a number as text.

    Example:
        >>> number(1234567), number(-0.000123), number(None)
        ('1,234,567', '−0.000123', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    return (f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}").replace("-", "−")


def percent(value: float | None) -> str:
    """Return a share as text.

    Example:
        >>> percent(0.1234), percent(0.00012), percent(0.0)
        ('12.3 %', '0.012 %', '0 %')
    """
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if abs(value) >= 0.01 else f"{100 * value:.2g} %"


def _drawn(figure: Mapping[str, Any]) -> Markup:
    return Markup(svg(figure))


def _anchors(sections: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return an id for each section, different ones and of plain letters."""
    found: list[str] = []
    for one in sections:
        slug = re.sub(r"[^a-z0-9]+", "-", str(one["key"]).lower()).strip("-")[:40] or "section"
        while slug in found:
            slug += "-2"
        found.append(slug)
    return found


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
