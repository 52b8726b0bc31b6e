"""Figures of a report, from plain values: what a figure shows is what stands in the report's JSON, and nothing else.

A figure is a mapping: `kind` (a name in `DRAWINGS`), `title`, `text` (what it shows, in words), `data` (the values) and
`legend`. All are drawn 360 pixels wide with text of 12, so that they can be read on a phone and beside each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .svg import clean, inline, shade, text_width

Data = Mapping[str, Any]

WIDTH = 360
HEIGHT = 236
SIZE = 12
LABEL_WIDTH = 132
"""Pixels that names beside bars may take; longer ones are cut."""
_ROW = 25
_NAME = "name"
_DASHES = (0, (5, 4))
_STYLES: dict[str, dict[str, Any]] = {"solid": {}, "dash": {"linestyle": _DASHES}, "step": {"drawstyle": "steps-post"}}


def svg(figure: Data) -> str:
    """Return a figure of a report as an SVG element.

    Args:
        figure: See the module.
    """
    drawn = DRAWINGS[figure["kind"]](figure["data"])
    return inline(drawn, title=figure["title"], text=figure["text"])


def lines(data: Data) -> Figure:
    """Draw curves over x: `series` of x, y, colour and style (solid, dash, step), a `band`, and `marks` at points."""
    figure, axes = _plain(HEIGHT)
    band = data.get("band")
    if band:
        axes.fill_between(
            band["x"],
            band["low"],
            band["high"],
            color=shade("band"),
            linewidth=0,
            step="post" if band.get("step") else None,
        )
    for one in data["series"]:
        style = _STYLES[one.get("style", "solid")]
        y = [math.nan if v is None else v for v in one["y"]]
        axes.plot(one["x"], y, color=shade(one["colour"]), linewidth=1.8, **style)
    for mark in data.get("marks", ()):
        axes.plot([mark["x"]], [mark["y"]], "o", color=shade(mark["colour"]), markersize=7, markeredgewidth=0)
    if data.get("x_range"):
        axes.set_xlim(*data["x_range"])
    if data.get("y_range"):
        axes.set_ylim(*data["y_range"])
    return _finished(figure, axes, data)


def histogram(data: Data) -> Figure:
    """Draw `series` of heights over the bins between `edges`, and a dashed line at `threshold`, if there is one."""
    figure, axes = _plain(HEIGHT)
    edges = np.asarray(data["edges"])
    opacity = 0.85 if len(data["series"]) == 1 else 0.6
    for one in data["series"]:
        axes.stairs(one["heights"], edges, fill=True, facecolor=shade(one["colour"]), alpha=opacity, linewidth=0)
    if data.get("reference") is not None:
        axes.axhline(data["reference"], color=shade("ink"), linewidth=1.4, linestyle=_DASHES)
    if data.get("threshold") is not None:
        axes.axvline(data["threshold"], color=shade("ink"), linewidth=1.4, linestyle=_DASHES)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, max(max(one["heights"], default=0) for one in data["series"]) * 1.06 or 1)
    return _finished(figure, axes, data)


def waterfall(data: Data) -> Figure:
    """Draw how `parts`, each a label and nats, add up to `total`: every bar begins where the last one ended."""
    parts = [*data["parts"], {"label": data.get("total_label", "score"), "nats": data["total"]}]
    figure, axes, y = _rows([part["label"] for part in parts], data)
    ends = np.cumsum([part["nats"] for part in parts[:-1]])
    starts = np.concatenate([[0.0], ends[:-1], [0.0]]) if len(ends) else np.zeros(1)
    low, high = min(0.0, *ends, data["total"]), max(0.0, *ends, data["total"])
    room = (high - low or 1.0) * 0.17
    for height, part, start in zip(y, parts, starts, strict=True):
        last = height == y[-1]
        colour = "ink" if last else ("vermillion" if part["nats"] > 0 else "blue")
        axes.barh(height, part["nats"], left=start, height=0.62, color=shade(colour), linewidth=0)
        right = max(start, start + part["nats"])
        text = (f"{part['nats']:.1f}" if last else f"{part['nats']:+.1f}").replace("-", "−")
        axes.text(right + room * 0.08, height, text, va="center", ha="left", fontsize=SIZE, color=shade("ink"))
    for height, end in zip(y[:-1], ends, strict=True):
        axes.plot([end, end], [height, height + 1], color=shade("line"), linewidth=1)
    axes.axvline(0, color=shade("line"), linewidth=1)
    axes.set_xlim(low - room * 0.1, high + room * 1.15)
    return _finished(figure, axes, data, across=True)


def intervals(data: Data) -> Figure:
    """Draw `rows` of a label, a value and its interval (low, high), beside a dashed line at `reference`."""
    rows = data["rows"]
    figure, axes, y = _rows([row["label"] for row in rows], data)
    if data.get("reference") is not None:
        axes.axvline(data["reference"], color=shade("ink"), linewidth=1.4, linestyle=_DASHES)
    for height, row in zip(y, rows, strict=True):
        colour = shade(row.get("colour", "blue"))
        axes.plot([row["low"], row["high"]], [height, height], color=colour, linewidth=2)
        axes.plot([row["value"]], [height], "o", color=colour, markersize=7, markeredgewidth=0)
    ends = [data.get("reference") or 0.0, *(row["high"] for row in rows)]
    axes.set_xlim(min(0.0, *(row["low"] for row in rows)), (max(ends) or 1.0) * 1.06)
    return _finished(figure, axes, data, across=True)


def bars(data: Data) -> Figure:
    """Draw `rows` of a label and one value for each of the `series`, as bars beside each other."""
    rows, series = data["rows"], data["series"]
    figure, axes, y = _rows(
        [row["label"] for row in rows], data, row=34 if len(series) > 1 else _ROW if len(rows) <= 12 else 17
    )
    thick = 0.66 / len(series)
    for i, one in enumerate(series):
        heights = y + (i - (len(series) - 1) / 2) * thick
        values = [row["values"][i] or 0.0 for row in rows]
        axes.barh(heights, values, height=thick * 0.92, color=shade(one["colour"]), linewidth=0)
    values = [v or 0.0 for row in rows for v in row["values"]]
    axes.set_xlim(min(0.0, *values) * 1.06, (max(0.0, *values) or 1.0) * 1.06)
    return _finished(figure, axes, data, across=True)


def points(data: Data) -> Figure:
    """Draw `groups` of points x, y, each in its colour, the last on top; `size` is a point's width in pixels."""
    figure, axes = _plain(330)
    for one in data["groups"]:
        at = np.column_stack([one["x"], one["y"]])
        if len(at):
            # one path of strokes without length: a circle each, at a tenth of the bytes of as many circles
            path = Path(np.repeat(at, 2, axis=0), [Path.MOVETO, Path.LINETO] * len(at))
            facts = {"linewidth": one.get("size", 4), "capstyle": "round", "alpha": 0.8}
            axes.add_patch(PathPatch(path, fill=False, edgecolor=shade(one["colour"]), **facts))
    x, y = (np.concatenate([np.asarray(one[k], dtype=float) for one in data["groups"]]) for k in "xy")
    for values, limits in ((x, axes.set_xlim), (y, axes.set_ylim)):
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        pad = 0.04 * (high - low) or 0.5
        limits(low - pad, high + pad)
    return _finished(figure, axes, data)


