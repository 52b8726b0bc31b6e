"""Rebalanced files: what is in them, that the source stays as it was, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from anomaly_vae import Detector, ResampleConfig
from anomaly_vae.errors import AnomalyVaeError, ConfigError, OutputExistsError, UnreadableDataError
from anomaly_vae.row_weigher import WEIGHT_COLUMNS, RowWeigher
from anomaly_vae.serving import resampling
from anomaly_vae.serving.resampling import resample_file, weigh_file
from tests.conftest import digit_images

from .conftest import make_rows

ROWS = 300


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Rows of the detector's columns, among them a serial number, a class, and a list that it does not know."""
    frame = make_rows(ROWS, seed=5)
    frame.insert(0, "serial", [f"{i:05d}" for i in range(ROWS)])
    frame["fault"] = np.where(np.arange(ROWS) % 10 == 0, "rare", "common")
    return frame.astype({"age": "int32"})


@pytest.fixture
def source(table: pd.DataFrame, tmp_path: Path) -> Path:
    path = tmp_path / "in.parquet"
    table.to_parquet(path, index=False)
    return path


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "BATCH_ROWS", 70)


@pytest.mark.usefixtures("small_batches")
def test_weights_stand_beside_the_users_own_columns(detector: Detector, table, source, tmp_path) -> None:
    before = sha(source)
    done = resample_file(detector, source, tmp_path / "out.parquet", label="fault", model_uri="models:/pumps/1")
    out = pd.read_parquet(done.path)
    pd.testing.assert_frame_equal(out.drop(columns="sample_weight"), pd.read_parquet(source))
    assert pq.read_schema(done.path).field("age").type == "int32"
    expected = RowWeigher.fit(detector, table, labels=table.fault).weigher.weighing.weights
    np.testing.assert_allclose(out.sample_weight, expected, rtol=1e-6)
    weights = pd.read_parquet(done.weights)
    assert list(weights.columns) == ["row", "fault", *WEIGHT_COLUMNS, "copies"]
    np.testing.assert_array_equal(weights.weight, out.sample_weight)
    assert (weights.copies == 1).all()
    report = json.loads(done.report_path.read_text())
    assert report["model"] == "models:/pumps/1"
    assert report["report"]["rows"] == report["report"]["rows_out"] == ROWS
    assert report["report"]["ess"] == pytest.approx(out.sample_weight.sum() ** 2 / (out.sample_weight**2).sum() / ROWS)
    assert sha(source) == before


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("mode", ["oversample", "subsample", "thin"])
def test_rows_come_as_often_as_the_weights_file_says(detector, table, source, tmp_path, mode) -> None:
    done = resample_file(detector, source, tmp_path / "out.parquet", ResampleConfig(mode=mode), label="fault")
    out, weights = pd.read_parquet(done.path), pd.read_parquet(done.weights)
    expected = table.iloc[np.repeat(weights.row, weights.copies)].reset_index(drop=True)
    pd.testing.assert_frame_equal(out, expected.astype(out.dtypes.to_dict()))
    assert len(out) == done.report.rows_out
    assert (weights.copies >= 1).all() == (mode == "oversample")
    if mode == "oversample":
        assert len(out) == 2 * ROWS
        assert (out.fault == "rare").mean() > 0.2


def test_csv_keeps_the_text_of_columns_that_the_model_does_not_know(detector, table, tmp_path) -> None:
    table.to_csv(tmp_path / "in.csv", index=False)
    config = ResampleConfig(mode="oversample", size=ROWS)
    done = resample_file(detector, tmp_path / "in.csv", tmp_path / "out.csv", config)
    kinds = {"serial": "str", "code": "str"}
    pd.testing.assert_frame_equal(pd.read_csv(done.path, dtype=kinds), pd.read_csv(tmp_path / "in.csv", dtype=kinds))
    again = resample_file(detector, tmp_path / "in.csv", tmp_path / "out.parquet", config)
    out = pd.read_parquet(again.path)
    assert out.serial.tolist() == table.serial.tolist()
    assert out.load.dtype == np.float64


