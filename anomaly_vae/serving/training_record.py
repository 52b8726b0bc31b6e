"""What a run of training shows: figures of its curves, scores and promise, the strangest images, and a page."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..data.images import ImageSchema
from ..detection.detector import Detector
from ..estimator import Fit
from ..evaluation.metrics import Ranking, Rate, auroc_ap, flag_rate
from ..options import ScoreConfig
from ..reporting.figures import calibration_curve, score_histogram, training_curves
from . import pictures
from .report import write_training_report
from .streams import group_names

Scored = Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]
"""Rows and their scores, by what they are."""


def log_training(
    fit: Fit, rows: pd.DataFrame, anomalous: pd.DataFrame, *, model: str, facts: Mapping[str, Any]
) -> tuple[Ranking | None, Rate | None]:
    """Log how a training went to the run that is open.

    Args:
        fit: Of `rows`.
        rows: Normal rows, n, those that were held out among them.
        anomalous: Rows known to be anomalous, may be none.
        model: URI of the registered model.
        facts: For the page, by their names.

    Returns:
        How the anomalous rows rank against the calibration rows; None without them. And how many calibration rows are
        flagged, by groups; None where rows were not split by groups, or those are of one group.
    """
    scored = _scored(fit, rows, anomalous)
    ranking = _log_scores(fit.detector, scored) if scored else None
    promise = _promise(fit.detector, scored)
    if promise is not None:
        facts = {**facts, "groups that set thresholds": promise.n_groups}
        mlflow.log_metrics(
            {"calibration_groups": promise.n_groups or 0, "flagged_low": promise.low, "flagged_high": promise.high}
        )
    if scored and isinstance(fit.detector.schema, ImageSchema):
        shown = scored["anomalous" if ranking is not None else "calibration"][0]
        sheet = pictures.sheet(fit.detector, pictures.strangest_of(fit.detector, shown))
        mlflow.log_figure(sheet, "figures/strangest.png")
    mlflow.log_figure(training_curves(fit.history), "figures/training.png")
    with tempfile.TemporaryDirectory(prefix="anomaly-vae-") as folder:
        write_training_report(fit, rows, Path(folder) / "report.html", scored=scored, model=model, facts=facts)
        mlflow.log_artifacts(folder)
    if ranking is not None:
        beside = ("level", "n_normal", "n_anomalous", "n_groups")
        metrics = {k: v for k, v in ranking.to_dict().items() if k not in beside}
        mlflow.log_metrics(metrics)
    return ranking, promise


def _promise(detector: Detector, scored: Scored) -> Rate | None:
    """Return the share of calibration rows that are flagged, by whole groups: as far as it is known of others."""
    if not scored:
        return None
    rows, scores = scored["calibration"]
    groups = _groups(detector, rows)
    return flag_rate(scores["is_anomaly"], groups=groups) if _several(groups) else None


def _groups(detector: Detector, rows: pd.DataFrame) -> NDArray[np.str_]:
    """Return the name of each row's group, (n,), the same of all where rows were not split by groups."""
    column = detector.config.group_by
    return np.full(len(rows), "") if column is None else group_names(rows, column).to_numpy(dtype=str)


def _several(groups: NDArray[np.str_]) -> bool:
    return len(np.unique(groups)) > 1


def _scored(fit: Fit, rows: pd.DataFrame, anomalous: pd.DataFrame) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Return rows that were not trained on and their scores, by what they are; none without calibration rows.

    Validation rows are not among them where the score was fitted to them: they would seem too usual.
    """
    parts = {name: rows.iloc[fit.split[name]] for name in ("calibration", "validation")} | {"anomalous": anomalous}
    if fit.detector.config.score_kind == "statistics":
        del parts["validation"]
    if not len(parts["calibration"]):
        return {}
    alpha = _promised(fit.detector)
    return {name: (part, fit.detector.score_frame(part, alpha=alpha)) for name, part in parts.items() if len(part)}


def _log_scores(detector: Detector, scored: Scored) -> Ranking | None:
    """Log where the scores of held-out rows lie, ranked against rows labelled anomalous if there are any.

    Also logs how p-values keep their promise on the validation rows, which only decided when training stopped.
    """
    normal = scored["calibration"][1]["anomaly_score"].to_numpy()
    ranking, labels, scores = None, None, normal
    if "anomalous" in scored:
        scores = np.concatenate([normal, scored["anomalous"][1]["anomaly_score"]])
        labels = np.arange(len(scores)) >= len(normal)
        groups = [_groups(detector, scored[name][0]) for name in ("calibration", "anomalous")]
        ranking = auroc_ap(labels, scores, groups=np.concatenate(groups) if all(map(_several, groups)) else None)
    threshold = detector.threshold(_promised(detector))
    mlflow.log_figure(score_histogram(scores, threshold, labels), "figures/scores.png")
    if "validation" in scored:
        p_values = scored["validation"][1]["p_value"]
        figure = calibration_curve(p_values, n_calibration=detector.calibration.rows)
        mlflow.log_figure(figure, "figures/calibration.png")
    return ranking


def _promised(detector: Detector) -> float:
    """Return the default alpha, or the least that a small table's calibration rows can promise."""
    return max(ScoreConfig.alpha, 1 / (detector.calibration.rows + 1))
