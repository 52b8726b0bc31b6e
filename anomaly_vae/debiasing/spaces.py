"""Where density is measured: the latent, the rows themselves as an honest control, or both."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag
from sklearn.decomposition import PCA

from ..errors import ConfigError, ShapeError

Floats = NDArray[np.float64]
Points = NDArray[np.float32]
Tail = Callable[[Points], float]

ACTIVE = 0.01
"""Latent dimensions whose codes vary by less are not in use (Burda et al. 2016, arXiv:1509.00519, section 5.2)."""
COMPONENTS, FEW, FEWER = 16, 4, "few components"
LEAST_PART = 0.1
"""What distances in a set of axes of the joint space count at least, where those in the best count 1."""
WIDEST = 256
"""Coordinates of the space in which guards look at rows."""
FITTED_ROWS = 50_000
"""Rows from which principal components are learned, at most."""


@dataclass(frozen=True)
class Space:
    """An affine map of points (n, d) to coordinates (n, l).

    Attributes:
        kind: A name in `SPACES`.
        centre: Taken off first, (d,).
        axes: Columns are the axes, (d, l); l = 0 where nothing varies.
        kept: For spaces whose axes are some of the columns: which, (l,); log-scales are carried along there.
        parts: For the joint space that was made of points: what distances in each set of axes count, 1 at most.
    """

    kind: str
    centre: Floats
    axes: Floats
    kept: NDArray[np.intp] | None = None
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Number of coordinates, l."""
        return int(self.axes.shape[1])

    def coordinates(self, points: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the coordinates of points (n, d), (n, l).

        Raises:
            ShapeError: The points have another width than those that the space was made of.
            ConfigError: A point is not finite.
        """
        points = _finite(points)
        if points.shape[1] != len(self.centre):
            raise ShapeError(
                f"points must have shape (n, {len(self.centre)}), got {points.shape}. Use those of the same model.",
                shape=points.shape,
            )
        if self.kept is not None:
            return np.ascontiguousarray(points[:, self.kept], dtype=np.float32)
        return np.asarray((points - self.centre) @ self.axes, dtype=np.float32)

    def log_scales(self, log_scales: NDArray[np.floating] | None) -> NDArray[np.float32] | None:
        """Return log standard deviations along the coordinates, (n, l), where the axes are columns."""
        if log_scales is None or self.kept is None:
            return None
        return np.ascontiguousarray(log_scales[:, self.kept], dtype=np.float32)


def active_units(points: NDArray[np.floating]) -> Space:
    """Keep the columns whose values vary, as they are: of posterior means, the latent dimensions in use."""
    return _columns("latent", points, ACTIVE)


def raw(points: NDArray[np.floating]) -> Space:
    """Keep all columns that vary at all."""
    return _columns("raw", points, 0.0)


def principal(points: NDArray[np.floating], components: int = COMPONENTS) -> Space:
    """Keep the first principal components."""
    points = np.asarray(points[:: -(-len(points) // FITTED_ROWS)], dtype=np.float64)
    centre = points.mean(0)
    most = min(components, *points.shape)
    if not np.any(points != points[0]):
        return Space("pca", centre, np.zeros((len(centre), 0)))
    pca = PCA(most, random_state=0).fit(points)
    real = pca.explained_variance_ > 1e-12 * pca.explained_variance_.sum()
    return Space("pca", pca.mean_, pca.components_[real].T)


def joint(points: NDArray[np.floating], codes: int, tail: Tail | None = None) -> Space:
    """Put the latent dimensions in use beside principal components of the rows, each set by what it shows.

    A latent leaves out what its model has not learnt, many components what is not linear, and few the details; a row
    that is rare in one of them lies apart in all together. Each set of axes has variance 1 in all, times the square of
    its tail: where rare rows do not stand out, distances are noise, and hide what the others show.

    Args:
        points: Codes and rows side by side, (n, codes + d).
        codes: Width of the codes.
        tail: How far rare rows stand out at coordinates (n, l), `neighbours.long_tail`; None = equally in all.
    """
    latent, rows = active_units(points[:, :codes]), principal(points[:, codes:])
    components = rows.coordinates(points[:, codes:])
    sets = {"latent": latent.coordinates(points[:, :codes]), "components": components}
    if rows.width > FEW:
        sets[FEWER] = components[:, :FEW]
    totals = {name: float(part.var(0, dtype=np.float64).sum()) for name, part in sets.items()}
    tails = {name: tail(part) if tail is not None and totals[name] > 0 else 0.0 for name, part in sets.items()}
    largest = max(tails.values())
    parts = {name: max(found / largest, LEAST_PART) if largest > 0 else 1.0 for name, found in tails.items()}
    of_latent, of_rows, of_few = (
        parts[name] ** 2 / totals[name] if totals.get(name) else 0.0 for name in ("latent", "components", FEWER)
    )
    squares = np.full(rows.width, of_rows)
    squares[:FEW] += of_few  # the first components are in both sets: one axis each, whose distances are those of two
    axes = block_diag(math.sqrt(of_latent) * latent.axes, rows.axes * np.sqrt(squares))
    return Space("joint", np.concatenate([latent.centre, rows.centre]), axes, parts=parts)


SPACES: dict[str, Callable[[NDArray[np.floating], int, Tail | None], Space]] = {
    "latent": lambda points, codes, tail: active_units(points),
    "raw": lambda points, codes, tail: raw(points),
    "pca": lambda points, codes, tail: principal(points),
    "joint": joint,
}
"""Spaces by name; each is made of the points (n, d) that it is to describe, of which the first columns may be codes."""


def _columns(kind: str, points: NDArray[np.floating], least: float) -> Space:
    variance = np.asarray(points, dtype=np.float64).var(0)
    return of_columns(kind, np.flatnonzero((variance > least) & (np.ptp(points, axis=0) > 0)), points.shape[1])


def of_columns(kind: str, kept: NDArray[np.intp], width: int) -> Space:
    """Make the space of some of `width` columns, as they are."""
    axes = np.eye(width)[:, kept] if width <= 4096 else np.zeros((0, len(kept)))
    return Space(kind, np.zeros(width), axes, kept)


def fit_space(kind: str, points: NDArray[np.floating], *, codes: int = 0, tail: Tail | None = None) -> Space:
    """Make a space of points (n, d).

    Args:
        kind: A name in `SPACES`.
        points: Codes, rows, or for "joint" both side by side.
        codes: For "joint": how many of the columns are codes, the first ones.
        tail: For "joint": see `joint`.

    Raises:
        ShapeError: They are not a table with rows.
        ConfigError: A point is not finite, or the kind is unknown.
    """
    if kind not in SPACES:
        raise ConfigError(f"space must be one of {', '.join(SPACES)}, got {kind!r}. Choose one of them.")
    return SPACES[kind](_finite(points), codes, tail)


def _finite(points: NDArray[np.floating]) -> NDArray[np.floating]:
    points = np.asarray(points)
    if points.ndim != 2 or not len(points):
        raise ShapeError(
            f"points must have shape (n, d) with n >= 1, got {points.shape}. Give one code a row.", shape=points.shape
        )
    if not np.isfinite(points).all():
        row = int(np.flatnonzero(~np.isfinite(points).all(1))[0])
        raise ConfigError(f"points must be finite, got a cell that is not in row {row}. Look at that row.", row=row)
    return points


def surface(points: NDArray[np.floating]) -> Space:
    """Make the space in which guards look at rows themselves: their columns, or 256 random directions of more.

    Random directions keep all distances to about 4 %. Principal components do not: what makes noise unlike everything
    else lies outside them.

    References:
        Johnson & Lindenstrauss (1984), Extensions of Lipschitz mappings into a Hilbert space.
    """
    points = _finite(points)
    width = points.shape[1]
    if width <= WIDEST:
        return raw(points)
    axes = np.random.default_rng(0).normal(size=(width, WIDEST)) / math.sqrt(WIDEST)
    return Space("projected", np.asarray(points[:FITTED_ROWS], dtype=np.float64).mean(0), axes)
