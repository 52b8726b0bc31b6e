"""The verbs of detection: train, calibrate, explain, evaluate."""

# ruff: noqa: D301 - click reads the backspace in a docstring as "keep these lines apart"

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError
from ..options import ENGINES, ImageConfig, TrainConfig
from ..reporting import terminal
from .shell import as_json, column_of, print_json, registered_facts, short, tell_unreadable, without

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from ..estimator import Elsewhere

EXPLAINED_COLUMNS = 8


@click.command(short_help="Train a detector and register it.")
@click.argument("data", type=click.Path())
@click.option("--name", required=True, help="Name in the registry; each training adds a version.")
@click.option(
    "--label", help="Column that is true or 1 for anomalous rows: left out of training, used to report AUROC."
)
@click.option("--drop", multiple=True, metavar="COL", help="Column to leave out; may be repeated.")
@click.option("--split-by", metavar="COL", help="Column of times: the latest rows calibrate. Left out of the model.")
@click.option("--group-by", metavar="COL", help="Column of groups held out whole. Left out of the model.")
@click.option(
    "--condition", metavar="COL", help="Column of classes that a model of images is told: of a folder its sub-folders."
)
@click.option("--config", type=click.Path(), metavar="FILE.toml", help="Settings and declared columns (see `schema`).")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting; may be repeated.")
@click.option("--seed", type=int, help="Seed of split, weights, batches and noise.")
@click.option("--engine", type=click.Choice(ENGINES), default="local", help="Where to train.")
@click.option("--master", metavar="URL", help="Of Spark: the cluster.  [default: local[*]]")
@click.option(
    "--processes", type=click.IntRange(min=1), help="Of Spark: processes that share every batch.  [default: 2]"
)
@as_json
def train(data: str, name: str, as_json: bool, **given: Any) -> None:
    """Train a detector on DATA and register it.

    DATA is a CSV or Parquet file or a folder of them; or images: a folder of PNG, JPEG, WebP or TIFF files, an .npy or
    .npz array, a Parquet column of encoded files, or sklearn:digits. The last line printed is the model's URI.
    Repeating the same command after an interruption goes on where it stopped.

    By default the rows that set thresholds are drawn at random. Where the rows to be scored are later ones, or of new
    machines, a promise is kept with --split-by, a column of times, or --group-by, a column of machines, of patients, or
    whatever makes rows alike. Of a folder of images either is the sub-folder, and COL any name for it.

    With --condition a model of images learns p(image|class): an image is then judged as one of its class, which has to
    be there when it is scored. Of a folder the class is the sub-folder, and COL any name for it.

    \b
    Example:
      anomaly-vae train normal.csv --name pumps --set latent=8
      anomaly-vae train normal.csv --name pumps --split-by measured_at
      anomaly-vae train labelled.csv --name pumps --label failed --drop serial_number
      anomaly-vae train photos/ --name castings --condition mould
      anomaly-vae train scans/ --name scans --group-by patient
      anomaly-vae train normal.parquet --name pumps --engine spark --master spark://host:7077 --processes 4
    """
    from ..serving import streams, tracking

    tracking.check_name(name)
    trainers = _trainers(given["engine"], given["master"], given["processes"])
    config = _settings(given, images=streams.holds_images(data))
    label = given["label"]
    frame, truth = _rows(data, config, label=label, drop=given["drop"])
    if isinstance(config, TrainConfig):
        # A schema printed for the whole table names the label and dropped columns too.
        kinds = {column: kind for column, kind in config.columns.items() if column not in {*given["drop"], label}}
        config = TrainConfig.from_mapping({**config.to_dict(), "columns": kinds})
    checkpoint = tracking.checkpoint_path(name, frame, config, truth)
    elsewhere = None if trainers is None else trainers(checkpoint.parent)
    if checkpoint.exists():
        click.echo("Resuming the training that was interrupted.", err=True)
    try:
        made = tracking.train_and_register(
            frame,
            config,
            name=name,
            labels=truth,
            source=str(Path(data).absolute()),
            checkpoint=checkpoint,
            progress=sys.stderr.isatty(),
            elsewhere=elsewhere,
        )
    except KeyboardInterrupt:
        if checkpoint.exists():
            click.echo(f"\nThe checkpoint stands at {short(checkpoint)}: repeat the command to go on.", err=True)
        raise
    if as_json:
        print_json(registered_facts(made))
        return
    assert made.fit is not None
    click.echo(terminal.training_lines(made.fit, made.detector))
    if config.group_by is not None and made.detector.calibration.rows:
        click.echo(terminal.promise_line(made.promise, config.group_by))
    if made.ranking:
        click.echo(terminal.ranking_lines(made.ranking))
    click.echo(terminal.registered_line(made.name, made.version, champion=made.champion))
    click.echo(made.uri)


