"""A matplotlib figure as inline SVG whose colours follow the page: light or dark, on screen or on paper.

matplotlib's own SVG has fixed colours, glyphs or fonts of its choice and the same ids in every figure. This is a small
renderer of the public interface `matplotlib.backend_bases.RendererBase` instead: paths and text alone, colours as CSS
variables, text as text in the page's font, no ids, no state of matplotlib touched, the same bytes every time.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from html import escape
from typing import Any

from matplotlib.backend_bases import GraphicsContextBase, RendererBase
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.transforms import Transform

PALETTE: dict[str, tuple[str, str]] = {
    "page": ("#f4f6f8", "#0f1317"),
    "panel": ("#ffffff", "#171c22"),
    "ink": ("#1c2127", "#e7eaee"),
    "muted": ("#56606b", "#a6b0bb"),
    "line": ("#d3d9e0", "#39424d"),
    "grid": ("#e6eaee", "#2a323b"),
    "band": ("#dbe5f0", "#2a3a4b"),
    "blue": ("#0072b2", "#58b2ee"),
    "vermillion": ("#c95100", "#ff9457"),
    "green": ("#00795a", "#43cf9f"),
    "purple": ("#9a4f80", "#dd93bf"),
    "gold": ("#8a6300", "#e5b93c"),
    "pale": ("#7890a8", "#7289a1"),
    "link": ("#005a8f", "#7cc4f5"),
}
"""Colour -> its shade on a light and on a dark page; the first five are surfaces, text and rules, the others marks."""
SERIES = ("blue", "vermillion", "green", "purple", "gold", "pale")
"""Colours of things without an order, after Okabe and Ito: they stay apart for colour-blind readers."""
_NAMES = {light: name for name, (light, _) in PALETTE.items()}
_ANCHORS = {"left": "start", "center": "middle", "right": "end"}
_WIDE = 1.05
_NARROW = 0.62
_MINUS = 0.84
"""Widths of characters in units of the font's size; generous, since the reader's font is unknown."""


def shade(name: str) -> str:
    """Return the colour that a figure is to be drawn in so that `inline` makes the named variable of it."""
    return PALETTE[name][0]


def inline(figure: Figure, *, title: str, text: str) -> str:
    """Return a figure as an SVG element for a page that defines the variables of `PALETTE`.

    Args:
        figure: Drawn in colours of `shade`, at 72 dots per inch, so that points are pixels.
        title: What it is, for those who do not see it.
        text: What it shows, likewise.
    """
    width, height = figure.get_size_inches() * figure.dpi
    renderer = _Renderer(float(width), float(height))
    figure.draw(renderer)
    described = f"<title>{escape(clean(title))}</title><desc>{escape(clean(text))}</desc>"
    label = escape(clean(f"{title}. {text}"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}">'
        f"{described}{''.join(renderer.parts)}</svg>"
    )


def clean(text: str) -> str:
    """Return text without characters that XML cannot hold."""
    return "".join(c if c.isprintable() or c == " " else " " for c in text)


def text_width(text: str, size: float) -> float:
    """Return about how wide text is, in the units of its size."""
    widths = {"−": _MINUS, "%": 0.95, ".": 0.32, ",": 0.32, " ": 0.32}
    return size * sum(widths.get(c, _WIDE if unicodedata.east_asian_width(c) in "WF" else _NARROW) for c in text)


class _Renderer(RendererBase):
    """Collects SVG elements."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__()
        self.width, self.height = width, height
        self.parts: list[str] = []

    def get_canvas_width_height(self) -> tuple[float, float]:
        return self.width, self.height

    def points_to_pixels(self, points: Any) -> Any:
        return points

    def flipy(self) -> bool:
        return True

    def get_text_width_height_descent(self, s: str, prop: Any, ismath: Any) -> tuple[float, float, float]:
        size = prop.get_size_in_points()
        return text_width(s, size), 1.1 * size, 0.25 * size

    def draw_path(self, gc: GraphicsContextBase, path: Path, transform: Transform, rgbFace: Any = None) -> None:
        visible = gc.get_linewidth() > 0 and gc.get_alpha() != 0 and gc.get_rgb()[3] > 0
        if rgbFace is None and not visible:
            return
        clip = gc.get_clip_rectangle()
        low_x, low_y, high_x, high_y = (0.0, 0.0, self.width, self.height) if clip is None else clip.extents
        window = None if clip is None or rgbFace is not None else (low_x, low_y, high_x, high_y)
        data = _path_data(path.iter_segments(transform, clip=window, simplify=False), self.height)
        if not data:
            return
        style = [f'd="{data}"']
        if rgbFace is None:
            style.append('fill="none"')
        else:
            style.append(f'fill="{_colour(rgbFace)}"')
            opacity = rgbFace[3] if len(rgbFace) == 4 else (gc.get_alpha() or 1)
            style += [f'fill-opacity="{opacity:.3g}"'] if opacity < 1 else []
        if visible:
            style += [f'stroke="{_colour(gc.get_rgb())}"', f'stroke-width="{gc.get_linewidth():.3g}"']
            opacity = gc.get_rgb()[3]
            style += [f'stroke-opacity="{opacity:.3g}"'] if opacity < 1 else []
            style += [f'stroke-linecap="{gc.get_capstyle()}"'] if gc.get_capstyle() == "round" else []
            dashes: Any = gc.get_dashes()[1]
            style += [f'stroke-dasharray="{" ".join(f"{d:.3g}" for d in dashes)}"'] if dashes is not None else []
        self.parts.append(f"<path {' '.join(style)}/>")

    def draw_text(
        self, gc: GraphicsContextBase, x: float, y: float, s: str, prop: Any, angle: float,
        ismath: Any = False, mtext: Any = None,
    ) -> None:  # fmt: skip
        anchor = "start"
        if mtext is not None and angle == 0:
            anchor = _ANCHORS[mtext.get_ha()]
            x = mtext.get_transform().transform(mtext.get_unitless_position())[0]
        facts = [f'x="{_number(x)}"', f'y="{_number(y)}"', f'font-size="{prop.get_size_in_points():g}"']
        facts += [f'text-anchor="{anchor}"'] if anchor != "start" else []
        facts += ['font-weight="600"'] if prop.get_weight() in ("bold", "semibold", 600, 700) else []
        facts.append(f'fill="{_colour(gc.get_rgb())}"')
        self.parts.append(f"<text {' '.join(facts)}>{escape(clean(s))}</text>")


def _path_data(segments: Iterable[tuple[Any, Any]], height: float) -> str:
    letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}
    out: list[str] = []
    for points, code in segments:
        if code == Path.CLOSEPOLY:
            out.append("Z")
        elif code != Path.STOP:
            pairs = (f"{_number(points[i])} {_number(height - points[i + 1])}" for i in range(0, len(points), 2))
            out.append(letters[code] + " ".join(pairs))
    return "".join(out)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _colour(rgb: Any) -> str:
    """Return the variable of a colour, with its light shade for where none is defined."""
    shown = to_hex(rgb[:3])
    return f"var(--{_NAMES[shown]}, {shown})" if shown in _NAMES else shown
