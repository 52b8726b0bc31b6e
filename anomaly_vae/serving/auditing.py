"""A file audited by a registered detector: whom it flags, and which parts of the data are thin; a run that says so."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..data.image_source import FILE
from ..data.images import ImageSchema
from ..data.rows import labels
from ..debiasing.density import fit_density
from ..debiasing.spaces import fit_space
from ..detection.detector import Detector
from ..detection.latent import posteriors
from ..errors import ConfigError, SchemaError, redacted
from ..evaluation.audit import Audit, audit
from ..options import AuditConfig, ResampleConfig, ScoreConfig
from ..reporting import report as page
from ..reporting.findings import audit_section
from ..reporting.parts import facts as named_facts
from ..reporting.parts import section
from . import tracking
from .outputs import appearing, check_output
from .resampling import digest_of_files
from .streams import beyond, group_names, stream


@dataclass(frozen=True, kw_only=True)
class Audited:
    """What an audit of a file found.

    Attributes:
        audit: Groups, comparisons, coverage, findings.
        model: The detector's URI.
        source: What was audited.
        files: Names of images, by position, (n,); None for a table. Regions name rows by position.
        unreadable: Images that could not be read.
        seconds: Wall time.
        data_digest: SHA-256 of the data, as a resampling of them has it.
    """

    audit: Audit
    model: str
    source: str
    files: NDArray[np.object_] | None = None
    unreadable: int = 0
    seconds: float = 0.0
    data_digest: str = ""

    def examples(self, positions: Sequence[int]) -> list[str]:
        """Return what rows at these positions are called: their number, or the image's file."""
        return [str(i) if self.files is None else str(self.files[i]) for i in positions]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able facts."""
        found = self.audit.to_dict()
        if found["coverage"] and self.files is not None:
            for region in (*found["coverage"]["regions"], *found["coverage"]["rarest"]):
                region["files"] = self.examples(region["examples"])
        names = ("model", "source", "data_digest", "unreadable", "seconds")
        return {**{name: getattr(self, name) for name in names}, **found}

    def metrics(self) -> dict[str, float]:
        """Return the figures that are worth following from audit to audit, by name."""
        found = self.audit
        out = {"rows": float(found.rows), "findings": float(len(found.findings)), "groups": float(len(found.groups))}
        if found.coverage is not None:
            out |= {"evenness": found.coverage.evenness, "thin_cells": float(found.coverage.thin)}
        for gap in found.gaps:
            of = re.sub(r"[^A-Za-z0-9_-]", "_", gap.column)
            out |= {f"{gap.measure}/{of}/difference": gap.difference, f"{gap.measure}/{of}/ratio": gap.ratio}
        return {name: value for name, value in out.items() if np.isfinite(value)}


def audit_file(
    detector: Detector,
    source: str | Path,
    *,
    groups: Sequence[str] = (),
    label: str | None = None,
    by: str | None = None,
    config: AuditConfig | None = None,
    model_uri: str = "",
    on_rows: Callable[[int, int], None] | None = None,
) -> Audited:
    """Audit a detector's judgement of rows, and the rows themselves.

    Args:
        detector: The detector.
        source: CSV or Parquet file, or a folder of them; images for a detector of images.
        groups: Columns that sort rows into groups; without any, the latent's coverage alone is looked at.
        label: Column that is true or 1 for anomalous rows: false alarms are then told from true ones.
        by: Column of groups within which the detector is calibrated and rows are judged.
        config: Settings; by default `AuditConfig()`.
        model_uri: For the record.
        on_rows: Called with the number of rows done and the pass, 1.

    Raises:
        CalibrationError: There are groups, and the detector gives no p-values.
        SchemaError: A named column is absent, or the rows do not fit the detector.
        ConfigError: A group column has no values.
    """
    started, config, schema = time.perf_counter(), config or AuditConfig(), detector.schema
    images = isinstance(schema, ImageSchema)
    named = [name for name in (*groups, by, label) if name is not None]
    classes = [name for name in named if images]
    if len(set(classes)) > 1:
        raise ConfigError(f"images must have one column of classes, got {', '.join(classes)}. Name one.")
    unknown = beyond(schema, *named)
    if groups:
        detector.threshold(config.alpha)  # without p-values there is nothing to compare
    data = stream(source, schema, key=() if images else unknown, label=classes[0] if classes else None)
    whole, latent, p_values, digest = _judged(detector, data.frames, named, by=by, on_rows=on_rows)
    space = fit_space("latent", latent)
    found = audit(
        p_values=p_values,
        groups={name: whole[name] for name in groups},
        codes=space.coordinates(latent) if space.width else latent,
        log_density=fit_density(space.coordinates(latent), ResampleConfig()).own,
        normal=None if label is None else ~labels(whole[label]),
        frame=None if images else whole.drop(columns=[label] if label in unknown else []),
        calibration_rows=detector.calibration.rows or None,
        config=config,
    )
    if space.width == 0:
        found = dataclasses.replace(
            found, notes=(*found.notes, "no latent coordinate varies: all rows are alike to it.")
        )
    return Audited(
        audit=found, model=model_uri, source=str(source), files=whole[FILE].to_numpy(dtype=object) if images else None,
        unreadable=len(data.errors), seconds=time.perf_counter() - started,
        data_digest=digest or digest_of_files(source),
    )  # fmt: skip


def _judged(
    detector: Detector,
    frames: Iterable[pd.DataFrame],
    named: Sequence[str],
    *,
    by: str | None,
    on_rows: Callable[[int, int], None] | None,
) -> tuple[pd.DataFrame, NDArray[np.float32], NDArray[np.float64] | None, str | None]:
    """Go through the data once.

    Returns:
        The rows, n, of images what is known of them beside the pixels; codes, (n, l); p-values, (n,), None of a
        detector without; the digest of images, None of a table.
    """
    schema, images = detector.schema, isinstance(detector.schema, ImageSchema)
    codes, p_values, kept, done, digest = [], [], [], 0, hashlib.sha256()
    for frame in frames:
        absent = [name for name in named if name not in frame.columns]
        if absent:
            shown = ", ".join(repr(str(name)) for name in frame.columns[:8])
            raise SchemaError(f"a named column must be in the table, got {absent[0]!r}. It has {shown}.")
        rows = frame[[name for name in frame.columns if name in schema.names]]
        if images:
            for cell in frame[schema.names[0]]:
                digest.update(np.asarray(cell).tobytes())
        x = detector.encode(rows)
        codes.append(posteriors(detector.model, x)[0])
        if detector.calibration.rows:
            within = None if by is None else group_names(frame, by).to_numpy()
            p_values.append(detector.verdicts(x, alpha=0.5, groups=within).p_values)
        kept.append(frame.drop(columns=schema.names[0]) if images else frame)
        done += len(frame)
        if on_rows:
            on_rows(done, 1)
    return (
        pd.concat(kept, ignore_index=True), np.concatenate(codes), np.concatenate(p_values) if p_values else None,
        digest.hexdigest() if images else None,
    )  # fmt: skip


def log_audit(
    audited: Audited,
    detector: Detector,
    config: AuditConfig,
    *,
    groups: Sequence[str] = (),
    label: str | None = None,
    by: str | None = None,
) -> str | None:
    """Record an audit as a run of the model's experiment, and return the run's id; None for a mere folder.

    Its lineage is in tags and in the run's data set; its figures are metrics, `audit.json` and the page `report.html`.

    Args:
        audited: What was found.
        detector: Whom it was found of.
        config: Settings.
        groups: As for `audit_file`, also the others.
        label: Column of labels.
        by: Column of groups that the detector is calibrated by.
    """
    try:
        name = tracking.registry_name(audited.model)
    except ConfigError:
        return None
    with tracking.quiet(), tracking.tracked_run(name) as run_id:
        mlflow.set_tags({
            "anomaly_vae.audited": redacted(audited.model),
            "anomaly_vae.detector_digest": detector.digest,
            "anomaly_vae.data_digest": audited.data_digest,
        })  # fmt: skip
        named = {"groups": json.dumps(list(groups)), "label": label or "", "by": by or ""}
        mlflow.log_params({f"audit.{key}": value for key, value in {**config.to_dict(), **named}.items()})
        mlflow.log_metrics(audited.metrics())
        mlflow.log_dict(audited.to_dict() | {"source": redacted(audited.source)}, "audit.json")
        with tempfile.TemporaryDirectory(prefix="anomaly-vae-") as folder:
            _page(Path(folder) / "report.html", audited)
            mlflow.log_artifacts(folder)
        described = pd.DataFrame({"rows": [float(audited.audit.rows)]})
        source = redacted(str(Path(audited.source).absolute()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a note that a source may be read in several ways
            data = mlflow.data.from_pandas(described, source=source, name="data", digest=audited.data_digest[:16])
            mlflow.log_input(data, context="audit")
        return run_id


def _json(path: Path, audited: Audited) -> None:
    with appearing(path) as aside:
        aside.write_text(json.dumps(audited.to_dict(), indent=2, ensure_ascii=False, allow_nan=False), "utf-8")


def _page(path: Path, audited: Audited) -> None:
    facts = {"model": redacted(audited.model), "data": redacted(audited.source), "seconds": audited.seconds}
    provenance = section("provenance", "Provenance", facts=named_facts(facts))
    tiles = {"rows": audited.audit.rows, "findings": len(audited.audit.findings)}
    title = f"Audit of {audited.model}"
    page.write_report([audit_section(audited.audit), provenance], path, title=title, tiles=tiles, overwrite=True)


WRITERS: dict[str, Callable[[Path, Audited], None]] = {".json": _json, ".html": _page}
"""How an audit is written, by the suffix of its file."""


def check_report(path: str | Path, source: str | Path, *, overwrite: bool) -> None:
    """Refuse a file of an audit that cannot be written, before the audit is made.

    Raises:
        ConfigError: Its suffix or place cannot be used.
        OutputExistsError: It exists and may not be overwritten.
    """
    check_output(Path(path), Path(source), ScoreConfig(overwrite=overwrite), (), suffixes=tuple(WRITERS))
    if Path(path).suffix == ".html":
        page.check_path(Path(path), overwrite=overwrite)  # beside a page stands its JSON


def write_report(audited: Audited, path: str | Path) -> None:
    """Write an audit into a file, whole or not at all."""
    path = Path(path)
    WRITERS[path.suffix](path, audited)
