"""The MLflow flavor: a `Detector` as an MLflow model, without a pickle in it.

The artifact holds `MLmodel`, environment files, an input example drawn from the model, and `data/detector` with
`config.json`, tensors and golden rows. `load_model` reads that folder alone and never follows what `MLmodel` names
as code.

Why the signature declares no input columns by default: MLflow checks a declared column before the model sees it,
and no declared type takes what a table brings. `double` refuses whole numbers of 64 bits (a training frame with an
age column), `string` refuses a pandas category, `boolean` turns a missing cell into False, and `Any` refuses CSV.
So the model checks its input itself, against its own schema, and says which column is wrong.
"""

from __future__ import annotations

import logging
import math
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, ParamSchema, ParamSpec
from mlflow.types import Schema as MlflowSchema
from numpy.typing import NDArray

from ..data.images import ImageSchema
from ..data.images import frame_of as frame_of_images
from ..data.schema import Column, Schema
from ..detection.detector import Detector
from ..errors import ArtifactError, CalibrationError, ConfigError, SchemaError, ShapeError
from ..options import ScoreConfig

FLAVOR_NAME = "anomaly_vae"
DETECTOR_FOLDER, RESAMPLER_FOLDER = "detector", "resampler"
EXAMPLE_ROWS = 5
REQUIREMENTS = ("torch", "numpy", "pandas", "pyarrow", "scikit-learn", "scipy", "safetensors", "pillow", "mlflow")
CALLER_FAULTS = (SchemaError, ConfigError, CalibrationError, ShapeError)
"""Errors answered with HTTP 400: the request is at fault, not the server."""

PARAMETERS = ("alpha", "fdr", "k", "explain", "allow_missing", "mc_se")
OUTPUTS = (
    ColSpec("double", "anomaly_score"),
    ColSpec("string", "score_kind"),
    ColSpec("double", "p_value"),
    ColSpec("boolean", "is_anomaly"),
    ColSpec("double", "threshold", required=False),
    ColSpec("double", "mc_se", required=False),
    ColSpec("double", "ess", required=False),
    ColSpec("boolean", "reliable", required=False),
    ColSpec("string", "attributions", required=False),
)
"""What every answer has; the parameter `mc_se` appends the columns of log p(x)."""

_log = logging.getLogger(__name__)


def save_model(
    detector: Detector,
    path: str | Path,
    *,
    mlflow_model: Model | None = None,
    wheel: str | Path | None = None,
    pip_requirements: Sequence[str] | None = None,
    declare_inputs: bool = False,
) -> None:
    """Save a detector as an MLflow model.

    Args:
        detector: What to save.
        path: Folder to make; it must not exist yet.
        mlflow_model: The MLflow model to add to, as `Model.log` passes it.
        wheel: Wheel of this package to carry inside the model, for environments that cannot install it by name.
        pip_requirements: Requirements instead of `default_requirements`.
        declare_inputs: Name the columns in the signature, for registries that demand it. MLflow then refuses some
            tables that the model would take; see the module's text.
    """
    path = Path(path)
    model = mlflow_model if mlflow_model is not None else Model()
    model.add_flavor(FLAVOR_NAME, data=f"data/{DETECTOR_FOLDER}", anomaly_vae_version=metadata.version("anomaly-vae"))
    model.metadata = {**(model.metadata or {}), "columns": _kinds(detector.schema)}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / DETECTOR_FOLDER
        detector.save(folder)
        mlflow.pyfunc.save_model(
            path,
            loader_module=__name__,
            data_path=str(folder),
            mlflow_model=model,
            signature=signature(detector.schema, declare_inputs=declare_inputs),
            input_example=detector.sample(EXAMPLE_ROWS, seed=0),
            pip_requirements=list(pip_requirements or default_requirements(wheel)),
        )
    if wheel is not None:
        (path / "wheels").mkdir()
        shutil.copy(wheel, path / "wheels")


