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
