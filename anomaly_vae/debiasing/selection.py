"""Weights in, the rows of a rebalanced data set out.

All modes draw systematically: with one random offset, along the rows in random order. A row's number of copies then
differs from its expectation by less than one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, ShapeError

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
STEPS = 100


def select(
    weights: Floats, *, mode: str, size: int | None = None, share: float | None = None, seed: int = 0
) -> Indices:
    """Return which rows a data set consists of, ascending; rows may be in it many times.

    Args:
        weights: Weight of each row, (n,), not negative, finite.
        mode: A name in `MODES`: "weights" keeps each row once; "oversample" keeps each at least once and repeats those
            of large weight; "subsample" draws without repetition, a row's chance proportional to its weight;
            "thin" drops rows of a weight below the mean, each with one minus its weight for chance.
        size: Rows of an oversample (by default 2 n) or of a subsample (by default `share` times n).
        share: See `size`; 0.2 if it is not given.
        seed: Of the draw.

    Raises:
        ConfigError: The mode is unknown, the size impossible, or a weight is negative or not finite.
        ShapeError: The weights are not of shape (n,), n >= 1.

    Example:
        >>> select(np.array([0.2, 0.2, 2.6]), mode="oversample", size=5).tolist()
        [0, 1, 2, 2, 2]
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim != 1 or not len(weights):
        raise ShapeError(f"weights must have shape (n,) with n >= 1, got {weights.shape}. Give one a row.")
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum() > 0:
        raise ConfigError("weights must be finite, not negative and not all 0, got others. Set a cap, or fit again.")
    if mode not in MODES:
        raise ConfigError(f"mode must be one of {', '.join(MODES)}, got {mode!r}. Choose one of them.")
    n = len(weights)
    if size is None:
        size = 2 * n if mode == "oversample" else max(1, round((0.2 if share is None else share) * n))
    return MODES[mode](weights / weights.mean(), size, np.random.default_rng(seed))


def _all(weights: Floats, size: int, rng: np.random.Generator) -> Indices:
    return np.arange(len(weights))


def _oversample(weights: Floats, size: int, rng: np.random.Generator) -> Indices:
    n = len(weights)
    if size < n:
        raise ConfigError(
            f"size must be at least {n}, each row once, got {size}. Ask for more, or for mode=subsample.", size=size
        )
    low, high = 0.0, size / n * n / weights.max() * n
    for _ in range(STEPS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if np.maximum(1.0, middle * weights).sum() > size else (middle, high)
    return _systematic(np.maximum(1.0, low * weights), size, rng)


def _subsample(weights: Floats, size: int, rng: np.random.Generator) -> Indices:
    positive = int((weights > 0).sum())
    if size > positive:
        raise ConfigError(
            f"size must be at most {positive}, the rows of positive weight, got {size}. "
            "Ask for fewer, or for mode=oversample.",
            size=size,
        )
    low, high = 0.0, size / weights[weights > 0].min()
    for _ in range(STEPS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if np.minimum(1.0, middle * weights).sum() > size else (middle, high)
    return _systematic(np.minimum(1.0, high * weights), size, rng)


def _thin(weights: Floats, size: int, rng: np.random.Generator) -> Indices:
    return _systematic(np.minimum(1.0, weights), None, rng)


MODES: dict[str, Callable[[Floats, int, np.random.Generator], Indices]] = {
    "weights": _all,
    "oversample": _oversample,
    "subsample": _subsample,
    "thin": _thin,
}
"""Ways to make a data set of weights."""


def _systematic(expected: Floats, size: int | None, rng: np.random.Generator) -> Indices:
    """Return each row as often as is expected, rounded up or down, `size` rows in all."""
    order = rng.permutation(len(expected))
    reached = np.cumsum(expected[order])
    if size is not None:
        reached *= size / reached[-1]
    offset = rng.random()
    marks = np.floor(reached + offset + 1e-9).astype(np.intp)
    if size is not None:
        marks[-1] = size  # against rounding; the offset is below 1, so floor(size + offset) is size
    return np.sort(np.repeat(order, np.diff(marks, prepend=0)))
