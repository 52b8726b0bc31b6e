"""What an attacker would put into a model or a data file: refused in one clear line, nothing run, nothing written."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from anomaly_vae import Detector, ScoreConfig
from anomaly_vae.data.image_source import ImageError, write_errors
from anomaly_vae.data.rows import read_table
from anomaly_vae.detection import artifact
from anomaly_vae.errors import AnomalyVaeError, ArtifactError
from anomaly_vae.serving import flavor, streams, tracking
from anomaly_vae.serving.batch import score_file


class _Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.canary}'",)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that appears if anything is run, in a folder to which nothing else is written."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.txt").write_text("nobody reads this")
    yield folder / "canary"
    assert sorted(p.name for p in folder.iterdir()) == ["secret.txt"]


@pytest.fixture
def model(tmp_path: Path, detector: Detector) -> Path:
    """An MLflow model on disk."""
    flavor.save_model(detector, tmp_path / "model")
    return tmp_path / "model"


def own_files(model: Path) -> Path:
    return model / "data" / "detector"


def refused(model: Path) -> str:
    """Load the model by every way there is, and return the one refusal that they agree on."""
    found = set()
    for load in (
        lambda: Detector.load(own_files(model)),
        lambda: flavor.load_model(str(model)),
        lambda: tracking.load(str(model)),
    ):
        with pytest.raises(ArtifactError) as caught:
            load()
        found.add(str(caught.value))
    assert len(found) == 1
    message = found.pop()
    assert "\n" not in message
    assert message.endswith(".")
    return message


OWN = ("config.json", "model.safetensors", "golden.json")


@pytest.mark.parametrize("name", OWN)
def test_a_pickle_in_the_detectors_files_is_refused(name: str, model: Path, canary: Path) -> None:
    (own_files(model) / name).write_bytes(pickle.dumps(_Payload(canary)))
    assert name in refused(model)


def test_a_pickle_in_any_other_file_is_never_read(model: Path, detector: Detector, canary: Path) -> None:
    others = [p for p in model.rglob("*") if p.is_file() and p.parent != own_files(model)]
    assert {"MLmodel", "requirements.txt", "conda.yaml"} <= {p.name for p in others}
    for path in others:
        path.write_bytes(pickle.dumps(_Payload(canary)))
    for extra in ("python_model.pkl", "model.pkl", "data.pkl", "__init__.py", "conftest.py"):
        (model / extra).write_bytes(pickle.dumps(_Payload(canary)))
        (own_files(model) / extra).write_bytes(pickle.dumps(_Payload(canary)))
    assert flavor.load_model(str(model)).digest == detector.digest


def test_what_mlmodel_names_is_neither_imported_nor_opened(model: Path, detector: Detector, canary: Path) -> None:
    code = f"open({str(canary)!r}, 'w')"
    (model / "code").mkdir()
    (model / "code" / "evil.py").write_text(code)
    (canary.parent.parent / "evil.py").write_text(code)
    text = (model / "MLmodel").read_text()
    for old, new in (
        ("loader_module: anomaly_vae.serving.flavor", "loader_module: evil\n    code: code"),
        ("data: data/detector", "data: ../../outside"),
    ):
        assert old in text
        text = text.replace(old, new)
    (model / "MLmodel").write_text(text)
    assert flavor.load_model(str(model)).digest == detector.digest
    assert tracking.load(str(model)).detector.digest == detector.digest


@pytest.mark.parametrize("target", ["outside/secret.txt", "/etc/passwd", "/dev/zero", "../outside"])
@pytest.mark.parametrize("name", OWN)
def test_a_link_that_leads_outside_is_refused(
    name: str, target: str, model: Path, canary: Path, tmp_path: Path
) -> None:
    path = own_files(model) / name
    path.unlink()
    path.symlink_to(target if target.startswith(("/", "..")) else tmp_path / target)
    assert name in refused(model)
    assert "secret" not in refused(model)


def test_a_copy_through_a_link_is_refused_though_its_digest_is_right(model: Path, tmp_path: Path) -> None:
    shutil.move(own_files(model) / "golden.json", tmp_path / "golden.json")
    (own_files(model) / "golden.json").symlink_to(tmp_path / "golden.json")
    assert "leads out" in refused(model)


def test_a_linked_folder_is_still_a_folder(model: Path, detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(model)
    assert tracking.load(str(tmp_path / "link")).detector.digest == detector.digest


def consistent(folder: Path, change: Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], None]) -> None:
    """Change the files of a detector and make all digests right again, as an attacker can."""
    facts = json.loads((folder / "config.json").read_text())
    golden = json.loads((folder / "golden.json").read_text())
    arrays: dict[str, Any] = load_file(folder / "model.safetensors")
    change(facts, golden, arrays)
    save_file(arrays, folder / "model.safetensors")
    (folder / "golden.json").write_text(json.dumps(golden))
    for name in ("model.safetensors", "golden.json"):
        facts["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    tensors = (folder / "model.safetensors").read_bytes()
    with contextlib.suppress(AttributeError):  # settings that are no settings have no digest
        facts["digest"] = artifact._digest(facts["config"], facts["schema"], tensors)
    (folder / "config.json").write_text(json.dumps(facts))


def _set(part: str, **changes: Any) -> Callable[..., None]:
    return lambda facts, golden, arrays: facts[part].update(changes)


FORGERIES: dict[str, Callable[..., None]] = {
    "a path for a name": lambda f, g, a: (
        f.update(sha256={"../../outside/secret.txt": "0" * 64}) or f["config"].update(k="../x")
    ),
    "layers of terabytes": _set("config", hidden=[10**6, 10**6]),
    "a billion layers' worth": _set("config", hidden=[1] * 10**6),
    "a vast latent": _set("config", latent=10**9),
    "a million samples": lambda f, g, a: g.update(k=10**6) or f["config"].update(k=10**6, calibration_k=[10**6]),
    "a vast golden k": lambda f, g, a: g.update(k=10**9),
    "a million golden rows": lambda f, g, a: g.update(rows=g["rows"] * 10**5, scores=g["scores"] * 10**5),
    "no golden rows": lambda f, g, a: g.update(rows=[], scores=[]),
    "golden rows of text": lambda f, g, a: g.update(rows="x" * 8),
    "nested golden rows": lambda f, g, a: g.update(rows=[{"load": [[]]}], scores=[0.0]),
    "golden scores of NaN": lambda f, g, a: g.update(scores=[float("nan")] * len(g["scores"])),
    "golden scores of text": lambda f, g, a: g.update(scores=["x"] * len(g["scores"])),
    "no golden scores": lambda f, g, a: g.pop("scores"),
    "other shapes": lambda f, g, a: a.update(noise=np.zeros((2, 2, 2), np.float32)),
    "flat noise": lambda f, g, a: a.update(noise=np.zeros(16, np.float32)),
    "calibration of no number": lambda f, g, a: a.update({"calibration.x": np.zeros(3)}),
    "strange tensors": lambda f, g, a: a.update({"model.__class__": np.zeros(3)}),
    "companions of a million classes": lambda f, g, a: a.update({"model.companions.0.log_weights": np.zeros(10**6)}),
    "columns by the million": lambda f, g, a: f["schema"].update(columns=f["schema"]["columns"] * 10**4),
    "an unknown setting": _set("config", loader="os.system"),
    "a setting of another type": _set("config", hidden={"__reduce__": "os.system"}),
    "settings of a list": lambda f, g, a: f.update(config=[1]),
    "a schema of text": lambda f, g, a: f.update(schema="../../../etc/passwd"),
    "a version of text": lambda f, g, a: f.update(format_version="3"),
    "an endless version": lambda f, g, a: f.update(format_version=10**4000),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forgery_with_right_digests_is_refused_cheaply(forgery: str, model: Path, canary: Path) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    consistent(own_files(model), FORGERIES[forgery])
    refused(model)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20, "a GiB was taken"


@pytest.mark.parametrize("content", [b"[" * 200_000, b'{"a":' * 200_000, b"\xff\xfe{}", b"null", b"9" * 10_000])
def test_json_that_is_none_is_refused(content: bytes, model: Path) -> None:
    (own_files(model) / "config.json").write_bytes(content)
    assert "config.json" in refused(model)


@pytest.mark.parametrize("name", ["config.json", "golden.json"])
def test_json_of_gigabytes_is_not_read(name: str, model: Path) -> None:
    with (own_files(model) / name).open("r+b") as file:
        file.truncate(8 << 30)  # a sparse file: nothing is written
    assert "must be under 64 MiB, got 8192 MiB" in refused(model)


def test_tensors_whose_header_lies_are_refused(model: Path) -> None:
    path = own_files(model) / "model.safetensors"
    for content in (b"\xff" * 8 + b"{}", (2**40).to_bytes(8, "little") + b"{}", b"", b"\x02\0\0\0\0\0\0\0{}"):
        path.write_bytes(content)
        consistent_bytes = hashlib.sha256(content).hexdigest()
        facts = json.loads((own_files(model) / "config.json").read_text())
        facts["sha256"]["model.safetensors"] = consistent_bytes
        facts["digest"] = artifact._digest(facts["config"], facts["schema"], content)
        (own_files(model) / "config.json").write_text(json.dumps(facts))
        assert "as it was saved" in refused(model)


def one_line(call: Callable[[], Any], *words: str) -> str:
    """Call what must refuse in one line with these words; return the line."""
    with pytest.raises(AnomalyVaeError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    return message


def test_a_csv_of_a_million_columns_is_refused(tmp_path: Path) -> None:
    names = ",".join(f"c{i}" for i in range(1_000_000))
    (tmp_path / "wide.csv").write_text(f"{names}\n{',' * 999_999}\n")
    assert "at most 20,000 columns, got 1,000,000" in one_line(lambda: read_table(tmp_path / "wide.csv"))
    (tmp_path / "trick.csv").write_text(f'"a\n",{names}\n{"," * 1_000_000}\n')
    assert "at most 20,000 columns" in one_line(lambda: read_table(tmp_path / "trick.csv"))


def test_lines_of_gigabytes_in_a_few_kilobytes_are_refused(tmp_path: Path) -> None:
    block = b"x" * (1 << 20)
    for name, head in (("header.csv.gz", b""), ("line.csv.gz", b"a,b\n1,2\n"), ("quoted.csv.gz", b'a,b\n1,"')):
        with gzip.open(tmp_path / name, "wb") as file:
            file.write(head)
            for _ in range(200):
                file.write(block)
        assert (tmp_path / name).stat().st_size < 1 << 20
        one_line(lambda name=name: read_table(tmp_path / name), name)  # type: ignore[misc]


def test_damaged_gzip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n" * 1000)[:-20])
    assert "'a.csv.gz' must be a readable table" in one_line(lambda: read_table(tmp_path / "a.csv.gz"))


def test_zip_bombs_and_pickles_in_arrays_are_refused(tmp_path: Path, canary: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 8, 8)})
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.getvalue() + b"\0" * (64 << 20))
    assert "bomb.npz" in one_line(lambda: streams.read_images(tmp_path / "bomb.npz"))
    with zipfile.ZipFile(tmp_path / "path.npz", "w") as archive:
        archive.writestr("../outside/canary", b"x")
    assert "path.npz" in one_line(lambda: streams.read_images(tmp_path / "path.npz"))
    np.save(tmp_path / "objects.npy", np.array([_Payload(canary)], dtype=object), allow_pickle=True)
    assert "objects.npy" in one_line(lambda: streams.read_images(tmp_path / "objects.npy"))
    assert not canary.exists()


def test_image_bombs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("1", (30_000, 30_000)).save(tmp_path / "images" / "bomb.png")
    assert (tmp_path / "images" / "bomb.png").stat().st_size < 1 << 20
    one_line(lambda: streams.read_images(tmp_path / "images"), "bomb.png")


FORMULAS = [
    *('=HYPERLINK("http://evil")', "+cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0", "@SUM(1+1)", "\t=1+1", "\r=1+1"),
]


def test_formulas_in_cells_are_text_in_csv_output(detector: Detector, rows: pd.DataFrame, tmp_path: Path) -> None:
    harmless = ["-12.5", "+1e3", "a=b", "", "plain"]
    keys = [*FORMULAS, *harmless]
    table = rows.iloc[: len(keys)].assign(**{"=id": keys})
    table.to_parquet(tmp_path / "in.parquet", index=False)
    for suffix in ("csv", "parquet"):
        config = ScoreConfig(key=("=id",))
        score_file(detector, tmp_path / "in.parquet", tmp_path / f"out.{suffix}", config, schema=detector.schema)
    got = pd.read_csv(tmp_path / "out.csv", dtype=str, keep_default_na=False)
    assert got.columns[0] == "'=id"
    assert got.iloc[:, 0].str.replace("\r", "\n").tolist() == [
        *("'" + text.replace("\r", "\n") for text in FORMULAS), *harmless,
    ]  # fmt: skip
    assert pd.read_parquet(tmp_path / "out.parquet")["=id"].tolist() == keys


def test_formulas_in_names_of_files_are_text_in_the_list_of_errors(tmp_path: Path) -> None:
    write_errors(tmp_path / "errors.csv", [ImageError("=cmd|' /C calc'!A0.png", 0, "@must be read")])
    assert pd.read_csv(tmp_path / "errors.csv").iloc[0].tolist() == ["'=cmd|' /C calc'!A0.png", 0, "'@must be read"]


def test_passwords_stay_out_of_messages_and_records(away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/ada:hunter2@x/mlflow.db?token=hunter2")
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "http://ada:hunter2@127.0.0.1:9/?api_key=hunter2")

    def fail(uri: str) -> str:
        raise OSError("http://ada:hunter2@127.0.0.1:9/api refused")

    monkeypatch.setattr(tracking, "resolve", fail)
    with pytest.raises(ArtifactError) as caught:
        tracking.load("models:/pumps@champion")
    assert "hunter2" not in str(caught.value)
    assert "http://***@127.0.0.1:9" in str(caught.value)
