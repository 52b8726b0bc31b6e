"""Whether the detector keeps what it promises on real tables: false alarms, false discoveries and reasons.

On each table half of the normal rows are learnt. Of the rest,

- false alarms: the share of fresh normal rows flagged at each alpha, beside the beta-binomial law that split-conformal
  p-values of c calibration rows follow;
- false discoveries: the share of normal rows among those flagged at q = 0.1, all anomalies being in the job;
- reasons: in fresh normal rows one cell is moved by 5 to 10 of its column's standard deviations; where the row is then
  flagged and was not before, is the moved cell the first reason? Do the reasons sum to the score?

Example:
    python pipelines/promises.py --data adbench/ --seeds 3 --markdown promises.md
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pandas as pd
from labelled import LabelledTable, Rows, find_tables, one_class
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy.stats import betabinom
from sheet import Sheet

from anomaly_vae import AnomalyDetector, TrainConfig
from anomaly_vae.errors import AnomalyVaeError, CalibrationError, DataWarning, TrainingWarning

ALPHAS = (0.01, 0.05, 0.1)
Q = 0.1
PLANTED_ROWS = 300


@dataclass(frozen=True)
class Alarms:
    """False alarms of one detector at one alpha, and the law they should follow.

    Attributes:
        alpha: Promised rate.
        flagged: Fresh normal rows flagged.
        fresh: Fresh normal rows.
        calibration: Calibration rows, c.
    """

    alpha: float
    flagged: int
    fresh: int
    calibration: int

    @property
    def law(self) -> betabinom:
        """BetaBinomial(fresh, a, c + 1 - a), a = floor(alpha (c + 1)): exact for scores without ties."""
        a = int(np.floor(self.alpha * (self.calibration + 1) * (1 + 1e-12)))
        return betabinom(self.fresh, a, self.calibration + 1 - a)

    @property
    def inside(self) -> bool:
        """Whether the count lies within the law's central 99 %."""
        return bool(self.law.ppf(0.005) <= self.flagged <= self.law.ppf(0.995))


@dataclass(frozen=True)
class Kept:
    """What one detector on one table kept.

    Attributes:
        table: Name.
        alarms: One for each alpha that the calibration rows allow.
        discoveries: Rows flagged under the false discovery rate.
        false_share: Share of them that are normal, 0 where none is flagged.
        planted: Rows flagged because of the moved cell.
        named: Those whose first reason is that cell.
        gap: Largest |sum of reasons - score| / max(1, |score|).
    """

    table: str
    alarms: tuple[Alarms, ...]
    discoveries: int
    false_share: float
    planted: int
    named: int
    gap: float


def plant(rows: Rows, scale: NDArray[np.float64], rng: np.random.Generator) -> tuple[Rows, NDArray[np.intp]]:
    """Move one cell of each row by 5 to 10 standard deviations, either way; return the rows and the columns moved.

    Args:
        rows: Rows, (n, m).
        scale: Standard deviations of the columns, (m,); columns of 0 are left alone.
        rng: Source of randomness.
    """
    moved, columns = rows.copy(), rng.choice(np.flatnonzero(scale > 0), len(rows))
    by = rng.uniform(5.0, 10.0, len(rows)) * rng.choice([-1.0, 1.0], len(rows))
    moved[np.arange(len(rows)), columns] += by * scale[columns]
    return moved, columns


def check(table: LabelledTable, seed: int, config: TrainConfig) -> Kept | None:
    """Train on one table and check; None where its calibration rows do not allow alpha = .05."""
    train, (test, truth) = one_class(*table.load(), seed)
    names = [f"x{j}" for j in range(train.shape[1])]

    def frame(rows: Rows) -> pd.DataFrame:
        return pd.DataFrame(rows, columns=names)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        warnings.simplefilter("ignore", DataWarning)
        detector = AnomalyDetector(config, random_state=seed).fit(frame(train)).detector_
        held = detector.calibration.rows
        try:
            plain = detector.score_frame(frame(test), alpha=0.05)
        except CalibrationError:
            return None
        p = plain["p_value"].to_numpy()[~truth]
        alarms = tuple(Alarms(a, int((p <= a).sum()), len(p), held) for a in ALPHAS if a * (held + 1) >= 1)
        found = detector.score_frame(frame(test), fdr=Q)["is_anomaly"].to_numpy()
        normal = np.flatnonzero(~truth & ~plain["is_anomaly"].to_numpy())[:PLANTED_ROWS]
        moved, columns = plant(test[normal], train.std(0), np.random.default_rng(seed))
        out = detector.score_frame(frame(moved), explain=1)
    reasons = [json.loads(text) for text in out["attributions"]]
    scores, flagged = out["anomaly_score"].to_numpy(), out["is_anomaly"].to_numpy()
    totals = np.array([sum(reason["nats"] for reason in row) for row in reasons])
    first = np.array([row[0]["column"] for row in reasons])
    guilty = np.array(names)[columns]
    return Kept(
        table=table.name,
        alarms=alarms,
        discoveries=int(found.sum()),
        false_share=float((found & ~truth).sum() / max(1, found.sum())),
        planted=int(flagged.sum()),
        named=int((flagged & (first == guilty)).sum()),
        gap=float(np.max(np.abs(totals - scores) / np.maximum(1.0, np.abs(scores)))),
    )


