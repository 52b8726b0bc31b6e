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
from .cards import card
from .data.image_column import is_image_column
from .data.images import ImageSchema, frame_of
from .data.rows import split_rows
from .data.schema import Schema, named
from .data.splits import split_frame
from .detection.detector import Detector
from .errors import CalibrationError, ConfigError, NotFittedError, SchemaError, TrainingWarning
from .models.family import Model, image_model
from .models.vae import VAE
from .options import Config, ImageConfig, TrainConfig
from .pyod_facade import PyODFacade
from .training import Epoch, Optimiser

Elsewhere = Callable[[Schema | ImageSchema], Optimiser]
"""Trains models of a schema in other processes; see `serving.distributed`."""
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

    def _repr_html_(self) -> str:
        best = max(self.history, key=lambda epoch: epoch.validation_elbo)
        facts = {"epochs": len(self.history), "best validation ELBO, nats a row": best.validation_elbo}
        facts |= {f"{name} rows": len(rows) for name, rows in self.split.items()}
        return card("Fit", facts | {"active units": best.active_units}) + self.detector._repr_html_()


def fit_detector(
    frame: pd.DataFrame | NDArray[Any],
    config: Config | None = None,
    *,
    sample_weight: ArrayLike | None = None,
    key: pd.Series | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: bool = False,
    elsewhere: Elsewhere | None = None,
) -> Fit:
    """Fit a schema, train a model and calibrate it, on three disjoint parts of the rows.

    Args:
        frame: Rows, mostly normal ones, at least 10; or images: an array (n, h, w) or (n, h, w, c), of levels 0 to 255
            or of floats in [0, 1], or a DataFrame with one column of images, and those of `ImageConfig.beside`.
        config: Settings, `TrainConfig` for a table, `ImageConfig` for images; the defaults are meant to be left alone.
        sample_weight: Weight of each row in training, (n,).
        key: A key for each row, (n,): the split then goes by its hash instead of by position. For splits by time or by
            whole groups see `config.split_by` and `config.group_by`.
        checkpoint: See `training.fit`.
        on_epoch: See `training.fit`.
        progress: Whether to show a progress bar.
        elsewhere: What takes the optimiser's steps in place of this process, for example a cluster.

    Raises:
        SchemaError: Too few rows, or columns or cells that cannot be used.
        TrainingError: See `training.fit`.
    """
    if isinstance(frame, np.ndarray):
        frame = frame_of(frame)
    config = config or (ImageConfig() if is_image_column(frame) else TrainConfig())
    _check_kind(config, frame)
    frame = named(frame)
    if len(frame) < FEWEST_ROWS:
        raise SchemaError(
            f"training data must have at least {FEWEST_ROWS} rows, got n_samples={len(frame)} (1 sample, or a "
            "few, have no distribution to learn). Give more rows.",
            rows=len(frame),
        )
    split = _split(frame, config, key)
    if isinstance(config, ImageConfig):  # of a table they are columns that the schema ignores
        frame = frame.drop(columns=[name for name in config.beside if name != config.condition])
    rows = {name: frame.iloc[positions] for name, positions in split.items()}
    schema, model = _made(frame, config, split["train"])
    weights = None
    if sample_weight is not None:
        weights = torch.from_numpy(np.asarray(sample_weight, dtype=np.float32)[split["train"]])
    x = torch.from_numpy(schema.encode(rows["train"]))
    held = torch.from_numpy(schema.encode(rows["validation"]))
    history = training.fit(
        model,
        x,
        validation=held,
        config=config,
        weights=weights,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
        progress=progress,
        optimise=None if elsewhere is None else elsewhere(schema),
    )
    detector = Detector.calibrated(schema, model, config, rows["calibration"], trained=x, held=held)
    return Fit(detector, history, split)


def _split(frame: pd.DataFrame, config: Config, key: pd.Series | None) -> dict[str, NDArray[np.intp]]:
    """Return the positions of the rows of each part."""
    fractions = {"calibration": config.calibration_share(len(frame)), "validation": config.validation}
    by, group = config.split_by, config.group_by
    if by is None and group is None:
        return split_rows(len(frame) if key is None else key, fractions=fractions, seed=config.seed)
    if key is not None:
        raise ConfigError("rows must be split by keys or by split_by and group_by, got both. Drop one.")
    return split_frame(frame, by=by, group=group, fractions=fractions, seed=config.seed)


def _check_kind(config: Config, frame: pd.DataFrame) -> None:
    if isinstance(config, TrainConfig):
        if is_image_column(frame):
            raise ConfigError("the settings of images must be an ImageConfig, got a TrainConfig. Pass that, or none.")
        return
    if frame.shape[1] == 1 + len(config.beside):
        return
    if config.beside:
        raise SchemaError(
            f"these images must come with {' and '.join(map(repr, config.beside))} and no other column, got "
            f"{frame.shape[1]} columns: {', '.join(repr(str(name)) for name in frame.columns[:8])}. "
            "Add what is missing, or leave the others out."
        )
    raise ConfigError(
        f"the settings of a table must be a TrainConfig, got an ImageConfig and {frame.shape[1]} columns. Pass it."
    )


