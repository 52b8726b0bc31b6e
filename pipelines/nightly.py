"""The night's job: score the day's files, watch them for drift, retrain if it says so, promote what is not worse.

    start    notes the day's files and the champion that is in office
    score    writes scored/FILE.parquet for each file
    monitor  compares scores and columns with the model's own rows; logs a run with what was found
    train    on drift, or --retrain: a challenger, on the day's normal rows but for those held out, and on --history
    compare  champion and challenger on the held rows: false alarms, AUROC where there are labels, density where not
    promote  moves the alias, if the challenger is not worse

Each step is written down in WORK/NAME/DAY/ledger.json when it is done; a run that was killed goes on from there, a day
that is done does nothing new. Runs of one model share WORK on one machine and exclude each other by a lock.

Exit codes: 0 done, 2 a mistake in the call or the data, 5 another run is at work.

Example:
    python pipelines/nightly.py pumps --inbox inbox/2026-11-25
    python pipelines/nightly.py pumps --rollback
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import mlflow
import numpy as np
import pandas as pd
from ledger import BusyError, Ledger, digest, locked, write_json
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray

from anomaly_vae import Detector, Schema, ScoreConfig
from anomaly_vae.data.rows import labels, split_rows, table_files
from anomaly_vae.errors import AnomalyVaeError, ConfigError, DataWarning, SchemaError, TrainingWarning, redacted
from anomaly_vae.evaluation.challenge import Contest, alarms, contest
from anomaly_vae.options import MonitorConfig
from anomaly_vae.serving import streams, tracking
from anomaly_vae.serving.batch import score_file
from anomaly_vae.serving.monitor import log_drift, monitor_files

DONE, MISTAKE, BUSY = 0, 2, 5
TAG, HISTORY = "nightly", "champions"
"""Tag of the runs a night makes; tag of a registered model that lists its champions, the one in office last."""
HELD = 0.3
"""Share of the day's normal rows that the challenger is not trained on."""

Moment = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Night:
    """One night's job for one model.

    Attributes:
        name: The registered model.
        inbox: The day's files.
        day: Its name; the folder's by default.
        work: Where nights keep what they have done.
        label: Column that is true or 1 for anomalous rows, where the files have it.
        history: Further rows to train a challenger on.
        retrain: Whether to train one without drift, too.
        level: False-alarm rate of the monitor.
        alpha: False-alarm rate at which champion and challenger are compared.
    """

    name: str
    inbox: Path
    day: str
    work: Path
    label: str | None = None
    history: tuple[Path, ...] = ()
    retrain: bool = False
    level: float = MonitorConfig.level
    alpha: float = ScoreConfig.alpha

    @cached_property
    def folder(self) -> Path:
        """Where this night keeps what it has done."""
        return self.work / self.name / self.day

    @property
    def key(self) -> str:
        """What its runs are tagged with."""
        return f"{self.name}/{self.day}"

    @cached_property
    def files(self) -> list[Path]:
        """The day's files."""
        return table_files(self.inbox)

    def scored(self, file: Path) -> Path:
        """Where a file's scores are written."""
        inside = file.relative_to(self.inbox) if self.inbox.is_dir() else Path(file.name)
        return self.folder / "scored" / ("__".join(inside.parts) + ".parquet")


def run(night: Night, reached: Moment = lambda moment: None) -> dict[str, Any]:
    """Do what is still to be done of a night, and return what each step found.

    Args:
        night: The job.
        reached: Told of each moment at which something outside this process has just changed.

    Raises:
        BusyError: Another process does this model's.
        AnomalyVaeError: The files or the model cannot be used.
    """
    _check_names(night.name, night.day)
    tracking.connect()
    with locked(lock_of(night.work, night.name)), warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        warnings.simplefilter("ignore", TrainingWarning)
        ledger = Ledger(night.folder / "ledger.json")
        found: dict[str, Any] = {"new": False}
        for step in STEPS:
            facts = ledger.done(step.__name__)
            if facts is None or (step is start and _changed(night, facts)):
                facts = step(night, ledger, found, reached)
                found["new"] = True
                reached(step.__name__)
            found[step.__name__] = facts
        return found


def lock_of(work: Path, name: str) -> Path:
    """Return the file that runs of a model lock."""
    return work / f"{name}.lock"


