"""The verbs that show what a model is: compare."""

# ruff: noqa: D301 - click reads the backspace in a docstring as "keep these lines apart"

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError
from ..options import ImageConfig, TrainConfig
from ..understanding import CompareConfig
from .shell import as_json, column_of, options_of, print_json, tell_unreadable, without

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray


@click.command(short_help="Compare the models of the family on one data set.")
@click.argument("data", type=click.Path())
@click.option("--label", help="Column that is true or 1 for anomalous rows: not trained on; detection is measured.")
@click.option("--classes", help="Column of classes, for the conditional model; not a column of the others.")
@click.option("--drop", multiple=True, metavar="COL", help="Column to leave out; may be repeated.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of every network, as of `train`."
)
@click.option("--out", type=click.Path(), metavar="FOLDER", help="Where to write comparison.json and comparison.csv.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@options_of(CompareConfig)
@as_json
def compare(data: str, as_json: bool, **given: Any) -> None:
    """Train every model of the family on DATA and measure all of them on the same held-out rows.

    From PCA over autoencoders and VAEs to a normalizing flow: reconstruction error, ELBO, log-likelihood with its
    error, bits per dimension, active units, AUROC where there are labels, seconds and parameters. A model that does not
    apply to the data has a sentence in place of figures.

    \b
    Example:
      anomaly-vae compare labelled.csv --label failed
      anomaly-vae compare sklearn:digits --classes digit --models pca,vae,conditional_vae,flow
    """
    chosen = {name: given.pop(name) for name in ("label", "classes", "drop", "settings", "out", "overwrite")}
    config = CompareConfig.from_mapping(given)
    from ..comparison.ladder import compare_models
    from ..serving import streams
    from ..serving.made import refuse_existing, write_comparison

    folder = Path(chosen["out"]) if chosen["out"] else None
    if folder is not None:
        refuse_existing(folder / "comparison.json", overwrite=chosen["overwrite"])
    images = streams.holds_images(data)
    base = (ImageConfig(pixels="discretized_logistic") if images else TrainConfig()).updated(chosen["settings"])
    frame, truth, classes = _beside(data, base, **{name: chosen[name] for name in ("label", "classes", "drop")})
    told = sys.stderr.isatty()
    found = compare_models(
        frame, config, base=base, labels=truth, classes=classes,
        on_rung=(lambda title: click.echo(f"training: {title}", err=True)) if told else None,
    )  # fmt: skip
    if folder is not None:
        write_comparison(found, folder)
    if as_json:
        print_json(found.to_dict())
        return
    from ..reporting.tables import print_comparison

    print_comparison(found)
    if folder is not None:
        click.echo(f"Written to {folder / 'comparison.json'} and {folder / 'comparison.csv'}")


def _beside(
    data: str, base: TrainConfig | ImageConfig, *, label: str | None, classes: str | None, drop: tuple[str, ...]
) -> tuple[pd.DataFrame, NDArray[np.bool_] | None, pd.Series | None]:
    """Return a data set's rows, which of them are anomalous, and their classes."""
    from ..data.rows import labels
    from ..serving import streams

    if isinstance(base, ImageConfig):
        if label and classes:
            raise ConfigError("images must come with one column of labels, got --label and --classes. Drop one.")
        read = streams.read_images(data, label=label or classes, size=base.height_width)
    else:
        read = streams.read_all(data)
    tell_unreadable(read.errors)
    frame = without(read.frame, drop)
    truth = labels(column_of(frame, label)) if label else None
    named = column_of(frame, classes) if classes else None
    return without(frame, [name for name in dict.fromkeys((label, classes)) if name]), truth, named
