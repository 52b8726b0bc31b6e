"""Densities find what is rare, within classes, without a row's own help, and integrate where they claim to."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal, norm, skew, spearmanr
from sklearn.metrics import roc_auc_score

from anomaly_vae.debiasing import neighbours
from anomaly_vae.debiasing.density import DENSITIES, fit_density
from anomaly_vae.debiasing.neighbours import (
    Isolation,
    LabelDisagreement,
    NeighbourDensity,
    intrinsic_dimension,
    long_tail,
    nearest,
    reference_rows,
)
from anomaly_vae.debiasing.spaces import FEW, SPACES, fit_space
from anomaly_vae.debiasing.strata import Strata
from anomaly_vae.errors import ConfigError, ShapeError
from anomaly_vae.options import DENSITIES as NAMES
from anomaly_vae.options import SPACES as SPACE_NAMES
from anomaly_vae.options import ResampleConfig

PLAIN = ResampleConfig(smoothing=0)


def cloud(n: int, width: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def test_registries_and_settings_agree():
    assert set(NAMES) == set(DENSITIES)
    assert set(SPACE_NAMES) == set(SPACES)


@pytest.mark.parametrize("kind", ["knn", "kde", "gmm"])
def test_an_estimate_is_near_the_true_density(kind):
    points = cloud(4000)
    found = fit_density(points, dataclasses.replace(PLAIN, density=kind)).own
    true = multivariate_normal(np.zeros(2)).logpdf(points)
    central = true > np.quantile(true, 0.1)
    assert np.abs(found - true)[central].mean() < 0.25
    assert abs((found - true)[central].mean()) < 0.12


@pytest.mark.parametrize("kind", DENSITIES)
def test_a_row_that_comes_again_has_the_density_it_had(kind):
    points = cloud(300)
    density = fit_density(points, ResampleConfig(density=kind))
    np.testing.assert_allclose(density.log_density(points[::7], np.zeros(43, dtype=int)), density.own[::7], rtol=1e-6)


@pytest.mark.parametrize("kind", DENSITIES)
def test_every_density_is_lower_in_a_thin_part(kind):
    points = np.concatenate([cloud(950), cloud(50, seed=1) + 5])
    density = fit_density(points, ResampleConfig(density=kind))
    assert density.own[950:].mean() < density.own[:950].mean()
    fresh = np.concatenate([cloud(950, seed=2), cloud(50, seed=3) + 5])
    again = density.log_density(fresh, np.zeros(1000, dtype=int))
    assert np.isfinite(again).all()
    assert again[950:].mean() < again[:950].mean()


def test_the_aggregated_posterior_is_the_mean_of_the_others_posteriors():
    points, log_scales = cloud(6, 1), np.full((6, 1), -0.5, dtype=np.float32)
    found = fit_density(points, ResampleConfig(density="aggregated_posterior"), log_scales=log_scales).own
    densities = norm(points.T, np.exp(-0.5)).pdf(points)
    np.fill_diagonal(densities, 0)
    np.testing.assert_allclose(found, np.log(densities.sum(1) / 5), rtol=1e-5)


def test_a_row_is_not_its_own_neighbour_and_copies_are_not_infinitely_dense():
    points = np.repeat(cloud(50), 3, axis=0)
    _, own = NeighbourDensity.fit(points, k=1, smoothing=0, references=150, rng=np.random.default_rng(0))
    assert np.isfinite(own).all()
    line = np.array([[0.0], [1.0], [3.0], [7.0]], dtype=np.float32)
    _, own = NeighbourDensity.fit(line, k=1, smoothing=0, references=4, rng=np.random.default_rng(0))
    np.testing.assert_allclose(own, np.log(1 / (4 * 2 * np.array([1, 1, 2, 4]))))


def test_smoothing_is_the_mean_over_the_row_and_its_neighbours():
    line = np.array([[0.0], [1.0], [3.0], [7.0]], dtype=np.float32)
    rng = np.random.default_rng(0)
    _, plain = NeighbourDensity.fit(line, k=1, smoothing=0, references=4, rng=rng)
    _, smooth = NeighbourDensity.fit(line, k=1, smoothing=1, references=4, rng=rng)
    np.testing.assert_allclose(smooth, (plain + plain[[1, 0, 1, 2]]) / 2)


def test_few_references_rank_rows_as_all_do(monkeypatch):
    points = np.concatenate([cloud(5400, 4), cloud(600, 4, seed=1) * 0.5 + 3])
    exact = fit_density(points, ResampleConfig()).own
    monkeypatch.setattr(neighbours, "REFERENCES", 1500)
    assert reference_rows(6000) == 1500
    rough = fit_density(points, ResampleConfig()).own
    assert spearmanr(exact, rough).statistic > 0.9


def test_density_is_measured_within_each_class():
    labels = np.repeat([0, 1], [900, 100])
    points = cloud(1000)
    strata = Strata.fit(labels)
    apart = fit_density(points, PLAIN, strata=strata, of=strata.of(labels)).own
    alone = fit_density(points[900:], PLAIN).own
    assert spearmanr(apart[900:], alone).statistic == pytest.approx(1.0)


def test_strata_without_a_density_are_said_so():
    labels = ["a"] * 50 + ["b"] + ["c"] * 20
    points = np.concatenate([cloud(51), np.ones((20, 2), dtype=np.float32)])
    strata = Strata.fit(labels)
    density = fit_density(points, ResampleConfig(), strata=strata, of=strata.of(labels))
    assert density.parts[1] is None
    assert density.notes == (
        "class b: 1 row has no neighbours; its rows have equal weights.",
        "class c: all 20 rows are alike; its rows have equal weights.",
    )
    assert (density.own[50:] == 0).all()


def test_the_published_density_is_a_product_of_histograms():
    points = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 1.0]], dtype=np.float32)
    config = ResampleConfig(density="dbvae", bins=2, smoothing_alpha=0.5)
    # histogram densities 1.5, .5 and .5, 1.5, plus .5, normalised
    p, q = np.array([2, 1]) / 3, np.array([1, 2]) / 3
    np.testing.assert_allclose(np.exp(fit_density(points, config).own), p[[0, 0, 1, 0]] * q[[0, 1, 1, 1]])
    largest = np.exp(-fit_density(points, dataclasses.replace(config, combine="max")).own)
    first, second = 1 / p[[0, 0, 1, 0]], 1 / q[[0, 1, 1, 1]]
    np.testing.assert_allclose(largest, np.maximum(first / first.sum(), second / second.sum()))


def test_flipped_labels_are_nearer_to_another_class():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 900)
    points = (rng.normal(size=(900, 2)) + 4 * np.eye(3)[truth][:, :2] + 4 * (truth == 2)[:, None]).astype(np.float32)
    labels = truth.copy()
    labels[:20] = (truth[:20] + 1) % 3
    ratio, nearer = LabelDisagreement.fit(points, labels).log_ratio(points, labels)
    assert (ratio[:20] > np.log(1.1)).mean() > 0.9
    assert (ratio[20:] > np.log(1.1)).mean() < 0.1
    assert (nearer[:20] == truth[:20]).mean() > 0.85


def test_a_row_alone_is_isolated_and_a_rare_group_is_not():
    points = np.concatenate([cloud(900, 4), cloud(20, 4, seed=1) + 8, -7 * np.eye(4, dtype=np.float32)])
    flags = Isolation.fit(points).flagged(points, 2.0)
    assert flags[:900].mean() < 0.03
    assert flags[900:920].mean() < 0.15
    assert flags[920:].all()
    copies = np.concatenate([np.zeros((50, 2), dtype=np.float32), cloud(100)])
    assert Isolation.fit(copies).flagged(copies, 2.0).mean() < 0.03
    alike = np.zeros((9, 2), dtype=np.float32)
    assert not Isolation.fit(alike).flagged(alike, 2.0).any()


@pytest.mark.parametrize("width", [1, 2, 5])
def test_the_intrinsic_dimension_is_that_of_the_cloud(width):
    points = np.concatenate([cloud(3000, width), np.zeros((3000, 4), dtype=np.float32)], axis=1)
    (distances,) = (d for _, d, _ in nearest(points, points, 5))
    assert intrinsic_dimension(distances) == pytest.approx(width, rel=0.15)


def test_a_rare_class_is_not_mistaken_for_mislabelled():
    """Where classes overlap entirely nothing tells them apart, however unequal they are."""
    labels = np.repeat([0, 1], [2000, 60])
    points = cloud(2060)
    ratio, _ = LabelDisagreement.fit(points, labels).log_ratio(points, labels)
    assert abs(np.median(ratio[labels == 1])) < 0.15
    one = np.zeros(10, dtype=int)
    assert LabelDisagreement.fit(points[:10], one).log_ratio(points[:10], one)[0].max() == -np.inf


def test_strata_of_every_kind_of_label():
    assert Strata.fit(None).of(None, rows=3).tolist() == [0, 0, 0]
    assert Strata.fit([2, 10, 2]).names == ("2", "10")
    numbers = np.linspace(0, 1, 100)
    strata = Strata.fit(numbers, bins=4)
    assert strata.kind == "continuous"
    assert np.bincount(strata.of(numbers)).tolist() == [25, 25, 25, 25]
    assert strata.of([-5.0, 5.0]).tolist() == [0, 3]
    assert Strata.fit(pd.Series([1.0, 0.0] * 30)).kind == "classes"
    assert Strata.fit([3.5] * 10).names == ("[-inf, inf)",)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1.0, np.nan], "labels must be there for each row, got 1 missing of 2"),
        (["a", None], "labels must be there for each row, got 1 missing of 2"),
        ([1.5, np.inf], "labels must be there for each row, got 1 missing"),
        (np.zeros((3, 2)), r"labels must have shape \(n,\), got \(3, 2\)"),
    ],
)
def test_bad_labels_are_refused(labels, message):
    with pytest.raises((ConfigError, ShapeError), match=message):
        Strata.fit(labels)


def test_unknown_and_absent_labels_are_refused():
    strata = Strata.fit(["a", "b"])
    with pytest.raises(ConfigError, match="a label must be one of a, b, got 'c'"):
        strata.of(["c"])
    with pytest.raises(ConfigError, match="labels must be given as they were"):
        strata.of(None, rows=3)


def test_spaces_keep_what_varies():
    points = cloud(200, 3) * np.array([1.0, 0.01, 0.0], dtype=np.float32)
    assert fit_space("latent", points).width == 1
    assert fit_space("raw", points).width == 2
    pca = fit_space("pca", points)
    np.testing.assert_allclose(np.var(pca.coordinates(points), axis=0)[0], np.var(points[:, 0]), rtol=1e-2)
    assert fit_space("pca", np.ones((5, 3))).width == 0
    with pytest.raises(ShapeError, match=r"points must have shape \(n, 3\), got \(4, 2\)"):
        pca.coordinates(cloud(4))
    with pytest.raises(ConfigError, match="points must be finite, got a cell that is not in row 1"):
        fit_space("latent", np.array([[0.0], [np.nan]]))
    with pytest.raises(ConfigError, match="space must be one of latent, raw, pca"):
        fit_space("pixels", points)


def test_the_joint_space_gives_codes_and_rows_equal_parts_unless_told_their_tails():
    codes, rows = cloud(400, 2), 50 * cloud(400, 6, seed=1)
    codes[:8, 0] += 6 * np.array([1, -1] * 4)
    rows[8:16, 0] += 600
    both = np.concatenate([codes, rows], axis=1)
    space = fit_space("joint", both, codes=2)
    assert space.width == 2 + 6
    assert space.parts == {"latent": 1.0, "components": 1.0, "few components": 1.0}
    z = space.coordinates(both)
    assert z[:, :2].var(0).sum() == pytest.approx(1, rel=1e-3)
    assert z[:, 2:].var(0).sum() == pytest.approx(2, rel=1e-3), "all components once, and the first of them once more"
    plain = fit_space("pca", rows).coordinates(rows).var(0)
    expected = plain * (1 / plain.sum() + (np.arange(6) < FEW) / plain[:FEW].sum())
    np.testing.assert_allclose(z[:, 2:].var(0), expected, rtol=1e-3)
    rarest = set(np.argsort(fit_density(z, ResampleConfig(smoothing=0)).own)[:16])
    assert len(rarest & set(range(8))) >= 6
    assert len(rarest & set(range(8, 16))) >= 6
    alike = np.concatenate([codes, np.ones((400, 6), dtype=np.float32)], axis=1)
    assert fit_space("joint", alike, codes=2).width == 2
    assert fit_space("joint", both[:, :5], codes=2).width == 2 + 3


@pytest.mark.parametrize("where", ["latent", "components"])
def test_in_the_joint_space_counts_where_rare_rows_stand_out(where):
    """Twelve of 600 rows lie apart in one set of axes, and everything else is noise of many dimensions."""
    codes, rows = cloud(600, 12), cloud(600, 40, seed=1) * np.geomspace(9, 1, 40, dtype=np.float32)
    strata = np.arange(600) % 2
    if where == "latent":
        codes[:12, :8] += 3
    else:
        rows[:12, 5:15] += 15
    both = np.concatenate([codes, rows], axis=1)
    tail = partial(long_tail, strata=strata, k=10, smoothing=10)
    space, equal = (fit_space("joint", both, codes=12, tail=t) for t in (tail, None))
    assert space.parts[where] > 0.9
    assert (space.parts["latent"] < 0.5) == (where != "latent")

    def told(space) -> float:
        density = fit_density(space.coordinates(both), ResampleConfig())
        return roc_auc_score(np.arange(600) < 12, -density.own)

    assert told(space) > max(0.95, told(equal) - 0.01)


def test_the_tail_is_the_skewness_of_log_distances():
    points, rng = cloud(500, 3), np.random.default_rng(0)
    distances = np.sort(np.linalg.norm(points[:, None].astype(float) - points[None], axis=-1), axis=1)
    expected = skew(np.log(distances[:, 5]))
    one = np.zeros(500, dtype=np.intp)
    assert long_tail(points, one, k=5, smoothing=0) == pytest.approx(expected, rel=1e-3)
    assert abs(long_tail(cloud(2000, 16), np.zeros(2000, dtype=np.intp), k=10, smoothing=0)) < 0.6
    two = rng.permutation(np.arange(500) % 2)
    each = [long_tail(points[two == i], one[:250], k=5, smoothing=3) for i in (0, 1)]
    assert long_tail(points, two, k=5, smoothing=3) == pytest.approx(np.mean(each), rel=1e-6)
    assert long_tail(points, np.arange(500) // 10, k=5, smoothing=3) == 0  # strata of ten rows say nothing
    assert long_tail(np.ones((500, 3), dtype=np.float32), one, k=5, smoothing=3) == 0
    assert long_tail(np.eye(2, dtype=np.float32)[np.arange(500) % 2], one, k=5, smoothing=3) == 0
