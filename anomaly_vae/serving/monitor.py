"""Scored files, and the rows they were made of, watched for drift; what is found goes to MLflow.

Everything is read as a stream: a count for each rank and for each bin of each column is all that is kept.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..data.profile import Profile
from ..data.rows import read_frames
from ..data.schema import Schema
from ..data.sources import PARQUET_SUFFIXES, table_files
from ..detection.calibration import Calibration
from ..detection.detector import Detector
from ..errors import CalibrationError, ConfigError, DataWarning, SchemaError, UnreadableDataError, redacted
from ..evaluation.drift import NO_PROFILE, NO_ROWS, Drift, judge, score_level
from ..evaluation.martingale import Martingale, Ranker
from ..options import MonitorConfig
from ..reporting.figures import drift_curve
from . import tracking
from .streams import stream

BATCH_ROWS = 65_536
MOST_METRICS = 500
"""Columns whose stability index is logged, those that have moved most."""
SCORE, P_VALUE = "anomaly_score", "p_value"


def monitor_files(
    detector: Detector,
    scored: Sequence[str | Path],
    data: Sequence[str | Path] = (),
    config: MonitorConfig | None = None,
) -> Drift:
    """Judge scored files, in order, and the rows that they were made of.

    Args:
        detector: The model that scored them.
        scored: What `batch.score_file` has written: files, or folders of them.
        data: The rows, in any order: CSV or Parquet files, or folders of them. Without them, and with models that have
            no profile of their training rows, the scores alone are judged.
        config: By default `MonitorConfig()`.

    Raises:
        CalibrationError: The model gives no p-values.
        SchemaError: A file has no scores, they are another model's, or the rows do not fit the model.
        UnreadableDataError: A file cannot be read.
    """
    config = config or MonitorConfig()
    notes, seen = [], None
    if data and detector.profile is not None:
        seen = _counted(detector, detector.profile, data)
    elif data or detector.profile is None:
        notes.append(NO_PROFILE)
    else:
        notes.append(NO_ROWS)
    scores = _watched(detector.calibration, scored, level=score_level(config, columns=seen is not None), config=config)
    return judge(scores.evidence(), detector.profile, seen, config, notes=notes)


def log_drift(drift: Drift, uri: str, *, tags: Mapping[str, str] | None = None) -> str | None:
    """Record what was found as a run of the model's experiment, and return the run's id; None for a mere folder.

    Metrics are those of `Drift.metrics` and `psi/COLUMN`; the whole is `drift.json`, the capital `figures/drift.png`.

    Args:
        drift: What was found.
        uri: The model's.
        tags: Of the run.
    """
    try:
        name = tracking.registry_name(uri)
    except ConfigError:
        return None
    with tracking.quiet(), tracking.tracked_run(name, tags) as run_id:
        mlflow.set_tags({"monitored": redacted(uri), "drift": str(drift.alarm).lower()})
        moved = sorted(drift.columns, key=lambda c: -c.psi)[:MOST_METRICS]
        mlflow.log_metrics(drift.metrics() | {f"psi/{re.sub(r'[^A-Za-z0-9_-]', '_', c.name)}": c.psi for c in moved})
        mlflow.log_dict(drift.to_dict(), "drift.json")
        mlflow.log_figure(drift_curve(drift.scores), "figures/drift.png")
        return str(run_id)


def _counted(detector: Detector, bins: Profile, data: Sequence[str | Path]) -> Profile:
    """Return the profile of all rows."""
    assert isinstance(detector.schema, Schema)
    total: Profile | None = None
    for source in data:
        for frame in stream(source, detector.schema, batch_rows=BATCH_ROWS).frames:
            known = [name for name in frame.columns if str(name) in detector.schema.names]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DataWarning)  # scoring has said them
                x = detector.schema.encode(frame[known])
            counts = bins.of(x)
            total = counts if total is None else total + counts
    assert total is not None
    return total


def _watched(
    calibration: Calibration, scored: Sequence[str | Path], *, level: float, config: MonitorConfig
) -> Martingale:
    """Return the martingale of the scores in the files."""
    if not calibration.scores:
        raise CalibrationError("a model must have calibration rows to be watched, got none. Calibrate it first.")
    martingale = Martingale(calibration.rows, level=level, seed=config.seed)
    k: int | None = None
    rank: Ranker | None = None
    for scores, p_values, name in _scores(scored):
        k = _matching(calibration, scores, p_values, k, name)
        rank = rank or Ranker(calibration.scores[k], seed=config.seed)
        martingale.update(rank(scores))
    return martingale


def _matching(
    calibration: Calibration, scores: NDArray[np.float64], p_values: NDArray[np.float64], k: int | None, name: str
) -> int:
    """Return the number of posterior samples with which this calibration has made these p-values."""
    for candidate in sorted(calibration.scores) if k is None else [k]:
        if np.allclose(calibration.p_values(scores, k=candidate), p_values, rtol=1e-9, atol=0.0):
            return candidate
    raise SchemaError(
        f"scored rows must have the p-values that this model gives their scores, got others in {name!r}. Monitor them "
        "with the version that scored them; their column model_version names it."
    )


def _scores(scored: Sequence[str | Path]) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64], str]]:
    """Yield scores, p-values and the file's name, batch by batch."""
    for source in scored:
        for file in table_files(source):
            if file.name.endswith(".errors.csv"):  # a list of what could not be scored
                continue
            for frame in _frames(file):
                absent = [name for name in (SCORE, P_VALUE) if name not in frame.columns]
                if absent:
                    raise SchemaError(
                        f"{file.name!r} must be a file of scores, got one without the column {absent[0]!r}. Score the "
                        "rows first; they themselves are given by --data.",
                        column=absent[0],
                    )
                cells = frame[[SCORE, P_VALUE]].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
                if not np.isfinite(cells).all():
                    raise SchemaError(f"scores and p-values must be finite numbers, got others in {file.name!r}.")
                yield cells[:, 0], cells[:, 1], file.name


def _frames(file: Path) -> Iterator[pd.DataFrame]:
    """Yield a file's rows; of Parquet the two columns alone."""
    if not file.name.lower().endswith(PARQUET_SUFFIXES):
        yield from read_frames(file, batch_rows=BATCH_ROWS)
        return
    try:
        with pq.ParquetFile(file) as table:
            wanted = [name for name in (SCORE, P_VALUE) if name in table.schema_arrow.names]
            for batch in table.iter_batches(BATCH_ROWS, columns=wanted):
                yield batch.to_pandas()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UnreadableDataError(f"{file.name!r} must be a readable table, got an error: {reason}") from error
