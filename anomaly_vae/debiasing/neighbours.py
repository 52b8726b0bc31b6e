"""Density and labels of a row as its nearest neighbours show them.

Beyond a number of rows the neighbours are looked for among references drawn from the rows: with n rows there are
`reference_rows(n)` of them. All rows are references up to 20,000 of them, so that there nothing is approximated; above,
a distance to the k-th of r references is a distance to about the (k n / r)-th row. The error that the choice of
references adds to a log density is of the order of 1 / sqrt(k), and of 1 / sqrt(k s) after smoothing over s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

Points = NDArray[np.float32]
Floats = NDArray[np.float64]

REFERENCES = 20_000
"""Rows that are all each other's references."""
FEWEST_REFERENCES = 4096
PAIRS = 6e9
"""Distances computed at most, unless that leaves fewer than 4096 references."""
CHUNK = 1 << 16
NEAREST = 0.01
"""Distances are at least this share of the median distance: copies of a row are dense, but not infinitely so."""
COMPARED = 3
"""The neighbour, in each class, by whose distance classes are compared."""


def reference_rows(rows: int, total: int | None = None) -> int:
    """Return how many references stand for some rows.

    Args:
        rows: The rows.
        total: All rows whose neighbours will be looked for among some references or other; by default `rows`.
    """
    allowed = int(PAIRS / max(total or rows, 1))
    return min(rows, REFERENCES, max(FEWEST_REFERENCES, allowed))


