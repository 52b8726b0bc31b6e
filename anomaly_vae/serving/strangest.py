"""The strangest rows, or images, of what a report keeps, with their reasons: computed, or those that were stored."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..data.image_source import FILE
from ..data.images import ImageSchema
from ..detection.detector import Detector
from ..errors import SchemaError
from ..options import ScoreConfig
from ..reporting.parts import Section, absent
from ..reporting.reasons import StrangeRow, pictured, strangest_section
from .batch import LIKELIHOOD_FIELDS, SCORE_FIELDS
from .gathered import NEEDED, Gathered

EXPLAINED = 8
"""Columns that are named one by one."""


def strangest_of(detector: Detector, seen: Gathered, stored: pd.DataFrame | None, *, images: bool) -> Section:
    """Return the section of the strangest rows.

    Args:
        detector: The model, which explains the rows where they are at hand.
        seen: What is kept of the data.
        stored: Their rows of the scored file; None where there is no file.
        images: Whether they are images.

    Raises:
        SchemaError: The scored file is not of these rows.
    """
    top = seen.summary.spread.top
    if not len(top):
        return absent("strangest", "The strangest rows", "None were asked for.")
    if seen.top is None:
        assert stored is not None
        return strangest_section(
            [_strange(stored.iloc[i], _name(stored, i, top)) for i in range(len(top))], images=images
        )
    rows = modelled(detector, seen.top)
    found = _explained(detector, rows, stored)
    names = [_name(stored, i, top) if stored is not None else f"row {seen.top.index[i]}" for i in range(len(top))]
    labels = (
        [None] * len(top)
        if seen.top_anomalous is None
        else ["anomalous" if a else "normal" for a in seen.top_anomalous]
    )
    pictures: Sequence[tuple[str, str, str] | None] = [None] * len(top)
    if images:
        pictures = pictured(detector.pixels(rows), detector.reconstruct(rows), detector.heat_maps(rows))
    return strangest_section(
        [_strange(found.iloc[i], names[i], labels[i], pictures[i]) for i in range(len(top))], images=images
    )


def _explained(detector: Detector, rows: pd.DataFrame, stored: pd.DataFrame | None) -> pd.DataFrame:
    """Return scores and reasons of the strangest rows; the scores must be those that were stored.

    Raises:
        SchemaError: No number of samples gives the stored scores.
    """
    own = detector.config.k
    rest = [k for k in sorted(detector.calibration.scores) if k != own]
    for k in (own, *rest) if stored is not None else (own,):
        alpha = max(ScoreConfig.alpha, 1 / (detector.calibration.rows + 1))
        scores = detector.score_frame(rows, alpha=alpha, k=k, explain=EXPLAINED)
        if stored is None:
            return scores
        was, now = (np.asarray(s["anomaly_score"], dtype=np.float64) for s in (stored, scores))
        if (np.abs(was - now) <= 1e-3 * np.maximum(1.0, np.abs(now))).all():
            return scores.assign(**{name: stored[name].to_numpy() for name in NEEDED})
    raise SchemaError(
        f"a scored file must be of these data by this model, got a score of {was[0]:.6g} for a row that scores "
        f"{now[0]:.6g}. Score the data again."
    )


def _strange(
    row: pd.Series, name: str, label: str | None = None, images: tuple[str, str, str] | None = None
) -> StrangeRow:
    text = row.get("attributions")
    p = row["p_value"]
    return StrangeRow(
        name=name,
        score=float(row["anomaly_score"]),
        p_value=None if pd.isna(p) else float(p),
        flagged=bool(row["is_anomaly"]),
        parts=json.loads(text) if isinstance(text, str) and text else (),
        label=label,
        images=images,
    )


def _name(stored: pd.DataFrame, i: int, top: NDArray[np.int64]) -> str:
    """Return a row's keys, or its number."""
    known = {name for name, _ in (*SCORE_FIELDS, *LIKELIHOOD_FIELDS)}
    keys = [name for name in stored.columns if name not in known]
    if not keys:
        return f"row {top[i]:,}"
    if keys == ["row"]:
        return f"row {int(stored['row'].iloc[i]):,}"
    values = [str(stored[name].iloc[i]) if name == FILE else f"{name} {stored[name].iloc[i]}" for name in keys]
    return ", ".join(values)


def modelled(detector: Detector, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the columns that the model sees, those that are absent as missing cells."""
    names = list(detector.schema.names)
    return rows[names] if isinstance(detector.schema, ImageSchema) else rows.reindex(columns=names)
