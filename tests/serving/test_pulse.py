"""A worker follows its own answers, and whoever is asked tells the largest of all workers' evidence."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import pytest

from anomaly_vae import Detector
from anomaly_vae.detection.calibration import Calibration
from anomaly_vae.serving.flavor import columns_of
from anomaly_vae.serving.lane import answer_of
from anomaly_vae.serving.pulse import AT_ONCE, Pulse
from anomaly_vae.serving.tally import Tally

from .conftest import make_rows


def metric(tally: Tally, name: str) -> float:
    found = re.search(rf"^anomaly_vae_{name} (\S+)$", tally.text({}), re.MULTILINE)
    assert found
    return float(found[1])


def test_quiet_answers_are_quiet_and_hot_ones_are_not(detector: Detector) -> None:
    quiet, hot = make_rows(300, seed=21), make_rows(300, seed=22)
    hot["heat"] += 20
    pulse = Pulse(detector)
    for start in range(0, 300, 10):
        part = answer_of(columns_of(detector.score_frame(quiet.iloc[start : start + 10])))[3]
        assert len(part) == 10
        assert pulse.add(part) == (start + 10 >= AT_ONCE)
    assert pulse.read()[1] == 0.0
    pulse.add(columns_of(detector.score_frame(hot))["p_value"])
    log_capital, alarms = pulse.read()
    assert alarms > 0
    assert log_capital < np.log(100)
    assert pulse.read() == (log_capital, alarms), "asking changes nothing"


def test_answers_at_another_k_do_not_count(detector: Detector, rows) -> None:
    columns = columns_of(detector.score_frame(rows.head(3), k=1))
    assert answer_of(columns, watched=False)[3] == []


def test_without_calibration_there_is_no_pulse(detector: Detector) -> None:
    pulse = Pulse(dataclasses.replace(detector, calibration=Calibration({})))
    pulse.add([])
    assert pulse.read() == (0.0, 0.0)


def test_workers_alarms_add_up_and_the_largest_evidence_stands(tmp_path: Path) -> None:
    tally = Tally(tmp_path)
    tally.set("drift_log_capital", 1.5)
    tally.set("drift_alarms_total", 2)
    other = np.zeros(len(tally.counts))
    twin = Tally()
    twin.set("drift_log_capital", 3.25)
    twin.set("drift_alarms_total", 1)
    other[:] = twin.counts
    other.tofile(tmp_path / f"{os.getppid()}.counts")
    assert metric(tally, "drift_log_capital") == pytest.approx(3.25)
    assert metric(tally, "drift_alarms_total") == 3.0
    (tmp_path / f"{os.getppid()}.counts").rename(tmp_path / "999999999.counts")
    assert metric(tally, "drift_log_capital") == pytest.approx(1.5), "a dead worker's evidence is of the past"
    assert metric(tally, "drift_alarms_total") == 3.0
