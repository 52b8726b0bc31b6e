"""The `anomaly-vae` command: one verb a command, no logic.

What costs seconds to import (torch, pandas, mlflow) is imported inside the verbs, so that `--help` is instant.
"""

# ruff: noqa: D301 - click reads the backspace in a docstring as "keep these lines apart"

from __future__ import annotations

import click

from . import debias, detect, models, report, scoring, understand, watch
from .shell import Verbs


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="anomaly-vae")
@click.option("--traceback", is_flag=True, envvar="ANOMALY_VAE_DEBUG", help="Show where an error came from.")
def main(traceback: bool) -> None:
    """Learn the density of a table, or of images, flag what is too improbable, and say why.

    \b
    Example:
      anomaly-vae train normal.csv --name pumps
      anomaly-vae score models:/pumps@champion today.parquet scored.parquet
      anomaly-vae explain models:/pumps@champion today.parquet
      anomaly-vae train photos/ --name castings
    """
    Verbs.stack_wanted = traceback


for _verb in (
    detect.train, scoring.score, detect.explain, detect.evaluate, detect.calibrate,
    debias.audit, debias.resample, debias.weigh,
    models.serve, models.schema, models.info,
    report.report,
    watch.monitor,
    understand.compare, understand.scorecard, understand.generate, understand.latent,
):  # fmt: skip
    main.add_command(_verb)
