"""The scikit-learn facade keeps scikit-learn's promises."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from anomaly_vae import AnomalyDetector, TrainConfig, fit_detector
from anomaly_vae.errors import ConfigError, NotFittedError, SchemaError, TrainingWarning
from tests.conftest import mixed_frame

SMALL = TrainConfig(steps=50, hidden=(8,), calibration_k=(4,), k=4)
BY_BATCH = "stochastic training draws other batches when rows are repeated or reordered"


@parametrize_with_checks(
    [AnomalyDetector(SMALL, random_state=0)],
    expected_failed_checks=lambda e: {"check_sample_weight_equivalence_on_dense_data": BY_BATCH},
)
def test_scikit_learn_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        check(estimator)


def test_signs_and_offset_agree_with_the_detector():
    X = mixed_frame(400)
    clf = AnomalyDetector(SMALL, random_state=0).fit(X)
    fresh = mixed_frame(100, seed=2)
    out = clf.score_frame(fresh)
    np.testing.assert_array_equal(clf.score_samples(fresh), -out["anomaly_score"])
    np.testing.assert_array_equal(clf.decision_function(fresh), clf.score_samples(fresh) - clf.offset_)
    np.testing.assert_array_equal(clf.predict(fresh) == -1, out["is_anomaly"])
    assert clf.offset_ == -clf.detector_.threshold(0.05)
    assert clf.feature_names_in_.tolist() == list(X.columns)


def test_the_same_seed_gives_the_same_scores_and_the_seed_matters():
    X = mixed_frame(200)
    a, b, c = (AnomalyDetector(SMALL, random_state=s).fit(X).score_samples(X) for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_arrays_with_missing_cells_and_pipelines():
    X = np.random.default_rng(0).normal(size=(200, 3))
    X[::7, 1] = np.nan
    clf = make_pipeline(StandardScaler(), AnomalyDetector(SMALL, random_state=0)).fit(X)
    assert np.isfinite(clf.score_samples(X)).all()
    assert set(clone(clf).fit_predict(X)) <= {-1, 1}


def test_a_real_table_is_separated():
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    malignant = (y == 0).to_numpy()
    half = np.flatnonzero(~malignant)[::2]
    clf = AnomalyDetector(TrainConfig(steps=600, calibration_k=(16,)), random_state=0).fit(X.iloc[half])
    rest = np.setdiff1d(np.arange(len(X)), half)
    assert roc_auc_score(malignant[rest], -clf.score_samples(X.iloc[rest])) > 0.9


def test_weights_are_used():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(-3, 1, (200, 1)), rng.normal(3, 1, (200, 1))])
    left = np.repeat([20.0, 1.0], 200)
    clf = AnomalyDetector(TrainConfig(steps=600, hidden=(16,), learning_rate=0.01), random_state=0)
    heavy_left = clone(clf).fit(X, sample_weight=left).score_samples(X)
    heavy_right = clone(clf).fit(X, sample_weight=left[::-1].copy()).score_samples(X)
    assert heavy_left[:200].mean() > heavy_right[:200].mean()
    with pytest.raises(ValueError, match="Negative values"):
        clone(clf).fit(X, sample_weight=-left)


def test_too_few_rows_to_calibrate_falls_back_with_a_warning():
    X = np.random.default_rng(0).normal(size=(30, 2))
    with pytest.warns(TrainingWarning, match="at least 19 calibration rows, got 6.*promises nothing"):
        clf = AnomalyDetector(SMALL, random_state=0).fit(X)
    assert (clf.predict(X) == -1).sum() in (1, 2)


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_too_few_rows_to_train_are_refused(rows):
    with pytest.raises(SchemaError, match=f"must have at least 10 rows, got n_samples={rows}"):
        AnomalyDetector(SMALL).fit(mixed_frame(rows))


@pytest.mark.filterwarnings("ignore::anomaly_vae.errors.TrainingWarning")
def test_one_column_and_a_constant_one():
    X = pd.DataFrame({"a": np.random.default_rng(0).normal(size=100)})
    assert np.isfinite(AnomalyDetector(SMALL).fit(X).score_samples(X)).all()
    constant = X.assign(b=1.0)
    clf = AnomalyDetector(SMALL).fit(constant)
    same, other = clf.score_samples(constant), clf.score_samples(constant.assign(b=2.0))
    assert (same - other > 10).all(), "another value of a constant column is a large surprise"


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="alpha must be a number between 0 and 1"):
        AnomalyDetector(SMALL, alpha=0.0).fit(mixed_frame(50))
    with pytest.raises(NotFittedError):
        raise NotFittedError("fit first")


def test_a_key_splits_by_hash():
    frame = mixed_frame(400)
    fit = fit_detector(frame, SMALL, key=pd.Series(np.arange(400) // 4))
    groups = {name: set(part // 4) for name, part in fit.split.items()}
    assert groups["train"].isdisjoint(groups["calibration"])
    assert groups["train"].isdisjoint(groups["validation"])
