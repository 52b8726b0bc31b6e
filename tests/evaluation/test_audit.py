"""The audit finds what is planted, finds nothing in fair data, and says what it cannot judge."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from anomaly_vae.errors import ConfigError, ShapeError
from anomaly_vae.evaluation.audit import audit
from anomaly_vae.evaluation.coverage import coverage, describe
from anomaly_vae.options import AuditConfig

N = 4000


class Data:
    """A fair data set: p-values uniform and densities alike whatever the group, in three columns."""

    def __init__(self, seed: int = 0, n: int = N) -> None:
        self.rng = np.random.default_rng(seed)
        self.sex = self.rng.choice(["f", "m"], n)
        self.region = self.rng.choice(["north", "south", "east", "west", "isle"], n, p=[0.3, 0.3, 0.2, 0.15, 0.05])
        self.age = self.rng.normal(45, 12, n)
        self.p = self.rng.random(n)
        self.density = self.rng.normal(size=n)
        self.codes = self.rng.normal(size=(n, 4))
        self.normal = self.rng.random(n) < 0.9
        self.p[~self.normal] **= 3

    def flag(self, rows, share: float) -> None:
        """Flag a share of some rows."""
        chosen = np.flatnonzero(rows)
        chosen = chosen[self.rng.random(len(chosen)) < share]
        self.p[chosen] = 0.05 * self.rng.random(len(chosen))

    def audited(self, **options):
        groups = {"sex": self.sex, "region": self.region, "age": self.age}
        frame = pd.DataFrame({"sex": self.sex, "age": self.age})
        given = {"p_values": self.p, "log_density": self.density, "normal": self.normal, "groups": groups}
        return audit(codes=self.codes, frame=frame, **{**given, **options})


def twice_as_often(d):
    d.flag(d.sex == "f", 0.1)
    return "flag_rate", "sex = f"


def a_small_group_four_times_as_often(d):
    d.flag(d.region == "isle", 0.25)
    return "flag_rate", "region = isle"


def a_crossed_pair(d):
    d.flag((d.sex == "f") & (d.region == "east"), 0.2)
    return "flag_rate", "sex x region = f x east"


def an_interval_of_a_number(d):
    d.flag(d.age > np.quantile(d.age, 0.75), 0.15)
    return "flag_rate", "age = "


def false_alarms_alone(d):
    d.flag((d.region == "west") & d.normal, 0.15)
    return "false_alarm_rate", "region = west"


def never_flagged(d):
    d.p[d.region == "south"] = 0.05 + 0.95 * d.rng.random((d.region == "south").sum())
    return "flag_rate", "region = south"


def p_values_of_another_shape(d):
    rows = (d.region == "north") & (d.p > 0.05)
    d.p[rows] = 0.05 + 0.95 * d.rng.beta(0.6, 1.2, rows.sum())
    return "p_values", "region = north"


def one_pair_of_groups(d):
    d.flag(d.region == "east", 0.12)
    d.p[d.region == "north"] = np.maximum(d.p[d.region == "north"], 0.02)
    return "flag_rate", "region = east"


def a_thinner_part(d):
    d.density[d.region == "isle"] -= 1.0
    return "density", "region = isle"


def a_thin_region(d):
    d.codes[:60] += 9
    d.age[:60] = 90 + d.rng.random(60)
    return "thin_region", "age 90"


PLANTED = [
    twice_as_often, a_small_group_four_times_as_often, a_crossed_pair, an_interval_of_a_number, false_alarms_alone,
    never_flagged, p_values_of_another_shape, one_pair_of_groups, a_thinner_part, a_thin_region,
]  # fmt: skip


@pytest.mark.parametrize("plant", PLANTED, ids=lambda f: f.__name__)
def test_what_is_planted_is_found(plant):
    data = Data(seed=1)
    kind, subject = plant(data)
    findings = data.audited().findings
    hits = [f for f in findings if f.kind == kind and f.subject.startswith(subject)]
    assert hits, [f.sentence for f in findings]
    assert hits[0].sentence.endswith(".")


@pytest.mark.slow
def test_fair_data_raise_no_more_than_the_level_allows():
    """With the level for each audit's chance of any finding, 4 of 20 would come once in 60 such tests."""
    found = [Data(seed=100 + seed, n=2000).audited().findings for seed in range(20)]
    assert binom.sf(sum(map(bool, found)) - 1, 20, 0.05) > 0.01, [f.sentence for some in found for f in some]


