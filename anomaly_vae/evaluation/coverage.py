"""Which parts of the latent are thin, and what they are in the table's own columns. Arrays in, dataclasses out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from ..errors import ShapeError
from ..options import AuditConfig

Floats = NDArray[np.float64]

CLUSTERED_ROWS = 20_000
"""Rows from which centres are learned, at most; all are counted."""
APART = 4.0
"""A cell stands apart if the nearest other centre is farther than this many of its own radii. Equal slices of a line,
which do not stand apart, are sqrt(12) = 3.46 of theirs from each other."""
TYPICAL = 5
"""Rows nearest to a centre that are kept as its examples."""
NAMED = 3
"""Columns that describe a region."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """A cell of the latent.

    Attributes:
        rows: Rows in it.
        share: Their share.
        median_log_density: Median log density of their codes, nats; None where none was given.
        description: What sets it apart, in the table's own columns; empty where there is no table.
        examples: Positions of the rows nearest to its centre.
        thin: Whether it has less than half the mass that cells have on average.
        apart: Whether it lies by itself, rather than being a slice of a larger cloud.
    """

    rows: int
    share: float
    median_log_density: float | None
    description: str
    examples: tuple[int, ...]
    thin: bool
    apart: bool


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How evenly the latent is filled.

    Attributes:
        evenness: Entropy of the cells' masses over that of equal masses: 1 = all alike.
        cells: Number of cells.
        thin: Cells of less than half the average mass.
        regions: All cells, the largest first.
        rarest: Those of the smallest mass, the smallest first.
    """

    evenness: float
    cells: int
    thin: int
    regions: tuple[Region, ...]
    rarest: tuple[Region, ...]


def coverage(
    codes: NDArray[np.floating],
    config: AuditConfig,
    *,
    log_density: Floats | None = None,
    frame: pd.DataFrame | None = None,
) -> Coverage:
    """Cut the latent into cells and weigh them.

    Args:
        codes: Codes of the rows, (n, l).
        config: `cells`, `rarest` and `seed`.
        log_density: Log density of each code, (n,), nats.
        frame: The rows' own columns, to describe regions by.

    Raises:
        ShapeError: There is no row, or the arrays differ in length.
    """
    points = np.asarray(codes, dtype=np.float64)
    n = len(points)
    others = [len(a) for a in (log_density, frame) if a is not None]
    if points.ndim != 2 or not n or any(length != n for length in others):
        raise ShapeError(
            f"codes must have shape (n, l) with n >= 1, got {points.shape}, beside {others}. Give as many."
        )
    cell, distance, gap = _cells(points, config)
    counts = np.bincount(cell)
    shares = counts / n
    average = 1.0 / len(counts)
    radius = np.sqrt(np.bincount(cell, distance**2) / counts)
    regions = []
    for c in np.argsort(-counts, kind="stable"):
        rows = np.flatnonzero(cell == c)
        nearest = rows[np.argsort(distance[rows], kind="stable")[:TYPICAL]]
        regions.append(
            Region(
                rows=len(rows),
                share=float(shares[c]),
                median_log_density=None if log_density is None else float(np.median(log_density[rows])),
                description="" if frame is None else describe(frame, cell == c),
                examples=tuple(nearest.tolist()),
                thin=bool(shares[c] < 0.5 * average),
                apart=bool(len(counts) > 1 and gap[c] > APART * radius[c]),
            )
        )
    entropy = -float((shares * np.log(shares)).sum())
    return Coverage(
        evenness=entropy / np.log(len(counts)) if len(counts) > 1 else 1.0,
        cells=len(counts),
        thin=sum(region.thin for region in regions),
        regions=tuple(regions),
        rarest=tuple(regions[::-1][: config.rarest]),
    )


def _cells(points: Floats, config: AuditConfig) -> tuple[NDArray[np.intp], Floats, Floats]:
    """Return each row's cell (n,), its distance to the centre (n,), and each centre's to the nearest other, (c,)."""
    some = points[:: -(-len(points) // CLUSTERED_ROWS)]
    count = min(config.cells, len(np.unique(some, axis=0)))
    kmeans = KMeans(count, n_init=3, random_state=config.seed % 2**32).fit(some)
    cell = kmeans.predict(points)
    kept, cell = np.unique(cell, return_inverse=True)
    centres = kmeans.cluster_centers_[kept]
    distance = np.linalg.norm(points - centres[cell], axis=1)
    between = np.linalg.norm(centres[:, None] - centres, axis=2) + np.diag(np.full(len(centres), np.inf))
    return cell, distance, between.min(1)


def describe(frame: pd.DataFrame, inside: NDArray[np.bool_]) -> str:
    """Say by which columns some rows differ most from the rest, in the table's own values.

    Args:
        frame: The rows, (n, m).
        inside: Which rows are meant, (n,).

    Example:
        >>> rows = pd.DataFrame({"age": [20, 25, 30, 81, 90], "member": [True, False, True, False, True]})
        >>> describe(rows, np.array([False, False, False, True, True]))
        'age 81.9 to 89.1 (else 21 to 29)'
    """
    if not inside.any() or inside.all():
        return "all rows"
    found: list[tuple[float, str]] = []
    for name in frame.columns:
        column = frame[name]
        plain = pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)
        found.append(_numbers(str(name), column, inside) if plain else _values(str(name), column, inside))
    found = sorted((f for f in found if f[0] >= 0.3), key=lambda f: -f[0])[:NAMED]
    return "; ".join(text for _, text in found) or "no single column sets it apart"


def _numbers(name: str, column: pd.Series, inside: NDArray[np.bool_]) -> tuple[float, str]:
    """Return how far two samples of numbers are apart (0 to 1: the Kolmogorov-Smirnov distance), and in words."""
    numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
    a, b = (np.sort(numbers[rows & ~np.isnan(numbers)]) for rows in (inside, ~inside))
    if not len(a) or not len(b):
        return (1.0, f"{name} missing") if len(b) else (0.0, "")
    grid = np.concatenate([a, b])
    apart = np.abs(np.searchsorted(a, grid, "right") / len(a) - np.searchsorted(b, grid, "right") / len(b)).max()
    (low, high), (rest_low, rest_high) = (np.quantile(part, [0.1, 0.9]) for part in (a, b))
    return float(apart), f"{name} {low:.4g} to {high:.4g} (else {rest_low:.4g} to {rest_high:.4g})"


def _values(name: str, column: pd.Series, inside: NDArray[np.bool_]) -> tuple[float, str]:
    """Return by how much the share of the most over-represented value is larger inside, and in words."""
    try:
        values = column.astype(object).where(column.notna(), "missing").astype(str)
    except (TypeError, ValueError):
        return 0.0, ""
    within = values[inside].value_counts(normalize=True)
    rest = values[~inside].value_counts(normalize=True).reindex(within.index, fill_value=0.0)
    value = (within - rest).idxmax()
    text = f"{name} = {value} ({100 * within[value]:.0f} % of it, else {100 * rest[value]:.0f} %)"
    return float(within[value] - rest[value]), text
