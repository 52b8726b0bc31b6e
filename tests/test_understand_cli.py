"""The verbs that show what a model is, as their users meet them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.shell import run
from tests.test_cli import make_rows

COMPARED = ["--models", "pca,vae", "--steps", 20, "--set", "hidden=[8]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, images and one registered model."""
    folder = tmp_path_factory.mktemp("understand")
    make_rows(400, 0).to_csv(folder / "train.csv", index=False)
    make_rows(200, 1).to_csv(folder / "fresh.csv", index=False)
    rng = np.random.default_rng(0)
    numbers = pd.DataFrame(rng.normal(size=(200, 2)) @ rng.normal(size=(2, 4)), columns=list("abcd"))
    numbers.assign(bad=np.arange(200) % 20 == 0).to_csv(folder / "numbers.csv", index=False)
    return folder


def test_compare_prints_a_table_and_writes_it(folder: Path) -> None:
    words = ["compare", "numbers.csv", "--label", "bad", *COMPARED, "--out", "compared"]
    said = run(folder, *words).stdout
    assert "rows of 4 columns" in said
    assert "AUROC" in said
    assert "No density" in said
    facts = json.loads((folder / "compared" / "comparison.json").read_text())
    assert [rung["name"] for rung in facts["rungs"]] == ["pca", "vae"]
    table = pd.read_csv(folder / "compared" / "comparison.csv")
    assert table["parameters"].tolist() == [rung["figures"]["parameters"] for rung in facts["rungs"]]
    assert "--overwrite" in run(folder, *words, code=2).stderr
    again = json.loads(run(folder, *words, "--overwrite", "--json").stdout)
    assert again["rungs"][0]["figures"]["auroc"] == facts["rungs"][0]["figures"]["auroc"]


def test_compare_of_images_with_classes(folder: Path) -> None:
    words = ["compare", "sklearn:digits", "--classes", "digit", "--models", "pca,linear_autoencoder", "--rows", 200]
    facts = json.loads(run(folder, *words, "--json").stdout)
    assert facts["data"] == "images of 8 x 8"
    assert facts["rungs"][1]["figures"]["principal_angle"] < 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", "numbers.csv", "--models", "pac"], "models must be all or some of"),
        (["compare", "numbers.csv", "--label", "a"], "label column"),
        (["compare", "numbers.csv", "--classes", "bda"], "Did you mean 'bad'?"),
        (["compare", "absent.csv"], "absent.csv"),
        (["compare", "sklearn:digits", "--label", "a", "--classes", "b"], "got --label and --classes"),
        (["compare", "two.csv"], "at least 20 normal rows, got 2"),
    ],
)
def test_a_callers_mistake_is_one_message(folder: Path, words: list[str], said: str) -> None:
    (folder / "two.csv").write_text("a,b\n1.5,2.5\n2.5,1.5\n")
    done = run(folder, *words, code=2)
    assert said in done.stderr
    assert done.stdout == ""


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """The folder, with a model of the table and one of digits."""
    fast = ["--set", "steps=100", "--set", "hidden=[16]", "--set", "latent=2", "--drop", "serial"]
    run(folder, "train", "train.csv", "--name", "pumps", "--label", "failed", *fast)
    small = ["--set", "steps=60", "--set", "latent=4", "--set", "channels=16", "--set", "calibration_k=[1,4]"]
    run(folder, "train", "sklearn:digits", "--name", "digits", *small)
    gaps = make_rows(60, 5).drop(columns=["failed", "serial"])
    gaps.loc[::3, "heat"] = np.nan
    gaps.to_csv(folder / "gaps.csv", index=False)
    gaps.head(2).to_csv(folder / "two.csv", index=False)
    return folder


def made(folder: Path, verb: str, output: str, *words: object) -> dict:
    return json.loads(run(folder, verb, words[0], output, *words[1:], "--json", "--overwrite").stdout)


def test_generate_rows_of_a_table(trained: Path) -> None:
    facts = made(trained, "generate", "drawn.parquet", "models:/pumps/1", "--rows", 30)
    drawn = pd.read_parquet(trained / "drawn.parquet")
    assert facts["rows"] == len(drawn) == 30
    assert list(drawn.columns) == ["load", "heat", "site"]
    facts = made(trained, "generate", "filled.csv", "models:/pumps/1", "--what", "impute", "--data", "gaps.csv")
    filled = pd.read_csv(trained / "filled.csv")
    assert facts["filled"] == 20
    assert not filled.isna().any(axis=None)
    between = made(trained, "generate", "b.parquet", "models:/pumps/1", "--what", "interpolate", "--data", "gaps.csv",
                   "--rows", 3, "--steps", 4)  # fmt: skip
    assert between["rows"] == 10
    assert pd.read_parquet(trained / "b.parquet")["step"].tolist() == [0, 1, 2, 3, 4] * 2
    words = ["models:/pumps/1", "--data", "train.csv", "--what"]
    moved = made(trained, "generate", "a.parquet", *words, "attribute", "--attribute", "failed", "--rows", 5)
    assert moved["rows"] == 5
    assert 0.5 <= moved["separated"] <= 1
    of_class = made(
        trained, "generate", "c.parquet", *words, "sample", "--label", "site", "--class", "Oslo", "--rows", 9
    )
    assert of_class["rows"] == 9
    assert made(trained, "generate", "d.parquet", *words, "denoise", "--rows", 7)["rows"] == 7


