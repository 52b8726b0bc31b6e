"""Comparisons and scorecards as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..comparison.results import Figures, ModelComparison

WIDTH = 150
"""Columns of a table that goes into a file or a pipe."""


def print_comparison(found: ModelComparison) -> None:
    """Print the table of models: figures, or the sentence in their place, and the notes below."""
    from rich.console import Console
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
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
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
