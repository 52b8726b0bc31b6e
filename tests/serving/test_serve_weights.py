"""`anomaly-vae serve` of a registered resampler: weights over HTTP, with the service's limits."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from anomaly_vae import Detector, ResampleConfig, RowWeigher
from anomaly_vae.errors import ArtifactError
from anomaly_vae.options import ServeConfig
from anomaly_vae.serving import payload, rebalancing, tracking, weights
from anomaly_vae.serving.service import Service
from anomaly_vae.serving.tally import Tally
from tests.conftest import digit_images

from .conftest import make_rows
from .test_window import answer

NAME = "pumps-served-weights"


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return make_rows(300, seed=6)


@pytest.fixture(scope="module")
def made(registered: tracking.Registered, store: Path, frame: pd.DataFrame) -> rebalancing.RegisteredWeigher:
    with tracking.quiet():
        mlflow.create_experiment(NAME, artifact_location=(store / "artifacts").as_uri())
    labels = frame["stops"] > 2  # a column that the detector does not know under this name
    return rebalancing.resample_and_register(
        registered.uri, frame, ResampleConfig(neighbours=10), name=NAME, labels=labels, label_column="busy"
    )


def asked(model: weights.Served, *bodies: tuple[bytes, str], config: ServeConfig | None = None) -> list[Any]:
    """Each body's status and answer, then the metrics."""

    async def session() -> list[Any]:
        service = Service(lambda: (model, "models:/pumps-weights/1"), config or ServeConfig(), Tally())
        await service.start()
        out: list[Any] = []
        for body, media in bodies:
            status, text = await answer(service, "/invocations", body, media)
            out.append((status, json.loads(text)))
        out.append((await answer(service, "/metrics"))[1].decode())
        service.stop()
        return out

    return asyncio.run(session())


def test_either_kind_of_model_is_found_by_its_uri(made, registered, tmp_path: Path) -> None:
    weigher, uri = weights.load(f"models:/{NAME}@champion")
    assert isinstance(weigher, RowWeigher)
    assert uri == f"models:/{NAME}/1"
    assert weigher.digest == made.model.digest
    detector, uri = weights.load(registered.uri)
    assert isinstance(detector, Detector)
    assert (detector.digest, uri) == (registered.detector.digest, registered.uri)
    made.model.save(tmp_path / "bare")
    registered.detector.save(tmp_path / "other")
    assert isinstance(weights.load(str(tmp_path / "bare"))[0], RowWeigher)
    assert isinstance(weights.load(str(tmp_path / "other"))[0], Detector)
    with pytest.raises(ArtifactError, match="must be one that MLflow can find"):
        weights.load("models:/nobody/1")


def test_weights_are_the_library_s_in_every_format(made, frame: pd.DataFrame) -> None:
    rows = frame.head(20).assign(busy=lambda t: t["stops"] > 2, ticket=range(20))
    records = json.loads(rows.to_json(orient="records", double_precision=15))
    split = {"columns": list(rows.columns), "data": [list(record.values()) for record in records]}
    parquet = io.BytesIO()
    rows.to_parquet(parquet)
    bodies = [
        (json.dumps({"dataframe_records": records}).encode(), payload.JSON),
        (json.dumps({"dataframe_split": split}).encode(), payload.JSON),
        (json.dumps({"inputs": {name: [r[name] for r in records] for name in rows.columns}}).encode(), payload.JSON),
        (rows.to_csv(index=False).encode(), payload.CSV),
        (parquet.getvalue(), payload.PARQUET),
    ]
    *answers, metrics = asked(made.model, *bodies)
    want = made.model.score_frame(rows)
    for status, said in answers:
        assert status == 200, said
        assert list(said["predictions"]) == list(want.columns)
        np.testing.assert_allclose(said["predictions"]["weight"], want["weight"], rtol=1e-12)
        assert said["predictions"]["guarded_label"] == want["guarded_label"].tolist()
    assert "anomaly_vae_rows_total 100\n" in metrics
    assert f'digest="{made.model.digest}"' in metrics
    assert "drift_column_psi" not in metrics  # it is the detector that is watched


def test_the_service_s_limits_and_refusals_hold(made, frame: pd.DataFrame) -> None:
    rows = frame.head(5).assign(busy=True)
    records = json.loads(rows.to_json(orient="records"))
    unlabelled = [{k: v for k, v in record.items() if k != "busy"} for record in records]
    strange = [{**record, "busy": "perhaps"} for record in records]
    sent = [
        {"dataframe_records": records * 3},
        {"dataframe_records": unlabelled},
        {"dataframe_records": strange},
        {"dataframe_records": records, "params": {"alpha": 0.1}},
    ]
    bodies = [(json.dumps(body).encode(), payload.JSON) for body in sent]
    *answers, metrics = asked(made.model, *bodies, config=ServeConfig(max_rows=10))
    assert [status for status, _ in answers] == [413, 400, 400, 400]
    said = [text["message"] for _, text in answers]
    assert "at most 10 rows" in said[0]
    assert "must have the column of labels 'busy'" in said[1]
    assert "busy" in said[2] or "perhaps" in said[2]
    assert "must be asked without parameters, got 'alpha'" in said[3]
    assert 'rejected_total{reason="internal"} 0' in metrics


@pytest.mark.filterwarnings("ignore::anomaly_vae.errors.DataWarning")
def test_images_are_weighed_within_their_class(image_detector: Detector) -> None:
    from anomaly_vae.data.images import frame_of

    images, digit = digit_images()
    some = digit < 2
    weigher = RowWeigher.fit(
        image_detector, frame_of(images[some]), ResampleConfig(neighbours=10), labels=digit[some], label_column="digit"
    )
    sent = [
        {weigher.detector.schema.names[0]: base64.b64encode(png).decode(), "digit": i}
        for i, png in enumerate(weigher.detector.sample(2, seed=0)[weigher.detector.schema.names[0]])
    ]
    (status, said), _ = asked(weigher, (json.dumps({"inputs": sent}).encode(), payload.JSON))
    assert status == 200, said
    assert all(weight > 0 for weight in said["predictions"]["weight"])
