"""The verbs of debiasing as their users meet them: files, lines, exit codes, and what happens to bad input."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.shell import run
from tests.test_cli import FAST

MODEL = "models:/pumps@champion"


def make_rows(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    load = rng.normal(100, 20, n)
    frame = pd.DataFrame({"load": load, "heat": 0.3 * load + rng.normal(0, 1, n)})
    frame["site"] = rng.choice(["Oslo", "Rome", "Bern"], n)
    frame["serial"] = [f"{i:06d}" for i in range(n)]
    frame["team"] = rng.choice(["a", "b"], n)
    frame["fault"] = np.where(np.arange(n) % 8 == 0, "leak", "none")
    return frame


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and one registered model."""
    folder = tmp_path_factory.mktemp("debias")
    make_rows(400, 0)[["load", "heat", "site"]].to_csv(folder / "train.csv", index=False)
    make_rows(200, 1).to_csv(folder / "rows.csv", index=False)
    run(folder, "train", "train.csv", "--name", "pumps", *FAST)
    return folder


def test_a_table_is_rebalanced_registered_and_further_rows_weighed(folder: Path) -> None:
    before = hashlib.sha256((folder / "rows.csv").read_bytes()).hexdigest()
    words = ["resample", MODEL, "rows.csv", "out.parquet", "--label", "fault", "--mode", "oversample", "--size", 500]
    done = run(folder, *words, "--name", "pumps-weights")
    assert done.stdout.splitlines()[-1] == "models:/pumps-weights/1"
    assert "200 rows weighed" in done.stdout
    assert "leak 12.5% ->" in done.stdout
    assert "keep it where the data may be" in done.stdout
    out = pd.read_parquet(folder / "out.parquet")
    assert list(out.columns) == ["load", "heat", "site", "serial", "team", "fault"]
    assert len(out) == 500
    assert set(out.serial) == {f"{i:06d}" for i in range(200)}
    run(folder, "weigh", "models:/pumps-weights@champion", "rows.csv", "weighed.csv")
    weights = pd.read_parquet(folder / "out.parquet.weights.parquet")
    np.testing.assert_allclose(pd.read_csv(folder / "weighed.csv").weight, weights.weight, rtol=1e-4)
    assert hashlib.sha256((folder / "rows.csv").read_bytes()).hexdigest() == before


def test_json_says_the_same(folder: Path) -> None:
    facts = json.loads(run(folder, "resample", MODEL, "rows.csv", "facts.parquet", "--json").stdout)
    assert facts["report"]["ess"] == pytest.approx(0.2, abs=0.01)
    assert facts["uri"] is None
    weights = pd.read_parquet(folder / facts["path"]).sample_weight
    assert weights.mean() == pytest.approx(1)


def test_settings_may_be_switched_off(folder: Path) -> None:
    words = [
        "--isolation-guard",
        "none",
        "--label-guard",
        "none",
        "--guard",
        0,
        "--no-within-class",
        "--label",
        "fault",
    ]
    facts = json.loads(run(folder, "resample", MODEL, "rows.csv", "off.parquet", *words, "--json").stdout)
    assert facts["report"]["guards"] == []
    assert facts["report"]["settings"]["within_class"] is False


def test_its_own_output_and_existing_ones_are_refused(folder: Path) -> None:
    done = run(folder, "resample", MODEL, "rows.csv", "once.csv", "--mode", "thin", "--space", "joint")
    assert "Distances count by how far rare rows stand out in them: latent " in done.stdout
    again = run(folder, "resample", MODEL, "rows.csv", "once.csv", code=2)
    assert "Use --overwrite to replace it" in again.stderr
    twice = run(folder, "resample", MODEL, "once.csv", "twice.csv", code=2)
    assert "the input must not be the output of a resampling" in twice.stderr
    assert not (folder / "twice.csv").exists()
    run(folder, "resample", MODEL, "rows.csv", "once.csv", "--overwrite")


@pytest.mark.parametrize(
    ("change", "words", "line"),
    [
        (lambda t: t.assign(fault="none"), ["--label", "fault"], "there is one class, none: no classes to balance"),
        (
            lambda t: t.assign(fault=np.where(np.arange(200) == 3, "once", "none")),
            ["--label", "fault"],
            "class once: 1 row has no neighbours; its rows have equal weights",
        ),
        (lambda t: t.assign(load=1.0, heat=1.0, site="Oslo"), [], "no coordinate varies; its rows have equal weights"),
        (lambda t: t, ["--ess", 0.9, "--cap", 1], "effective sample size 100% of the rows"),
    ],
)
def test_hard_data_are_weighed_and_said(folder: Path, tmp_path: Path, change, words, line) -> None:
    change(make_rows(200, 1)).to_csv(folder / "hard.csv", index=False)
    done = run(folder, "resample", MODEL, "hard.csv", "hard.parquet", *words, "--overwrite")
    assert line in done.stdout
    assert np.isfinite(pd.read_parquet(folder / "hard.parquet").sample_weight).all()


@pytest.mark.parametrize(
    ("change", "words", "line"),
    [
        (
            lambda t: t.assign(fault=t.fault.where(np.arange(200) > 4)),
            ["--label", "fault"],
            "labels must be there for each row, got 5 missing of 200",
        ),
        (lambda t: t.assign(fault=None), ["--label", "fault"], "got 200 missing of 200"),
        (lambda t: t, ["--label", "falt"], "the label must be a column of the table, got 'falt'"),
        (
            lambda t: t,
            ["--label", "fault", "--class-mass", "equal", "--ess", 0.9],
            "ess must be at most 0.438, what classes of equal mass leave, got 0.9",
        ),
        (
            lambda t: t,
            ["--density", "dbvae", "--smoothing-alpha", 0, "--cap", "none", "--ess", "none", "--bins", 2],
            None,
        ),
        (lambda t: t, ["--mode", "oversample", "--size", 10], "size must be at least 200"),
        (lambda t: t, ["--mode", "twice"], "mode must be one of weights, oversample, subsample, thin, got 'twice'"),
        (lambda t: t, ["--ess", 2], "ess must be a share of the rows above 0 and at most 1"),
        (lambda t: t, ["--name", "pumps"], "a resampler's name must be another than its detector's"),
        (lambda t: t.drop(columns="heat"), [], "column 'heat' absent"),
    ],
)
def test_what_cannot_be_is_one_line(folder: Path, change, words, line) -> None:
    change(make_rows(200, 1)).to_csv(folder / "bad.csv", index=False)
    before = (folder / "bad.csv").read_bytes()
    if line is None:  # a cap may be absent as long as no density is 0
        run(folder, "resample", MODEL, "bad.csv", "fine.parquet", *words)
    else:
        done = run(folder, "resample", MODEL, "bad.csv", "bad.parquet", *words, code=2)
        assert line in done.stderr
        assert done.stderr.splitlines()[0].startswith("Error: ")
        assert not list(folder.glob("bad.parquet*"))
    assert (folder / "bad.csv").read_bytes() == before
