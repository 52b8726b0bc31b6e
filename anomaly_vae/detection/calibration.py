"""What a score means: split-conformal p-values, thresholds and false discovery control.

References:
    Vovk, Gammerman & Shafer (2005), Algorithmic Learning in a Random World.
    Bates et al. (2023), Testing for outliers with conformal p-values, arXiv:2104.08279.
    Benjamini & Hochberg (1995), Controlling the false discovery rate.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import CalibrationError, ConfigError, ShapeError


@dataclass(frozen=True)
class Calibration:
    """Sorted scores of normal rows held out of training, for each number of posterior samples.

    Attributes:
        scores: k -> ascending scores, (c,), the same c rows for every k.
        groups: Group -> the scores of its rows alone, likewise (Mondrian calibration): with them the false-alarm
            rate is promised within each group, not only over all of them.

    Example:
        >>> calibration = Calibration({1: np.arange(99.0)})
        >>> calibration.p_values([98.5, 49.0], k=1).tolist()
        [0.01, 0.51]
        >>> calibration.threshold(0.05, k=1)
        94.0
    """

    scores: Mapping[int, NDArray[np.float64]]
    groups: Mapping[str, Mapping[int, NDArray[np.float64]]] = field(default_factory=dict)

    @classmethod
    def of(cls, scores: Mapping[int, NDArray[np.float64]], groups: ArrayLike | None = None) -> Calibration:
        """Make a calibration of scores, for each k (c,), in any order.

        Args:
            scores: k -> scores of normal rows.
            groups: Group of each row, (c,), for a calibration of each group by itself.
        """
        apart = {}
        if groups is not None:
            names = named_groups(groups, len(next(iter(scores.values()))))
            apart = {name: {k: np.sort(v[names == name]) for k, v in scores.items()} for name in sorted(set(names))}
        return cls({k: np.sort(v) for k, v in scores.items()}, apart)

    def within(self, group: str) -> Calibration:
        """Return the calibration of one group.

        Raises:
            CalibrationError: The group has no calibration rows.
        """
        if group not in self.groups:
            known = ", ".join(sorted(self.groups)[:10]) or "there are none"
            raise CalibrationError(
                f"a group must be one with calibration rows ({known}), got {str(group)!r}. "
                "Calibrate with rows of it, or leave groups out.",
                group=group,
            )
        return Calibration(self.groups[group])

    def grouped_p_values(self, scores: ArrayLike, groups: ArrayLike, *, k: int) -> NDArray[np.float64]:
        """Return each score's p-value among the calibration rows of its own group, (n,).

        For a row exchangeable with those of its group, P(p <= alpha) <= alpha.

        Args:
            scores: Shape (n,).
            groups: Group of each row, (n,).
            k: Posterior samples.

        Raises:
            CalibrationError: A group has no calibration rows, or k is not calibrated for.

        References:
            Vovk et al. (2005), section 4.5: Mondrian conformal predictors.
        """
        values = np.asarray(scores, dtype=np.float64)
        names = named_groups(groups, len(values))
        out = np.empty(len(values))
        for name in set(names):
            out[names == name] = self.within(str(name)).p_values(values[names == name], k=k)
        return out

    def grouped_thresholds(self, groups: ArrayLike, alpha: float, *, k: int) -> NDArray[np.float64]:
        """Return the score above which p <= alpha in the group of each row, (n,).

        Raises:
            CalibrationError: A group has too few calibration rows, none, or k is not calibrated for.
        """
        names = named_groups(groups)
        out = np.empty(len(names))
        for name in set(names):
            try:
                out[names == name] = self.within(str(name)).threshold(alpha, k=k)
            except CalibrationError as error:
                raise CalibrationError(f"group {str(name)!r}: {error}", group=name, **error.facts) from error
        return out

    @property
    def rows(self) -> int:
        """Number of calibration rows, c."""
        return len(next(iter(self.scores.values()), ()))

    def _of(self, k: int) -> NDArray[np.float64]:
        if k not in self.scores:
            raise CalibrationError(
                f"k must be one the model is calibrated for ({', '.join(map(str, sorted(self.scores)))}), got {k}. "
                "Choose one of them, or calibrate again with another calibration_k.",
                k=k,
            )
        return self.scores[k]

    def p_values(self, scores: ArrayLike, *, k: int) -> NDArray[np.float64]:
        """Return (1 + number of calibration scores at least as high) / (c + 1) of each score, (n,).

        For a row exchangeable with the calibration rows, P(p <= alpha) <= alpha.

        Raises:
            CalibrationError: No calibration for k.
        """
        held = self._of(k)
        higher = len(held) - np.searchsorted(held, np.asarray(scores, dtype=np.float64), side="left")
        return np.asarray((1.0 + higher) / (len(held) + 1.0), dtype=np.float64)

    def described(self) -> dict[str, Any]:
        """Return its facts, JSON-able: rows, numbers of samples, the least p-value there is."""
        return {
            "rows": self.rows,
            "k": sorted(self.scores),
            "least_p_value": 1 / (self.rows + 1) if self.rows else None,
        }

    def threshold(self, alpha: float, *, k: int) -> float:
        """Return the score above which p <= alpha.

        Raises:
            CalibrationError: No calibration for k, or too few calibration rows for any p-value to be <= alpha.
        """
        held = self._of(k)
        allowed = math.floor(alpha * (len(held) + 1) * (1 + 1e-12))
        if allowed < 1:
            needed = math.ceil(min(1 / alpha, sys.float_info.max) * (1 - 1e-12)) - 1
            raise CalibrationError(
                f"alpha = {alpha:g} must have at least {needed} calibration rows, got {len(held)}. "
                "Calibrate with more rows, or ask for a larger alpha.",
                needed=needed,
                rows=len(held),
            )
        return float(held[len(held) - allowed])


def named_groups(groups: ArrayLike, rows: int | None = None) -> NDArray[np.str_]:
    """Return the names of groups, (n,), text.

    Raises:
        ShapeError: There are not as many as rows.
    """
    names = np.asarray(groups).astype(str)
    if names.ndim != 1 or (rows is not None and len(names) != rows):
        raise ShapeError(
            f"groups must be one for each of the rows, {rows or 'n'}, got shape {names.shape}. Give as many."
        )
    return names


def discovery_cutoff(p_values: ArrayLike, counts: ArrayLike, *, q: float) -> float:
    """Return the largest p-value that Benjamini and Hochberg's rule flags, 0 if none.

    Args:
        p_values: Distinct p-values, (u,).
        counts: How many rows have each, (u,). Counts of the few distinct conformal p-values are all that a stream
            has to remember.
        q: Wanted false discovery rate.

    Example:
        >>> discovery_cutoff([0.01, 0.5], [2, 8], q=0.1)
        0.01
    """
    p, c = np.asarray(p_values, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    order = np.argsort(p)
    p, c = p[order], c[order]
    passes = p * c.sum() <= q * np.cumsum(c) * (1 + 1e-12)
    return float(p[passes][-1]) if passes.any() else 0.0


def judged(
    calibration: Calibration,
    scores: NDArray[np.float64],
    groups: ArrayLike | None,
    *,
    alpha: float,
    fdr: float | None,
    k: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64] | float]:
    """Return p-values (n,), and the threshold or that of each row, (n,).

    Args:
        calibration: Scores of held-out normal rows.
        scores: Of the rows, (n,).
        groups: Group of each row, (n,), if each is judged by its own.
        alpha: False-alarm rate to flag at.
        fdr: False discovery rate to flag under instead.
        k: Posterior samples of the scores.
    """
    if groups is None:
        p_values = calibration.p_values(scores, k=k)
    else:
        p_values = calibration.grouped_p_values(scores, groups, k=k)
    cutoff = alpha if fdr is None else discovery_cutoff(*np.unique(p_values, return_counts=True), q=fdr)
    if not cutoff:
        return p_values, np.inf
    if groups is None:
        return p_values, calibration.threshold(cutoff, k=k)
    if fdr is None:
        return p_values, calibration.grouped_thresholds(groups, cutoff, k=k)
    # a group of few calibration rows has no p-value this small, and so nothing to flag
    names = named_groups(groups)
    few = np.array([1 / (calibration.within(name).rows + 1) > cutoff * (1 + 1e-12) for name in names])
    thresholds = np.full(len(names), np.inf)
    thresholds[~few] = calibration.grouped_thresholds(names[~few], cutoff, k=k)
    return p_values, thresholds


def check_rates(alpha: float, fdr: float | None) -> None:
    """Check a promised false-alarm rate and a false discovery rate.

    Raises:
        ConfigError: One is not between 0 and 1.
    """
    for name, value in (("alpha", alpha), ("fdr", fdr)):
        if value is not None and not 0 < value < 1:
            raise ConfigError(f"{name} must be a number between 0 and 1, got {value!r}. Choose for example 0.05.")
