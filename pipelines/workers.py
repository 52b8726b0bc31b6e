"""Many tasks on a few processes: none can take the others down or hold them up.

A task that raises, dies or exceeds its time is an outcome with a reason. Each process computes on one thread.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

Task = TypeVar("Task")

START_SECONDS = 300.0


@dataclass(frozen=True)
class Outcome:
    """What a task came to.

    Attributes:
        status: ok, failed (it raised), timeout, or died (its process ended).
        value: What it returned.
        reason: Why it did not, one line.
    """

    status: str
    value: Any = None
    reason: str = ""


class _Worker(Generic[Task]):
    """A process, the task it has, and when that must be done."""

    def __init__(self, work: Callable[[Task], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, end = context.Pipe()
        self.process = context.Process(target=_serve, args=(end, work), daemon=True)
        self.process.start()
        end.close()
        self.task: Task | None = None
        self.ready = False
        self.deadline = time.monotonic() + START_SECONDS

    def give(self, task: Task, limit: float) -> None:
        self.task, self.deadline = task, time.monotonic() + limit
        with contextlib.suppress(OSError):  # it has died: seen when its answer is read
            self.line.send(task)

    def stop(self, *, at_once: bool) -> None:
        self.line.close()  # which an idle process takes as its end
        if not at_once:
            self.process.join(timeout=5)
        self.process.kill()
        self.process.join()


def carry_out(
    tasks: Sequence[Task], work: Callable[[Task], Any], *, jobs: int, limit: float
) -> Iterator[tuple[Task, Outcome]]:
    """Yield each task with its outcome, in the order in which they are done.

    Args:
        tasks: Handed out in this order.
        work: A function that a fresh process can import.
        jobs: Number of processes.
        limit: Wall seconds that one task may take.
    """
    queue = deque(tasks)
    workers: list[_Worker[Task]] = []
    try:
        while queue or any(worker.task is not None for worker in workers):
            while len(workers) < min(jobs, len(queue) + sum(worker.task is not None for worker in workers)):
                workers.append(_Worker(work))
            for worker in workers:
                if worker.ready and worker.task is None and queue:
                    worker.give(queue.popleft(), limit)
            busy = [worker for worker in workers if worker.task is not None or not worker.ready]
            patience = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
            heard = wait([worker.line for worker in busy], timeout=patience)
            for worker in busy:
                outcome = _heard(worker) if worker.line in heard else _late(worker, limit)
                if outcome is None:
                    continue
                task, worker.task = worker.task, None
                if outcome.status in ("timeout", "died"):
                    worker.stop(at_once=True)
                    workers.remove(worker)
                if task is not None:
                    yield task, outcome
                elif outcome.status != "ready":
                    raise RuntimeError(f"a process must start, and did not: {outcome.reason}")
    finally:
        for worker in workers:
            worker.stop(at_once=worker.task is not None or not worker.ready)


def _heard(worker: _Worker[Task]) -> Outcome:
    try:
        outcome: Outcome = worker.line.recv()
    except (EOFError, OSError):
        worker.process.join(timeout=5)
        return Outcome("died", reason=f"its process ended with exit code {worker.process.exitcode}")
    worker.ready = True
    return outcome


def _late(worker: _Worker[Task], limit: float) -> Outcome | None:
    if time.monotonic() < worker.deadline:
        return None
    what = f"done within {limit:g}" if worker.ready else f"started within {START_SECONDS:g}"
    return Outcome("timeout", reason=f"not {what} s")


def _serve(line: Connection, work: Callable[[Task], Any]) -> None:
    """Do tasks until the other end closes; nothing they print or warn of is shown."""
    import torch
    from threadpoolctl import threadpool_limits

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the process that hands out the tasks
    torch.set_num_threads(1)
    line.send(Outcome("ready"))
    while True:
        try:
            task = line.recv()
        except (EOFError, OSError):
            return
        nowhere = io.StringIO()
        try:
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with threadpool_limits(1):
                    outcome = Outcome("ok", work(task))
        except Exception as error:
            words = " ".join(str(error).split())
            outcome = Outcome("failed", reason=f"{type(error).__name__}: {words}"[:300])
        line.send(outcome)
