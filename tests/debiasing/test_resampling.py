"""Weights keep their promises: mean, floor of the effective sample size, caps, guards, class masses."""

from __future__ import annotations

import dataclasses
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_vae.debiasing.density import fit_density
from anomaly_vae.debiasing.neighbours import Isolation, LabelDisagreement
from anomaly_vae.debiasing.resampling import effective_share, weigh
from anomaly_vae.debiasing.strata import Strata
from anomaly_vae.errors import ConfigError, ShapeError
from anomaly_vae.options import ResampleConfig

RNG = np.random.default_rng(0)
PAPER = ResampleConfig(
    density="dbvae", within_class=False, class_mass="kept", ess=None, cap=None, floor=None, guard=0, label_guard=None
)


def classes(*counts: int) -> tuple[Strata, np.ndarray]:
    labels = np.repeat(np.arange(len(counts)), counts)
    strata = Strata.fit(labels)
    return strata, strata.of(labels)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 200),
    ess=st.floats(0.05, 1.0),
    cap=st.floats(1.0, 20.0),
    floor=st.floats(0.0, 1.0),
    spread=st.floats(0.0, 50.0),
    seed=st.integers(0, 99),
)
def test_weights_keep_their_promises_whatever_the_density(n, ess, cap, floor, spread, seed):
    density = spread * np.random.default_rng(seed).normal(size=n)
    report = weigh(density, ResampleConfig(ess=ess, cap=cap, floor=floor)).report
    assert report.ess >= ess * 0.995
    assert report.largest <= cap * 1.001
    assert report.least >= floor * 0.999


def test_the_floor_is_reached_and_weights_fall_with_density():
    density = RNG.normal(size=3000) * 3
    weighing = weigh(density, ResampleConfig())
    assert weighing.weights.mean() == pytest.approx(1.0)
    assert weighing.report.ess == pytest.approx(0.2, abs=0.005)
    assert (np.diff(weighing.weights[np.argsort(density)]) <= 1e-12).all()
    assert effective_share(weighing.weights) == pytest.approx(weighing.report.ess)


def test_a_large_class_is_summed_up_without_harm():
    density = RNG.normal(size=50_000) * 3
    assert weigh(density, ResampleConfig()).report.ess == pytest.approx(0.2, abs=0.003)


def test_guarded_rows_are_never_weighted_up_nor_dropped():
    strata, of = classes(900, 100)
    density = RNG.normal(size=1000)
    flags = np.zeros(1000, dtype=bool)
    flags[np.argsort(density)[:50]] = True
    flags[900:910] = True
    weighing = weigh(density, ResampleConfig(), strata=strata, of=of, guards={"anomaly": flags})
    assert weighing.weights[flags].max() <= 1.0
    assert weighing.weights[flags].min() > 0
    assert weighing.weights.mean() == pytest.approx(1.0)
    (guard,) = weighing.report.guards
    assert guard.rows == flags.sum()
    assert guard.mass_before > 2 * guard.mass_after
    assert guard.mass_after <= guard.share
    assert guard.moved == pytest.approx(guard.mass_before - guard.mass_after)


def test_class_mass_is_a_factor_of_its_own():
    strata, of = classes(700, 300)
    density = RNG.normal(size=1000)
    equal = weigh(density, ResampleConfig(), strata=strata, of=of).report
    assert [c.mass for c in equal.classes] == pytest.approx([0.5, 0.5], abs=1e-6)
    assert [c.factor for c in equal.classes] == pytest.approx([5 / 7, 5 / 3])
    assert equal.class_strength == 1.0
    assert equal.ess == pytest.approx(0.2, abs=0.005)
    kept = weigh(density, ResampleConfig(class_mass="kept"), strata=strata, of=of).report
    assert [c.mass for c in kept.classes] == pytest.approx([0.7, 0.3])
    assert kept.ess_classes == 1.0


