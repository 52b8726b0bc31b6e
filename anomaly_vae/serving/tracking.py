"""Training, tracking and registering as one step; loading by URI.

Runs are kept in `mlruns/mlflow.db` under the current folder and artifacts in `mlruns/artifacts`, unless
MLFLOW_TRACKING_URI or an earlier `mlflow.set_tracking_uri` says otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.models.model import ModelInfo
from numpy.typing import ArrayLike, NDArray

from ..data.image_column import is_image_column
from ..detection.detector import Detector
from ..errors import ArtifactError, ConfigError, ShapeError, redacted
from ..options import Config, ImageConfig
from ..training import second_checkpoint
from . import flavor

if TYPE_CHECKING:
    from ..estimator import Elsewhere, Fit
    from ..evaluation.metrics import Ranking, Rate
    from ..training import Epoch

Model = TypeVar("Model")
ALIAS = "champion"
FLUSH_SECONDS = 2.0
PARAM_LENGTH = 6000  # MLflow's own bound on a parameter's text
NOISY = ("mlflow", "alembic", "alembic.runtime.migration")


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A new version of a model in the registry.

    Attributes:
        uri: `models:/name/version`.
        name: Name in the registry.
        version: Its version.
        run_id: The run that made it.
        champion: Whether it carries the alias `champion`.
        detector: The model.
        fit: How training went, if it was trained.
        ranking: AUROC and average precision on held-out rows, if labels were given.
        promise: Share of the calibration rows that is flagged, with its interval by groups, if they were split so.
    """

    uri: str
    name: str
    version: str
    run_id: str
    champion: bool
    detector: Detector
    fit: Fit | None = None
    ranking: Ranking | None = None
    promise: Rate | None = None


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A detector and where it came from, with an alias resolved to the version it stands for."""

    detector: Detector
    uri: str


def connect() -> str:
    """Point MLflow at this folder's tracking database, unless it is told otherwise, and return the URI."""
    if not mlflow.is_tracking_uri_set():
        _default_root().mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(_default_uri())
    return str(mlflow.get_tracking_uri())


def train_and_register(
    frame: pd.DataFrame,
    config: Config,
    *,
    name: str,
    labels: NDArray[np.bool_] | None = None,
    source: str | None = None,
    checkpoint: Path | None = None,
    progress: bool = False,
    tags: Mapping[str, str] | None = None,
    elsewhere: Elsewhere | None = None,
) -> Registered:
    """Train a detector, record the run, and register the model.

    Args:
        frame: Rows, without their label; or one column of images.
        config: How to train.
        name: Name in the registry; a new version is added to it.
        labels: True for rows known to be anomalous, shape (n,). They are left out of training; AUROC and average
            precision compare them with the normal rows that were held out for calibration.
        source: Where the rows came from, for the record.
        checkpoint: File that an interrupted training goes on from; removed when the model is registered.
        progress: Whether to show a progress bar.
        tags: Of the run, set before anything is trained.
        elsewhere: See `fit_detector`.

    Raises:
        ConfigError: The name cannot be used in the registry.
        ShapeError: The labels leave no normal row.
    """
    from ..estimator import fit_detector
    from .training_record import log_training

    check_name(name)
    normal = np.ones(len(frame), dtype=bool) if labels is None else ~np.asarray(labels, dtype=bool)
    if not normal.any():
        raise ShapeError("the table must have normal rows to learn from, got labels that are all true. Check --label.")
    rows = frame[normal]
    source = redacted(source) if source else None
    with quiet(), tracked_run(name, tags) as run_id:
        epochs = _EpochLog(run_id)
        fit = fit_detector(
            rows, config, checkpoint=checkpoint, on_epoch=epochs.add, progress=progress, elsewhere=elsewhere
        )
        epochs.flush(fit.history)
        _log_settings(fit.detector.config, rows, name, source)
        registered = _register(fit.detector, name, run_id)
        facts = {"run": run_id, "trained on": source}
        ranking, promise = log_training(fit, rows, frame[~normal], model=registered.uri, facts=facts)
    if checkpoint is not None:
        for path in (checkpoint, second_checkpoint(checkpoint)):
            path.unlink(missing_ok=True)
    return replace(registered, fit=fit, ranking=ranking, promise=promise)


