"""The strangest rows, or images, with their reasons: a section of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .parts import Section, absent, cropped, figure, png, section, table
from .pictures import full_red, heat_map_pixels

MOST_STRANGE = 24
MOST_PARTS = 12
"""Parts of a score that are pictured one by one."""
_ENLARGED = 96
_WORDS = {
    "(other columns)": "other columns",
    "(latent)": "latent code",
    "(dependence)": "dependence",
}


@dataclass(frozen=True, kw_only=True)
class StrangeRow:
    """A row, or image, and why it scored as it did.

    Attributes:
        name: What it is called: its number, key or file.
        score: Anomaly score, nats.
        p_value: Its p-value; None where there is none.
        flagged: Whether it was flagged.
        parts: Column, nats, value and expected, as `Detector.score_frame(explain=...)` gives them; the nats sum to
            the score. Empty where no reasons were kept.
        label: What it is known to be, if it is.
        images: Of an image: itself, its reconstruction and its heat map, PNG data URIs.
    """

    name: str
    score: float
    p_value: float | None
    flagged: bool
    parts: Sequence[Mapping[str, Any]] = ()
    label: str | None = None
    images: tuple[str, str, str] | None = None


def strangest_section(rows: Sequence[StrangeRow], *, images: bool = False) -> Section:
    """The strangest rows: a waterfall of each score, with values and what was expected; images with their heat maps.

    Args:
        rows: The strangest first; the first `MOST_STRANGE` are shown.
        images: Whether they are images.
    """
    what = "images" if images else "rows"
    title = f"The strangest {what}"
    if not rows:
        return absent("strangest", title, f"There are no {what} at hand.")
    said = [
        f"The {min(len(rows), MOST_STRANGE)} {what} with the highest scores, in nats: a score's parts add up to it. "
        "A part says what a cell costs under this model, not what caused it."
    ]
    if not any(row.parts for row in rows):
        said[0] = (
            "The rows with the highest scores. Their reasons were not kept: score with --explain, or name the data."
        )
        head = ["row", "score", "p-value", "flagged"]
        body = [[row.name, row.score, row.p_value, "yes" if row.flagged else "no"] for row in rows[:MOST_STRANGE]]
        return section("strangest", title, sentences=said, tables=[table("Highest scores", head, body)])
    if images:
        said.append(
            "Beside each image: what the model reconstructs, and the pixels that cost the nats, the redder the more."
        )
    return section("strangest", title, sentences=said, cards=[_card(row) for row in rows[:MOST_STRANGE]])


def pictured(
    pixels: NDArray[np.uint8], reconstructions: NDArray[np.uint8], heat_maps: NDArray[np.float64]
) -> list[tuple[str, str, str]]:
    """Return images (n, h, w, c), reconstructions alike and heat maps (n, h, w), on one scale, as PNG data URIs."""
    largest = full_red(heat_maps) if len(heat_maps) else 1.0
    return [
        (
            png(image, least=_ENLARGED),
            png(again, least=_ENLARGED),
            png(heat_map_pixels(heat, largest=largest), least=_ENLARGED),
        )
        for image, again, heat in zip(pixels, reconstructions, heat_maps, strict=True)
    ]


def _card(row: StrangeRow) -> Section:
    p = "" if row.p_value is None else f", p = {row.p_value:.2g}"
    state = "flagged" if row.flagged else "not flagged"
    label = "" if row.label is None else f", labelled {row.label}"
    sentence = f"Score {row.score:.1f} nats{p}, {state}{label}."
    name = cropped(row.name, 80)
    figures, tables = [], []
    if row.images:
        shown = zip(("image", "reconstruction", "nats per pixel"), row.images, strict=True)
        images = [{"caption": words, "source": source, "text": f"{words} of {name}"} for words, source in shown]
        text = f"{name}, what the model makes of it, and what each pixel costs"
        figures.append(figure("images", f"{name}: image, reconstruction, heat map", text, {"images": images}))
    if row.parts:
        parts = _gathered(row.parts)
        costliest = max(parts, key=lambda part: part["nats"])
        text = f"{costliest['label']} costs most: {costliest['nats']:.1f} nats, of a score of {row.score:.1f}."
        data = {"parts": parts, "total": row.score, "x_label": "nats"}
        figures.append(figure("waterfall", f"What {name} costs", text, data))
        cells = [
            [cropped(part["column"], 60), _cell(part["value"]), _cell(part["expected"]), part["nats"]]
            for part in row.parts
            if "value" in part
        ]
        if cells:
            tables.append(table(f"Values of {name}", ["column", "value", "expected", "nats"], cells[:MOST_PARTS]))
    return section(f"row-{name}", name, sentences=[sentence], figures=figures, tables=tables)


def _gathered(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return label and nats of each part, those of no weight and those beyond the costliest added up."""
    named = [(str(part["column"]), float(part["nats"]), "value" in part) for part in parts]
    columns = [(name, nats) for name, nats, cell in named if cell]
    rest = [(_WORDS.get(name, name), nats) for name, nats, cell in named if not cell]
    shown, more = columns[:MOST_PARTS], columns[MOST_PARTS:]
    if more:
        rest.insert(0, (f"{len(more)} more columns", sum(nats for _, nats in more)))
    return [{"label": cropped(name, 60), "nats": nats} for name, nats in shown + rest]


def _cell(value: Any) -> Any:
    if value is None:
        return "(missing)"
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else cropped(value, 60)
