"""The MLflow flavor of resamplers: a `RowWeigher` as an MLflow model, without a pickle in it.

As that of detectors (`flavor`): `MLmodel`, environment files, an input example drawn from the detector, and
`data/resampler` with what `RowWeigher.save` writes. `load_model` reads that folder alone and never follows what
`MLmodel` names as code. The signature declares no input columns for the reason given there.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec
from mlflow.types import Schema as MlflowSchema

from ..data.images import ImageSchema
from ..errors import ArtifactError, ConfigError
from ..row_weigher import GUARDED, RowWeigher
from .flavor import (
    CALLER_FAULTS,
    EXAMPLE_ROWS,
    RESAMPLER_FOLDER,
    columns_of,
    default_requirements,
    frame_of,
    request_frame,
)

FLAVOR_NAME = "anomaly_vae_resampler"
OUTPUTS = (
    ColSpec("double", "weight"),
    ColSpec("double", "log_density"),
    *(ColSpec("boolean", name) for name in GUARDED.values()),
)

_log = logging.getLogger(__name__)


def save_model(
    weigher: RowWeigher,
    path: str | Path,
    *,
    mlflow_model: Model | None = None,
    pip_requirements: Sequence[str] | None = None,
) -> None:
    """Save a resampler as an MLflow model.

    Args:
        weigher: What to save.
        path: Folder to make; it must not exist yet.
        mlflow_model: The MLflow model to add to, as `Model.log` passes it.
        pip_requirements: Requirements instead of `default_requirements`.
    """
    model = mlflow_model if mlflow_model is not None else Model()
    model.add_flavor(FLAVOR_NAME, data=f"data/{RESAMPLER_FOLDER}", anomaly_vae_version=metadata.version("anomaly-vae"))
    facts = {"label": weigher.label_column or "", "detector_digest": weigher.detector.digest}
    model.metadata = {**(model.metadata or {}), **facts}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / RESAMPLER_FOLDER
        weigher.save(folder)
        mlflow.pyfunc.save_model(
            Path(path),
            loader_module=__name__,
            data_path=str(folder),
            mlflow_model=model,
            signature=ModelSignature(outputs=MlflowSchema(list(OUTPUTS))),
            input_example=example(weigher),
            pip_requirements=list(pip_requirements or default_requirements()),
        )


def log_model(
    weigher: RowWeigher, *, name: str = "model", registered_model_name: str | None = None, **options: Any
) -> ModelInfo:
    """Log a resampler to the active run, and register it if a name is given.

    Args:
        weigher: What to log.
        name: Name of the logged model within the run.
        registered_model_name: Name in the registry to add a version to.
        **options: Passed to `save_model` and `mlflow.models.Model.log`.
    """
    import anomaly_vae.serving.weigher_flavor as flavor

    return Model.log(
        artifact_path=None,
        name=name,
        flavor=flavor,
        registered_model_name=registered_model_name,
        weigher=weigher,
        **options,
    )


def load_model(model_uri: str, *, dst_path: str | None = None) -> RowWeigher:
    """Load the resampler out of an MLflow model; nothing that `MLmodel` names is imported or run.

    Args:
        model_uri: `models:/name/version`, `models:/name@alias`, `runs:/id/model` or a path.
        dst_path: Folder to download to; by default a temporary one.

    Raises:
        ArtifactError: There is no resampler in it, or it is damaged, altered or of a newer format.
    """
    local = Path(mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=dst_path))
    folder = local / "data" / RESAMPLER_FOLDER
    if not folder.is_dir():
        raise ArtifactError(
            f"the model must be a resampler that this package saved, got {model_uri!r} without "
            f"data/{RESAMPLER_FOLDER}. Check the URI.",
            uri=model_uri,
        )
    return RowWeigher.load(folder)


def example(weigher: RowWeigher) -> pd.DataFrame:
    """Return rows drawn from the detector, with labels of the classes in turn, if there are classes."""
    rows = weigher.detector.sample(EXAMPLE_ROWS, seed=0)
    if not weigher.needs_labels:
        return rows
    strata = weigher.weigher.strata
    shown: tuple[Any, ...] = strata.values or strata.edges or (0.0,)
    return rows.assign(**{str(weigher.label_column): [shown[i % len(shown)] for i in range(len(rows))]})


class ServedWeigher:
    """What `mlflow.pyfunc.load_model` wraps: rows in, a dict of columns out. Calls share nothing that they change."""

    def __init__(self, weigher: RowWeigher) -> None:
        self.weigher = weigher

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> dict[str, list[Any]]:
        """Weigh rows.

        Args:
            data: A DataFrame, a dict of columns or a list of dicts, with the detector's columns by name, and the column
                of labels where weights are within classes. Images are encoded files, see `flavor.ServedDetector`.
            params: There are none.

        Returns:
            Each row's weight, log density and guards, see `RowWeigher.score_frame`.

        Raises:
            MlflowException: The request is at fault (HTTP 400, with the reason) or the server (HTTP 500, without).
        """
        try:
            if params:
                raise ConfigError(f"a resampler must be asked without parameters, got {sorted(params)[0]!r}. Drop it.")
            return columns_of(self.weigher.score_frame(self._frame(data)))
        except CALLER_FAULTS as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        except Exception:
            _log.exception("weighing failed")
            # No stack for the caller: it would show the server's paths and perhaps other callers' data.
            raise MlflowException("The model failed on this request. The server's log says why.") from None

    def _frame(self, data: Any) -> pd.DataFrame:
        schema, label = self.weigher.detector.schema, self.weigher.label_column
        if not isinstance(schema, ImageSchema) or not self.weigher.needs_labels:
            return request_frame(data, schema)
        rows = frame_of(data)
        labels = self.weigher.labels_in(rows)
        return request_frame(rows, schema).assign(**{str(label): labels})


def _load_pyfunc(path: str) -> ServedWeigher:
    """Load for `mlflow.pyfunc`; `path` is the resampler's folder."""
    return ServedWeigher(RowWeigher.load(path))
