"""The verb `score`: a file into a file, or many parts into a folder, on this machine or on a cluster."""

# ruff: noqa: D301 - click reads the backspace in a docstring as "keep these lines apart"

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError
from ..options import ENGINES, FORMATS, ON_ERROR, BatchConfig, ScoreConfig
from ..reporting import terminal
from .shell import DONE, TOO_MANY_FLAGGED, as_json, print_json

if TYPE_CHECKING:
    from ..serving.batch import ScoredFile
    from ..serving.folder import ScoredFolder
    from ..serving.tracking import Loaded

OF_FOLDERS = {"processes": "--processes", "on_error": "--on-error", "format": "--format"}


@click.command(short_help="Score a file into a file, or a folder into a folder.")
@click.argument("model_uri")
@click.argument("input", type=click.Path())
@click.argument("output", type=click.Path())
@click.option("--alpha", type=float, help=f"Share of normal rows that may be flagged.  [default: {ScoreConfig.alpha}]")
@click.option("--fdr", type=float, help="Share of the flagged rows that may be normal, over the whole job.")
@click.option("--k", type=int, help="Posterior samples per row, one the model is calibrated for.")
@click.option("--explain", type=int, default=ScoreConfig.explain, help="Columns named in each row's attributions.")
@click.option("--mc-se", type=float, help="Also estimate log p(x) to within this standard error, nats.")
@click.option("--key", multiple=True, metavar="COL", help="Column to copy to the output; may be repeated.")
@click.option("--group", metavar="COL", help="Column the model is calibrated by: rows are judged within their group.")
@click.option("--allow-missing", is_flag=True, help="Take a column that is absent for one of missing cells.")
@click.option("--workers", type=int, help="Threads that score.  [default: one a core, at most 8]")
@click.option("--max-flagged", type=float, help="Exit with 3 if more are flagged: a share below 1, or a number.")
@click.option("--processes", type=int, help="Of a folder: processes that score parts, each on one thread.")
@click.option(
    "--on-error", type=click.Choice(ON_ERROR), help="Of a folder: rows that cannot be scored.  [default: fail]"
)
@click.option("--format", type=click.Choice(FORMATS), help="Of a folder's parts.  [default: parquet]")
@click.option("--engine", type=click.Choice(ENGINES), default="local", help="Where to score a folder.")
@click.option("--master", metavar="URL", help="Of Spark: the cluster.  [default: local[*]]")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists; of a folder, begin anew.")
@as_json
def score(model_uri: str, input: str, output: str, engine: str, master: str | None, as_json: bool, **given: Any) -> int:
    """Score the rows of INPUT into OUTPUT: a file (.parquet or .csv), or a folder.

    INPUT is what the model was trained on: a CSV or Parquet file or a folder of them, or images (see `train`). OUTPUT
    has the key columns, or the row number (of images the file's name), and for each row its score, p-value, flag,
    threshold, Monte-Carlo error, attributions and the model's version; with --mc-se also log p(x), its standard error,
    the posterior samples it took and whether they were enough. Images that cannot be read are listed in
    OUTPUT.errors.csv.

    An OUTPUT without an ending is a folder, of one part for each part of INPUT, which may then also be a glob or a URL
    (s3://bucket/day/*.parquet); a folder of image files has a part for every 4,096 of them. Repeating the command after
    an interruption goes on where it stopped; with a changed model, setting or input it is refused. With --on-error
    quarantine, rows that cannot be scored are listed in OUTPUT/_errors.parquet.

    Exit code 3: more rows are flagged than --max-flagged allows; the output is whole all the same.

    \b
    Example:
      anomaly-vae score models:/pumps@champion today.parquet scored.parquet --key serial_number
      anomaly-vae score models:/pumps/3 today.csv scored.csv --fdr 0.1 --explain 3
      anomaly-vae score models:/pumps@champion october/ scored/ --processes 4 --on-error quarantine
    """
    if given["alpha"] is not None and given["fdr"] is not None:
        raise ConfigError("a job must be flagged by --alpha or by --fdr, got both. Drop one.")
    given = {name: value for name, value in given.items() if value is not None}
    from ..serving.folder import is_folder

    if is_folder(output):
        return _folder(model_uri, input, output, engine, master, as_json, BatchConfig.from_mapping(given))
    for name, option in OF_FOLDERS.items():
        if name in given:
            raise ConfigError(f"{option} must go with an output folder, got the file {output!r}. Name a folder.")
    if engine != "local":
        raise ConfigError(f"--engine {engine} must go with an output folder, got the file {output!r}. Name a folder.")
    return _file(model_uri, input, output, as_json, ScoreConfig.from_mapping(given))


