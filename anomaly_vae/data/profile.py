"""What a table's columns looked like in training: counts of cells in bins, and of missing ones; no cell itself.

Rows seen later are counted in the same bins, and two such profiles are all that a comparison needs. No bin has from 1
to `FEWEST_ROWS` - 1 training rows, so that nothing of a single row is kept: the edges of numeric bins lie halfway
between two cells, and rare categories share a bin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import SchemaError, ShapeError
from .schema import Column, Schema

FEWEST_ROWS = 20
MOST_BINS = 50

Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ColumnProfile:
    """Counts of one column's cells.

    Attributes:
        name: The column.
        kind: continuous, count, binary or categorical.
        edges: Of a numeric column, encoded: bin i holds cells above edge i - 1 and up to edge i, (b - 1,), ascending.
        bin_of: Of a discrete column: the bin of each category, the last one of unseen ones, (categories + 1,).
        counts: Observed cells in each bin, (b,).
        missing: Missing cells.
    """

    name: str
    kind: str
    edges: NDArray[np.float64]
    bin_of: Counts
    counts: Counts
    missing: int

    @property
    def observed(self) -> int:
        """Cells that are not missing."""
        return int(self.counts.sum())

    @property
    def rows(self) -> int:
        """Cells, missing ones too."""
        return self.observed + self.missing

    def of(self, cells: NDArray[np.floating]) -> ColumnProfile:
        """Return the profile of other cells, encoded, (n,), in the same bins."""
        seen = np.asarray(cells, dtype=np.float64)
        seen = seen[~np.isnan(seen)]
        if len(self.bin_of):
            bins = self.bin_of[np.clip(seen.astype(np.int64), 0, len(self.bin_of) - 1)]
        else:
            bins = np.searchsorted(self.edges, seen, side="left")
        counts = np.bincount(bins, minlength=len(self.counts)).astype(np.int64)
        return replace(self, counts=counts, missing=len(cells) - len(seen))


@dataclass(frozen=True, eq=False)
class Profile:
    """Counts of all modelled columns of a table.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"x": np.arange(100.0) ** 1.5, "site": ["a", "b"] * 50})
        >>> schema = Schema.fit(frame)
        >>> profile = Profile.fit(schema, schema.encode(frame))
        >>> [column.counts.tolist() for column in profile.columns]
        [[20, 20, 20, 20, 20], [50, 50, 0]]
        >>> profile.of(schema.encode(frame.head(30))).columns[0].counts.tolist()
        [20, 10, 0, 0, 0]
    """

    columns: tuple[ColumnProfile, ...]

    @classmethod
    def fit(cls, schema: Schema, x: NDArray[np.floating]) -> Profile:
        """Choose bins for encoded training rows, (n, m), and count."""
        return cls(tuple(_fitted(column, x[:, j]) for j, column in enumerate(schema.modelled)))

    @property
    def rows(self) -> int:
        """Rows that were counted."""
        return self.columns[0].rows

    def of(self, x: NDArray[np.floating]) -> Profile:
        """Return the profile of other encoded rows, (n, m), in the same bins.

        Raises:
            ShapeError: They have another number of columns.
        """
        if x.ndim != 2 or x.shape[1] != len(self.columns):
            raise ShapeError(f"rows must have shape (n, {len(self.columns)}), got {x.shape}. Encode them first.")
        return Profile(tuple(column.of(x[:, j]) for j, column in enumerate(self.columns)))

    def __add__(self, other: Profile) -> Profile:
        """Return the counts of both, which must be in the same bins."""
        pairs = zip(self.columns, other.columns, strict=True)
        return Profile(tuple(replace(a, counts=a.counts + b.counts, missing=a.missing + b.missing) for a, b in pairs))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the counts as arrays by name, the columns by number; `from_arrays` is the inverse."""
        out: dict[str, NDArray[Any]] = {}
        for j, c in enumerate(self.columns):
            parts = {"edges": c.edges, "bin_of": c.bin_of, "counts": c.counts, "missing": np.array([c.missing])}
            out |= {f"{j}.{name}": values for name, values in parts.items()}
        return out

    @classmethod
    def from_arrays(cls, columns: Sequence[Column], arrays: Mapping[str, NDArray[Any]]) -> Profile:
        """Rebuild the profile of columns from `to_arrays`.

        Raises:
            SchemaError: The arrays are not those of a profile of these columns.
        """
        made = []
        for j, column in enumerate(columns):
            edges, bin_of, counts, missing = (arrays[f"{j}.{n}"] for n in ("edges", "bin_of", "counts", "missing"))
            discrete = column.kind in ("binary", "categorical")
            bins = int(bin_of.max(initial=-1)) + 1 if discrete else len(edges) + 1
            least = min(bin_of.min(initial=0), counts.min(initial=0), missing.min(initial=0))
            whole = all(np.issubdtype(a.dtype, np.integer) for a in (bin_of, counts, missing))
            sizes = len(counts) == bins and len(bin_of) == (len(column.categories) + 1) * discrete
            if not whole or not sizes or least < 0 or missing.shape != (1,) or not (np.diff(edges) > 0).all():
                raise SchemaError(f"column {column.name!r} must have a profile in its bins, got another.")
            made.append(ColumnProfile(column.name, column.kind, edges, bin_of, counts, int(missing[0])))
        return cls(tuple(made))


