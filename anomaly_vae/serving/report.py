"""A report on a detector: of its training, of data it scores, or of data that were scored before."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..data.images import ImageSchema
from ..data.schema import named
from ..detection.detector import Detector
from ..errors import ConfigError, DataWarning, SchemaError
from ..estimator import Fit
from ..evaluation.audit import audit
from ..evaluation.metrics import Ranking, Rate, auroc_ap, flag_rate
from ..evaluation.summaries import ScoreSummary
from ..options import AuditConfig, ReportConfig, ScoreConfig
from ..reporting.findings import audit_section
from ..reporting.parts import Section, absent, png
from ..reporting.report import twin_of, write_report
from ..reporting.scorecards import scorecard_section
from ..reporting.sections import (
    calibration_section,
    data_section,
    latent_section,
    scores_section,
    training_section,
)
from ..training import Epoch
from .batch import score_file
from .gathered import NEEDED, Gathered, Part, beside, gathered, rows_at, scored_frames, scored_rows
from .provenance import Recorded, provenance
from .strangest import modelled, strangest_of
from .streams import stream

if TYPE_CHECKING:
    from ..scorecard import Scorecard

EXPLAINED = 8
EXAMPLES = 12
MOST_IMAGES = 2000
TRAINING_SAMPLE, TRAINING_POINTS, TRAINING_TOP = 5000, 1500, 4
"""Fewer than of a report that was asked for: training is not to wait for a picture."""
_NO_CARD = "None was named: `anomaly-vae scorecard MODEL_URI DATA --out FILE.json` makes one for --scorecard FILE.json."
_NAME_DATA = "Name the data with --data, or a scored file with --scored."


@dataclass(frozen=True, kw_only=True)
class Written:
    """A report that was written.

    Attributes:
        path: The page.
        twin: Its JSON.
        model: The model's URI.
        rows: Rows it is about; None where it is about the model alone.
        seconds: Wall time.
    """

    path: Path
    twin: Path
    model: str
    rows: int | None
    seconds: float


def write_data_report(
    detector: Detector,
    path: Path,
    *,
    model: str,
    recorded: Recorded,
    data: str | Path | None = None,
    scored: str | Path | None = None,
    label: str | None = None,
    groups: Sequence[str] = (),
    card: Scorecard | None = None,
    config: ReportConfig | None = None,
    overwrite: bool = False,
) -> Written:
    """Write a report on a model, and on data if there are some.

    Args:
        detector: The model.
        path: The page, `.html`.
        model: Its URI.
        recorded: What its run recorded.
        data: See `data_sections`, likewise the rest.
        scored: A scored file.
        label: Column of labels.
        groups: Columns of groups.
        card: A scorecard of the model, for a section of its own.
        config: How much to show.
        overwrite: Whether to replace a report that exists.
    """
    started, config = time.perf_counter(), config or ReportConfig()
    sections, tiles = data_sections(
        detector, data=data, scored=scored, label=label, groups=groups, config=config, history=recorded.history,
        model=model,
    )  # fmt: skip
    sections.append(absent("scorecard", "Scorecard", _NO_CARD) if card is None else scorecard_section(card))
    sections.append(provenance(detector, model=model, data=data, scored=scored, facts=recorded.facts))
    write_report(
        sections,
        path,
        title=_title(model),
        subtitle=f"A detector of {detector.kind}.",
        tiles=tiles,
        overwrite=overwrite,
    )
    rows = tiles.get("rows scored")
    return Written(path=path, twin=twin_of(path), model=model, rows=rows, seconds=time.perf_counter() - started)


def write_training_report(
    fit: Fit,
    rows: pd.DataFrame,
    path: Path,
    *,
    scored: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]],
    model: str,
    facts: Mapping[str, Any] | None = None,
) -> Written:
    """Write a report on a training; see `training_sections`.

    Args:
        fit: The training.
        rows: The normal rows that it was given.
        path: The page, `.html`.
        scored: Rows and their scores.
        model: The model's name, or URI.
        facts: Where it comes from, by name.
    """
    started = time.perf_counter()
    config = ReportConfig(sample=TRAINING_SAMPLE, points=TRAINING_POINTS, top=TRAINING_TOP)
    sections, tiles = training_sections(fit, rows, scored=scored, config=config)
    sections.append(provenance(fit.detector, model=model, facts=facts))
    subtitle = f"The training of a detector of {fit.detector.kind}."
    write_report(sections, path, title=_title(model), subtitle=subtitle, tiles=tiles, overwrite=True)
    return Written(path=path, twin=twin_of(path), model=model, rows=len(rows), seconds=time.perf_counter() - started)


def training_sections(
    fit: Fit, rows: pd.DataFrame, *, scored: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]], config: ReportConfig
) -> tuple[list[Section], dict[str, Any]]:
    """Return the sections of a report on a training, but for where it came from, and the figures of its top.

    Args:
        fit: The training.
        rows: The normal rows that it was given.
        scored: Rows and their scores, by what they are: "calibration", "validation", "anomalous"; none if there were no
            rows to calibrate with.
        config: How much to show.
    """
    detector = fit.detector
    columns = () if isinstance(detector.schema, ImageSchema) else detector.schema.names
    known = [name for name in ("calibration", "validation", "anomalous") if name in scored]
    tiles: dict[str, Any] = {"trained on": len(fit.split["train"])}
    if not known:
        given = _looked_at(detector, named(rows), config)
        sections = [given, training_section(fit.history), absent("scores", "Scores", "No rows were held out to score.")]
        return sections, tiles
    labelled = "anomalous" in scored
    frames = [named(scored[name][0]).assign(**({_LABEL: name == "anomalous"} if labelled else {})) for name in known]
    parts = [Part(scores=scored[name][1], rows=frame) for name, frame in zip(known, frames, strict=True)]
    threshold = float(parts[0].scores["threshold"].iloc[0])
    seen = gathered(
        lambda: parts,
        lambda: (part.scores["anomaly_score"].to_numpy() for part in parts),
        threshold=threshold if np.isfinite(threshold) else None,
        config=config,
        label=_LABEL if labelled else None,
        columns=columns,
    )
    fresh = scored.get("validation")
    of_fresh = None
    if fresh is not None:
        only = gathered(lambda: [Part(scores=fresh[1])], lambda: [fresh[1]["anomaly_score"].to_numpy()],
                        threshold=None, config=config)  # fmt: skip
        of_fresh = only.summary.counts["all"]
    which = "validation rows, which only decided when training stopped"
    judged, ranking = _judged(detector, seen, config, notes=["They are rows that were not trained on."])
    sections = [
        _looked_at(detector, named(rows), config),
        training_section(fit.history),
        calibration_section(of_fresh, calibration_rows=detector.calibration.rows, which=which),
        judged,
        strangest_of(detector, seen, None, images=isinstance(detector.schema, ImageSchema)),
        _latent(detector, seen, config, {}),
    ]
    return sections, tiles | _tiles(detector, seen, ranking)


def data_sections(
    detector: Detector,
    *,
    data: str | Path | None,
    scored: str | Path | None,
    label: str | None = None,
    groups: Sequence[str] = (),
    config: ReportConfig,
    history: Sequence[Epoch] = (),
    model: str = "",
) -> tuple[list[Section], dict[str, Any]]:
    """Return the sections of a report on data, but for where it came from, and the figures of its top.

    Args:
        detector: The model.
        data: Table, or images, as `serving.streams.stream` takes it; None: what needs rows is left out.
        scored: What `score_file` wrote of these data; None: they are scored now.
        label: Column of the data that is true for anomalous rows.
        groups: Columns of the data to audit and colour by.
        config: How much to show.
        history: Of the training.
        model: The model's URI, which a scored file must name.

    Raises:
        ConfigError: Labels or groups are asked for without data.
        SchemaError: The data are not the model's, or not those that were scored.
    """
    if data is None and (label or groups):
        name = label or groups[0]
        raise ConfigError(f"a column must come with --data, got {name!r} alone. Name the data it is in.")
    about = [training_section(history)]
    if data is None and scored is None:
        about.insert(0, data_section(detector.schema))
        about.append(calibration_section(None, calibration_rows=detector.calibration.rows, which="rows"))
        about += [absent(key, title, _NAME_DATA) for key, title in _WITHOUT_DATA]
        return about, {"calibrated with": detector.calibration.rows}
    with tempfile.TemporaryDirectory(prefix="anomaly-vae-") as folder:
        if scored is None:
            assert data is not None
            scored = Path(folder) / "scored.parquet"
            settings = ScoreConfig(alpha=config.alpha)
            with warnings.catch_warnings():
                if label or groups:  # which the model need not know
                    warnings.filterwarnings("ignore", "columns unknown to the model were ignored", DataWarning)
                score_file(detector, data, scored, settings, model_version=model, schema=detector.schema)
        seen = _of_file(detector, data, Path(scored), label, groups, config, model)
        top_scores = rows_at(scored, seen.summary.spread.top)
    images = isinstance(detector.schema, ImageSchema)
    if seen.sample is not None:
        examples = _examples(detector, seen.sample) if images else ()
        missing = None if images else seen.missing
        shown = data_section(
            detector.schema, rows=seen.summary.rows, sample=seen.sample, missing=missing, examples=examples
        )
    else:
        shown = data_section(detector.schema, rows=seen.summary.rows)
    counts, known = seen.summary.counts, label is not None
    which = "rows labelled normal" if known else "scored rows"
    calibrated = detector.calibration.rows
    tested = counts["normal"] if known and "normal" in counts else counts.get("all")
    judged, ranking = _judged(detector, seen, config)
    return [
        shown,
        *about,
        calibration_section(tested, calibration_rows=calibrated, which=which, normal=known),
        judged,
        strangest_of(detector, seen, top_scores, images=images),
        *_latent_and_audit(detector, seen, config, groups),
    ], _tiles(detector, seen, ranking)  # fmt: skip


_LABEL = "\0anomalous"  # a name that no table has
_WITHOUT_DATA = (
    ("scores", "Scores and threshold"),
    ("strangest", "The strangest rows"),
    ("latent", "Latent map"),
)


def _of_file(
    detector: Detector, data: str | Path | None, scored: Path, label: str | None, groups: Sequence[str],
    config: ReportConfig, model: str,
) -> Gathered:  # fmt: skip
    first = next(scored_frames(scored, [*NEEDED, "threshold", "model_version"], batch_rows=1024), None)
    if first is None or not len(first):
        raise SchemaError(f"a scored file must have rows, got none in {scored.name!r}. Score the data again.")
    by = str(first["model_version"].iloc[0] or "")
    if model and by and by != model:
        raise SchemaError(f"a scored file must be this model's, {model!r}, got one of {by!r}. Name that model.")
    threshold = float(first["threshold"].iloc[0]) if first["threshold"].nunique() == 1 else None
    images = isinstance(detector.schema, ImageSchema)
    columns = () if images or data is None else detector.schema.names
    if images:
        config = ReportConfig.from_mapping({**config.to_dict(), "sample": min(config.sample, MOST_IMAGES)})

    def parts() -> Iterator[Part]:
        scores = scored_frames(scored, NEEDED)
        if data is None:
            return (Part(scores=frame) for frame in scores)
        aside = label or (groups[0] if images and groups else None)
        frames = (named(frame) for frame in stream(data, detector.schema, label=aside).frames)
        return beside(frames, scores, data=str(data), file=scored.name)

    return gathered(
        parts,
        lambda: (scored_rows(frame.assign(**dict.fromkeys(NEEDED[1:], np.nan))).scores
                 for frame in scored_frames(scored, NEEDED[:1])),
        threshold=threshold, config=config, label=label, groups=groups, columns=columns,
    )  # fmt: skip


def _looked_at(detector: Detector, rows: pd.DataFrame, config: ReportConfig) -> Section:
    """Return what training rows are."""
    rng = np.random.default_rng(config.seed)
    some = rows.iloc[np.sort(rng.choice(len(rows), min(len(rows), config.sample), replace=False))]
    if isinstance(detector.schema, ImageSchema):
        return data_section(detector.schema, rows=len(rows), examples=_examples(detector, some))
    missing = {name: int(count) for name, count in rows[list(detector.schema.names)].isna().sum().items()}
    return data_section(detector.schema, rows=len(rows), sample=some, missing=missing)


def _judged(
    detector: Detector, seen: Gathered, config: ReportConfig, notes: Sequence[str] = ()
) -> tuple[Section, Ranking | None]:
    summary, notes = seen.summary, list(notes)
    ranking, rates = None, _rates(summary)
    if seen.anomalous is not None:
        if 0 < seen.anomalous.sum() < len(seen.anomalous):
            scores = seen.sample_scores["anomaly_score"].to_numpy(dtype=np.float64)
            ranking = auroc_ap(seen.anomalous, scores, n_boot=300, seed=config.seed)
            if summary.rows > len(scores):
                notes.append(f"AUROC and average precision are those of {len(scores):,} rows at random.")
        else:
            notes.append("The labels are all of one kind, so there is no AUROC.")
    section = scores_section(summary, score_kind=detector.config.score_kind, ranking=ranking, rates=rates, notes=notes)
    return section, ranking


def _tiles(detector: Detector, seen: Gathered, ranking: Ranking | None) -> dict[str, Any]:
    """Return the figures for the top of the page."""
    summary = seen.summary
    normal = summary.counts.get("normal")
    return {
        "rows scored": summary.rows,
        "flagged": f"{summary.flagged:,} ({summary.flagged / summary.rows:.2%})",
        "false alarms": f"{normal.flagged / normal.rows:.1%}" if normal is not None and normal.rows else None,
        "AUROC": None if ranking is None else f"{ranking.auroc:.3f}",
        "threshold, nats": summary.threshold,
        "calibrated with": f"{detector.calibration.rows:,} rows",
    }


def _rates(summary: ScoreSummary) -> dict[str, Rate]:
    if "all" in summary.counts:
        return {}
    return {kind: flag_rate(np.arange(c.rows) < c.flagged) for kind, c in summary.counts.items() if c.rows}


def _latent(detector: Detector, seen: Gathered, config: ReportConfig, colours: Mapping[str, Any]) -> Section:
    if seen.sample is None:
        return absent("latent", "Latent map", "The rows themselves are needed for a map: name them with --data.")
    codes, _ = detector.latent(modelled(detector, seen.sample))
    return _mapped(codes, seen, config, colours)


def _mapped(codes: NDArray[np.float32], seen: Gathered, config: ReportConfig, colours: Mapping[str, Any]) -> Section:
    p, scores = (
        seen.sample_scores[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in ("p_value", "anomaly_score")
    )
    labels = {} if seen.anomalous is None else {"label": np.where(seen.anomalous, "anomalous", "normal")}
    return latent_section(
        codes, p, scores, alpha=config.alpha, colours={**labels, **colours}, rows=seen.summary.rows, most=config.points,
        seed=config.seed,
    )  # fmt: skip


def _latent_and_audit(detector: Detector, seen: Gathered, config: ReportConfig, groups: Sequence[str]) -> list[Section]:
    if seen.sample is None:
        return [
            _latent(detector, seen, config, {}),
            absent("audit", "Audit", "The rows themselves are needed to compare groups: name them with --data."),
        ]
    rows = modelled(detector, seen.sample)
    codes, _ = detector.latent(rows)
    columns = {name: seen.sample[name] for name in groups}
    latent = _mapped(codes, seen, config, columns)
    p = seen.sample_scores["p_value"].to_numpy(dtype=np.float64, na_value=np.nan)
    if not groups:
        return [latent, absent("audit", "Audit", "No groups were named; --group COLUMN compares its values.")]
    if np.isnan(p).any():
        return [latent, absent("audit", "Audit", "Some rows have no p-value, so groups cannot be compared.")]
    normal = None if seen.anomalous is None else ~seen.anomalous
    frame = None if isinstance(detector.schema, ImageSchema) else rows
    try:
        found = audit(
            p_values=p, groups=columns, codes=codes, normal=normal, frame=frame,
            calibration_rows=detector.calibration.rows, config=AuditConfig(alpha=config.alpha, seed=config.seed),
        )  # fmt: skip
    except ConfigError as error:
        return [latent, absent("audit", "Audit", str(error))]
    drawn = [] if len(p) == seen.summary.rows else [f"They are drawn at random from {seen.summary.rows:,}."]
    return [latent, audit_section(found, notes=drawn)]


def _examples(detector: Detector, rows: pd.DataFrame) -> list[str]:
    return [png(image, least=96) for image in detector.pixels(modelled(detector, rows.iloc[:EXAMPLES]))]


def _title(model: str) -> str:
    """Return what a page on a model is called."""
    if not model.startswith("models:/"):
        return Path(model).name or "Detector"
    name, _, version = model.removeprefix("models:/").partition("/")
    return f"{name}, version {version}" if version else name
