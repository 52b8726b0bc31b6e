"""Labelled tables, and the two protocols by which detectors are compared on them.

One-class: half of the normal rows are learnt; the other half and all anomalies are scored. Contaminated: all rows are
learnt and all are scored, anomalies included. Tables of more than 10,000 rows are drawn down to that many first.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer

from anomaly_vae.errors import ConfigError, SchemaError, UnreadableDataError

LARGEST_TABLE = 10_000
BUILT_IN = "breast_cancer"

Rows = NDArray[np.float64]
Labelled = tuple[Rows, NDArray[np.bool_]]


@dataclass(frozen=True)
class LabelledTable:
    """A table in a file NAME.npz or NUMBER_NAME.npz with X (n, m) and y (n,), 1 = anomaly; or scikit-learn's.

    Attributes:
        name: NAME.
        path: The file; None for scikit-learn's breast-cancer table.
        digest: SHA-256 of the file.
    """

    name: str
    path: Path | None
    digest: str

    def load(self) -> Labelled:
        """Read rows and labels.

        Raises:
            UnreadableDataError: The file does not hold X and y.
            SchemaError: X and y do not fit together, or there are not rows of both kinds.
        """
        if self.path is None:
            cancer = load_breast_cancer()
            return cancer.data, cancer.target == 0
        try:
            with np.load(self.path) as arrays:
                x, y = arrays["X"].astype(np.float64), arrays["y"]
        except (OSError, ValueError, KeyError) as error:
            raise UnreadableDataError(f"a table must be .npz with X and y, got {self.path.name}: {error}.") from error
        if x.ndim != 2 or y.shape != (len(x),) or not np.isin(y, (0, 1)).all() or len(np.unique(y)) != 2:
            raise SchemaError(
                f"a table must have X (n, m) and y (n,) of zeros and ones, both present, got X {x.shape} and y "
                f"{y.shape} in {self.path.name}. Mark anomalies 1."
            )
        return x, y == 1


def find_tables(folder: Path | None, wanted: Sequence[str] = ()) -> list[LabelledTable]:
    """Return the tables of a folder by name, or the built-in one without a folder.

    Args:
        folder: Folder of .npz files.
        wanted: Names of tables, in any case, with or without their number; all by default.

    Raises:
        UnreadableDataError: There is no table in the folder.
        ConfigError: A wanted table is not there.
    """
    if folder is None:
        found = {BUILT_IN: [LabelledTable(BUILT_IN, None, "scikit-learn")]}
    else:
        found = {}
        for path in sorted(folder.glob("*.npz")):
            short = re.sub(r"^\d+_", "", path.stem)
            table = LabelledTable(short, path, hashlib.sha256(path.read_bytes()).hexdigest())
            found.setdefault(short, []).append(table)
    # two files of one short name keep their whole names
    tables = [
        table if len(same) == 1 or table.path is None else LabelledTable(table.path.stem, table.path, table.digest)
        for same in found.values()
        for table in same
    ]
    if not tables:
        raise UnreadableDataError(f"the folder must hold tables NAME.npz, got none in {folder}. Give another --data.")
    if not wanted:
        return sorted(tables, key=lambda table: table.name.lower())
    by_name = {table.name.lower(): table for table in tables}
    by_name |= {table.path.stem.lower(): table for table in tables if table.path}
    for name in wanted:
        if name.lower() not in by_name:
            known = ", ".join(sorted((table.name for table in tables), key=str.lower))
            raise ConfigError(f"--table must be one of {known}, got {name!r}.")
    return list(dict.fromkeys(by_name[name.lower()] for name in wanted))


def one_class(x: Rows, y: NDArray[np.bool_], seed: int) -> tuple[Rows, Labelled]:
    """Half of the normal rows to train on; the other half and all anomalies to test on."""
    rng = np.random.default_rng(seed)
    x, y = _drawn_down(x, y, rng)
    normal = rng.permutation(np.flatnonzero(~y))
    train = normal[: len(normal) // 2]
    test = np.setdiff1d(np.arange(len(x)), train)
    return x[train], (x[test], y[test])


def contaminated(x: Rows, y: NDArray[np.bool_], seed: int) -> tuple[Rows, Labelled]:
    """All rows to train on, and the same rows to test on."""
    x, y = _drawn_down(x, y, np.random.default_rng(seed))
    return x, (x, y)


def _drawn_down(x: Rows, y: NDArray[np.bool_], rng: np.random.Generator) -> Labelled:
    if len(x) <= LARGEST_TABLE:
        return x, y
    rows = rng.choice(len(x), LARGEST_TABLE, replace=False)
    return x[rows], y[rows]


PROTOCOLS: dict[str, Callable[[Rows, NDArray[np.bool_], int], tuple[Rows, Labelled]]] = {
    "one-class": one_class,
    "contaminated": contaminated,
}
