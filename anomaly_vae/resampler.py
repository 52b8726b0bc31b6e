"""From rows to a rebalanced data set in one call, in scikit-learn's and imbalanced-learn's conventions."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from .data.image_column import is_image_column
from .data.images import frame_of
from .data.schema import named
from .debiasing.resampling import ResampleReport
from .debiasing.selection import select
from .detection.detector import Detector
from .errors import ConfigError, NotFittedError, ShapeError
from .estimator import AnomalyDetector, fit_detector
from .options import Config, ImageConfig, ResampleConfig, TrainConfig
from .row_weigher import RowWeigher


class LatentDensityResampler(BaseEstimator):
    """Weighs rows by how rare their latent codes are, and makes rebalanced data sets of them.

    Rows in thin parts of the latent get large weights, within each class where labels are given. How far this goes is
    bounded by an effective sample size; anomalies, isolated rows and rows that look mislabelled are never weighted up.

    A step of imbalanced-learn's `Pipeline`, too: there rows are resampled in `fit` alone.

    Args:
        detector: A fitted `Detector` or `AnomalyDetector`, whose latent is used; or an unfitted `AnomalyDetector`, a
            copy of which is trained on the rows; by default one with default settings is trained.
        random_state: Seed of training and of all draws; an integer for the same result twice.
        config: Settings of density, weights and data set; by default `ResampleConfig()`. Its seed is overridden.
        train_config: Settings of the detector that is trained when none is given.

    Attributes:
        detector_: The `Detector`.
        model_: The `RowWeigher`: what weighs further rows, and is saved, registered and served.
        weigher_: The part of it that knows codes alone: space, density, guards.
        weights_: Weight of each row of `fit`, (n,), mean 1.
        report_: What was done: a `ResampleReport`.
        sample_indices_: After `fit_resample`: positions of the rows that the result consists of, ascending.

    Example:
        >>> from anomaly_vae import TrainConfig
        >>> rng = np.random.default_rng(0)
        >>> X = np.concatenate([rng.normal(size=(380, 2)), rng.normal(size=(20, 2)) + 5])
        >>> resampler = LatentDensityResampler(train_config=TrainConfig(steps=300)).fit(X)
        >>> bool(resampler.weights_[380:].mean() > 1.5 * resampler.weights_[:380].mean())
        True
    """

    _sampling_type = "bypass"
    _estimator_type = "sampler"

    def __init__(
        self,
        detector: Detector | AnomalyDetector | None = None,
        random_state: Any = 0,
        *,
        config: ResampleConfig | None = None,
        train_config: Config | None = None,
    ) -> None:
        self.detector = detector
        self.random_state = random_state
        self.config = config
        self.train_config = train_config

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn the density of rows and weigh them.

        Args:
            X: Rows: a DataFrame, an array (n, m), or images (n, h, w) or (n, h, w, c). They are not changed.
            y: Label of each row, (n,): classes, or a continuous target, which is cut into intervals; None for none.

        Raises:
            ConfigError: A label is missing, or settings and data do not go together.
            ShapeError: There are not as many labels as rows.
            SchemaError: The rows cannot be used.
        """
        seed = self._seed()
        frame = _frame(X)
        _check_labels(frame, y)
        self.detector_ = self._detector(X, frame, seed)
        config = dataclasses.replace(self.config or ResampleConfig(), seed=seed)
        label = getattr(y, "name", None)
        self.model_ = RowWeigher.fit(
            self.detector_, frame, config, labels=y, label_column=None if label is None else str(label)
        )
        self.weigher_ = self.model_.weigher
        self.weights_ = self.weigher_.weighing.weights
        self.report_: ResampleReport = self.weigher_.weighing.report
        return self

    def sample_weight(self, X: Any, y: Any = None) -> NDArray[np.float64]:
        """Return the weight of each row, (n,), in units of the mean of the rows of `fit`.

        A row of `fit` gets the weight it has in `weights_`; a new row the one that its density gives it.

        Args:
            X: Rows like those of `fit`.
            y: Their labels, if `fit` was given some.

        Raises:
            NotFittedError: `fit` was not called.
            ConfigError: Labels are absent, missing, or of an unknown class.
        """
        self._check_fitted()
        frame = _frame(X)
        _check_labels(frame, y)
        return self.model_.judge(frame, y).weights

    def fit_resample(self, X: Any, y: Any = None) -> Any:
        """Fit, and return the rebalanced rows and labels, of the types that were given; the index comes along.

        The mode is that of the settings; where these ask for weights alone, an oversample is made, which keeps every
        row at least once.

        Args:
            X: Rows, see `fit`.
            y: Labels, or None.

        Returns:
            The rows and the labels; only the rows if there are no labels.

        Raises:
            ConfigError: See `fit`; or a size that cannot be.
        """
        self.fit(X, y)
        config = self.weigher_.config
        mode = "oversample" if config.mode == "weights" else config.mode
        share = config.ess if config.ess is not None else None
        self.sample_indices_ = select(self.weights_, mode=mode, size=config.size, share=share, seed=config.seed)
        self.report_ = dataclasses.replace(self.report_, mode=mode, rows_out=len(self.sample_indices_))
        rows = _taken(X, self.sample_indices_)
        return rows if y is None else (rows, _taken(y, self.sample_indices_))

    def _detector(self, X: Any, frame: pd.DataFrame, seed: int) -> Detector:
        given = self.detector
        if given is None:
            config = self.train_config or (ImageConfig() if is_image_column(frame) else TrainConfig())
            return fit_detector(frame, dataclasses.replace(config, seed=seed)).detector
        if isinstance(given, Detector):
            return given
        if isinstance(given, AnomalyDetector):
            fitted = given if hasattr(given, "detector_") else clone(given).fit(X)
            return fitted.detector_
        raise ConfigError(
            f"detector must be a Detector, an AnomalyDetector or None, got {type(given).__name__}. Give one of these."
        )

    def _seed(self) -> int:
        whole = isinstance(self.random_state, (int, np.integer)) and not isinstance(self.random_state, bool)
        return int(self.random_state) if whole else int(check_random_state(self.random_state).randint(2**31))

    def _check_fitted(self) -> None:
        if not hasattr(self, "weigher_"):
            raise NotFittedError("a resampler must be fitted first, got one that is not. Call fit(X, y).")
        check_is_fitted(self)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.estimator_type = "sampler"
        tags.input_tags.allow_nan = True
        return tags


def _frame(X: Any) -> pd.DataFrame:
    if isinstance(X, pd.DataFrame):
        return named(X)
    array = np.asarray(X)
    if array.ndim in (3, 4):
        return frame_of(array)
    if array.ndim != 2:
        raise ShapeError(f"rows must have shape (n, m), or be images, got {array.shape}. Give one row for each label.")
    return pd.DataFrame(array, columns=[f"x{j}" for j in range(array.shape[1])])


def _check_labels(frame: pd.DataFrame, y: Any) -> None:
    if y is not None and len(y) != len(frame):
        raise ShapeError(f"labels must be as many as the {len(frame)} rows, got {len(y)}. Give one label a row.")


def _taken(rows: Any, indices: NDArray[np.intp]) -> Any:
    """Return some of the rows of a DataFrame, Series, array or list, as the same type."""
    if isinstance(rows, (pd.DataFrame, pd.Series)):
        return rows.iloc[indices]
    if isinstance(rows, (list, tuple)):
        return type(rows)(rows[i] for i in indices)
    return np.asarray(rows)[indices]
