"""Whether rare groups that nobody names are found and made to count: weigh, train a classifier, compare by group.

For each protocol (see `planted`) and seed: a detector learns the training rows; each method weighs them; a classifier
is trained on what the weights give, as fresh draws and as one fixed oversample, and judged on test rows in which the
groups are equally many. All methods of a seed share rows, detector, batches and first weights. The gain of a method is
that of the worst group's accuracy over no weights; its share is in units of what a method gains that is told the true
groups, and quoted where that gain is at least three of its standard errors.

Each finished seed is kept under --out, and a later call goes on from there. One seed of `rotation` takes about two
minutes on one core.

Example:
    python pipelines/debias.py --data ../data --protocol rotation --spoil clean --spoil garbage --seeds 20
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from bench_images import Results
from contenders import source_digest
from debias_methods import (
    DELIVERIES,
    ENOUGH,
    KNOWN,
    METHODS,
    NONE,
    ORACLE,
    Share,
    coded_rows,
    described,
    features,
    judged,
    predictions,
    recovered,
    weights_of,
)
from numpy.typing import NDArray
from planted import PLANTS, PROTOCOLS, SPOILINGS, Part, Planted, planted, spoilt
from rich.console import Console
from sheet import Sheet

from anomaly_vae.errors import AnomalyVaeError
from anomaly_vae.estimator import fit_detector
from anomaly_vae.evaluation.audit import audit
from anomaly_vae.options import Config, ImageConfig, TrainConfig
from anomaly_vae.serving import rebalancing, tracking

REVISION = 6
"""Part of each result's identity: to be raised when a protocol or a method changes."""
DETECTORS: dict[str, Config] = {
    "rotation": ImageConfig(latent=8, channels=16, batch_size=64, steps=1000),
    "fashion": ImageConfig(latent=16, channels=16, batch_size=64, steps=1000),
    "coloured": ImageConfig(latent=32, channels=16, batch_size=64, steps=1500),
    "adult": TrainConfig(latent=8, companions=(), steps=2000),
    "credit": TrainConfig(latent=8, companions=(), steps=2000),
    "digits": ImageConfig(latent=8, channels=16, batch_size=64, steps=300),
}
CLASSIFIERS = {
    "digits": (400, 64),
    "adult": (400, 32),
    "credit": (400, 32),
    "coloured": (400, 32),
    "fashion": (400, 32),
}
"""Steps and hidden units of the classifier; 800 and 64 elsewhere."""
APART = 10_000
"""Seeds of a seed's classifiers are so far from each other."""
DEMO_METHODS = (NONE, "class balancing", "default", "default in PCA space", ORACLE)
DEMO_RUNS = 3


def measured(
    data: Planted,
    config: Config,
    methods: Sequence[str],
    seed: int,
    protocol: str,
    deliveries: Sequence[str] = DELIVERIES,
    classifiers: int = 1,
) -> Iterator[dict[str, Any]]:
    """Yield the figures of each method and delivery, means over classifiers that differ in their first weights."""
    start = time.perf_counter()
    needs_model = any(method not in KNOWN for method in methods)
    rows = coded_rows(fit_detector(data.train.frame, config).detector, data.train) if needs_model else None
    seconds = time.perf_counter() - start
    yield from compared(data, rows, methods, seed, protocol, deliveries, seconds, classifiers)


def compared(
    data: Planted,
    rows: Any,
    methods: Sequence[str],
    seed: int,
    protocol: str,
    deliveries: Sequence[str],
    seconds: float,
    classifiers: int = 1,
) -> Iterator[dict[str, Any]]:
    """Yield the figures of each method and delivery, given the coded rows; see `measured`."""
    seen, (steps, hidden) = features(data), CLASSIFIERS.get(protocol, (800, 64))
    for method in methods:
        start = time.perf_counter()
        weights = weights_of(method, rows, data.train, seed=seed)
        weighing = time.perf_counter() - start
        for delivery in deliveries:
            runs = (
                predictions(seen, data.train.y, weights, delivery, seed=first, steps=steps, hidden=hidden)
                for first in range(seed, seed + classifiers * APART, APART)
            )
            means = pd.DataFrame(judged(found, data.test) for found in runs).mean().to_dict()
            figures = {**means, **described(weights, data.train)}
            yield {
                "method": method, "delivery": delivery, **{k: None if math.isnan(v) else v for k, v in figures.items()},
                "fit_seconds": seconds, "weigh_seconds": weighing,
            }  # fmt: skip


