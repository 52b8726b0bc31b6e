"""Processes that score parts side by side, each on one thread.

Every process loads the model once; its weights are mapped into memory, so that the machine holds them once for all. A
process fills temporary files and reports; it gives no file its name. It ends when the one that started it does, however
that ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import AnomalyVaeError
from ..options import BatchConfig

if TYPE_CHECKING:
    from ..detection.detector import Detector
    from .parts import Order, PartScored

READY, ROWS, DONE, FAILED = "ready", "rows", "done", "failed"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all parts of a job share.

    Attributes:
        model: Folder of the detector.
        digest: The detector's.
        config: How to score.
        model_version: Written beside every row.
    """

    model: Path
    digest: str
    config: BatchConfig
    model_version: str


class Crew(Protocol):
    """Who scores the parts of a job elsewhere than in its own process."""

    def carry_out(
        self, orders: Sequence[Order], task: Task, *, on_rows: Callable[[Order, int, int | None], None]
    ) -> Iterator[tuple[Order, PartScored, int]]:
        """Yield each order, with the files that were written, what came of it, and the peak memory, bytes."""


@dataclass(frozen=True)
class Processes:
    """A crew of processes on this machine."""

    number: int

    def carry_out(
        self, orders: Sequence[Order], task: Task, *, on_rows: Callable[[Order, int, int | None], None]
    ) -> Iterator[tuple[Order, PartScored, int]]:
        """See `carry_out`."""
        return carry_out(orders, task, processes=self.number, on_rows=on_rows)


class _Process:
    """A process and the part that it is at work on."""

    def __init__(self, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, end = context.Pipe()
        self.process = context.Process(target=_serve, args=(end, task), daemon=True)
        self.process.start()
        end.close()
        self.order: Order | None = None
        self.ready = False

    def stop(self) -> None:
        self.line.close()
        self.process.kill()
        self.process.join()


def carry_out(
    orders: Sequence[Order],
    task: Task,
    *,
    processes: int,
    on_rows: Callable[[Order, int, int | None], None],
) -> Iterator[tuple[Order, PartScored, int]]:
    """Yield each order with what came of it and the process's peak memory, bytes, in the order they are done.

    Args:
        orders: Handed out in this order.
        task: What they share.
        processes: How many at most.
        on_rows: Called with an order, the rows done of it and its rows, as far as known.

    Raises:
        AnomalyVaeError: What a process raised.
        RuntimeError: A process ended, or failed in a way that is no caller's fault.
    """
    queue = deque(orders)
    crew: list[_Process] = []
    try:
        crew.extend(_Process(task) for _ in range(min(processes, len(orders))))
        while queue or any(one.order is not None for one in crew):
            for one in crew:
                if one.ready and one.order is None and queue:
                    one.order = queue.popleft()
                    with contextlib.suppress(OSError):  # it has ended: seen when its answer is read
                        one.line.send(one.order)
            busy = {one.line: one for one in crew if one.order is not None or not one.ready}
            for line in wait(list(busy)):
                one = busy[line]  # type: ignore[index]
                kind, *facts = _heard(one)
                if kind == READY:
                    one.ready = True
                elif kind == FAILED:
                    raise facts[0]
                elif kind == ROWS and one.order is not None:
                    on_rows(one.order, *facts)
                elif kind == DONE and one.order is not None:
                    order, one.order = one.order, None
                    yield order, facts[0], facts[1]
    finally:
        for one in crew:
            one.stop()


def _heard(one: _Process) -> tuple[Any, ...]:
    try:
        message: tuple[Any, ...] = one.line.recv()
        return message
    except (EOFError, OSError):
        one.process.join(timeout=5)
        at = f" at work on {one.order.file.name!r}" if one.order else ""
        code = one.process.exitcode
        cause = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
        raise RuntimeError(
            f"a process{at} ended {cause}, perhaps for want of memory. The same command goes on where it stopped; "
            "try fewer processes."
        ) from None


def _serve(line: Connection, task: Task) -> None:
    """Score the parts that come in, until nobody is there to send any."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the process that hands out the parts
    try:
        _work(line, task)
    except (EOFError, BrokenPipeError, ConnectionError):
        return
    except Exception as error:
        with contextlib.suppress(OSError):
            line.send((FAILED, sendable(error)))


def _work(line: Connection, task: Task) -> None:
    work = Work(task)
    line.send((READY,))
    while True:
        order: Order = line.recv()
        scored = work.score(order, lambda rows, total: line.send((ROWS, rows, total)))
        line.send((DONE, scored, peak_bytes()))


class Work:
    """A loaded model and what to do with it, in a process that scores parts on one thread."""

    def __init__(self, task: Task, detector: Detector | None = None) -> None:
        import pyarrow as pa

        from ..detection.detector import Detector

        pa.set_cpu_count(1)
        self.task = task
        self.detector = detector if detector is not None else Detector.load(task.model, shared=True)
        self.config = replace(task.config, processes=1, workers=1)

    def score(self, order: Order, report: Callable[[int, int | None], None]) -> PartScored:
        """Score a part; see `parts.score_part`."""
        from ..models.threads import threads_worth
        from .parts import score_part

        schema, version = self.detector.schema, self.task.model_version
        with threads_worth(0):
            return score_part(self.detector, order, self.config, model_version=version, schema=schema, report=report)


def _end_with_parent() -> None:
    """End this process at once when its parent is gone: it must not go on writing, nor keep memory and cores."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def sendable(error: Exception) -> Exception:
    """Return an error that another process can read."""
    if isinstance(error, AnomalyVaeError):
        plain = {k: v for k, v in error.facts.items() if isinstance(v, (str, int, float, bool, type(None)))}
        return type(error)(str(error), **plain)
    return RuntimeError(f"{type(error).__name__}: {error}")


def peak_bytes() -> int:
    """Return the most memory that this process has had, bytes."""
    import resource
    import sys

    status = Path("/proc/self/status")
    if status.exists():  # `getrusage` would begin with the peak of the process that started this one
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