def start(night: Night, ledger: Ledger, found: dict[str, Any], reached: Moment) -> dict[str, Any]:
    """Note the files and the champion; what is noted stands for the rest of the night, whatever happens meanwhile."""
    champion = tracking.load(f"models:/{night.name}@{tracking.ALIAS}")
    if not isinstance(champion.detector.schema, Schema):
        raise ConfigError(
            f"a nightly model must be one of a table, got {champion.detector.kind}. Score images by hand."
        )
    inputs = {str(night.scored(file).name): digest(file) for file in night.files}
    return ledger.record("start", {"champion": champion.uri, "inputs": inputs, "retrain": night.retrain})


def score(night: Night, ledger: Ledger, found: dict[str, Any], reached: Moment) -> dict[str, Any]:
    """Score each file that is not scored yet; one that is there is whole, since it is renamed into its place."""
    uri = found["start"]["champion"]
    detector = tracking.load(uri).detector
    outputs, rows, flagged = [], 0, 0
    (night.folder / "scored").mkdir(exist_ok=True)
    for file in night.files:
        output = night.scored(file)
        written = ledger.done(f"score/{output.name}")
        if written is None:
            config = ScoreConfig(alpha=night.alpha, overwrite=True)
            done = score_file(detector, file, output, config, model_version=uri, schema=detector.schema)
            reached(f"score/{output.name}")
            written = ledger.record(f"score/{output.name}", {"rows": done.rows, "flagged": done.flagged}, [output])
        outputs.append(output)
        rows, flagged = rows + written["rows"], flagged + written["flagged"]
    return ledger.record("score", {"rows": rows, "flagged": flagged}, outputs)


def monitor(night: Night, ledger: Ledger, found: dict[str, Any], reached: Moment) -> dict[str, Any]:
    """Watch the day's scores and columns."""
    model = tracking.load(found["start"]["champion"])
    scored = [night.scored(file) for file in night.files]
    drift = monitor_files(model.detector, scored, night.files, MonitorConfig(level=night.level))
    output = night.folder / "drift.json"
    write_json(output, drift.to_dict())
    reached("monitor/drift.json")
    if not _finished_runs(night, "monitor"):
        log_drift(drift, model.uri, tags={TAG: f"{night.key}/monitor"})
        reached("monitor/run")
    return ledger.record("monitor", {"alarm": drift.alarm, "sentences": list(drift.sentences)}, [output])


def train(night: Night, ledger: Ledger, found: dict[str, Any], reached: Moment) -> dict[str, Any]:
    """Register a challenger, or find the one that an interrupted run has registered."""
    if not (found["monitor"]["alarm"] or found["start"]["retrain"]):
        return ledger.record("train", {"challenger": None})
    made = _versions_of(night)
    if not made:
        detector = tracking.load(found["start"]["champion"]).detector
        rows, truth, held = _rows_of_the_day(night, detector)
        kept = rows[~held & ~truth]
        older = [_columns(streams.read_all(path, detector.schema).frame, detector) for path in night.history]
        frame = pd.concat([*older, kept], ignore_index=True)
        config = detector.config
        registered = tracking.train_and_register(
            frame,
            config,
            name=night.name,
            source=str(night.inbox.absolute()),
            checkpoint=tracking.checkpoint_path(night.name, frame, config),
            tags={TAG: f"{night.key}/train"},
        )
        reached("train/version")
        made = [registered.version]
    return ledger.record("train", {"challenger": f"models:/{night.name}/{made[0]}"})


def compare(night: Night, ledger: Ledger, found: dict[str, Any], reached: Moment) -> dict[str, Any]:
    """Judge champion and challenger on the held rows."""
    if found["train"]["challenger"] is None:
        return ledger.record("compare", {"promote": False, "sentences": []})
    champion, challenger = (
        tracking.load(uri).detector for uri in (found["start"]["champion"], found["train"]["challenger"])
    )
    rows, truth, held = _rows_of_the_day(night, champion)
    outcome = judged(champion, challenger, rows[held], truth[held], alpha=night.alpha)
    output = night.folder / "contest.json"
    write_json(output, outcome.to_dict())
    reached("compare/contest.json")
    return ledger.record("compare", {"promote": outcome.promote, "sentences": list(outcome.sentences)}, [output])


def promote(night: Night, ledger: Ledger, found: dict[str, Any], reached: Moment) -> dict[str, Any]:
    """Move the alias from the champion to the challenger, unless somebody has moved it meanwhile."""
    if not found["compare"]["promote"]:
        return ledger.record("promote", {"promoted": False})
    old, new = (_version(found[s][what]) for s, what in (("start", "champion"), ("train", "challenger")))
    office = _in_office(night.name)
    if office not in (old, new):
        return ledger.record("promote", {"promoted": False, "moved": f"version {office} is the champion meanwhile"})
    client = mlflow.MlflowClient()
    champions = _champions(night.name)
    if champions[-1:] != [new]:
        _write_champions(night.name, [*(champions if champions[-1:] == [old] else [old]), new])
        reached("promote/history")
    client.set_registered_model_alias(night.name, tracking.ALIAS, new)
    reached("promote/alias")
    return ledger.record("promote", {"promoted": True})


