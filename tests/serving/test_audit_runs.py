"""An audit is a run in MLflow, with its lineage to model and data."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import mlflow
import numpy as np
import pytest

from anomaly_vae import AuditConfig, Detector
from anomaly_vae.data.images import frame_of
from anomaly_vae.serving import auditing, tracking
from anomaly_vae.serving.auditing import Audited
from anomaly_vae.serving.resampling import resample_file
from tests.conftest import digit_images

from .conftest import make_rows

CONFIG = AuditConfig(cells=6, bootstrap=50, alpha=0.1)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audited") / "rows.csv"
    rows = make_rows(400, seed=41)
    unfair = rows["site"] == "Rome"
    rows.loc[unfair, "heat"] += 15.0
    rows.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def audited(registered: tracking.Registered, table: Path) -> Audited:
    return auditing.audit_file(registered.detector, table, groups=["site"], config=CONFIG, model_uri=registered.uri)


def test_a_run_has_lineage_figures_and_the_page(registered, audited: Audited, table: Path, tmp_path: Path) -> None:
    run_id = auditing.log_audit(audited, registered.detector, CONFIG, groups=["site"])
    assert run_id
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    assert client.get_experiment(run.info.experiment_id).name == registered.name
    assert run.data.tags["anomaly_vae.audited"] == registered.uri
    assert run.data.tags["anomaly_vae.detector_digest"] == registered.detector.digest
    assert run.inputs.dataset_inputs[0].dataset.digest == run.data.tags["anomaly_vae.data_digest"][:16]
    assert run.data.params["audit.cells"] == "6"
    assert json.loads(run.data.params["audit.groups"]) == ["site"]
    (gap,) = [gap for gap in audited.audit.gaps if gap.column == "site" and gap.measure == "flag_rate"]
    assert run.data.metrics["flag_rate/site/difference"] == pytest.approx(gap.difference)
    assert gap.difference > 0.2  # planted
    assert run.data.metrics["findings"] == len(audited.audit.findings) > 0
    assert run.data.metrics["evenness"] == pytest.approx(audited.audit.coverage.evenness)
    page = Path(client.download_artifacts(run_id, "report.html", str(tmp_path))).read_text()
    assert audited.audit.findings[0].subject in page
    kept = json.loads(Path(client.download_artifacts(run_id, "audit.json", str(tmp_path))).read_text())
    assert kept["findings"] == json.loads(json.dumps(audited.to_dict()["findings"]))


def test_an_audit_and_a_resampling_of_the_same_data_say_the_same_of_them(
    registered, audited: Audited, table: Path, tmp_path: Path
) -> None:
    done = resample_file(registered.detector, table, tmp_path / "out.csv")
    assert audited.data_digest == done.data_digest
    other = tmp_path / table.name
    other.write_text(table.read_text().replace("Rome", "Bern", 1))
    changed = auditing.audit_file(registered.detector, other, config=CONFIG)
    assert changed.data_digest != audited.data_digest


def test_a_model_that_is_in_no_registry_has_no_run(detector: Detector, audited: Audited) -> None:
    bare = dataclasses.replace(audited, model="some/folder")
    assert auditing.log_audit(bare, detector, CONFIG) is None


def test_images_have_a_digest_of_their_content(image_detector: Detector, tmp_path: Path) -> None:
    images = digit_images()[0][:120]
    np.save(tmp_path / "digits.npy", images)
    found = auditing.audit_file(image_detector, tmp_path / "digits.npy", config=CONFIG)
    column = image_detector.schema.names[0]
    want = hashlib.sha256(b"".join(np.asarray(cell).tobytes() for cell in frame_of(images, column=column)[column]))
    assert found.data_digest == want.hexdigest()
