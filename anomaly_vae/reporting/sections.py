"""Sections of a report on a detector: its data, its training, its scores and what they promise, its latent.

Results in, plain values out (see `parts`); nothing here draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ..data.images import ImageSchema
from ..data.schema import Column, Schema
from .figures import calibration_band
from .parts import Section, absent, cropped, facts, figure, section, table
from .svg import SERIES

if TYPE_CHECKING:
    from ..evaluation.metrics import Ranking, Rate
    from ..evaluation.summaries import Counts, ScoreSummary
    from ..training import Epoch

MOST_COLUMNS = 60
"""Columns of a table that are shown one by one."""
MOST_EPOCHS = 300
SPARK_BINS = 16
_SPREAD = "values: median (1st to 99th percentile), or shares"
MOST_COLOURS = len(SERIES)
_LABELS = ("normal", "anomalous")


def data_section(
    schema: Schema | ImageSchema,
    *,
    rows: int | None = None,
    sample: pd.DataFrame | None = None,
    missing: Mapping[str, int] | None = None,
    examples: Sequence[str] = (),
) -> Section:
    """What the data are.

    Args:
        schema: The model's.
        rows: Rows, or images, that this report is about; None = the training alone.
        sample: Some of them at random, for what values they have.
        missing: Missing cells of each column among all of them.
        examples: Some images, PNG data URIs.
    """
    if isinstance(schema, ImageSchema):
        size = f"{schema.height} x {schema.width}{' in colour' if schema.channels == 3 else ', grey'}"
        seen = f" This report looks at {rows:,} of them." if rows is not None else ""
        images = [{"caption": "", "source": source, "text": f"image {i + 1}"} for i, source in enumerate(examples)]
        shown = [figure("images", "Some of the images", f"{len(images)} drawn at random", {"images": images})]
        return section(
            "data", "The data", sentences=[f"Images, brought to {size}.{seen}"], figures=shown if images else ()
        )
    kinds = pd.Series([c.kind for c in schema.modelled]).value_counts()
    listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
    sentences = [f"A table of {len(schema.modelled):,} columns that the model sees: {listed}."]
    if rows is not None:
        sentences[0] += f" This report looks at {rows:,} rows."
    if missing and rows:
        cells, most = sum(missing.get(c.name, 0) for c in schema.modelled), max(len(schema.modelled), 1) * rows
        sentences.append(f"{cells:,} of {most:,} cells are missing ({cells / most:.2%})." if cells else
                         "No cell is missing.")  # fmt: skip
    if schema.ignored:
        names = "; ".join(f"{cropped(c.name, 60)} ({c.reason})" for c in schema.ignored[:12])
        more = f"; and {len(schema.ignored) - 12:,} more" if len(schema.ignored) > 12 else ""
        sentences.append(f"Left out: {names}{more}.")
    if len(schema.modelled) > MOST_COLUMNS:
        sentences.append(f"The first {MOST_COLUMNS} of {len(schema.modelled):,} columns are shown.")
    noted = any(column.reason for column in schema.modelled[:MOST_COLUMNS])
    head = ["column", "kind"] + (["missing"] if missing is not None else []) + ([_SPREAD] if sample is not None else [])
    head += ["note"] if noted else []
    body = []
    for column in schema.modelled[:MOST_COLUMNS]:
        line: list[Any] = [cropped(column.name, 80), column.kind]
        if missing is not None:
            line.append({"share": missing.get(column.name, 0) / max(rows or 1, 1)})
        if sample is not None:
            line.append(_values(sample[column.name], column) if column.name in sample.columns else "(absent)")
        body.append([*line, *([cropped(column.reason)] if noted else [])])
    return section("data", "The data", sentences=sentences, tables=[table("Columns", head, body)])


def training_section(history: Sequence[Epoch]) -> Section:
    """How training went: the bound, its two parts, the latent units in use."""
    if not history:
        return absent("training", "Training", "The model's run has no record of its epochs.")
    every = max(1, -(-len(history) // MOST_EPOCHS))
    kept = [e for i, e in enumerate(history) if i % every == 0 or i == len(history) - 1]
    validation = np.array([e.validation_elbo for e in history], dtype=np.float64)
    steps = [e.step for e in kept]
    best = int(np.nanargmax(validation)) if np.isfinite(validation).any() else None
    said = f"{len(history):,} epochs, {history[-1].step:,} optimiser steps, {history[-1].seconds:.1f} s."
    marks = []
    if best is not None:
        said += f" The best epoch on the validation rows, whose weights are kept: {validation[best]:.2f} nats a row."
        marks = [{"x": history[best].step, "y": validation[best], "colour": "vermillion"}]
    bound = [
        _curve(steps, [e.elbo for e in kept], "blue"),
        _curve(steps, [e.validation_elbo for e in kept], "vermillion"),
    ]
    parts = [
        _curve(steps, [-e.reconstruction for e in kept], "blue"),
        _curve(steps, [e.kl for e in kept], "vermillion"),
    ]
    fits, costs = [e.reconstruction for e in kept], -np.array([e.kl for e in kept])
    last = history[best] if best is not None else history[-1]
    figures = [
        figure(
            "lines", "Evidence lower bound",
            f"From {kept[0].validation_elbo:.4g} in the first epoch to {last.validation_elbo:.4g} nats a row at best.",
            {"series": bound, "marks": marks, "y_range": _focus([e.elbo for e in kept], validation),
             "x_label": "optimiser step", "y_label": "ELBO, nats per row"},
            [("training batches", "blue", "line"), ("validation rows", "vermillion", "line"),
             *([("kept epoch", "vermillion", "dot")] if marks else [])],
        ),
        figure(
            "lines", "Its two parts",
            f"At the kept epoch the misfit is {-last.reconstruction:.4g} and the KL term {last.kl:.4g} nats a row.",
            {"series": parts, "y_range": None if (low := _focus(fits, costs)) is None else [-low[1], -low[0]],
             "x_label": "optimiser step", "y_label": "nats per row"},
            [("misfit, −log p(x|z)", "blue", "line"), ("KL(q(z|x) ‖ p(z))", "vermillion", "line")],
        ),
        figure(
            "lines", "Latent units in use", f"{last.active_units} at the kept epoch.",
            {"series": [_curve(steps, [e.active_units for e in kept], "green", "step")], "whole": True,
             "y_range": [0, max(e.active_units for e in kept) * 1.25 + 1], "x_label": "optimiser step",
             "y_label": "active units"},
        ),
    ]  # fmt: skip
    return section("training", "Training", sentences=[said], figures=figures)


def calibration_section(counts: Counts | None, *, calibration_rows: int, which: str, normal: bool = True) -> Section:
    """Whether p-values keep their promise.

    Args:
        counts: Of the rows in question; None where there are none.
        calibration_rows: Rows behind the p-values.
        which: What rows they are, in words, as a subject: "rows labelled normal".
        normal: Whether they are known to be normal, and neither trained on nor calibrated with.
    """
    title = "Calibration"
    if not calibration_rows:
        return absent("calibration", title, "The model has no calibration rows, and so gives no p-values.")
    said = (
        f"P-values come from {calibration_rows:,} rows held out of training; the least is "
        f"{1 / (calibration_rows + 1):.2g}. A normal row has p ≤ α with probability at most α."
    )
    if counts is None or not counts.p_rows:
        return section("calibration", title, sentences=[said, "No rows are at hand on which to test this."])
    low, high = (counts.share_at_most(np.array([a]))[0] for a in (0.05, 0.1))
    sentences = [said]
    if normal:
        sentences.append(f"Of {counts.p_rows:,} {which}, {low:.1%} have p ≤ 5 % and {high:.1%} have p ≤ 10 %.")
    else:
        sentences.append(
            f"It is not known which of the {counts.p_rows:,} {which} are normal: a rise at small p-values may be "
            f"anomalies. {low:.1%} have p ≤ 5 %. Name a column of labels, or give normal rows, to test the promise."
        )
    heights = np.diff(counts.p_counts[:: len(counts.p_counts) // 20], prepend=0)[1:].astype(float)
    heights[0] += counts.p_counts[0]
    heights /= counts.p_rows
    shown = [
        figure(
            "histogram", "P-values",
            f"Share of rows in each twentieth; the first, p ≤ 5 %, holds {heights[0]:.1%}, the last {heights[-1]:.1%}.",
            {"edges": np.linspace(0, 1, 21), "series": [{"heights": heights, "colour": "blue"}], "reference": 0.05,
             "y_shares": True, "x_label": "p-value", "y_label": "share of the rows"},
            [(which, "blue", "box"), ("exactly uniform", "ink", "dash")],
        )
    ]  # fmt: skip
    for end, name in ((1.0, "Reliability of α"), (0.1, "The same up to 10 %")) if normal else ():
        alpha = np.linspace(0, end, 101)
        observed = counts.share_at_most(alpha)
        below, above = calibration_band(alpha, counts.p_rows, calibration_rows)
        outside = float(((observed > above) | (observed < below)).mean())
        inside = "stays inside the band" if not outside else f"leaves the band at {outside:.0%} of the rates"
        shown.append(
            figure(
                "lines", name, f"The share of rows with p ≤ α against α: it {inside}.",
                {"series": [{"x": [0, end], "y": [0, end], "colour": "muted", "style": "dash"},
                            {"x": alpha, "y": observed, "colour": "blue", "style": "step"}],
                 "band": {"x": alpha, "low": below, "high": above, "step": True}, "x_range": [0, end],
                 "y_range": [0, max(end, observed[-1], above[-1]) * 1.02], "x_shares": True, "y_shares": True,
                 "x_label": "promised rate α", "y_label": "observed share with p ≤ α"},
                [("observed", "blue", "line"), ("promised", "muted", "dash"), ("95 % band if exact", "band", "box")],
            )
        )  # fmt: skip
    return section("calibration", title, sentences=sentences, figures=shown)


def scores_section(
    summary: ScoreSummary,
    *,
    score_kind: str,
    ranking: Ranking | None = None,
    rates: Mapping[str, Rate] | None = None,
    notes: Sequence[str] = (),
) -> Section:
    """Where the scores lie and what the threshold cuts off.

    Args:
        summary: Of the scored rows.
        score_kind: What the score is.
        ranking: AUROC and average precision, where labels are known.
        rates: Shares flagged with their intervals, by the name of the rows.
        notes: Further sentences.
    """
    counts, threshold = summary.counts, summary.threshold
    cut = "no single threshold" if threshold is None else f"the threshold of {threshold:.4g} nats"
    sentences = [f"{summary.flagged:,} of {summary.rows:,} rows ({summary.flagged / summary.rows:.2%}) are flagged, "
                 f"by {cut}. The score is of the kind “{score_kind}”: high = anomalous."]  # fmt: skip
    below, above = (sum(getattr(c, side) for c in counts.values()) for side in ("below", "above"))
    for number, side, word in ((below, "first", "lower"), (above, "last", "higher")):
        if number:
            verb = "row has a" if number == 1 else "rows have"
            sentences.append(f"{number:,} {verb} {word} score{'' if number == 1 else 's'} than the axis shows and "
                             f"{'is' if number == 1 else 'are'} counted in the {side} bar.")  # fmt: skip
    shares = "all" not in counts
    series, legend, words = [], [], list[str]()
    for kind, colour in (("all", "blue"), ("normal", "blue"), ("anomalous", "vermillion")):
        if kind in counts:
            one = counts[kind]
            series.append({"heights": one.bins / max(one.rows, 1) if shares else one.bins, "colour": colour})
            legend.append((f"{kind} rows" if kind != "all" else "rows", colour, "box"))
            words.append(f"{one.flagged / max(one.rows, 1):.1%} of the {'' if kind == 'all' else kind + ' '}rows")
    if threshold is not None:
        legend.append(("threshold", "ink", "dash"))
    drawn = figure(
        "histogram", "Anomaly scores", f"{' and '.join(words)} are flagged.",
        {"edges": summary.spread.edges, "series": series, "threshold": threshold, "y_shares": shares,
         "x_label": "anomaly score, nats", "y_label": "share of the rows of its kind" if shares else "rows"},
        legend,
    )  # fmt: skip
    pairs: dict[str, Any] = {}
    if ranking is not None:
        pairs["AUROC"] = (
            f"{ranking.auroc:.3f} ({ranking.level:.0%}: {ranking.auroc_low:.3f} to {ranking.auroc_high:.3f})"
        )
        pairs["average precision"] = (
            f"{ranking.average_precision:.3f} ({ranking.level:.0%}: {ranking.ap_low:.3f} to {ranking.ap_high:.3f})"
        )
    rows = [
        [name, f"{rate.count:,} of {rate.n:,}", {"share": rate.rate}, f"{rate.low:.1%} to {rate.high:.1%}"]
        for name, rate in (rates or {}).items()
    ]
    listed = [table("Flagged rows", ["rows", "flagged", "share", "95 % interval"], rows)] if rows else []
    return section(
        "scores",
        "Scores and threshold",
        sentences=[*sentences, *notes],
        figures=[drawn],
        facts=facts(pairs),
        tables=listed,
    )


def latent_section(
    codes: NDArray[np.floating],
    p_values: ArrayLike,
    scores: ArrayLike,
    *,
    alpha: float = 0.05,
    colours: Mapping[str, ArrayLike] | None = None,
    rows: int | None = None,
    most: int = 2000,
    seed: int = 0,
) -> Section:
    """A map of the latent: codes on their first two principal axes, coloured by score, then by each of `colours`.

    Args:
        codes: Means of the rows' posteriors, (n, l).
        p_values: Of the rows, (n,), NaN where there is none.
        scores: Anomaly scores, (n,), by whose quantiles rows are coloured where there are no p-values.
        alpha: Up to which rows are flagged.
        colours: Label or group of each row, (n,), by the name of the colouring.
        rows: Of how many rows these are a sample.
        most: Points drawn at most.
        seed: Of the choice among points that lie close together.
    """
    points = np.asarray(codes, dtype=np.float64)
    if len(points) < 3:
        return absent("latent", "Latent map", "Fewer than three rows make no map of the latent.")
    centred = points - points.mean(0)
    spread = centred.var(0).sum()
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    flat = centred @ axes[:2].T if points.shape[1] > 1 else np.column_stack([centred[:, 0], np.zeros(len(points))])
    explained = np.append(singular**2 / len(points) / max(spread, 1e-300), 0.0)[:2]
    p, s = np.asarray(p_values, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    kept = thinned(flat, np.where(np.isnan(p), 1.0, p) <= alpha, most=most, seed=seed)
    flat, p, s = flat[kept], p[kept], s[kept]
    labels = {"x_label": f"first principal axis ({explained[0]:.0%})", "y_label": f"second ({explained[1]:.0%})"}
    by_score, title, names = _by_score(p, s, alpha)
    figures = [_map(title, flat, by_score, names, ("pale", "blue", "gold", "vermillion"), labels)]
    for name, values in (colours or {}).items():
        text = pd.Series(np.asarray(values, dtype=object)[kept]).map(
            lambda v: "(missing)" if pd.isna(v) else cropped(v, 40)
        )
        shown = text.value_counts().index[:MOST_COLOURS].tolist()
        if set(shown) <= set(_LABELS):
            shown = list(_LABELS)  # in the colours that they have elsewhere
        if text.nunique() > MOST_COLOURS:
            shown[-1] = "(others)"
            text = text.where(text.isin(shown[:-1]), "(others)")
        code = np.array([shown.index(t) for t in text])
        figures.append(_map(f"By {cropped(name, 60)}", flat, code, shown, SERIES, labels))
    number = len(points) if rows is None else rows
    thin = f", {len(kept):,} of them drawn so that crowded places do not hide thin ones" if len(kept) < number else ""
    sentence = (
        f"Codes of {number:,} rows{thin}. The two axes hold {explained.sum():.0%} of the codes' variance "
        f"in {points.shape[1]} dimensions."
    )
    return section("latent", "Latent map", sentences=[sentence], figures=figures)


def provenance_section(values: Mapping[str, Any], settings: Mapping[str, Any]) -> Section:
    """Where the model and this page come from.

    Args:
        values: Facts by name, those that are None left out.
        settings: The model's settings.
    """
    rows = [[name, cropped(value, 400)] for name, value in settings.items()]
    return section(
        "provenance", "Provenance", facts=facts(values), tables=[table("Settings", ["setting", "value"], rows)]
    )


def thinned(
    flat: NDArray[np.float64], always: NDArray[np.bool_], *, most: int, seed: int = 0, cells: int = 48
) -> NDArray[np.intp]:
    """Return which points of a map to draw: from each cell of a grid at most a few, chosen at random.

    Args:
        flat: Points, (n, 2).
        always: Points that come first in their cell, (n,).
        most: Points at most.
        seed: Of the choice.
        cells: Cells along each axis.

    Example:
        >>> points = np.concatenate([np.zeros((1000, 2)), [[9.0, 9.0]]])
        >>> kept = thinned(points, np.zeros(1001, dtype=bool), most=10)
        >>> len(kept), 1000 in kept
        (10, True)
    """
    if len(flat) <= most:
        return np.arange(len(flat))
    low, high = flat.min(0), flat.max(0)
    at = np.minimum(((flat - low) / np.where(high > low, high - low, 1.0) * cells).astype(int), cells - 1)
    cell = at[:, 0] * cells + at[:, 1]
    order = np.lexsort((np.random.default_rng(seed).random(len(flat)), ~always, cell))
    sorted_cells = cell[order]
    starts = np.flatnonzero(np.diff(sorted_cells, prepend=-1))
    rank = np.empty(len(flat), dtype=int)  # place of each point within its cell
    rank[order] = np.arange(len(flat)) - np.repeat(starts, np.diff(np.append(starts, len(flat))))
    chosen = np.argsort(rank, kind="stable")[:most]
    return np.sort(chosen)


def _by_score(p: NDArray[np.float64], s: NDArray[np.float64], alpha: float) -> tuple[NDArray[np.intp], str, list[str]]:
    if np.isnan(p).all():
        edges = np.quantile(s, [0.5, 0.9, 0.99])
        return np.searchsorted(edges, s), "By score", ["lower half", "next 40 %", "next 9 %", "highest 1 %"]
    bounds = [0.5, max(0.1, min(2 * alpha, 0.5)), alpha]
    code = sum((np.nan_to_num(p, nan=1.0) <= b).astype(int) for b in bounds)
    a, b, c = (f"{100 * x:.3g} %" for x in bounds)
    return np.asarray(code), "By p-value", [f"p over {a}", f"{b} to {a}", f"{c} to {b}", f"p ≤ {c}"]


def _map(
    title: str, flat: NDArray[np.float64], code: NDArray[Any], names: Sequence[str], colours: Sequence[str], labels: Any
) -> dict[str, Any]:
    groups, legend = [], []
    for i, name in enumerate(names):
        mine = flat[code == i]
        if len(mine):
            last = i == len(names) - 1 and title == "By p-value"
            groups.append({"x": mine[:, 0], "y": mine[:, 1], "colour": colours[i], "size": 6 if last else 4.5})
            legend.append((name, colours[i], "dot"))
    counted = "; ".join(f"{name}: {int((code == i).sum()):,} points" for i, name in enumerate(names))
    return figure("points", title, f"{counted}.", {"groups": groups, **labels}, legend)


def _values(cells: pd.Series, column: Column) -> dict[str, Any]:
    """Return a column's values as a small histogram and in words."""
    present = cells.dropna()
    if not len(present):
        return {"spark": [], "text": "(all missing)"}
    if column.kind in ("continuous", "count") and column.dtype != "datetime64[ns]":
        numbers = pd.to_numeric(present, errors="coerce").dropna().to_numpy(dtype=np.float64)
        numbers = numbers[np.isfinite(numbers)]
        if len(numbers):
            low, middle, high = np.quantile(numbers, [0.01, 0.5, 0.99])
            top = high if high > low else low + 1
            heights = np.histogram(np.clip(numbers, low, top), SPARK_BINS, (low, top))[0]
            return {"spark": heights / heights.max(), "text": f"{middle:.4g} ({low:.4g} to {high:.4g})"}
    texts = present.astype(str).value_counts(normalize=True)
    words = ", ".join(f"{cropped(name, 24)} {share:.0%}" for name, share in texts.iloc[:3].items())
    more = f", {len(texts) - 3:,} more" if len(texts) > 3 else ""
    heights = texts.iloc[:SPARK_BINS].to_numpy()
    return {"spark": heights / heights.max(), "text": words + more}


def _curve(x: Sequence[int], y: Sequence[float], colour: str, style: str = "solid") -> dict[str, Any]:
    return {"x": list(x), "y": list(y), "colour": colour, "style": style}


def _focus(first: Sequence[float], second: NDArray[np.float64]) -> list[float] | None:
    """Keep the first, very low epochs from flattening the rest of the curve."""
    values = np.concatenate([np.asarray(first, dtype=np.float64), second])
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, middle, high = np.quantile(values, [0, 0.25, 1])
    span = high - middle
    if span <= 0 or middle - low <= 3 * span:
        return None
    return [middle - 3 * span, high + 0.3 * span]
