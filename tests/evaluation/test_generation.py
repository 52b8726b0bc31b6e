"""Sample quality and coverage: closed forms, a plain second implementation, and digits made worse in known ways."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits

from anomaly_vae.errors import ConfigError, ShapeError
from anomaly_vae.evaluation.generation import (
    frechet_distance,
    inception_score,
    modes,
    neighbourhoods,
    two_sample_classifier,
)


def digit_features(images: np.ndarray) -> np.ndarray:
    """Images (n, 8, 8) as points in the ten leading principal components of the digits."""
    every = load_digits().data / 16
    axes = np.linalg.svd(every - every.mean(0), full_matrices=False)[2][:10]
    return (images.reshape(len(images), -1) / 16 - every.mean(0)) @ axes.T


@pytest.fixture(scope="module")
def halves() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two halves of the digits, (n, 8, 8), and which digits the second has."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    a, b = order[:898], order[898:]
    return digits.images[a], digits.images[b], digits.target[b]


def test_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    mix, shift = rng.normal(size=(4, 4)), np.array([1.0, -0.5, 0.0, 2.0])
    x = rng.normal(size=(6000, 4))
    y = rng.normal(size=(6000, 4)) @ mix + shift
    a, b = np.eye(4), mix.T @ mix
    truth = shift @ shift + np.trace(a + b) - 2 * np.sqrt(np.linalg.eigvalsh(b)).sum()
    assert frechet_distance(x, y).value == pytest.approx(truth, rel=0.05)


def test_extrapolation_takes_the_bias_away() -> None:
    """Sets of one distribution are 0 apart: raw distances of few rows are far above, extrapolated ones around."""
    rng = np.random.default_rng(0)
    found = [frechet_distance(*rng.normal(size=(2, 300, 10)), seed=i) for i in range(12)]
    raw, value = np.array([f.raw for f in found]), np.array([f.value for f in found])
    assert raw.min() > 0.15
    assert abs(value.mean()) < 0.25 * raw.mean()
    assert (value < 0).any()


def test_frechet_distance_of_two_halves_is_near_0_and_grows_with_damage(halves: tuple) -> None:
    a, b, digit = halves
    x = digit_features(a)
    rng = np.random.default_rng(1)
    noise = rng.normal(size=b.shape)
    same = frechet_distance(x, digit_features(b)).value
    blurred = [frechet_distance(x, digit_features(gaussian_filter(b, (0, s, s)))).value for s in (0.4, 0.7, 1.0)]
    noisy = [frechet_distance(x, digit_features(b + s * noise)).value for s in (2.0, 4.0, 8.0)]
    dropped = [frechet_distance(x, digit_features(b[digit >= left])).value for left in (2, 4, 6)]
    assert abs(same) < 0.05
    for worse in (blurred, noisy, dropped):
        assert np.all(np.diff([same, *worse]) > 0), worse
        assert worse[-1] > 5 * abs(same)


def test_coverage_falls_with_dropped_modes_while_quality_stays(halves: tuple) -> None:
    a, b, digit = halves
    x = digit_features(a)
    whole = neighbourhoods(x, digit_features(b))
    few = neighbourhoods(x, digit_features(b[digit < 5]))
    noisy = neighbourhoods(x, digit_features(b + 5.0 * np.random.default_rng(0).normal(size=b.shape)))
    assert whole.coverage == pytest.approx(whole.expected_coverage, abs=0.04)
    assert whole.precision > 0.9
    assert few.coverage < whole.coverage - 0.3
    assert few.recall < whole.recall - 0.25
    assert few.precision > whole.precision - 0.05
    assert few.density > 0.85 * whole.density
    assert noisy.precision < whole.precision - 0.1
    assert noisy.density < 0.7 * whole.density


def test_neighbourhoods_are_those_of_a_plain_implementation() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)), rng.normal(size=(40, 3)) + 0.5
    radius_x, radius_y = (np.sort(cdist(p, p), 1)[:, 3] for p in (x, y))
    apart = cdist(x, y)
    got = neighbourhoods(x, y, neighbours=3)
    assert got.precision == (apart <= radius_x[:, None]).any(0).mean()
    assert got.recall == (apart <= radius_y).any(1).mean()
    assert got.density == pytest.approx((apart <= radius_x[:, None]).sum(0).mean() / 3)
    assert got.coverage == (apart <= radius_x[:, None]).any(1).mean()


def test_expected_coverage_is_the_mean_over_draws() -> None:
    rng = np.random.default_rng(0)
    found = [neighbourhoods(rng.normal(size=(100, 2)), rng.normal(size=(50, 2)), neighbours=2) for _ in range(60)]
    coverage = [f.coverage for f in found]
    assert np.mean(coverage) == pytest.approx(found[0].expected_coverage, abs=4 * np.std(coverage) / np.sqrt(60))


def test_a_classifier_tells_what_differs() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3))
    same = two_sample_classifier(x, rng.normal(size=(300, 3)))
    assert same.low < 0.5 < same.high or abs(same.auroc - 0.5) < 0.06
    assert two_sample_classifier(x, rng.normal(size=(300, 3)) + 2.0).auroc > 0.95
    correlated = rng.normal(size=(300, 1)) * np.ones(3) + 0.1 * rng.normal(size=(300, 3))
    assert two_sample_classifier(x, correlated).auroc > 0.85


def test_inception_score_of_known_verdicts() -> None:
    sure = np.eye(5)[np.arange(500) % 5]
    assert inception_score(sure).value == pytest.approx(5.0)
    assert inception_score(np.full((100, 5), 0.2)).value == pytest.approx(1.0)
    assert inception_score(np.eye(5)[np.zeros(100, dtype=int)]).value == pytest.approx(1.0)  # one mode alone
    assert 1.0 < inception_score(0.5 * sure + 0.1).value < 5.0


def test_modes_are_counted_and_named() -> None:
    rng = np.random.default_rng(0)
    data = rng.choice(list("abcd"), 2000, p=[0.4, 0.3, 0.2, 0.1])
    same = modes(data, rng.choice(list("abcd"), 2000, p=[0.4, 0.3, 0.2, 0.1]))
    assert (same.count, same.found, same.different, same.lost) == (4, 4, 0, ())
    collapsed = modes(data, rng.choice(list("abc"), 2000, p=[0.8, 0.1, 0.1]))
    assert collapsed.lost == ("d",)
    assert collapsed.different == 4
    assert sum(collapsed.samples) == pytest.approx(1.0)
    json.dumps(collapsed.to_dict(), allow_nan=False)


def test_what_is_refused() -> None:
    x = np.zeros((30, 2))
    for function in (frechet_distance, neighbourhoods, two_sample_classifier):
        with pytest.raises(ShapeError, match="at least 20 rows"):
            function(x, x[:2])
        with pytest.raises(ShapeError, match="same features"):
            function(x, np.zeros((30, 3)))
    with pytest.raises(ConfigError, match="finite"):
        frechet_distance(x, np.full((30, 2), np.inf))
    with pytest.raises(ConfigError, match="neighbours"):
        neighbourhoods(x, x, neighbours=30)
    with pytest.raises(ConfigError, match="sum to 1"):
        inception_score(np.ones((30, 3)))
    with pytest.raises(ShapeError, match="modes must be"):
        modes([], ["a"])
    assert frechet_distance(x, x).value == 0  # constant columns are no error