def by_table(kept: list[Kept]) -> Sheet:
    """Return the figures of each table, over its seeds."""
    columns = ("table", "calibration rows", *(f"alarms at {a:g}" for a in ALPHAS), f"false at q = {Q:g}", "named first")
    sheet = Sheet("Promises by table, %", columns)
    for name in dict.fromkeys(k.table for k in kept):
        mine = [k for k in kept if k.table == name]
        cells = []
        for alpha in ALPHAS:
            alarms = [a for k in mine for a in k.alarms if a.alpha == alpha]
            rate = 100 * sum(a.flagged for a in alarms) / max(1, sum(a.fresh for a in alarms))
            cells.append(f"{rate:.1f}" if alarms else "too few rows")
        false = 100 * np.mean([k.false_share for k in mine])
        planted = sum(k.planted for k in mine)
        named = f"{100 * sum(k.named for k in mine) / planted:.1f} of {planted}" if planted else "none flagged"
        sheet.rows.append((name, str(mine[0].alarms[0].calibration), *cells, f"{false:.1f}", named))
    return sheet


def overall(kept: list[Kept]) -> Sheet:
    """Return the figures over all tables and seeds, each beside what was promised."""
    sheet = Sheet(f"Promises over {len(kept)} detectors", ("promise", "found", "promised"))
    for alpha in ALPHAS:
        alarms = [a for k in kept for a in k.alarms if a.alpha == alpha]
        if not alarms:
            sheet.rows.append((f"false alarms at {alpha:g}", "too few calibration rows", f"at most {100 * alpha:g} %"))
            continue
        rate = np.mean([a.flagged / a.fresh for a in alarms])
        error = np.sqrt(sum((a.law.std() / a.fresh) ** 2 for a in alarms)) / len(alarms)
        inside = np.mean([a.inside for a in alarms])
        found = f"{100 * rate:.2f} ± {100 * error:.2f} %, {100 * inside:.0f} % of {len(alarms)} inside the law's 99 %"
        sheet.rows.append((f"false alarms at {alpha:g}", found, f"at most {100 * alpha:g} %"))
    shares = np.array([k.false_share for k in kept])
    error = shares.std(ddof=1) / np.sqrt(len(shares)) if len(shares) > 1 else np.nan
    sheet.rows.append(
        ("false discovery rate", f"{100 * shares.mean():.2f} ± {100 * error:.2f} %", f"at most {100 * Q:g} %")
    )
    planted, named = sum(k.planted for k in kept), sum(k.named for k in kept)
    sheet.rows.append(
        ("moved cell named first", f"{100 * named / max(1, planted):.1f} % of {planted} flagged rows", "")
    )
    sheet.rows.append(("reasons sum to the score", f"within {max(k.gap for k in kept):.1e}, relative", "1e-5"))
    return sheet


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of tables, .npz.")
@click.option("--table", "names", multiple=True, help="A table of that folder, repeatable; all by default.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Repetitions of each table.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the detector, repeatable.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures here.")
def main(
    data: Path | None, names: tuple[str, ...], seeds: int, settings: tuple[str, ...], markdown: Path | None
) -> None:
    """Check false alarms, false discoveries and reasons on real tables."""
    console = Console()
    try:
        config = TrainConfig().updated(settings)
        jobs = [(table, seed) for table in find_tables(data, names) for seed in range(seeds)]
        done = {
            job: check(*job, config) for job in track(jobs, description="checking", console=console, transient=True)
        }
    except AnomalyVaeError as error:
        raise click.ClickException(str(error)) from error
    kept = [k for k in done.values() if k is not None]
    if not kept:
        raise click.ClickException("the tables must have 19 calibration rows, got none that has. Give larger ones.")
    sheets = [by_table(kept), overall(kept)]
    left_out = sorted({table.name for (table, _), k in done.items() if k is None})
    if left_out:
        sheets[-1].notes.append(f"Too few rows for alpha = 0.05: {', '.join(left_out)}.")
    for sheet in sheets:
        sheet.show(console)
    if markdown:
        markdown.write_text("\n".join(sheet.to_markdown() for sheet in sheets), encoding="utf-8")


if __name__ == "__main__":
    main()