def _rows(
    data: str, config: TrainConfig | ImageConfig, *, label: str | None, drop: Sequence[str]
) -> tuple[pd.DataFrame, NDArray[np.bool_] | None]:
    """Return the rows to train on, without label and dropped columns, and which are anomalous if a label says it."""
    from ..data.rows import labels
    from ..serving import streams

    if isinstance(config, ImageConfig):
        read = streams.read_images(data, label=label, beside=config.beside, size=config.height_width)
    else:
        read = streams.read_all(data)
    tell_unreadable(read.errors)
    frame = without(read.frame, drop)
    return (without(frame, [label]), labels(column_of(frame, label))) if label else (frame, None)


def _settings(given: Mapping[str, Any], *, images: bool) -> TrainConfig | ImageConfig:
    """Return the settings: those of the file, then those of the options."""
    kind: type[TrainConfig] | type[ImageConfig] = ImageConfig if images else TrainConfig
    config = kind.from_toml(given["config"]) if given["config"] else kind()
    seed = [] if given["seed"] is None else [f"seed={given['seed']}"]
    config = config.updated([*given["settings"], *seed])
    splits = {name: given[name] for name in ("split_by", "group_by") if given[name] is not None}
    told = {} if given["condition"] is None else {"condition": given["condition"]}
    if told and not images:
        raise ConfigError(
            "a model that is told classes must be of images, got a table. Leave --condition out: a column of classes "
            "is then one of the model's own, and rows are strange where it does not fit the others."
        )
    return kind.from_mapping({**config.to_dict(), **splits, **told})


def _trainers(engine: str, master: str | None, processes: int | None) -> Callable[[Path], Elsewhere] | None:
    """Return what trains in place of this process, given a folder to share, if anything does."""
    if engine == "local":
        for option, value in (("--master", master), ("--processes", processes)):
            if value is not None:
                raise ConfigError(f"{option} must go with --engine spark, got --engine local. Name the engine.")
        return None
    try:
        from ..serving.spark import Trainers
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--engine spark must have pyspark, got no module {error.name!r}. Install anomaly-vae[spark] and Java."
        ) from error
    return lambda folder: Trainers(processes or 2, folder, master)


@click.command(short_help="Say why the strangest rows are strange.")
@click.argument("model_uri")
@click.argument("input", type=click.Path())
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="How many rows, strangest first.")
@click.option("--out", type=click.Path(), metavar="FOLDER", help="Of images: where to write a sheet and heat maps.")
@click.option("--overwrite", is_flag=True, help="Replace pictures that exist.")
@as_json
def explain(model_uri: str, input: str, top: int, out: str | None, overwrite: bool, as_json: bool) -> None:
    """Say why the strangest rows, or images, of INPUT are strange.

    For each row: what every column costs in nats (surprise; the parts sum to the score), the value it has and the value
    that the model expected in its place. For images, with --out: a sheet of the strangest beside what was expected and
    which pixels cost the nats, and each one's heat map, as PNG files.

    \b
    Example:
      anomaly-vae explain models:/pumps@champion today.parquet --top 3
      anomaly-vae explain models:/castings@champion photos/ --top 12 --out strange/
    """
    from ..serving import tracking
    from ..serving.batch import strangest, strangest_rows

    model = tracking.load(model_uri)
    detector = model.detector
    if out is not None:
        from ..serving.pictures import write_pictures

        found = strangest(detector, input, top=top, schema=detector.schema)
        written = write_pictures(detector, found, Path(out), overwrite=overwrite)
        if as_json:
            print_json({"sheet": str(written[0]), "heat_maps": list(map(str, written[1:]))})
        else:
            click.echo(f"The {len(found)} strangest images, what was expected and what cost the nats: {written[0]}")
        return
    scores = strangest_rows(detector, input, top=top, columns=EXPLAINED_COLUMNS, schema=detector.schema)
    if as_json:
        print_json([_explained(row, scores.loc[row]) for row in scores.index])
        return
    for row in scores.index:
        terminal.print_explanation(_explained(row, scores.loc[row]))


