"""A night done in one go, in pieces, twice, or twice at once ends in one and the same state."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from anomaly_vae import TrainConfig
from anomaly_vae.serving import tracking

ROOT = Path(__file__).resolve().parents[2]
PIPELINES = ROOT / "pipelines"
NAME, DAY = "pumps", "2026-11-25"
QUICK = TrainConfig(steps=30, hidden=(8,), latent=2, companions=(2,), calibration_k=(1,), k=1)
MOMENTS = [
    *("start", "score/a.csv.parquet", "score/b.csv.parquet", "score", "monitor/drift.json", "monitor/run", "monitor"),
    *("train/version", "train", "compare/contest.json", "compare", "promote/history", "promote/alias", "promote"),
]


def rows(n: int, *, seed: int, shift: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    load = rng.normal(100 + shift, 20, n)
    return pd.DataFrame({"load": load, "heat": 0.3 * load + rng.normal(0, 1, n), "site": rng.choice(["N", "S"], n)})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with one champion, to be copied, and two days' files."""
    folder = tmp_path_factory.mktemp("nightly")
    for day, shift in ((DAY, 60.0), ("quiet", 0.0)):
        (folder / day).mkdir()
        for seed, name in enumerate(("a", "b")):
            rows(300, seed=10 + seed, shift=shift).to_csv(folder / day / f"{name}.csv", index=False)
    with at(folder / "mlflow.db"):
        mlflow.create_experiment(NAME, artifact_location=(folder / "artifacts").as_uri())
        tracking.train_and_register(rows(600, seed=0), QUICK, name=NAME)
    return folder


class at:  # noqa: N801 - reads as a place
    """MLflow at a database for a while."""

    def __init__(self, database: Path) -> None:
        self.uri = f"sqlite:///{database}"

    def __enter__(self) -> None:
        self.before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
        mlflow.set_tracking_uri(self.uri)

    def __exit__(self, *_: object) -> None:
        mlflow.set_tracking_uri(self.before)


