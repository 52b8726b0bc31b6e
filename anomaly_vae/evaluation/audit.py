"""What a detector does to groups, and which parts of the data are thin: figures, tests, plain sentences.

Arrays in, dataclasses out. In an audit of fair data something is found with a probability of at most `level`,
whatever the number of columns, groups and measures.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ..cards import Carded
from ..errors import ConfigError, ShapeError
from ..options import AuditConfig
from .coverage import Coverage, coverage
from .groups import (
    REST,
    Comparison,
    Gap,
    GroupRow,
    Measured,
    compare,
    corrected,
    describe_group,
    gaps,
    group_columns,
)

FEWEST_IN_A_REGION = 10


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that was found.

    Attributes:
        kind: "flag_rate", "false_alarm_rate", "density", "p_values" or "thin_region".
        subject: The column and group, or the region.
        sentence: The same in plain words.
        p_value: Corrected; None for thin regions, which are not tested.
    """

    kind: str
    subject: str
    sentence: str
    p_value: float | None


@dataclass(frozen=True, kw_only=True)
class Audit(Carded):
    """The outcome of an audit.

    Attributes:
        rows: Rows that were looked at.
        coverage: The latent's cells; None where no codes were given.
        groups: Each group of each column and of each pair of columns.
        comparisons: Each group beside the rest, and groups of a column beside each other.
        gaps: Largest difference and ratio of rates in each column.
        findings: What is both certain and large, the most certain first.
        notes: What could not be judged, and why.
        level: Probability of any finding in fair data, at most.
    """

    rows: int
    coverage: Coverage | None
    groups: tuple[GroupRow, ...]
    comparisons: tuple[Comparison, ...]
    gaps: tuple[Gap, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    level: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values; infinite ratios become null."""
        plain: dict[str, Any] = _finite(dataclasses.asdict(self))
        return plain


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def audit(
    *,
    p_values: ArrayLike | None = None,
    groups: Mapping[str, ArrayLike] | None = None,
    codes: NDArray[np.floating] | None = None,
    log_density: ArrayLike | None = None,
    normal: ArrayLike | None = None,
    frame: pd.DataFrame | None = None,
    calibration_rows: int | None = None,
    config: AuditConfig | None = None,
) -> Audit:
    """Audit a detector's judgement of rows, and the rows themselves.

    Args:
        p_values: Conformal p-value of each row, (n,); those up to `config.alpha` count as flagged. Needed for groups.
        groups: Columns that sort rows into groups, (n,) each. Pairs of columns are looked at, too.
        codes: Codes of the rows, (n, l), for the coverage of the latent.
        log_density: Log density of the codes, (n,), nats.
        normal: Whether a row is known to be normal, (n,): false alarms are then told from true ones.
        frame: The rows' own columns, in which regions are described.
        calibration_rows: Rows behind the p-values.
        config: Settings.

    Raises:
        ConfigError: There is nothing to audit, groups have no p-values, or a group column has no values.
        ShapeError: Arrays differ in length.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> group = np.repeat(["a", "b"], 1000)
        >>> p = np.where(group == "b", rng.random(2000) ** 2, rng.random(2000))
        >>> audit(p_values=p, groups={"team": group}).findings[0].kind
        'p_values'
    """
    config = config or AuditConfig()
    if (codes is None and not groups) or (groups and p_values is None):
        raise ConfigError("an audit must have codes, or groups and p-values, got neither. Give one of them.")
    density = None if log_density is None else np.asarray(log_density, dtype=np.float64)
    found, notes = [], []
    covered = None
    if codes is not None:
        covered = coverage(codes, config, log_density=density, frame=frame)
        found += _thin_regions(covered)
    rows: list[GroupRow] = []
    comparisons: list[Comparison] = []
    between: list[Gap] = []
    if groups and p_values is not None:
        measured = _measured(p_values, density, normal, calibration_rows, config)
        rows, comparisons, between = _groups(groups, measured, config)
        few = [f"{row.column} = {row.group} ({row.rows})" for row in rows if not row.judged]
        if few:
            notes.append(f"groups of fewer than {config.fewest_rows} rows are not judged: {', '.join(few)}.")
        found += [_finding(c) for c in sorted(comparisons, key=lambda c: (c.p_value, -c.size)) if c.found]
    total = len(codes) if codes is not None else len(np.asarray(p_values))
    return Audit(
        rows=total, coverage=covered, groups=tuple(rows), comparisons=tuple(comparisons), gaps=tuple(between),
        findings=tuple(found), notes=tuple(notes), level=config.level,
    )  # fmt: skip


def _measured(
    p_values: ArrayLike,
    log_density: NDArray[np.float64] | None,
    normal: ArrayLike | None,
    calibration_rows: int | None,
    config: AuditConfig,
) -> Measured:
    p = np.asarray(p_values, dtype=np.float64)
    known = None if normal is None else np.asarray(normal, dtype=bool)
    lengths = [len(a) for a in (log_density, known) if a is not None]
    if p.ndim != 1 or not len(p) or any(length != len(p) for length in lengths):
        raise ShapeError(f"p-values must have shape (n,) with n >= 1, got {p.shape}, beside {lengths}. Give as many.")
    if not ((p >= 0) & (p <= 1)).all():
        raise ConfigError("p-values must be from 0 to 1, got others. Leave out rows without a score.")
    return Measured(p <= config.alpha, p, known, log_density, calibration_rows)


def _groups(
    groups: Mapping[str, ArrayLike], measured: Measured, config: AuditConfig
) -> tuple[list[GroupRow], list[Comparison], list[Gap]]:
    n = len(measured.flags)
    rows: list[GroupRow] = []
    comparisons: list[Comparison] = []
    between: list[Gap] = []
    for column, labels in group_columns(groups, n).items():
        members = {name: labels == name for name in sorted(set(labels))}
        described = [describe_group(column, g, measured.part(inside), n, config) for g, inside in members.items()]
        rows += described
        between += gaps(column, labels, measured)
        judged = [row.group for row in described if row.judged]
        for group in judged if len(members) > 2 or len(judged) == 1 else []:
            inside = members[group]
            if (~inside).sum() >= config.fewest_rows:
                comparisons += compare(column, (group, REST), measured.part(inside), measured.part(~inside), config)
        if column in groups:
            for a, b in itertools.combinations(judged, 2):
                comparisons += compare(column, (a, b), measured.part(members[a]), measured.part(members[b]), config)
    return rows, corrected(comparisons, config), between


def _finding(c: Comparison) -> Finding:
    subject = f"{c.column} = {c.group}"
    if c.ratio is not None:
        verb = "is flagged in" if c.measure == "flag_rate" else "has false alarms in"
        what = "rows" if c.measure == "flag_rate" else "normal rows"
        times = "" if not np.isfinite(c.ratio.value) else f", {c.ratio.value:.2g} times as often"
        interval = "" if not times else f" (95 % interval {c.ratio.low:.2g} to {c.ratio.high:.2g})"
        text = f"{subject} {verb} {c.group_value:.1%} of its {what}, {c.other} in {c.other_value:.1%}{times}{interval}"
    elif c.measure == "density":
        side = "thinner" if c.group_value < c.other_value else "denser"
        text = (
            f"{subject} lies in a {side} part of the latent than {c.other}: median log density {c.group_value:.2f} "
            f"against {c.other_value:.2f} nats"
        )
    else:
        side = "more anomalous" if c.group_value < c.other_value else "less anomalous"
        text = (
            f"{subject} is scored as {side} than {c.other}: p-values of mean {c.group_value:.2f} against "
            f"{c.other_value:.2f}"
        )
    return Finding(
        kind=c.measure, subject=subject, sentence=f"{text} (corrected p = {c.corrected:.2g}).", p_value=c.corrected
    )


def _thin_regions(covered: Coverage) -> list[Finding]:
    """Return the cells that are thin and lie apart: a slice of a cloud is thin by the way it was cut."""
    found = []
    for region in reversed(covered.regions):
        if region.thin and region.apart and region.rows >= FEWEST_IN_A_REGION:
            what = region.description or f"rows like {', '.join(map(str, region.examples[:3]))}"
            text = f"A region apart holds only {region.share:.1%} of the rows ({region.rows}): {what}."
            found.append(Finding(kind="thin_region", subject=what, sentence=text, p_value=None))
    return found