def log_model(
    detector: Detector, *, name: str = "model", registered_model_name: str | None = None, **options: Any
) -> ModelInfo:
    """Log a detector to the active run, and register it if a name is given.

    Args:
        detector: What to log.
        name: Name of the logged model within the run.
        registered_model_name: Name in the registry to add a version to.
        **options: Passed to `save_model` (`wheel`, `pip_requirements`, `declare_inputs`) and `mlflow.models.Model.log`.

    Returns:
        MLflow's facts about the logged model: `model_uri`, `model_id`, `registered_model_version`.
    """
    import anomaly_vae.serving.flavor as flavor

    return Model.log(
        artifact_path=None,
        name=name,
        flavor=flavor,
        registered_model_name=registered_model_name,
        detector=detector,
        **options,
    )


def load_model(model_uri: str, *, dst_path: str | None = None) -> Detector:
    """Load the detector out of an MLflow model.

    Only the detector's own files are read; nothing that `MLmodel` names is imported or run.

    Args:
        model_uri: `models:/name/version`, `models:/name@alias`, `runs:/id/model` or a path.
        dst_path: Folder to download to; by default a temporary one.

    Raises:
        ArtifactError: There is no detector in it, or it is damaged, altered or of a newer format.
    """
    local = Path(mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=dst_path))
    folder = local / "data" / DETECTOR_FOLDER
    if (local / "data" / RESAMPLER_FOLDER).is_dir():
        raise ArtifactError(
            f"the model must be a detector, got the resampler {model_uri!r}. Weigh rows by it, or give its detector.",
            uri=model_uri,
        )
    if not folder.is_dir():
        raise ArtifactError(
            f"the model must be one that this package saved, got {model_uri!r} without data/{DETECTOR_FOLDER}. "
            "Check the URI.",
            uri=model_uri,
        )
    return Detector.load(folder)