STEPS = (start, score, monitor, train, compare, promote)


def judged(
    champion: Detector, challenger: Detector, held: pd.DataFrame, truth: NDArray[np.bool_], *, alpha: float
) -> Contest:
    """Compare two detectors on rows that neither was trained on.

    Args:
        champion: The one in office.
        challenger: The other.
        held: The rows, n.
        truth: Which are known to be anomalous, (n,).
        alpha: False-alarm rate.
    """
    sides = []
    for detector in (champion, challenger):
        least = 1 / (detector.calibration.rows + 1)
        out = detector.score_frame(held, alpha=max(alpha, least))
        normal = out["p_value"].to_numpy()[~truth]
        sides.append(
            (out["anomaly_score"], alarms(normal, calibration_rows=detector.calibration.rows, alpha=max(alpha, least)))
        )
    same = champion.config.score_kind == challenger.config.score_kind
    assert isinstance(champion.schema, Schema)
    assert isinstance(challenger.schema, Schema)
    comparable = same and [(c.name, c.kind) for c in champion.schema.modelled] == [
        (c.name, c.kind) for c in challenger.schema.modelled
    ]
    return contest(sides[0], sides[1], labels=truth, comparable=comparable)


def rollback(name: str, work: Path, reached: Moment = lambda moment: None) -> str:
    """Give the alias back to the champion before this one, and return its version.

    A rollback that was killed between its two writes is finished by the next, and by it alone.

    Args:
        name: The registered model.
        work: Where its nights keep what they have done.
        reached: See `run`.

    Raises:
        ConfigError: There was no champion before.
        BusyError: A night is at work.
    """
    _check_names(name)
    tracking.connect()
    with locked(lock_of(work, name)):
        champions, office = _champions(name), _in_office(name)
        if len(champions) > 1 and office == champions[-2]:  # moved, but not yet written down
            _write_champions(name, champions[:-1])
            return str(office)
        if len(champions) < 2 or office != champions[-1]:
            raise ConfigError(
                f"a rollback must have a champion to go back to, got version {office} of {name!r} and none before it. "
                "Move the alias by hand."
            )
        mlflow.MlflowClient().set_registered_model_alias(name, tracking.ALIAS, champions[-2])
        reached("rollback/alias")
        _write_champions(name, champions[:-1])
        return champions[-2]


def _check_names(*names: str) -> None:
    tracking.check_name(names[0])
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigError(
                f"a model and its day must be named by letters, digits, _ - and ., got {name!r}. Rename it."
            )


def _changed(night: Night, facts: dict[str, Any]) -> bool:
    """Refuse a night whose files are not those it was begun with."""
    inputs = {str(night.scored(file).name): digest(file) for file in night.files}
    if inputs != facts["inputs"]:
        raise ConfigError(
            f"the files of a day must stay those it was begun with, got others for {night.day!r}. Give what came later "
            "another --day."
        )
    return False