def test_latent_of_a_table(trained: Path) -> None:
    words = ["models:/pumps/1", "--data", "fresh.csv", "--what"]
    made(trained, "latent", "codes.csv", *words, "codes")
    assert list(pd.read_csv(trained / "codes.csv").columns) == ["z0", "z1", "sd0", "sd1"]
    assert len(made(trained, "latent", "k.parquet", *words, "clusters", "--clusters", 3)["sizes"]) == 3
    assert set(pd.read_parquet(trained / "k.parquet")["cluster"]) == {0, 1, 2}
    made(trained, "latent", "map.png", *words, "map", "--label", "site")
    made(trained, "latent", "map.parquet", *words, "map")
    assert (trained / "map.png").read_bytes().startswith(b"\x89PNG")
    assert {"x", "y", "anomaly_score"} <= set(pd.read_parquet(trained / "map.parquet"))
    rate = made(trained, "latent", "packed.bin", *words, "compress")
    assert rate["bytes"] == (trained / "packed.bin").stat().st_size
    back = made(trained, "generate", "back.parquet", "models:/pumps/1", "--what", "decompress", "--data", "packed.bin")
    assert back["rows"] == 200
    assert (
        "of a table must be written as"
        in run(trained, "latent", "models:/pumps/1", "m.png", "--what", "manifold", code=2).stderr
    )


def test_scorecard_is_printed_and_written(trained: Path) -> None:
    small = ["--rows", 60, "--k", 4, "--likelihood-rows", 20, "--paths", 4]
    words = ["scorecard", "models:/pumps/1", "train.csv", "--classes", "site", "--factor", "load", *small]
    said = run(trained, *words, "--out", "card.json").stdout
    assert all(
        word in said for word in ("Fréchet", "independent columns", "MIG", "bound of 4 samples", "perplexity site")
    )
    facts = json.loads((trained / "card.json").read_text())
    assert facts["model"] == "models:/pumps/1"
    assert facts["factors"]["dimension"].keys() == {"load"}
    assert "--overwrite" in run(trained, *words, "--out", "card.json", code=2).stderr
    digits = run(
        trained, "scorecard", "models:/digits/1", "sklearn:digits", "--classes", "digit", *small, "--json"
    ).stdout
    assert json.loads(digits)["samples"][1]["modes"]["count"] == 10
    assert "at least 60 rows" in run(trained, "scorecard", "models:/pumps/1", "two.csv", code=2).stderr
    assert "absent" in run(trained, "scorecard", "models:/pumps/1", "numbers.csv", code=2).stderr


def test_pictures_of_images(trained: Path) -> None:
    uri = "models:/digits/1"
    for verb, words in (
        ("generate", ["--rows", 10]),
        ("generate", ["--what", "reconstruct", "--data", "sklearn:digits", "--rows", 14]),
        ("generate", ["--what", "sample", "--data", "sklearn:digits", "--label", "digit", "--class", 7, "--rows", 6]),
        ("latent", ["--what", "manifold", "--size", 4]),
        ("latent", ["--what", "traversals", "--steps", 3]),
        ("latent", ["--what", "map", "--data", "sklearn:digits", "--label", "digit"]),
    ):
        made(trained, verb, "picture.png", uri, *words)
        assert (trained / "picture.png").read_bytes().startswith(b"\x89PNG")
    made(trained, "generate", "drawn.parquet", uri, "--rows", 3)
    assert pd.read_parquet(trained / "drawn.parquet").iloc[0, 0].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate", "models:/pumps/1", "o.xls"], "o.xls"),
        (["generate", "models:/pumps/1", "o.png"], "of a table must be written"),
        (["generate", "models:/digits/1", "o.csv"], "written as .png or .parquet"),
        (["generate", "models:/pumps/1", "o.csv", "--what", "impute"], "Give --data"),
        (["generate", "models:/pumps/1", "o.csv", "--what", "dream"], "what must be one of"),
        (["generate", "models:/pumps/1", "o.csv", "--rows", "0"], "rows must be"),
        (["generate", "models:/pumps/1", "o.csv", "--what", "attribute", "--data", "fresh.csv"], "--attribute"),
        (["generate", "models:/pumps/1", "o.csv", "--what", "denoise", "--data", "numbers.csv"], "absent"),
        (["generate", "models:/pumps/1", "o.csv", "--data", "fresh.csv", "--class", "x"], "Give --label"),
        (["generate", "models:/pumps/1", "o.csv", "--data", "fresh.csv", "--class", "x", "--label", "site"], "'Oslo'"),
        (["generate", "models:/pumps/1", "o.csv", "--what", "decompress", "--data", "fresh.csv"], "compressing wrote"),
        (["generate", "models:/digits/1", "o.png", "--what", "impute", "--data", "sklearn:digits"], "images"),
        (["latent", "models:/pumps/1", "o.png"], "Give --data"),
        (["latent", "models:/pumps/1", "o.png", "--data", "fresh.csv", "--label", "sites"], "'sites'"),
        (["latent", "models:/pumps/1", "gaps.csv", "--data", "fresh.csv", "--what", "codes"], "--overwrite"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(trained: Path, words: list[str], said: str) -> None:
    done = run(trained, *words, code=2)
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) < 12
    assert not list(trained.glob("o.*"))
