"""Small requests, scored together where they wait together.

A row's score does not depend on the rows beside it, and a block of one row costs the model nearly what a full one does.
So what has arrived while the last block was scored is put into one. It also keeps threads from fighting over Python's
lock: several that score single rows at once are slower than one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import orjson
import torch
from torch import Tensor

from ..detection.detector import Detector

SMALL_BODY = 1 << 16
MOST_TOGETHER = 256
"""Requests in one block."""

Answer = tuple[bytes, int, int, list[float]]
"""The body, its rows, how many of them are flagged, and the p-values to watch for drift."""


@dataclass
class Asked:
    """What a request asks for, understood.

    Attributes:
        alone: Scores it by itself.
        x: Its rows, encoded, if they may be scored with others'.
        alpha: Their false-alarm rate.
        k: Their posterior samples; None = the model's own.
    """

    alone: Callable[[], Answer]
    x: Tensor | None = None
    alpha: float = 0.0
    k: int | None = None


@dataclass
class _Job:
    read: Callable[[], Asked]
    future: Future[Answer] = field(default_factory=Future)


class Lane:
    """One thread that scores whatever waits.

    Args:
        detector: The model.
        pool: Threads for requests that want to be alone: their cost has no bound that others should wait for.
    """

    def __init__(self, detector: Detector, pool: Executor) -> None:
        self._detector, self._pool = detector, pool
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lane")
        self._jobs: deque[_Job] = deque()

    def submit(self, read: Callable[[], Asked]) -> Future[Answer]:
        """Queue a request; `read` is called in the lane's thread."""
        job = _Job(read)
        self._jobs.append(job)
        self._thread.submit(self._work)
        return job.future

    def stop(self) -> None:
        """Take no more; what waits is still scored."""
        self._thread.shutdown(wait=False)

    def _work(self) -> None:
        together: dict[tuple[float, int | None], list[tuple[_Job, Tensor]]] = {}
        for _ in range(MOST_TOGETHER):
            if not self._jobs:
                break
            job = self._jobs.popleft()
            if not job.future.set_running_or_notify_cancel():
                continue
            try:
                asked = job.read()
                if asked.x is None:
                    self._pool.submit(_settle, job.future, asked.alone)
                else:
                    together.setdefault((asked.alpha, asked.k), []).append((job, asked.x))
            except BaseException as error:  # the one who waits for it is told
                job.future.set_exception(error)
        for (alpha, k), group in together.items():
            try:
                self._score(group, alpha, k)
            except BaseException as error:
                for job, _ in group:
                    if not job.future.done():
                        job.future.set_exception(error)

    def _score(self, group: list[tuple[_Job, Tensor]], alpha: float, k: int | None) -> None:
        rows = torch.cat([x for _, x in group])
        columns = self._detector.verdicts(rows, alpha=alpha, k=k).lists()
        start = 0
        for job, x in group:
            part = {name: cells[start : start + len(x)] for name, cells in columns.items()}
            start += len(x)
            job.future.set_result(answer_of(part, watched=k in (None, self._detector.config.k)))


def _settle(future: Future[Answer], score: Callable[[], Answer]) -> None:
    try:
        future.set_result(score())
    except BaseException as error:
        future.set_exception(error)


def body_of(columns: dict[str, list[Any]]) -> bytes:
    """Return columns without a number that is not finite as the body of an answer."""
    return orjson.dumps({"predictions": columns})


def answer_of(columns: dict[str, list[Any]], *, watched: bool = True) -> Answer:
    """Return scores as the body of an answer, with their p-values if they are watched (see `pulse`)."""
    flags = columns["is_anomaly"]
    return (
        body_of(columns),
        len(flags),
        sum(flags),
        columns["p_value"] if watched else [],
    )