def _rows_of_the_day(night: Night, detector: Detector) -> tuple[pd.DataFrame, NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the day's rows in the model's columns, which are known to be anomalous, and which are held out, (n,).

    All anomalous rows are held out, since none is trained on.
    """
    frames, truths = [], []
    for file in night.files:
        frame = streams.read_all(file, detector.schema).frame
        known = night.label is not None and night.label in frame.columns
        truths.append(labels(frame[night.label]) if known else np.zeros(len(frame), dtype=bool))
        frames.append(_columns(frame, detector))
    rows, truth = pd.concat(frames, ignore_index=True), np.concatenate(truths)
    if night.label is not None and not truth.any():
        click.echo(f"No row of the day is labelled anomalous in {night.label!r}.", err=True)
    held = truth.copy()
    normal = np.flatnonzero(~truth)
    held[normal[split_rows(len(normal), fractions={"held": HELD}, seed=detector.config.seed)["held"]]] = True
    return rows, truth, held


def _columns(frame: pd.DataFrame, detector: Detector) -> pd.DataFrame:
    """Return the columns that the model was trained on, those that it ignores included."""
    assert isinstance(detector.schema, Schema)
    absent = [name for name in detector.schema.names if name not in frame.columns]
    if absent:
        raise SchemaError(f"a table must have the model's columns, got none named {absent[0]!r}. Check the export.")
    return frame[[c.name for c in detector.schema.columns if c.name in frame.columns]]


def _runs(night: Night, step: str) -> list[Any]:
    experiment = mlflow.get_experiment_by_name(night.name)
    if experiment is None:
        return []
    wanted = f"tags.{TAG} = '{night.key}/{step}'"
    return list(mlflow.MlflowClient().search_runs([experiment.experiment_id], wanted, max_results=1000))


def _finished_runs(night: Night, step: str) -> list[str]:
    """Return the runs of a step that are whole; say of the others that they were killed."""
    finished = []
    for found in _runs(night, step):
        if found.info.status == "FINISHED":
            finished.append(found.info.run_id)
        elif found.info.status == "RUNNING":
            mlflow.MlflowClient().set_terminated(found.info.run_id, "KILLED")
    return finished


def _versions_of(night: Night) -> list[str]:
    """Return the versions that this night's trainings have registered, the first one first."""
    runs = {found.info.run_id for found in _runs(night, "train")}
    versions = mlflow.MlflowClient().search_model_versions(f"name = '{night.name}'", max_results=10_000)
    mine = [v.version for v in versions if v.run_id in runs and v.status == "READY"]
    _finished_runs(night, "train")
    return sorted(map(str, mine), key=int)


def _version(uri: str) -> str:
    return uri.rsplit("/", 1)[1]


def _in_office(name: str) -> str:
    return _version(tracking.resolve(f"models:/{name}@{tracking.ALIAS}"))


def _champions(name: str) -> list[str]:
    """Return the versions that were champions by these jobs, in order."""
    listed = mlflow.MlflowClient().get_registered_model(name).tags.get(HISTORY, "")
    return [version for version in listed.split(",") if version]


def _write_champions(name: str, champions: Sequence[str]) -> None:
    mlflow.MlflowClient().set_registered_model_tag(name, HISTORY, ",".join(champions))


def _said(night: Night, found: dict[str, Any]) -> str:
    lines = [] if found["new"] else [f"{night.day} was done before; nothing new."]
    lines.append(f"{found['score']['rows']:,} rows scored, {found['score']['flagged']:,} flagged.")
    lines += [*found["monitor"]["sentences"], *found["compare"]["sentences"]]
    if found["train"]["challenger"] is None:
        lines.append("No drift: the champion stays.")
    elif found["promote"]["promoted"]:
        lines.append(f"{found['train']['challenger']} is the champion, after {found['start']['champion']}.")
    else:
        lines.append(f"The champion stays{': ' + moved if (moved := found['promote'].get('moved')) else ''}.")
    return "\n".join(lines)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("name")
@click.option("--inbox", type=click.Path(path_type=Path), help="The day's files: a CSV or Parquet file or a folder.")
@click.option("--day", help="Name of the day.  [default: that of the inbox]")
@click.option("--work", type=click.Path(path_type=Path), default=Path("nightly"), show_default=True, help="Its folder.")
@click.option("--label", help="Column that is true or 1 for anomalous rows, where the files have it.")
@click.option("--history", type=click.Path(path_type=Path), multiple=True, help="Further rows to train on; repeatable.")
@click.option("--retrain", is_flag=True, help="Train a challenger even without drift.")
@click.option("--level", type=float, default=MonitorConfig.level, show_default=True, help="False-alarm rate of drift.")
@click.option("--alpha", type=float, default=ScoreConfig.alpha, show_default=True, help="False-alarm rate of flags.")
@click.option("--rollback", "back", is_flag=True, help="Give the alias back to the champion before.")
def main(name: str, inbox: Path | None, day: str | None, work: Path, back: bool, **given: Any) -> None:
    """Do what is to be done at night for the registered model NAME."""
    try:
        if back:
            click.echo(f"models:/{name}/{rollback(name, work)} is the champion again.")
            return
        if inbox is None:
            raise ConfigError("a night must have files, got none. Give --inbox, or --rollback.")
        night = Night(name=name, inbox=inbox, day=day or inbox.name.split(".")[0], work=work, **given)
        click.echo(_said(night, run(night)))
    except BusyError as error:
        click.echo(str(error), err=True)
        sys.exit(BUSY)
    except (AnomalyVaeError, MlflowException) as error:
        click.echo(redacted(f"Error: {error}"), err=True)
        sys.exit(MISTAKE)


if __name__ == "__main__":
    main()
