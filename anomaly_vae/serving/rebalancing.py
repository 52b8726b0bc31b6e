"""Resampling, tracking and registering as one step, with lineage from the resampler to its detector and data."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from numpy.typing import ArrayLike

from ..debiasing.resampling import ResampleReport
from ..errors import ConfigError, redacted
from ..options import ResampleConfig
from ..reporting.findings import resample_section
from ..reporting.report import page, report_of
from ..reporting.sections import provenance_section
from ..row_weigher import RowWeigher
from . import tracking, weigher_flavor
from .resampling import Resampled, resample_file

UNNAMED = "resample"
"""Experiment of resamplings of models that are in no registry."""


@dataclass(frozen=True, kw_only=True)
class RegisteredWeigher:
    """A new version of a resampler in the registry.

    Attributes:
        uri: `models:/name/version`.
        name: Name in the registry.
        version: Its version.
        run_id: The run that made it.
        champion: Whether it carries the alias `champion`.
        model: The resampler.
    """

    uri: str
    name: str
    version: str
    run_id: str
    champion: bool
    model: RowWeigher


@dataclass(frozen=True, kw_only=True)
class LoadedWeigher:
    """A resampler and where it came from, with an alias resolved to the version it stands for."""

    model: RowWeigher
    uri: str


@dataclass(frozen=True, kw_only=True)
class Rebalanced:
    """A data set that was rebalanced, the run that says so, and the resampler's version if it was registered."""

    files: Resampled
    run_id: str
    registered: RegisteredWeigher | None


def load(uri: str) -> LoadedWeigher:
    """Load a resampler and resolve its URI to a version; see `tracking.load`.

    Raises:
        ArtifactError: There is no such resampler, or it is damaged.
    """
    model, resolved = tracking.found(uri, RowWeigher.load, weigher_flavor.load_model)
    return LoadedWeigher(model=model, uri=resolved)


def resample_and_register(
    uri: str,
    frame: pd.DataFrame,
    config: ResampleConfig | None = None,
    *,
    name: str,
    labels: ArrayLike | None = None,
    label_column: str | None = None,
    source: str = "",
) -> RegisteredWeigher:
    """Weigh rows by a registered detector, record the run, and register the resampler.

    Args:
        uri: The detector's: `models:/name/version` or `models:/name@alias`, or a folder.
        frame: Rows, n.
        config: Settings; by default `ResampleConfig()`.
        name: Name in the registry, another than the detector's; a new version is added to it.
        labels: Label of each row, (n,), if there are any.
        label_column: What the labels are called in tables.
        source: Where the rows came from, for the record.

    Raises:
        ArtifactError: The URI names no detector.
        ConfigError: The name cannot be used, or labels, settings and data do not go together.
    """
    loaded = tracking.load(uri)
    _check_name(name, loaded.uri)
    model = RowWeigher.fit(loaded.detector, frame, config, labels=labels, label_column=label_column)
    digest = hashlib.sha256(tracking.content(frame)).hexdigest()
    with tracking.quiet(), tracking.tracked_run(name) as run_id:
        _log(model, model.weigher.weighing.report, loaded.uri, source=source, digest=digest)
        return _register(model, name, run_id, loaded.uri, digest)


def resample_and_track(
    uri: str,
    source: str | Path,
    output: str | Path,
    config: ResampleConfig | None = None,
    *,
    label: str | None = None,
    name: str | None = None,
    overwrite: bool = False,
    on_rows: Callable[[int, int], None] | None = None,
) -> Rebalanced:
    """Rebalance a file by a detector, see `resampling.resample_file`, record the run and, given a name, register.

    Raises:
        ArtifactError: The URI names no detector.
        ConfigError: The name cannot be used, or see `resampling.resample_file`.
    """
    loaded = tracking.load(uri)
    if name is not None:
        _check_name(name, loaded.uri)
    done = resample_file(
        loaded.detector, source, output, config,
        label=label, model_uri=loaded.uri, overwrite=overwrite, on_rows=on_rows,
    )  # fmt: skip
    registered = None
    with tracking.quiet(), tracking.tracked_run(name or _experiment(loaded.uri)) as run_id:
        _log(done.model, done.report, loaded.uri, source=str(Path(source).absolute()), digest=done.data_digest)
        mlflow.set_tag("anomaly_vae.output", str(done.path.absolute()))
        if name is not None:
            registered = _register(done.model, name, run_id, loaded.uri, done.data_digest)
    return Rebalanced(files=done, run_id=run_id, registered=registered)


def _check_name(name: str, uri: str) -> None:
    tracking.check_name(name)
    if uri.startswith("models:/") and name == tracking.registry_name(uri):
        raise ConfigError(
            f"a resampler's name must be another than its detector's, got {name!r}. Add for example -weights.",
            name=name,
        )


def _experiment(uri: str) -> str:
    try:
        return tracking.registry_name(uri)
    except ConfigError:
        return UNNAMED


def _log(model: RowWeigher, report: ResampleReport, uri: str, *, source: str, digest: str) -> None:
    mlflow.set_tags(_lineage(model, uri, digest))
    settings = report.settings
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    mlflow.log_params({f"resample.{key}": text for key, text in texts.items()})
    mlflow.log_dict(report.to_dict(), "report.json")
    facts = {"model": redacted(uri), "data": redacted(source), "data digest (SHA-256)": digest}
    shown = [resample_section(report), provenance_section(facts, texts)]
    mlflow.log_text(page(report_of(shown, title="Resampling", subtitle=f"By {redacted(uri)}.")), "report.html")
    mlflow.log_metrics(metrics(report))
    described = pd.DataFrame({"rows": [float(report.rows)]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a note that a source may be read in several ways
        data = mlflow.data.from_pandas(described, source=redacted(source) or None, name="data", digest=digest[:16])
        mlflow.log_input(data, context="resampling")


def _lineage(model: RowWeigher, uri: str, digest: str) -> dict[str, str]:
    return {
        "anomaly_vae.detector_uri": redacted(uri),
        "anomaly_vae.detector_digest": model.detector.digest,
        "anomaly_vae.data_digest": digest,
        "anomaly_vae.label": model.label_column or "",
    }


def metrics(report: ResampleReport) -> dict[str, float]:
    """Return a report's figures by name: effective sample sizes, what guards moved, shares and masses of classes."""
    out = {
        "rows": float(report.rows), "ess": report.ess, "ess_classes": report.ess_classes,
        "class_strength": report.class_strength, "largest_weight": report.largest, "least_weight": report.least,
    }  # fmt: skip
    if report.rows_out is not None:
        out["rows_out"] = float(report.rows_out)
    for guard in report.guards:
        out |= {f"guard/{guard.name}/rows": float(guard.rows), f"guard/{guard.name}/mass_moved": guard.moved}
    for i, part in enumerate(report.classes):
        out |= {f"class/{i}/share": part.share, f"class/{i}/mass": part.mass, f"class/{i}/gamma": part.gamma}
    return out


def _register(model: RowWeigher, name: str, run_id: str, uri: str, digest: str) -> RegisteredWeigher:
    version, champion = tracking.new_version(name, lambda: weigher_flavor.log_model(model, registered_model_name=name))
    client: Any = mlflow.MlflowClient()
    for key, value in _lineage(model, uri, digest).items():
        client.set_model_version_tag(name, version, key, value)
    return RegisteredWeigher(
        uri=f"models:/{name}/{version}", name=name, version=version, run_id=run_id, champion=champion, model=model
    )
