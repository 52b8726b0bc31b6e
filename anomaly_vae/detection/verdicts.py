"""Scores and how they are judged: what `Detector.score_frame` says of rows, as arrays, a table or lists for JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .scores import RELIABLE_SAMPLES, Scores

SCORE_COLUMNS = (
    "anomaly_score", "score_kind", "p_value", "is_anomaly", "threshold", "mc_se", "ess", "reliable", "attributions",
)  # fmt: skip


@dataclass(frozen=True)
class Verdicts:
    """What rows score, and what is made of it.

    Attributes:
        scores: Of n rows.
        kind: Name of the score.
        p_values: Shape (n,).
        threshold: Above which a row is flagged, nats, or that of each row, (n,).
    """

    scores: Scores
    kind: str
    p_values: NDArray[np.float64]
    threshold: NDArray[np.float64] | float

    @property
    def flags(self) -> NDArray[np.bool_]:
        """Which rows are flagged, (n,)."""
        return np.asarray(self.scores.value > self.threshold)

    def frame(self, index: pd.Index) -> pd.DataFrame:
        """Return a row each with the columns `SCORE_COLUMNS`, without attributions, under an index of n labels."""
        n, scores = len(self.p_values), self.scores
        reliable = pd.array(scores.ess >= RELIABLE_SAMPLES, dtype="boolean")
        reliable[np.isnan(scores.ess)] = pd.NA
        kind, nothing = (pd.Series([text] * n, dtype=object) for text in (self.kind, None))
        columns = (
            scores.value, kind, self.p_values, self.flags, self.threshold, scores.mc_se, scores.ess, reliable, nothing,
        )  # fmt: skip
        out = pd.DataFrame(dict(zip(SCORE_COLUMNS, columns, strict=True)), index=pd.RangeIndex(n))
        out.index = index
        return out

    def lists(self) -> dict[str, list[Any]]:
        """Return the columns of `frame` as lists, None for what is missing or not finite: JSON has no NaN.

        Of a few rows a table costs more than their scores.
        """
        n, scores = len(self.p_values), self.scores
        reliable = [None if size is None else size >= RELIABLE_SAMPLES for size in _finite(scores.ess)]
        threshold = np.broadcast_to(np.asarray(self.threshold, dtype=np.float64), (n,))
        columns = (
            _finite(scores.value), [self.kind] * n, _finite(self.p_values), self.flags.tolist(), _finite(threshold),
            _finite(scores.mc_se), _finite(scores.ess), reliable, [None] * n,
        )  # fmt: skip
        return dict(zip(SCORE_COLUMNS, columns, strict=True))


def _finite(values: NDArray[np.float64]) -> list[float | None]:
    if np.isfinite(values).all():
        return values.tolist()
    return [value if math.isfinite(value) else None for value in values.tolist()]
