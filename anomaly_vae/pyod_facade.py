"""The scikit-learn estimator in PyOD's conventions."""

from __future__ import annotations

from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf
from scipy.stats import binom
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted

from .detection.detector import Detector
from .errors import ConfigError, NotFittedError


class Estimator(Protocol):
    """What the facade needs of an `AnomalyDetector`."""

    detector_: Detector
    offset_: float

    def fit(self, X: Any) -> Self:
        """See `AnomalyDetector.fit`."""

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """See `AnomalyDetector.score_samples`."""

    def _training_scores(self, X: Any) -> NDArray[np.float64]: ...


class PyODFacade(BaseEstimator):
    """A detector in PyOD's conventions: high scores are anomalous, labels are 0 and 1.

    `AnomalyDetector.as_pyod` makes it. Names and meanings are those of `pyod.models.base.BaseDetector`, and PyOD itself
    is not needed. Two things are added: by default the threshold is the detector's promised false-alarm rate and not a
    guess of how many rows are anomalous, and `predict_proba` also offers conformal p-values.

    Args:
        estimator: The detector; `fit` trains a copy of it.
        contamination: Share of the training rows to label anomalous, in (0, 0.5]; None: label at the detector's
            `alpha`.

    Attributes:
        estimator_: The fitted `AnomalyDetector`.
        decision_scores_: Scores of the training rows, (n,), nats.
        threshold_: Score above which a row is labelled 1.
        labels_: Labels of the training rows, (n,).

    Example:
        >>> from anomaly_vae import AnomalyDetector, TrainConfig
        >>> X = np.random.default_rng(0).normal(size=(300, 2))
        >>> clf = AnomalyDetector(TrainConfig(steps=200), random_state=0).as_pyod().fit(X)
        >>> clf.predict([[0.0, 0.0], [9.0, -9.0]]).tolist()
        [0, 1]
        >>> clf.predict_proba([[9.0, -9.0]], method="conformal").round(3).tolist()
        [[0.025, 0.975]]
    """

    def __init__(self, estimator: Estimator, *, contamination: float | None = None) -> None:
        number = isinstance(contamination, (int, float)) and not isinstance(contamination, bool)
        if contamination is not None and not (number and 0 < contamination <= 0.5):
            raise ConfigError(
                f"contamination must be a share in (0, 0.5] or None, got {contamination!r}. Leave it out to label at "
                "the detector's false-alarm rate."
            )
        self.estimator = estimator
        self.contamination = contamination

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train a copy of the detector and score the training rows.

        Args:
            X: Rows, as `AnomalyDetector.fit` takes them.
            y: Ignored.
        """
        return self._adopt(clone(self.estimator).fit(X), X)

    def fit_predict(self, X: Any, y: Any = None) -> NDArray[np.int64]:
        """Return `fit(X).labels_`, (n,)."""
        return self.fit(X).labels_

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return the anomaly score of each row, (n,), nats, high = anomalous."""
        check_is_fitted(self, "threshold_")
        return -self.estimator_.score_samples(X)

    def predict(self, X: Any, return_confidence: bool = False) -> Any:
        """Return 1 for anomalies and 0 for normal rows, (n,); with `return_confidence`, their confidence too."""
        scores = self.decision_function(X)
        labels = self._label(scores)
        return (labels, self._confidence(scores)) if return_confidence else labels

    def predict_proba(self, X: Any, method: str = "linear", return_confidence: bool = False) -> Any:
        """Return the outlyingness of each row as [normal, anomalous] shares, (n, 2).

        Args:
            X: Rows.
            method: How the second column is made: "linear", the score's place between the least and the largest
                training score; "unify", the error function of its standardised value (Kriegel et al. 2011); or
                "conformal", 1 - p_value, which alone comes with a promise: of normal rows at most a share alpha has
                1 - alpha or more.
            return_confidence: Whether to return `predict_confidence` as well.

        Raises:
            ConfigError: The method is unknown.
            CalibrationError: "conformal" was asked of a detector without calibration rows.
        """
        scores = self.decision_function(X)
        if method == "conformal":
            detector = self.estimator_.detector_
            detector.threshold(0.5)  # refuses a detector without calibration rows
            outlying = 1 - detector.calibration.p_values(scores, k=detector.config.k)
        elif method == "linear":
            low, high = self._of_training().min(), self.decision_scores_.max()
            outlying = (scores - low) / ((high - low) or 1.0)
        elif method == "unify":
            centre, spread = self._of_training().mean(), self.decision_scores_.std()
            outlying = erf((scores - centre) / ((spread or 1.0) * np.sqrt(2)))
        else:
            raise ConfigError(f"method must be one of linear, unify, conformal, got {method!r}. Choose one of them.")
        outlying = np.clip(outlying, 0, 1)
        shares = np.column_stack([1 - outlying, outlying])
        return (shares, self._confidence(scores)) if return_confidence else shares

    def predict_confidence(self, X: Any) -> NDArray[np.float64]:
        """Return how probably each row would keep its label had the training rows been others, (n,).

        References:
            Perini, Vercruyssen & Davis (2020), Quantifying the confidence of anomaly detectors in their example-wise
            predictions.
        """
        return self._confidence(self.decision_function(X))

    def _adopt(self, fitted: Estimator, X: Any) -> Self:
        """Take over a fitted detector, and what its training rows tell if they are given."""
        self.estimator_ = fitted
        self.threshold_ = -fitted.offset_
        if X is not None:
            self.decision_scores_ = fitted._training_scores(X)
            if self.contamination is not None:
                self.threshold_ = float(np.quantile(self.decision_scores_, 1 - self.contamination))
            self.labels_ = self._label(self.decision_scores_)
        return self

    def _label(self, scores: NDArray[np.float64]) -> NDArray[np.int64]:
        return (scores > self.threshold_).astype(np.int64)

    def _of_training(self) -> NDArray[np.float64]:
        if not hasattr(self, "decision_scores_"):
            raise NotFittedError(
                "scores of the training rows must be known for this, got a detector fitted without them. "
                "Give the rows: as_pyod(X), or as_pyod().fit(X)."
            )
        return self.decision_scores_

    def _confidence(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        training = np.sort(self._of_training())
        n = len(training)
        flagged = int(n * (self.labels_.mean() if self.contamination is None else self.contamination))
        below = (1 + np.searchsorted(training, scores, side="right")) / (2 + n)
        confidence = 1 - binom.cdf(n - flagged, n, below)
        return np.where(self._label(scores) == 0, 1 - confidence, confidence)
