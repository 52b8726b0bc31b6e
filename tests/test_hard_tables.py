"""Tables that break detectors: a sensible result or a clear refusal, never a score that is not a number."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from anomaly_vae import AnomalyDetector, TrainConfig, fit_detector
from anomaly_vae.errors import DataWarning, SchemaError

QUICK = TrainConfig(steps=150, hidden=(16,))
RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(200, 3))


def _one_value_rules(share: float) -> pd.DataFrame:
    column = np.where(RNG.random(300) < share, 0.0, RNG.exponential(50.0, 300))
    return pd.DataFrame({"a": column, "b": RNG.normal(size=300)})


TABLES = {
    "ten rows": pd.DataFrame(NORMAL[:10]),
    "ten equal rows": pd.DataFrame(np.ones((10, 3))),
    "more columns than rows": pd.DataFrame(RNG.normal(size=(30, 80))),
    "duplicated rows": pd.DataFrame(np.repeat(NORMAL[:20], 15, axis=0)),
    "two distinct rows": pd.DataFrame(np.repeat([[0.0, 1.5], [2.5, 3.0]], 60, axis=0)),
    "duplicated columns": pd.DataFrame(np.hstack([NORMAL, NORMAL])),
    "one value in 95 % of the cells": _one_value_rules(0.95),
    "one value in all cells but one": _one_value_rules(2.0).assign(a=[1.5] * 299 + [2.0]),
    "scales of 1e-9 and 1e9": pd.DataFrame(NORMAL * [1e-9, 1.0, 1e9]),
    "far from zero": pd.DataFrame(NORMAL + np.array([1e12, 0.0, -1e12])),
    "one absurd cell": pd.DataFrame(np.vstack([NORMAL, [[1e200, 0.0, 0.0]]])),
    "heavy tails": pd.DataFrame(RNG.standard_cauchy((300, 3))),
    "half missing": pd.DataFrame(np.where(RNG.random((200, 3)) < 0.5, np.nan, NORMAL)),
    "whole numbers up to a billion": pd.DataFrame(RNG.integers(0, 10**9, (200, 2))),
    "counts of mostly zero": pd.DataFrame(RNG.poisson(0.02, (300, 3)).astype(int)).assign(x=RNG.normal(size=300)),
}


@pytest.mark.filterwarnings("ignore::anomaly_vae.errors.TrainingWarning", "ignore::anomaly_vae.errors.DataWarning")
@pytest.mark.parametrize("name", TABLES)
def test_scores_are_numbers_and_training_rows_look_normal(name):
    table = TABLES[name].set_axis([f"x{j}" for j in range(TABLES[name].shape[1])], axis=1)
    detector = AnomalyDetector(QUICK, random_state=0).fit(table)
    scores = detector.score_samples(table)
    assert np.isfinite(scores).all()
    assert np.isfinite(detector.offset_)
    assert (detector.predict(table) == -1).mean() <= 0.3
    far = min(table["x0"].max(), 1e100) * 10 + 1e3 * (1 + min(table["x0"].quantile(0.9), 1e100))
    strange = table.iloc[:5].assign(x0=far)
    assert np.isfinite(detector.score_samples(strange)).all()
    if name not in ("heavy tails", "one absurd cell"):  # there a cell of that size is no surprise
        assert np.median(detector.score_samples(strange)) < np.median(scores)


@pytest.mark.filterwarnings("ignore::anomaly_vae.errors.TrainingWarning")
def test_units_do_not_change_the_ranking():
    plain = AnomalyDetector(QUICK, random_state=0).fit(NORMAL).score_samples(NORMAL)
    scaled = NORMAL * [1e-9, 1.0, 1e9]
    again = AnomalyDetector(QUICK, random_state=0).fit(scaled).score_samples(scaled)
    assert np.corrcoef(plain, again)[0, 1] > 0.9999


def test_texts_that_are_mostly_unique_are_left_out_and_alone_are_refused():
    texts = pd.Series([f"customer {i}" for i in range(200)])
    detector = fit_detector(pd.DataFrame({"name": texts, "x": NORMAL[:, 0]}), QUICK).detector
    assert [c.name for c in detector.schema.ignored] == ["name"]
    assert "200 different values in 200 rows" in detector.schema.ignored[0].reason
    with pytest.raises(SchemaError, match=r"must have a column to model, got none .*identifier"):
        fit_detector(pd.DataFrame({"name": texts}), QUICK)


def test_nine_rows_are_refused_and_an_empty_row_is_said():
    with pytest.raises(SchemaError, match="at least 10 rows, got n_samples=9"):
        AnomalyDetector(QUICK).fit(NORMAL[:9])
    detector = AnomalyDetector(QUICK, random_state=0).fit(NORMAL)
    with pytest.warns(DataWarning, match="rows without any observed cell: 1"):
        score = detector.score_samples(np.full((1, 3), np.nan))
    assert np.isfinite(score).all()


def test_a_cell_that_drowns_its_column_is_said():
    with pytest.warns(
        DataWarning, match=r"column 'a': half of its cells lie within 1\.\d+ of each other, the furthest is"
    ):
        fit_detector(pd.DataFrame({"a": [*NORMAL[:, 0], 1e200], "b": [*NORMAL[:, 1], 0.0]}), QUICK)
