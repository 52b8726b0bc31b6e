"""The verbs about one model or data set: serve it, say what it is."""

# ruff: noqa: D301 - click reads the backspace in a docstring as "keep these lines apart"

from __future__ import annotations

import sys
from typing import Any

import click

from ..options import ServeConfig
from ..reporting import terminal
from .shell import as_json, options_of, print_json


@click.command(short_help="Answer scoring requests over HTTP.")
@click.argument("model_uri")
@options_of(ServeConfig)
def serve(model_uri: str, **given: Any) -> None:
    """Answer scoring requests over HTTP until stopped: the formats and answers of `mlflow models serve`, with limits.

    A resampler that `resample --name` has registered answers with a weight for each row.

    \b
    Example:
      anomaly-vae serve models:/pumps@champion --port 5001
      curl http://127.0.0.1:5001/invocations -H 'Content-Type: text/csv' --data-binary @today.csv
    """
    config = ServeConfig.from_mapping(given)
    from ..serving import server, weights

    bound = server.listening(config.host, config.port)
    model, uri = weights.load(model_uri)  # a model that cannot be loaded is better refused here than in every worker
    if sys.stderr.isatty():
        click.echo(f"Serving {uri} at http://{config.host}:{config.port}/invocations; Ctrl-C stops it.", err=True)
    server.serve(model, uri, config, bound)


@click.command(short_help="Print what the columns were taken for, as TOML.")
@click.argument("data", type=click.Path())
@as_json
def schema(data: str, as_json: bool) -> None:
    """Print what the columns of DATA were taken for, as TOML to edit and give to `train --config`.

    \b
    Example:
      anomaly-vae schema normal.csv > pumps.toml
      anomaly-vae train normal.csv --name pumps --config pumps.toml
    """
    from ..data.rows import read_table
    from ..data.schema import Schema

    inferred = Schema.fit(read_table(data))
    if as_json:
        print_json(inferred.to_dict())
    else:
        click.echo(inferred.to_toml(), nl=False)


@click.command(short_help="Say what a model is.")
@click.argument("model_uri")
@as_json
def info(model_uri: str, as_json: bool) -> None:
    """Say what a model is: columns, score, calibration, settings.

    \b
    Example:
      anomaly-vae info models:/pumps@champion
    """
    from ..serving import tracking

    model = tracking.load(model_uri)
    facts = {"uri": model.uri, **model.detector.describe()}
    if as_json:
        print_json(facts)
    else:
        terminal.print_facts(facts)