@pytest.fixture
def nightly(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(PIPELINES)
    return importlib.import_module("nightly")


@pytest.fixture
def place(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An own copy of the database, in the current folder."""
    shutil.copy(base / "mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    with at(tmp_path / "mlflow.db"):
        yield tmp_path


def night_of(nightly: ModuleType, base: Path, work: Path, **given: Any) -> Any:
    day = given.pop("day", DAY)
    return nightly.Night(**({"name": NAME, "inbox": base / day, "day": day, "work": work / "work"} | given))


def state(work: Path) -> dict[str, Any]:
    """All that a night leaves behind, but for ids and times."""
    client = mlflow.MlflowClient()
    versions = sorted(client.search_model_versions(f"name = '{NAME}'"), key=lambda v: int(v.version))
    model = client.get_registered_model(NAME)
    experiment = client.get_experiment_by_name(NAME)
    runs = client.search_runs([experiment.experiment_id], "tags.nightly LIKE '%'")
    ledger = json.loads((work / "work" / NAME / DAY / "ledger.json").read_text())
    return {
        "digests": [tracking.load(f"models:/{NAME}/{v.version}").detector.digest for v in versions],
        "aliases": {alias: str(version) for alias, version in model.aliases.items()},
        "tags": dict(model.tags),
        "runs": sorted(r.data.tags["nightly"] for r in runs if r.info.status == "FINISHED"),
        "at work": [r.info.run_id for r in runs if r.info.status == "RUNNING"],
        "ledger": ledger,
        "files": sorted(p.relative_to(work / "work").as_posix() for p in (work / "work").rglob("*") if p.is_file()),
    }


def in_office() -> str:
    return str(mlflow.MlflowClient().get_model_version_by_alias(NAME, "champion").version)


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an undisturbed night ends in."""
    sys.path.insert(0, str(PIPELINES))
    nightly = importlib.import_module("nightly")
    sys.path.remove(str(PIPELINES))
    folder = tmp_path_factory.mktemp("whole")
    shutil.copy(base / "mlflow.db", folder / "mlflow.db")
    moments: list[str] = []
    with at(folder / "mlflow.db"):
        found = nightly.run(night_of(nightly, base, folder), moments.append)
        assert found["monitor"]["alarm"]
        assert found["promote"] == {"promoted": True}
        assert moments == MOMENTS
        return state(folder)


@pytest.mark.whole
def test_a_drifted_day_brings_a_new_champion(whole: dict[str, Any]) -> None:
    assert whole["aliases"] == {"champion": "2"}
    assert whole["tags"] == {"champions": "1,2"}
    assert whole["runs"] == [f"{NAME}/{DAY}/monitor", f"{NAME}/{DAY}/train"]
    assert len(set(whole["digests"])) == 2
    assert f"{NAME}/{DAY}/scored/a.csv.parquet" in whole["files"]


class KilledError(BaseException):
    pass


@pytest.mark.whole
def test_stopped_at_every_moment_in_turn_it_ends_the_same(
    nightly: ModuleType, base: Path, place: Path, whole: dict[str, Any]
) -> None:
    """Each run gets one moment further than the one before; none of what is done is done again."""
    seen: list[str] = []

    def stop(moment: str) -> None:
        if moment not in seen:
            seen.append(moment)
            raise KilledError

    for _ in range(3 * len(MOMENTS)):
        try:
            nightly.run(night_of(nightly, base, place), stop)
            break
        except KilledError:
            continue
    assert set(seen) == set(MOMENTS)
    assert state(place) == whole


@pytest.mark.whole
def test_a_day_done_twice_does_nothing_new(nightly: ModuleType, base: Path, place: Path, whole: dict[str, Any]) -> None:
    words = [NAME, "--inbox", str(base / DAY), "--work", str(place / "work")]
    first = CliRunner().invoke(nightly.main, words)
    assert first.exit_code == 0, first.output
    assert f"models:/{NAME}/2 is the champion, after models:/{NAME}/1." in first.output
    assert state(place) == whole
    again = CliRunner().invoke(nightly.main, [*words, "--retrain"])
    assert again.exit_code == 0
    assert again.output.startswith(f"{DAY} was done before; nothing new.")
    assert state(place) == whole
    (place / "work" / NAME / DAY / "scored" / "a.csv.parquet").write_bytes(b"damaged")
    nightly.run(night_of(nightly, base, place))
    assert state(place) == whole, "a damaged output is made again"


@pytest.mark.whole
def test_one_command_rolls_back(nightly: ModuleType, base: Path, place: Path) -> None:
    def back() -> Any:
        return CliRunner().invoke(nightly.main, [NAME, "--rollback", "--work", str(place / "work")])

    assert back().exit_code == 2, "there is no champion before the first"
    nightly.run(night_of(nightly, base, place))
    with pytest.raises(KilledError):
        nightly.rollback(NAME, place / "work", _killing("rollback/alias"))
    done = back()
    assert done.exit_code == 0, done.output
    assert done.output == f"models:/{NAME}/1 is the champion again.\n", "the killed rollback is finished, not repeated"
    client = mlflow.MlflowClient()
    assert in_office() == "1"
    assert client.get_registered_model(NAME).tags["champions"] == "1"
    assert back().exit_code == 2
    found = nightly.run(night_of(nightly, base, place))
    assert not found["new"], "a day that is done does not undo a rollback"
    assert in_office() == "1"


@pytest.mark.whole
def test_a_champion_moved_by_hand_is_left_alone(nightly: ModuleType, base: Path, place: Path) -> None:
    def meddle(moment: str) -> None:
        if moment == "compare":
            made = tracking.recalibrate_and_register(f"models:/{NAME}/1", rows(200, seed=50))
            mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", made.version)

    found = nightly.run(night_of(nightly, base, place), meddle)
    assert found["promote"] == {"promoted": False, "moved": "version 3 is the champion meanwhile"}
    assert in_office() == "3"


@pytest.mark.whole
def test_a_quiet_day_changes_nothing(nightly: ModuleType, base: Path, place: Path) -> None:
    found = nightly.run(night_of(nightly, base, place, day="quiet"))
    assert not found["monitor"]["alarm"]
    assert found["train"] == {"challenger": None}
    assert len(mlflow.MlflowClient().search_model_versions(f"name = '{NAME}'")) == 1


@pytest.mark.whole
def test_a_worse_challenger_is_not_promoted(nightly: ModuleType, base: Path, place: Path) -> None:
    """Labels that arrive turn out: what the challenger has learnt as normal on this day is not."""
    (place / "odd").mkdir()
    frame = rows(400, seed=30).assign(failed=0)
    frame.loc[300:, "heat"] += 8.0
    frame.loc[360:, "failed"] = 1  # a part of the failures is labelled, the others train the challenger
    frame.to_csv(place / "odd" / "a.csv", index=False)
    night = night_of(nightly, base, place, inbox=place / "odd", day="odd", label="failed", retrain=True)
    found = nightly.run(night)
    assert found["train"]["challenger"] == f"models:/{NAME}/2"
    assert not found["compare"]["promote"], found["compare"]["sentences"]
    assert any("AUROC" in text for text in found["compare"]["sentences"])
    assert found["promote"] == {"promoted": False}
    assert in_office() == "1"


@pytest.mark.whole
def test_files_that_change_are_refused(nightly: ModuleType, base: Path, place: Path) -> None:
    shutil.copytree(base / "quiet", place / "inbox")
    words = [NAME, "--inbox", "inbox", "--day", "d", "--work", "work"]
    assert CliRunner().invoke(nightly.main, words).exit_code == 0
    rows(300, seed=99).to_csv(place / "inbox" / "late.csv", index=False)
    refused = CliRunner().invoke(nightly.main, words)
    assert refused.exit_code == 2
    assert "must stay those it was begun with" in refused.output
    for bad in (["--inbox", "nowhere"], ["--inbox", "inbox", "--day", "../x"], []):
        assert CliRunner().invoke(nightly.main, [NAME, *bad]).exit_code == 2
    assert CliRunner().invoke(nightly.main, ["nobody", "--inbox", "inbox"]).exit_code == 2


def test_a_dead_process_keeps_no_lock(nightly: ModuleType, tmp_path: Path) -> None:
    ledger = importlib.import_module("ledger")
    path = tmp_path / "work" / "pumps.lock"
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from ledger import locked; from pathlib import Path\n"
        "with locked(Path(sys.argv[2])):\n print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(PIPELINES), str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ledger.BusyError, match=f"process {holder.pid}"), ledger.locked(path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with ledger.locked(path):
        pass


# -- processes ------------------------------------------------------------------------------------------------------

CHILD = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import mlflow, nightly
from ledger import BusyError
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    mlflow.set_tracking_uri(job["uri"])
    night = nightly.Night(
        name=job["name"], inbox=Path(job["inbox"]), day=job["day"], work=Path(job["work"]), retrain=False
    )
    def reached(moment):
        if moment == job["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)
    try:
        outcome = "new" if nightly.run(night, reached)["new"] else "nothing new"
    except BusyError:
        outcome = "busy"
    print(outcome, flush=True)
"""


class Child:
    """A process that does nights when told to."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", CHILD, str(PIPELINES)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=folder,
            env=environment,
        )  # fmt: skip

    def ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def tell(self, base: Path, folder: Path, kill: str = "") -> None:
        job = {
            "uri": f"sqlite:///{folder / 'mlflow.db'}", "name": NAME, "inbox": str(base / DAY), "day": DAY,
            "work": str(folder / "work"), "kill": kill,
        }  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Callable[[], Child]]:
    made: list[Child] = []

    def new() -> Child:
        made.append(Child(tmp_path))
        return made[-1]

    yield new
    for child in made:
        child.end()


def two_at_once(times: int, base: Path, folder: Path, whole: dict[str, Any], children: Callable[[], Child]) -> None:
    both = [children(), children()]
    for child in both:
        child.ready()
    for time in range(times):
        here = folder / str(time)
        here.mkdir()
        shutil.copy(base / "mlflow.db", here / "mlflow.db")
        for child in both[:: 1 if time % 2 else -1]:
            child.tell(base, here)
        outcomes = sorted(child.answer() for child in both)
        assert outcomes in (["busy", "new"], ["new", "nothing new"]), "one wins, the other is turned away or late"
        with at(here / "mlflow.db"):
            assert state(here) == whole


@pytest.mark.whole
def test_two_at_once(base: Path, tmp_path: Path, whole: dict[str, Any], children: Callable[[], Child]) -> None:
    two_at_once(2, base, tmp_path, whole, children)


@pytest.mark.slow
def test_two_at_once_twenty_times(
    base: Path, tmp_path: Path, whole: dict[str, Any], children: Callable[[], Child]
) -> None:
    two_at_once(20, base, tmp_path, whole, children)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_a_moment_it_ends_the_same(
    moment: str, base: Path, place: Path, whole: dict[str, Any], children: Callable[[], Child]
) -> None:
    """A process killed by SIGKILL, and another that goes on."""
    child, other = children(), children()
    child.ready()
    child.tell(base, place, kill=moment)
    assert child.process.wait() == -signal.SIGKILL
    other.ready()
    other.tell(base, place)
    assert other.answer() == ("nothing new" if moment == MOMENTS[-1] else "new")
    assert state(place) == whole


def _killing(at: str) -> Callable[[str], None]:
    def reached(moment: str) -> None:
        if moment == at:
            raise KilledError

    return reached
