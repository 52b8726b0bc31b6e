"""A resampler in the registry: its lineage, its figures, and that it answers as the library does."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import invocations

from anomaly_vae import ResampleConfig
from anomaly_vae.errors import ArtifactError, ConfigError
from anomaly_vae.row_weigher import WEIGHT_COLUMNS
from anomaly_vae.serving import rebalancing, tracking

from .conftest import make_rows

NAME = "pumps-weights"


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return make_rows(300, seed=6)


@pytest.fixture(scope="module")
def made(registered: tracking.Registered, store: Path, frame: pd.DataFrame) -> rebalancing.RegisteredWeigher:
    with tracking.quiet():
        mlflow.create_experiment(NAME, artifact_location=(store / "artifacts").as_uri())
    return rebalancing.resample_and_register(
        registered.uri, frame, ResampleConfig(neighbours=10), name=NAME, labels=frame.leaky, label_column="leaky"
    )


def test_it_has_its_lineage_and_figures(made, registered) -> None:
    assert made.uri == f"models:/{NAME}/1"
    assert made.champion
    client = mlflow.MlflowClient()
    run = client.get_run(made.run_id)
    for tags in (run.data.tags, client.get_model_version(NAME, "1").tags):
        assert tags["anomaly_vae.detector_uri"] == registered.uri
        assert tags["anomaly_vae.detector_digest"] == registered.detector.digest
        assert len(tags["anomaly_vae.data_digest"]) == 64
    report = made.model.weigher.weighing.report
    assert run.data.params["resample.neighbours"] == "10"
    assert run.data.metrics["ess"] == pytest.approx(report.ess)
    assert run.data.metrics["guard/label/mass_moved"] == pytest.approx(report.guards[-1].moved)
    assert [run.data.metrics[f"class/{i}/mass"] for i in range(2)] == pytest.approx([c.mass for c in report.classes])
    assert run.inputs.dataset_inputs[0].dataset.digest == run.data.tags["anomaly_vae.data_digest"][:16]


def test_the_run_has_a_page_that_shows_classes_before_and_after(made, tmp_path) -> None:
    page = Path(mlflow.MlflowClient().download_artifacts(made.run_id, "report.html", str(tmp_path))).read_text()
    assert "<h2" in page
    assert f"{made.model.weigher.weighing.report.rows:,} rows were weighed by how rare their codes are" in page
    assert made.model.detector.digest in page


def test_it_loads_and_answers_alike(made, frame) -> None:
    loaded = rebalancing.load(f"models:/{NAME}@champion")
    assert loaded.uri == made.uri
    expected = made.model.score_frame(frame)
    pd.testing.assert_frame_equal(loaded.model.score_frame(frame), expected)
    served = mlflow.pyfunc.load_model(made.uri)
    answer = served.predict(frame)
    assert tuple(answer) == WEIGHT_COLUMNS
    np.testing.assert_allclose(answer["weight"], expected.weight, rtol=1e-6)


def test_it_answers_over_http(made, frame) -> None:
    served = mlflow.pyfunc.load_model(made.uri)
    rows = frame.head(5)
    body = json.dumps({"dataframe_split": json.loads(rows.to_json(orient="split"))})
    answer = invocations(body, "application/json", served, served.metadata.get_input_schema())
    assert answer.status == 200
    weights = json.loads(answer.response)["predictions"]["weight"]
    np.testing.assert_allclose(weights, made.model.score_frame(rows).weight, rtol=1e-5)
    text = rows.to_csv(index=False)
    answer = invocations(text, "text/csv", served, served.metadata.get_input_schema())
    np.testing.assert_allclose(json.loads(answer.response)["predictions"]["weight"], weights, rtol=1e-5)


def test_a_request_at_fault_is_told_why(made, frame) -> None:
    served = mlflow.pyfunc.load_model(made.uri)
    with pytest.raises(MlflowException, match="must have the column of labels 'leaky'") as caught:
        served.predict(frame.drop(columns="leaky"))
    assert caught.value.get_http_status_code() == 400


def test_a_detector_is_no_resampler_nor_the_reverse(made, registered) -> None:
    with pytest.raises(ArtifactError, match="must be a resampler that this package saved"):
        rebalancing.load(registered.uri)
    with pytest.raises(ArtifactError, match="must be a detector, got the resampler"):
        tracking.load(made.uri)


def test_a_file_is_rebalanced_and_the_run_says_so(made, registered, frame, tmp_path) -> None:
    frame.to_parquet(tmp_path / "in.parquet", index=False)
    done = rebalancing.resample_and_track(registered.uri, tmp_path / "in.parquet", tmp_path / "out.csv", name=NAME)
    assert done.registered is not None
    assert done.registered.version == "2"
    assert not done.registered.champion
    run = mlflow.MlflowClient().get_run(done.run_id)
    assert run.data.tags["anomaly_vae.data_digest"] == done.files.data_digest
    assert run.data.metrics["rows_out"] == 300
    untracked = rebalancing.resample_and_track(registered.uri, tmp_path / "in.parquet", tmp_path / "b.csv")
    assert untracked.registered is None
    assert mlflow.MlflowClient().get_run(untracked.run_id).data.params["resample.density"] == "knn"


def test_names_are_kept_apart(registered, frame) -> None:
    with pytest.raises(ConfigError, match="must be another than its detector's"):
        rebalancing.resample_and_register(registered.uri, frame, name=registered.name)
