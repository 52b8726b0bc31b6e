"""Comparisons and scorecards as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from ..comparison.results import Figures, ModelComparison
    from ..scorecard import Samples, Scorecard

WIDTH = 150
"""Columns of a table that goes into a file or a pipe."""


def print_comparison(found: ModelComparison) -> None:
    """Print the table of models: figures, or the sentence in their place, and the notes below."""
    from rich.markup import escape
    from rich.table import Table

    rows = found.rows
    title = (
        f"{found.data}: {rows['train']:,} to train on, {rows['validation']:,} to stop by, {rows['test']:,} measured"
        + (f", {rows['anomalous']:,} anomalous" if rows["anomalous"] else "")
        + f"; {found.latent} latent dimensions"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("model")
    heads = ("reconstruction", "ELBO", "log-likelihood", "bits/dim", "active", "AUROC", "seconds", "parameters")
    for head in heads:
        table.add_column(head, justify="right")
    for rung in found.rungs:
        cells = [""] * len(heads) if rung.figures is None else _cells(rung.figures)
        table.add_row(escape(rung.title), *cells)
    console = _console()
    console.print(table)
    console.print()
    for rung in found.rungs:
        if rung.sentence:
            console.print(f"{escape(rung.title)}: {escape(rung.sentence)}", highlight=False)
    console.print(
        "Log-likelihood: mean nats a row, ± its standard error over rows (and by sampling); = where it is exact, "
        "else estimated from below.",
        highlight=False,
    )


def _cells(figures: Figures) -> list[str]:
    likelihood = ""
    if figures.log_likelihood is not None:
        sign = "= " if figures.exact else ""
        error = f" ± {figures.log_likelihood_se:.2f}" + ("" if figures.exact else f" ({figures.mc_se:.2f})")
        likelihood = f"{sign}{figures.log_likelihood:.2f}{error}"
    active = "" if figures.active_units is None else f"{figures.active_units} of {figures.latent}"
    auroc = ""
    if figures.auroc is not None:
        auroc = f"{figures.auroc:.3f} ({figures.auroc_low:.3f}-{figures.auroc_high:.3f})"
    return [
        _number(figures.reconstruction_error, ".4g"),
        _number(figures.elbo, ".2f"),
        likelihood,
        _number(figures.bits_per_dimension, ".3f"),
        active,
        auroc,
        f"{figures.seconds:.1f}",
        f"{figures.parameters:,}",
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def print_scorecard(found: Scorecard) -> None:
    """Print the six properties: samples and baselines as a table, the latent space and the bound as lines."""
    from rich.markup import escape
    from rich.table import Table

    title = f"{found.data}: {found.rows:,} rows looked at, compared in {found.space} features"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    heads = ("samples", "Fréchet", "classifier AUC", "precision", "density", "recall", "coverage", "modes", "inception")
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left")
    for samples in found.samples:
        table.add_row(escape(samples.name), *_sampled(samples))
    console = _console()
    console.print(table)
    console.print()
    for name, value in _properties(found):
        console.print(f"{name:<24}{escape(value)}", highlight=False)
    for note in found.notes:
        console.print(f"Note: {escape(note)}", highlight=False)


def _sampled(samples: Samples) -> list[str]:
    near, inception = samples.neighbourhoods, samples.inception
    return [
        f"{samples.frechet.value:.3f} ± {samples.frechet.se:.3f}",
        f"{samples.classifier.auroc:.3f} ({samples.classifier.low:.3f}-{samples.classifier.high:.3f})",
        f"{near.precision:.3f}",
        f"{near.density:.3f}",
        f"{near.recall:.3f}",
        f"{near.coverage:.3f} of {near.expected_coverage:.3f}",
        f"{samples.modes.found} of {samples.modes.count}",
        "" if inception is None else f"{inception.value:.2f} of {inception.classes}",
    ]


def _properties(found: Scorecard) -> list[tuple[str, str]]:
    lines = [("sampling", f"{found.rows_per_second:,.0f} rows a second")]
    if found.smoothness is not None:
        smooth = found.smoothness
        lines.append(("smoothness", f"paths {smooth.detour:.2f} times as long as straight, longest step "
                      f"{smooth.largest_step:.2f} times the mean ({smooth.paths} paths)"))  # fmt: skip
    if found.prior is not None:
        prior = found.prior
        lines.append(("aggregated posterior", f"{prior.marginal_kl:.2f} ± {prior.marginal_se:.2f} nats off the prior; "
                      f"codes tell {prior.mutual_information:.2f} nats of rows (of {prior.log_rows:.2f})"))  # fmt: skip
    lines.append(("latent dimensions", f"{found.active} of {found.latent} in use"))
    if found.factors is not None:
        f = found.factors
        lines.append(("known factors", f"MIG {f.mig:.3f}, disentanglement {f.disentanglement:.3f}, completeness "
                      f"{f.completeness:.3f}, informativeness {f.informativeness:.3f}"))  # fmt: skip
        if f.factor_vae is not None and f.factor_vae.chance < 1:
            vote = f.factor_vae
            lines.append(("FactorVAE score", f"{vote.value:.3f} ± {vote.se:.3f}, by chance {vote.chance:.3f}"))
        best = ", ".join(f"{name} {value:.2f} with z{f.dimension[name]}" for name, value in f.correlation.items())
        lines.append(("largest correlations", best))
    for bound in found.bounds:
        name = f"bound of {bound.k} sample{'s' if bound.k > 1 else ''}"
        lines.append((name, f"{bound.value:.2f} ± {bound.se:.2f} nats, "
                      f"{bound.gap:.2f} below the last; effective samples {bound.ess:.1f}"))  # fmt: skip
    for column in found.perplexities:
        lines.append(
            (f"perplexity {column.name}", f"{column.value:.2f} ± {column.se:.2f}, by itself {column.alone:.2f}")
        )
    return lines


def _console() -> Console:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)
