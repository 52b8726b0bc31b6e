"""What a run of training shows: figures of its curves, scores and promise, the strangest images, and a page."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd

from ..data.images import ImageSchema
from ..detection.detector import Detector
from ..estimator import Fit
from ..evaluation.metrics import Ranking, auroc_ap
from ..options import ScoreConfig
from ..reporting.figures import calibration_curve, score_histogram, training_curves
from . import pictures
from .report import write_training_report


def log_training(
    fit: Fit, rows: pd.DataFrame, anomalous: pd.DataFrame, *, model: str, facts: Mapping[str, Any]
) -> Ranking | None:
    """Log how a training went to the run that is open.

    Args:
        fit: Of `rows`.
        rows: Normal rows, n, those that were held out among them.
        anomalous: Rows known to be anomalous, may be none.
        model: URI of the registered model.
        facts: For the page, by their names.

    Returns:
        How the anomalous rows rank against the calibration rows; None without them.
    """
    scored = _scored(fit, rows, anomalous)
    ranking = _log_scores(fit.detector, scored) if scored else None
    if scored and isinstance(fit.detector.schema, ImageSchema):
        shown = scored["anomalous" if ranking is not None else "calibration"][0]
        sheet = pictures.sheet(fit.detector, pictures.strangest_of(fit.detector, shown))
        mlflow.log_figure(sheet, "figures/strangest.png")
    mlflow.log_figure(training_curves(fit.history), "figures/training.png")
    with tempfile.TemporaryDirectory(prefix="anomaly-vae-") as folder:
        write_training_report(fit, rows, Path(folder) / "report.html", scored=scored, model=model, facts=facts)
        mlflow.log_artifacts(folder)
    if ranking is not None:
        metrics = {k: v for k, v in ranking.to_dict().items() if k not in ("level", "n_normal", "n_anomalous")}
        mlflow.log_metrics(metrics)
    return ranking


def _scored(fit: Fit, rows: pd.DataFrame, anomalous: pd.DataFrame) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Return rows that were not trained on and their scores, by what they are; none without calibration rows."""
    parts = {name: rows.iloc[fit.split[name]] for name in ("calibration", "validation")} | {"anomalous": anomalous}
    if not len(parts["calibration"]):
        return {}
    alpha = _promised(fit.detector)
    return {name: (part, fit.detector.score_frame(part, alpha=alpha)) for name, part in parts.items() if len(part)}


def _log_scores(detector: Detector, scored: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]) -> Ranking | None:
    """Log where the scores of held-out rows lie, ranked against rows labelled anomalous if there are any.

    Also logs how p-values keep their promise on the validation rows, which only decided when training stopped.
    """
    normal = scored["calibration"][1]["anomaly_score"].to_numpy()
    ranking, labels, scores = None, None, normal
    if "anomalous" in scored:
        scores = np.concatenate([normal, scored["anomalous"][1]["anomaly_score"]])
        labels = np.arange(len(scores)) >= len(normal)
        ranking = auroc_ap(labels, scores)
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
