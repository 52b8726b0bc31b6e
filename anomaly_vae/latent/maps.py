"""The latent space seen from above: clusters of codes, and a flat map of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

from ..errors import ConfigError, ShapeError
from ..evaluation.coverage import describe
from .space import LatentSpace

SILHOUETTE_ROWS = 2000
CLUSTERED_ROWS = 20_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Clusters:
    """Groups of rows whose codes lie together.

    Attributes:
        labels: Cluster of each row, (n,), 0 = the largest.
        sizes: Rows of each, (c,).
        descriptions: What sets each apart, in the table's own columns; empty for images.
        centres: Codes of the centres, (c, l).
        silhouette: From -1 to 1: how much nearer rows are to their own cluster than to the next; None for one cluster.
    """

    labels: NDArray[np.intp]
    sizes: tuple[int, ...]
    descriptions: tuple[str, ...]
    centres: NDArray[np.float32]
    silhouette: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return all but the labels as values that JSON has a word for."""
        facts = dataclasses.asdict(self)
        facts.pop("labels")
        return {**facts, "centres": self.centres.tolist()}


def cluster(space: LatentSpace, frame: pd.DataFrame, *, clusters: int = 10, seed: int = 0) -> Clusters:
    """Return clusters of rows by k-means on their codes.

    Args:
        space: The latent space.
        frame: Rows, n.
        clusters: How many, at most as many as there are different codes.
        seed: Of the starts.

    Raises:
        ConfigError: Fewer than 1 cluster.
        ShapeError: No row.
    """
    if clusters < 1:
        raise ConfigError(f"clusters must be at least 1, got {clusters}. Take for example 10.", clusters=clusters)
    codes = space.encode(frame)
    if not len(codes):
        raise ShapeError("rows to cluster must be at least 1, got none. Give more.")
    some = codes[:: -(-len(codes) // CLUSTERED_ROWS)]
    count = min(clusters, len(np.unique(some, axis=0)))
    fitted = KMeans(count, n_init=4, random_state=seed % 2**32).fit(some)
    found, labels = np.unique(fitted.predict(codes), return_inverse=True)
    order = np.argsort(-np.bincount(labels), kind="stable")
    labels = np.argsort(order)[labels]
    tested = np.random.default_rng(seed).permutation(len(codes))[:SILHOUETTE_ROWS]
    several = 1 < len(np.unique(labels[tested])) < len(tested)
    return Clusters(
        labels=labels,
        sizes=tuple(np.bincount(labels).tolist()),
        descriptions=tuple("" if space.images else describe(frame, labels == c) for c in range(len(order))),
        centres=fitted.cluster_centers_[found][order].astype(np.float32),
        silhouette=float(silhouette_score(codes[tested], labels[tested])) if several else None,
    )


def latent_map(space: LatentSpace, frame: pd.DataFrame) -> pd.DataFrame:
    """Return a place on a flat map for each row, and what to colour it by.

    Codes of two dimensions are the map; of wider ones it is their two leading principal components.

    Args:
        space: The latent space.
        frame: Rows, n >= 2.

    Returns:
        Columns x, y, anomaly_score, and p_value where the detector is calibrated; same index. `attrs["explained"]` is
        the share of the codes' variance that the map shows.

    Raises:
        ShapeError: Fewer than two rows.
    """
    codes = space.encode(frame)
    if len(codes) < 2:
        raise ShapeError(f"a map must have at least 2 rows, got {len(codes)}. Give more.")
    explained = 1.0
    if codes.shape[1] > 2:
        fitted = PCA(min(2, len(codes)), random_state=0).fit(codes)
        ratio = fitted.explained_variance_ratio_
        explained = float(np.nan_to_num(ratio).sum())
        codes = fitted.transform(codes)
    elif codes.shape[1] == 1:
        codes = np.column_stack([codes, np.zeros(len(codes))])
    detector = space.detector
    rows = detector.calibration.rows
    if rows:
        scores = detector.score_frame(frame, alpha=max(0.05, 1 / (rows + 1)))
        beside = {"anomaly_score": scores["anomaly_score"].to_numpy(), "p_value": scores["p_value"].to_numpy()}
    else:
        beside = {"anomaly_score": detector.scores_of_encoded(detector.encode(frame).numpy())}
    out = pd.DataFrame({"x": codes[:, 0], "y": codes[:, 1], **beside}, index=frame.index)
    out.attrs["explained"] = explained
    return out
