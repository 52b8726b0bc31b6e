"""What a training leaves in MLflow, and how a model is found again."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from anomaly_vae import Detector, TrainConfig
from anomaly_vae.errors import ArtifactError, ConfigError, ShapeError
from anomaly_vae.evaluation.metrics import flag_rate
from anomaly_vae.reporting.terminal import promise_line
from anomaly_vae.serving import flavor, tracking

from .conftest import NAME, make_rows

SMALL = TrainConfig(steps=50, hidden=(16,), latent=2, calibration_k=(1, 16))


def test_first_version_is_the_champion(registered: tracking.Registered) -> None:
    assert registered.uri == f"models:/{NAME}/1"
    assert registered.champion
    loaded = tracking.load(f"models:/{NAME}@champion")
    assert loaded.uri == registered.uri
    assert loaded.detector.digest == registered.detector.digest


def test_the_run_records_settings_data_metrics_and_figures(registered: tracking.Registered) -> None:
    client = mlflow.MlflowClient()
    run = client.get_run(registered.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["config.steps"] == "200"
    assert run.data.params["config.hidden"] == "[32]"
    assert registered.ranking is not None
    assert run.data.metrics["auroc"] == pytest.approx(registered.ranking.auroc)
    assert registered.fit is not None
    for field in ("elbo", "kl", "reconstruction", "validation_elbo", "active_units"):
        points = client.get_metric_history(registered.run_id, f"train/{field}")
        assert [p.step for p in sorted(points, key=lambda p: p.step)] == [e.step for e in registered.fit.history]
        assert [p.value for p in sorted(points, key=lambda p: p.step)] == [
            getattr(e, field) for e in registered.fit.history
        ]
    assert [d.dataset.name for d in run.inputs.dataset_inputs] == [NAME]
    files = {f.path for f in client.list_artifacts(registered.run_id, "figures")}
    assert files == {"figures/training.png", "figures/scores.png", "figures/calibration.png"}


def test_labelled_rows_are_left_out_and_ranked(registered: tracking.Registered) -> None:
    assert registered.fit is not None
    assert sum(map(len, registered.fit.split.values())) == 780
    assert registered.ranking is not None
    assert registered.ranking.n_anomalous == 20
    assert registered.ranking.n_normal == len(registered.fit.split["calibration"])
    assert registered.ranking.auroc > 0.9  # twenty rows with the wrong heat for their load


def test_thresholds_of_whole_groups_say_how_far_they_hold_for_others(store: Path) -> None:
    frame = make_rows(300, seed=0, strange=20).assign(pump=[f"p{i // 10}" for i in range(300)])
    labels = np.arange(300) >= 280
    made = tracking.train_and_register(frame, replace(SMALL, group_by="pump"), name="grouped", labels=labels)
    assert made.fit is not None
    groups = frame["pump"].iloc[made.fit.split["calibration"]]
    scores = made.detector.score_frame(frame.iloc[made.fit.split["calibration"]])
    assert made.promise == flag_rate(scores["is_anomaly"], groups=groups)
    metrics = mlflow.MlflowClient().get_run(made.run_id).data.metrics
    assert metrics["calibration_groups"] == made.promise.n_groups == groups.nunique() > 1
    assert (metrics["flagged_low"], metrics["flagged_high"]) == (made.promise.low, made.promise.high)
    assert made.ranking is not None
    assert made.ranking.n_groups == groups.nunique() + 2, "those of the anomalous rows are others"
    assert f"{made.promise.n_groups} groups of 'pump'" in promise_line(made.promise, "pump")
    assert "one 'pump' alone" in promise_line(None, "pump")


def test_recalibration_is_a_new_version_of_the_same_model(registered: tracking.Registered) -> None:
    made = tracking.recalibrate_and_register(f"models:/{NAME}@champion", make_rows(250, seed=5))
    assert int(made.version) > 1
    assert not made.champion
    assert tracking.load(f"models:/{NAME}@champion").uri == registered.uri
    again = tracking.load(made.uri).detector
    probe = make_rows(40, seed=6)
    old, new = registered.detector.score_frame(probe), again.score_frame(probe)
    assert old["anomaly_score"].tolist() == new["anomaly_score"].tolist()
    assert again.calibration.rows == 250
    assert old["p_value"].tolist() != new["p_value"].tolist()


@pytest.mark.whole
def test_default_store_lies_in_the_current_folder(away: Path) -> None:
    """In a fresh process, for the tracking URI is MLflow's global state."""
    code = f"""
import pandas as pd, sys
from anomaly_vae import TrainConfig
from anomaly_vae.serving import tracking
frame = pd.read_parquet({str(away / "rows.parquet")!r})
config = TrainConfig(steps=50, hidden=(16,), latent=2, calibration_k=(1, 16))
print(tracking.train_and_register(frame, config, name="here").uri)
"""
    make_rows(120, seed=2).to_parquet(away / "rows.parquet")
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == "models:/here/1\n"
    assert done.stderr == ""
    assert {p.name for p in away.iterdir()} == {"rows.parquet", "mlruns"}
    assert {p.name for p in (away / "mlruns").iterdir()} == {"mlflow.db", "artifacts"}


