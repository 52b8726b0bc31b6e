"""Results as text for a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import DataWarning, TrainingWarning
from ..options import ImageConfig, TrainConfig

if TYPE_CHECKING:
    from ..debiasing.resampling import ResampleReport
    from ..detection.detector import Detector
    from ..estimator import Fit
    from ..evaluation.audit import Audit
    from ..evaluation.metrics import Ranking, Rate

MAX_WARNINGS = 10


def training_lines(fit: Fit, detector: Detector) -> str:
    """What a detector was trained on, what was left out, and what its best epoch came to."""
    split = {name: len(rows) for name, rows in fit.split.items()}
    best = max(fit.history, key=lambda epoch: epoch.validation_elbo)
    lines = [
        f"Trained on {split['train']:,} {detector.kind}; {split['validation']:,} more decided "
        f"when to stop, {split['calibration']:,} set the thresholds."
    ]
    ignored = getattr(detector.schema, "ignored", ())
    lines += [f"  column {column.name!r} ignored: {column.reason}" for column in ignored]
    lines.append(
        f"Best of {len(fit.history)} epochs: validation ELBO {best.validation_elbo:.2f} nats a row, "
        f"KL {best.kl:.2f}, {best.active_units} active units."
    )
    return "\n".join(lines)


def promise_line(promise: Rate | None, column: str) -> str:
    """From how many groups thresholds come, and how many rows of other groups they flag.

    Args:
        promise: Share of the calibration rows that is flagged, with its interval by groups.
        column: The column of groups.
    """
    if promise is None:
        return (
            f"Thresholds come from rows of one {column!r} alone, and nothing tells how others differ: hold out more "
            "(--set calibration=0.3), or name a finer column."
        )
    return (
        f"Thresholds come from {promise.n_groups:,} groups of {column!r} and flag {promise.rate:.1%} of their rows; of "
        f"other groups' rows they flag {promise.low:.1%} to {promise.high:.1%} ({promise.level:.0%} interval)."
    )


def registered_line(name: str, version: str, *, champion: bool) -> str:
    """Which version a model became, and whether it is the champion."""
    standing = ", the champion." if champion else "; the champion stays as it was."
    return f"Registered as version {version} of {name}{standing}"


def ranking_lines(ranking: Ranking) -> str:
    """AUROC and average precision with their intervals, two lines."""
    return (
        f"AUROC              {ranking.auroc:.3f}  ({ranking.level:.0%}: {ranking.auroc_low:.3f} to "
        f"{ranking.auroc_high:.3f})\n"
        f"average precision  {ranking.average_precision:.3f}  ({ranking.level:.0%}: {ranking.ap_low:.3f} to "
        f"{ranking.ap_high:.3f}), {ranking.n_anomalous:,} anomalous rows against {ranking.n_normal:,} normal ones"
    )


GUARDED = {"anomaly": "look anomalous", "isolated": "resemble no other", "label": "look mislabelled"}
MOST_CLASSES = 10


def resampling_lines(report: ResampleReport) -> str:
    """What a resampling did, in plain sentences."""
    lines = [
        f"{report.rows:,} rows weighed: from {report.least:.2g} to {report.largest:.2g} of the mean weight, effective "
        f"sample size {report.ess:.0%} of the rows."
    ]
    if "space_parts" in report.facts:
        lines.append(f"Distances count by how far rare rows stand out in them: {report.facts['space_parts']}.")
    if len(report.classes) > 1:
        shown = ", ".join(f"{c.name} {c.share:.1%} -> {c.mass:.1%}" for c in report.classes[:MOST_CLASSES])
        more = f", and {len(report.classes) - MOST_CLASSES} more" if len(report.classes) > MOST_CLASSES else ""
        lines.append(f"Share of the rows -> of the weight, by class: {shown}{more}.")
    for guard in report.guards:
        lines.append(
            f"{guard.rows:,} rows ({guard.share:.1%}) {GUARDED.get(guard.name, guard.name)} and are never weighted up: "
            f"{guard.mass_after:.1%} of the weight, where it would be {guard.mass_before:.1%}."
        )
    return "\n".join([*lines, *(f"Note: {note}" for note in report.notes)])


MOST_GROUPS = 30


def audit_lines(audit: Audit, examples: Callable[[Sequence[int]], list[str]]) -> str:
    """What an audit found, in plain sentences.

    Args:
        audit: The audit.
        examples: Names rows by their positions.
    """
    lines = [f"{audit.rows:,} rows audited."]
    if audit.coverage is not None:
        covered = audit.coverage
        lines.append(
            f"The latent's {covered.cells} cells are filled with an evenness of {covered.evenness:.2f} (of 1), "
            f"{covered.thin} of them with less than half the average. The rarest:"
        )
        for region in covered.rarest:
            what = region.description or f"such as {', '.join(examples(region.examples[:3]))}"
            lines.append(f"  {region.rows:,} rows ({region.share:.1%}): {what}")
    for row in audit.groups[:MOST_GROUPS]:
        alarms = row.false_alarm_rate
        known = "" if alarms is None else f", false alarms {alarms.value:.1%} ({alarms.low:.1%} to {alarms.high:.1%})"
        few = "" if row.judged else "; too few to judge"
        lines.append(
            f"{row.column} = {row.group}: {row.rows:,} rows ({row.share:.1%}), flagged {row.flag_rate.value:.1%} "
            f"({row.flag_rate.low:.1%} to {row.flag_rate.high:.1%}){known}{few}"
        )
    if len(audit.groups) > MOST_GROUPS:
        lines.append(f"and {len(audit.groups) - MOST_GROUPS} more groups; --out has them all.")
    lines += [f"Found: {finding.sentence}" for finding in audit.findings]
    if not audit.findings:
        lines.append(
            f"Nothing was found that chance would not bring about in {audit.level:.0%} of audits of fair data."
        )
    return "\n".join([*lines, *(f"Note: {note}" for note in audit.notes)])


def rate(rate: Rate) -> str:
    """A share with its interval and counts."""
    return f"{rate.rate:.1%}  ({rate.level:.0%}: {rate.low:.1%} to {rate.high:.1%}), {rate.count:,} of {rate.n:,}"


def print_explanation(row: dict[str, Any]) -> None:
    """Print why one row scored as it did: a table of its attributions, with bars.

    Args:
        row: row, anomaly_score, p_value, is_anomaly and the parsed attributions.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    flag = "flagged" if row["is_anomaly"] else "not flagged"
    table = Table(
        title=f"Row {row['row']:,}: score {row['anomaly_score']:.2f} nats, p = {row['p_value']:.3g}, {flag}",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for name, justify in (
        ("column", "left"),
        ("nats", "right"),
        ("", "left"),
        ("value", "right"),
        ("expected", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    largest = max(part["nats"] for part in row["attributions"])
    for part in row["attributions"]:
        bar = "█" * round(12 * max(part["nats"], 0) / largest) if largest > 0 else ""
        cells = [_cell(part[name]) if name in part else "" for name in ("value", "expected")]
        table.add_row(escape(part["column"]), f"{part['nats']:.2f}", bar, *map(escape, cells))
    console = Console()
    console.print(table)
    console.print()


def _cell(value: Any) -> str:
    if value is None:
        return "(missing)"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def print_facts(facts: dict[str, Any]) -> None:
    """Print what `Detector.describe` says of a model, and its `uri`."""
    calibration = facts["calibration"]
    least = calibration["least_p_value"]
    samples = ", ".join(map(str, calibration["k"])) or "none"
    lines = {
        "model": facts["uri"],
        "score": f"{facts['score_kind']}, {facts['k']} posterior samples (calibrated for {samples})",
        "calibration": f"{calibration['rows']:,} rows" + (f", least p-value {least:.2g}" if least else ""),
        "network": f"{facts['parameters']:,} parameters, {facts['latent']} latent dimensions",
        "digest": facts["digest"][:16],
    }
    images = facts["columns"][0]["kind"] == "image"
    defaults = (ImageConfig() if images else TrainConfig()).to_dict()
    changed = {k: v for k, v in facts["config"].items() if k != "columns" and v != defaults.get(k)}
    lines["settings"] = ", ".join(f"{k}={v}" for k, v in changed.items()) or "the defaults"
    for name, value in lines.items():
        print(f"{name:<12} {value}")
    print(f"\n{len(facts['columns'])} columns")
    width = max(len(column["name"]) for column in facts["columns"])
    for column in facts["columns"]:
        print(f"  {column['name']:<{width}}  {column['kind']:<12} {column['reason']}".rstrip())


@contextlib.contextmanager
def counting_rows() -> Iterator[Callable[[int, int], None] | None]:
    """A count of rows and rows per second on standard error, if somebody is looking."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    text = TextColumn("{task.description} {task.completed:,.0f} rows, {task.fields[rate]:,.0f} a second")
    with Progress(SpinnerColumn(), text, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        tasks = {}

        def on_rows(rows: int, turn: int) -> None:
            if turn not in tasks:
                tasks[turn] = (
                    bar.add_task("scoring" if turn == 1 else "flagging", total=None, rate=0.0),
                    time.perf_counter(),
                )
            task, started = tasks[turn]
            bar.update(task, completed=rows, rate=rows / max(time.perf_counter() - started, 1e-3))

        yield on_rows


@contextlib.contextmanager
def counting_parts(shown: bool | None = None) -> Iterator[Callable[[Any], None] | None]:
    """A bar of a job's parts on standard error, with rows per second and the time left, if somebody is looking.

    Yields:
        What to call with each `serving.folder.Progress`; None: nobody is looking.
    """
    if not (sys.stderr.isatty() if shown is None else shown):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}"))
    started = time.perf_counter()
    begun: dict[int, tuple[float, float]] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("scoring", total=1.0, facts="")

        def on_progress(at: Any) -> None:
            now = time.perf_counter()
            since, share = begun.setdefault(at.turn, (now, at.share))
            facts = parts_line(at, seconds=now - started, lately=(now - since, at.share - share))
            bar.update(task, completed=at.share, description="scoring" if at.turn == 1 else "flagging", facts=facts)

        yield on_progress


def parts_line(at: Any, *, seconds: float, lately: tuple[float, float]) -> str:
    """How far a job of many parts is.

    Args:
        at: A `serving.folder.Progress`.
        seconds: Since the job began.
        lately: Seconds, and the share of the job that was done in them, from which the time left is told.
    """
    line = f"{at.done:,} of {at.parts:,} parts, {at.rows:,} rows, {at.rows / max(seconds, 1e-3):,.0f} a second"
    took, share = lately
    return f"{line}, {_duration((1 - at.share) * took / share)} left" if share > 0 else line


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def tidy_warnings() -> None:
    """Show one line for each different warning of this package, none of other people's."""
    shown: set[str] = set()

    def show(message: Warning | str, *_: Any) -> None:
        text = str(message)
        if text in shown or len(shown) > MAX_WARNINGS:
            return
        shown.add(text)
        line = f"Warning: {text}" if len(shown) <= MAX_WARNINGS else "Warning: further warnings are not shown."
        print(line, file=sys.stderr)

    warnings.simplefilter("ignore")
    for category in (DataWarning, TrainingWarning):
        warnings.simplefilter("always", category)
    warnings.showwarning = show  # type: ignore[assignment]
