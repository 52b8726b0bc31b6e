"""A file audited by a registered detector: whom it flags, and which parts of the data are thin."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from .outputs import appearing, check_output
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
    """

    audit: Audit
    model: str
    source: str
    files: NDArray[np.object_] | None = None
    unreadable: int = 0
    seconds: float = 0.0

    def examples(self, positions: Sequence[int]) -> list[str]:
        """Return what rows at these positions are called: their number, or the image's file."""
        return [str(i) if self.files is None else str(self.files[i]) for i in positions]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able facts."""
        found = self.audit.to_dict()
        if found["coverage"] and self.files is not None:
            for region in (*found["coverage"]["regions"], *found["coverage"]["rarest"]):
                region["files"] = self.examples(region["examples"])
        facts = {"model": self.model, "source": self.source, "unreadable": self.unreadable, "seconds": self.seconds}
        return {**facts, **found}


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
    codes, p_values, kept, done = [], [], [], 0
    for frame in data.frames:
        absent = [name for name in named if name not in frame.columns]
        if absent:
            shown = ", ".join(repr(str(name)) for name in frame.columns[:8])
            raise SchemaError(f"a named column must be in the table, got {absent[0]!r}. It has {shown}.")
        rows = frame[[name for name in frame.columns if name in schema.names]]
        x = detector.encode(rows)
        codes.append(posteriors(detector.model, x)[0])
        if detector.calibration.rows:
            within = None if by is None else group_names(frame, by).to_numpy()
            p_values.append(detector.verdicts(x, alpha=0.5, groups=within).p_values)
        kept.append(frame.drop(columns=list(schema.names)) if images else frame)
        done += len(frame)
        if on_rows:
            on_rows(done, 1)
    whole, latent = pd.concat(kept, ignore_index=True), np.concatenate(codes)
    space = fit_space("latent", latent)
    found = audit(
        p_values=np.concatenate(p_values) if p_values else None,
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
    )  # fmt: skip


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
