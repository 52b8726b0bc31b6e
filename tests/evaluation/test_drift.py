"""Columns are compared rightly: known statistics, corrected, and never for a trifle."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2_contingency, ks_2samp

from anomaly_vae import Schema
from anomaly_vae.data.profile import Profile
from anomaly_vae.errors import ShapeError
from anomaly_vae.evaluation.drift import (
    NO_ROWS,
    column_drift,
    holm,
    judge,
    score_level,
    stability_index,
)
from anomaly_vae.evaluation.martingale import Martingale
from anomaly_vae.options import MonitorConfig
from tests.conftest import mixed_frame

CONFIG = MonitorConfig()


@pytest.fixture(scope="module")
def trained() -> tuple[Schema, Profile]:
    frame = mixed_frame(4000)
    schema = Schema.fit(frame)
    return schema, Profile.fit(schema, schema.encode(frame))


def compared(trained, frame: pd.DataFrame, config: MonitorConfig = CONFIG):
    schema, profile = trained
    found = column_drift(profile, profile.of(schema.encode(frame)), config, level=config.level)
    return {c.name: c for c in found}


def test_an_undisturbed_table_is_calm(trained):
    found = compared(trained, mixed_frame(2000, seed=1))
    assert not any(c.drifted or c.missing_drifted for c in found.values())
    assert {c.test for c in found.values()} == {"ks", "chi2"}


def test_statistics_are_scipys(trained):
    fresh = mixed_frame(1500, seed=2)
    fresh["height"] += 1.0
    fresh.loc[:400, "city"] = "Lima"
    found, old = compared(trained, fresh), mixed_frame(4000)
    exact = ks_2samp(old["height"], fresh["height"])
    assert exact.statistic - 0.02 < found["height"].statistic <= exact.statistic + 1e-12, "over fifty places, not all"
    counts = [frame["city"].value_counts().sort_index() for frame in (old, fresh)]
    exact = chi2_contingency(counts, correction=False)
    assert found["city"].statistic == pytest.approx(exact.statistic)
    assert found["city"].p_value == pytest.approx(exact.pvalue)


SHIFTS = {
    "height": lambda f: f.assign(height=f["height"] + 5),
    "visits": lambda f: f.assign(visits=f["visits"] * 2),
    "member": lambda f: f.assign(member=f["member"] | (np.arange(len(f)) % 2 == 0)),
    "city": lambda f: f.assign(city=np.where(np.arange(len(f)) % 4 == 0, "Kyiv", f["city"])),
}


@pytest.mark.parametrize("name", SHIFTS)
def test_a_changed_column_is_found_and_no_other(trained, name):
    found = compared(trained, SHIFTS[name](mixed_frame(1000, seed=3)))
    assert [n for n, c in found.items() if c.drifted] == [name]
    assert name in found[name].sentences[0]


def test_missing_cells_are_a_change_of_their_own(trained):
    frame = mixed_frame(1000, seed=4)
    frame.loc[np.arange(1000) % 5 == 0, "weight"] = np.nan
    found = compared(trained, frame)
    assert [n for n, c in found.items() if c.missing_drifted] == ["weight"]
    assert not found["weight"].drifted
    assert "lacks" in found["weight"].sentences[0]
    gone = compared(trained, frame.assign(height=np.nan))
    assert gone["height"].missing_drifted
    assert not gone["height"].drifted


def test_a_certain_trifle_is_no_alarm():
    """Among a million rows a shift of a fiftieth of a standard deviation is certain, and worth nothing."""
    rng = np.random.default_rng(0)
    before, now = (pd.DataFrame({"x": rng.normal(shift, 1, 10**6)}) for shift in (0.0, 0.02))
    schema = Schema.fit(before)
    profile = Profile.fit(schema, schema.encode(before))
    seen = profile.of(schema.encode(now))
    found = column_drift(profile, seen, CONFIG, level=0.01)[0]
    assert found.corrected < 1e-6
    assert not found.drifted
    assert column_drift(profile, seen, MonitorConfig(least_psi=0.0), level=0.01)[0].drifted


def test_the_index_of_a_third_of_a_standard_deviation(trained):
    """What the documentation calls 0.1."""
    frame = mixed_frame(100_000, seed=5)
    found = compared(trained, frame.assign(height=frame["height"] + 10 / 3))
    assert found["height"].psi == pytest.approx(0.11, abs=0.015)
    assert stability_index([10, 0], [10, 0]) == 0.0
    assert stability_index([10, 0], [0, 10]) > 2


def test_holm_is_holm():
    assert holm([0.02, 0.01, 0.9]).tolist() == pytest.approx([0.04, 0.03, 0.9])
    assert holm([0.5, 0.6]).tolist() == [1.0, 1.0]


def test_the_verdict_is_said_and_can_be_written(trained):
    schema, profile = trained
    seen = profile.of(schema.encode(SHIFTS["height"](mixed_frame(500, seed=6))))
    martingale = Martingale(99, level=score_level(CONFIG, columns=True))
    martingale.update(np.random.default_rng(0).integers(0, 100, 500))
    drift = judge(martingale.evidence(), profile, seen, CONFIG)
    assert drift.alarm
    assert not drift.scores.alarm
    assert any("'height'" in text for text in drift.sentences)
    facts = json.loads(json.dumps(drift.to_dict(), allow_nan=False))
    assert facts["alarm"] is True
    assert len(facts["columns"]) == 5
    assert drift.metrics()["drift_columns"] == 1.0
    alone = judge(martingale.evidence(), profile, None, CONFIG, notes=[NO_ROWS])
    assert not alone.alarm
    assert alone.sentences[-1] == NO_ROWS
    assert score_level(CONFIG, columns=True) == CONFIG.level / 2
    assert score_level(CONFIG, columns=False) == CONFIG.level


def test_other_columns_are_refused(trained):
    _, profile = trained
    with pytest.raises(ShapeError, match="same columns"):
        column_drift(profile, Profile(profile.columns[:2]), CONFIG, level=0.01)


def test_few_rows_are_judged_without_a_false_word(trained):
    """With five rows nothing can be certain; nothing fails either."""
    found = compared(trained, mixed_frame(5, seed=7))
    assert not any(c.drifted or c.missing_drifted for c in found.values())
