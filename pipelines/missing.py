"""What the detector is worth on mixed columns with missing cells: planted anomalies in a census table, beside peers.

It learns rows of Adult and ranks fresh rows among which anomalies are planted, with none, a tenth and three tenths of
the cells removed at random, in training and scoring or in scoring alone, and with a column gone. PyOD's peers see
one-hot categories, a mean in place of a missing number and the mode in place of a missing category. Also: how well
hidden cells are guessed, whether categories never seen are found, and how many normal rows are flagged.

Example:
    python pipelines/missing.py --data adult/ --seeds 1 --markdown missing.md
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import adult
import click
import numpy as np
import pandas as pd
import torch
from adult import PLANTS, Planted, hidden, kept_alike
from contenders import DETECTORS, OURS
from numpy.typing import NDArray
from rich.console import Console
from sheet import Sheet
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from anomaly_vae import Detector, TrainConfig, fit_detector
from anomaly_vae.data.schema import Schema, decode_cells
from anomaly_vae.detection.scores import expected_cells
from anomaly_vae.errors import AnomalyVaeError, DataWarning

PEERS = ("iforest", "ecod")
UNCHARGED = f"{OURS}, no charge"
ALL = "all three kinds"
ABSENT = "occupation"
ALPHA = 0.05
IMPUTED_ROWS = 500

Scorers = Mapping[str, Callable[[pd.DataFrame], NDArray[np.float64]]]
Facts = dict[str, Any]


@dataclass(frozen=True)
class Pattern:
    """Which cells are missing: a share in training, a share in scoring, and perhaps a column in scoring."""

    name: str
    trained: float
    scored: float
    absent: str | None = None


PATTERNS = (
    Pattern("no cell missing", 0.0, 0.0),
    Pattern("10 % missing", 0.1, 0.1),
    Pattern("30 % missing", 0.3, 0.3),
    Pattern("10 % missing in scoring alone", 0.0, 0.1),
    Pattern("30 % missing in scoring alone", 0.0, 0.3),
    Pattern(f"no {ABSENT} in scoring", 0.0, 0.0, ABSENT),
)
RATES = tuple(dict.fromkeys(pattern.trained for pattern in PATTERNS))


@dataclass(frozen=True)
class Rows:
    """The rows of one repetition, without a gap but the table's own.

    Attributes:
        train: Rows to learn.
        normal: Fresh rows.
        fresh: Further rows, to plant anomalies in, by kind.
    """

    train: pd.DataFrame
    normal: pd.DataFrame
    fresh: Mapping[str, pd.DataFrame]


def divided(table: pd.DataFrame, seed: int, *, rows: int, normal: int, planted: int) -> Rows:
    """Deal the rows of the table, each to one part."""
    order = np.random.default_rng(seed).permutation(len(table))
    ends = np.cumsum([rows, normal, *[planted] * len(PLANTS)])
    if ends[-1] > len(table):
        raise click.UsageError(f"the parts must fit into {len(table):,} rows, got {ends[-1]:,}. Ask for fewer.")
    train, held, *rest = (table.iloc[part].reset_index(drop=True) for part in np.split(order[: ends[-1]], ends[:-1]))
    return Rows(train, held, dict(zip(PLANTS, rest, strict=True)))


def scored_frames(rows: Rows, pattern: Pattern, seed: int) -> dict[str, pd.DataFrame]:
    """Return the normal rows under "" and the planted ones under their kinds, with the pattern's gaps."""
    rng = np.random.default_rng([seed, 1])
    planted: dict[str, Planted] = {k: PLANTS[k](rows.fresh[k], rng, spared=pattern.absent) for k in PLANTS}
    kept = kept_alike(np.concatenate([p.cells for p in planted.values()]), len(rows.normal), rng)
    frames = {"": hidden(rows.normal, pattern.scored, rng, kept=kept)}
    frames |= {kind: hidden(p.frame, pattern.scored, rng, kept=p.cells) for kind, p in planted.items()}
    if pattern.absent:
        frames = {kind: frame.assign(**{pattern.absent: np.nan}) for kind, frame in frames.items()}
    return frames