def _file(model_uri: str, input: str, output: str, as_json: bool, config: ScoreConfig) -> int:
    from ..serving import tracking
    from ..serving.batch import score_file

    model = tracking.load(model_uri)
    with terminal.counting_rows() as on_rows:
        detector, version = model.detector, model.uri
        done = score_file(
            detector, input, output, config, model_version=version, schema=detector.schema, on_rows=on_rows
        )
    rate = done.rows / max(done.seconds, 1e-9)
    if as_json:
        paths = {"path": str(done.path), "errors": done.errors and str(done.errors)}
        print_json({**vars(done), **paths, "rows_per_second": rate, "model": model.uri})
        return _verdict(done, config)
    click.echo(
        f"{done.rows:,} {'row' if done.rows == 1 else 'rows'} scored in {done.seconds:.1f} s ({rate:,.0f} a second) "
        f"by {model.uri}: {done.flagged:,} flagged ({done.flagged / done.rows:.2%}).{_doubtful(done, config)}"
    )
    click.echo(f"Written to {done.path}")
    if done.unreadable:
        click.echo(f"{done.unreadable:,} images could not be read or scored; {done.errors} says why.", err=True)
    return _verdict(done, config)


def _folder(
    model_uri: str,
    input: str,
    output: str,
    engine: str,
    master: str | None,
    as_json: bool,
    config: BatchConfig,
) -> int:
    from ..serving import tracking
    from ..serving.folder import score_folder

    if master is not None and engine != "spark":
        raise ConfigError(f"--master must go with --engine spark, got --engine {engine}. Name the engine.")
    model = tracking.load(model_uri)
    if engine == "spark":
        try:
            from ..serving.spark import score_on_spark
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"--engine spark must have pyspark, got no module {error.name!r}. Install anomaly-vae[spark] and Java."
            ) from error
        done = score_on_spark(model.detector, input, output, config, model_version=model.uri, master=master)
    else:
        with terminal.counting_parts() as on_progress:
            done = score_folder(
                model.detector,
                input,
                output,
                config,
                model_version=model.uri,
                schema=model.detector.schema,
                on_progress=on_progress,
            )
    _tell_folder(done, model, as_json, config)
    return _verdict(done, config)


def _tell_folder(done: ScoredFolder, model: Loaded, as_json: bool, config: BatchConfig) -> None:
    rate = done.rows_now / max(done.seconds, 1e-9)
    if as_json:
        paths = {"path": str(done.path), "listed": done.listed and str(done.listed)}
        print_json({**vars(done), **paths, "rows_per_second": rate, "model": model.uri})
        return
    if done.resumed:
        click.echo(f"{done.resumed:,} of {done.parts:,} parts were finished before.", err=True)
    share = f" ({done.flagged / done.rows:.2%})" if done.rows else ""
    click.echo(
        f"{done.rows:,} rows of {done.parts:,} parts scored by {model.uri}, {done.rows_now:,} of them now in "
        f"{done.seconds:.1f} s ({rate:,.0f} a second): {done.flagged:,} flagged{share}.{_doubtful(done, config)}"
    )
    click.echo(f"Written to {done.path}")
    if done.errors:
        click.echo(f"{done.errors:,} rows or files could not be scored; {done.listed} says why.", err=True)


def _doubtful(done: ScoredFile | ScoredFolder, config: ScoreConfig) -> str:
    doubtful = ""
    if done.unreliable:
        doubtful = (
            f" {done.unreliable:,} scores are unreliable (effective sample size under 5). Their p-values hold; for the "
            "nats themselves, take more samples (--k) or name the error they may have (--mc-se 0.1)."
        )
    if done.unreached:
        doubtful += f" {done.unreached:,} log likelihoods did not reach a standard error of {config.mc_se:g}."
    return doubtful


def _verdict(done: ScoredFile | ScoredFolder, config: ScoreConfig) -> int:
    if not config.too_many(done.flagged, done.rows):
        return DONE
    click.echo(f"More rows are flagged than --max-flagged {config.max_flagged:g} allows.", err=True)
    return TOO_MANY_FLAGGED
