"""The comparison of detectors: exact protocols, results that are kept, failures that are said, sums that are right."""

from __future__ import annotations

import importlib
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from anomaly_vae import AnomalyDetector, TrainConfig
from anomaly_vae.errors import ConfigError, SchemaError, UnreadableDataError

pytestmark = pytest.mark.whole
PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"
MODULES = ("benchmark", "contenders", "labelled", "runs", "sheet", "summary", "workers")
OURS = "anomaly_vae:steps=20,hidden=[8],calibration_k=[1],k=1"


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules of the comparison, as a scheduler runs them: from their own folder."""
    monkeypatch.syspath_prepend(PIPELINES)
    return SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two small tables whose anomalies are far away; in the second one cell is missing, which peers cannot take."""
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    (tmp_path / "mlruns").mkdir()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    folder = tmp_path / "tables"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("7_near", "12_gaps"):
        y = np.arange(90) >= 75
        x = rng.normal(size=(90, 3)) + 2 * y[:, None]
        if name == "12_gaps":
            x[0, 0] = np.nan
        np.savez(folder / f"{name}.npz", X=x, y=y.astype(int))
    yield folder
    mlflow.set_tracking_uri(before)


def call(jobs: SimpleNamespace, *words: str) -> Result:
    return CliRunner().invoke(jobs.benchmark.main, [*words, "--jobs", "1"], env={"COLUMNS": "200"})


