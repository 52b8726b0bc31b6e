"""Codes as pictures: grids of decoded images, and the flat map of a latent space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..errors import ShapeError
from .figures import INK

MOST_CELLS = 2500
MOST_GROUPS = 10
"""Groups with a colour of their own; the rest share one."""
SCORES = "viridis_r"
GROUPS = "tab10"
OTHERS = "others"


def image_grid(
    images: NDArray[np.uint8],
    *,
    across: int,
    labels: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Images in lines of equal length, a thin white line between them.

    Args:
        images: Levels, (n, h, w, c), line by line; the last line may be shorter.
        across: Images of a line.
        labels: A word for each line; none for none.
        title: Of the picture.

    Raises:
        ShapeError: There is no image, or more than can be told apart.
    """
    n = len(images)
    if images.ndim != 4 or not 1 <= n <= MOST_CELLS or across < 1:
        raise ShapeError(f"a grid must be of 1 to {MOST_CELLS} images (n, h, w, c), got {images.shape}. Take fewer.")
    _, h, w, c = images.shape
    down, gap = -(-n // across), max(1, h // 16)
    high, wide = h + gap, w + gap
    sheet = np.full((down * high - gap, across * wide - gap, c), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        y, x = divmod(i, across)
        sheet[y * high : y * high + h, x * wide : x * wide + w] = image
    size = max(2.0, min(12.0, 0.5 * across))
    figure = Figure(
        figsize=(size + (1.2 if labels else 0.2), size * sheet.shape[0] / sheet.shape[1] + (0.5 if title else 0.2)),
        layout="constrained", facecolor="white",
    )  # fmt: skip
    axis = figure.subplots()
    axis.imshow(sheet[..., 0] if c == 1 else sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks(
        [y * high + 0.5 * h for y in range(down)] if labels else [], list(labels)[:down] if labels else None
    )
    axis.tick_params(length=0, labelsize=8, labelcolor=INK)
    for side in axis.spines.values():
        side.set_visible(False)
    if title:
        axis.set_title(title, fontsize=10, color=INK, loc="left")
    return figure


def map_figure(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    colour: Sequence[object] | NDArray[np.generic],
    *,
    name: str,
    title: str = "",
) -> Figure:
    """A flat map of codes: a point for each row, coloured by a number, or by a group.

    Args:
        x: Places across, (n,).
        y: Places up, (n,).
        colour: Numbers, or names of groups, (n,); of more than ten groups the smaller ones share a colour.
        name: What the colour says.
        title: Of the picture.

    Raises:
        ShapeError: There are not as many colours as points, or none.
    """
    values = np.asarray(colour)
    if len(x) < 1 or len(values) != len(x) or len(y) != len(x):
        raise ShapeError(f"a map must have one place and one colour a row, got {len(x)}, {len(y)}, {len(values)}.")
    figure = Figure(figsize=(6.4, 5.2), layout="constrained", facecolor="white")
    axis = figure.subplots()
    size = max(3.0, min(24.0, 6000 / len(x)))
    if np.issubdtype(values.dtype, np.number):
        order = np.argsort(np.nan_to_num(values.astype(np.float64)), kind="stable")  # what is strange lies on top
        low, high = np.nanquantile(values.astype(np.float64), [0.01, 0.99])
        drawn = axis.scatter(
            x[order], y[order], c=values[order], s=size, cmap=SCORES, vmin=low, vmax=high, linewidths=0
        )
        bar = figure.colorbar(drawn, ax=axis, fraction=0.04, pad=0.02)
        bar.set_label(name, fontsize=8, color=INK)
        bar.ax.tick_params(labelsize=7, labelcolor=INK)
    else:
        texts = values.astype(str)
        groups, counts = np.unique(texts, return_counts=True)
        kept = groups[np.argsort(-counts, kind="stable")][
            : MOST_GROUPS if len(groups) <= MOST_GROUPS else MOST_GROUPS - 1
        ]
        shown = np.where(np.isin(texts, kept), texts, OTHERS)
        named = [*kept, *([OTHERS] if len(kept) < len(groups) else [])]
        for i, group in enumerate(named):
            at = shown == group
            axis.scatter(x[at], y[at], s=size, color=colormaps[GROUPS](i), label=_short(group), linewidths=0)
        axis.legend(title=name, fontsize=7, title_fontsize=8, markerscale=2, frameon=False, loc="best")
    axis.set_xlabel("first direction of the codes", fontsize=8, color=INK)
    axis.set_ylabel("second", fontsize=8, color=INK)
    axis.tick_params(labelsize=7, labelcolor=INK)
    axis.set_title(title, fontsize=10, color=INK, loc="left")
    return figure


def _short(text: str) -> str:
    """Return a name that fits a legend; a leading underscore would hide it, and a dollar sign start a formula."""
    text = text.replace("$", r"\$")
    text = text if not text.startswith("_") else f" {text}"
    return text if len(text) <= 24 else text[:23] + "…"
