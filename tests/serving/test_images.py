"""Images through the shell, the registry, the batch and the served model: the same numbers, one line for each fault."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anomaly_vae import Detector
from anomaly_vae.data.images import frame_of, png_of
from anomaly_vae.serving import flavor
from tests.conftest import digit_images
from tests.shell import run

FAST = ["--set", "steps=60", "--set", "channels=16", "--set", "latent=4", "--set", "calibration_k=[1, 4]"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of PNG files, some of them bad, and a model trained on it."""
    folder = tmp_path_factory.mktemp("pictures")
    images, digit = digit_images()
    (folder / "photos").mkdir()
    for i, image in enumerate(images[digit != 3][:200]):
        Image.fromarray(image).save(folder / "photos" / f"{i}.png")
    (folder / "photos" / "cut.png").write_bytes(png_of(images[0])[:40])
    (folder / "photos" / "jpeg.png").write_bytes(_encoded(images[0], "JPEG"))
    done = run(folder, "train", "photos", "--name", "digits", *FAST)
    assert done.stdout.strip().splitlines()[-1] == "models:/digits/1"
    assert "images of 8 x 8" in done.stdout
    assert done.stderr.count("left out") == 2
    return folder


def _encoded(image: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def test_a_folder_is_scored_and_the_unreadable_are_listed(place: Path) -> None:
    done = run(place, "score", "models:/digits@champion", "photos", "scored.parquet", "--explain", 2)
    scored = pd.read_parquet(place / "scored.parquet")
    assert len(scored) == 200
    assert list(scored["file"][:3]) == ["0.png", "1.png", "2.png"]
    errors = pd.read_csv(place / "scored.parquet.errors.csv")
    assert set(errors["file"]) == {"cut.png", "jpeg.png"}
    assert "2 images could not be read or scored" in done.stderr
    for text, score in zip(scored["attributions"][:5], scored["anomaly_score"][:5], strict=True):
        assert sum(part["nats"] for part in json.loads(text)) == pytest.approx(score, abs=1e-3)


def test_images_that_the_score_was_fitted_to_are_no_test_of_the_promise(place: Path) -> None:
    for kind, told in (("statistics", False), ("elbo", True)):
        run(place, "train", "photos", "--name", kind, *FAST, "--set", f"score_kind={kind}")
        figures = {path.name for path in (place / "mlruns" / "artifacts" / kind).rglob("figures/*.png")}
        assert {"training.png", "scores.png"} <= figures
        assert ("calibration.png" in figures) == told


def test_sub_folders_are_held_out_whole_and_judged_as_groups(place: Path) -> None:
    images, digit = digit_images()
    for i, image in enumerate(images[:240]):
        (place / "writers" / f"w{i // 8}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / "writers" / f"w{i // 8}" / f"{i}.png")
    done = run(place, "train", "writers", "--name", "writers", "--group-by", "writer", *FAST, "--json")
    made = json.loads(done.stdout)
    assert made["promise"]["n"] == 8 * made["promise"]["n_groups"]
    cells = [png_of(image) for image in images[:240]]
    frame = pd.DataFrame({"image": cells, "bad": digit[:240] == 3, "writer": [f"w{i // 8}" for i in range(240)]})
    frame.to_parquet(place / "writers.parquet")
    words = ["evaluate", made["uri"], "writers.parquet", "--label", "bad"]
    assert "by 30 groups of 'writer'" in run(place, *words, "--group-by", "writer").stdout
    apart = json.loads(run(place, *words, "--group-by", "writer", "--json").stdout)
    plain = json.loads(run(place, *words, "--json").stdout)
    assert apart["ranking"]["auroc"] == plain["ranking"]["auroc"]
    assert apart["ranking"]["auroc_low"] != plain["ranking"]["auroc_low"]
    refused = run(place, "train", "photos", "--name", "none", "--group-by", "writer", code=2)
    assert "sort the files into folders" in refused.stderr


def test_arrays_and_parquet_score_as_the_files_do(place: Path) -> None:
    images = digit_images()[0][digit_images()[1] != 3][:200]
    np.save(place / "array.npy", images)
    pd.DataFrame({"image": [png_of(image) for image in images], "part": range(200)}).to_parquet(place / "cells.parquet")
    run(place, "score", "models:/digits/1", "photos", "files.parquet", "--overwrite")
    run(place, "score", "models:/digits/1", "array.npy", "array.csv", "--overwrite")
    run(place, "score", "models:/digits/1", "cells.parquet", "cells_scored.parquet", "--key", "part", "--overwrite")
    files = pd.read_parquet(place / "files.parquet")["anomaly_score"].to_numpy()
    assert pd.read_csv(place / "array.csv")["anomaly_score"].to_numpy() == pytest.approx(files, rel=1e-12)
    assert (pd.read_parquet(place / "cells_scored.parquet")["anomaly_score"].to_numpy() == files).all()


def test_the_strangest_are_pictured(place: Path) -> None:
    run(place, "explain", "models:/digits/1", "photos", "--top", 5, "--out", "strange")
    written = sorted(path.name for path in (place / "strange").iterdir())
    assert len(written) == 6
    with Image.open(place / "strange" / "sheet.png") as sheet:
        assert sheet.size[0] > 600
        assert len(np.unique(np.asarray(sheet.convert("L")))) > 20
    again = run(place, "explain", "models:/digits/1", "photos", "--out", "strange", code=2)
    assert "--overwrite" in again.stderr


def test_pictures_of_a_table_are_refused_and_nothing_is_left(place: Path) -> None:
    pd.DataFrame({"a": range(300), "b": np.random.default_rng(0).normal(size=300)}).to_csv(place / "t.csv", index=False)
    run(place, "train", "t.csv", "--name", "table", "--set", "steps=20", "--set", "companions=[]")
    refused = run(place, "explain", "models:/table/1", "t.csv", "--out", "left", code=2)
    assert "detector of images" in refused.stderr
    assert not (place / "left").exists()


def test_a_labelled_array_is_trained_on_and_evaluated(place: Path) -> None:
    images, digit = digit_images()
    np.savez(place / "labelled.npz", x=images[:400], y=(digit[:400] == 3).astype(int))
    done = run(place, "train", "labelled.npz", "--name", "threes", "--label", "y", *FAST)
    assert "AUROC" in done.stdout
    facts = json.loads(run(place, "evaluate", "models:/threes/1", "labelled.npz", "--label", "y", "--json").stdout)
    assert 0 <= facts["ranking"]["auroc"] <= 1
    assert facts["ranking"]["n_anomalous"] == int((digit[:400] == 3).sum())


def test_a_new_calibration_and_the_facts(place: Path) -> None:
    assert "calibrated anew with 200 rows" in run(place, "calibrate", "models:/digits/1", "photos").stdout
    assert "8 x 8 x 1" in run(place, "info", "models:/digits/1").stdout


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: (p / "empty").mkdir(), "got none"),
        (lambda p: np.save(p / "empty.npy", np.zeros((20, 4), np.float32)), "shape"),
        (lambda p: np.save(p / "empty.npy", np.full((20, 8, 8), 3.0)), r"[0, 1]"),
        (lambda p: np.save(p / "empty.npy", np.zeros((1, 8, 8), np.uint8)), "at least 10"),
    ],
)
def test_bad_sets_are_refused_in_one_line(tmp_path: Path, make, says) -> None:
    make(tmp_path)
    source = "empty.npy" if (tmp_path / "empty.npy").exists() else "empty"
    done = run(tmp_path, "train", source, "--name", "none", *FAST, code=2)
    assert says in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("Error")]) == 1


