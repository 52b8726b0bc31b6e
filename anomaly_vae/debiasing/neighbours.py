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
from scipy.stats import skew
from sklearn.neighbors import NearestNeighbors

Points = NDArray[np.float32]
Floats = NDArray[np.float64]

REFERENCES = 20_000
"""Rows that are all each other's references."""
FEWEST_REFERENCES = 4096
PAIRS = 4e9
"""Distances computed at most, unless that leaves fewer than 4096 references."""
CHUNK = 1 << 16
NEAREST = 0.01
"""Distances are at least this share of the median distance: copies of a row are dense, but not infinitely so."""
SAME = 1e-5
"""Points coincide at distances up to this share of their spread: a row's coordinates are computed to rounding."""
CIRCLE = 5
"""Neighbours with which a row's isolation is compared."""
BY_CHANCE = 1e-3
EVEN = 1e-6
"""Log densities, nats, that vary by less say nothing of which rows are rare."""
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


def nearest(references: Points, points: Points, k: int) -> Iterator[tuple[slice, Floats, NDArray[np.intp]]]:
    """Yield the k nearest references of the points, chunk by chunk: which points, distances (c, k), positions (c, k).

    One reference that coincides with the point is the point itself, and no neighbour. So a row has the same neighbours
    whether it is among the references or comes again later.

    Args:
        references: Shape (r, l).
        points: Shape (n, l).
        k: Neighbours, fewer than r.
    """
    search = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(references)
    same = SAME * math.sqrt(float(references.var(0, dtype=np.float64).sum()))
    for start in range(0, len(points), CHUNK):
        part = slice(start, min(start + CHUNK, len(points)))
        distance, index = search.kneighbors(points[part])
        itself = distance[:, 0] <= same
        nearer = np.where(itself[:, None], distance[:, 1:], distance[:, :-1])
        yield part, nearer.astype(np.float64), np.where(itself[:, None], index[:, 1:], index[:, :-1])


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
        kept = np.ascontiguousarray(points[drawn(len(points), references, rng)])
        k, smoothing = min(k, len(kept) - 1), min(smoothing, len(kept) - 1)
        distance = np.concatenate([d[:, k - 1] for _, d, _ in nearest(kept, kept, k)])
        positive = distance[distance > 0]
        least = NEAREST * float(np.median(positive)) if len(positive) else 1.0
        local = _log_density(distance, k=k, rows=len(kept), width=points.shape[1], least=least)
        fitted = cls(kept, local, k, smoothing, least)
        return fitted, fitted.log_density(points)

    def log_density(self, points: Points) -> Floats:
        """Return the log density of points (n, l), each without itself, (n,), nats."""
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


def long_tail(points: Points, strata: NDArray[np.intp], *, k: int, smoothing: int, seed: int = 0) -> float:
    r"""Return how far rare rows stand out from the rest of their strata: the skewness of the log distances.

    Where a few rows lie apart, together or alone, the log distance to the k-th neighbour has a long right tail; where
    none does, it is near symmetric, however many coordinates there are. Mean over the strata in which at least four
    times k rows were drawn, each counting for its rows; 0 where there is none.

    Args:
        points: Shape (n, l).
        strata: Stratum of each, (n,), from 0.
        k: The neighbour.
        smoothing: Neighbours over which to average, 0 for none.
        seed: Of the rows that are looked at, at most `REFERENCES`.
    """
    chosen = drawn(len(points), REFERENCES, np.random.default_rng(seed))
    of, found, rows = strata[chosen], 0.0, 0
    for stratum in np.unique(of):
        part = np.ascontiguousarray(points[chosen[of == stratum]])
        if len(part) < 4 * k or not np.any(part != part[0]):
            continue
        rng = np.random.default_rng(seed)
        _, log_density = NeighbourDensity.fit(part, k=k, smoothing=smoothing, references=len(part), rng=rng)
        if log_density.std() > EVEN:
            found += len(part) * float(skew(-log_density))
        rows += len(part)
    return found / rows if rows else 0.0


def intrinsic_dimension(distances: Floats) -> float:
    """Return the dimension m in which distances to the nearest neighbours (n, k), ascending, grow as they do.

    Rows with copies are left out; without any other row it is 1.

    References:
        Levina & Bickel (2004), Maximum likelihood estimation of intrinsic dimension.
    """
    usable = distances[distances[:, 0] > 0]
    if not len(usable) or distances.shape[1] < 2:
        return 1.0
    logs = np.log(usable)
    return float(np.clip(1.0 / max(float((logs[:, -1:] - logs[:, :-1]).mean()), 1e-3), 0.5, 1e3))


