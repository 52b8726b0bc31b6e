"""A detector of images explained by pictures: what is strange, what was expected, and which pixels cost the nats."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from ..data.image_source import FILE
from ..detection.detector import Detector
from ..errors import OutputExistsError
from ..reporting.pictures import MOST_IMAGES, Figure, full_red, heat_map_pixels, image_sheet

SHEET = "sheet.png"
SCALE = 4
"""Heat maps of images under 64 pixels are enlarged by this."""


def strangest_of(detector: Detector, frame: pd.DataFrame, *, top: int = MOST_IMAGES) -> pd.DataFrame:
    """Return the highest-scoring images of a frame, the strangest first."""
    scores = detector.score_frame(frame.drop(columns=FILE, errors="ignore"), alpha=_least(detector))["anomaly_score"]
    return frame.iloc[np.argsort(-scores.to_numpy(), kind="stable")[:top]]


def sheet(detector: Detector, frame: pd.DataFrame) -> Figure:
    """Draw images beside their reconstructions and heat maps, in the order given.

    Args:
        detector: Of images.
        frame: Images, n rows, named by a column `file` if there is one.
    """
    images = frame.drop(columns=FILE, errors="ignore")
    scores = detector.score_frame(images, alpha=_least(detector))
    names = frame[FILE] if FILE in frame.columns else frame.index
    captions = [
        f"{str(name)[-28:]}\n{score:.0f} nats, p = {p:.2g}"
        for name, score, p in zip(names, scores["anomaly_score"], scores["p_value"], strict=True)
    ]
    pixels = detector.pixels(images)
    return image_sheet(pixels, detector.reconstruct(images), detector.heat_maps(images), captions)


def write_pictures(detector: Detector, frame: pd.DataFrame, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the sheet and a heat map for each image, as PNG.

    Args:
        detector: Of images.
        frame: Images, the strangest first.
        folder: Made if it is not there.
        overwrite: Whether to replace pictures that are there.

    Returns:
        The files: `sheet.png`, then 001-name.png and so on.

    Raises:
        OutputExistsError: The folder has a sheet already.
    """
    if (folder / SHEET).exists() and not overwrite:
        raise OutputExistsError(
            f"a folder of pictures must be new, got {str(folder)!r} with a {SHEET}. Use --overwrite to replace it.",
            path=folder,
        )
    drawn = sheet(detector, frame)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / SHEET]
    drawn.savefig(written[0], dpi=150)
    maps = detector.heat_maps(frame.drop(columns=FILE, errors="ignore"))
    largest = full_red(maps)
    names = frame[FILE] if FILE in frame.columns else frame.index
    for rank, (name, heat) in enumerate(zip(names, maps, strict=True), 1):
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(str(name)).stem)[:60]
        colours = heat_map_pixels(heat, largest=largest)
        if max(colours.shape) < 64:
            colours = colours.repeat(SCALE, 0).repeat(SCALE, 1)
        written.append(folder / f"{rank:03d}-{stem}.png")
        Image.fromarray(colours).save(written[-1])
    return written


def _least(detector: Detector) -> float:
    """Return an alpha that any calibration can promise: the flags are not shown."""
    return max(0.05, 1 / (detector.calibration.rows + 1)) if detector.calibration.rows else 0.05