DRAWINGS: dict[str, Callable[[Data], Figure]] = {
    "lines": lines,
    "histogram": histogram,
    "waterfall": waterfall,
    "intervals": intervals,
    "bars": bars,
    "points": points,
}
"""Kinds of figures. `images`, pictures beside each other, are laid out by the page itself."""


def short(value: float) -> str:
    """Return a number in at most about six characters.

    Example:
        >>> short(1234567.0), short(0.25), short(-12000)
        ('1.23M', '0.25', '−12k')
    """
    size = abs(value)
    for bound, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= bound:
            divisor = 1e3 if unit == "k" else bound
            return f"{value / divisor:.3g}{unit}".replace("-", "−") if size < 1e12 else f"{value:.1e}"
    return f"{value:.4g}".replace("-", "−")


def cut(text: str, width: float = LABEL_WIDTH) -> str:
    """Return text that fits into so many pixels, its end cut off if need be, with nothing that is read as a formula."""
    text = clean(str(text))
    if text_width(text, SIZE) > width:
        while text and text_width(text + "…", SIZE) > width:
            text = text[:-1]
        text += "…"
    return text.replace("$", r"\$")


def _plain(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.patch.set_visible(False)
    return figure, axes


def _rows(labels: Sequence[str], data: Data, *, row: float = _ROW) -> tuple[Figure, Axes, np.ndarray]:
    """Return axes with one line for each label, the first on top, and the lines' heights."""
    figure, axes = _plain(len(labels) * row + 46)
    y = np.arange(len(labels), dtype=float)
    axes.set_yticks([])  # a tick costs ten times what its text does
    for height, label in zip(y, labels, strict=True):
        text = cut(label)
        axes.text(0, height, text, transform=axes.get_yaxis_transform(), va="center", ha="right", gid=_NAME)
    axes.set_ylim(len(labels) - 0.45, -0.55)
    return figure, axes, y


def _finished(figure: Figure, axes: Axes, data: Data, *, across: bool = False) -> Figure:
    """Put on ticks and labels and give them the room they need; `across`: values go across, names are at the left."""
    formats = FuncFormatter(lambda v, _: short(v))
    shares = FuncFormatter(lambda v, _: f"{100 * v:.3g} %")
    width, height = figure.get_size_inches() * 72
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(shares if data.get("x_shares") else formats)
    if not across:
        whole = {"integer": True} if data.get("whole") else {}
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], **whole))
        axes.yaxis.set_major_formatter(shares if data.get("y_shares") else formats)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_color(shade("line"))
    axes.tick_params(length=0, pad=6, labelsize=SIZE, labelcolor=shade("muted"))
    axes.grid(axis="x" if across else "y", color=shade("grid"), linewidth=1)
    axes.set_axisbelow(True)
    low, high = sorted(axes.get_ylim())
    names = [text for text in axes.texts if text.get_gid() == _NAME]
    ticks = [name.get_text() for name in names] if across else [
        axes.yaxis.get_major_formatter()(t) for t in axes.yaxis.get_majorticklocs() if low <= t <= high
    ]  # fmt: skip
    left = max((text_width(t, SIZE) for t in ticks), default=0) + 9
    over, under = (24 if data.get("y_label") else 8), (42 if data.get("x_label") else 24)
    axes.set_position((left / width, under / height, (width - left - 20) / width, (height - over - under) / height))
    for name in names:
        name.set(x=-6 / (width - left - 20), fontsize=SIZE, color=shade("ink"))
    label: dict[str, Any] = {"fontsize": SIZE, "color": shade("muted")}
    if data.get("y_label"):
        figure.text(2 / width, 1 - 13 / height, cut(data["y_label"], width - 8), ha="left", **label)
    if data.get("x_label"):
        figure.text(1 - 20 / width, 7 / height, cut(data["x_label"], width - 26), ha="right", **label)
    return figure