@dataclass(frozen=True)
class Isolation:
    r"""How many times farther a row's nearest neighbour is than those of its neighbours are from theirs.

    .. math:: r(x) = d_1(x) \,/\, \tfrac15 \sum_{j=1}^5 d_1(x_{(j)})

    The rows of a rare group have each other, and so about 1; a row that resembles nothing has more. Distances of the
    neighbours count for at least half the median, so that copies among them make no row isolated.

    In few dimensions such distances vary more. If density were even, :math:`d_1^m` would be exponential, with m the
    intrinsic dimension: ratios that one row in a thousand would have by chance are not counted as isolation.

    Attributes:
        references: Shape (r, l).
        usual: Distance of each to its nearest neighbour, so bounded, (r,).
        chance: The ratio that a row has by chance with probability .001.

    References:
        Breunig et al. (2000), LOF: identifying density-based local outliers; this is its simplest form, k = 1.
    """

    references: Points
    usual: Floats
    chance: float

    @classmethod
    def fit(cls, points: Points, *, seed: int = 0) -> Self:
        """Fit to points (n, l)."""
        kept = np.ascontiguousarray(
            points[drawn(len(points), reference_rows(len(points)), np.random.default_rng(seed))]
        )
        if len(kept) < 3 or not kept.shape[1]:
            return cls(kept[:0], np.zeros(0), math.inf)
        distances = np.concatenate([d for _, d, _ in nearest(kept, kept, min(CIRCLE, len(kept) - 1))])
        first = distances[:, 0]
        m = intrinsic_dimension(distances)
        chance = math.log(1 / BY_CHANCE) ** (1 / m) / math.gamma(1 + 1 / m)
        positive = first[first > 0]
        least = 0.5 * float(np.median(positive)) if len(positive) else 1.0
        return cls(kept, np.maximum(first, least), chance)

    def flagged(self, points: Points, factor: float) -> NDArray[np.bool_]:
        """Return which points (n, l) have a ratio above the factor, and above chance, (n,)."""
        return self.ratio(points) > max(factor, self.chance)

    def ratio(self, points: Points) -> Floats:
        """Return r of points (n, l), (n,); 0 where there is nothing to compare with."""
        out = np.zeros(len(points))
        if not len(self.references):
            return out
        around = min(CIRCLE, len(self.references) - 1)
        for part, d, index in nearest(self.references, points, around):
            out[part] = d[:, 0] / self.usual[index].mean(1)
        return out


@dataclass(frozen=True)
class LabelDisagreement:
    r"""How much nearer a row lies to another class than to its own.

    .. math:: \log r(x) = \log d_k(x; y) - \min_{c \ne y} \log d_k(x; c)

    with :math:`d_k(x; c)` the distance to the k-th nearest row of class c, each class brought to the same number of
    rows (a class of more rows is nearer by :math:`n^{1/m}`, where m is the intrinsic dimension). A mislabelled row lies
    among rows of another class; a rare row of its own class has other rare ones near it, or lies far from everything.

    Attributes:
        classes: The classes of at least 4 rows, in order.
        references: Rows of each, (r, l).
        dimension: Intrinsic dimension, m.
        ordered: Whether classes are intervals of a number: then those next to its own are as good as a row's own.
    """

    classes: tuple[int, ...]
    references: tuple[Points, ...]
    dimension: float
    ordered: bool

    @classmethod
    def fit(cls, points: Points, strata: NDArray[np.intp], *, ordered: bool = False, seed: int = 0) -> Self:
        """Fit to points (n, l) of classes (n,), from 0."""
        rng = np.random.default_rng(seed)
        found, counts = np.unique(strata, return_counts=True)
        n, budget = len(points), reference_rows(len(points))
        classes: list[int] = []
        references: list[Points] = []
        distances: list[Floats] = []
        for c, count in zip(found.tolist(), counts.tolist(), strict=True):
            if count <= COMPARED or not points.shape[1]:
                continue
            members = np.flatnonzero(strata == c)
            kept = np.ascontiguousarray(points[members[drawn(count, max(256, math.ceil(budget * count / n)), rng)]])
            classes.append(c)
            references.append(kept)
            distances.extend(d for _, d, _ in nearest(kept, kept, COMPARED))
        dimension = intrinsic_dimension(np.concatenate(distances)) if distances else 1.0
        return cls(tuple(classes), tuple(references), dimension, ordered)

    def log_ratio(self, points: Points, strata: NDArray[np.intp]) -> tuple[Floats, NDArray[np.intp]]:
        """Return log r of points (n, l) of classes (n,), and the nearest other class, each (n,).

        They are -inf and -1 for classes of fewer than 4 rows, and where there is no other.
        """
        n = len(points)
        own, other, nearer = np.full(n, np.inf), np.full(n, np.inf), np.full(n, -1)
        for c, kept in zip(self.classes, self.references, strict=True):
            log_d = np.empty(n)
            for part, d, _ in nearest(kept, points, COMPARED):
                log_d[part] = np.log(np.maximum(d[:, -1], 1e-30))
            log_d += math.log(len(kept)) / self.dimension
            mine = np.abs(strata - c) <= 1 if self.ordered else strata == c
            own = np.where(mine, np.minimum(own, log_d), own)
            closer = ~mine & (log_d < other)
            other, nearer = np.where(closer, log_d, other), np.where(closer, c, nearer)
        judged = np.isin(strata, self.classes) & np.isfinite(own) & np.isfinite(other)
        return np.where(judged, own, -np.inf) - np.where(judged, other, 0.0), np.where(judged, nearer, -1)