def recalibrate_and_register(
    uri: str, frame: pd.DataFrame, *, groups: ArrayLike | None = None, group_column: str = ""
) -> Registered:
    """Give a registered model a new calibration, without training, as a new version.

    Args:
        uri: `models:/name/version` or `models:/name@alias`.
        frame: Normal rows that the model was not trained on.
        groups: Group of each row, (n,), to promise the false-alarm rate within each, see `Detector.calibrate`.
        group_column: Where the groups came from, for the record.

    Raises:
        ArtifactError: The URI names no model.
        ConfigError: The URI is not of the registry.
        CalibrationError: The rows are too few.
    """
    loaded = load(uri)
    name = registry_name(loaded.uri)
    detector = loaded.detector.calibrate(frame, groups=groups)
    with quiet(), tracked_run(name) as run_id:
        mlflow.log_params({"calibrated_from": redacted(loaded.uri), "calibration_rows": len(frame)})
        if groups is not None:
            mlflow.log_params(
                {"calibration_group": group_column, "calibration_groups": len(detector.calibration.groups)}
            )
        return _register(detector, name, run_id)


def checkpoint_path(name: str, frame: pd.DataFrame, config: Config, labels: NDArray[np.bool_] | None = None) -> Path:
    """Return where an unfinished training of these rows under these settings keeps its state."""
    digest = hashlib.sha256(json.dumps([config.to_dict(), list(map(str, frame.columns))], sort_keys=True).encode())
    digest.update(content(frame))
    digest.update(b"" if labels is None else np.asarray(labels).tobytes())
    return _default_root() / "checkpoints" / f"{name}-{digest.hexdigest()[:16]}.safetensors"


def load(uri: str) -> Loaded:
    """Load a detector and resolve its URI to a version.

    Args:
        uri: `models:/name/version`, `models:/name@alias`, `runs:/id/model`, or a folder.

    Raises:
        ArtifactError: There is no such model, or it is damaged.
    """
    detector, resolved = found(uri, Detector.load, flavor.load_model)
    return Loaded(detector=detector, uri=resolved)


def found(uri: str, own: Callable[[Path], Model], logged: Callable[[str], Model]) -> tuple[Model, str]:
    """Return what a URI names, and the URI with an alias resolved to the version it stands for.

    Args:
        uri: See `load`.
        own: Reads a folder without MLflow's files.
        logged: Reads an MLflow model.

    Raises:
        ArtifactError: There is no such model, or it is damaged.
    """
    path = Path(uri)
    if path.is_dir():
        bare = (path / "config.json").is_file()  # what `save` wrote, without MLflow's files around it
        return own(path) if bare else logged(uri), uri
    if not re.match(r"[a-z][a-z0-9+.-]*:", uri):
        raise ArtifactError(
            f"the model must be a URI such as models:/name@champion or a folder, got {uri!r}. Check the name.", uri=uri
        )
    if not mlflow.is_tracking_uri_set() and not (_default_root() / "mlflow.db").exists():
        raise ArtifactError(
            f"the model must be in a registry, got {uri!r}, and there is no mlruns/mlflow.db in this folder. "
            "Change to the folder the model was trained in, or set MLFLOW_TRACKING_URI.",
            uri=uri,
        )
    with quiet():
        connect()
        try:
            resolved = resolve(uri)
            return logged(resolved), resolved
        except (MlflowException, OSError) as error:
            reason = str(error).strip().splitlines()[0].removeprefix("RESOURCE_DOES_NOT_EXIST: ")
            raise ArtifactError(
                f"the model must be one that MLflow can find, got {uri!r} ({redacted(reason)}). Tracking is at "
                f"{redacted(str(mlflow.get_tracking_uri()))}.",
                uri=uri,
            ) from error


def resolve(uri: str) -> str:
    """Return a registry URI with its alias replaced by the version; other URIs as they are."""
    name, alias = _registry_parts(uri)
    if name is None or alias is None:
        return uri
    return f"models:/{name}/{mlflow.MlflowClient().get_model_version_by_alias(name, alias).version}"


def registry_name(uri: str) -> str:
    """Return the registered name in a URI.

    Raises:
        ConfigError: The URI is not of the registry.
    """
    name, _ = _registry_parts(uri)
    if name is None:
        raise ConfigError(f"the model must be a registered one, models:/name/version, got {uri!r}. Register it first.")
    return name


def check_name(name: str) -> None:
    """Refuse a name that the registry or its URIs cannot carry.

    Raises:
        ConfigError: The name is empty or has a character with a meaning in URIs.
    """
    if not name.strip() or re.search(r"[/:@#?%\s]", name):
        raise ConfigError(
            f"a model's name must have no space and none of / : @ # ? %, got {name!r}. Use letters, digits, - and _.",
            name=name,
        )


