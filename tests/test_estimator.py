"""The scikit-learn facade keeps scikit-learn's promises."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import NotFittedError as SklearnNotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from anomaly_vae import AnomalyDetector, TrainConfig, fit_detector
from anomaly_vae.errors import CalibrationError, ConfigError, NotFittedError, SchemaError, TrainingWarning
from anomaly_vae.pyod_facade import PyODFacade
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
    config = TrainConfig(steps=600, hidden=(16,), learning_rate=0.01, continuous="gaussian")
    clf = AnomalyDetector(config, random_state=0)
    heavy_left = clone(clf).fit(X, sample_weight=left).score_samples(X)
    heavy_right = clone(clf).fit(X, sample_weight=left[::-1].copy()).score_samples(X)
    assert heavy_left[:200].mean() > heavy_right[:200].mean()
    with pytest.raises(ValueError, match="Negative values"):
        clone(clf).fit(X, sample_weight=-left)


def test_too_few_rows_to_calibrate_falls_back_with_a_warning():
    X = np.random.default_rng(0).normal(size=(30, 2))
    with pytest.warns(TrainingWarning, match="at least 19 calibration rows, got 3.*promises nothing"):
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


def test_pyod_facade_turns_the_sign_and_keeps_the_flags():
    X, fresh = mixed_frame(400), mixed_frame(100, seed=2)
    clf = AnomalyDetector(SMALL, random_state=0).fit(X)
    facade = clf.as_pyod(X)
    assert facade.estimator_ is clf
    np.testing.assert_array_equal(facade.decision_function(fresh), -clf.score_samples(fresh))
    np.testing.assert_array_equal(facade.decision_scores_, -clf.score_samples(X))
    assert facade.threshold_ == clf.detector_.threshold(0.05)
    np.testing.assert_array_equal(facade.labels_, clf.predict(X) == -1)
    np.testing.assert_array_equal(facade.predict(fresh), clf.score_frame(fresh)["is_anomaly"])
    conformal = facade.predict_proba(fresh, method="conformal")
    np.testing.assert_array_equal(conformal[:, 1], 1 - clf.score_frame(fresh)["p_value"])
    again = AnomalyDetector(SMALL, random_state=0).as_pyod().fit(X)
    np.testing.assert_array_equal(again.decision_scores_, facade.decision_scores_)


def test_pyod_facade_fits_a_copy_and_is_cloned_like_an_estimator():
    X = mixed_frame(100)
    original = AnomalyDetector(SMALL, random_state=0)
    facade = original.as_pyod(contamination=0.1)
    np.testing.assert_array_equal(clone(facade).fit_predict(X), facade.fit(X).labels_)
    assert not hasattr(original, "detector_")
    assert facade.labels_.sum() == 10
    assert facade.get_params(deep=False) == {"estimator": original, "contamination": 0.1}


@pytest.mark.parametrize("contamination", [0.07, 0.5])
def test_pyod_facade_agrees_with_pyod(contamination):
    """PyOD's own base class, given the same scores, is the oracle of all that is derived from them."""
    base = pytest.importorskip("pyod.models.base")

    class Same(base.BaseDetector):
        def __init__(self, facade):
            super().__init__(contamination=contamination)
            self.facade = facade

        def fit(self, X, y=None):
            self._set_n_classes(y)
            self.decision_scores_ = self.facade.decision_scores_
            return self._process_decision_scores()

        def decision_function(self, X):
            return self.facade.decision_function(X)

    X, fresh = mixed_frame(200), mixed_frame(100, seed=2)
    facade = AnomalyDetector(SMALL, random_state=0).as_pyod(contamination=contamination).fit(X)
    oracle = Same(facade).fit(X)
    assert facade.threshold_ == pytest.approx(oracle.threshold_, rel=1e-12)
    np.testing.assert_array_equal(facade.labels_, oracle.labels_)
    for ours, theirs in zip(facade.predict(fresh, True), oracle.predict(fresh, True), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    for method in ("linear", "unify"):
        ours, confidence = facade.predict_proba(fresh, method, return_confidence=True)
        np.testing.assert_allclose(ours, oracle.predict_proba(fresh, method), atol=1e-12)
        np.testing.assert_array_equal(confidence, facade.predict_confidence(fresh))


def test_pyod_shares_are_probabilities_of_two_classes():
    X, fresh = mixed_frame(200), mixed_frame(50, seed=2)
    facade = AnomalyDetector(SMALL, random_state=0).as_pyod().fit(X)
    for method in ("linear", "unify", "conformal"):
        shares = facade.predict_proba(fresh, method)
        assert shares.shape == (50, 2)
        assert ((shares >= 0) & (shares <= 1)).all()
        np.testing.assert_allclose(shares.sum(1), 1)
    with pytest.raises(ConfigError, match="method must be one of linear, unify, conformal, got 'softmax'"):
        facade.predict_proba(fresh, "softmax")


def test_pyod_facade_says_what_it_needs():
    X = mixed_frame(200)
    unfitted = AnomalyDetector(SMALL, random_state=0)
    with pytest.raises(NotFittedError, match=r"Use as_pyod\(\).fit\(X\)"):
        unfitted.as_pyod(X)
    with pytest.raises(SklearnNotFittedError):
        unfitted.as_pyod().predict(X)
    for wrong in (0.0, 0.6, "auto", True):
        with pytest.raises(ConfigError, match=r"contamination must be a share in \(0, 0.5\] or None"):
            PyODFacade(unfitted, contamination=wrong)
    clf = clone(unfitted).fit(X)
    with pytest.raises(ConfigError, match="contamination must come with the training rows"):
        clf.as_pyod(contamination=0.1)
    without_rows = clf.as_pyod()
    assert set(without_rows.predict(X)) == {0, 1}
    assert not hasattr(without_rows, "labels_")
    for ask in (without_rows.predict_proba, without_rows.predict_confidence):
        with pytest.raises(NotFittedError, match="Give the rows"):
            ask(X)


@pytest.mark.filterwarnings("ignore::anomaly_vae.errors.TrainingWarning")
def test_pyod_shares_cannot_be_conformal_without_calibration():
    X = mixed_frame(50)
    uncalibrated = TrainConfig(steps=20, hidden=(8,), calibration_k=(4,), k=4, calibration=0.0)
    facade = AnomalyDetector(uncalibrated, random_state=0).as_pyod().fit(X)
    assert 1 <= facade.labels_.sum() <= 5
    with pytest.raises(CalibrationError, match="calibration rows to give p-values, got none"):
        facade.predict_proba(X, "conformal")
