"""The resampler: what goes in comes out, rebalanced; nothing that was given is changed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from anomaly_vae import TrainConfig
from anomaly_vae.errors import AnomalyVaeError, NotFittedError
from anomaly_vae.estimator import AnomalyDetector
from anomaly_vae.options import ImageConfig, ResampleConfig
from anomaly_vae.resampler import LatentDensityResampler
from tests.conftest import digit_images, mixed_frame

FAST = TrainConfig(steps=150, hidden=(16,), companions=(), learning_rate=0.01)


@pytest.fixture(scope="module")
def labelled() -> tuple[pd.DataFrame, pd.Series]:
    frame = mixed_frame(400)
    frame.index = [f"row {i}" for i in range(400)]
    return frame, pd.Series(np.where(frame.member, "yes", "no"), index=frame.index, name="answer")


def test_a_frame_comes_back_with_its_index(detector, labelled):
    X, y = labelled
    before = X.copy()
    resampler = LatentDensityResampler(detector)
    X_new, y_new = resampler.fit_resample(X, y)
    pd.testing.assert_frame_equal(X, before)
    assert len(X_new) == 800
    assert set(X_new.index) == set(X.index)
    assert (X_new.index == y_new.index).all()
    pd.testing.assert_frame_equal(X_new, X.iloc[resampler.sample_indices_])
    assert resampler.report_.mode == "oversample"
    assert resampler.report_.rows_out == 800
    assert resampler.report_.ess >= 0.198
    assert {g.name for g in resampler.report_.guards} == {"anomaly", "isolated", "label"}
    assert resampler.report_.facts["detector"] == detector.digest


def test_rows_of_the_fit_are_weighed_as_then(detector, labelled):
    X, y = labelled
    resampler = LatentDensityResampler(detector).fit(X, y)
    assert resampler.weights_.mean() == pytest.approx(1.0)
    np.testing.assert_allclose(resampler.sample_weight(X, y), resampler.weights_, rtol=1e-4)
    np.testing.assert_allclose(resampler.sample_weight(X[::9], y[::9]), resampler.weights_[::9], rtol=1e-4)
    new = resampler.sample_weight(mixed_frame(50, seed=3), ["yes"] * 50)
    assert np.isfinite(new).all()
    assert (new > 0).all()


def test_the_same_seed_gives_the_same_rows(labelled):
    X, y = labelled
    first, second, other = (
        LatentDensityResampler(random_state=s, train_config=FAST).fit(X, y).weights_ for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_arrays_lists_and_targets_of_all_kinds():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    resampler = LatentDensityResampler(train_config=FAST, config=ResampleConfig(mode="subsample", size=50))
    X_new, y_new = resampler.fit_resample(X, rng.normal(size=200))
    assert X_new.shape == (50, 3)
    assert y_new.shape == (50,)
    assert len(resampler.report_.classes) == 10
    assert len(resampler.fit_resample(X)) == 50
    assert resampler.fit_resample(X, ["a", "b"] * 100)[1].count("a") > 10


def test_images_are_resampled():
    rng = np.random.default_rng(0)
    images = (rng.random((120, 8, 8)) * 60).astype(np.uint8)
    images[:60, 2:6, 2:6] += 150
    config = ImageConfig(steps=150, latent=4, channels=16, blocks=1)
    resampler = LatentDensityResampler(train_config=config)
    out, labels = resampler.fit_resample(images, np.arange(120) // 60)
    assert out.shape == (240, 8, 8)
    assert out.dtype == np.uint8
    assert len(labels) == 240


@pytest.mark.parametrize("space", ["raw", "pca"])
def test_controls_without_the_latent(detector, labelled, space):
    X, y = labelled
    report = LatentDensityResampler(detector, config=ResampleConfig(space=space)).fit(X, y).report_
    assert report.facts["space"] == space
    assert report.ess >= 0.198


def test_rows_are_weighed_in_the_latent_and_images_beside_their_components(detector, image_detector, labelled):
    X, y = labelled
    images, digit = digit_images()
    some = slice(0, 300)
    for config, spaces in (
        (ResampleConfig(), ("latent", "joint")),
        (ResampleConfig(density="kde"), ("latent", "latent")),
    ):
        table = LatentDensityResampler(detector, config=config).fit(X, y)
        pictures = LatentDensityResampler(image_detector, config=config).fit(images[some], digit[some])
        assert (table.report_.facts["space"], pictures.report_.facts["space"]) == spaces


def test_it_works_inside_a_pipeline():
    imblearn = pytest.importorskip("imblearn.pipeline")
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3))
    y = (X[:, 0] + 0.1 * rng.normal(size=300) > 1).astype(int)
    steps = [
        ("scale", StandardScaler()),
        ("resample", LatentDensityResampler(train_config=FAST)),
        ("model", LogisticRegression()),
    ]
    pipeline = imblearn.Pipeline(steps).fit(X, y)
    assert pipeline.predict(X).shape == (300,)
    assert pipeline.score(X, y) > 0.85
    assert pipeline.named_steps["resample"].sample_indices_.shape == (600,)


def test_an_estimator_is_cloned_before_it_is_fitted(labelled):
    X, y = labelled
    estimator = AnomalyDetector(FAST)
    resampler = LatentDensityResampler(estimator)
    assert clone(resampler).random_state == 0
    resampler.fit(X, y)
    assert not hasattr(estimator, "detector_")


def test_hard_data_are_weighed_and_said(detector):
    X = mixed_frame(40)
    alike = pd.concat([X.iloc[[0]]] * 40, ignore_index=True)
    report = LatentDensityResampler(detector).fit(alike).report_
    assert report.largest == pytest.approx(1.0)
    assert any("the data: no coordinate varies" in note for note in report.notes)
    one = LatentDensityResampler(detector).fit(X, ["a"] * 39 + ["b"]).report_
    assert any("class b: 1 row has no neighbours" in note for note in one.notes)
    assert one.ess >= 0.198


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([None] + [1.0] * 39, "labels must be there for each row, got 1 missing of 40"),
        ([1] * 3, "labels must be as many as the 40 rows, got 3"),
    ],
)
def test_bad_labels_are_refused(detector, y, message):
    with pytest.raises(AnomalyVaeError, match=message):
        LatentDensityResampler(detector).fit(mixed_frame(40), y)


def test_misuse_is_refused(detector):
    with pytest.raises(NotFittedError, match="a resampler must be fitted first"):
        LatentDensityResampler(detector).sample_weight(mixed_frame(9))
    with pytest.raises(AnomalyVaeError, match="detector must be a Detector, an AnomalyDetector or None, got str"):
        LatentDensityResampler("mine").fit(mixed_frame(40))
    resampler = LatentDensityResampler(detector).fit(mixed_frame(40), ["a", "b"] * 20)
    with pytest.raises(AnomalyVaeError, match="labels must be given as they were"):
        resampler.sample_weight(mixed_frame(9))
