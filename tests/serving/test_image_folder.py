"""Folder jobs of images: parts of a folder's files or Parquet files, resumed like those of tables."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from anomaly_vae import Detector
from anomaly_vae.data import image_parts as module
from anomaly_vae.data.image_parts import image_parts
from anomaly_vae.errors import OutputExistsError, UnreadableDataError
from anomaly_vae.options import BatchConfig
from anomaly_vae.serving.batch import score_file
from anomaly_vae.serving.folder import ScoredFolder, score_folder
from tests.conftest import digit_images


def encoded(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.image_parts, "__kwdefaults__", {"at_once": 8})


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Thirty readable images in two classes, one cut short, one text file."""
    folder = tmp_path / "in"
    for i, image in enumerate(digit_images()[0][:30]):
        place = folder / ("a" if i % 2 else "b") / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(image))
    (folder / "b" / "9.png").write_bytes(encoded(digit_images()[0][0])[:40])
    (folder / "notes.txt").write_text("nothing")
    return folder


def run(detector: Detector, source: Path | str, output: Path, on_progress: Any = None, **settings: Any) -> ScoredFolder:
    config = BatchConfig(**settings)
    return score_folder(
        detector, source, output, config, model_version="m/1", schema=detector.schema, on_progress=on_progress
    )


def written(output: Path) -> pd.DataFrame:
    parts = sorted(p for p in output.rglob("*.parquet") if not p.relative_to(output).parts[0].startswith((".", "_")))
    return pd.concat([pq.read_table(p).to_pandas() for p in parts], ignore_index=True)


def test_a_folder_of_files_is_scored_like_a_file(image_detector: Detector, files: Path, tmp_path: Path) -> None:
    done = run(image_detector, files, tmp_path / "out", explain=2)
    assert (done.parts, done.rows, done.errors) == (4, 30, 2)
    assert sorted(p.name for p in (tmp_path / "out").glob("images-*")) == [f"images-{i:05d}.parquet" for i in range(4)]
    whole = tmp_path / "whole.parquet"
    score_file(image_detector, files, whole, BatchConfig(explain=2), model_version="m/1", schema=image_detector.schema)
    pd.testing.assert_frame_equal(written(tmp_path / "out"), pd.read_parquet(whole))
    listed = pd.read_parquet(tmp_path / "out" / "_errors.parquet")
    assert set(listed["file"]) == {"b/9.png", "."}
    assert listed["row"].isna().all()
    assert "1 .txt" in listed.set_index("file").loc[".", "reason"]


def test_an_interrupted_job_goes_on(image_detector: Detector, files: Path, tmp_path: Path) -> None:
    def stop(progress: Any) -> None:
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(image_detector, files, tmp_path / "out", stop)
    done = run(image_detector, files, tmp_path / "out")
    assert done.resumed == 2
    assert 0 < done.rows_now < done.rows == 30
    run(image_detector, files, tmp_path / "whole")
    pd.testing.assert_frame_equal(written(tmp_path / "out"), written(tmp_path / "whole"))
    (files / "a" / "1.png").write_bytes(encoded(digit_images()[0][40]))
    with pytest.raises(OutputExistsError):
        run(image_detector, files, tmp_path / "out")


@pytest.mark.whole
def test_processes_give_the_same(image_detector: Detector, files: Path, tmp_path: Path) -> None:
    run(image_detector, files, tmp_path / "one")
    run(image_detector, files, tmp_path / "two", processes=2)
    pd.testing.assert_frame_equal(written(tmp_path / "one"), written(tmp_path / "two"))


def test_parquet_files_of_images_are_parts(image_detector: Detector, tmp_path: Path) -> None:
    images, folder = digit_images()[0][:20], tmp_path / "in"
    folder.mkdir()
    cells = [encoded(image) for image in images]
    cells[13] = b"no image"
    for name, part in (("mon", cells[:12]), ("tue", cells[12:])):
        pd.DataFrame({"image": part, "camera": "north"}).to_parquet(folder / f"{name}.parquet")
    done = run(image_detector, folder, tmp_path / "out")
    assert (done.parts, done.rows, done.errors) == (2, 19, 1)
    rows = written(tmp_path / "out")
    assert rows["file"].tolist() == ["mon.parquet"] * 12 + ["tue.parquet"] * 7
    assert rows["row"].tolist() == [*range(12), 0, *range(2, 8)]
    want = image_detector.score_frame(pd.DataFrame({"image": list(np.delete(images, 13, axis=0))}))
    assert rows["anomaly_score"].tolist() == want["anomaly_score"].tolist()
    listed = pd.read_parquet(tmp_path / "out" / "_errors.parquet")
    assert listed[["file", "row"]].to_numpy().tolist() == [["tue.parquet", 1]]
    keyed = run(image_detector, folder, tmp_path / "keyed", key=("camera",))
    assert keyed.rows == 19
    assert written(tmp_path / "keyed").columns[:2].tolist() == ["camera", "anomaly_score"]


def test_links_that_leave_the_folder_are_no_parts(tmp_path: Path) -> None:
    rows = pd.DataFrame({"image": [encoded(digit_images()[0][0])]})
    (tmp_path / "in").mkdir()
    for name in ("in/own.parquet", "secret.parquet"):
        rows.to_parquet(tmp_path / name)
    (tmp_path / "in" / "other.parquet").symlink_to(tmp_path / "secret.parquet")
    assert [part.name for part in image_parts(tmp_path / "in")] == ["own.parquet"]


def test_a_part_of_which_nothing_can_be_read_is_listed(image_detector: Detector, files: Path, tmp_path: Path) -> None:
    for i in range(1, 17, 2):
        (files / "a" / f"{i}.png").write_bytes(b"no image")
    done = run(image_detector, files, tmp_path / "out")
    assert (done.parts, done.rows, done.errors) == (4, 22, 10)
    assert pq.read_metadata(tmp_path / "out" / "images-00000.parquet").num_rows == 0


def test_a_part_without_classes_is_of_a_folder_that_has_some(files: Path) -> None:
    for i in range(20):
        (files / f"{i}.png").write_bytes((files / "a" / "1.png").read_bytes())
    parts = image_parts(files)
    opened = [part.open(label="kind", batch_rows=99) for part in parts]
    kinds = [frame["kind"].tolist() for source in opened for frame in source.raw(99)]
    assert kinds[0] == [None] * 8
    assert [kind for some in kinds for kind in some].count("a") == 15
    assert [part.now() == part for part in parts] == [True] * len(parts)


def test_arrays_are_one_part_and_absent_files_are_refused(image_detector: Detector, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=digit_images()[0][:9])
    assert [part.name for part in image_parts("sklearn:digits")] == ["digits"]
    done = run(image_detector, tmp_path / "x.npz", tmp_path / "out")
    assert (done.parts, done.rows) == (1, 9)
    assert written(tmp_path / "out")[["file", "row"]].iloc[-1].tolist() == ["x.npz", 8]
    with pytest.raises(UnreadableDataError, match="does not exist"):
        image_parts(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnreadableDataError, match="got none"):
        image_parts(tmp_path / "empty")
