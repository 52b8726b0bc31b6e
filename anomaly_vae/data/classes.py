"""The classes that a conditional model is told: a column beside the data, and each class's number.

Classes are compared as text, so that 7 from an array, 7.0 from a column with gaps and "7" from JSON are one. A cell
without a class, or with one that was not trained on, has no number: it is a fault, as an unreadable image is.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import ConfigError, SchemaError
from .cells import text_of

MOST_CLASSES = 256
"""Classes at most: a class's number is one byte beside an image's levels."""
_SHOWN = 8

Fault = tuple[int, str]
"""Position of a row and the rule it broke: "must ..., got ...". """


@dataclass(frozen=True)
class Classes:
    """What a conditional model knows of classes.

    Attributes:
        column: Name of their column.
        names: Each class's text; its number is its place here.
        counts: Rows of each that were trained on, at least 1.

    Example:
        >>> frame = pd.DataFrame({"digit": [7, 1, 7, 7]})
        >>> known = Classes.fit(frame, "digit")
        >>> known.names, known.counts
        (('1', '7'), (1, 3))
        >>> known.numbers(pd.DataFrame({"digit": ["7", "2"]}))[0].tolist()
        [1, -1]
    """

    column: str
    names: tuple[str, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        right = isinstance(self.column, str) and bool(self.column) and 2 <= len(self.names) <= MOST_CLASSES
        right = right and all(isinstance(name, str) for name in self.names) and len(set(self.names)) == len(self.names)
        whole = all(isinstance(count, int) and not isinstance(count, bool) and count > 0 for count in self.counts)
        if not right or not whole or len(self.counts) != len(self.names):
            raise SchemaError(
                f"classes must be from 2 to {MOST_CLASSES} of different names, each with its training rows, got "
                f"{len(self.names)} names and {len(self.counts)} counts in {self.column!r}. Save the model again."
            )

    @classmethod
    def fit(cls, frame: pd.DataFrame, column: str, *, rows: NDArray[np.intp] | None = None) -> Self:
        """Find the classes of a table's rows.

        Args:
            frame: All rows, n.
            column: The column of classes.
            rows: Positions of the training rows; by default all.

        Raises:
            SchemaError: The column is absent, a row has no class, there are fewer than 2 classes or more than
                `MOST_CLASSES`, or a class has no training row.
        """
        texts = _texts(frame, column)
        absent = [i for i, text in enumerate(texts) if text is None]
        if absent:
            raise SchemaError(
                f"each row to train on must have a class in {column!r}, got none in row {frame.index[absent[0]]!r} "
                f"({len(absent)} of {len(texts)}). Leave these out, or give them one.",
                column=column,
            )
        found = np.array(texts, dtype=object)
        trained = dict(zip(*np.unique(found if rows is None else found[rows], return_counts=True), strict=True))
        names = sorted(set(texts), key=_by_number)  # type: ignore[arg-type]
        if not 2 <= len(names) <= MOST_CLASSES:
            hint = "Leave the condition out." if len(names) < 2 else f"Is {column!r} a column of classes?"
            raise SchemaError(
                f"a condition must have from 2 to {MOST_CLASSES} classes, got {len(names)} in {column!r}. {hint}",
                column=column,
            )
        without = [name for name in names if name not in trained]
        if without:
            raise SchemaError(
                f"each class must have rows to train on, got none of {without[0]!r} among the {len(texts)} rows that "
                "are left after those held out. Give more of it, or leave it out.",
                column=column,
            )
        return cls(column, tuple(map(str, names)), tuple(int(trained[name]) for name in names))

    def numbers(self, frame: pd.DataFrame) -> tuple[NDArray[np.int64], list[Fault]]:
        """Return each row's class by its number, (n,), -1 where it has none, and those rows with the reason.

        Raises:
            SchemaError: The column is absent.
        """
        place = {name: i for i, name in enumerate(self.names)}
        texts = _texts(frame, self.column)
        found = np.array([-1 if text is None else place.get(text, -1) for text in texts], dtype=np.int64)
        return found, [(i, self._unknown(texts[i])) for i in np.flatnonzero(found < 0).tolist()]

    def number(self, name: Any) -> int:
        """Return the number of one class.

        Raises:
            ConfigError: The model does not know it.
        """
        text = text_of(name)
        if text not in self.names:
            raise ConfigError(f"rows given {self.column!r} {self._unknown(text)}", wanted=text)
        return self.names.index(text)

    def texts(self, numbers: NDArray[Any]) -> NDArray[np.object_]:
        """Return the names of classes by their numbers, (n,)."""
        return np.array(self.names, dtype=object)[np.asarray(numbers, dtype=np.int64)]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able facts; `from_dict` is the inverse."""
        return {**asdict(self), "names": list(self.names), "counts": list(self.counts)}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Self:
        """Rebuild from `to_dict`.

        Raises:
            SchemaError: The facts are not those of classes.
        """
        known = {"column", "names", "counts"}
        if not isinstance(facts, Mapping) or set(facts) != known:
            raise SchemaError(f"stored classes must have {sorted(known)}, got another. Save the model again.")
        return cls(facts["column"], tuple(facts["names"]), tuple(facts["counts"]))

    def _unknown(self, text: str | None) -> str:
        shown = ", ".join(map(repr, self.names[:_SHOWN])) + (", ..." if len(self.names) > _SHOWN else "")
        near = difflib.get_close_matches(text or "", self.names, n=1)
        hint = f" Is it {near[0]!r}?" if near else ""
        got = "none" if text is None else repr(text)
        return (
            f"must be of a class that the model was trained on ({shown}), got {got}."
            f"{hint or ' Train with it, or leave it out.'}"
        )


def _by_number(name: str) -> tuple[bool, float, str]:
    """Sort key: whole numbers by value before other texts."""
    number = int(name) if name.isascii() and name.isdigit() and len(name) < 16 else None
    return number is None, number or 0, name


def _texts(frame: pd.DataFrame, column: str) -> Sequence[str | None]:
    """Return each cell's text, None where it is missing.

    Raises:
        SchemaError: The column is absent, or there twice.
    """
    matches = [i for i, name in enumerate(frame.columns) if str(name) == column]
    if len(matches) != 1:
        got = "none" if not matches else f"{len(matches)} of that name"
        shown = ", ".join(repr(str(name)) for name in frame.columns[:_SHOWN])
        raise SchemaError(
            f"rows of a conditional model must come with the column {column!r} of their classes, got {got} among "
            f"{shown or 'no columns'}. Add each row's class.",
            column=column,
            absent=() if matches else (column,),
        )
    cells = frame.iloc[:, matches[0]]
    missing = cells.isna().to_numpy()
    return [None if gone else text_of(cell) for cell, gone in zip(cells.tolist(), missing, strict=True)]
