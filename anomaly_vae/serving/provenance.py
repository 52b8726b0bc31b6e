"""Where a model and a report come from: what the model's run recorded, digests of files, versions of packages."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from ..data.sources import table_files
from ..detection.detector import Detector
from ..errors import SchemaError, redacted
from ..reporting.parts import Section
from ..reporting.sections import provenance_section
from ..training import Epoch

PACKAGES = ("anomaly-vae", "torch", "numpy", "pandas", "scikit-learn", "pyarrow", "mlflow-skinny", "mlflow")
MOST_HASHED = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a run recorded of a training.

    Attributes:
        history: Its epochs; empty where none are known.
        facts: Where the rows came from, by name.
    """

    history: tuple[Epoch, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def recorded(uri: str) -> Recorded:
    """Return what the run of a registered model recorded; of a version that was calibrated anew, the run before it.

    Args:
        uri: `models:/name/version`; of any other nothing is known.
    """
    client, seen = mlflow.MlflowClient(), 0
    facts: dict[str, Any] = {}
    try:
        while (match := re.fullmatch(r"models:/([^/@]+)/([^/]+)", uri)) and seen < 100:
            run = client.get_run(client.get_model_version(*match.groups()).run_id)
            facts |= {"run": run.info.run_id} if not seen else {}
            before = run.data.params.get("calibrated_from")
            if before is None:
                return Recorded(history=_history(client, run.info.run_id), facts=facts | _inputs(run))
            facts |= {"calibrated from": before}
            uri, seen = before, seen + 1
    except MlflowException:
        pass  # a registry that has lost the run still has the model
    return Recorded(facts=facts)


def provenance(
    detector: Detector, *, model: str = "", data: str | Path | None = None, scored: str | Path | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Section:  # fmt: skip
    """Return where a model and a report come from: URI, digests, versions, settings.

    Args:
        detector: The model.
        model: Its URI.
        data: The data in the report.
        scored: The scored file.
        facts: Further facts by name.
    """
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    described = detector.describe()
    values = {
        "model": redacted(model) or None,
        "model digest (SHA-256)": detector.digest,
        **(facts or {}),
        "data": None if data is None else redacted(str(data)),
        "data digest (SHA-256)": digest_of(data),
        "scored file": None if scored is None else redacted(str(scored)),
        "scored file's digest (SHA-256)": digest_of(scored),
        "network": f"{described['parameters']:,} parameters, {described['latent']} latent dimensions",
        "score": f"{described['score_kind']}, {described['k']} posterior samples",
        "calibration rows": described["calibration"]["rows"],
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Python": platform.python_version(),
        **versions,
    }
    settings = {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in described["config"].items()
    }
    return provenance_section(values, settings)


def digest_of(source: str | Path | None) -> str | None:
    """Return the digest of a table's files; None of anything else, and of more than `MOST_HASHED` bytes."""
    if source is None or not Path(source).exists():
        return None
    try:
        files = table_files(source)
    except SchemaError:
        return None
    if sum(file.stat().st_size for file in files) > MOST_HASHED:
        return f"not computed: larger than {MOST_HASHED >> 30} GiB"
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _history(client: mlflow.MlflowClient, run_id: str) -> tuple[Epoch, ...]:
    measured: dict[int, dict[str, float]] = {}
    for one in fields(Epoch):
        if one.name not in ("epoch", "step"):
            for point in client.get_metric_history(run_id, f"train/{one.name}"):
                measured.setdefault(point.step, {})[one.name] = point.value
    epochs = []
    for number, (step, values) in enumerate(sorted(measured.items()), 1):
        known = {one.name: values.get(one.name, math.nan) for one in fields(Epoch) if one.name not in ("epoch", "step")}
        units = known.pop("active_units")
        epochs.append(Epoch(epoch=number, step=step, active_units=0 if math.isnan(units) else int(units), **known))
    return tuple(epochs)


def _inputs(run: Any) -> dict[str, Any]:
    """Return source and digest of the training rows."""
    for one in run.inputs.dataset_inputs:
        try:
            source = json.loads(one.dataset.source).get("uri")
        except (ValueError, AttributeError):
            source = None
        return {"trained on": source and redacted(str(source)), "digest of the training rows": one.dataset.digest}
    return {}
