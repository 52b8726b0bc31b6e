"""A torch sampler of weighted rows: any number of them, seeded, and split between ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import Sampler

from ..errors import ConfigError, ShapeError

CHUNK = 1 << 20
"""Draws made at once."""


class WeightedRowSampler(Sampler[int]):
    """Draws row numbers with chances proportional to their weights, anew each epoch.

    `torch.utils.data.WeightedRandomSampler` takes at most 2^24 rows and knows no ranks; this one searches the cumulated
    weights in double precision. All ranks draw the same sequence, of which each takes its own part, so that together
    they see what one alone would have seen. Without replacement, at most the number of rows of positive weight.

    Args:
        weights: Weight of each row, (n,), not negative.
        num_samples: Draws an epoch, over all ranks; by default n.
        replacement: Whether a row may come more than once an epoch.
        seed: Of the draws.
        rank: This process, from 0.
        world: Number of processes; each gets the same number of draws, the last few are left out if need be.

    Example:
        >>> sampler = WeightedRowSampler([0.0, 1.0, 1.0], num_samples=4, seed=0)
        >>> 0 in list(sampler), len(sampler)
        (False, 4)
    """

    def __init__(
        self,
        weights: ArrayLike | torch.Tensor,
        *,
        num_samples: int | None = None,
        replacement: bool = True,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        values = np.asarray(weights, dtype=np.float64)
        if values.ndim != 1 or not values.size:
            raise ShapeError(f"weights must have shape (n,) with n >= 1, got {values.shape}. Give one a row.")
        if not np.isfinite(values).all() or (values < 0).any() or not values.sum() > 0:
            raise ConfigError("weights must be finite, not negative and not all 0, got others. Give other weights.")
        if not 0 <= rank < world:
            raise ConfigError(f"rank must be from 0 to world - 1 = {world - 1}, got {rank}. Give this process's own.")
        self.num_samples = len(values) if num_samples is None else num_samples
        positive = int((values > 0).sum())
        if self.num_samples < world or (not replacement and self.num_samples > positive):
            most = "" if replacement else f" and at most {positive}, the rows of positive weight"
            raise ConfigError(
                f"num_samples must be at least {world}, the processes{most}, got {self.num_samples}. Change it."
            )
        self.replacement = replacement
        self.seed, self.rank, self.world = seed, rank, world
        self.epoch = 0
        self._weights = values
        self._reached = np.cumsum(values / values.sum())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, so that each has draws of its own; the same one gives the same draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples // self.world

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        kept = len(self) * self.world
        if not self.replacement:
            yield from self._without_replacement(rng)[:kept][self.rank :: self.world].tolist()
            return
        for start in range(0, kept, CHUNK):
            draws = rng.random(min(CHUNK, kept - start))
            rows = np.searchsorted(self._reached, draws * self._reached[-1], side="right")
            yield from rows[(self.rank - start) % self.world :: self.world].tolist()

    def _without_replacement(self, rng: np.random.Generator) -> np.ndarray:
        """Return the rows whose exponential clocks ring first: a weighted draw (Efraimidis & Spirakis 2006)."""
        with np.errstate(divide="ignore"):
            clocks = rng.exponential(size=len(self._weights)) / self._weights
        first = np.argpartition(clocks, self.num_samples - 1)[: self.num_samples]
        return first[np.argsort(clocks[first], kind="stable")]
