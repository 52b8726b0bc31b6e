"""Images with their classes through the shell, the registry and the served model."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anomaly_vae import Detector
from anomaly_vae.data.images import png_of
from anomaly_vae.errors import SchemaError
from anomaly_vae.options import ServeConfig
from anomaly_vae.serving import flavor, payload, streams, tracking
from anomaly_vae.serving.service import Service
from anomaly_vae.serving.tally import Tally
from tests.conftest import digit_images
from tests.shell import run

FAST = ["--set", "steps=60", "--set", "channels=16", "--set", "latent=4", "--set", "calibration_k=[1, 4]"]
MODEL = "models:/digits/1"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Zeros and ones in sub-folders, and a model that is told them; today's images are also of classes unknown."""
    folder = tmp_path_factory.mktemp("told")
    images, digit = digit_images()
    chosen = np.flatnonzero(digit < 2)
    for day, some in (("photos", chosen[:200]), ("today", chosen[200:240])):
        for i in some:
            (folder / day / str(digit[i])).mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[i]).save(folder / day / str(digit[i]) / f"{i}.png")
    (folder / "today" / "9").mkdir()
    for name in ("9/nine.png", "none.png"):
        Image.fromarray(images[9]).save(folder / "today" / name)
    done = run(folder, "train", "photos", "--name", "digits", "--condition", "digit", *FAST)
    assert done.stdout.strip().splitlines()[-1] == MODEL
    assert "images of 8 x 8 given one of 2 classes" in done.stdout
    return folder


@pytest.fixture(scope="module")
def detector(place: Path) -> Detector:
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{place / 'mlruns' / 'mlflow.db'}")
    try:
        return tracking.load(MODEL).detector
    finally:
        mlflow.set_tracking_uri(before)


def test_classes_that_were_not_trained_on_are_set_aside(place: Path) -> None:
    done = run(place, "score", MODEL, "today", "scored.parquet")
    assert len(pd.read_parquet(place / "scored.parquet")) == 40
    errors = pd.read_csv(place / "scored.parquet.errors.csv")
    assert errors["file"].tolist() == ["9/nine.png", "none.png"]
    assert errors["reason"].str.contains("must be of a class that the model was trained on").all()
    assert "2 images could not be read or scored" in done.stderr


def test_a_job_of_parts_is_told_classes_too(place: Path) -> None:
    run(place, "score", MODEL, "today", "whole.parquet")
    run(place, "score", MODEL, "today", "job/", "--on-error", "quarantine")
    whole, parts = (
        pd.read_parquet(place / "whole.parquet"),
        pd.read_parquet(place / "job" / "images-00000.parquet"),
    )
    assert (parts.set_index("file")["anomaly_score"] == whole.set_index("file")["anomaly_score"]).all()


def test_folders_arrays_and_parquet_score_alike(place: Path) -> None:
    images, digit = digit_images()
    chosen = np.flatnonzero(digit < 2)[:30]
    np.savez(place / "set.npz", x=images[chosen], digit=digit[chosen])
    cells = [png_of(image) for image in images[chosen]]
    pd.DataFrame({"image": cells, "digit": digit[chosen].astype(str), "part": range(30)}).to_parquet(
        place / "p.parquet"
    )
    for source, out in (("set.npz", "a.parquet"), ("p.parquet", "b.parquet"), ("photos", "c.parquet")):
        run(place, "score", MODEL, source, out)
    a, b, c = (pd.read_parquet(place / name)["anomaly_score"] for name in ("a.parquet", "b.parquet", "c.parquet"))
    files = pd.read_parquet(place / "c.parquet")["file"].map(lambda name: int(Path(name).stem))
    assert (a == b).all()
    assert (pd.Series(c.to_numpy(), index=files).loc[chosen].to_numpy() == a).all()
    np.save(place / "bare.npy", images[chosen])
    refused = run(place, "score", MODEL, "bare.npy", "none.parquet", code=2)
    assert "images of a model that is told 'digit' must come with it" in refused.stderr


def test_a_parquet_file_has_room_for_labels_beside_the_classes(place: Path, tmp_path: Path) -> None:
    images, digit = digit_images()
    cells = pd.DataFrame({"image": [png_of(image) for image in images[:12]], "digit": digit[:12], "bad": [0, 1] * 6})
    cells.to_parquet(tmp_path / "both.parquet")
    read = streams.read_images(tmp_path / "both.parquet", label="bad", beside=["digit"])
    assert read.frame.columns.tolist() == ["image", "digit", "bad"]
    with pytest.raises(SchemaError, match="only a Parquet file has several"):
        streams.read_images(place / "photos", label="bad", beside=["digit"])
    cells.assign(digit=digit[:12] % 2).to_parquet(tmp_path / "both.parquet")
    found = json.loads(run(place, "evaluate", MODEL, tmp_path / "both.parquet", "--label", "bad", "--json").stdout)
    assert found["ranking"]["n_anomalous"] == 6


def test_a_class_is_drawn_by_its_name(place: Path, detector: Detector) -> None:
    run(place, "generate", MODEL, "ones.parquet", "--class", 1, "--rows", 20)
    drawn = pd.read_parquet(place / "ones.parquet")
    assert drawn["digit"].tolist() == ["1"] * 20
    assert drawn.equals(detector.sample(20, given="1"))
    run(place, "generate", MODEL, "ones.png", "--class", 1, "--rows", 4, "--expected")
    with Image.open(place / "ones.png") as picture:
        assert picture.size[0] > 100
    assert "got '7'" in run(place, "generate", MODEL, "sevens.png", "--class", 7, code=2).stderr
    assert not (place / "sevens.png").exists()


