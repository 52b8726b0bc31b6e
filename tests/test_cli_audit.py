"""Audits and thresholds by group, through the shell: planted unfairness is found, fair data are left in peace."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from anomaly_vae.cli import main
from tests.conftest import digit_images
from tests.shell import run
from tests.test_cli import FAST

MODEL = "models:/pumps@champion"


def make_rows(n: int, seed: int, *, hotter: float = 0.0) -> pd.DataFrame:
    """Rows of two teams; those of team b vary more by a factor, if one is given."""
    rng = np.random.default_rng(seed)
    load, team = rng.normal(100, 20, n), rng.choice(["a", "b"], n, p=[0.7, 0.3])
    spread = np.where(team == "b", 1 + hotter, 1.0)
    frame = pd.DataFrame({"load": load, "heat": 0.3 * load + spread * rng.normal(0, 1, n)})
    return frame.assign(team=team, plant=rng.integers(0, 3, n), failed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and one registered model, calibrated with as many rows as an audit needs."""
    folder = tmp_path_factory.mktemp("audit")
    make_rows(600, 0)[["load", "heat"]].to_csv(folder / "train.csv", index=False)
    make_rows(2000, 1)[["load", "heat"]].to_csv(folder / "normal.csv", index=False)
    make_rows(1500, 2).to_csv(folder / "fair.csv", index=False)
    make_rows(1500, 3, hotter=3.0).to_csv(folder / "unfair.csv", index=False)
    make_rows(2000, 4, hotter=3.0).to_csv(folder / "october.csv", index=False)
    run(folder, "train", "train.csv", "--name", "pumps", *FAST)
    run(folder, "calibrate", "models:/pumps/1", "normal.csv")
    return folder


def test_planted_unfairness_is_said_in_a_sentence(folder: Path) -> None:
    words = ["audit", "models:/pumps/2", "unfair.csv", "--group", "team", "--group", "plant", "--out", "audit.json"]
    done = run(folder, *words)
    assert "Found: team = a is flagged in" in done.stdout or "Found: team = b is flagged in" in done.stdout
    assert "times as often" in done.stdout
    facts = json.loads((folder / "audit.json").read_text())
    assert facts["model"] == "models:/pumps/2"
    rates = {row["group"]: row["flag_rate"]["value"] for row in facts["groups"] if row["column"] == "team"}
    assert rates["b"] > 2 * rates["a"]
    assert not [f for f in facts["findings"] if f["subject"].startswith("plant =")]
    assert "Use --overwrite" in run(folder, *words, code=2).stderr


def test_an_audit_is_a_page_too(folder: Path) -> None:
    words = ["audit", "models:/pumps/2", "unfair.csv", "--group", "team", "--out", "page.html"]
    done = run(folder, *words)
    text, twin = (folder / "page.html").read_text(), json.loads((folder / "page.json").read_text())
    assert "Written to page.html" in done.stdout
    found = {one["key"]: one for one in twin["sections"]}["audit"]
    assert found["figures"][0]["title"] == "team: flagged"
    rates = {row["label"]: row["value"] for row in found["figures"][0]["data"]["rows"]}
    assert rates["b"] > 2 * rates["a"]
    assert found["tables"][0]["rows"][0][0] in text
    assert "Use --overwrite" in run(folder, *words, code=2).stderr


def test_fair_data_are_left_in_peace(folder: Path) -> None:
    done = run(folder, "audit", "models:/pumps/2", "fair.csv", "--group", "team", "--group", "plant")
    assert "Nothing was found that chance would not bring about in 5% of audits" in done.stdout


def test_without_groups_it_is_about_coverage(folder: Path) -> None:
    frame = make_rows(1000, 5)
    frame.loc[:24, ["load", "heat"]] += [400.0, 120.0]
    frame.to_parquet(folder / "thin.parquet")
    facts = json.loads(run(folder, "audit", "models:/pumps/2", "thin.parquet", "--cells", 8, "--json").stdout)
    assert facts["coverage"]["cells"] == 8
    assert facts["groups"] == []
    thin = [f["sentence"] for f in facts["findings"] if f["kind"] == "thin_region"]
    assert thin
    assert "load" in thin[0]