def tables(rows: pd.DataFrame) -> list[Sheet]:
    """Return a table for each protocol, kind of spoiling and delivery: means over seeds, shares with intervals."""
    sheets = []
    for (data, spoil, delivery), part in rows.groupby(["data", "spoil", "delivery"], sort=False):
        seeds = part.seed.nunique()
        title = f"{data}, {spoil}, {delivery}: mean of {seeds} seed{'s' if seeds > 1 else ''}, accuracy in %"
        columns = (
            "method", "worst group", "gain (± s.e.)", "of the oracle's", "95 %", "usual rows", "precision", "variance",
            "ESS", "rare mass", "spoilt mass",
        )  # fmt: skip
        sheet = Sheet(title, columns)
        worst = part.pivot_table(index="seed", columns="method", values="worst", sort=False)
        means = part.groupby("method", sort=False)[
            ["worst", "usual", "precision", "variance", "ess", "rare_mass", "spoilt_times"]
        ].mean()
        complete = worst.dropna(subset=[c for c in (NONE, ORACLE) if c in worst.columns])
        gains = complete.sub(complete[NONE], axis=0) if NONE in worst.columns else complete * np.nan
        share = recovered(gains[ORACLE].to_numpy(), gains[ORACLE].to_numpy()) if ORACLE in gains.columns else None
        for method, mean in means.iterrows():
            sheet.rows.append((str(method), f"{100 * mean.worst:.1f}", *_gain(gains, str(method)), *_rest(mean)))
        if share is not None:
            sheet.notes.append(_standing(share, seeds))
        sheet.notes.append(
            "variance: of accuracy between groups, in points squared; spoilt mass: in units of its own share"
        )
        sheets.append(sheet)
    return sheets


def _standing(share: Share, seeds: int) -> str:
    text = f"the oracle gains {100 * share.oracle_gain:.1f} points"
    if seeds < 2:
        return f"{text} in one seed: no share of it is quoted"
    error, spread = 100 * share.oracle_error, 100 * share.oracle_spread
    text += f", standard error {error:.2f}, standard deviation over seeds {spread:.2f}"
    return text if share.quotable else f"{text}: under {ENOUGH:g} standard errors, so no share of it is quoted"


def _gain(gains: pd.DataFrame, method: str) -> tuple[str, str, str]:
    if method not in gains.columns or method == NONE or gains[method].isna().all():
        return ("", "", "")
    both = gains[list(dict.fromkeys(name for name in (method, ORACLE) if name in gains.columns))].dropna()
    gain = both[method].to_numpy()
    error = f" ± {100 * gain.std(ddof=1) / math.sqrt(len(gain)):.1f}" if len(gain) > 1 else ""
    text = f"{100 * gain.mean():+.1f}{error}"
    if ORACLE not in gains.columns or method == ORACLE:
        return (text, "", "")
    share = recovered(gain, gains.loc[both.index, ORACLE].to_numpy())
    if not share.quotable:
        return (text, "", "")
    interval = "" if math.isinf(share.low) else f"{share.low:.0%} to {share.high:.0%}"
    return (text, f"{share.value:.0%}", interval)


def _rest(mean: pd.Series) -> tuple[str, ...]:
    shares = [f"{100 * mean[name]:.1f}" for name in ("usual", "precision")]
    spoilt_mass = "" if math.isnan(mean.spoilt_times) else f"{mean.spoilt_times:.2f}"
    return (*shares, f"{mean.variance:.0f}", f"{mean.ess:.2f}", f"{mean.rare_mass:.2f}", spoilt_mass)


def demonstrated(say: Callable[[str], None], console: Console, name: str = "digits-turned") -> None:
    """Show the whole way on scikit-learn's digits, of which 5 % are rotated: audit, weigh, register, compare."""
    data = planted("digits", None, 0)
    rare = data.train.rare
    say(f"{len(rare)} digits to learn, {rare.sum()} of them rotated by 90 degrees, which nobody is told")
    made = tracking.train_and_register(data.train.frame, DETECTORS["digits"], name=name, source="sklearn")
    detector = made.detector
    rows = coded_rows(detector, data.train)
    audited = _audited(detector, data.train, rows.codes)
    say(f"the audit, which is told: {audited or 'nothing found'}")
    weigher = rebalancing.resample_and_register(
        made.uri, data.train.frame, name=f"{name}-weights", labels=data.train.y, label_column="digit", source="sklearn"
    )
    weights = weigher.model.weigher.weighing.weights
    mass = weights[rare].sum() / weights.sum()
    say(f"registered as [green]{weigher.uri}[/]; the rotated have {mass:.0%} of the weight")
    table = Sheet("A classifier, by group", ("weights", *data.groups, "precision"))
    runs = [compared(data, rows, DEMO_METHODS, seed, "digits", ("draws",), 0.0) for seed in range(DEMO_RUNS)]
    for method, part in pd.DataFrame(itertools.chain(*runs)).groupby("method", sort=False):
        means = (f"{100 * part[key].mean():.1f} %" for key in ("group 0", "group 1", "precision"))
        table.rows.append((str(method), *means))
    table.notes.append(f"means of {DEMO_RUNS} draws and classifiers, on test digits of which half are rotated")
    table.show(console)


