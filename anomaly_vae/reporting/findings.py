"""Sections of a report on groups, rebalancing and drift: what an audit found, what a resampling did, what has moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .parts import Section, absent, cropped, facts, figure, plain, section, table

if TYPE_CHECKING:
    from ..debiasing.resampling import ResampleReport
    from ..evaluation.audit import Audit
    from ..evaluation.groups import GroupRow

MOST_GROUPS = 16
"""Groups of a column that are pictured, and columns of a drift test."""
_MEASURES = {"flag_rate": "flagged", "false_alarm_rate": "false alarms"}
_STATISTICS = ("statistic", "distance", "psi", "effect", "size")
_DRIFTED = ("drifted", "drift", "found", "rejected")


def audit_section(audit: Audit, *, notes: Sequence[str] = ()) -> Section:
    """What an audit found: sentences, rates of groups with their intervals, thin regions of the latent.

    Args:
        audit: As `evaluation.audit.audit` returns it.
        notes: Further sentences.
    """
    if audit.findings:
        number = f"{len(audit.findings)} finding{'' if len(audit.findings) == 1 else 's'}"
        said = [f"{number} in {audit.rows:,} rows. Of audits of fair data at most {audit.level:.0%} find anything."]
    else:
        said = [f"Nothing was found in {audit.rows:,} rows that is both certain and large."]
    said += [*notes, *audit.notes]
    tables = []
    if audit.findings:
        rows = [[finding.sentence, _p(finding.p_value)] for finding in audit.findings]
        tables.append(table("Findings, the most certain first", ["finding", "corrected p"], rows))
    figures = []
    columns = list(dict.fromkeys(row.column for row in audit.groups))
    for column in columns[:6]:
        groups = [row for row in audit.groups if row.column == column and row.judged]
        for measure in _MEASURES if len(groups) > 1 else ():
            figures += _rates(column, measure, groups, audit)
    if audit.groups:
        tables.append(_groups(audit.groups))
    if audit.coverage is not None:
        regions = audit.coverage.regions
        said.append(
            f"The latent is cut into {audit.coverage.cells} cells of like rows; how evenly they are filled is "
            f"{audit.coverage.evenness:.2f} (1 = all alike), and {audit.coverage.thin} are thin."
        )
        shares = [{"label": f"cell {i + 1}", "values": [region.share]} for i, region in enumerate(regions[:24])]
        data = {"rows": shares, "series": [{"colour": "blue"}], "x_shares": True, "x_label": "share of the rows"}
        least = f"From {regions[0].share:.1%} of the rows in the fullest to {regions[-1].share:.2%} in the emptiest."
        figures.append(figure("bars", "Cells of the latent", least, data))
        rare = [[r.description or f"rows like {', '.join(map(str, r.examples[:3]))}", r.rows, {"share": r.share}]
                for r in audit.coverage.rarest]  # fmt: skip
        tables.append(table("The rarest regions", ["what they are", "rows", "share"], rare))
    return section("audit", "Audit", sentences=said, figures=figures, tables=tables)


def resample_section(report: ResampleReport) -> Section:
    """What a resampling did: the classes before and after, its guards, and what it cost.

    Args:
        report: As `LatentDensityResampler.report_` has it.
    """
    out = "" if report.rows_out is None else f" The result has {report.rows_out:,} rows ({report.mode})."
    floor = "" if report.ess_floor is None else f" (at least {report.ess_floor:.0%} was asked for)"
    said = [
        f"{report.rows:,} rows were weighed by how rare their codes are, from {report.least:.3g} to "
        f"{report.largest:.3g} times the mean; they count for as many as {report.ess:.0%} equal ones{floor}.{out}",
        *report.notes,
    ]
    figures, tables = [], []
    if len(report.classes) > 1:
        classes = sorted(report.classes, key=lambda c: -c.share)
        rows = [{"label": c.name, "values": [c.share, c.mass]} for c in classes[:MOST_GROUPS]]
        series = [{"colour": "pale"}, {"colour": "blue"}]
        rarest = classes[-1]
        text = f"{rarest.name} goes from {rarest.share:.1%} of the rows to {rarest.mass:.1%} of the weight."
        data = {"rows": rows, "series": series, "x_shares": True, "x_label": "share"}
        legend = [("before: share of the rows", "pale", "box"), ("after: share of the weight", "blue", "box")]
        figures.append(figure("bars", "Classes before and after", text, data, legend))
    head = ["class", "rows", "share before", "share after", "factor", "density inverted", "effective share"]
    body = [[cropped(c.name, 60), c.rows, {"share": c.share}, {"share": c.mass}, c.factor, {"share": c.gamma},
             {"share": c.ess}] for c in report.classes]  # fmt: skip
    tables.append(table("Classes" if len(report.classes) > 1 else "All rows", head, body))
    if report.guards:
        guarded = [[g.name, g.rows, {"share": g.share}, {"share": g.mass_before}, {"share": g.mass_after}]
                   for g in report.guards]  # fmt: skip
        tables.append(
            table("Rows that are never weighted up", ["guard", "rows", "share", "without it", "with it"], guarded)
        )
    return section(
        "resampling", "Resampling", sentences=said, figures=figures, tables=tables, facts=facts(report.facts)
    )


def drift_section(
    tests: Mapping[str, Mapping[str, Any]], *, sentences: Sequence[str] = (), level: float = 0.05
) -> Section:
    """What has moved: one test for each column.

    Args:
        tests: Column -> its facts, for example `{"test", "statistic", "p_value", "drifted"}`; all are shown. A column
            counts as drifted where one of `drifted`, `drift`, `found`, `rejected` says so, else where its
            `corrected` p-value, or `p_value`, is at most `level`.
        sentences: What else is to be said.
        level: See above.
    """
    if not tests:
        return absent("drift", "Drift", "No column was tested.")
    moved = [name for name, test in tests.items() if _drifted(test, level)]
    names = ", ".join(cropped(name, 40) for name in moved[:8]) + (", …" if len(moved) > 8 else "")
    said = [f"{len(moved)} of {len(tests)} columns have drifted{f': {names}' if moved else ''}.", *sentences]
    keys = list(dict.fromkeys(key for test in tests.values() for key in test))
    order = sorted(tests, key=lambda name: (name not in moved, _p_of(tests[name])))
    body = [[cropped(name, 60), *(_shown(tests[name].get(key)) for key in keys)] for name in order]
    figures = []
    sized = next((key for key in _STATISTICS if any(_number(t.get(key)) is not None for t in tests.values())), None)
    if sized is not None:
        largest = sorted(tests, key=lambda name: -(_number(tests[name].get(sized)) or 0.0))[:MOST_GROUPS]
        rows = [{"label": name, "values": [_number(tests[name].get(sized))]} for name in largest]
        text = f"{largest[0]} has the largest {sized}, {_number(tests[largest[0]].get(sized)) or 0:.3g}."
        data = {"rows": rows, "series": [{"colour": "vermillion"}], "x_label": sized}
        figures.append(figure("bars", "How far columns have moved", text, data))
    head = ["column", *(key.replace("_", " ") for key in keys)]
    return section(
        "drift", "Drift", sentences=said, figures=figures, tables=[table("Tests, the surest first", head, body)]
    )


def _rates(column: str, measure: str, groups: Sequence[GroupRow], audit: Audit) -> list[dict[str, Any]]:
    rows = []
    for group in groups[:MOST_GROUPS]:
        rate = getattr(group, measure)
        if rate is not None:
            rows.append({"label": group.group, "value": rate.value, "low": rate.low, "high": rate.high})
    if len(rows) < 2:
        return []
    gap = next((g for g in audit.gaps if g.column == column and g.measure == measure), None)
    words = _MEASURES[measure]
    least, most = min(rows, key=lambda r: r["value"]), max(rows, key=lambda r: r["value"])
    text = f"{most['label']} has the most, {most['value']:.1%}; {least['label']} the least, {least['value']:.1%}."
    data = {"rows": rows, "reference": gap.overall if gap else None, "x_shares": True, "x_label": f"share {words}"}
    legend = [("with its 95 % interval", "blue", "dot"), *([("all rows", "ink", "dash")] if gap else [])]
    return [figure("intervals", f"{cropped(column, 60)}: {words}", text, data, legend)]


def _groups(groups: Sequence[GroupRow]) -> dict[str, Any]:
    head = ["column", "group", "rows", "share", "flagged", "95 % interval"]
    alarms = any(g.false_alarm_rate is not None for g in groups)
    density = any(g.median_log_density is not None for g in groups)
    head += (["false alarms"] if alarms else []) + (["median log density"] if density else [])
    body = []
    for g in groups:
        rate = g.flag_rate
        line: list[Any] = [cropped(g.column, 60), cropped(g.group, 60), g.rows, {"share": g.share}]
        line += [{"share": rate.value}, f"{rate.low:.1%} to {rate.high:.1%}"]
        line += [g.false_alarm_rate and {"share": g.false_alarm_rate.value}] if alarms else []
        line += [g.median_log_density and g.median_log_density.value] if density else []
        body.append(line)
    return table("Groups", head, body)


def _drifted(test: Mapping[str, Any], level: float) -> bool:
    said = next((test[key] for key in _DRIFTED if isinstance(plain(test.get(key)), bool)), None)
    return _p_of(test) <= level if said is None else bool(said)


def _p_of(test: Mapping[str, Any]) -> float:
    found = [_number(test.get(key)) for key in ("corrected", "p_corrected", "adjusted_p_value", "p_value")]
    return next((value for value in found if value is not None), 1.0)


def _number(value: Any) -> float | None:
    value = plain(value)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _shown(value: Any) -> Any:
    value = plain(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if value is None or isinstance(value, (int, float)) else cropped(value)


def _p(value: float | None) -> str:
    return "not tested" if value is None else f"{value:.2g}"