def test_a_rare_class_does_not_spend_the_whole_budget():
    strata, of = classes(990, 10)
    report = weigh(RNG.normal(size=1000), ResampleConfig(), strata=strata, of=of).report
    assert report.ess == pytest.approx(0.2, abs=0.01)
    assert 0 < report.class_strength < 1
    assert "classes are balanced with strength" in report.notes[0]
    with pytest.raises(ConfigError, match=r"ess must be at most 0\.0396, what classes of equal mass leave, got 0\.2"):
        weigh(RNG.normal(size=1000), ResampleConfig(class_mass="equal"), strata=strata, of=of)


def test_hard_cases_are_weighed_and_said():
    strata, of = classes(50)
    report = weigh(np.zeros(50), ResampleConfig(), strata=strata, of=of).report
    assert (report.ess, report.largest) == (pytest.approx(1.0), pytest.approx(1.0))
    assert report.notes == ("there is one class, 0: no classes to balance.",)
    assert weigh(np.array([3.0]), ResampleConfig()).weights.tolist() == [1.0]
    all_flagged = weigh(RNG.normal(size=9), ResampleConfig(), guards={"anomaly": np.ones(9, dtype=bool)})
    assert all_flagged.weights.tolist() == [1.0] * 9
    assert "every row is guarded" in all_flagged.report.notes[0]
    strata, of = classes(60, 1)
    density = np.append(RNG.normal(size=60), 0.0)
    one = weigh(density, ResampleConfig(), strata=strata, of=of, guards={"g": of == 1}).report
    assert [c.mass for c in one.classes][1] <= 1 / 61 + 1e-9


def test_infinite_weights_are_capped_or_refused():
    density = np.append(RNG.normal(size=99), -np.inf)
    weighing = weigh(density, ResampleConfig())
    assert weighing.weights[-1] == weighing.weights.max()
    assert weighing.report.notes == ("the density is 0 in 1 rows: they are taken for rarer than all others.",)
    with pytest.raises(ConfigError, match="weights must be finite, got infinite ones in 1 rows"):
        weigh(density, PAPER)
    with pytest.raises(ConfigError, match="log densities must be numbers, got NaN in row 0"):
        weigh(np.array([np.nan]), PAPER)
    with pytest.raises(ShapeError, match="must have one length n >= 1, got 0"):
        weigh(np.array([]), PAPER)


def test_the_published_weights_are_inverse_densities():
    density = RNG.normal(size=100)
    np.testing.assert_allclose(weigh(density, PAPER).weights, np.exp(-density) / np.exp(-density).mean(), rtol=1e-6)


def test_new_rows_are_weighed_like_those_of_the_fit():
    strata, of = classes(700, 300)
    density = RNG.normal(size=1000)
    flags = RNG.random(1000) < 0.05
    weighing = weigh(density, ResampleConfig(), strata=strata, of=of, guards={"anomaly": flags})
    np.testing.assert_allclose(weighing.weigh(density[::3], of[::3], flags[::3]), weighing.weights[::3])


def test_a_report_is_json():
    strata, of = classes(7, 3)
    report = weigh(RNG.normal(size=10), ResampleConfig(), strata=strata, of=of, guards={"g": of == 0}).report
    again = json.loads(json.dumps(report.to_dict()))
    assert again["guards"][0]["moved"] == pytest.approx(report.guards[0].moved)
    assert dataclasses.asdict(report)["rows"] == 10


@pytest.mark.slow
def test_a_million_rows_take_less_than_two_minutes():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 1_000_000)
    points = rng.normal(size=(1_000_000, 16)).astype(np.float32) + labels[:, None]
    strata = Strata.fit(labels)
    start = time.perf_counter()
    density = fit_density(points, ResampleConfig(), strata=strata, of=labels)
    ratio, _ = LabelDisagreement.fit(points, labels).log_ratio(points, labels)
    guards = {"label": ratio > 0.1, "isolated": Isolation.fit(points).flagged(points, 2.0)}
    weighing = weigh(density.own, ResampleConfig(), strata=strata, of=labels, guards=guards)
    assert time.perf_counter() - start < 120
    assert weighing.report.ess == pytest.approx(0.2, abs=0.01)
