"""Labels of any kind as strata: within each, density is measured by itself."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, ShapeError

MOST_CLASSES = 20
"""Floating-point labels with more distinct values than this are a continuous target."""
LABEL_KINDS = ("none", "classes", "continuous")


@dataclass(frozen=True)
class Strata:
    """How labels are sorted into strata.

    Attributes:
        kind: "none" (one stratum), "classes" (one a class) or "continuous" (one an interval between quantiles).
        names: Name of each stratum, s of them.
        values: The classes, in the order of the strata; empty for the other kinds.
        edges: Inner edges of the intervals, (s - 1,), ascending; empty for the other kinds.

    Example:
        >>> strata = Strata.fit(["cat", "dog", "cat"])
        >>> strata.names, strata.of(["dog", "cat"]).tolist()
        (('cat', 'dog'), [1, 0])
    """

    kind: str
    names: tuple[str, ...]
    values: tuple[Any, ...] = ()
    edges: tuple[float, ...] = ()

    @classmethod
    def fit(cls, labels: ArrayLike | None, *, kind: str | None = None, bins: int = 10) -> Strata:
        """Learn the strata of labels.

        Args:
            labels: Label of each row, (n,), or None for none.
            kind: "classes" or "continuous"; by default continuous where they are floating-point numbers that are not
                all whole, or of more than 20 distinct values.
            bins: Intervals of a continuous target, at most: ties can leave fewer.

        Raises:
            ConfigError: A label is missing, or all are.
            ShapeError: They are not one-dimensional.
        """
        if labels is None:
            return cls("none", ("all",))
        known = _complete(labels)
        if (kind or _kind_of(known)) == "continuous":
            numbers = known.to_numpy(dtype=np.float64)
            edges = np.unique(np.quantile(numbers, np.arange(1, bins) / bins))
            edges = edges[(edges > numbers.min()) & (edges <= numbers.max())]
            bounds = ["-inf", *(f"{edge:g}" for edge in edges), "inf"]
            names = tuple(f"[{low}, {high})" for low, high in pairwise(bounds))
            return cls("continuous", names, edges=tuple(float(edge) for edge in edges))
        values = tuple(v.item() if isinstance(v, np.generic) else v for v in pd.unique(known))
        values = tuple(sorted(values, key=lambda v: (str(type(v)), v) if isinstance(v, (int, float)) else (str(v), 0)))
        return cls("classes", tuple(str(v) for v in values), values=values)

    def of(self, labels: ArrayLike | None, *, rows: int | None = None) -> NDArray[np.intp]:
        """Return each row's stratum, (n,), from 0.

        Args:
            labels: Label of each row, (n,).
            rows: n, needed where there are no labels.

        Raises:
            ConfigError: Labels are absent though these are strata of labels, one is missing, or a class is unknown.
        """
        if self.kind == "none":
            return np.zeros(len(pd.Series(labels)) if rows is None else rows, dtype=np.intp)
        if labels is None:
            raise ConfigError(
                "labels must be given as they were when the weights were learned, got none. Give y, or fit without it."
            )
        known = _complete(labels)
        if self.kind == "continuous":
            return np.searchsorted(np.asarray(self.edges), known.to_numpy(dtype=np.float64), side="right")
        found = pd.Index(self.values).get_indexer(pd.Index(known))
        if (found < 0).any():
            value = known.iloc[int(np.flatnonzero(found < 0)[0])]
            raise ConfigError(
                f"a label must be one of {', '.join(self.names[:10])}, got {value!r}. "
                "Fit again with rows of that class.",
                value=value,
            )
        return np.asarray(found, dtype=np.intp)

    @property
    def ordered(self) -> bool:
        """Whether neighbouring strata are alike."""
        return self.kind == "continuous"


def _kind_of(labels: pd.Series[Any]) -> str:
    if not pd.api.types.is_float_dtype(labels.dtype):
        return "classes"
    numbers = labels.to_numpy(dtype=np.float64)
    whole = np.equal(np.floor(numbers), numbers).all()
    return "classes" if whole and len(np.unique(numbers)) <= MOST_CLASSES else "continuous"


def _complete(labels: ArrayLike) -> pd.Series[Any]:
    series = labels if isinstance(labels, pd.Series) else None
    if series is None:
        array = np.asarray(labels)
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim != 1:
            raise ShapeError(f"labels must have shape (n,), got {array.shape}. Give one label for each row.")
        series = pd.Series(array)
    missing = int(series.isna().sum())
    if missing == 0 and pd.api.types.is_float_dtype(series.dtype):
        missing = int((~np.isfinite(series.to_numpy(dtype=np.float64))).sum())
    if missing or not len(series):
        raise ConfigError(
            f"labels must be there for each row, got {missing} missing of {len(series)}. "
            "Leave those rows out, or give no labels.",
            missing=missing,
        )
    return series
