"""The verbs that show what a model is: compare, scorecard, generate, latent."""

# ruff: noqa: D301 - click reads the backspace in a docstring as "keep these lines apart"

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError
from ..options import ImageConfig, TrainConfig
from ..options.understanding import CompareConfig, GenerateConfig, LatentConfig, ScorecardConfig
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


@click.command(short_help="Measure a model as a generative model, beside baselines.")
@click.argument("model_uri")
@click.argument("data", type=click.Path())
@click.option("--classes", help="Column of classes: for the inception score, modes, and as a known factor.")
@click.option("--factor", multiple=True, metavar="COL", help="Column that is known of each row; may be repeated.")
@click.option(
    "--classifier", metavar="MODEL_URI", help="MLflow model that says of rows which class they are of. Its code is run."
)
@click.option("--out", type=click.Path(), metavar="FILE.json", help="Where to write the scorecard.")
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
@options_of(ScorecardConfig)
@as_json
def scorecard(model_uri: str, data: str, as_json: bool, **given: Any) -> None:
    """Measure the six properties of a good generative model on DATA, rows that the model was not trained on.

    Efficient sampling, sample quality, coverage, a well-behaved latent space, an interpretable one, and an efficient
    likelihood; samples beside those of baselines. The inception score and modes are by --classifier, or by one that is
    trained on --classes.

    \b
    Example:
      anomaly-vae scorecard models:/pumps@champion normal.csv
      anomaly-vae scorecard models:/digits@champion sklearn:digits --classes digit --out scorecard.json
      anomaly-vae scorecard models:/digits@champion sklearn:digits --classifier models:/reader@champion
    """
    classes, factor, out, overwrite = (given.pop(name) for name in ("classes", "factor", "out", "overwrite"))
    named = given.pop("classifier")
    config = ScorecardConfig.from_mapping(given)
    from ..scorecard import make_scorecard
    from ..serving import tracking, uses
    from ..serving.classifiers import load_classifier
    from ..serving.made import refuse_existing, write_json

    if out is not None:
        refuse_existing(Path(out), overwrite=overwrite)
    model = tracking.load(model_uri)
    frame, beside = uses.rows_of(model.detector, data, [classes, *factor])
    factors = {name: uses.values_of(beside[name]) for name in factor}
    judge = load_classifier(named) if named else None
    found = make_scorecard(
        model.detector, frame, config, classes=beside[classes] if classes else None, factors=factors or None,
        classifier=judge,
    )  # fmt: skip
    facts = {"model": model.uri, **({"classifier": judge.uri} if judge else {}), **found.to_dict()}
    if out is not None:
        write_json(facts, Path(out))
    if as_json:
        print_json(facts)
        return
    from ..reporting.tables import print_scorecard

    print_scorecard(found)
    if out is not None:
        click.echo(f"Written to {out}")


@click.command(short_help="Make rows from codes: draw, restore, fill in, mix, move.")
@click.argument("model_uri")
@click.argument("output", type=click.Path())
@click.option("--data", type=click.Path(), help="Rows, or images, to start from; for decompress the packed file.")
@click.option("--label", help="Column of classes, for --class of a model that is told none.")
@click.option("--class", "wanted", help="sample: the class to draw. A model that is told classes decodes codes for it.")
@click.option("--attribute", help="attribute: column that is true or 1 for rows that have it.")
@click.option("--balance", help="attribute: column of another attribute, which is to stay as it is.")
@click.option("--remove", is_flag=True, help="attribute: take it away instead.")
@click.option("--expected", is_flag=True, help="sample: expected rows, without the noise of each cell.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@options_of(GenerateConfig)
@as_json
def generate(model_uri: str, output: str, as_json: bool, **given: Any) -> None:
    """Make rows from codes into OUTPUT: .parquet or .csv, or of images also .png.

    \b
    sample        rows drawn from the model, or of one class: --class of a model trained with --condition, and of
                  others --class, --data and --label: rows like those
    reconstruct   each row of --data as its code says it
    denoise       without what the model takes for noise
    impute        missing cells filled in, the others as they are
    interpolate   what lies between one row and the next
    attribute     rows given an attribute, or without it (--attribute, --remove)
    decompress    rows from a file that `latent --what compress` made

    \b
    Example:
      anomaly-vae generate models:/pumps@champion drawn.parquet --rows 1000
      anomaly-vae generate models:/pumps@champion filled.parquet --what impute --data gaps.csv
      anomaly-vae generate models:/castings@champion between.png --what interpolate --data photos/ --rows 6
      anomaly-vae generate models:/digits@champion sevens.png --class 7 --rows 36
    """
    names = ("label", "wanted", "attribute", "balance", "remove", "expected")
    named = {name: given.pop(name) for name in names}
    data, overwrite = given.pop("data"), given.pop("overwrite")
    config = GenerateConfig.from_mapping(given)
    from ..serving import tracking, uses
    from ..serving.made import refuse_existing

    path = Path(output)
    refuse_existing(path, overwrite=overwrite)
    model = tracking.load(model_uri)
    uses.check_place(path, model.detector, config.what)
    made = uses.generated(model.detector, config, data, uses.Named(**named))
    uses.write_made(made, path, model.detector)
    _tell(made.facts, made.frame, path, model.uri, as_json)


@click.command(short_help="Show a latent space: map, clusters, manifold, traversals, packed rows.")
@click.argument("model_uri")
@click.argument("output", type=click.Path())
@click.option("--data", type=click.Path(), help="Rows, or images; manifold and traversals need none.")
@click.option("--label", help="map: column to colour by; by default the anomaly score.")
@click.option("--class", "wanted", help="manifold, traversals: the class to decode for, of a model that is told some.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@options_of(LatentConfig)
@as_json
def latent(model_uri: str, output: str, as_json: bool, **given: Any) -> None:
    """Show the latent space of a model in OUTPUT: .parquet or .csv, and maps and images also .png.

    \b
    codes         each row's code: posterior means and standard deviations
    map           codes on a plane, coloured by score or by a column
    clusters      which codes lie together, and what sets these rows apart
    manifold      a grid over the two leading dimensions, decoded
    traversals    what each dimension changes
    compress      rows packed into a file of codes, with the rate stated

    \b
    Example:
      anomaly-vae latent models:/pumps@champion map.png --data today.parquet --label site
      anomaly-vae latent models:/castings@champion manifold.png --what manifold
    """
    data, label, wanted, overwrite = (given.pop(name) for name in ("data", "label", "wanted", "overwrite"))
    config = LatentConfig.from_mapping(given)
    from ..serving import tracking, uses
    from ..serving.made import refuse_existing

    path = Path(output)
    refuse_existing(path, overwrite=overwrite)
    model = tracking.load(model_uri)
    uses.check_place(path, model.detector, config.what)
    made = uses.shown(model.detector, config, data, label, wanted=wanted)
    uses.write_made(made, path, model.detector)
    _tell(made.facts, made.frame, path, model.uri, as_json)


def _tell(facts: dict[str, Any], frame: pd.DataFrame, path: Path, uri: str, as_json: bool) -> None:
    """Say what was made."""
    if as_json:
        print_json({**facts, "rows": len(frame), "path": str(path), "model": uri})
        return
    for name, value in facts.items():
        if name not in ("rows", "centres"):
            click.echo(f"{name.replace('_', ' ')}: {_readable(value)}")
    click.echo(f"{len(frame):,} rows by {uri}\nWritten to {path}")


def _readable(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "; ".join(map(_readable, value))
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


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
