"""The census table Adult, and anomalies planted in rows of it.

Three kinds: cells exchanged with another row, so that every column keeps its distribution and only their combination is
strange; combinations that cannot be; and values out of range. Each planted row is known by the cells that tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from anomaly_vae.errors import UnreadableDataError

FILES = ("adult.data", "adult.test")
COLUMNS = (
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship", "race",
    "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country",
)  # fmt: skip
"""All columns but the label, income. fnlwgt, the weight of the row in the survey, stays, as a user would leave it:
noise to every detector. Nothing is planted in it, for no detector could tell."""
TELLING = tuple(name for name in COLUMNS if name != "fnlwgt")

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Planted:
    """Rows with anomalies.

    Attributes:
        frame: The rows, n.
        cells: The cells without which a row would not be anomalous, (n, m).
    """

    frame: pd.DataFrame
    cells: Mask


def load(folder: Path) -> pd.DataFrame:
    """Read both files without the label; a missing cell is None or NaN.

    Raises:
        UnreadableDataError: A file is not what it should be.
    """
    parts = []
    for name in FILES:
        try:
            part = pd.read_csv(folder / name, header=None, skipinitialspace=True, na_values="?", comment="|")
        except (OSError, ValueError) as error:
            raise UnreadableDataError(f"{name} must be readable CSV, got an error: {error}.") from error
        if part.shape[1] != len(COLUMNS) + 1:
            raise UnreadableDataError(f"{name} must have {len(COLUMNS) + 1} columns, got {part.shape[1]}.")
        parts.append(part.iloc[:, :-1].set_axis(list(COLUMNS), axis=1))
    return pd.concat(parts, ignore_index=True)


def swapped(frame: pd.DataFrame, rng: np.random.Generator, *, spared: str | None = None) -> Planted:
    """Give 2 or 3 cells of each row the values of another row, such as differ.

    Args:
        frame: Rows (n, m).
        rng: Source of randomness.
        spared: A column to leave alone.
    """
    n = len(frame)
    values, cells = frame.to_numpy(dtype=object), np.zeros(frame.shape, dtype=bool)
    others = values[(np.arange(n) + rng.integers(1, n, size=n)) % n]
    usable = np.array([name in TELLING and name != spared for name in frame.columns])
    differ = (values != others) & frame.notna().to_numpy() & ~pd.isna(others) & usable
    for i in range(n):
        chosen = rng.permutation(np.flatnonzero(differ[i]))[: rng.integers(2, 4)]
        values[i, chosen], cells[i, chosen] = others[i, chosen], True
    changed = pd.DataFrame(values, columns=frame.columns, index=frame.index).astype(frame.dtypes.to_dict())
    return Planted(changed, cells)


RULES: tuple[Mapping[str, Any], ...] = (
    {"relationship": "Husband", "sex": "Female"},
    {"relationship": "Wife", "sex": "Male"},
    {"relationship": "Husband", "marital-status": "Never-married"},
    {"relationship": "Wife", "marital-status": "Divorced"},
    {"relationship": "Own-child", "age": (70, 90)},
    {"education": "Doctorate", "education-num": (1, 6)},
    {"education": "5th-6th", "education-num": (12, 16)},
    {"education": "HS-grad", "education-num": (15, 16)},
    {"age": (17, 20), "education": "Doctorate", "education-num": (16, 16)},
    {"age": (17, 20), "marital-status": "Widowed"},
    {"workclass": "Never-worked", "hours-per-week": (60, 80)},
)
"""Combinations that cannot be, or hardly; a pair is a range to draw a whole number from."""

RANGES: tuple[Mapping[str, Any], ...] = (
    {"age": (140, 160)},
    {"age": (-40, -1)},
    {"hours-per-week": (169, 240)},
    {"education-num": (25, 35)},
    {"capital-gain": (999_990, 999_990)},
    {"capital-loss": (43_560, 43_560)},
)
"""Values out of range: impossible ages, more hours than a week has, ten times the largest gain and loss."""


def _by_rules(rules: tuple[Mapping[str, Any], ...]) -> Callable[..., Planted]:
    def plant(frame: pd.DataFrame, rng: np.random.Generator, *, spared: str | None = None) -> Planted:
        """Apply a rule to each row, drawn from those that leave the spared column alone."""
        usable = [rule for rule in rules if spared not in rule]
        values, cells = frame.to_numpy(dtype=object), np.zeros(frame.shape, dtype=bool)
        for i, drawn in enumerate(rng.integers(len(usable), size=len(frame))):
            for name, value in usable[drawn].items():
                j = frame.columns.get_loc(name)
                values[i, j] = int(rng.integers(value[0], value[1] + 1)) if isinstance(value, tuple) else value
                cells[i, j] = True
        changed = pd.DataFrame(values, columns=frame.columns, index=frame.index).astype(frame.dtypes.to_dict())
        return Planted(changed, cells)

    return plant


PLANTS: dict[str, Callable[..., Planted]] = {
    "swapped cells": swapped,
    "impossible combinations": _by_rules(RULES),
    "out of range": _by_rules(RANGES),
}


def hidden(frame: pd.DataFrame, rate: float, rng: np.random.Generator, *, kept: Mask | None = None) -> pd.DataFrame:
    """Return the rows with cells made missing at random.

    Args:
        frame: Rows (n, m).
        rate: Share of the cells.
        rng: Source of randomness.
        kept: Cells to leave, (n, m).
    """
    gone = rng.random(frame.shape) < rate
    return frame.mask(gone if kept is None else gone & ~kept)


def kept_alike(planted: Mask, n: int, rng: np.random.Generator) -> Mask:
    """Return for n normal rows the cells to keep, drawn from those of planted rows.

    A planted row keeps the cells that tell, or it would be none. So as many are kept of a normal row: otherwise what is
    missing would betray the label.
    """
    return planted[rng.integers(len(planted), size=n)]
