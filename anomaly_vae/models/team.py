"""Processes that train one model together: each takes the gradient of its rows of a batch, and all add them up.

Every process holds all rows and makes the same draws, so that a team of any size takes the steps that one process would
take, but for the order in which floats are added.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor

LONGEST_WAIT = timedelta(minutes=10)
"""How long a process waits for another before it takes it for lost."""


@dataclass(frozen=True)
class Team:
    """One process's place in a team.

    Attributes:
        rank: Its number, from 0, whose process keeps the result.
        size: Processes in the team.
    """

    rank: int
    size: int

    @classmethod
    @contextmanager
    def joined(cls, meeting: str = "env://", *, rank: int = -1, size: int = -1) -> Iterator[Team]:
        """Meet the others, over gloo, and leave them at the end.

        Args:
            meeting: Where; by default as the launcher (torchrun, Spark's TorchDistributor) says by the variables
                MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE.
            rank: This process's number, unless the launcher says it.
            size: Processes in the team, unless the launcher says it.
        """
        from torch import distributed

        distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size, timeout=LONGEST_WAIT)
        try:
            yield cls(distributed.get_rank(), distributed.get_world_size())
        finally:
            distributed.destroy_process_group()

    def rows_of(self, batch: int) -> slice:
        """Return which rows of a batch are this process's: every process has some, and nearly as many."""
        return slice(batch * self.rank // self.size, batch * (self.rank + 1) // self.size)

    def average(self, mean: Tensor, rows: slice, batch: int) -> None:
        """Turn a mean over this process's rows of a batch, in place, into the mean over all of them."""
        from torch import distributed

        distributed.all_reduce(mean.mul_((rows.stop - rows.start) / batch))

    def as_first(self, value: float) -> float:
        """Return the first process's value, so that all decide alike."""
        from torch import distributed

        told = torch.tensor(value, dtype=torch.float64)
        distributed.broadcast(told, src=0)
        return float(told)