def peers_of(train: pd.DataFrame, seed: int) -> Scorers:
    """Fit the peers to numbers with means and to categories, one-hot, with modes in place of missing cells."""
    numbers = list(train.select_dtypes("number"))
    texts = [name for name in train if name not in numbers]
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    ready = make_column_transformer(
        (SimpleImputer(), numbers), (make_pipeline(SimpleImputer(strategy="most_frequent"), one_hot), texts)
    )

    def plain(frame: pd.DataFrame) -> pd.DataFrame:
        cells = frame.astype(dict.fromkeys(texts, object))
        return cells.where(frame.notna(), np.nan)

    def scores(model: Any, frame: pd.DataFrame) -> NDArray[np.float64]:
        return np.asarray(model.decision_function(ready.transform(plain(frame))))

    x = ready.fit_transform(plain(train))
    return {name: partial(scores, DETECTORS[name].make({}, seed, False).fit(x)) for name in PEERS}


def anomaly_scores(detector: Detector, frame: pd.DataFrame) -> NDArray[np.float64]:
    """Return what users rank by, (n,)."""
    return detector.score_frame(frame)["anomaly_score"].to_numpy()


def ranking(scorers: Scorers, frames: Mapping[str, pd.DataFrame]) -> Iterator[Facts]:
    """AUROC and average precision of each scorer for each kind of anomaly and for all together."""
    for name, scorer in scorers.items():
        scores = {kind: scorer(frame) for kind, frame in frames.items()}
        normal = scores.pop("")
        for kind, anomalous in {**scores, ALL: np.concatenate(list(scores.values()))}.items():
            truth = np.repeat([0, 1], [len(normal), len(anomalous)])
            ranked = np.concatenate([normal, anomalous])
            yield {"kind": kind, "detector": name, "metric": "auroc", "value": roc_auc_score(truth, ranked)}
            yield {"kind": kind, "detector": name, "metric": "ap", "value": average_precision_score(truth, ranked)}


def imputation(detector: Detector, train: pd.DataFrame, normal: pd.DataFrame) -> Iterator[Facts]:
    """Error of guessing hidden cells, and of guessing the mean or the mode of the training column.

    Numbers: root mean squared error in standard deviations of the training column; categories: share guessed right.
    """
    x, schema = detector.encode(normal), detector.schema
    assert isinstance(schema, Schema)
    for j, column in enumerate(schema.modelled):
        there = np.flatnonzero(normal[column.name].notna())[:IMPUTED_ROWS]
        guess = expected_cells(detector.model, x[there], torch.full((len(there),), j), noise=detector.noise[:16])
        cells, truth, seen = decode_cells(guess, column), normal[column.name].iloc[there], train[column.name]
        if column.kind in ("binary", "categorical"):
            values = {"value": (cells.to_numpy() == truth.to_numpy()).mean(), "plain": (truth == seen.mode()[0]).mean()}
            yield {"kind": column.name, "metric": "accuracy", **values}
        else:
            errors = [cells.to_numpy(dtype=float) - truth.to_numpy(dtype=float), seen.mean() - truth.to_numpy(float)]
            value, plain = (float(np.sqrt(np.square(e).mean()) / seen.std(ddof=0)) for e in errors)
            yield {"kind": column.name, "metric": "rmse", "value": value, "plain": plain}


def unseen(detector: Detector, normal: pd.DataFrame) -> Iterator[Facts]:
    """Share of rows flagged once a cell holds a category never seen, by column, and whether all scores are finite."""
    assert isinstance(detector.schema, Schema)
    for column in detector.schema.modelled:
        if column.kind in ("binary", "categorical"):
            out = detector.score_frame(normal.assign(**{column.name: "never seen"}), alpha=ALPHA)
            finite = bool(np.isfinite(out["anomaly_score"]).all())
            yield {"kind": column.name, "metric": "flagged", "value": out["is_anomaly"].mean()}
            yield {"kind": column.name, "metric": "finite", "value": float(finite)}


