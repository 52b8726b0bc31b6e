"""Images as pictures: a sheet of the strangest, and heat maps of what each pixel costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..errors import ShapeError
from .figures import INK

COLOURS = "Reds"
"""White where a pixel is reconstructed perfectly, the redder the more nats it costs."""
MOST_IMAGES = 24
_PANELS = ("image", "reconstruction", "nats per pixel")


def image_sheet(
    images: NDArray[np.uint8],
    reconstructions: NDArray[np.uint8],
    heat_maps: NDArray[np.float64],
    captions: Sequence[str],
    *,
    title: str = "The strangest images",
) -> Figure:
    """Image, reconstruction and heat map side by side, two images a line.

    Args:
        images: Levels, (n, h, w, c), the strangest first; the first `MOST_IMAGES` are drawn.
        reconstructions: Levels, the same shape.
        heat_maps: Nats of each pixel, (n, h, w); all are drawn on one scale.
        captions: A line for each image.
        title: Of the sheet.

    Raises:
        ShapeError: There is no image, or the parts differ in number.
    """
    sizes = {len(images), len(reconstructions), len(heat_maps), len(captions)}
    if len(sizes) > 1 or not len(images):
        raise ShapeError(f"a sheet must have as many images as maps and captions, at least 1, got {sorted(sizes)}.")
    n = min(len(images), MOST_IMAGES)
    lines, across = -(-n // 2), min(n, 2)
    figure = Figure(figsize=(1.55 * 3 * across + 0.9, 1.78 * lines + 0.9), layout="constrained", facecolor="white")
    figure.suptitle(title, color=INK, fontsize=11)
    axes = figure.subplots(lines, 3 * across, squeeze=False)
    largest = full_red(heat_maps[:n])
    drawn = None
    for place, panel in enumerate(axes.reshape(-1, 3)):
        for axis in panel:
            axis.set_axis_off()
        if place >= n:
            continue
        panel[0].imshow(_shown(images[place]), cmap="gray", vmin=0, vmax=255)
        panel[1].imshow(_shown(reconstructions[place]), cmap="gray", vmin=0, vmax=255)
        drawn = panel[2].imshow(heat_maps[place], cmap=COLOURS, vmin=0, vmax=largest)
        panel[0].set_title(captions[place], fontsize=7.5, color=INK, loc="left")
        if place < across:
            for axis, name in zip(panel[1:], _PANELS[1:], strict=True):
                axis.set_title(name, fontsize=7.5, color=INK)
    assert drawn is not None
    bar = figure.colorbar(drawn, ax=axes, fraction=0.025, pad=0.01)
    bar.set_label("nats beyond a perfect reconstruction", fontsize=8, color=INK)
    return figure


def heat_map_pixels(heat_map: NDArray[np.float64], *, largest: float) -> NDArray[np.uint8]:
    """Return a heat map as colours, (h, w, 3) levels.

    Args:
        heat_map: Nats of each pixel, (h, w).
        largest: Nats that are drawn in full red; the same for all images that are to be compared.
    """
    scaled = np.clip(heat_map / largest, 0, 1)
    return (colormaps[COLOURS](scaled)[..., :3] * 255).round().astype(np.uint8)


def full_red(heat_maps: NDArray[np.float64]) -> float:
    """Return the nats that are drawn in full red: more than all but a few pixels of heat maps (n, h, w) cost."""
    return max(float(np.quantile(heat_maps, 0.995)), 1e-9)


def _shown(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image[..., 0] if image.shape[-1] == 1 else image
