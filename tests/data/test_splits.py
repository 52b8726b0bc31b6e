"""Splits by time and by group, on their own and as training makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from anomaly_vae import AnomalyDetector, Detector, ImageConfig, TrainConfig, fit_detector
from anomaly_vae.data.images import frame_of
from anomaly_vae.data.splits import split_frame
from anomaly_vae.errors import ConfigError, SchemaError
from tests.conftest import mixed_frame

FRACTIONS = {"calibration": 0.2, "validation": 0.1}
FAST = {"steps": 20, "hidden": (8,), "latent": 2, "companions": ()}


def timed(kind: str, seed: int = 0) -> pd.DataFrame:
    """Rows in no order, with a column of times written in one of several ways."""
    hours = np.random.default_rng(seed).permutation(200)
    when = pd.Timestamp("2026-03-01") + pd.to_timedelta(hours, unit="h")
    column = {
        "timestamps": when,
        "zoned": when.tz_localize("Europe/Oslo", ambiguous="NaT", nonexistent="shift_forward"),
        "text": when.strftime("%Y-%m-%dT%H:%M:%S"),
        "numbers": hours,
        "numerals": hours.astype(str),
    }[kind]
    return mixed_frame(200, seed).assign(when=column, hour=hours)


@pytest.mark.parametrize("kind", ["timestamps", "zoned", "text", "numbers", "numerals"])
def test_the_latest_rows_are_held_out(kind: str) -> None:
    frame = timed(kind)
    split = split_frame(frame, by="when", group=None, fractions=FRACTIONS)
    hours = {name: frame["hour"].to_numpy()[rows] for name, rows in split.items()}
    assert sorted(hours["calibration"]) == list(range(160, 200))
    assert sorted(hours["validation"]) == list(range(140, 160))
    assert sorted(hours["train"]) == list(range(140))


@given(
    groups=st.lists(st.integers(0, 12), min_size=60, max_size=200),
    by=st.booleans(),
    seed=st.integers(0, 100),
)
def test_groups_stay_whole(groups: list[int], by: bool, seed: int) -> None:
    frame = pd.DataFrame({"group": groups, "when": np.random.default_rng(seed).permutation(len(groups))})
    try:
        split = split_frame(frame, by="when" if by else None, group="group", fractions=FRACTIONS, seed=seed)
    except SchemaError:
        assert max(groups.count(group) for group in set(groups)) > 0.2 * len(groups)
        return
    members = [set(frame["group"].iloc[rows]) for rows in split.values()]
    assert sum(map(len, members)) == frame["group"].nunique()  # no group is in two parts
    assert sorted(np.concatenate(list(split.values()))) == list(range(len(frame)))
    for name, fraction in FRACTIONS.items():
        assert 0 < len(split[name]) <= 2 * fraction * len(frame)
    if by:
        ends = frame.groupby("group")["when"].max()
        held, validation, train = members
        assert ends[list(held)].min() > ends[list(validation | train)].max()
        assert ends[list(validation)].min() > ends[list(train)].max()


def test_which_groups_are_held_out_is_drawn_by_the_seed() -> None:
    frame = pd.DataFrame({"group": np.repeat(np.arange(50), 4)})

    def held(seed: int) -> list[int]:
        return split_frame(frame, by=None, group="group", fractions=FRACTIONS, seed=seed)["calibration"].tolist()

    assert held(0) == held(0) != held(1)
    assert len(held(0)) == 40


def test_a_group_that_is_most_of_the_rows_is_never_held_out() -> None:
    frame = pd.DataFrame({"group": ["big"] * 150 + [f"small{i}" for i in range(50)]})
    for seed in range(5):
        split = split_frame(frame, by=None, group="group", fractions=FRACTIONS, seed=seed)
        assert set(range(150)) <= set(split["train"])
    with pytest.raises(SchemaError, match="groups small enough to hold out 20% of the rows for calibration, got 2"):
        split_frame(pd.DataFrame({"group": [0, 1] * 50}), by=None, group="group", fractions=FRACTIONS)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (pd.DataFrame({"a": [1, 2, 3]}), "split_by must name a column of the table, got 'when'"),
        (pd.DataFrame({"when": [1, None, 3]}), "missing cell in row 1"),
        (pd.DataFrame({"when": ["2026-01-01", "soon", "later"]}), "must hold times"),
    ],
)
def test_columns_that_cannot_split_are_refused(frame: pd.DataFrame, said: str) -> None:
    with pytest.raises(SchemaError, match=said):
        split_frame(frame, by="when", group=None, fractions=FRACTIONS)


def test_training_calibrates_on_the_latest_rows_and_leaves_the_column_out(tmp_path: Path) -> None:
    frame = timed("timestamps")
    fit = fit_detector(frame.drop(columns="hour"), TrainConfig(split_by="when", calibration=0.2, **FAST))
    assert sorted(frame["hour"].to_numpy()[fit.split["calibration"]]) == list(range(160, 200))
    assert "when" not in fit.detector.schema.names
    held = frame.iloc[fit.split["calibration"]]
    scores = fit.detector.score_frame(held.drop(columns=["hour", "when"]))  # the column need not be there to score
    assert np.sort(scores["anomaly_score"]).tolist() == fit.detector.calibration.scores[16].tolist()
    fit.detector.score_frame(held.drop(columns="hour"))  # and gives no warning where it is
    fit.detector.save(tmp_path / "saved")
    assert Detector.load(tmp_path / "saved").config.split_by == "when"


def test_training_calibrates_on_whole_groups() -> None:
    frame = mixed_frame(300).assign(machine=[f"m{i % 30}" for i in range(300)])
    fit = fit_detector(frame, TrainConfig(group_by="machine", calibration=0.2, **FAST))
    machines = {name: set(frame["machine"].iloc[rows]) for name, rows in fit.split.items()}
    assert len(machines["calibration"]) == 6
    assert not machines["calibration"] & (machines["train"] | machines["validation"])
    assert "machine" not in fit.detector.schema.names
    other = fit_detector(frame, TrainConfig(group_by="machine", split_by="visits", calibration=0.2, **FAST))
    assert set(other.detector.schema.names) == {"height", "weight", "member", "city"}
    estimator = AnomalyDetector(TrainConfig(group_by="machine", calibration=0.2, **FAST)).fit(frame)
    assert "machine" not in estimator.feature_names_in_
    assert (estimator.predict(frame[:40]) == estimator.predict(frame[:40].drop(columns="machine"))).all()


def test_one_way_to_split_at_a_time() -> None:
    frame = timed("numbers")
    with pytest.raises(ConfigError, match="by keys or by split_by"):
        fit_detector(frame, TrainConfig(split_by="when", **FAST), key=frame["city"])
    with pytest.raises(ConfigError, match="split_by must be the name of a column"):
        TrainConfig(split_by="")


def test_images_are_held_out_by_whole_writers(tmp_path: Path) -> None:
    digits = load_digits()
    frame = frame_of(np.round(digits.images[:400] * 255 / 16).astype(np.uint8))
    writers = frame.assign(writer=[f"w{i // 10}" for i in range(400)])
    fast: dict[str, Any] = {"steps": 60, "latent": 4, "calibration_k": (4,), "calibration": 0.25}
    fit = fit_detector(writers, ImageConfig(group_by="writer", **fast))
    held = {name: set(writers["writer"].iloc[rows]) for name, rows in fit.split.items()}
    assert len(held["calibration"]) == 10
    assert not held["calibration"] & (held["train"] | held["validation"])
    images = frame.iloc[fit.split["calibration"]]  # the column need not be there to score
    scores = fit.detector.score_frame(images)
    assert np.sort(scores["anomaly_score"]).tolist() == fit.detector.calibration.scores[4].tolist()
    pd.testing.assert_frame_equal(fit.detector.score_frame(writers.iloc[fit.split["calibration"]]), scores)
    fit.detector.save(tmp_path / "saved")
    assert Detector.load(tmp_path / "saved").config.group_by == "writer"
    both = writers.assign(digit=digits.target[:400] % 3, day=range(400))
    late = fit_detector(both, ImageConfig(condition="digit", split_by="day", group_by="writer", **fast))
    assert set(both["writer"].iloc[late.split["calibration"]]) == {f"w{i}" for i in range(30, 40)}
    estimator = AnomalyDetector(ImageConfig(group_by="writer", **fast)).fit(writers)
    assert estimator.n_features_in_ == 1
    assert (estimator.predict(writers[:40]) == estimator.predict(frame[:40])).all()
    assert (estimator.predict(digits.images[:40] / 16) == estimator.predict(frame[:40])).all()
    with pytest.raises(SchemaError, match="must come with 'writer' and no other column, got 1 columns: 'image'"):
        fit_detector(frame, ImageConfig(group_by="writer", **fast))
    with pytest.raises(ConfigError, match="condition must be another column than split_by and group_by"):
        ImageConfig(condition="writer", group_by="writer")


@pytest.mark.filterwarnings("ignore::anomaly_vae.errors.TrainingWarning")  # columns that do not depend on each other
def test_a_random_calibration_lies_where_a_later_one_does_not() -> None:
    """Every lot lasts 100 rows, so that a later row is always of a lot that training has not seen."""
    rng = np.random.default_rng(0)
    when = np.arange(3000)
    rows = pd.DataFrame({"when": when, "a": rng.normal(size=3000), "lot": [f"lot{i // 100}" for i in when]})
    past, future = rows.iloc[:2600], rows.iloc[2600:].drop(columns="when")
    alarms = {}
    for split_by in (None, "when"):
        config = TrainConfig(split_by=split_by, columns={"when": "ignored"}, calibration=0.1, **FAST)
        alarms[split_by] = fit_detector(past, config).detector.score_frame(future)["is_anomaly"].mean()
    assert alarms["when"] < 0.1 < 0.9 < alarms[None]
