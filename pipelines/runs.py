"""One run of the comparison: its identity, its measurement, and where its result is kept.

A result is a small JSON file of its own, written under a temporary name and renamed, so that an interrupted comparison
goes on where it stopped. Its name is a digest of all that the result depends on.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from contenders import Contender, timed, warm_up
from labelled import PROTOCOLS, Labelled, LabelledTable
from sklearn.metrics import average_precision_score, roc_auc_score
from workers import Outcome

REVISION = 1
"""Part of each result's identity: to be raised when a protocol changes, or how a peer is made."""

FIGURES = (
    "auroc",
    "average_precision",
    "fit_seconds",
    "score_seconds",
    "train_rows",
    "test_rows",
    "anomalies",
    "columns",
)


@dataclass(frozen=True)
class Run:
    """A contender on a table, by a protocol, with a seed."""

    table: LabelledTable
    protocol: str
    seed: int
    contender: Contender

    @property
    def identity(self) -> dict[str, Any]:
        """All that the result depends on, JSON-able."""
        return {
            "revision": REVISION,
            "table": self.table.name,
            "table_digest": self.table.digest,
            "protocol": self.protocol,
            "seed": self.seed,
            "detector": self.contender.name,
            "settings": dict(self.contender.settings),
            "versions": dict(self.contender.versions),
        }

    @property
    def key(self) -> str:
        """A digest of the identity."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:24]


def measure(run: Run) -> dict[str, float]:
    """Fit, score and judge: the figures of one run.

    Raises:
        ValueError: A score is not finite.
    """
    warm_up(run.contender.name)
    train, (test, truth) = PROTOCOLS[run.protocol](*_loaded(run.table), run.seed)
    done = timed(run.contender, train, None if run.protocol == "contaminated" else test, run.seed)
    strange = int((~np.isfinite(done.scores)).sum())
    if strange or done.scores.shape != truth.shape:
        raise ValueError(f"{len(truth)} finite scores expected, got {done.scores.shape}, {strange} of them not finite")
    return {
        "auroc": float(roc_auc_score(truth, done.scores)),
        "average_precision": float(average_precision_score(truth, done.scores)),
        "fit_seconds": done.fit_seconds,
        "score_seconds": done.score_seconds,
        "train_rows": len(train),
        "test_rows": len(test),
        "anomalies": int(truth.sum()),
        "columns": train.shape[1],
    }


@functools.lru_cache(maxsize=1)
def _loaded(table: LabelledTable) -> Labelled:
    return table.load()


@dataclass(frozen=True)
class Store:
    """Results in a folder, one file each."""

    folder: Path

    def forget(self) -> None:
        """Remove all results."""
        for path in self.folder.glob("*.json"):
            path.unlink()

    def add(self, run: Run, outcome: Outcome, *, limit: float) -> None:
        """Keep a result, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        result = {"status": outcome.status, "reason": outcome.reason, "time_limit": limit, **(outcome.value or {})}
        path = self._path(run)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(run.identity | result, sort_keys=True, indent=1), encoding="utf-8")
        part.replace(path)

    def get(self, run: Run) -> dict[str, Any] | None:
        """Return a result, None where there is none."""
        try:
            found: dict[str, Any] = json.loads(self._path(run).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return found

    def is_done(self, run: Run, *, limit: float, retry: bool = False) -> bool:
        """Whether there is nothing to be gained by trying again: more time may help, and so may another process."""
        found = self.get(run)
        if found is None or found["status"] == "died" or (retry and found["status"] != "ok"):
            return False
        return found["status"] != "timeout" or found["time_limit"] >= limit

    def frame(self, runs: Sequence[Run]) -> pd.DataFrame:
        """Return one row for each run that has a result; settings and versions are JSON text."""
        rows = []
        for run in runs:
            found = self.get(run)
            if found is not None:
                texts = {name: json.dumps(found[name], sort_keys=True) for name in ("settings", "versions")}
                rows.append({"label": run.contender.label, **dict.fromkeys(FIGURES, np.nan), **found, **texts})
        return pd.DataFrame(rows)

    def _path(self, run: Run) -> Path:
        return self.folder / f"{run.key}.json"