def _audited(detector: Any, part: Part, codes: NDArray[np.floating]) -> str:
    p_values = detector.score_frame(part.frame, alpha=0.5)["p_value"].to_numpy()
    groups = {"rotated": np.where(part.rare, "yes", "no")}
    found = audit(p_values=p_values, groups=groups, codes=codes, calibration_rows=detector.calibration.rows)
    return next((f.sentence for f in found.findings if f.kind != "thin_region"), "")


def _key(
    protocol: str, spoil: str, plant: str, seed: int, config: Config, methods: Sequence[str], classifiers: int
) -> dict[str, Any]:
    return {
        "revision": REVISION, "protocol": protocol, "spoil": spoil, "plant": plant, "seed": seed,
        "config": json.dumps(config.to_dict()), "methods": list(methods), "classifiers": classifiers,
        "source": source_digest(),
    }  # fmt: skip


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of the data, see `planted`."
)
@click.option(
    "--protocol", "protocols", multiple=True, type=click.Choice(PROTOCOLS), help="Repeatable; by default digits."
)
@click.option(
    "--spoil", "spoilings", multiple=True, type=click.Choice(SPOILINGS), default=("clean",), show_default=True
)
@click.option("--plant", type=click.Choice(list(PLANTS)), default="rotated", show_default=True)
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), default=METHODS, help="Repeatable.")
@click.option("--seeds", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--classifiers", type=click.IntRange(min=1), default=1, show_default=True,
    help="Trained for each seed, method and delivery; a seed's figures are their means.",
)  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the detector.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("mlruns/bench-debias"), show_default=True)
def main(
    data: Path | None, protocols: tuple[str, ...], spoilings: tuple[str, ...], plant: str, methods: tuple[str, ...],
    seeds: int, classifiers: int, settings: tuple[str, ...], out: Path,
) -> None:  # fmt: skip
    """Measure the ways of rebalancing; print the tables and keep them as Markdown and Parquet."""
    console = Console(width=200)
    results, rows = Results(out / "runs.jsonl"), []
    for protocol in protocols or ("digits",):
        if data is None and protocol != "digits":
            raise click.UsageError(f"--data must name the folder of the data for {protocol}, got none.")
        for spoil in spoilings:
            if spoil == "garbage" and protocol in ("adult", "credit"):
                raise click.UsageError(f"garbage must be planted among images, got {protocol}. Leave it out.")
            for seed in range(seeds):
                try:
                    config = DETECTORS[protocol].updated([*settings, f"seed={seed}"])
                    done = _run(results, data, protocol, spoil, plant, seed, config, methods, classifiers)
                except (AnomalyVaeError, FileNotFoundError) as error:
                    raise click.UsageError(str(error)) from None
                rows += done
                told = {row["method"]: row["worst"] for row in done if row["delivery"] == DELIVERIES[0]}
                line = f"{protocol}, {spoil}, seed {seed}: " + ", ".join(f"{m} {100 * w:.1f}" for m, w in told.items())
                console.print(line, style="dim", highlight=False)
    frame = pd.DataFrame(rows)
    frame.drop(columns=["config", "source", "methods"]).to_parquet(out / "results.parquet", index=False)
    sheets = tables(frame)
    for sheet in sheets:
        sheet.show(console)
    (out / "report.md").write_text("\n".join(sheet.to_markdown() for sheet in sheets), encoding="utf-8")
    console.print(f"written to {out / 'report.md'}", highlight=False)


def _run(
    results: Results, folder: Path | None, protocol: str, spoil: str, plant: str, seed: int, config: Config,
    methods: Sequence[str], classifiers: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return one seed's figures, computed if they are not there."""
    key = _key(protocol, spoil, plant, seed, config, methods, classifiers)

    def work() -> Iterator[dict[str, Any]]:
        data = spoilt(planted(protocol, folder, seed, plant=plant), spoil, seed)
        for row in measured(data, config, methods, seed, protocol, classifiers=classifiers):
            yield {"data": data.name, **row}

    return results.of(key, work)


if __name__ == "__main__":
    main()
