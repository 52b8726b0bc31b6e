"""Scored files are watched as they were scored, and what is found is recorded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from anomaly_vae import Detector, ScoreConfig
from anomaly_vae.cli import main
from anomaly_vae.cli.watch import ALARMED
from anomaly_vae.detection.calibration import Calibration
from anomaly_vae.errors import CalibrationError, SchemaError, UnreadableDataError
from anomaly_vae.evaluation.drift import NO_PROFILE, NO_ROWS
from anomaly_vae.evaluation.martingale import Martingale, ranks_of_p_values
from anomaly_vae.options import MonitorConfig
from anomaly_vae.serving import tracking
from anomaly_vae.serving.batch import score_file
from anomaly_vae.serving.monitor import log_drift, monitor_files

from .conftest import NAME, make_rows


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory, detector: Detector) -> Path:
    """Two quiet files and one of hot pumps, with their scores, the last ones as CSV."""
    folder = tmp_path_factory.mktemp("days")
    (folder / "scored").mkdir()
    rows = {"a": make_rows(300, seed=11), "b": make_rows(250, seed=12), "hot": make_rows(300, seed=13)}
    rows["hot"]["load"] += 25
    for name, frame in rows.items():
        frame.to_parquet(folder / f"{name}.parquet")
        for suffix in ("parquet", "csv"):
            output = folder / "scored" / f"{name}.{suffix}"
            score_file(detector, folder / f"{name}.parquet", output, schema=detector.schema)
        frame.assign(remark="as usual").to_parquet(folder / f"{name}.parquet")
    return folder


def test_quiet_days_are_quiet(days: Path, detector: Detector) -> None:
    drift = monitor_files(detector, [days / "scored" / "a.parquet", days / "scored" / "b.csv"], [days / "a.parquet"])
    assert not drift.alarm
    assert drift.scores.rows == 550
    assert drift.rows == 300
    assert [c.name for c in drift.columns] == list(detector.schema.names)
    assert drift.scores.level == MonitorConfig().level / 2


def test_a_change_is_found_in_scores_and_columns(days: Path, detector: Detector) -> None:
    drift = monitor_files(detector, [days / "scored" / "hot.parquet"], [days / "hot.parquet"])
    assert drift.alarm
    moved = {c.name for c in drift.columns if c.drifted}
    assert "load" in moved
    assert "stops" not in moved
    assert any("'load'" in text for text in drift.sentences)


def test_parquet_and_csv_say_the_same(days: Path, detector: Detector) -> None:
    found = [monitor_files(detector, [days / "scored" / f"hot.{suffix}"]).scores for suffix in ("parquet", "csv")]
    assert found[0] == found[1]
    assert found[0].rows == 300


def test_without_ties_the_p_values_alone_say_it(days: Path, detector: Detector) -> None:
    p = pd.read_parquet(days / "scored" / "hot.parquet")["p_value"]
    martingale = Martingale(detector.calibration.rows, level=0.01)
    martingale.update(ranks_of_p_values(p, detector.calibration.rows))
    assert martingale.evidence() == monitor_files(detector, [days / "scored" / "hot.parquet"]).scores


def test_what_could_not_be_judged_is_said(days: Path, detector: Detector) -> None:
    scored = [days / "scored" / "a.parquet"]
    assert monitor_files(detector, scored).notes == (NO_ROWS,)
    old = dataclasses.replace(detector, profile=None)
    drift = monitor_files(old, scored, [days / "a.parquet"])
    assert drift.notes == (NO_PROFILE,)
    assert drift.columns == ()
    assert drift.scores.level == MonitorConfig().level


def test_scores_of_another_model_are_refused(days: Path, detector: Detector, tmp_path: Path) -> None:
    other = detector.calibrate(make_rows(200, seed=5))
    with pytest.raises(SchemaError, match="must have the p-values that this model gives"):
        monitor_files(other, [days / "scored" / "a.parquet"])
    with pytest.raises(SchemaError, match="without the column 'anomaly_score'"):
        monitor_files(detector, [days / "a.parquet"])
    with pytest.raises(UnreadableDataError):
        monitor_files(detector, [tmp_path / "none.parquet"])
    with pytest.raises(CalibrationError, match="must have calibration rows"):
        monitor_files(dataclasses.replace(detector, calibration=Calibration({})), [days / "scored" / "a.parquet"])


def test_any_calibrated_k_is_recognised(days: Path, detector: Detector, tmp_path: Path) -> None:
    make_rows(300, seed=11).to_parquet(tmp_path / "a.parquet")
    score_file(detector, tmp_path / "a.parquet", tmp_path / "k1.parquet", ScoreConfig(k=1), schema=detector.schema)
    assert monitor_files(detector, [tmp_path / "k1.parquet"]).scores.rows == 300


def test_the_run_records_what_was_found(days: Path, registered: tracking.Registered) -> None:
    drift = monitor_files(registered.detector, [days / "scored" / "hot.parquet"], [days / "hot.parquet"])
    run_id = log_drift(drift, registered.uri)
    assert run_id is not None
    run = mlflow.MlflowClient().get_run(run_id)
    assert run.data.metrics["drift_alarm"] == 1.0
    load = next(c for c in drift.columns if c.name == "load")
    assert run.data.metrics["psi/load"] == pytest.approx(load.psi)
    assert run.data.tags["monitored"] == registered.uri
    files = {f.path for f in mlflow.MlflowClient().list_artifacts(run_id)}
    assert {"drift.json", "figures"} <= files
    assert log_drift(drift, "folder") is None


def test_the_verb_ends_with_four_on_an_alarm(days: Path, registered: tracking.Registered, tmp_path: Path) -> None:
    def typed(*words: object) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["monitor", f"models:/{NAME}@champion", *map(str, words)])
        return done.exit_code, done.output

    code, text = typed(days / "scored" / "a.parquet", days / "scored" / "b.parquet", "--data", days / "b.parquet")
    assert code == 0, text
    assert "agree with" in text
    assert text.splitlines()[-1] == f"Drift: no, by {registered.uri}."
    out = tmp_path / "drift.json"
    code, text = typed(days / "scored" / "hot.parquet", "--data", days / "hot.parquet", "--json", "--out", out)
    assert code == ALARMED == 4
    assert json.loads(text) == json.loads(out.read_text())
    assert json.loads(text)["alarm"] is True
    assert [p.name for p in tmp_path.iterdir()] == ["drift.json"]
    code, text = typed(days / "scored" / "hot.parquet", "--out", out)
    assert code == 2
    assert "--overwrite" in text
    assert typed(days / "scored" / "hot.parquet", "--level", "2")[0] == 2


def test_images_have_no_profile(image_detector: Detector) -> None:
    assert image_detector.profile is None
    assert np.isfinite(image_detector.calibration.scores[4]).all()