@pytest.mark.parametrize(
    "uri", ["models:/nobody@champion", f"models:/{NAME}/999", f"models:/{NAME}@nobody", "runs:/0123/model", "nothing"]
)
def test_an_unknown_uri_is_said(uri: str, registered: tracking.Registered) -> None:
    with pytest.raises(ArtifactError) as caught:
        tracking.load(uri)
    assert uri in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_a_uri_too(detector: Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "bare")
    flavor.save_model(detector, tmp_path / "model")
    for name in ("bare", "model"):
        assert tracking.load(str(tmp_path / name)).detector.digest == detector.digest


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", "a@b", "a b", "a?b", "50%"])
def test_names_that_a_uri_cannot_carry_are_refused(name: str, store: Path) -> None:
    with pytest.raises(ConfigError, match="name"):
        tracking.train_and_register(make_rows(50, seed=0), SMALL, name=name)


def test_labels_that_leave_nothing_are_refused(store: Path) -> None:
    with pytest.raises(ShapeError, match="normal rows"):
        tracking.train_and_register(make_rows(50, seed=0), SMALL, name="none", labels=np.ones(50, dtype=bool))


def test_a_folder_cannot_be_recalibrated(detector: Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "bare")
    with pytest.raises(ConfigError, match="registered"):
        tracking.recalibrate_and_register(str(tmp_path / "bare"), make_rows(50, seed=0))


def test_checkpoint_belongs_to_data_settings_and_labels(away: Path) -> None:
    frame = make_rows(50, seed=0)
    labels = np.zeros(50, dtype=bool)
    path = tracking.checkpoint_path("a", frame, SMALL)
    assert path == tracking.checkpoint_path("a", frame.copy(), SMALL)
    other = frame.copy()
    other.loc[3, "load"] += 1e-9
    paths = {
        path,
        tracking.checkpoint_path("b", frame, SMALL),
        tracking.checkpoint_path("a", other, SMALL),
        tracking.checkpoint_path("a", frame.rename(columns={"load": "burden"}), SMALL),
        tracking.checkpoint_path("a", frame, replace(SMALL, seed=1)),
        tracking.checkpoint_path("a", frame, SMALL, labels),
        tracking.checkpoint_path("a", frame, SMALL, labels | (np.arange(50) == 3)),
    }
    assert len(paths) == 7
    assert not path.exists()


def test_quiet_gives_levels_back() -> None:
    logger = logging.getLogger("mlflow")
    before = logger.level
    with contextlib.suppress(KeyError), tracking.quiet():
        assert logger.level == logging.ERROR
        raise KeyError
    assert logger.level == before


@pytest.mark.whole
def test_wide_table_is_recorded(store: Path) -> None:
    mlflow.create_experiment("wide", artifact_location=(store / "artifacts").as_uri())
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(60, 700)), columns=[f"sensor_{i}" for i in range(700)])
    config = replace(SMALL, steps=3, columns={f"sensor_{i}": "continuous" for i in range(700)})
    made = tracking.train_and_register(frame, config, name="wide")
    assert tracking.load(made.uri).detector.score_frame(frame.head(3), alpha=0.5)["anomaly_score"].notna().all()