def test_codes_are_shown_for_a_class(place: Path) -> None:
    run(place, "latent", MODEL, "manifold.parquet", "--what", "manifold", "--size", 3, "--class", "0")
    assert set(pd.read_parquet(place / "manifold.parquet")["digit"]) == {"0"}
    refused = run(place, "latent", MODEL, "other.parquet", "--what", "manifold", code=2)
    assert "--class" in refused.stderr
    run(place, "generate", MODEL, "same.parquet", "--what", "reconstruct", "--data", "photos", "--rows", 5)
    assert set(pd.read_parquet(place / "same.parquet")) == {"image", "digit"}


def test_pages_pictures_and_groups(place: Path) -> None:
    run(place, "explain", MODEL, "photos", "--top", 2, "--out", "strange")
    run(place, "report", MODEL, "--data", "photos", "--group", "digit", "--out", "report.html")
    assert "digit" in run(place, "audit", MODEL, "photos", "--group", "digit", "--no-log").stdout
    run(place, "calibrate", MODEL, "photos", "--group", "digit")
    scored = run(place, "score", "models:/digits/2", "photos", "grouped.parquet", "--group", "digit")
    assert "200 rows scored" in scored.stdout
    assert pd.read_parquet(place / "grouped.parquet")["threshold"].nunique() == 2


def test_what_is_not_told_classes_says_so(place: Path) -> None:
    run(place, "train", "photos", "--name", "all", *FAST)
    refused = run(place, "generate", "models:/all/1", "more.png", "--class", 1, code=2)
    assert "trained with --condition" in refused.stderr
    pd.DataFrame({"a": range(30), "b": range(30)}).to_csv(place / "t.csv", index=False)
    refused = run(place, "train", "t.csv", "--name", "table", "--condition", "b", code=2)
    assert "must be of images, got a table" in refused.stderr


def test_served_with_the_class_as_one_more_column(detector: Detector, tmp_path: Path) -> None:
    flavor.save_model(detector, tmp_path / "model")
    served = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    images, digit = digit_images()
    images, digit = images[:2], digit[:2]
    frame = pd.DataFrame({"image": [png_of(image) for image in images], "digit": digit})
    wanted = detector.score_frame(frame)["anomaly_score"].tolist()
    texts = [base64.b64encode(file).decode() for file in frame["image"]]
    for sent in (
        frame,
        frame.assign(digit=["0", "1"]),
        {"image": texts, "digit": [0, 1]},
        frame.assign(image=[image.tolist() for image in images]),
    ):
        assert served.predict(sent)["anomaly_score"] == pytest.approx(wanted, rel=1e-9)
    records = [{"image": text, "digit": int(d)} for text, d in zip(texts, digit, strict=True)]
    for body in (
        {"dataframe_records": records},
        {"dataframe_split": {"columns": ["digit", "image"], "data": [[r["digit"], r["image"]] for r in records]}},
        {"inputs": {"image": texts, "digit": ["0", "1"]}},
    ):
        read, _ = payload.read(json.dumps(body).encode(), payload.JSON, detector.schema, max_rows=10)
        assert (detector.encode(read) == detector.encode(frame)).all()
    for bad in ({"image": texts}, images.tolist(), frame.assign(digit=["0", "5"])):
        with pytest.raises(mlflow.exceptions.MlflowException) as caught:
            served.predict(bad)
        assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_the_service_answers_images_with_their_classes_and_refuses_those_without(
    detector: Detector, tmp_path: Path
) -> None:
    service = Service(lambda: (detector, MODEL), ServeConfig(), Tally(tmp_path))

    async def answered(*records: dict[str, str], **params: float) -> tuple[int, dict[str, Any]]:
        sent: list[Any] = []
        scope = {"type": "http", "method": "POST", "path": "/invocations"}
        body = json.dumps({"dataframe_records": records, "params": params}).encode()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            sent.append(message)

        await service({**scope, "headers": [(b"content-type", b"application/json")]}, receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"])

    async def conversation() -> list[tuple[int, dict[str, Any]]]:
        await service.start()  # which asks it for its golden rows, as a request
        found = [await answered(record) for record in (good, {"image": good["image"]}, {**good, "digit": "5"})]
        found.append(await answered(*[good] * 21, mc_se=0.5))
        service.stop()
        return found

    image = digit_images()[0][0]
    good = {"image": base64.b64encode(png_of(image)).decode(), "digit": "0"}
    (status, answer), bare, unknown, many = asyncio.run(conversation())
    wanted = detector.score_frame(pd.DataFrame([good]))["anomaly_score"]
    assert status == 200
    assert answer["predictions"]["anomaly_score"] == wanted.tolist()
    assert bare[0] == unknown[0] == many[0] == 400
    assert "mc_se must be asked for at most 20 rows, got 21" in many[1]["message"]
    assert "must come with the column 'digit'" in bare[1]["message"]
    assert "got '5'" in unknown[1]["message"]


def test_the_signature_can_declare_both_columns(detector: Detector) -> None:
    declared = flavor.signature(detector.schema, declare_inputs=True)
    assert declared.inputs.input_names() == ["image", "digit"]