def labelled(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as arrays:
        return arrays["X"], arrays["y"]


# protocols and tables


def test_one_class_trains_on_half_of_the_normal_rows_and_tests_on_the_rest(jobs: SimpleNamespace) -> None:
    x, y = np.arange(100.0)[:, None], np.arange(100) >= 80
    train, (test, truth) = jobs.labelled.one_class(x, y, 3)
    normal = np.random.default_rng(3).permutation(np.flatnonzero(y == 0))
    assert train[:, 0].tolist() == normal[:40].tolist()
    assert test[:, 0].tolist() == np.setdiff1d(np.arange(100), normal[:40]).tolist()
    assert truth.tolist() == y[test[:, 0].astype(int)].tolist()
    assert truth.sum() == 20


def test_contaminated_learns_and_scores_the_same_rows(jobs: SimpleNamespace) -> None:
    x, y = np.arange(100.0)[:, None], np.arange(100) >= 80
    train, (test, truth) = jobs.labelled.contaminated(x, y, 3)
    np.testing.assert_array_equal(train, x)
    np.testing.assert_array_equal(test, x)
    np.testing.assert_array_equal(truth, y)


def test_large_tables_are_drawn_down_without_repetition(jobs: SimpleNamespace) -> None:
    x, y = np.arange(25_000.0)[:, None], np.arange(25_000) % 10 == 0
    rng = np.random.default_rng(1)
    rows = rng.choice(25_000, 10_000, replace=False)
    normal = rng.permutation(np.flatnonzero(y[rows] == 0))
    train, (test, _) = jobs.labelled.one_class(x, y, 1)
    assert train[:, 0].tolist() == x[rows][normal[: len(normal) // 2], 0].tolist()
    assert sorted([*train[:, 0], *test[:, 0]]) == sorted(rows)
    whole, _ = jobs.labelled.contaminated(x, y, 1)
    assert whole[:, 0].tolist() == rows.tolist()


def test_tables_are_found_by_name(jobs: SimpleNamespace, tables: Path) -> None:
    find = jobs.labelled.find_tables
    assert [t.name for t in find(tables)] == ["gaps", "near"]
    assert [t.name for t in find(tables, ["NEAR", "7_near"])] == ["near"]
    np.savez(tables / "8_near.npz", X=np.zeros((2, 1)), y=[0, 1])
    assert [t.name for t in find(tables)] == ["7_near", "8_near", "gaps"]
    (cancer,) = find(None)
    x, malignant = cancer.load()
    assert (cancer.name, x.shape, malignant.sum()) == ("breast_cancer", (569, 30), 212)
    with pytest.raises(ConfigError, match="--table must be one of 7_near, 8_near, gaps, got 'far'"):
        find(tables, ["far"])
    with pytest.raises(UnreadableDataError, match=r"must hold tables NAME\.npz, got none"):
        find(PIPELINES)


def test_what_is_not_a_labelled_table_is_refused(jobs: SimpleNamespace, tables: Path) -> None:
    np.savez(tables / "one.npz", X=np.zeros((3, 1)), y=[0, 0, 0])
    np.savez(tables / "two.npz", X=np.zeros((3, 1)))
    (tables / "three.npz").write_text("no archive")
    with pytest.raises(SchemaError, match="zeros and ones, both present"):
        jobs.labelled.find_tables(tables, ["one"])[0].load()
    for name in ("two", "three"):
        with pytest.raises(UnreadableDataError, match=f"got {name}.npz"):
            jobs.labelled.find_tables(tables, [name])[0].load()


# detectors


@pytest.mark.filterwarnings("ignore::anomaly_vae.errors.TrainingWarning")
@pytest.mark.parametrize(
    "label", [OURS, "knn", "lof", "cblof", "iforest", "ocsvm", "hbos", "pca", "ecod", "ppca", "mcd"]
)
def test_every_detector_finds_what_cannot_be_missed(jobs: SimpleNamespace, label: str) -> None:
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(200, 4)), rng.normal(size=(60, 4)) + np.repeat([[0.0], [12.0]], [50, 10], axis=0)
    one = jobs.contenders.contender(label)
    new, of_training = jobs.contenders.timed(one, train, test, 0), jobs.contenders.timed(one, test, None, 0)
    assert new.scores[50:].min() > new.scores[:50].max()
    assert of_training.scores.shape == (60,)
    assert min(new.fit_seconds, new.score_seconds, of_training.fit_seconds) > 0


def test_ours_is_the_estimator_with_its_sign_turned(jobs: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)
    train, test = rng.normal(5, 3, size=(100, 2)), rng.normal(5, 3, size=(20, 2))
    one = jobs.contenders.contender(OURS)
    config = TrainConfig(steps=20, hidden=(8,), calibration_k=(1,), k=1)
    clf = AnomalyDetector(config, random_state=4).fit(train)
    np.testing.assert_array_equal(jobs.contenders.timed(one, train, test, 4).scores, -clf.score_samples(test))
    of_training = jobs.contenders.timed(one, train, None, 4).scores
    np.testing.assert_array_equal(of_training, clf.as_pyod(train).decision_scores_)


def test_peers_are_pyod_at_its_defaults_on_standardised_columns(jobs: SimpleNamespace) -> None:
    from pyod.models.iforest import IForest

    rng = np.random.default_rng(0)
    train, test = rng.normal(5, 3, size=(100, 2)), rng.normal(5, 3, size=(20, 2))
    scaler = StandardScaler().fit(train)
    peer = IForest(random_state=7).fit(scaler.transform(train))
    one = jobs.contenders.contender("iforest")
    np.testing.assert_array_equal(
        jobs.contenders.timed(one, train, test, 7).scores, peer.decision_function(scaler.transform(test))
    )
    np.testing.assert_array_equal(jobs.contenders.timed(one, train, None, 7).scores, peer.decision_scores_)


def test_settings_are_read_and_wrong_ones_refused(jobs: SimpleNamespace) -> None:
    read = jobs.contenders.contender
    changed = read("anomaly_vae:prior=aggregated_posterior, hidden=[8,16],k=1").settings
    assert (changed["prior"], changed["hidden"], changed["k"]) == ("aggregated_posterior", [8, 16], 1)
    assert read("anomaly_vae:k=16").settings == read("anomaly_vae").settings
    assert "source" in read("anomaly_vae").versions
    assert set(read("knn").versions) == {"pyod", "scikit-learn", "numpy", "scipy"}
    for label, words in {
        "knnn": "--detector must be one of anomaly_vae, knn, .*got 'knnn'",
        "knn:n_neighbors=3": "Peers run at their defaults",
        "anomaly_vae:latnt=3": "Did you mean 'latent'",
        "anomaly_vae:latent": "must look like key=value",
        "anomaly_vae:seed=3": "left to --seeds",
    }.items():
        with pytest.raises(ConfigError, match=words):
            read(label)


# results


def test_a_result_is_known_by_all_that_it_depends_on(jobs: SimpleNamespace, tables: Path) -> None:
    table, other = jobs.labelled.find_tables(tables)
    one, deeper = jobs.contenders.contender("anomaly_vae"), jobs.contenders.contender("anomaly_vae:latent=3")
    changed = jobs.contenders.Contender(one.label, one.name, one.settings, {**one.versions, "source": "edited"})
    make = jobs.runs.Run
    runs = [make(t, p, s, c) for t in (table, other) for p in ("one-class", "contaminated") for s in (0, 1)
            for c in (one, deeper, changed)]  # fmt: skip
    assert len({run.key for run in runs}) == len(runs)
    relabelled = jobs.contenders.Contender("another name", one.name, one.settings, one.versions)
    assert make(table, "one-class", 0, relabelled).key == make(table, "one-class", 0, one).key


def test_what_may_succeed_another_time_is_tried_again(jobs: SimpleNamespace, tables: Path) -> None:
    store, outcome = jobs.runs.Store(tables / "runs"), jobs.workers.Outcome
    run = jobs.runs.Run(jobs.labelled.find_tables(tables)[0], "one-class", 0, jobs.contenders.contender("knn"))
    assert not store.is_done(run, limit=1)
    for status, done in {"ok": True, "failed": True, "died": False, "timeout": True}.items():
        store.add(run, outcome(status), limit=5)
        assert store.is_done(run, limit=5) == done
        assert store.is_done(run, limit=5, retry=True) == (status == "ok")
    assert not store.is_done(run, limit=6), "more time may help"
    assert [path.suffix for path in store.folder.iterdir()] == [".json"]
    store.forget()
    assert store.get(run) is None


@pytest.mark.slow
def test_the_command_compares_keeps_and_goes_on(jobs: SimpleNamespace, tables: Path) -> None:
    words = ["--data", str(tables), "--detector", OURS, "--detector", "knn", "--seeds", "2", "--out", "out"]
    first = call(jobs, *words)
    assert first.exit_code == 0, first.output
    assert "gaps, one-class, seed 0, knn: ValueError: Input" in " ".join(first.output.split())
    results = pd.read_parquet("out/results.parquet")
    assert len(results) == 2 * 2 * 2 * 2
    failed = results[results.status != "ok"]
    assert set(zip(failed.label, failed.table, strict=True)) == {("knn", "gaps")}
    assert failed.reason.str.contains("NaN").all()

    # one figure, from the table by hand
    x, y = labelled(tables / "7_near.npz")
    normal = np.random.default_rng(1).permutation(np.flatnonzero(y == 0))
    train, test = normal[: len(normal) // 2], np.setdiff1d(np.arange(len(x)), normal[: len(normal) // 2])
    from pyod.models.knn import KNN

    scaler = StandardScaler().fit(x[train])
    scores = KNN().fit(scaler.transform(x[train])).decision_function(scaler.transform(x[test]))
    (row,) = results.query("label == 'knn' and table == 'near' and protocol == 'one-class' and seed == 1").to_dict(
        "records"
    )
    assert row["auroc"] == roc_auc_score(y[test], scores)
    assert row["average_precision"] == average_precision_score(y[test], scores)
    assert (row["train_rows"], row["test_rows"], row["anomalies"], row["columns"]) == (37, 53, 15, 3)

    kept = {path.name: path.stat().st_mtime_ns for path in Path("out/runs").iterdir()}
    second = call(jobs, *words)
    assert second.exit_code == 0, second.output
    assert "16 of 16 runs are there already" in second.output
    assert {path.name: path.stat().st_mtime_ns for path in Path("out/runs").iterdir()} == kept
    pd.testing.assert_frame_equal(pd.read_parquet("out/results.parquet"), results)
    text = Path("out/report.md").read_text()
    assert "## One-class: 2 tables, 2 seeds" in text
    assert "knn †" in text
    assert "knn, 2 runs failed (gaps): ValueError" in text

    client = mlflow.MlflowClient(f"sqlite:///{Path.cwd()}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("benchmark")
    logged = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert len(logged) == 3, "the comparison and its two detectors, and nothing for the second call"
    ours = logged[OURS]
    assert json.loads(ours.data.params["config.hidden"]) == [8]
    mean = results.query("label == @OURS and protocol == 'contaminated'").auroc.mean()
    assert ours.data.metrics["contaminated/auroc"] == pytest.approx(mean)
    assert "contaminated/auroc_rank" not in logged["knn"].data.metrics
    assert [f.path for f in client.list_artifacts(ours.info.run_id)] == ["results.parquet"]

    third = call(jobs, *words, "--table", "near", "--protocol", "one-class", "--fresh")
    assert third.exit_code == 0, third.output
    assert len(list(Path("out/runs").iterdir())) == 4
    assert Path("out/one-class.png").exists()
    assert not Path("out/contaminated.png").exists()


def test_mistakes_in_the_call_are_one_line(jobs: SimpleNamespace, tables: Path) -> None:
    for words in (["--detector", "knnn"], ["--data", str(tables), "--table", "far"], ["--data", str(PIPELINES)]):
        done = call(jobs, *words)
        assert done.exit_code == 2
        assert len(done.output.split("Error: ")[1].strip().splitlines()) == 1
    nothing = call(jobs, "--data", str(tables), "--table", "gaps", "--detector", "knn", "--out", "out")
    assert nothing.exit_code == 1
    assert "at least one run must succeed, got 3 failures; the first: ValueError" in nothing.output


# summary


def test_the_summary_by_hand(jobs: SimpleNamespace) -> None:
    auroc = {
        "ours": [[0.9, 0.7], [0.6, 0.8]],
        "pyod_vae": [[0.8, 0.8], [0.7, math.nan]],
        "knn": [[0.5, 0.9], [0.5, 0.5]],
    }
    rows = [
        {
            "label": label, "protocol": "one-class", "table": table, "seed": seed, "auroc": value,
            "average_precision": value / 2, "fit_seconds": 2.0 if label == "pyod_vae" else 0.5, "score_seconds": 1.0,
            "status": "failed" if math.isnan(value) else "ok", "reason": "boom" if math.isnan(value) else "",
        }
        for label, by_table in auroc.items()
        for table, values in zip(("a", "b"), by_table, strict=True)
        for seed, value in enumerate(values)
    ]  # fmt: skip
    found = jobs.summary.summarise(pd.DataFrame(rows), "one-class", list(auroc))
    of = found.comparisons["auroc"]
    np.testing.assert_allclose(of.mean, [0.75, 0.75, 0.6])
    # among ours and knn: 1 2, 2 1, 1 2, 1 2
    np.testing.assert_allclose(of.rank, [1.25, math.nan, 1.75])
    np.testing.assert_allclose(found.comparisons["average_precision"].mean, [0.375, 0.375, 0.3])
    np.testing.assert_allclose(found.by_table["auroc"], [[0.8, 0.7], [0.8, 0.7], [0.7, 0.5]])
    np.testing.assert_allclose(found.seconds, [6.0, 9.0, 6.0])
    np.testing.assert_allclose(found.times_yardstick, [0.5, 1.0, 0.5])
    assert found.failures.tolist() == [0, 1, 0]
    assert found.reasons == ("pyod_vae, 1 run failed (b): boom",)
    sheet = jobs.summary.standings(found)
    assert [row[0] for row in sheet.rows] == ["ours", "pyod_vae †", "knn"]
    assert sheet.rows[0][1] == "75.00 [70.00, 80.00]"
    assert sheet.rows[1][3:5] == ("", "")
    assert sheet.rows[2][3] == "1.75 [1.50, 2.00]"
    assert jobs.summary.by_table(found).rows[1] == ("b", "70.0 / 35.0", "70.0 / 35.0", "50.0 / 25.0")


# workers


def test_tasks_that_fail_die_or_dawdle_are_outcomes(jobs: SimpleNamespace) -> None:
    carry_out = jobs.workers.carry_out
    done = dict(carry_out([4, -1, 9], math.sqrt, jobs=2, limit=60))
    assert (done[4].value, done[9].value) == (2.0, 3.0)
    assert (done[-1].status, done[-1].reason[:10]) == ("failed", "ValueError")
    assert [(t, o.status, o.reason) for t, o in carry_out([7], os._exit, jobs=1, limit=60)] == [
        (7, "died", "its process ended with exit code 7")
    ]
    start = time.monotonic()
    slow = dict(carry_out([600, 0], time.sleep, jobs=1, limit=0.5))
    assert (slow[600].status, slow[600].reason, slow[0].status) == ("timeout", "not done within 0.5 s", "ok")
    assert time.monotonic() - start < 60
