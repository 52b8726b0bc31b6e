"""What one worker's requests say about drift, kept up some hundred rows at a time.

`Pulse` follows the p-values of the answers by a martingale, `Window` compares the columns of the latest rows with the
training rows.
"""

from __future__ import annotations

import threading
from collections import deque
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from ..data.profile import Profile
from ..detection.detector import Detector
from ..evaluation.drift import stability_indices
from ..evaluation.martingale import Martingale, ranks_of_p_values
from ..options import MonitorConfig

AT_ONCE = 256
"""Rows taken together: one by one they would cost more than their scores do."""
BLOCKS = 8
"""Blocks of that many rows which a window looks back on."""
MOST_OF_ONE = 64
"""Rows of one request that count, evenly spaced: a window is of many requests, and a large one costs it no more."""


class Pulse:
    """Follows answers; silent for a model without calibration rows.

    Rows count as they are asked for: a client that repeats itself is a change. Only the model's own k counts, since
    ranks among the calibration rows are of one k.

    Args:
        detector: The model that answers.
    """

    def __init__(self, detector: Detector) -> None:
        self._rows = detector.calibration.rows
        self._martingale = Martingale(self._rows, level=MonitorConfig.level) if self._rows else None
        self._waiting: list[float] = []

    def add(self, p_values: list[float]) -> bool:
        """Take the p-values of an answer; return whether there is something new to tell."""
        self._waiting += p_values
        return len(self._waiting) >= AT_ONCE

    def read(self) -> tuple[float, float]:
        """Return log capital and the number of alarms so far, of all rows taken."""
        if self._martingale is None:
            return 0.0, 0.0
        self._martingale.update(ranks_of_p_values(self._waiting, self._rows))
        self._waiting = []
        evidence = self._martingale.evidence()
        return evidence.log_capital, float(len(evidence.alarms))


class Window:
    """Counts the cells of the latest rows in the bins of the training rows' profile; keeps no cell beyond a block.

    Threads that score give rows; another one counts them (see `claim`).

    Args:
        profile: Of the training rows.
    """

    def __init__(self, profile: Profile) -> None:
        self._trained = profile
        self._lock = threading.Lock()
        self._waiting: list[NDArray[np.floating]] = []
        self._rows = 0
        self._blocks: deque[Profile] = deque(maxlen=BLOCKS)

    def take(self, x: NDArray[np.floating]) -> None:
        """Take encoded rows, (n, m), or some of them."""
        some = x[:: -(-len(x) // MOST_OF_ONE) or 1].copy()
        with self._lock:
            self._waiting.append(some)
            self._rows += len(some)

    def claim(self) -> list[NDArray[np.floating]]:
        """Return the rows to be counted, once there are enough for a block; the caller then owns them."""
        if self._rows < AT_ONCE:
            return []
        with self._lock:
            waiting, self._waiting, self._rows = self._waiting, [], 0
        return waiting

    def count(self, rows: list[NDArray[np.floating]]) -> tuple[int, NDArray[np.float64]]:
        """Count a block; return the window's rows and each column's stability index, (m,)."""
        block = self._trained.of(np.concatenate(rows))
        with self._lock:
            self._blocks.append(block)
            seen = list(self._blocks)
        whole = reduce(add, seen)
        return whole.rows, stability_indices(self._trained, whole)
