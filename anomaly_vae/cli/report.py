"""The verb that shows a model and what it says of data, as one page."""

# ruff: noqa: D301 - click reads the backspace in a docstring as "keep these lines apart"

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..options import ReportConfig
from .shell import as_json, options_of, print_json


@click.command(short_help="Show a model and its scores as one page.")
@click.argument("model_uri")
@click.option("--data", type=click.Path(), help="Table, or images, to look at; scored first unless --scored is given.")
@click.option("--scored", type=click.Path(), metavar="FILE", help="What `score` wrote of these data: not scored again.")
@click.option("--label", metavar="COL", help="Column of the data that is true or 1 for anomalous rows.")
@click.option("--group", "groups", multiple=True, metavar="COL", help="Column whose groups to audit; may be repeated.")
@click.option("--scorecard", type=click.Path(), metavar="FILE.json", help="What `scorecard --out` wrote of this model.")
@click.option("--out", type=click.Path(), default="report.html", show_default=True, help="The page to write.")
@options_of(ReportConfig)
@click.option("--overwrite", is_flag=True, help="Replace a report that exists.")
@as_json
def report(model_uri: str, out: str, overwrite: bool, as_json: bool, **given: Any) -> None:
    """Write one HTML page on a model, and on data if they are named, with the numbers behind it beside it as JSON.

    The page opens offline and stays under 2 MB whatever the number of rows: what the data are, how training went,
    whether p-values keep their promise, where the scores lie, the strangest rows with their reasons, a map of the
    latent, an audit of the groups that are named, a scorecard if one is named, and where it all comes from.

    \b
    Example:
      anomaly-vae report models:/pumps@champion --data today.csv --out pumps.html
      anomaly-vae report models:/pumps@champion --data labelled.csv --label failed --group site --out groups.html
      anomaly-vae report models:/pumps@champion --scorecard scorecard.json --out model.html
      anomaly-vae report models:/pumps@champion --scored scored.parquet --out scored.html
    """
    asked = {name: given.pop(name) for name in ("data", "scored", "label", "groups")}
    card = given.pop("scorecard")
    config = ReportConfig.from_mapping(given)
    from ..reporting.report import check_path
    from ..serving import tracking
    from ..serving.made import read_scorecard
    from ..serving.provenance import recorded
    from ..serving.report import write_data_report

    check_path(Path(out), overwrite=overwrite)
    model = tracking.load(model_uri)
    asked["card"] = read_scorecard(Path(card), model=model.uri) if card else None
    known = recorded(model.uri)
    made = write_data_report(
        model.detector, Path(out), model=model.uri, recorded=known, config=config, overwrite=overwrite, **asked
    )
    size = made.path.stat().st_size
    if as_json:
        paths = {"path": str(made.path), "json": str(made.twin), "bytes": size}
        print_json({**paths, "model": made.model, "rows": made.rows, "seconds": made.seconds})
        return
    looked = f" of {made.rows:,} rows" if made.rows is not None else ""
    click.echo(f"Report on {made.model}{looked}: {made.path} ({size / 1000:,.0f} kB, {made.seconds:.1f} s)")