def _made(frame: pd.DataFrame, config: Config, train: NDArray[np.intp]) -> tuple[Schema | ImageSchema, Model]:
    """Return the schema fitted to some rows and a model of it, untrained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if isinstance(config, ImageConfig):
            images = ImageSchema.fit(frame, size=config.height_width, rows=train, condition=config.condition)
            return images, untrained(images, config)
        beside = dict.fromkeys(filter(None, (config.split_by, config.group_by)), "ignored")
        schema = Schema.fit(frame, kinds={**config.columns, **beside}, rows=train)
        return schema, untrained(schema, config)


def untrained(schema: Schema | ImageSchema, config: Config) -> Model:
    """Return a model of a schema, with weights from torch's global generator."""
    if isinstance(config, ImageConfig):
        assert isinstance(schema, ImageSchema)
        return image_model(schema.shape, config, len(schema.classes.names) if schema.classes else 0)
    assert isinstance(schema, Schema)
    return VAE(schema.modelled, config)


class AnomalyDetector(OutlierMixin, BaseEstimator):
    """A detector of improbable rows, or images, in scikit-learn's conventions: high scores are normal.

    Args:
        config: Settings of model, training and score; by default `TrainConfig()`, or `ImageConfig()` for images.
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
        config: Config | None = None,
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
            X: Array (n, m) of numbers, NaN = missing, or a DataFrame of mixed columns; or images: an array (n, h, w) or
                (n, h, w, c) of uint8 levels or of floats in [0, 1], or a DataFrame with one column of images. Beside
                either, in a DataFrame, the columns that `config.split_by` and `config.group_by` name.
            y: Ignored.
            sample_weight: Weight of each row in training, (n,).

        Raises:
            SchemaError: Too few rows, or cells that cannot be used.
        """
        if not isinstance(self.alpha, (int, float)) or not 0 < self.alpha < 1:
            raise ConfigError(f"alpha must be a number between 0 and 1, got {self.alpha!r}. Choose for example 0.05.")
        frame = self._frame(X, reset=True)
        config = self.config or (ImageConfig() if is_image_column(frame) else TrainConfig())
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
            self.offset_ = -float(np.quantile(self._training_scores(X), 1 - self.alpha))
            warnings.warn(
                f"{error} Until then the threshold is a quantile of the training scores, which promises nothing.",
                TrainingWarning,
                stacklevel=2,
            )
        return self

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Return log p(x) (or the bound that `config.score_kind` names) of each row, (n,), nats, high = normal.

        Missing cells count for what their columns cost on average, unless `config.charge_missing` is off.
        """
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

    def as_pyod(self, X: Any = None, *, contamination: float | None = None) -> PyODFacade:
        """Return this detector in PyOD's conventions: high scores are anomalous, labels are 0 and 1.

        Before `fit`, the facade's own `fit` trains a copy. After it, the facade speaks for this very detector; give
        the training rows if it is also to have what PyOD derives from their scores (`decision_scores_`, `labels_`,
        `predict_proba` by "linear" and "unify").

        Args:
            X: The rows that this detector was fitted to; only after `fit`.
            contamination: See `PyODFacade`.

        Raises:
            NotFittedError: There are rows but no fitted detector.
            ConfigError: The contamination is out of range, or given for a fitted detector without its rows.
        """
        facade = PyODFacade(self, contamination=contamination)
        fitted = hasattr(self, "detector_")
        if fitted and X is None and contamination is not None:
            raise ConfigError(
                "contamination must come with the training rows, of whose scores it is a quantile, got none. "
                "Give them: as_pyod(X, contamination=...)."
            )
        if fitted:
            return facade._adopt(self, X)
        if X is not None:
            raise NotFittedError("as_pyod(X) must follow fit(X), got no fitted detector. Use as_pyod().fit(X).")
        return facade

    def _training_scores(self, X: Any) -> NDArray[np.float64]:
        """Return the anomaly scores of the rows that `fit` was given, (n,), nats, high = anomalous."""
        return -self.score_samples(X)

    def _frame(self, X: Any, *, reset: bool) -> pd.DataFrame:
        if isinstance(X, np.ndarray) and X.ndim in (3, 4):
            X = frame_of(X)
        if isinstance(X, pd.DataFrame):
            # What rows were split by is no feature: it need not be there to score.
            config = self.config or TrainConfig()
            features = X.drop(columns=[c for c in (config.split_by, config.group_by) if c], errors="ignore")
            validate_data(self, features, reset=reset, skip_check_array=True)
            return X
        array = validate_data(self, X, reset=reset, dtype="numeric", ensure_all_finite="allow-nan")
        names = getattr(self, "feature_names_in_", [f"x{j}" for j in range(array.shape[1])])
        return pd.DataFrame(array.astype(np.float64), columns=list(names))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