def test_labels_tell_false_alarms_from_true_ones(folder: Path) -> None:
    frame = make_rows(1500, 6)
    frame.loc[:99, ["heat", "failed", "team"]] = [90.0, 1, "b"]
    frame.to_csv(folder / "labelled.csv", index=False)
    words = ["audit", "models:/pumps/2", "labelled.csv", "--group", "team", "--label", "failed", "--json"]
    facts = json.loads(run(folder, *words).stdout)
    rows = {row["group"]: row for row in facts["groups"]}
    assert rows["b"]["flag_rate"]["value"] > 0.15
    assert rows["b"]["false_alarm_rate"]["value"] < 0.1
    assert {f["kind"] for f in facts["findings"]} >= {"flag_rate"}
    assert "false_alarm_rate" not in {f["kind"] for f in facts["findings"]}


@pytest.mark.whole
def test_images_are_named_by_their_files(tmp_path: Path) -> None:
    images, digit = digit_images()
    np.savez(tmp_path / "digits.npz", images=images[:400], label=digit[:400] % 2)
    run(tmp_path, "train", "digits.npz", "--name", "digits", "--set", "steps=60", "--set", "latent=4")
    done = run(tmp_path, "audit", "models:/digits/1", "digits.npz", "--cells", 5, "--group", "label")
    assert "400 rows audited" in done.stdout
    assert "such as" in done.stdout
    assert "label = 0: " in done.stdout


def test_thresholds_by_group_keep_the_promise_in_each(folder: Path) -> None:
    done = run(folder, "calibrate", "models:/pumps/1", "october.csv", "--group", "team")
    uri = done.stdout.splitlines()[-1]
    assert "  team = b: " in done.stdout
    words = ["score", uri, "unfair.csv"]
    run(folder, *words, "alike.parquet")
    run(folder, *words, "within.parquet", "--group", "team")
    team = pd.read_csv(folder / "unfair.csv").team
    rates = {
        name: pd.read_parquet(folder / f"{name}.parquet").is_anomaly.groupby(team.to_numpy()).mean()
        for name in ("alike", "within")
    }
    assert rates["alike"]["b"] > 2 * rates["alike"]["a"]
    assert abs(rates["within"]["b"] - 0.05) < 0.03
    assert abs(rates["within"]["a"] - 0.05) < 0.03
    within = json.loads(run(folder, "audit", uri, "unfair.csv", "--group", "team", "--by", "team", "--json").stdout)
    assert "flag_rate" not in {f["kind"] for f in within["findings"]}
    run(folder, *words, "fdr.parquet", "--group", "team", "--fdr", 0.2)
    scored = pd.read_parquet(folder / "fdr.parquet")
    assert scored.threshold.isna().all()
    assert scored.is_anomaly.sum() < len(scored) / 10


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["audit", "models:/pumps/2", "fair.csv", "--group", "taem"], "must be in the table, got 'taem'"),
        (["audit", "models:/pumps/2", "null.csv", "--group", "team"], "a group column must have values, got none"),
        (
            ["audit", "models:/pumps/2", "fair.csv", "--out", "audit.txt"],
            "must end in one of .json, .html, got",
        ),
        (["audit", "models:/pumps/2", "fair.csv", "--level", 2], "level must be a number between 0 and 1"),
        (["audit", "models:/none/1", "fair.csv", "--group", "team"], "must have at least 19 calibration rows"),
        (["score", "models:/pumps/2", "fair.csv", "x.csv", "--group", "team"], "a group must be one with calibration"),
        (["score", "models:/pumps/2", "fair.csv", "x.csv", "--group", "taem"], "a group must be a column of the table"),
        (["calibrate", "models:/pumps/2", "fair.csv", "--group", "taem"], "a group must be a column of the table"),
        (["calibrate", "models:/pumps/2", "null.csv", "--group", "team"], "a group column must have values, got none"),
    ],
)
def test_what_cannot_be_is_one_line(folder: Path, words: list[object], line: str) -> None:
    make_rows(100, 9).assign(team=None).to_csv(folder / "null.csv", index=False)
    if "models:/none/1" in words:
        run(folder, "train", "train.csv", "--name", "none", *FAST, "--set", "calibration=0")
    done = run(folder, *words, code=2)
    assert line in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert not (folder / "x.csv").exists()


def test_help_of_the_options_names_what_is_off() -> None:
    text = CliRunner().invoke(main, ["resample", "--help"]).output
    assert "none" in text.lower()
    assert "--no-within-class" in text
