"""From rows to a detector in one call, and the same as a scikit-learn estimator."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from . import training
from .data.rows import split_rows
from .data.schema import Schema, named
from .detection.detector import Detector
from .errors import CalibrationError, ConfigError, SchemaError, TrainingWarning
from .models.vae import VAE
from .options import TrainConfig
from .training import Epoch

FEWEST_ROWS = 10


@dataclass(frozen=True)
class Fit:
    """What `fit_detector` came to.

    Attributes:
        detector: The detector.
        history: One entry an epoch.
        split: Positions of the "train", "validation" and "calibration" rows.
    """

    detector: Detector
    history: list[Epoch]
    split: dict[str, NDArray[np.intp]]


def fit_detector(
    frame: pd.DataFrame,
    config: TrainConfig | None = None,
    *,
    sample_weight: ArrayLike | None = None,
    key: pd.Series | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: bool = False,
) -> Fit:
    """Fit a schema, train a model and calibrate it, on three disjoint parts of the rows.

    Args:
        frame: Rows, mostly normal ones, at least 10.
        config: Settings; the defaults are meant to be left alone.
        sample_weight: Weight of each row in training, (n,).
        key: A key for each row, (n,): the split then goes by its hash instead of by position.
        checkpoint: See `training.fit`.
        on_epoch: See `training.fit`.
        progress: Whether to show a progress bar.

    Raises:
        SchemaError: Too few rows, or columns or cells that cannot be used.
        TrainingError: See `training.fit`.
    """
    config = config or TrainConfig()
    frame = named(frame)
    if len(frame) < FEWEST_ROWS:
        raise SchemaError(
            f"training data must have at least {FEWEST_ROWS} rows, got n_samples={len(frame)} (1 sample, or a "
            "few, have no distribution to learn). Give more rows.",
            rows=len(frame),
        )
    fractions = {"calibration": config.calibration, "validation": config.validation}
    split = split_rows(len(frame) if key is None else key, fractions=fractions, seed=config.seed)
    rows = {name: frame.iloc[positions] for name, positions in split.items()}
    schema = Schema.fit(frame, kinds=config.columns, rows=split["train"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = VAE(schema.modelled, config)
    weights = None
    if sample_weight is not None:
        weights = torch.from_numpy(np.asarray(sample_weight, dtype=np.float32)[split["train"]])
    history = training.fit(
        model,
        torch.from_numpy(schema.encode(rows["train"])),
        validation=torch.from_numpy(schema.encode(rows["validation"])),
        config=config,
        weights=weights,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
        progress=progress,
    )
    return Fit(Detector.calibrated(schema, model, config, rows["calibration"]), history, split)


class AnomalyDetector(OutlierMixin, BaseEstimator):
    """A detector of improbable rows in scikit-learn's conventions: high scores are normal.

    Args:
        config: Settings of model, training and score; by default `TrainConfig()`.
        alpha: False-alarm rate on normal rows that `predict` promises.
        random_state: Overrides `config.seed`; an integer for the same result twice.
        verbose: Whether to show a progress bar.

    Attributes:
        detector_: The fitted `Detector`: p-values, reasons, saving.
        history_: One `Epoch` for each epoch of training.
        offset_: Score below which `predict` says -1, nats.
        n_features_in_: Number of columns.
        feature_names_in_: Names of the columns, where a DataFrame with text names was given.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(300, 2))
        >>> clf = AnomalyDetector(TrainConfig(steps=200), random_state=0).fit(X)
        >>> clf.predict([[0.0, 0.0], [9.0, -9.0]]).tolist()
        [1, -1]
    """

    def __init__(
        self,
        config: TrainConfig | None = None,
        *,
        alpha: float = 0.05,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.config = config
        self.alpha = alpha
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Fit to rows.

        Args:
            X: Array (n, m) of numbers, NaN = missing, or a DataFrame of mixed columns.
            y: Ignored.
            sample_weight: Weight of each row in training, (n,).

        Raises:
            SchemaError: Too few rows, or cells that cannot be used.
        """
        if not isinstance(self.alpha, (int, float)) or not 0 < self.alpha < 1:
            raise ConfigError(f"alpha must be a number between 0 and 1, got {self.alpha!r}. Choose for example 0.05.")
        frame = self._frame(X, reset=True)
        config = self.config or TrainConfig()
        if self.random_state is not None:
            whole = isinstance(self.random_state, (int, np.integer))
            seed = int(self.random_state) if whole else int(check_random_state(self.random_state).randint(2**31))
            config = dataclasses.replace(config, seed=seed)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, frame, ensure_non_negative=True)
        fitted = fit_detector(frame, config, sample_weight=sample_weight, progress=self.verbose)
        self.detector_ = fitted.detector
        self.history_ = fitted.history
        try:
            self.offset_ = -self.detector_.threshold(self.alpha)
        except CalibrationError as error:
            scores = self.score_samples(X)
            self.offset_ = float(np.quantile(scores, self.alpha))
            warnings.warn(
                f"{error} Until then the threshold is a quantile of the training scores, which promises nothing.",
                TrainingWarning,
                stacklevel=2,
            )
        return self

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Return log p(x) (or the bound that `config.score_kind` names) of each row, (n,), nats, high = normal."""
        check_is_fitted(self)
        return -self.detector_.scores_of_encoded(self.detector_.encode(self._frame(X, reset=False)).numpy())

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return `score_samples(X) - offset_`, (n,): negative for anomalies."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return -1 for anomalies and 1 for normal rows, (n,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def score_frame(self, X: Any, *, explain: int = 0) -> pd.DataFrame:
        """Return scores, p-values, flags and reasons of each row; see `Detector.score_frame`."""
        check_is_fitted(self)
        return self.detector_.score_frame(self._frame(X, reset=False), alpha=self.alpha, explain=explain)

    def _frame(self, X: Any, *, reset: bool) -> pd.DataFrame:
        if isinstance(X, pd.DataFrame):
            validate_data(self, X, reset=reset, skip_check_array=True)
            return X
        array = validate_data(self, X, reset=reset, dtype="numeric", ensure_all_finite="allow-nan")
        names = getattr(self, "feature_names_in_", [f"x{j}" for j in range(array.shape[1])])
        return pd.DataFrame(array.astype(np.float64), columns=list(names))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