def test_figures_of_groups_and_pairs():
    data = Data(seed=2)
    data.flag(data.sex == "f", 0.2)
    result = data.audited(groups={"sex": data.sex})
    women, men = result.groups
    flags = data.p <= 0.05
    assert women.rows == (data.sex == "f").sum()
    assert women.share + men.share == pytest.approx(1.0)
    assert women.flag_rate.value == pytest.approx(flags[data.sex == "f"].mean())
    assert women.flag_rate.low < women.flag_rate.value < women.flag_rate.high
    assert women.false_alarm_rate.value == pytest.approx(flags[(data.sex == "f") & data.normal].mean())
    assert women.p_value_distance > men.p_value_distance
    assert women.uniformity < 1e-6
    rate = next(c for c in result.comparisons if c.measure == "flag_rate")
    assert (rate.group, rate.other) == ("f", "m")
    assert rate.ratio.value == pytest.approx(women.flag_rate.value / men.flag_rate.value)
    assert rate.difference.low < rate.difference.value < rate.difference.high
    assert rate.corrected >= rate.p_value
    gap = next(g for g in result.gaps if g.measure == "flag_rate")
    assert gap.difference == pytest.approx(women.flag_rate.value - men.flag_rate.value)
    assert gap.ratio == pytest.approx(men.flag_rate.value / women.flag_rate.value)
    assert any("sex = f is flagged in" in f.sentence for f in result.findings)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["rows"] == N


def test_what_is_too_small_to_judge_is_said():
    data = Data(seed=3)
    group = np.where(np.arange(N) < 20, "few", "many")
    data.p[:20] = 0.01
    result = data.audited(groups={"g": group})
    assert result.notes == ("groups of fewer than 50 rows are not judged: g = few (20).",)
    assert not [f for f in result.findings if f.subject == "g = few"]
    assert [row.judged for row in result.groups] == [False, True]


def test_the_calibration_rows_count_as_chance_too():
    p = np.clip(np.random.default_rng(0).random(20_000) * 0.97, 0, 1)
    strict, lenient = (
        audit(p_values=p, groups={"g": ["a"] * 20_000}, calibration_rows=rows).groups[0].uniformity
        for rows in (None, 500)
    )
    assert strict < 0.01 < lenient


def test_missing_cells_are_a_group_and_an_empty_column_is_refused():
    data = Data(seed=4, n=300)
    group = pd.Series(["a", None] * 150)
    assert [row.group for row in data.audited(groups={"g": group}).groups] == ["(missing)", "a"]
    with pytest.raises(ConfigError, match="a group column must have values, got none in 'g'"):
        data.audited(groups={"g": [None] * 300})
    with pytest.raises(ShapeError, match="group column 'g' must have 300 rows, got 2"):
        data.audited(groups={"g": ["a", "b"]})


def test_nothing_to_audit_is_refused():
    with pytest.raises(ConfigError, match="an audit must have codes, or groups and p-values"):
        audit()
    with pytest.raises(ConfigError, match="p-values must be from 0 to 1"):
        audit(p_values=[np.nan, 0.5], groups={"g": ["a", "b"]})
    with pytest.raises(ShapeError, match=r"p-values must have shape \(n,\)"):
        audit(p_values=np.zeros((2, 2)), groups={"g": ["a", "b"]})


def test_coverage_of_equal_and_of_unequal_cells():
    rng = np.random.default_rng(0)
    centres = 20 * rng.normal(size=(5, 3))
    config = AuditConfig(cells=5)
    even = coverage(np.repeat(centres, 100, axis=0) + rng.normal(size=(500, 3)), config)
    assert even.evenness == pytest.approx(1.0)
    assert even.thin == 0
    counts = [200, 200, 200, 200, 20]
    uneven = coverage(np.repeat(centres, counts, axis=0) + rng.normal(size=(820, 3)), config)
    assert uneven.evenness < 0.95
    assert uneven.thin == 1
    assert uneven.rarest[0].rows == 20
    assert all(800 <= i < 820 for i in uneven.rarest[0].examples)
    alike = coverage(np.zeros((9, 2)), config)
    assert (alike.cells, alike.evenness) == (1, 1.0)


def test_regions_are_described_in_the_tables_own_columns():
    frame = pd.DataFrame(
        {
            "age": np.r_[np.arange(20, 60).repeat(5), np.full(20, 85)],
            "city": ["Oslo", "Rome"] * 100 + ["Lima"] * 20,
            "noise": np.random.default_rng(0).random(220),
        }
    )
    text = describe(frame, np.arange(220) >= 200)
    assert text.startswith("age 85 to 85 (else 23.9 to 55.1)")
    assert "city = Lima (100 % of it, else 0 %)" in text
    assert "noise" not in text
    assert describe(frame, np.ones(220, dtype=bool)) == "all rows"