def default_requirements(wheel: str | Path | None = None) -> list[str]:
    """Return pinned requirements of the running versions, this package first, by name or as a wheel in the model."""
    own = f"wheels/{Path(wheel).name}" if wheel is not None else f"anomaly-vae=={metadata.version('anomaly-vae')}"
    # A local version such as 2.13.0+cpu exists on no public index.
    return [own, *(f"{name}=={metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS)]


def _kinds(schema: Schema | ImageSchema) -> dict[str, str]:
    if isinstance(schema, Schema):
        return {c.name: c.kind for c in schema.modelled}
    return {schema.column: "image", **({schema.classes.column: "class"} if schema.classes else {})}


def signature(schema: Schema | ImageSchema, *, declare_inputs: bool = False) -> ModelSignature:
    """Return the model signature: parameters, output columns and, on demand, input columns."""
    kinds = {"bool": "boolean", "string": "string", "datetime64[ns]": "datetime"}
    if isinstance(schema, Schema):
        inputs = [ColSpec(kinds.get(c.dtype, "double"), c.name, required=False) for c in schema.modelled]
    else:
        inputs = [ColSpec("binary", schema.column)]
        inputs += [ColSpec("string", schema.classes.column)] if schema.classes else []
    defaults = ScoreConfig()
    params = [
        ParamSpec("alpha", "double", defaults.alpha),  # the false-alarm rate promised on normal rows
        ParamSpec("fdr", "double", 0.0),  # flag this request's rows under a false discovery rate; 0 = off
        ParamSpec("k", "long", 0),  # posterior samples per row; 0 = the model's own
        ParamSpec("explain", "long", defaults.explain),  # columns named per row in attributions; 0 = off
        ParamSpec("allow_missing", "boolean", defaults.allow_missing),  # take absent columns for missing cells
        ParamSpec("mc_se", "double", 0.0),  # also estimate log p(x) to within this standard error; 0 = off
    ]
    return ModelSignature(
        inputs=MlflowSchema(inputs) if declare_inputs else None,
        outputs=MlflowSchema(list(OUTPUTS)),
        params=ParamSchema(params),
    )


class ServedDetector:
    """What `mlflow.pyfunc.load_model` wraps: rows in, a dict of columns out.

    A dict of lists is answered several times faster over HTTP than a DataFrame. Calls share nothing that they
    change, so the server may run them in threads.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector = detector

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> dict[str, list[Any]]:
        """Score rows.

        Args:
            data: A DataFrame, a dict of columns or a list of dicts, with the model's columns by name. For images the
                one column `image`, whose cells are encoded files (bytes, or base64 text) or nested lists of levels; or,
                without a name, an array (n, h, w) or (n, h, w, c). A model that is told classes wants their column,
                too, by name.
            params: `alpha`, `fdr` (0 = off), `k` (0 = the model's own), `explain` (0 = off), `allow_missing`, `mc_se`
                (0 = off).

        Raises:
            MlflowException: The request is at fault (HTTP 400, with the reason) or the server (HTTP 500, without).
        """
        try:
            frame = request_frame(data, self.detector.schema)
            return columns_of(self.detector.score_frame(frame, **arguments(params or {})))
        except CALLER_FAULTS as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        except Exception:
            _log.exception("scoring failed")
            # No stack for the caller: it would show the server's paths and perhaps other callers' data.
            raise MlflowException("The model failed on this request. The server's log says why.") from None


def _load_pyfunc(path: str) -> ServedDetector:
    """Load for `mlflow.pyfunc`; `path` is the detector's folder."""
    return ServedDetector(Detector.load(path))


def arguments(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's parameters as arguments of `Detector.score_frame`; 0 stands for "off" or "the model's own".

    Raises:
        ConfigError: One is unknown or out of range.
    """
    off_at_zero = {name: params.get(name) or None for name in ("fdr", "k", "mc_se")}
    config = ScoreConfig.from_mapping({**params, **off_at_zero})
    if config.fdr is not None and config.alpha != ScoreConfig.alpha:
        raise ConfigError(
            f"alpha and fdr must not both be set, got alpha={config.alpha:g} and fdr={config.fdr:g}. Drop one."
        )
    for name in params:
        if name not in PARAMETERS:
            raise ConfigError(f"a parameter must be one of {', '.join(PARAMETERS)}, got {name!r}. Rename or drop it.")
    return {name: getattr(config, name) for name in PARAMETERS}


def request_frame(data: Any, schema: Schema | ImageSchema) -> pd.DataFrame:
    """Return a request's rows, or images, as a frame of the schema's columns.

    Raises:
        SchemaError: They cannot be understood.
    """
    if isinstance(schema, Schema):
        return restored(frame_of(data), schema)
    column, told = schema.column, schema.classes
    if told is not None:
        return _with_classes(frame_of(data), schema)
    if isinstance(data, Mapping) and set(data) == {column}:
        data = data[column]
    if isinstance(data, (list, np.ndarray)) and len(data) and not isinstance(data[0], Mapping):
        if isinstance(data[0], (str, bytes)):
            return pd.DataFrame({column: pd.Series(list(data), dtype=object)})
        return frame_of_images(_levels(data), column=column)
    frame = frame_of(data)
    if column not in frame.columns:
        raise SchemaError(
            f"images must be sent in the column {column!r}, got {list(map(str, frame.columns))[:5]}. Rename it."
        )
    return pd.DataFrame({column: _images(frame, column)})


def _with_classes(frame: pd.DataFrame, schema: ImageSchema) -> pd.DataFrame:
    """Return images and their classes; what is absent is for the schema to say."""
    known = [name for name in schema.names if name in frame.columns]
    return pd.DataFrame({name: _images(frame, name) if name == schema.column else frame[name] for name in known})


def _images(frame: pd.DataFrame, column: str) -> pd.Series:
    """Return a request's images, nested lists among them as arrays."""
    cells = [_levels(cell) if isinstance(cell, list) else cell for cell in frame[column]]
    return pd.Series(cells, index=frame.index, dtype=object)


def _levels(nested: Any) -> NDArray[Any]:
    """Return nested lists of JSON numbers as an array: whole numbers are levels, others shares of the brightest."""
    try:
        array = np.asarray(nested)
        if array.dtype.kind not in "biuf":
            raise ValueError
    except ValueError:
        raise SchemaError(
            "images sent as numbers must be nested lists of one shape, (n, h, w) or (n, h, w, c), got others. "
            "Send PNG or JPEG bytes in base64 where sizes differ."
        ) from None
    if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    return array


def frame_of(data: Any) -> pd.DataFrame:
    """Return a request's rows as a frame.

    Args:
        data: A DataFrame, or what MLflow's server makes of `inputs` and `instances`: a dict of columns or a list of
            dicts, whose cells it may have wrapped in arrays.

    Raises:
        SchemaError: The rows have no column names, or the columns differ in length.
    """
    if isinstance(data, pd.DataFrame):
        return data
    if isinstance(data, Mapping):
        listed = {
            str(name): values if isinstance(values, list) else np.atleast_1d(values) for name, values in data.items()
        }
        columns = {name: [_plain(v) for v in values] for name, values in listed.items()}
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            name = next(n for n in lengths if lengths[n] != next(iter(lengths.values())))
            raise SchemaError(
                f"columns must have the same number of rows, got {lengths[name]} in {name!r} and "
                f"{next(iter(lengths.values()))} before it. Send null for a missing cell.",
                column=name,
            )
        return pd.DataFrame(columns)
    if isinstance(data, Sequence) and data and all(isinstance(row, Mapping) for row in data):
        return pd.DataFrame([{str(name): _plain(value) for name, value in row.items()} for row in data])
    raise SchemaError(
        f"rows must come with column names, got {type(data).__name__}. "
        "Send a table with a header, or a dict of columns."
    )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


def restored(frame: pd.DataFrame, schema: Schema) -> pd.DataFrame:
    """Give text columns back the text that a CSV reader took for numbers: 7 becomes "007" where the model knows that.

    Raises:
        SchemaError: Two known categories read alike ("07" and "7"), so that the text cannot be recovered.
    """
    changed = {}
    for column in schema.modelled:
        if column.dtype != "string" or column.kind == "continuous" or list(frame.columns).count(column.name) != 1:
            continue
        series = frame[column.name]
        texts = _texts(column)
        if not texts or not pd.api.types.is_numeric_dtype(series.dtype):  # which counts booleans too
            continue
        cells = series.astype(object)
        clashes = [value for value in cells if texts.get(value, "") is None]
        if clashes:
            raise SchemaError(
                f"column {column.name!r} must be sent as text, got {clashes[0]!r}, which several of its "
                "categories read as. Send JSON strings or Parquet.",
                column=column.name,
            )
        changed[column.name] = cells.map(lambda value, texts=texts: texts.get(value, value))
    return frame.assign(**changed) if changed else frame


def _texts(column: Column) -> dict[Any, str | None]:
    """What a CSV reader makes of each category that looks like a number or boolean; None where two look alike."""
    found: dict[Any, str | None] = {}
    for text in column.categories:
        word = text.strip().lower()
        value: Any = {"true": True, "false": False}.get(word)
        if value is None and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", word):
            value = float(word)
        if value is not None:
            found[value] = None if value in found else text
    return found


def columns_of(scores: pd.DataFrame) -> dict[str, list[Any]]:
    """Return scores as lists by column, with None for what is missing or not finite (JSON has no NaN)."""
    return {str(name): _cells(scores[name]) for name in scores.columns}


def _cells(series: pd.Series) -> list[Any]:
    if pd.api.types.is_float_dtype(series.dtype):
        values = series.to_numpy(dtype=np.float64, na_value=np.nan).tolist()
        return [value if math.isfinite(value) else None for value in values]
    return [None if pd.isna(value) else value for value in series.tolist()]