@contextlib.contextmanager
def tracked_run(name: str, tags: Mapping[str, str] | None = None) -> Iterator[str]:
    """A run in the experiment of that name, or the run that `mlflow run` has opened for this process.

    Args:
        name: Of the experiment.
        tags: Set from the run's beginning on.
    """
    uri = connect()
    if "MLFLOW_RUN_ID" not in os.environ:
        if mlflow.get_experiment_by_name(name) is None:
            local = (_default_root() / "artifacts" / name).as_uri() if uri == _default_uri() else None
            mlflow.create_experiment(name, artifact_location=local)
        mlflow.set_experiment(name)
    with mlflow.start_run(tags=dict(tags) if tags else None) as run:
        yield run.info.run_id


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep MLflow's notes (database migrations, registry chatter) off the user's screen; errors still show."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _EpochLog:
    """Metrics of epochs, written every few seconds: a database write per epoch would slow small trainings down."""

    def __init__(self, run_id: str) -> None:
        self.client, self.run_id = mlflow.MlflowClient(), run_id
        self.written: set[int] = set()
        self.pending: list[Epoch] = []
        self.last = time.monotonic()

    def add(self, epoch: Epoch) -> None:
        self.pending.append(epoch)
        if time.monotonic() - self.last > FLUSH_SECONDS:
            self.flush(self.pending)

    def flush(self, history: Sequence[Epoch]) -> None:
        """Write what is not written yet; a resumed run's earlier epochs come with its whole history."""
        now = int(time.time() * 1000)
        metrics = [
            Metric(f"train/{field}", float(value), now, epoch.step)
            for epoch in history
            if epoch.step not in self.written
            for field, value in vars(epoch).items()
            if field not in ("step", "epoch") and math.isfinite(value)
        ]
        for start in range(0, len(metrics), 1000):  # the most that MLflow takes at once
            self.client.log_batch(self.run_id, metrics=metrics[start : start + 1000])
        self.written.update(epoch.step for epoch in history)
        self.pending, self.last = [], time.monotonic()


def _default_root() -> Path:
    return Path.cwd() / "mlruns"


def _default_uri() -> str:
    return f"sqlite:///{_default_root() / 'mlflow.db'}"


def _log_settings(config: Config, rows: pd.DataFrame, name: str, source: str | None) -> None:
    settings = config.to_dict()
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    mlflow.log_params({f"config.{key}": text for key, text in texts.items() if len(text) <= PARAM_LENGTH})
    mlflow.log_dict(settings, "config.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a hint about whole numbers with gaps, which the schema handles
        if isinstance(config, ImageConfig):
            digest = hashlib.sha256(content(rows)).hexdigest()[:8]
            table = pd.DataFrame({"images": [len(rows)]})
            data = mlflow.data.from_pandas(table, source=source, name=name, digest=digest)
        else:
            data = mlflow.data.from_pandas(rows, source=source, name=name)
        mlflow.log_input(data, context="training")


def content(frame: pd.DataFrame) -> bytes:
    """Return bytes that differ where the rows do, or the images."""
    pictured = [name for name in dict.fromkeys(frame.columns) if is_image_column(frame[[name]])]
    rest = frame.drop(columns=pictured)
    hashed = pd.util.hash_pandas_object(rest.astype(str), index=False).to_numpy().tobytes() if rest.shape[1] else b""
    if not pictured:
        return hashed
    digest = hashlib.sha256(hashed)
    for name in pictured:
        for cell in frame[name]:
            digest.update(cell.tobytes() if isinstance(cell, np.ndarray) else str(cell).encode())
    return digest.digest()


def _register(detector: Detector, name: str, run_id: str) -> Registered:
    version, champion = new_version(name, lambda: flavor.log_model(detector, registered_model_name=name))
    uri = f"models:/{name}/{version}"
    return Registered(uri=uri, name=name, version=version, run_id=run_id, champion=champion, detector=detector)


def new_version(name: str, log: Callable[[], ModelInfo]) -> tuple[str, bool]:
    """Log and register a model; return its version and whether it is the champion, as the first of its name is.

    Args:
        name: Name in the registry.
        log: Logs the model under that name.
    """
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stderr(nowhere),
    ):  # MLflow prints there, past logging
        info = log()
    version = str(info.registered_model_version)
    client = mlflow.MlflowClient()
    aliases: Mapping[str, Any] = client.get_registered_model(name).aliases
    if ALIAS not in aliases:
        client.set_registered_model_alias(name, ALIAS, version)
    return version, aliases.get(ALIAS, version) == version


def _registry_parts(uri: str) -> tuple[str | None, str | None]:
    """Name and alias in a registry URI; (None, None) for any other."""
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/]+)|/[^/]+)", uri)
    return (match[1], match[2]) if match else (None, None)
