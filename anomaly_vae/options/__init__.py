"""Settings of each verb: frozen, keyword-only, checked when made.

Command-line options, TOML keys, MLflow parameters and the saved `config.json` are all read off the fields of
these classes. Nothing here imports more than the standard library, so that `--help` stays instant.
"""

from __future__ import annotations

from .jobs import ENGINES, FORMATS, ON_ERROR, BatchConfig, MonitorConfig, ReportConfig, ScoreConfig, ServeConfig
from .rebalancing import CLASS_MASS, COMBINATIONS, DENSITIES, MODES, SPACES, AuditConfig, ResampleConfig
from .training import (
    CONTINUOUS,
    COUNTS,
    DEVICES,
    IMAGE_MODELS,
    IMAGE_SCORE_KINDS,
    KINDS,
    OBJECTIVES,
    PIXELS,
    PRECISIONS,
    PRIORS,
    SCORE_KINDS,
    Config,
    FitConfig,
    ImageConfig,
    TrainConfig,
)

__all__ = [
    "CLASS_MASS",
    "COMBINATIONS",
    "CONTINUOUS",
    "COUNTS",
    "DENSITIES",
    "DEVICES",
    "ENGINES",
    "FORMATS",
    "IMAGE_MODELS",
    "IMAGE_SCORE_KINDS",
    "KINDS",
    "MODES",
    "OBJECTIVES",
    "ON_ERROR",
    "PIXELS",
    "PRECISIONS",
    "PRIORS",
    "SCORE_KINDS",
    "SPACES",
    "AuditConfig",
    "BatchConfig",
    "Config",
    "FitConfig",
    "ImageConfig",
    "MonitorConfig",
    "ReportConfig",
    "ResampleConfig",
    "ScoreConfig",
    "ServeConfig",
    "TrainConfig",
]
