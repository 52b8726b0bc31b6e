"""Expectation-maximisation against the textbook's sums, row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anomaly_vae.data.schema import Schema
from anomaly_vae.models import expectation
from anomaly_vae.models.expectation import Expectation
from anomaly_vae.models.mixture import ClassMixture
from anomaly_vae.models.vae import VAE
from anomaly_vae.options import TrainConfig
from tests.conftest import mixed_frame


@pytest.fixture(scope="module")
def table() -> tuple[Schema, torch.Tensor]:
    """Columns of every kind, with gaps in all of them."""
    frame = mixed_frame(700)
    schema = Schema.fit(frame)
    x = torch.from_numpy(schema.encode(frame))
    return schema, x.masked_fill(torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.2, torch.nan)


def _expected_row_by_row(model, cells, share):
    """Return the expected sums and products of the continuous columns, (K, c) and (K, c, c), by conditional normals."""
    sums, products = np.zeros(model.means.shape), np.zeros(model.covariances.shape)
    for j, (mean, covariance) in enumerate(zip(model.means.numpy(), model.covariances.numpy(), strict=True)):
        for row, weight in zip(cells.numpy(), share[j].numpy(), strict=True):
            gap = np.isnan(row)
            gain = covariance[np.ix_(gap, ~gap)] @ np.linalg.inv(covariance[np.ix_(~gap, ~gap)])
            filled, left = row.copy(), np.zeros_like(covariance)
            filled[gap] = mean[gap] + gain @ (row - mean)[~gap]
            left[np.ix_(gap, gap)] = covariance[np.ix_(gap, gap)] - gain @ covariance[np.ix_(~gap, gap)]
            sums[j] += weight * filled
            products[j] += weight * (np.outer(filled, filled) + left)
    return sums, products


@pytest.mark.parametrize("few", [1, expectation.FEW_VALUES])
@pytest.mark.parametrize("bent", [False, True])
def test_expected_statistics_are_the_textbooks(table, bent, few, monkeypatch):
    """However many values are looked up together."""
    monkeypatch.setattr(expectation, "FEW_VALUES", few)
    monkeypatch.setattr(expectation, "VALUES_AT_ONCE", 2)
    schema, x = table
    weight = torch.rand(len(x), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight /= weight.mean()
    model = ClassMixture.fitted(schema.modelled, x, classes=3, seed=0, bent=bent, weights=weight)
    x = x.double()
    e = Expectation(model, x, weight)
    assert few > 1 or max(e.values) > e.few + 3  # some are looked up apart
    mean, moments = e._expected()
    joint = model._joint_log_density(x)
    log_density = torch.logsumexp(joint, 0)
    cells, log_slope = model.seen(x)
    assert mean == pytest.approx(float(((log_density - log_slope.sum(1)) * weight).mean()), abs=1e-9)
    share = (joint - log_density).exp() * weight
    sums, products = _expected_row_by_row(model, cells, share)
    c = cells.shape[1]
    i, j = np.triu_indices(c)
    assert c > 1
    assert 0 < cells.isnan().sum() < cells.numel()
    np.testing.assert_allclose(moments[:, :c], sums, atol=1e-8)
    np.testing.assert_allclose(moments[:, c : c + len(i)], products[:, i, j], atol=1e-8)
    np.testing.assert_allclose(moments[:, c + len(i)], share.sum(1), atol=1e-8)


def test_no_step_makes_the_rows_less_likely(table):
    """But for what ridge and smoothing cost, which is far less."""
    schema, x = table
    continuous = [j for j, column in enumerate(schema.modelled) if column.kind == "continuous"]
    x, columns = x[:, continuous].double(), [schema.modelled[j] for j in continuous]
    model = ClassMixture(columns, 4)
    e = Expectation(model, x, torch.ones(len(x), dtype=torch.float64))
    e._maximise(e._start(0) @ e._of(slice(0, len(x))).T)
    means = []
    for _ in range(30):
        mean, moments = e._expected()
        means.append(mean)
        e._maximise(moments)
    assert np.diff(means).min() > -1e-4
    assert means[-1] > means[0] + 0.01


def test_companions_do_not_depend_on_the_number_of_threads(table):
    schema, x = table
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            model = VAE(schema.modelled, TrainConfig())
            model.accompany(x, held=x[:0], config=TrainConfig(companions=(3, 5)))
            found.append({k: v for k, v in model.state_dict().items() if k.startswith("companions.")} | {
                "log_prob": model.companions_term(x), "parts": model.companions_split(x)[0]
            })  # fmt: skip
    finally:
        torch.set_num_threads(before)
    assert len(found[0]) > 20
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
