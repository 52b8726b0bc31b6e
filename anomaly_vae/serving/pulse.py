"""What one worker's answers say about drift: the martingale of their p-values, kept up some hundred rows at a time."""

from __future__ import annotations

from ..detection.detector import Detector
from ..evaluation.martingale import Martingale, ranks_of_p_values
from ..options import MonitorConfig

AT_ONCE = 256
"""Rows taken together: one by one they would cost more than their scores do."""


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
