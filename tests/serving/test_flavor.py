"""A detector as an MLflow model: round trip, input of every dtype, parameters, evaluation, environments."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.exceptions import MlflowException
from mlflow.models import make_metric

from anomaly_vae import Detector
from anomaly_vae.errors import ArtifactError, DataWarning
from anomaly_vae.serving import flavor, tracking


@pytest.fixture(scope="session")
def saved(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flavor") / "model"
    flavor.save_model(detector, path)
    return path


@pytest.fixture(scope="session")
def served(saved: Path) -> mlflow.pyfunc.PyFuncModel:
    return mlflow.pyfunc.load_model(str(saved))


def test_round_trip_gives_the_same_scores(saved: Path, detector: Detector, rows: pd.DataFrame) -> None:
    loaded = flavor.load_model(str(saved))
    pd.testing.assert_frame_equal(loaded.score_frame(rows, explain=2), detector.score_frame(rows, explain=2))


def test_artifact_holds_no_pickle_and_no_code(saved: Path) -> None:
    files = {p.relative_to(saved).as_posix() for p in saved.rglob("*") if p.is_file()}
    assert {"data/detector/config.json", "data/detector/model.safetensors", "data/detector/golden.json"} <= files
    assert not [f for f in files if f.endswith((".pkl", ".pickle", ".pt", ".pth", ".py", ".joblib"))]
    assert yaml.safe_load((saved / "MLmodel").read_text())["flavors"]["python_function"]["code"] is None


def test_native_load_does_not_follow_the_loader_module(saved: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    shutil.copytree(saved, hostile)
    text = (hostile / "MLmodel").read_text().replace("anomaly_vae.serving.flavor", "this_module_would_run")
    (hostile / "MLmodel").write_text(text)
    assert flavor.load_model(str(hostile)).digest == flavor.load_model(str(saved)).digest


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("flavors: {}\n")
    with pytest.raises(ArtifactError, match="one that this package saved"):
        flavor.load_model(str(tmp_path))


def test_tampered_tensors_are_refused(saved: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    file = broken / "data" / "detector" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError):
        flavor.load_model(str(broken))


def _variants(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    nullable = frame.astype(
        {"load": "Float64", "heat": "Float64", "age": "Int64", "stops": "Int32", "site": "string", "leaky": "boolean"}
    )
    objects = frame.astype(object).where(frame.notna(), None)
    return {
        "as trained": frame,
        "nullable": nullable,
        "category": frame.astype({"site": "category", "code": "category"}),
        "objects with None": objects,
        "arrow": frame.convert_dtypes(dtype_backend="pyarrow"),
        "small numbers": frame.astype({"age": "int8", "stops": "uint8"}),
        "whole numbers with gaps as floats": frame.astype({"age": "float64"}),
        "columns in another order": frame[frame.columns[::-1]],
    }


@pytest.mark.parametrize("name", list(_variants(pd.DataFrame(columns=["load"]).assign(
    heat=1.0, age=1, stops=1, site="a", code="a", leaky=True, load=1.0))))  # fmt: skip
def test_every_dtype_scores_alike(name: str, served: Any, detector: Detector, rows: pd.DataFrame) -> None:
    got = served.predict(_variants(rows)[name])
    np.testing.assert_allclose(got["anomaly_score"], detector.score_frame(rows)["anomaly_score"], rtol=1e-6)


@pytest.mark.parametrize("column", ["age", "stops", "site", "code", "leaky", "load"])
def test_a_missing_cell_is_missing_whatever_its_dtype(
    column: str, served: Any, detector: Detector, rows: pd.DataFrame
) -> None:
    gaps = rows.astype({"age": "Int64", "stops": "Int64", "leaky": "boolean", "site": "string", "code": "category"})
    gaps.loc[gaps.index[::3], column] = None
    got = served.predict(gaps)["anomaly_score"]
    np.testing.assert_allclose(got, detector.score_frame(gaps)["anomaly_score"], rtol=1e-6)
    assert np.abs(np.array(got) - detector.score_frame(rows)["anomaly_score"])[::3].max() > 1e-3


def test_output_is_json_without_nan(served: Any, rows: pd.DataFrame) -> None:
    got = served.predict(rows, params={"k": 1})
    assert json.loads(json.dumps(got, allow_nan=False))["mc_se"] == [None] * len(rows)
    outputs = served.metadata.signature.outputs
    assert list(got) == outputs.input_names()


def test_parameters_reach_the_model(served: Any, detector: Detector, rows: pd.DataFrame) -> None:
    strict = detector.score_frame(rows, alpha=0.2, k=1, explain=2)
    got = served.predict(rows, params={"alpha": 0.2, "k": 1, "explain": 2})
    assert got["is_anomaly"] == strict["is_anomaly"].tolist()
    assert got["attributions"] == strict["attributions"].tolist()
    likely = served.predict(rows, params={"mc_se": 0.2})
    assert likely["log_likelihood"] == detector.score_frame(rows, mc_se=0.2)["log_likelihood"].tolist()
    assert likely["anomaly_score"] == served.predict(rows)["anomaly_score"]
    under_fdr = served.predict(rows, params={"fdr": 0.3})
    assert under_fdr["is_anomaly"] == detector.score_frame(rows, fdr=0.3)["is_anomaly"].tolist()


def test_absent_columns_are_missing_cells_on_demand(served: Any, detector: Detector, rows: pd.DataFrame) -> None:
    less = rows.drop(columns=["heat", "site"])
    with pytest.raises(MlflowException, match="column 'heat', 'site' absent") as caught:
        served.predict(less)
    assert caught.value.get_http_status_code() == 400
    with pytest.warns(DataWarning, match="absent columns count as missing cells: 'heat', 'site'"):
        got = served.predict(less, params={"allow_missing": True, "explain": 1})
    empty = detector.score_frame(rows.assign(heat=np.nan, site=None), explain=1)
    assert got["anomaly_score"] == empty["anomaly_score"].tolist()
    assert got["attributions"] == empty["attributions"].tolist()


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 1.5}, "alpha"),
        ({"fdr": -0.1}, "fdr"),
        ({"k": 7}, "k must be one"),
        ({"explain": -1}, "explain"),
        ({"mc_se": -0.1}, "mc_se"),
        ({"alpha": 1e-9}, "calibration rows"),
        ({"alpha": 0.01, "fdr": 0.1}, "both"),
        ({"allow_missing": "perhaps"}, "allow_missing"),
    ],
)
def test_bad_parameters_are_the_callers_fault(
    params: dict[str, Any], said: str, served: Any, rows: pd.DataFrame
) -> None:
    with pytest.raises(MlflowException, match=said) as caught:
        served.predict(rows, params=params)
    assert caught.value.get_http_status_code() == 400


def test_an_inner_fault_is_not_shown(saved: Path, rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    model = flavor._load_pyfunc(str(saved / "data" / "detector"))
    monkeypatch.setattr(Detector, "score_frame", lambda *_, **__: 1 / 0)
    with pytest.raises(MlflowException) as caught:
        model.predict(rows)
    assert caught.value.get_http_status_code() == 500
    assert "division" not in caught.value.serialize_as_json()


def test_text_that_reads_as_a_number_is_recovered(served: Any, detector: Detector, rows: pd.DataFrame) -> None:
    from_csv = rows.assign(code=rows["code"].astype(float))  # what a CSV reader makes of "007"
    np.testing.assert_allclose(
        served.predict(from_csv)["anomaly_score"], detector.score_frame(rows)["anomaly_score"], rtol=1e-6
    )


def test_threads_agree(served: Any, detector: Detector, rows: pd.DataFrame) -> None:
    parts = [rows.iloc[i : i + 30] for i in range(0, 300, 30)]
    with ThreadPoolExecutor(4) as pool:
        got = [score for part in pool.map(served.predict, parts) for score in part["anomaly_score"]]
    assert got == detector.score_frame(rows)["anomaly_score"].tolist()


def test_requirements_are_pinned_to_versions_an_index_has(saved: Path) -> None:
    lines = (saved / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in lines} == {"anomaly-vae", *flavor.REQUIREMENTS}
    assert all("==" in line and "+" not in line for line in lines)


def test_input_example_is_drawn_from_the_model_and_scores(saved: Path, detector: Detector) -> None:
    example = json.loads((saved / "input_example.json").read_text())
    assert example["columns"] == list(detector.schema.names)
    assert len(example["data"]) == flavor.EXAMPLE_ROWS


def test_declared_inputs_name_the_columns(detector: Detector) -> None:
    declared = flavor.signature(detector.schema, declare_inputs=True).inputs
    assert declared.input_names() == list(detector.schema.names)
    assert flavor.signature(detector.schema).inputs is None


def test_mlflow_evaluate(registered: tracking.Registered, rows: pd.DataFrame) -> None:
    from sklearn.metrics import roc_auc_score

    labelled = rows.assign(strange=np.arange(len(rows)) >= 290)

    def auroc(predictions: pd.Series, targets: pd.Series) -> float:
        return float(roc_auc_score(targets, predictions))

    with tracking.quiet(), mlflow.start_run(experiment_id=mlflow.get_experiment_by_name("pumps").experiment_id):
        result = mlflow.models.evaluate(
            registered.uri,
            labelled,
            targets="strange",
            predictions="anomaly_score",
            extra_metrics=[make_metric(eval_fn=auroc, greater_is_better=True, name="auroc")],
        )
    expected = roc_auc_score(labelled["strange"], registered.detector.score_frame(rows)["anomaly_score"])
    assert result.metrics["auroc"] == pytest.approx(expected)


@pytest.mark.slow
def test_predict_in_a_fresh_environment_with_the_wheel_inside(
    detector: Detector, rows: pd.DataFrame, tmp_path: Path
) -> None:
    if shutil.which("uv") is None:
        pytest.skip("needs the environment manager uv")
    root = Path(__file__).parents[2]
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(root)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot build a wheel: {done.stderr[-300:]}")
    flavor.save_model(detector, tmp_path / "model", wheel=next(tmp_path.glob("*.whl")))
    rows.to_csv(tmp_path / "in.csv", index=False)
    uv_first = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    command = [sys.executable, "-m", "mlflow", "models", "predict", "-m", "model", "-i", "in.csv", "-t", "csv"]
    command += ["-o", "out.json", "--env-manager", "uv"]
    subprocess.run(command, cwd=tmp_path, env=uv_first, check=True, timeout=1500)
    got = json.loads((tmp_path / "out.json").read_text())["predictions"]["anomaly_score"]
    np.testing.assert_allclose(got, detector.score_frame(rows)["anomaly_score"], rtol=1e-5, atol=1e-5)
