"""How many threads a small matrix product is worth: one.

A second thread gains little on products of a millisecond and less, and where the machine's cores are busy it costs a
factor of ten and more, since each of thousands of short waits spins for a core. Parallelism belongs one level up: over
blocks of rows or members of an ensemble (`side_by_side`), over frames of rows (`serving.batch`) or server workers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

SMALL_PRODUCT = 1 << 26
T = TypeVar("T")
_here = threading.local()


def worth_threads(multiply_adds: int) -> bool:
    """Return whether a matrix product of so many multiply-adds is worth several threads."""
    return multiply_adds > SMALL_PRODUCT


@contextmanager
def threads_worth(multiply_adds: int) -> Iterator[None]:
    """Compute on one thread inside, if the largest matrix product takes at most `SMALL_PRODUCT` multiply-adds.

    The setting is the calling thread's own and is restored.
    """
    before = torch.get_num_threads()
    if before == 1 or worth_threads(multiply_adds):
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def take_part() -> None:
    """Say that the calling thread is one of several at work, so that it starts no others."""
    _here.takes_part = True


def side_by_side(job: Callable[[int], T], jobs: int) -> list[T]:
    """Return `[job(0), ..., job(jobs - 1)]`, each computed on one thread, as many at once as the caller has.

    Results do not depend on the number of threads. A thread that takes part in such work already starts no others.
    """

    def alone(i: int) -> T:
        with threads_worth(0):
            return job(i)

    threads = min(torch.get_num_threads(), jobs)
    if threads < 2 or getattr(_here, "takes_part", False):
        return [alone(i) for i in range(jobs)]
    with ThreadPoolExecutor(threads, "side-by-side", take_part) as pool:
        return list(pool.map(alone, range(jobs)))