def test_a_folder_of_both_kinds_of_file_is_one_table(detector, table, tmp_path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    table[:100].to_csv(folder / "a.csv", index=False)
    table[100:].to_parquet(folder / "b.parquet", index=False)
    done = resample_file(detector, folder, tmp_path / "out.parquet")
    assert pd.read_parquet(done.path).serial.tolist() == table.serial.tolist()


def test_numbers_as_labels_are_classes_or_a_target(detector, table, tmp_path) -> None:
    table.assign(fault=np.arange(ROWS) % 2).to_csv(tmp_path / "two.csv", index=False)
    done = resample_file(detector, tmp_path / "two.csv", tmp_path / "a.csv", label="fault")
    assert done.model.weigher.strata.values == (0, 1)
    table.assign(fault=np.linspace(0, 1, ROWS)).to_csv(tmp_path / "many.csv", index=False)
    done = resample_file(detector, tmp_path / "many.csv", tmp_path / "b.csv", label="fault")
    assert done.model.weigher.strata.kind == "continuous"


def test_images_become_a_manifest(image_detector, tmp_path) -> None:
    from PIL import Image

    images, digit = digit_images()
    for i in range(60):
        place = tmp_path / "photos" / f"digit{digit[i] % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i]).save(place / f"{i}.png")
    (tmp_path / "photos" / "digit0" / "broken.png").write_bytes(b"no image")
    config = ResampleConfig(mode="oversample")
    done = resample_file(image_detector, tmp_path / "photos", tmp_path / "out.csv", config, label="digit")
    out = pd.read_csv(done.path)
    assert list(out.columns) == ["file", "digit", "weight", "copies"]
    assert out.copies.sum() == 120
    assert (out.file.str.partition("/")[0] == out.digit).all()
    assert done.unreadable == 1
    assert "broken.png" in done.errors.read_text()
    weighed = weigh_file(done.model, tmp_path / "photos", tmp_path / "again.parquet")
    np.testing.assert_allclose(pd.read_parquet(weighed.path).weight, out.weight, rtol=1e-4)


@pytest.mark.usefixtures("small_batches")
def test_further_rows_are_weighed_from_file_to_file(detector, table, source, tmp_path) -> None:
    model = resample_file(detector, source, tmp_path / "out.parquet", label="fault").model
    done = weigh_file(model, source, tmp_path / "w.csv", model_version="models:/w/1")
    out = pd.read_csv(done.path)
    assert done.rows == ROWS
    assert list(out.columns) == ["row", *WEIGHT_COLUMNS, "model_version"]
    np.testing.assert_allclose(out.weight, model.weigher.weighing.weights, rtol=1e-4)
    table.drop(columns="fault").to_parquet(tmp_path / "bare.parquet")
    with pytest.raises(AnomalyVaeError, match="the label must be a column of the table, got 'fault'"):
        weigh_file(model, tmp_path / "bare.parquet", tmp_path / "w2.csv")


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_its_own_output_is_refused(detector, source, tmp_path, suffix) -> None:
    out = tmp_path / f"out.{suffix}"
    resample_file(detector, source, out, ResampleConfig(mode="oversample"))
    with pytest.raises(ConfigError, match="the input must not be the output of a resampling"):
        resample_file(detector, out, tmp_path / "twice.parquet")
    if suffix == "csv":  # another table under that name is none
        pd.read_parquet(source).to_csv(out, index=False)
        resample_file(detector, out, tmp_path / "twice.parquet")


def test_outputs_that_exist_are_kept(detector, source, tmp_path) -> None:
    out = tmp_path / "out.parquet"
    resample_file(detector, source, out)
    before = sha(out)
    with pytest.raises(OutputExistsError):
        resample_file(detector, source, out, ResampleConfig(density="kde"))
    assert sha(out) == before
    out.unlink()
    with pytest.raises(OutputExistsError, match=r"parquet\.weights"):
        resample_file(detector, source, out)
    resample_file(detector, source, out, ResampleConfig(density="kde"), overwrite=True)
    assert sha(out) != before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_nothing_appears_if_the_input_changes_under_it(detector, source, table, tmp_path, monkeypatch) -> None:
    real = resampling.read_tables

    def shortened(*args, **kwargs):
        table[:200].to_parquet(source, index=False)
        return real(*args, **kwargs)

    monkeypatch.setattr(resampling, "read_tables", shortened)
    with pytest.raises(UnreadableDataError, match="must stay as it is while it is read, got 200 rows after 300"):
        resample_file(detector, source, tmp_path / "out.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["in.parquet"]


@pytest.mark.parametrize(
    ("change", "label", "message"),
    [
        (lambda t: t, "falt", "the label must be a column of the table, got 'falt'"),
        (lambda t: t.assign(fault=None), "fault", "labels must be there for each row, got 300 missing of 300"),
        (lambda t: t.assign(sample_weight=1.0), None, "must not have a column 'sample_weight' yet"),
        (lambda t: t.drop(columns="heat"), None, "column 'heat' absent"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(detector, table, tmp_path, change, label, message) -> None:
    change(table).to_parquet(tmp_path / "in.parquet")
    with pytest.raises(AnomalyVaeError, match=message):
        resample_file(detector, tmp_path / "in.parquet", tmp_path / "out.parquet", label=label)
    assert [p.name for p in tmp_path.iterdir()] == ["in.parquet"]