def _fitted(column: Column, cells: NDArray[np.floating]) -> ColumnProfile:
    seen = np.asarray(cells, dtype=np.float64)
    seen = seen[~np.isnan(seen)]
    none = np.zeros(0, dtype=np.int64)
    if column.kind in ("binary", "categorical"):
        levels = len(column.categories) + 1
        bin_of = _pooled(np.bincount(seen.astype(np.int64), minlength=levels))
        empty = ColumnProfile(column.name, column.kind, np.zeros(0), bin_of, none.repeat(0), 0)
        empty = replace(empty, counts=np.zeros(int(bin_of.max()) + 1, dtype=np.int64))
    else:
        edges = _edges(seen)
        empty = ColumnProfile(column.name, column.kind, edges, none, np.zeros(len(edges) + 1, dtype=np.int64), 0)
    return empty.of(cells)


def _pooled(counts: NDArray[np.int64]) -> Counts:
    """Return a bin for each category so that no bin has from 1 to `FEWEST_ROWS` - 1 rows; unseen ones, last, come last.

    Rare categories share a bin, with the least frequent of the others if they are still too few together.
    """
    by_count = np.argsort(counts, kind="stable")
    rare = [int(i) for i in by_count if 0 < counts[i] < FEWEST_ROWS]
    others = [int(i) for i in by_count if counts[i] >= FEWEST_ROWS]
    while rare and counts[rare].sum() < FEWEST_ROWS and others:
        rare.append(others.pop(0))
    bins = np.full(len(counts), -1, dtype=np.int64)
    bins[rare] = 0
    alone = [i for i in range(len(counts)) if bins[i] < 0]
    bins[alone] = np.arange(len(alone)) + bool(rare)
    return bins


def _edges(cells: ArrayLike) -> NDArray[np.float64]:
    """Return edges between about equally many cells, halfway between two that differ."""
    values, counts = np.unique(np.asarray(cells, dtype=np.float64), return_counts=True)
    until = np.cumsum(counts)
    total = int(until[-1]) if len(until) else 0
    wanted = min(MOST_BINS, total // FEWEST_ROWS)
    cuts = np.unique(np.searchsorted(until, np.arange(1, wanted) * total / max(1, wanted)))
    kept, last = [], 0
    for cut in cuts:
        if until[cut] - last >= FEWEST_ROWS and total - until[cut] >= FEWEST_ROWS:
            kept.append(int(cut))
            last = until[cut]
    below = np.array(kept, dtype=np.int64)
    return np.asarray((values[below] + values[below + 1]) / 2, dtype=np.float64)
