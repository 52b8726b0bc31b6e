"""anomaly_vae: one learned density of a table or of images, used to flag what is improbable and to say why.

Names are loaded on first use, so `import anomaly_vae` is instant.

Example:
    >>> import anomaly_vae
    >>> anomaly_vae.TrainConfig(latent=4).latent
    4
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparison.ladder import compare_models
    from .data.images import ImageSchema
    from .data.schema import Column, Schema
    from .detection.detector import Detector
    from .errors import AnomalyVaeError
    from .estimator import AnomalyDetector, fit_detector
    from .latent.space import LatentSpace
    from .options import AuditConfig, BatchConfig, ImageConfig, ReportConfig, ResampleConfig, ScoreConfig, TrainConfig
    from .options.understanding import CompareConfig, ScorecardConfig
    from .resampler import LatentDensityResampler
    from .row_weigher import RowWeigher
    from .scorecard import make_scorecard

__version__ = "0.17.0"

_HOMES = {
    "AnomalyDetector": "estimator",
    "AnomalyVaeError": "errors",
    "AuditConfig": "options",
    "BatchConfig": "options",
    "Column": "data.schema",
    "CompareConfig": "options.understanding",
    "Detector": "detection.detector",
    "ImageConfig": "options",
    "ImageSchema": "data.images",
    "LatentDensityResampler": "resampler",
    "LatentSpace": "latent.space",
    "ReportConfig": "options",
    "ResampleConfig": "options",
    "RowWeigher": "row_weigher",
    "Schema": "data.schema",
    "ScoreConfig": "options",
    "ScorecardConfig": "options.understanding",
    "TrainConfig": "options",
    "compare_models": "comparison.ladder",
    "fit_detector": "estimator",
    "make_scorecard": "scorecard",
}

__all__ = [
    "AnomalyDetector",
    "AnomalyVaeError",
    "AuditConfig",
    "BatchConfig",
    "Column",
    "CompareConfig",
    "Detector",
    "ImageConfig",
    "ImageSchema",
    "LatentDensityResampler",
    "LatentSpace",
    "ReportConfig",
    "ResampleConfig",
    "RowWeigher",
    "Schema",
    "ScoreConfig",
    "ScorecardConfig",
    "TrainConfig",
    "compare_models",
    "fit_detector",
    "make_scorecard",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
