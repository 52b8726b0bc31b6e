"""What says of rows which class, or mode, they are of, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from .data.images import ImageSchema
from .detection.detector import Detector
from .errors import ConfigError, ShapeError

CLUSTERS = 10
"""Modes, where there are no classes."""
MOST_CLASSES = 100
CLASS_ROWS = 5
"""Rows that each class wants for a classifier to be trained."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Judged:
    """Which class each of n rows is of.

    Attributes:
        labels: The class of each row, (n,), text.
        probabilities: p(class | row), (n, classes), rows sum to 1; None where only labels are known.
    """

    labels: NDArray[np.str_]
    probabilities: Floats | None

    def shares(self, names: NDArray[np.str_]) -> Floats:
        """Return the probabilities, or, of labels alone, certainty of each row's among these names, (n, classes)."""
        return (self.labels[:, None] == names).astype(float) if self.probabilities is None else self.probabilities


class RowClassifier(Protocol):
    """A classifier of rows as the user knows them, not as the encoder sees them."""

    def judged(self, rows: Any) -> Judged:
        """Return the class of each of n rows.

        Args:
            rows: A table in the model's own columns, or images, levels (n, h, w) or (n, h, w, 3), uint8.
        """


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows in the forms in which judges and features want them.

    Attributes:
        encoded: As the model takes them, (n, m); None of numbers that only the encoder's space knows.
        seen: As the encoder sees them, (n, d).
    """

    encoded: NDArray[Any] | None
    seen: Floats


@dataclass(frozen=True)
class Judge:
    """Says which class a row is of; without classes, which cluster of the data is nearest.

    Attributes:
        model: A classifier, with scikit-learn's methods or those of `RowClassifier`, or the clusters.
        classes: Whether these are classes, rather than clusters.
        detector: Whose rows they are.
    """

    model: Any
    classes: bool
    detector: Detector

    @property
    def of_rows(self) -> bool:
        """Whether it wants rows as the user knows them."""
        return hasattr(self.model, "judged")

    def judged(self, rows: Rows) -> Judged:
        """Return which class each row is of.

        Raises:
            ShapeError: The classifier did not say it of each row.
        """
        if not self.of_rows:
            labels = np.asarray(self.model.predict(rows.seen)).astype(str)
            return Judged(labels, np.asarray(self.model.predict_proba(rows.seen)) if self.classes else None)
        assert rows.encoded is not None
        schema = self.detector.schema
        read = schema.pixels if isinstance(schema, ImageSchema) else schema.decode
        found: Judged = self.model.judged(read(rows.encoded))
        if len(found.labels) != len(rows.seen):
            raise ShapeError(
                f"a classifier must give one verdict a row, got {len(found.labels)} of {len(rows.seen)} rows. "
                "Name one that takes this model's rows."
            )
        return found


def judge_of(
    detector: Detector, x: NDArray[np.float32], classes: NDArray[Any] | None, *, classifier: Any, seed: int
) -> tuple[Judge, str]:
    """Return what judges rows, and what is to be said of it.

    Args:
        detector: The model.
        x: Rows as its encoder sees them, (n, d).
        classes: Of the rows, (n,), text.
        classifier: A classifier, if there is one already.
        seed: Of the clusters, where there are no classes.

    Raises:
        ConfigError: The classifier is none.
    """
    if classifier is not None:
        if not hasattr(classifier, "judged") and not hasattr(classifier, "predict_proba"):
            raise ConfigError(
                "a classifier must have `judged`, or `predict` and `predict_proba` as scikit-learn's, got a "
                f"{type(classifier).__name__}. Name another, or none: one is then trained on the labels.",
                option="classifier",
            )
        return Judge(classifier, True, detector), ""
    said = "No classes were given: modes are clusters of the data, and there is no inception score."
    if classes is not None:
        names, counts = np.unique(classes, return_counts=True)
        usable = names[counts >= CLASS_ROWS]
        if 2 <= len(usable) <= MOST_CLASSES:
            from sklearn.linear_model import LogisticRegression
            from sklearn.pipeline import make_pipeline
            from sklearn.preprocessing import StandardScaler

            rows = np.isin(classes, usable)
            fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.1)).fit(
                x[rows], classes[rows]
            )
            return Judge(fitted, True, detector), ""
        said = (
            f"No classifier: it needs 2 to {MOST_CLASSES} classes of at least {CLASS_ROWS} rows, and the rows have "
            f"{len(usable):,} such among {len(names):,}. Modes are clusters, and there is no inception score."
        )
    count = min(CLUSTERS, len(np.unique(x, axis=0)))
    return Judge(KMeans(count, n_init=3, random_state=seed % 2**32).fit(x.astype(np.float64)), False, detector), said


def log_probabilities(found: Judged) -> Floats:
    """Return a classifier's log p(class | row), (n, classes): features in which rows can be compared.

    Raises:
        ConfigError: It gave labels alone.
    """
    if found.probabilities is None:
        raise ConfigError(
            "features of a classifier must come from probabilities, got labels. Name a model that returns "
            "probabilities, or another space.",
            option="space",
        )
    logs: Floats = np.log(np.clip(found.probabilities, 1e-6, None))
    return logs


def agreement(found: Judged, classes: NDArray[Any]) -> str:
    """Return a sentence on how far a classifier and the rows' own classes, (n,), agree."""
    right = float((found.labels == classes.astype(str)).mean())
    if not np.isin(np.unique(found.labels), classes.astype(str)).any():
        return "None of the classifier's verdicts is a class of the rows: it names them otherwise, or is of other data."
    return f"The classifier gives {right:.1%} of {len(classes):,} rows their own class."


def rows_of_pixels(seen: Floats) -> NDArray[np.float32]:
    """Return images as levels 0 to 255, (n, m), of those that the encoder sees, in [-1, 1] where they are images."""
    return np.clip(np.round((seen + 1) * 127.5), 0, 255).astype(np.float32)