@click.command(short_help="Compare scores with labels.")
@click.argument("model_uri")
@click.argument("data", type=click.Path())
@click.option("--label", required=True, help="Column that is true or 1 for anomalous rows.")
@click.option("--group-by", metavar="COL", help="Column of what makes rows alike, such as machines: intervals by it.")
@as_json
def evaluate(model_uri: str, data: str, label: str, group_by: str | None, as_json: bool) -> None:
    """Compare scores with labels: AUROC, average precision and false alarms, with 95 % intervals.

    Use rows that the model was not trained on. Rows of one machine, patient or writer are alike: a thousand rows of ten
    machines may say little more of the next machine than ten rows do. With --group-by intervals say how much.

    \b
    Example:
      anomaly-vae evaluate models:/pumps@champion labelled.csv --label failed
      anomaly-vae evaluate models:/pumps@champion labelled.csv --label failed --group-by machine
    """
    from ..serving import tracking
    from ..serving.batch import evaluate_file

    model = tracking.load(model_uri)
    with terminal.counting_rows() as on_rows:
        result = evaluate_file(
            model.detector, data, label, group_by=group_by, schema=model.detector.schema, on_rows=on_rows
        )
    if as_json:
        parts = {name: getattr(result, name).to_dict() for name in ("ranking", "false_alarms", "detections")}
        print_json({**parts, "alpha": result.alpha, "model": model.uri})
        return
    click.echo(terminal.ranking_lines(result.ranking))
    click.echo(
        f"false alarms       {terminal.rate(result.false_alarms)} of the normal rows; promised: {result.alpha:.0%}"
    )
    click.echo(f"found              {terminal.rate(result.detections)} of the anomalous rows")
    if group_by is not None:
        click.echo(f"intervals          by {result.ranking.n_groups:,} groups of {group_by!r}")


@click.command(short_help="Set thresholds anew, without training.")
@click.argument("model_uri")
@click.argument("data", type=click.Path())
@click.option(
    "--group", metavar="COL", help="Also promise the false-alarm rate within each group, for `score --group`."
)
@as_json
def calibrate(model_uri: str, data: str, group: str | None, as_json: bool) -> None:
    """Take thresholds and p-values from the normal rows in DATA and register that as a new version, without training.

    The rows must not have been trained on. With --group, each group has thresholds of its own, too: `score --group`
    then keeps the promised false-alarm rate within each, for which each needs 1 / alpha rows. The last line printed is
    the new version's URI.

    \b
    Example:
      anomaly-vae calibrate models:/pumps@champion normal_october.parquet
      anomaly-vae calibrate models:/pumps@champion normal_october.parquet --group site
    """
    from ..serving import streams, tracking

    model = tracking.load(model_uri)
    schema = model.detector.schema
    read = streams.read_all(data, schema, group=group)
    tell_unreadable(read.errors)
    frame, groups = read.frame, None
    if group is not None:
        groups = streams.group_names(frame, group).to_numpy()
        frame = frame.drop(columns=streams.beyond(schema, group))
    made = tracking.recalibrate_and_register(model.uri, frame, groups=groups, group_column=group or "")
    calibration = made.detector.calibration
    if as_json:
        sizes = {name: calibration.within(name).rows for name in calibration.groups}
        print_json({**registered_facts(made), "groups": sizes})
        return
    click.echo(f"{model.uri} calibrated anew with {calibration.rows:,} rows.")
    for name in calibration.groups:
        rows = calibration.within(name).rows
        click.echo(f"  {group} = {name}: {rows:,} rows, least p-value {1 / (rows + 1):.2g}")
    click.echo(terminal.registered_line(made.name, made.version, champion=made.champion))
    click.echo(made.uri)


def _explained(row: Any, scores: pd.Series) -> dict[str, Any]:
    return {
        "row": int(row),
        "anomaly_score": float(scores["anomaly_score"]),
        "p_value": float(scores["p_value"]),
        "is_anomaly": bool(scores["is_anomaly"]),
        "attributions": json.loads(scores["attributions"]),
    }