def drawn(rows: int, wanted: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return the positions of `wanted` of the rows, ascending; all of them if there are no more."""
    if wanted >= rows:
        return np.arange(rows)
    return np.sort(rng.choice(rows, wanted, replace=False))


def nearest(
    references: Points, points: Points, k: int, own: NDArray[np.intp] | None = None
) -> Iterator[tuple[slice, Floats, NDArray[np.intp]]]:
    """Yield the k nearest references of the points, chunk by chunk: which points, distances (c, k), positions (c, k).

    Args:
        references: Shape (r, l).
        points: Shape (n, l).
        k: Neighbours, fewer than r where a point may be a reference itself.
        own: For each point, its own position among the references, or -1: it is no neighbour of itself. (n,)
    """
    search = NearestNeighbors(n_neighbors=k + (own is not None), algorithm="brute").fit(references)
    for start in range(0, len(points), CHUNK):
        part = slice(start, min(start + CHUNK, len(points)))
        distance, index = search.kneighbors(points[part])
        if own is not None:
            itself = index == own[part, None]
            # the last neighbour goes where the row is not among them: it is no reference, or has many copies
            itself[:, -1] |= ~itself.any(1)
            distance, index = (a[~itself].reshape(len(a), k) for a in (distance, index))
        yield part, distance.astype(np.float64), index


@dataclass(frozen=True)
class NeighbourDensity:
    r"""The k-th nearest neighbour's distance as a density, averaged over the row's neighbours.

    .. math:: \log p(z) = \log k - \log r - \log V_l - l \log d_k(z)

    with r references and :math:`V_l` the volume of the unit ball.

    Attributes:
        references: Shape (r, l).
        local: Log density at each, not averaged, (r,), nats.
        k: The neighbour.
        smoothing: Neighbours over which to average, 0 for none.
        least: Distances are at least this.

    References:
        Loftsgaarden & Quesenberry (1965), A nonparametric estimate of a multivariate density function.
    """

    references: Points
    local: Floats
    k: int
    smoothing: int
    least: float

    @classmethod
    def fit(
        cls, points: Points, *, k: int, smoothing: int, references: int, rng: np.random.Generator
    ) -> tuple[Self, Floats]:
        """Fit to points (n, l), n >= 2; also return their own log densities, each without the point itself, (n,)."""
        chosen = drawn(len(points), references, rng)
        kept = np.ascontiguousarray(points[chosen])
        k, smoothing = min(k, len(kept) - 1), min(smoothing, len(kept) - 1)
        own = np.full(len(points), -1)
        own[chosen] = np.arange(len(chosen))
        distance, around = np.empty(len(points)), np.empty((len(points), smoothing), dtype=np.int32)
        for part, d, index in nearest(kept, points, max(k, smoothing), own):
            distance[part], around[part] = d[:, k - 1], index[:, :smoothing]
        positive = distance[distance > 0]
        least = NEAREST * float(np.median(positive)) if len(positive) else 1.0
        width = points.shape[1]
        density = _log_density(distance, k=k, rows=len(kept), width=width, least=least)
        fitted = cls(kept, density[chosen], k, smoothing, least)
        return fitted, fitted._averaged(density, around)

    def log_density(self, points: Points) -> Floats:
        """Return the log density of other points (n, l), (n,), nats."""
        out = np.empty(len(points))
        for part, d, index in nearest(self.references, points, max(self.k, self.smoothing)):
            rows, width = self.references.shape
            density = _log_density(d[:, self.k - 1], k=self.k, rows=rows, width=width, least=self.least)
            out[part] = self._averaged(density, index[:, : self.smoothing])
        return out

    def _averaged(self, density: Floats, around: NDArray[np.integer]) -> Floats:
        total = density.copy()
        for j in range(self.smoothing):
            total += self.local[around[:, j]]
        return total / (1 + self.smoothing)


def _log_density(distance: Floats, *, k: int, rows: int, width: int, least: float) -> Floats:
    ball = 0.5 * width * math.log(math.pi) - math.lgamma(0.5 * width + 1)
    return math.log(k / rows) - ball - width * np.log(np.maximum(distance, least))


def label_disagreement(
    points: Points, strata: NDArray[np.intp], *, ordered: bool = False, seed: int = 0
) -> tuple[Floats, NDArray[np.intp]]:
    r"""Return how much nearer each row lies to another class than to its own, and which class that is.

    .. math:: \log r(x) = \log d_k(x; y) - \min_{c \ne y} \log d_k(x; c)

    with :math:`d_k(x; c)` the distance to the k-th nearest row of class c, each class brought to the same number of
    rows (a class of more rows is nearer by :math:`n^{1/m}`, where m is the intrinsic dimension). A mislabelled row lies
    among rows of another class; a rare row of its own class has other rare ones near it, or lies far from everything.

    Args:
        points: Shape (n, l).
        strata: Class of each row, (n,), from 0.
        ordered: Whether classes are intervals of a number: then those next to its own are as good as its own.
        seed: Of the choice of references.

    Returns:
        log r (n,), and the nearer class (n,); -inf and -1 for classes of fewer than 4 rows and where there is no other.

    References:
        Levina & Bickel (2004), Maximum likelihood estimation of intrinsic dimension.
    """
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(strata, return_counts=True)
    classes = classes[counts > COMPARED]
    n = len(points)
    own, other = np.full(n, np.inf), np.full(n, np.inf)
    nearer = np.full(n, -1)
    if len(classes) < 2:
        return np.full(n, -np.inf), nearer
    budget = reference_rows(n)
    logs = np.empty((n, len(classes)), dtype=np.float32)
    slopes: list[Floats] = []
    sizes: list[int] = []
    for j, c in enumerate(classes):
        members = np.flatnonzero(strata == c)
        chosen = members[drawn(len(members), max(256, math.ceil(budget * len(members) / n)), rng)]
        position = np.full(n, -1)
        position[chosen] = np.arange(len(chosen))
        for part, d, _ in nearest(np.ascontiguousarray(points[chosen]), points, COMPARED, position):
            log_d = np.log(np.maximum(d, 1e-30))
            logs[part, j] = log_d[:, -1]
            slopes.append((log_d[:, -1] - log_d[:, :-1].mean(1))[strata[part] == c])
        sizes.append(len(chosen))
    dimension = 1.0 / max(float(np.mean(np.concatenate(slopes))), 1e-3)
    logs += (np.log(sizes) / dimension).astype(np.float32)
    for j, c in enumerate(classes):
        mine = np.abs(strata - c) <= 1 if ordered else strata == c
        own = np.where(mine, np.minimum(own, logs[:, j]), own)
        closer = ~mine & (logs[:, j] < other)
        other, nearer = np.where(closer, logs[:, j], other), np.where(closer, c, nearer)
    judged = np.isin(strata, classes) & np.isfinite(own) & np.isfinite(other)
    return np.where(judged, own - other, -np.inf), np.where(judged, nearer, -1)
