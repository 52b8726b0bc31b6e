"""The verbs of debiasing: audit, resample, weigh."""

# ruff: noqa: D301 - click reads the backspace in a docstring as "keep these lines apart"

from __future__ import annotations

from typing import Any

import click

from ..options import AuditConfig, ResampleConfig
from ..reporting import terminal
from .shell import as_json, options_of, print_json


@click.command(short_help="Say whom a detector flags, and which parts of the data are thin.")
@click.argument("model_uri")
@click.argument("input", type=click.Path())
@click.option("--group", "groups", multiple=True, metavar="COL", help="Column of groups to compare; may be repeated.")
@click.option(
    "--label", metavar="COL", help="Column that is true or 1 for anomalous rows: tells false alarms from true."
)
@click.option("--by", metavar="COL", help="Column the model is calibrated by (see `calibrate --group`).")
@options_of(AuditConfig)
@click.option("--out", type=click.Path(), metavar="FILE", help="Where to write all figures: .json, or a page, .html.")
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
@click.option("--log/--no-log", default=True, show_default=True, help="Record a run in MLflow, of a registered model.")
@as_json
def audit(
    model_uri: str, input: str, groups: tuple[str, ...], label: str | None, by: str | None, out: str | None,
    overwrite: bool, log: bool, as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Say in plain sentences whom a detector flags among the rows of INPUT, and which parts of INPUT are thin.

    Groups, and pairs of columns of groups, are compared by how often they are flagged (with --label: falsely), by their
    p-values and by the density of their codes, with intervals and a test that is corrected for their number: of fair
    data, at most the share --level of audits finds anything. Groups too small to judge are said to be so.

    \b
    Example:
      anomaly-vae audit models:/pumps@champion today.parquet
      anomaly-vae audit models:/pumps@champion today.parquet --group site --group team --out audit.json
    """
    config = AuditConfig.from_mapping(given)
    from ..serving import auditing, tracking

    if out is not None:
        auditing.check_report(out, input, overwrite=overwrite)
    model = tracking.load(model_uri)
    with terminal.counting_rows() as on_rows:
        found = auditing.audit_file(
            model.detector, input,
            groups=groups, label=label, by=by, config=config, model_uri=model.uri, on_rows=on_rows,
        )  # fmt: skip
    if out is not None:
        auditing.write_report(found, out)
    run_id = auditing.log_audit(found, model.detector, config, groups=groups, label=label, by=by) if log else None
    if as_json:
        print_json({**found.to_dict(), "run_id": run_id})
        return
    click.echo(terminal.audit_lines(found.audit, found.examples))
    if found.unreadable:
        click.echo(f"{found.unreadable:,} images could not be read or scored.", err=True)
    if out is not None:
        click.echo(f"Written to {out}")


@click.command(short_help="Rebalance a data set towards its rare parts.")
@click.argument("model_uri")
@click.argument("input", type=click.Path())
@click.argument("output", type=click.Path())
@click.option("--label", metavar="COL", help="Column of classes, or of a continuous target: density is within them.")
@options_of(ResampleConfig)
@click.option("--name", help="Register what weighs rows under this name, to weigh further ones.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@as_json
def resample(
    model_uri: str, input: str, output: str, label: str | None, name: str | None, overwrite: bool, as_json: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Rebalance INPUT into OUTPUT (.parquet or .csv) by the latent density of a registered detector.

    INPUT is a CSV or Parquet file or a folder of them, or images (see `train`); it is only read. OUTPUT has the table's
    own columns: with --mode weights, the default, all rows and a column sample_weight; with oversample, subsample or
    thin the rows themselves, as often as they count. Of images it is a list: file, class, weight, copies.
    OUTPUT.weights.parquet has the weight of each row of INPUT, its log density, and whether a guard held it down;
    OUTPUT.report.json says what was done. The run is logged with its lineage to model and data.

    \b
    Example:
      anomaly-vae resample models:/pumps@champion readings.parquet balanced.parquet --label site
      anomaly-vae resample models:/pumps@champion readings.csv more.csv --mode oversample --size 20000
    """
    config = ResampleConfig.from_mapping(given)
    from ..serving.rebalancing import resample_and_track

    with terminal.counting_rows() as on_rows:
        done = resample_and_track(
            model_uri, input, output, config, label=label, name=name, overwrite=overwrite, on_rows=on_rows
        )
    files, made = done.files, done.registered
    if as_json:
        paths = {"path": files.path, "weights": files.weights, "report_path": files.report_path}
        print_json(
            {
                **{key: str(path) for key, path in paths.items()},
                "report": files.report.to_dict(),
                "seconds": files.seconds,
                "run_id": done.run_id,
                "uri": made and made.uri,
                "unreadable": files.unreadable,
                "errors": files.errors and str(files.errors),
            }
        )
        return
    click.echo(terminal.resampling_lines(files.report))
    click.echo(f"Written to {files.path} ({files.report.rows_out:,} rows), {files.weights} and {files.report_path}")
    if files.unreadable:
        click.echo(f"{files.unreadable:,} images could not be read or scored; {files.errors} says why.", err=True)
    if made is not None:
        click.echo(terminal.registered_line(made.name, made.version, champion=made.champion))
        if held := made.model.weigher.rows_held:
            click.echo(f"It holds up to {held:,} of the rows, to compare with: keep it where the data may be.")
        click.echo(made.uri)


@click.command(short_help="Weigh the rows of a file by a registered resampler.")
@click.argument("model_uri")
@click.argument("input", type=click.Path())
@click.argument("output", type=click.Path())
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@as_json
def weigh(model_uri: str, input: str, output: str, overwrite: bool, as_json: bool) -> None:
    """Weigh the rows of INPUT into OUTPUT (.parquet or .csv) by a resampler that `resample --name` registered.

    OUTPUT has the row number, or the image's file, and for each row its weight in units of the mean of the rows that
    the resampler was made of, its log density, and whether a guard holds it down.

    \b
    Example:
      anomaly-vae weigh models:/pumps-weights@champion october.parquet weights.parquet
    """
    from ..serving.rebalancing import load
    from ..serving.resampling import weigh_file

    found = load(model_uri)
    with terminal.counting_rows() as on_rows:
        done = weigh_file(found.model, input, output, model_version=found.uri, overwrite=overwrite, on_rows=on_rows)
    if as_json:
        print_json({"path": str(done.path), "rows": done.rows, "seconds": done.seconds, "model": found.uri})
        return
    click.echo(f"{done.rows:,} rows weighed in {done.seconds:.1f} s by {found.uri}.")
    click.echo(f"Written to {done.path}")
