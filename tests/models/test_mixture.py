"""Latent class mixtures against closed forms, scikit-learn's Gaussian mixture and the data they were fitted to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from anomaly_vae.data.schema import Column, Schema
from anomaly_vae.models.expectation import RIDGE
from anomaly_vae.models.mixture import BLOCK, Bend, ClassMixture
from tests.conftest import mixed_frame

CONTINUOUS = [Column(name=f"x{j}", kind="continuous", dtype="float64", scale=2.0 + j) for j in range(3)]
LOG_SCALE = float(np.log([2.0, 3.0, 4.0]).sum())


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    """Two correlated clouds of three columns."""
    rng = np.random.default_rng(0)
    a = rng.multivariate_normal([-2, 0, 1], [[1.0, 0.8, 0.0], [0.8, 1.0, 0.3], [0.0, 0.3, 0.5]], 600)
    b = rng.multivariate_normal([2, 1, -1], [[0.3, 0.0, 0.1], [0.0, 0.6, -0.4], [0.1, -0.4, 1.0]], 300)
    return torch.from_numpy(rng.permutation(np.vstack([a, b])).astype(np.float32))


@pytest.fixture(scope="module")
def fitted(rows: torch.Tensor) -> ClassMixture:
    return ClassMixture.fitted(CONTINUOUS, rows, classes=2, seed=0)


@pytest.fixture(scope="module")
def mixed() -> tuple[Schema, torch.Tensor]:
    """Columns of every kind, with gaps."""
    frame = mixed_frame(800)
    schema = Schema.fit(frame)
    return schema, torch.from_numpy(schema.encode(frame))


def test_the_fit_is_as_good_as_scikit_learns(rows, fitted):
    peer = GaussianMixture(2, reg_covar=RIDGE, random_state=0, tol=1e-4).fit(rows.numpy())
    ours = fitted.log_prob(rows).mean().item() + LOG_SCALE
    assert ours == pytest.approx(peer.score(rows.numpy()), abs=2e-3)


def test_the_density_is_that_of_its_parameters(rows, fitted):
    parts = [
        np.log(float(w)) + multivariate_normal(m, c).logpdf(rows.numpy())
        for w, m, c in zip(fitted.log_weights.exp(), fitted.means.numpy(), fitted.covariances.numpy(), strict=True)
    ]
    wanted = np.logaddexp(*parts) - LOG_SCALE
    np.testing.assert_allclose(fitted.log_prob(rows).numpy(), wanted, rtol=1e-9)


def test_missing_cells_are_marginalised_exactly(rows, fitted):
    hidden = rows.clone()
    hidden[:, 1] = torch.nan
    kept = [0, 2]
    parts = [
        np.log(float(w)) + multivariate_normal(m[kept], c[np.ix_(kept, kept)]).logpdf(rows[:, kept].numpy())
        for w, m, c in zip(fitted.log_weights.exp(), fitted.means.numpy(), fitted.covariances.numpy(), strict=True)
    ]
    wanted = np.logaddexp(*parts) - np.log(2.0) - np.log(4.0)
    np.testing.assert_allclose(fitted.log_prob(hidden).numpy(), wanted, rtol=1e-9)


def test_a_fit_with_gaps_finds_the_same_classes(rows, fitted):
    """A third of the cells hidden at random: means and covariances within sampling error of the complete fit."""
    gaps = rows.masked_fill(torch.rand(rows.shape, generator=torch.Generator().manual_seed(0)) < 0.33, torch.nan)
    model = ClassMixture.fitted(CONTINUOUS, gaps, classes=2, seed=0)
    order = model.means[:, 0].argsort()
    wanted = fitted.means[:, 0].argsort()
    assert (model.means[order] - fitted.means[wanted]).abs().max() < 0.2
    assert (model.covariances[order] - fitted.covariances[wanted]).abs().max() < 0.25
    filled_in = ClassMixture.fitted(CONTINUOUS, gaps.nan_to_num(0.0), classes=2, seed=0)
    assert model.log_prob(rows).mean() > filled_in.log_prob(rows).mean() + 0.1, "filling in distorts the fit"


@pytest.mark.parametrize("bent", [False, True])
def test_it_integrates_to_one(bent):
    column = [Column(name="x", kind="continuous", dtype="float64", scale=3.0)]
    x = torch.from_numpy(np.random.default_rng(1).standard_t(2, (500, 1)).astype(np.float32))
    model = ClassMixture.fitted(column, x, classes=3, seed=0, bent=bent)
    grid = torch.linspace(-400, 400, 800_001, dtype=torch.float64)[:, None]
    total = torch.trapezoid(model.log_prob(grid).exp(), 3.0 * grid[:, 0]).item()
    assert total == pytest.approx(1.0, abs=1e-4)


def test_cells_of_other_kinds_sum_to_one(mixed):
    """Over all values of one discrete column, the densities of a row add up to that of the row without it."""
    schema, x = mixed
    model = ClassMixture.fitted(schema.modelled, x, classes=3, seed=0)
    row = x[~x.isnan().any(1)][:1]
    for j, column in enumerate(schema.modelled):
        if column.kind in ("binary", "categorical"):
            values = [float(v) for v in range(len(column.categories) + 1)]
        elif column.kind == "count":
            values = [-1.0, *map(float, range(3000))]
        else:
            continue
        cells = row.repeat(len(values), 1)
        cells[:, j] = torch.tensor(values)
        without = row.clone()
        without[:, j] = torch.nan
        total = torch.logsumexp(model.log_prob(cells), 0)
        assert total.item() == pytest.approx(model.log_prob(without).item(), abs=1e-4), column.name


@pytest.mark.parametrize("bent", [False, True])
def test_parts_sum_and_a_row_does_not_depend_on_its_company(mixed, bent):
    schema, x = mixed
    model = ClassMixture.fitted(schema.modelled, x, classes=3, seed=0, bent=bent)
    whole = model.log_prob(x)
    parts, remainder = model.split(x)
    torch.testing.assert_close(parts.sum(1) + remainder, -whole, rtol=1e-9, atol=1e-9)
    assert (parts[x.isnan()] == 0).all()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    assert torch.equal(model.log_prob(x[order]), whole[order])
    assert torch.equal(torch.cat([model.log_prob(part) for part in x.split(7)]), whole)
    assert len(x) % BLOCK != 0


@pytest.mark.parametrize("bent", [False, True])
def test_marginals_are_the_density_of_rows_with_one_cell(mixed, bent):
    schema, x = mixed
    mixture = ClassMixture.fitted(schema.modelled, x, classes=3, seed=0, bent=bent, power=2.0)
    found, within = mixture.marginals(x), x.clone()
    low, high = mixture.reach()
    seen, log_slope = mixture.seen(x.double())
    within[:, mixture.joint] = x[:, mixture.joint].masked_fill((seen < low) | (seen > high), torch.nan)
    assert within.isnan().sum() <= x.isnan().sum() + 5
    for j in range(x.shape[1]):
        alone = torch.full_like(x, torch.nan)
        alone[:, j] = within[:, j]
        wanted = mixture.log_prob(alone)
        if j in mixture.joint:
            wanted -= log_slope[:, mixture.joint.index(j)].masked_fill(within[:, j].isnan(), 0.0)
        torch.testing.assert_close(found[:, j].masked_fill(within[:, j].isnan(), 0.0), wanted)
    assert (found[x.isnan()] == 0).all()
    assert x.isnan().any()


def test_one_wrong_cell_has_the_largest_part(rows, fitted):
    """Nearly all of the distance is its part, though the columns are correlated, and the remainder does not grow."""
    rng = np.random.default_rng(2)
    wrong = rows[:200].clone()
    guilty = torch.from_numpy(rng.integers(0, 3, 200))
    wrong[torch.arange(200), guilty] += 12.0
    parts, remainder = fitted.split(wrong)
    assert (parts.argmax(1) == guilty).float().mean() > 0.97
    assert remainder.abs().max() < 10 < parts.amax(1).median()


def test_classes_are_as_many_as_the_rows_can_carry(rows):
    assert ClassMixture.fitted(CONTINUOUS, rows[:40], classes=30, seed=0).classes == 40 // 16
    few = ClassMixture.fitted(CONTINUOUS, rows[:3], classes=30, seed=0)
    assert few.classes == 1
    assert torch.isfinite(few.log_prob(rows)).all()


def test_rare_classes_are_rarer_with_a_power(rows, fitted):
    sharper = ClassMixture.fitted(CONTINUOUS, rows, classes=2, seed=0, power=3.0)
    share = fitted.log_weights.exp()
    torch.testing.assert_close(sharper.log_weights.exp(), share**3 / (share**3).sum())
    torch.testing.assert_close(sharper.means, fitted.means)
    change = sharper.log_prob(rows) - fitted.log_prob(rows)
    rare = torch.cdist(rows.double(), fitted.means).argmin(1) == share.argmin()
    assert change[rare].median() < -1.0, "a third of the rows, cubed"
    assert change[~rare].median() > 0.0


def test_row_weights_count_as_repetitions(rows):
    weights = torch.ones(len(rows))
    weights[:200] = 3.0
    repeated = torch.cat([rows, rows[:200], rows[:200]])
    a = ClassMixture.fitted(CONTINUOUS, rows, classes=1, seed=0, weights=weights)
    b = ClassMixture.fitted(CONTINUOUS, repeated, classes=1, seed=0)
    torch.testing.assert_close(a.means, b.means)
    torch.testing.assert_close(a.covariances, b.covariances)


def test_a_bend_is_a_change_of_variables():
    x = torch.from_numpy(np.random.default_rng(0).standard_cauchy((400, 2)))
    bend = Bend(2)
    bend.fit(x)
    x.requires_grad_()
    y, log_slope = bend(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope.log(), log_slope)
    assert y.detach().std().item() == pytest.approx(1.0, abs=0.05)