def false_alarms(
    detectors: Mapping[str, Detector], calibration: Mapping[str, pd.DataFrame], normal: pd.DataFrame
) -> Iterator[Facts]:
    """Share of normal rows flagged, by the rows that the detector was calibrated with."""
    for name, detector in detectors.items():
        for kind, frame in calibration.items():
            out = detector.calibrate(frame).score_frame(normal, alpha=ALPHA)
            yield {"kind": kind, "detector": name, "metric": "flagged", "value": out["is_anomaly"].mean()}


def measure(rows: Rows, seed: int, config: TrainConfig, report: Callable[[str], None]) -> Iterator[Facts]:
    """Yield all that one repetition comes to, a dict a figure."""
    for rate in RATES:
        report(f"seed {seed}: training with {rate:.0%} of the cells missing")
        train = hidden(rows.train, rate, np.random.default_rng([seed, 2]))
        fit = fit_detector(train, replace(config, seed=seed))
        ours = {OURS: fit.detector}
        if config.charge_missing:
            ours[UNCHARGED] = replace(fit.detector, missing_cost=None)
        scorers: Scorers = {name: partial(anomaly_scores, detector) for name, detector in ours.items()}
        scorers = {**scorers, **peers_of(train, seed)}
        for pattern in (p for p in PATTERNS if p.trained == rate):
            facts = {"seed": seed, "pattern": pattern.name}
            frames = scored_frames(rows, pattern, seed)
            yield from ({**facts, "part": "ranking", **found} for found in ranking(scorers, frames))
            held = fit.split["calibration"]
            calibration = {"as in training": train.iloc[held], "complete": rows.train.iloc[held]}
            if pattern.trained == 0:
                del calibration["complete"]  # it is the same
            # the normal rows that are ranked keep some cells for certain, which calibration rows do not
            normal = hidden(rows.normal, pattern.scored, np.random.default_rng([seed, 3]))
            normal = normal.assign(**{pattern.absent: np.nan}) if pattern.absent else normal
            alarms = false_alarms(ours, calibration, normal)
            yield from ({**facts, "part": "false alarms", **found} for found in alarms)
            if pattern.trained == pattern.scored and not pattern.absent:
                guessed = imputation(fit.detector, train, frames[""])
                yield from ({**facts, "part": "imputation", **found} for found in guessed)
                found_unseen = unseen(fit.detector, frames[""])
                yield from ({**facts, "part": "unseen", **found} for found in found_unseen)


def _mean(found: pd.DataFrame, *, points: bool = True) -> str:
    return "" if found.empty else f"{100 * found['value'].mean():.1f}" if points else f"{found['value'].mean():.2f}"


def ranking_sheet(results: pd.DataFrame, metric: str, title: str) -> Sheet:
    """One line a pattern and kind, one column a detector."""
    part = results[(results.part == "ranking") & (results.metric == metric)]
    names = list(dict.fromkeys(part.detector))
    sheet = Sheet(f"{title}, x 100, mean over seeds: {part.seed.nunique()}", ("missing cells", "anomalies", *names))
    behind = []
    for (pattern, kind), cell in part.groupby(["pattern", "kind"], sort=False):
        means = cell.groupby("detector")["value"].mean()
        sheet.rows.append((pattern, kind, *(f"{100 * means[name]:.1f}" for name in names)))
        if means[OURS] <= means[list(PEERS)].max():
            behind.append(f"{pattern}, {kind}")
    if behind:
        sheet.notes.append(f"{OURS} is not above every peer in: {'; '.join(behind)}.")
    else:
        sheet.notes.append(f"{OURS} is above every peer in all {len(sheet.rows)} lines.")
    return sheet


