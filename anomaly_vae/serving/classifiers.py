"""A classifier that the user names: any MLflow model whose answer is a class, or probabilities of classes, of each row.

Unlike a detector, which is data, it is loaded as MLflow loads any model, so that what it names as code is run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.types import DataType, Schema, TensorSpec
from numpy.typing import NDArray

from ..data.images import png_of
from ..errors import ArtifactError, SchemaError, redacted
from ..judging import Judged
from .tracking import found, quiet

MOST_TEXT = 200


@dataclass(frozen=True, eq=False)
class NamedClassifier:
    """A `judging.RowClassifier` made of an MLflow model.

    Attributes:
        uri: The model's.
        predict: Rows in, classes or probabilities out.
        inputs: What it declares to take; None where it declares nothing.
    """

    uri: str
    predict: Callable[[Any], Any]
    inputs: Schema | None = None

    def judged(self, rows: Any) -> Judged:
        """Return the class of each row; see `judging.RowClassifier`.

        A table goes in as it is, images as levels (n, h, w) or (n, h, w, c), uint8. A classifier that declares a tensor
        is given that: of images also (n, c, h, w) and flat (n, h w c). One that declares a binary column gets PNG
        files, one that declares as many columns as there are values a table of these.

        Raises:
            SchemaError: It refuses the rows, or its answer is neither classes nor probabilities.
        """
        given = self._images(rows) if isinstance(rows, np.ndarray) else self._table(rows)
        try:
            with warnings.catch_warnings(), quiet():
                warnings.simplefilter("ignore", UserWarning)  # MLflow's on integers that could be missing
                answer = self.predict(given)
        except Exception as error:  # whatever a model of the user's own may raise
            raise self._misfit(f"take rows of this data, got {type(error).__name__}: {_line(error)}") from error
        return self._read(answer, len(rows))

    def _table(self, rows: pd.DataFrame) -> Any:
        spec = self._tensor()
        if spec is None:
            return rows
        try:
            return rows.to_numpy(dtype=spec.type)
        except (TypeError, ValueError):
            words = "take a table with text in it, got a model that declares an array of numbers"
            raise self._misfit(words) from None

    def _images(self, levels: NDArray[np.uint8]) -> Any:
        forms = [levels, levels.reshape(len(levels), -1)]
        forms += [levels[..., None], levels[:, None]] if levels.ndim == 3 else [np.moveaxis(levels, 3, 1)]
        spec = self._tensor()
        if spec is not None:
            for form in forms:
                if len(form.shape) == len(spec.shape) and all(
                    b in (-1, a) for a, b in zip(form.shape[1:], spec.shape[1:], strict=True)
                ):
                    return np.ascontiguousarray(form, dtype=spec.type)
            raise self._misfit(f"take images of shape {levels.shape[1:]}, got one that declares {tuple(spec.shape)}")
        if self.inputs is None:
            return levels
        names = [one.name for one in self.inputs.inputs]
        if len(names) == 1 and self.inputs.inputs[0].type == DataType.binary:
            return pd.DataFrame({names[0]: [png_of(image) for image in levels]})
        if len(names) == forms[1].shape[1]:
            return pd.DataFrame(forms[1], columns=names).astype(
                {one.name: one.type.to_numpy() for one in self.inputs.inputs}
            )
        raise self._misfit(f"take images of {forms[1].shape[1]} values, got one that declares {len(names)} columns")

    def _tensor(self) -> TensorSpec | None:
        specs = [] if self.inputs is None else self.inputs.inputs
        return specs[0] if len(specs) == 1 and isinstance(specs[0], TensorSpec) else None

    def _read(self, answer: Any, rows: int) -> Judged:
        """Return verdicts out of an answer: a table or array of probabilities, or a list of classes."""
        frame = _framed(answer)
        if frame is None or len(frame) != rows or frame.shape[1] == 0:
            shape = type(answer).__name__ if frame is None else f"{len(frame)} x {frame.shape[1]} values"
            raise self._misfit(f"give classes or probabilities of {rows} rows, got {shape}")
        if frame.shape[1] == 1:
            labels = frame.iloc[:, 0]
            whole = pd.api.types.is_float_dtype(labels.dtype) and not (labels == np.round(labels)).all()
            if whole or labels.isna().any():
                raise self._misfit("give classes or probabilities, got one number a row")
            if pd.api.types.is_float_dtype(labels.dtype):
                labels = labels.astype(np.int64)
            return Judged(labels.map(str).to_numpy(dtype=str), None)
        try:
            shares = frame.to_numpy(dtype=np.float64)
        except (TypeError, ValueError):
            shares = np.full((1, 1), np.nan)
        if not ((shares >= 0).all() and np.allclose(shares.sum(1), 1.0, atol=1e-3)):
            names = ", ".join(map(str, frame.columns[:4]))
            raise self._misfit(f"give probabilities that sum to 1 in each row, got others in columns {names}")
        names_of = np.array([str(name) for name in frame.columns])
        return Judged(names_of[shares.argmax(1)], shares / shares.sum(1, keepdims=True))

    def _misfit(self, words: str) -> SchemaError:
        return SchemaError(f"the classifier {self.uri} must {words}. Name one of this data's rows.", uri=self.uri)


def load_classifier(uri: str) -> NamedClassifier:
    """Load an MLflow model as a classifier of rows. Its own code is run: name one that you trust.

    Args:
        uri: `models:/name/version`, `models:/name@alias`, `runs:/id/model`, or a folder.

    Raises:
        ArtifactError: There is no such model, or it cannot be loaded here.
    """

    def refused(path: Path) -> Any:
        raise ArtifactError(f"a classifier must be an MLflow model, got a detector's folder {path.name!r}.", uri=uri)

    def loaded(resolved: str) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # advice to whoever wrote the model
                return mlflow.pyfunc.load_model(resolved)
        except Exception as error:  # of MLflow's, or of the model's own code
            folder = Path(resolved)
            if isinstance(error, MlflowException) and not folder.is_dir():
                raise  # that it is not to be found, which `found` says
            if folder.is_dir() and not (folder / "MLmodel").is_file():
                rule = f"a classifier must be an MLflow model, got the folder {uri!r}. Check the path."
                raise ArtifactError(rule, uri=uri) from error
            why = f"{type(error).__name__}: {_line(error)}"
            raise ArtifactError(
                f"the classifier {uri!r} must load here, got {why}. Install what it needs.", uri=uri
            ) from error

    model, resolved = found(uri, refused, loaded)
    inputs = model.metadata.get_input_schema() if model.metadata is not None else None
    return NamedClassifier(resolved, model.predict, inputs)


def _framed(answer: Any) -> pd.DataFrame | None:
    """Return an answer as a table; None where it is none."""
    if isinstance(answer, pd.DataFrame):
        return answer
    try:
        if not isinstance(answer, (dict, list, tuple, pd.Series)):
            answer = np.asarray(answer)
        if isinstance(answer, np.ndarray) and answer.ndim not in (1, 2):
            return None
        return pd.DataFrame(answer)
    except (TypeError, ValueError):
        return None


def _line(error: Exception) -> str:
    text = redacted(str(error).strip()).splitlines()
    return (text[0] if text else "no reason given")[:MOST_TEXT].rstrip(".")
