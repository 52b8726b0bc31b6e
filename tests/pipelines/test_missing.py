"""Planted anomalies are what they say, gaps betray no label, and the command reports what it measured."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from anomaly_vae.errors import UnreadableDataError

pytestmark = pytest.mark.whole
PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(PIPELINES)
    return SimpleNamespace(**{name: importlib.import_module(name) for name in ("adult", "missing")})


def census(n: int, seed: int = 0) -> pd.DataFrame:
    """Made-up rows in the columns of Adult, the label last."""
    rng = np.random.default_rng(seed)
    sex = rng.choice(["Male", "Female"], n)
    wed = rng.random(n) < 0.5
    years = rng.integers(1, 17, n)
    gain = np.where(rng.random(n) < 0.1, 5000, 0)
    frame = pd.DataFrame(
        {
            "age": rng.integers(21, 65, n),
            "workclass": rng.choice(["Private", "State-gov", "?"], n, p=[0.7, 0.2, 0.1]),
            "fnlwgt": rng.integers(20_000, 400_000, n),
            "education": [["HS-grad", "Bachelors", "Doctorate"][min(y // 6, 2)] for y in years],
            "education-num": years,
            "marital": np.where(wed, "Married-civ-spouse", rng.choice(["Never-married", "Divorced"], n)),
            "occupation": rng.choice(["Sales", "Craft-repair", "Adm-clerical"], n),
            "relationship": np.where(wed, np.where(sex == "Male", "Husband", "Wife"), "Not-in-family"),
            "race": rng.choice(["White", "Black"], n),
            "sex": sex,
            "gain": gain,
            "loss": 0 * gain + 7 * (gain > 0),
            "hours": rng.integers(20, 60, n),
            "country": rng.choice(["United-States", "Mexico"], n),
            "income": "<=50K",
        }
    )
    return frame


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "adult"
    folder.mkdir()
    census(600).to_csv(folder / "adult.data", header=False, index=False)
    text = census(500, 1).to_csv(header=False, index=False)
    (folder / "adult.test").write_text(f"|1x3 Cross validator\n{text}")
    return folder


def call(jobs: SimpleNamespace, *words: object) -> Result:
    return CliRunner().invoke(jobs.missing.main, [str(word) for word in words], env={"COLUMNS": "200"})


def test_both_files_are_read_without_the_label(jobs: SimpleNamespace, folder: Path) -> None:
    table = jobs.adult.load(folder)
    assert table.shape == (1100, 14)
    assert tuple(table.columns) == jobs.adult.COLUMNS
    assert table["workclass"].isna().mean() == pytest.approx(0.1, abs=0.03)
    (folder / "adult.test").write_text("1,2\n")
    with pytest.raises(UnreadableDataError, match="must have 15 columns, got 2"):
        jobs.adult.load(folder)


@pytest.mark.parametrize("spared", [None, "occupation", "sex"])
def test_the_cells_that_tell_are_those_that_changed(jobs: SimpleNamespace, folder: Path, spared: str | None) -> None:
    frame = jobs.adult.load(folder).iloc[:400]
    for kind, plant in jobs.adult.PLANTS.items():
        got = plant(frame, np.random.default_rng(3), spared=spared)
        changed = (got.frame.to_numpy(dtype=object) != frame.to_numpy(dtype=object)) & frame.notna().to_numpy()
        assert not (changed & ~got.cells).any(), kind
        assert got.frame.dtypes.equals(frame.dtypes)
        assert got.cells.any(1).all()
        assert not got.cells[:, frame.columns.get_loc("fnlwgt")].any()
        if spared:
            assert not got.cells[:, frame.columns.get_loc(spared)].any()
        if kind == "swapped cells":
            assert set(got.cells.sum(1)) == {2, 3}
            np.testing.assert_array_equal(changed, got.cells)
            assert all(set(got.frame[c].dropna()) <= set(frame[c].dropna()) for c in frame)
        if kind == "out of range":
            beyond = [(got.frame[c] > frame[c].max()) | (got.frame[c] < 0) for c in frame.select_dtypes("number")]
            assert np.any(beyond, axis=0).all()


def test_gaps_say_nothing_of_the_label(jobs: SimpleNamespace, folder: Path) -> None:
    rows = jobs.missing.divided(jobs.adult.load(folder), 0, rows=100, normal=400, planted=200)
    parts = [rows.train, rows.normal, *rows.fresh.values()]
    assert [len(part) for part in parts] == [100, 400, 200, 200, 200]
    assert len(pd.concat(parts).drop_duplicates()) == 1100
    frames = jobs.missing.scored_frames(rows, jobs.missing.Pattern("", 0, 0.3), 0)
    shares = {kind: frame.isna().to_numpy().mean() for kind, frame in frames.items()}
    assert shares[""] == pytest.approx(np.mean([shares[kind] for kind in jobs.adult.PLANTS]), abs=0.02)
    gone = jobs.missing.scored_frames(rows, jobs.missing.Pattern("", 0, 0, "occupation"), 0)
    assert all(frame["occupation"].isna().all() for frame in gone.values())


def test_the_command_prints_and_writes_what_it_found(jobs: SimpleNamespace, folder: Path, tmp_path: Path) -> None:
    words = ["--rows", 300, "--normal", 150, "--planted", 40, "--seeds", 1, "--out", tmp_path / "out"]
    settings = ["--set", "steps=30", "--set", "hidden=[16]", "--set", "calibration_k=[1]", "--set", "k=1"]
    done = call(jobs, "--data", folder, *words, *settings, "--markdown", tmp_path / "report.md")
    assert done.exit_code == 0, done.output
    results = pd.read_parquet(tmp_path / "out" / "results.parquet")
    ranking = results[results.part == "ranking"]
    assert len(ranking) == 6 * 4 * 4 * 2, "patterns, kinds and all together, detectors, figures"
    assert ranking["value"].between(0, 1).all()
    assert results[(results.part == "unseen") & (results.metric == "finite")]["value"].eq(1).all()
    assert results[results.part == "imputation"]["value"].notna().all()
    text = (tmp_path / "report.md").read_text()
    for title in ("AUROC", "Average precision", "Hidden cells guessed", "never seen", "Normal rows flagged"):
        assert f"## {title}" in text or title in text
    assert "no charge" in text
    assert list(dict.fromkeys(ranking.pattern)) == [p.name for p in jobs.missing.PATTERNS]


def test_without_the_table_it_says_so_and_ends_well(jobs: SimpleNamespace, tmp_path: Path) -> None:
    for words in ([], ["--data", tmp_path]):
        done = call(jobs, *words)
        assert done.exit_code == 0
        assert done.output.startswith("Skipped: adult.data and adult.test of the census table Adult are not ")


def test_bad_settings_and_too_few_rows_are_the_callers_mistake(jobs: SimpleNamespace, folder: Path) -> None:
    assert "Did you mean 'latent'" in call(jobs, "--data", folder, "--set", "latnet=3").output
    done = call(jobs, "--data", folder, "--rows", 5000)
    assert done.exit_code == 2
    assert "must fit into 1,100 rows" in done.output
