"""What a service has done, counted: one array of numbers per worker, shared through files, in Prometheus's text.

Every worker counts in its own file, from its event loop alone, so there is no lock; whoever is asked adds them up.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CODES = ("200", "400", "404", "405", "408", "413", "415", "500", "503", "504")
REASONS = (
    "malformed",  # not JSON, CSV or Parquet, or not of the protocol
    "schema",  # rows that are not the model's
    "parameter",  # settings that are out of range
    "too_large",  # bytes, rows, columns or cells
    "content_type",
    "slow_client",
    "busy",  # no place in the queue, or for the body
    "timeout",  # scoring took too long
    "internal",
)
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
PREFIX = "anomaly_vae"
_COUNTERS: Mapping[str, str] = {
    "rows_total": "Rows scored.",
    "flagged_rows_total": "Rows flagged as anomalous.",
    "schema_errors_total": "Requests whose rows were not of the model's columns.",
    "received_bytes_total": "Bytes of bodies read.",
    "drift_alarms_total": "Times that the p-values answered left the distribution of the calibration rows.",
}
_LABELLED: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "requests_total": ("code", CODES, "Answers to /invocations by HTTP status."),
    "rejected_total": ("reason", REASONS, "Requests to /invocations that were not scored, by reason."),
}
_LARGEST: Mapping[str, str] = {
    "drift_log_capital": "Evidence of drift, log of the capital won by betting against the calibration rows; an alarm "
    "at the level e is -log(e). The largest of the workers'.",
    "drift_largest_psi": "Largest population stability index of a column, latest rows beside the training rows; from "
    "0.1 on it matters. The largest of the workers'.",
}
MOST_COLUMNS = 64
"""Columns with an index of their own; the others count for the largest."""
_GAUGES: Mapping[str, str] = {
    "in_flight": "Requests to /invocations that are being read, scored or answered.",
    "ready": "Workers that are loaded, warmed and not stopping.",
    "drift_window_rows": "Latest rows that drift_largest_psi is of.",
}


def _keys() -> Iterator[str]:
    yield from _COUNTERS
    for name, (_, values, _) in _LABELLED.items():
        yield from (f"{name}/{value}" for value in values)
    yield from (f"seconds/{bound}" for bound in (*BUCKETS, "+Inf"))
    yield "seconds_sum"
    yield from _GAUGES
    yield from _LARGEST
    yield from (f"column_psi/{i}" for i in range(MOST_COLUMNS))


KEYS = {key: i for i, key in enumerate(_keys())}
_FIRST_GAUGE, _FIRST_LARGEST = KEYS[next(iter(_GAUGES))], KEYS[next(iter(_LARGEST))]


class Tally:
    """The counts of one worker, and the sum over all that share its folder.

    Args:
        folder: Where workers keep their counts; None: only this process counts.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.columns = 0  # of which an index is told
        self.counts: NDArray[np.float64] = np.zeros(len(KEYS))
        if folder is not None:
            path = folder / f"{os.getpid()}.counts"
            self.counts = np.memmap(path, dtype=np.float64, mode="w+", shape=(len(KEYS),))

    def add(self, key: str, amount: float = 1.0) -> None:
        """Add to a count; a key that is not counted is an error of the programmer."""
        self.counts[KEYS[key]] += amount

    def set(self, key: str, value: float) -> None:
        """Set a count that is kept elsewhere."""
        self.counts[KEYS[key]] = value

    def compared(self, rows: int, indices: NDArray[np.float64]) -> None:
        """Set what the columns of the latest rows look like beside the training rows: an index for each, (m,)."""
        self.set("drift_window_rows", rows)
        self.set("drift_largest_psi", float(indices.max()))
        self.columns = len(indices)
        first, some = KEYS["column_psi/0"], indices[:MOST_COLUMNS]
        self.counts[first : first + len(some)] = some

    def answered(self, status: int, seconds: float) -> None:
        """Count an answer of /invocations."""
        self.add(f"requests_total/{status}")
        bound = next((b for b in BUCKETS if seconds <= b), "+Inf")
        self.add(f"seconds/{bound}")
        self.add("seconds_sum", seconds)

    def text(self, facts: Mapping[str, str]) -> str:
        """Return all workers' counts in Prometheus's text format.

        Args:
            facts: Labels of the model.
        """
        total, workers = self._total()
        value = {key: total[i] for key, i in KEYS.items()}
        lines: list[str] = []

        def family(name: str, kind: str, text: str) -> str:
            lines.extend((f"# HELP {PREFIX}_{name} {text}", f"# TYPE {PREFIX}_{name} {kind}"))
            return f"{PREFIX}_{name}"

        for name, text in _COUNTERS.items():
            lines.append(f"{family(name, 'counter', text)} {value[name]:.0f}")
        for name, (label, values, text) in _LABELLED.items():
            full = family(name, "counter", text)
            lines += [f'{full}{{{label}="{v}"}} {value[f"{name}/{v}"]:.0f}' for v in values]
        full, count = family("request_seconds", "histogram", "Seconds from a request's headers to its answer."), 0.0
        for bound in (*BUCKETS, "+Inf"):
            count += value[f"seconds/{bound}"]
            lines.append(f'{full}_bucket{{le="{bound}"}} {count:.0f}')
        lines += [f"{full}_sum {value['seconds_sum']:.6f}", f"{full}_count {count:.0f}"]
        for name, text in _GAUGES.items():
            lines.append(f"{family(name, 'gauge', text)} {value[name]:.0f}")
        for name, text in _LARGEST.items():
            lines.append(f"{family(name, 'gauge', text)} {value[name]:.6g}")
        if shown := min(self.columns, MOST_COLUMNS):
            text = "The same of each column, by its position in the model; names are not told."
            full = family("drift_column_psi", "gauge", text)
            lines += [f'{full}{{column="{i}"}} {value[f"column_psi/{i}"]:.6g}' for i in range(shown)]
        memory = sum(map(_resident, workers))
        lines.append(f"{family('resident_bytes', 'gauge', 'Memory of the workers, bytes.')} {memory}")
        labels = ",".join(f'{key}="{_escaped(text)}"' for key, text in facts.items())
        lines.append(f"{family('model_info', 'gauge', 'The model that answers.')}{{{labels}}} 1")
        return "\n".join(lines) + "\n"

    def _total(self) -> tuple[NDArray[np.float64], list[int]]:
        if self.folder is None:
            return self.counts, [os.getpid()]
        total, alive = np.zeros(len(KEYS)), []
        for path in self.folder.glob("*.counts"):
            counts, process = np.fromfile(path, dtype=np.float64), int(path.stem)
            if len(counts) != len(KEYS):
                continue  # just being made
            if _lives(process):
                alive.append(process)
            else:  # what a dead worker has counted stays counted; it is doing nothing any more
                counts[_FIRST_GAUGE:] = 0
            largest = np.maximum(total[_FIRST_LARGEST:], counts[_FIRST_LARGEST:])
            total += counts
            total[_FIRST_LARGEST:] = largest
        return total, alive


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def _resident(process: int) -> int:
    """Bytes of memory of a process; 0 where the system has no /proc."""
    if platform.system() != "Linux":
        return 0
    try:
        return int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
