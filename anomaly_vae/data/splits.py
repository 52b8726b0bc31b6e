"""Splits that hold out what a model will meet: the latest rows, or whole groups.

Rows split at random are exchangeable with the rows beside them, not with those of tomorrow or of a new machine: a
false-alarm rate that such a calibration promises is one of yesterday's rows, on machines that the model knows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import SchemaError
from .cells import numbers, row_label, times


def split_frame(
    frame: pd.DataFrame, *, by: str | None, group: str | None, fractions: Mapping[str, float], seed: int = 0
) -> dict[str, NDArray[np.intp]]:
    """Split rows into named parts by the time, or the group, that a column tells.

    Args:
        frame: Rows, n.
        by: Column of times or numbers that grow with time: the latest rows become the first part, those before them the
            next. With `group` too, whole groups, those that end last.
        group: Column whose values keep their rows together. Which groups are held out is drawn, if there is no `by`.
        fractions: Share of each held-out part, about; what is left is the part "train".
        seed: Seed.

    Returns:
        Sorted row positions of each part.

    Raises:
        SchemaError: A column is absent or has missing cells, or groups are too large to hold one out.

    Example:
        >>> frame = pd.DataFrame({"day": [3, 1, 4, 2]})
        >>> split = split_frame(frame, by="day", group=None, fractions={"calibration": 0.25})
        >>> {name: rows.tolist() for name, rows in split.items()}
        {'calibration': [2], 'train': [0, 1, 3]}
    """
    if group is None:
        unit = np.arange(len(frame))
    else:
        unit, _ = pd.factorize(_complete(frame, group, "group_by"))
    sizes = np.bincount(unit)
    if by is None:
        order = np.random.default_rng(seed).permutation(len(sizes))
    else:
        last = np.full(len(sizes), -np.inf)
        np.maximum.at(last, unit, _when(_complete(frame, by, "split_by"), by))
        order = np.argsort(last, kind="stable")[::-1]
    home = np.full(len(sizes), -1)
    for number, (name, fraction) in enumerate(fractions.items()):
        target, held = fraction * len(frame), 0
        for one in order:
            if home[one] >= 0:
                continue
            if held + sizes[one] / 2 <= target:
                home[one], held = number, held + sizes[one]
            elif by is not None:
                break  # nothing earlier may pass it
        if target >= 1 and not held:
            raise SchemaError(
                f"column {group!r} must have groups small enough to hold out {fraction:.0%} of the rows for {name}, "
                f"got {len(sizes)} groups, of up to {sizes.max():,} of {len(frame):,} rows. Hold more out, or use "
                "finer groups.",
                column=group,
            )
    parts = {name: np.flatnonzero(home[unit] == number) for number, name in enumerate(fractions)}
    parts["train"] = np.flatnonzero(home[unit] == -1)
    return parts


def _complete(frame: pd.DataFrame, name: str, setting: str) -> pd.Series:
    if name not in frame.columns:
        raise SchemaError(
            f"{setting} must name a column of the table, got {name!r}. It has "
            f"{', '.join(map(repr, frame.columns[:8]))}.",
            column=name,
        )
    missing = frame[name].isna().to_numpy()
    if missing.any():
        raise SchemaError(
            f"column {name!r} must tell of every row where it belongs, got a missing cell in row "
            f"{row_label(frame[name], missing)!r}. Fill it in or drop the row.",
            column=name,
        )
    return frame[name]


def _when(series: pd.Series, name: str) -> NDArray[np.float64]:
    """Numbers in the order of time, (n,)."""
    try:
        return numbers(series, name)
    except SchemaError:
        return numbers(times(series, name), name)
