"""How many threads a small matrix product is worth: one.

A second thread gains little on products of a millisecond and less, and where the machine's cores are busy it costs a
factor of ten and more, since each of thousands of short waits spins for a core. Parallelism belongs one level up: over
frames of rows (`serving.batch`) or over server workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL_PRODUCT = 1 << 26


@contextmanager
def threads_worth(multiply_adds: int) -> Iterator[None]:
    """Compute on one thread inside, if the largest matrix product takes at most `SMALL_PRODUCT` multiply-adds.

    The setting is the calling thread's own and is restored.
    """
    before = torch.get_num_threads()
    if before == 1 or multiply_adds > SMALL_PRODUCT:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