def sheets(results: pd.DataFrame) -> list[Sheet]:
    """Return the tables of the report."""
    patterns = list(dict.fromkeys(results.pattern))
    made = [ranking_sheet(results, "auroc", "AUROC"), ranking_sheet(results, "ap", "Average precision")]
    guessed = results[results.part == "imputation"]
    known = [p for p in patterns if p in set(guessed.pattern)]
    columns = [name for pattern in known for name in (pattern, "mean or mode")]
    sheet = Sheet("Hidden cells guessed from the others", ("column", "measure", *columns))
    for (kind, metric), cell in guessed.groupby(["kind", "metric"], sort=False):
        by = cell.groupby("pattern")[["value", "plain"]].mean().loc[known]
        sheet.rows.append((kind, metric, *(f"{value:.2f}" for value in by.to_numpy().ravel())))
    sheet.notes.append("rmse: in standard deviations, low = good; accuracy: share guessed right, high = good.")
    made.append(sheet)
    odd = results[results.part == "unseen"]
    sheet = Sheet(f"Rows flagged at {ALPHA:g} once a cell holds a category never seen, %", ("column", *known))
    for kind, cell in odd[odd.metric == "flagged"].groupby("kind", sort=False):
        sheet.rows.append((kind, *(_mean(cell[cell.pattern == p]) for p in known)))
    sheet.notes.append(f"Scores that are finite: {_mean(odd[odd.metric == 'finite'])} %.")
    made.append(sheet)
    alarms = results[results.part == "false alarms"]
    heads = list(dict.fromkeys(zip(alarms.detector, alarms.kind, strict=True)))
    names = tuple(f"{detector}; calibration rows {kind}" for detector, kind in heads)
    sheet = Sheet(f"Normal rows flagged at {ALPHA:g}, %", ("missing cells", *names))
    for pattern, cell in alarms.groupby("pattern", sort=False):
        figures = (_mean(cell[(cell.detector == d) & (cell.kind == k)]) for d, k in heads)
        sheet.rows.append((pattern, *figures))
    return [*made, sheet]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data", type=click.Path(path_type=Path), help=f"Folder of {' and '.join(adult.FILES)}.")
@click.option("--rows", default=8_000, show_default=True, help="Rows to learn.")
@click.option("--normal", default=2_000, show_default=True, help="Normal rows to rank.")
@click.option("--planted", default=500, show_default=True, help="Anomalous rows of each kind.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Repetitions.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of training; may be repeated.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Also write the tables here.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("mlruns/missing"),
    show_default=True,
    help="Folder of results.parquet.",
)
def main(
    data: Path | None,
    rows: int,
    normal: int,
    planted: int,
    seeds: int,
    settings: Sequence[str],
    markdown: Path | None,
    out: Path,
) -> None:
    """Rank planted anomalies of the census table Adult, with missing cells, beside PyOD's detectors."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 200))  # a log has no width
    if data is None or not all((data / name).is_file() for name in adult.FILES):
        where = f"in {data}" if data else "given (--data)"
        console.print(f"Skipped: {' and '.join(adult.FILES)} of the census table Adult are not {where}.")
        return
    try:
        config = TrainConfig().updated(settings)
        table = adult.load(data)
    except AnomalyVaeError as error:
        raise click.UsageError(str(error)) from None
    found: list[Facts] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # impossible counts are what is planted
        for seed in range(seeds):
            parts = divided(table, seed, rows=rows, normal=normal, planted=planted)
            found += measure(parts, seed, config, lambda text: console.print(text, style="dim", highlight=False))
    order = [pattern.name for pattern in PATTERNS]
    results = pd.DataFrame(found).sort_values("pattern", key=lambda p: p.map(order.index), kind="stable")
    out.mkdir(parents=True, exist_ok=True)
    results.to_parquet(out / "results.parquet", index=False)
    made = sheets(results)
    for sheet in made:
        sheet.show(console)
    if markdown:
        markdown.write_text("\n".join(sheet.to_markdown() for sheet in made), encoding="utf-8")
    console.print(f"written to {out / 'results.parquet'}", highlight=False)


if __name__ == "__main__":
    main()
