"""The verb about a model at work: monitor."""

# ruff: noqa: D301 - click reads the backspace in a docstring as "keep these lines apart"

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..errors import OutputExistsError
from ..options import MonitorConfig
from .shell import DONE, as_json, options_of, print_json

ALARMED = 4
"""Exit code of an alarm."""


@click.command(short_help="Say whether scored rows have drifted.")
@click.argument("model_uri")
@click.argument("scored", type=click.Path(), nargs=-1, required=True)
@click.option("--data", type=click.Path(), multiple=True, metavar="INPUT", help="The rows scored; may be repeated.")
@options_of(MonitorConfig)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE.json", help="Where to write all figures.")
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
@as_json
def monitor(model_uri: str, scored: tuple[str, ...], as_json: bool, **given: Any) -> int:
    """Say whether the rows in SCORED, files that `score` has written, still come from where the model's did.

    Their p-values are followed in order; with --data, the rows' columns are also compared with the training rows. Ends
    with exit code 4 if there is an alarm, and 0 if not; while nothing changes there is one in at most a share --level
    of jobs. The figures are logged to MLflow as a run beside the model's own.

    \b
    Example:
      anomaly-vae monitor models:/pumps@champion scored.parquet --data today.parquet
      anomaly-vae monitor models:/pumps/3 scored/ --level 0.001 --out drift.json
    """
    data, out, overwrite = given.pop("data"), given.pop("out"), given.pop("overwrite")
    config = MonitorConfig.from_mapping(given)
    if out is not None and out.exists() and not overwrite:
        raise OutputExistsError(f"an output must not exist yet, got {str(out)!r}. Use --overwrite to replace it.")
    from ..serving import tracking
    from ..serving.monitor import log_drift, monitor_files
    from ..serving.outputs import appearing

    model = tracking.load(model_uri)
    drift = monitor_files(model.detector, scored, data, config)
    run_id = log_drift(drift, model.uri)
    facts = {"model": model.uri, "run_id": run_id, **drift.to_dict()}
    if out is not None:
        with appearing(out) as aside:
            aside.write_text(json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    if as_json:
        print_json(facts)
    else:
        click.echo("\n".join(drift.sentences))
        click.echo(f"Drift: {'yes' if drift.alarm else 'no'}, by {model.uri}.")
    return ALARMED if drift.alarm else DONE
