"""The check of promises measures what it says."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"
QUICK = ["--set", "steps=100", "--set", "hidden=[16]", "--seeds", "1"]


@pytest.fixture
def promises(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(PIPELINES)
    return importlib.import_module("promises")


def test_one_cell_of_each_row_is_moved_far(promises: ModuleType) -> None:
    rng = np.random.default_rng(0)
    rows, scale = rng.normal(size=(200, 4)), np.array([1.0, 0.0, 10.0, 0.1])
    moved, columns = promises.plant(rows, scale, rng)
    steps = (moved - rows) / np.where(scale > 0, scale, 1.0)
    assert (np.count_nonzero(steps, axis=1) == 1).all()
    assert set(columns) == {0, 2, 3}, "a constant column has no standard deviation to move by"
    sizes = np.abs(steps[np.arange(200), columns])
    assert sizes.min() >= 5.0 - 1e-9
    assert sizes.max() <= 10.0 + 1e-9


def test_the_law_of_false_alarms(promises: ModuleType) -> None:
    """With 99 calibration rows and alpha .05, 5 of the 100 ranks are flagged: a mean of 5 %."""
    alarms = promises.Alarms(alpha=0.05, flagged=5, fresh=100, calibration=99)
    assert alarms.law.mean() == pytest.approx(5.0)
    assert alarms.inside
    assert not promises.Alarms(alpha=0.05, flagged=30, fresh=100, calibration=99).inside


def test_the_figures_are_shown_and_written(promises: ModuleType, tmp_path: Path) -> None:
    done = CliRunner().invoke(promises.main, [*QUICK, "--markdown", str(tmp_path / "p.md")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "p.md").read_text(encoding="utf-8")
    assert "| breast_cancer | 19 | too few rows |" in text
    gap = next(line for line in text.splitlines() if line.startswith("| reasons sum"))
    assert float(gap.split("within ")[1].split(",")[0]) < 1e-5


def test_a_bad_setting_is_one_line(promises: ModuleType) -> None:
    done = CliRunner().invoke(promises.main, ["--set", "stepz=1"])
    assert done.exit_code == 1
    assert "stepz" in done.output
    assert "Traceback" not in done.output
