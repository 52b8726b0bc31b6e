"""The section of a report on a scorecard: samples beside baselines, the latent space, and the bound."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .parts import Section, cropped, facts, figure, section, table

if TYPE_CHECKING:
    from ..evaluation.disentanglement import Disentanglement
    from ..evaluation.latents import BoundAtK
    from ..scorecard import Samples, Scorecard

MOST_SAMPLES = 12
"""Sets of samples that are pictured; a scorecard has four."""
MOST_LOST = 8
MOST = 1e12


def scorecard_section(card: Scorecard) -> Section:
    """What a model is as a generative model: the six properties.

    Args:
        card: As `scorecard.make_scorecard` returns it.
    """
    said = [
        f"{card.rows:,} {cropped(card.data)} were looked at; samples and baselines are compared with a third of them, "
        f"in {cropped(card.space, 40)} features. A figure of the model means little without those of the baselines: "
        "other rows of the data are the best that can be.",
        *(cropped(note, 400) for note in card.notes[:12]),
    ]
    tables = [_samples(card.samples)] if card.samples else []
    figures = _pictured(card.samples[:MOST_SAMPLES])
    if card.factors is not None:
        tables.append(_factors(card.factors))
    if card.perplexities:
        rows = [[cropped(c.name, 60), c.value, c.se, c.alone, c.cells] for c in card.perplexities]
        head = ["column", "perplexity", "standard error", "by itself", "cells"]
        tables.append(table("Perplexity of categorical columns, given the other cells", head, rows))
    if card.bounds:
        tables.append(_bounds(card.bounds))
        figures += _bound(card.bounds)
    return section("scorecard", "Scorecard", sentences=said, facts=facts(_facts(card)), figures=figures, tables=tables)


def _facts(card: Scorecard) -> dict[str, Any]:
    found: dict[str, Any] = {
        "rows drawn a second": _text(card.rows_per_second, ",.0f"),
        "latent dimensions in use": f"{card.active} of {card.latent}",
    }
    if card.smoothness is not None:
        smooth = card.smoothness
        found["paths between rows"] = (
            f"{_text(smooth.detour, '.2f')} times as long as straight, "
            f"the longest step {_text(smooth.largest_step, '.2f')} times the mean"
        )
    if card.prior is not None:
        prior = card.prior
        found["aggregated posterior off the prior"] = (
            f"{_text(prior.marginal_kl, '.2f')} ± {_text(prior.marginal_se, '.2f')} nats"
        )
        found["what codes tell of rows"] = (
            f"{_text(prior.mutual_information, '.2f')} of {_text(prior.log_rows, '.2f')} nats"
        )
    if card.factors is not None:
        f = card.factors
        found["mutual information gap"] = _text(f.mig)
        found["disentanglement, completeness, informativeness"] = (
            f"{_text(f.disentanglement)}, {_text(f.completeness)}, {_text(f.informativeness)}"
        )
        if f.factor_vae is not None and f.factor_vae.chance < 1:
            vote = f.factor_vae
            found["FactorVAE score"] = f"{_text(vote.value)} ± {_text(vote.se)}, by chance {_text(vote.chance)}"
    return found


def _samples(samples: tuple[Samples, ...]) -> dict[str, Any]:
    head = ["samples", "Fréchet distance", "classifier AUC", "precision", "density", "recall", "coverage", "modes",
            "modes lost"]  # fmt: skip
    judged = any(one.inception is not None for one in samples)
    head += ["inception score"] if judged else []
    body = []
    for one in samples:
        near = one.neighbourhoods
        lost = ", ".join(cropped(name, 40) for name in one.modes.lost[:MOST_LOST])
        line: list[Any] = [
            cropped(one.name, 60), f"{_text(one.frechet.value)} ± {_text(one.frechet.se)}",
            f"{_text(one.classifier.auroc)} ({_text(one.classifier.low)} to {_text(one.classifier.high)})",
            near.precision, near.density, near.recall, f"{_text(near.coverage)} of {_text(near.expected_coverage)}",
            f"{one.modes.found} of {one.modes.count}",
            lost + (f", {len(one.modes.lost) - MOST_LOST:,} more" if len(one.modes.lost) > MOST_LOST else ""),
        ]  # fmt: skip
        if judged:
            line.append(
                None if one.inception is None else f"{_text(one.inception.value, '.2f')} of {one.inception.classes}"
            )
        body.append(line)
    return table("Samples, and baselines, beside held-out rows", head, body)


def _pictured(samples: tuple[Samples, ...]) -> list[dict[str, Any]]:
    """Return quality and coverage beside each other, and whether a classifier tells samples from data."""
    found, near = [], [one for one in samples if _known(one.neighbourhoods.density, one.neighbourhoods.coverage)]
    if near:
        rows = [{"label": s.name, "values": [s.neighbourhoods.density, s.neighbourhoods.coverage]} for s in near]
        first = near[0].neighbourhoods
        text = (
            f"{near[0].name}: density {_text(first.density, '.2f')}, coverage {_text(first.coverage, '.2f')} "
            f"where {_text(first.expected_coverage, '.2f')} is expected of the data's own distribution."
        )
        data = {"rows": rows, "series": [{"colour": "blue"}, {"colour": "green"}], "x_label": "density, coverage"}
        legend = [("density: samples are like the data", "blue", "box"),
                  ("coverage: the data are like samples", "green", "box")]  # fmt: skip
        found.append(figure("bars", "Quality and coverage", text, data, legend))
    told = [one for one in samples if _known(one.classifier.auroc, one.classifier.low, one.classifier.high)]
    if told:
        lines = [{"label": s.name, "value": s.classifier.auroc, "low": s.classifier.low, "high": s.classifier.high}
                 for s in told]  # fmt: skip
        text = f"{told[0].name}: AUC {_text(told[0].classifier.auroc, '.2f')}; .5 is a classifier that cannot tell."
        data = {"rows": lines, "reference": 0.5, "x_label": "AUC of a classifier of samples and data"}
        legend = [("with its 95 % interval", "blue", "dot"), ("cannot be told", "ink", "dash")]
        found.append(figure("intervals", "Can samples be told from data?", text, data, legend))
    return found


def _factors(found: Disentanglement) -> dict[str, Any]:
    voted = found.factor_vae.dimension if found.factor_vae is not None else {}
    head = ["factor", "mutual information gap", "largest correlation", "with dimension", "least varying dimension"]
    body = [
        [cropped(name, 60), gap, found.correlation.get(name), found.dimension.get(name), voted.get(name)]
        for name, gap in found.mig_of.items()
    ]
    return table("Known factors", head, body)


def _bounds(bounds: tuple[BoundAtK, ...]) -> dict[str, Any]:
    head = ["posterior samples", "bound, nats", "standard error", "below the last", "effective samples", "unreliable"]
    body = [[b.k, b.value, b.se, b.gap, b.ess, {"share": b.unreliable}] for b in bounds]
    return table("The bound on log p(x) as samples grow", head, body)


def _bound(bounds: tuple[BoundAtK, ...]) -> list[dict[str, Any]]:
    known = [one for one in bounds if one.k > 0 and _known(one.value)]
    if len(known) < 2:
        return []
    at = [math.log2(one.k) for one in known]
    series = [{"x": at, "y": [one.value for one in known], "colour": "blue", "style": "solid"}]
    marks = [{"x": x, "y": one.value, "colour": "blue"} for x, one in zip(at, known, strict=True)]
    first, last = known[0], known[-1]
    text = (
        f"From {_text(first.value, '.2f')} nats a row with {first.k:,} to {_text(last.value, '.2f')} with {last.k:,}, "
        f"of which {_text(last.ess, '.1f')} count."
    )
    data = {"series": series, "marks": marks, "x_label": "log₂ of the posterior samples", "y_label": "nats per row"}
    return [figure("lines", "The bound as samples grow", text, data)]


def _known(*values: float) -> bool:
    """Return whether these can be drawn: a file may hold any number."""
    return all(math.isfinite(value) and abs(value) < MOST for value in values)


def _text(value: float, form: str = ".3f") -> str:
    return format(value, form if abs(value) < MOST else ".3g") if math.isfinite(value) else "–"