def test_the_wrong_channels_are_refused(place: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(place / "colour.npy", rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8))
    assert "grey" in run(place, "score", "models:/digits/1", "colour.npy", "none.csv", code=2).stderr
    assert not (place / "none.csv").exists()


@pytest.fixture(scope="module")
def served(image_detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> mlflow.pyfunc.PyFuncModel:
    path = tmp_path_factory.mktemp("flavor") / "model"
    flavor.save_model(image_detector, path)
    return mlflow.pyfunc.load_model(str(path))


def test_served_bytes_base64_and_numbers_score_alike(served, image_detector: Detector) -> None:
    images = digit_images()[0][:6]
    wanted = image_detector.score_frame(frame_of(images))["anomaly_score"].tolist()
    files = [png_of(image) for image in images]
    texts = [base64.b64encode(file).decode() for file in files]
    for sent in (
        pd.DataFrame({"image": files}),
        pd.DataFrame({"image": texts}),
        {"image": texts},
        images,
        images.tolist(),
        (images / 255.0).tolist(),
        pd.DataFrame({"image": [image.tolist() for image in images]}),
    ):
        assert served.predict(sent)["anomaly_score"] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("sent", [pd.DataFrame({"picture": ["x"]}), pd.DataFrame({"image": ["not base64!"]}), [[1, 2]]])
def test_bad_requests_are_the_callers_fault(served, sent) -> None:
    with pytest.raises(mlflow.exceptions.MlflowException) as caught:
        served.predict(sent)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_a_declared_binary_column_serves_bytes(image_detector: Detector, tmp_path: Path) -> None:
    flavor.save_model(image_detector, tmp_path / "declared", declare_inputs=True)
    model = mlflow.pyfunc.load_model(str(tmp_path / "declared"))
    images = digit_images()[0][:3]
    answer = model.predict(pd.DataFrame({"image": [png_of(image) for image in images]}))
    assert answer["anomaly_score"] == pytest.approx(image_detector.score_frame(frame_of(images))["anomaly_score"])
