"""log p(x) to a stated error: against the exact value, the same in any company, honest about rows that fail."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from anomaly_vae import Detector
from anomaly_vae.detection import adaptive
from anomaly_vae.detection.adaptive import RunningWeights, log_likelihoods, looks
from anomaly_vae.detection.detector import LIKELIHOOD_COLUMNS, SCORE_COLUMNS
from anomaly_vae.errors import ConfigError
from anomaly_vae.models import bounds
from anomaly_vae.models.linear import ProbabilisticPCA
from anomaly_vae.models.refinement import refined
from anomaly_vae.models.vae import VAE
from tests.conftest import linear_vae, low_rank_rows


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return low_rank_rows(600, 5, rank=2, noise=0.4)


@pytest.fixture(scope="module")
def pair(rows: torch.Tensor) -> tuple[VAE, ProbabilisticPCA]:
    """Probabilistic PCA as a VAE whose posterior is off centre and too wide, so that weights are uneven."""
    exact = ProbabilisticPCA.fit(rows, latent=2)
    return linear_vae(exact, slope=0.9, wider=0.3).requires_grad_(False), exact


@pytest.mark.parametrize("mc_se", [0.1, 0.03])
def test_the_error_against_the_exact_density_is_as_stated(rows, pair, mc_se):
    model, exact = pair
    got = log_likelihoods(model, rows, mc_se=mc_se, max_k=50_000)
    assert got.reached.all()
    assert (got.mc_se <= mc_se).all()
    assert len(np.unique(got.k)) > 3, "rows differ in the samples they need"
    z = (got.value - exact.log_likelihood(rows).numpy()) / got.mc_se
    # all rows share their noise, so their errors are not independent: bounds, not a test of a distribution
    assert (np.abs(z) < 3).mean() > 0.97
    assert np.abs(got.value - exact.log_likelihood(rows).numpy()).max() < 5 * mc_se


def test_stopping_early_does_not_bias(rows, pair):
    """Over many draws of noise the mean error of each row's estimate stays within a few of its standard errors."""
    model, exact = pair
    some = rows[:64]
    draws = [log_likelihoods(model, some, mc_se=0.1, seed=seed) for seed in range(40)]
    errors = np.stack([d.value for d in draws]) - exact.log_likelihood(some).numpy()
    stated = np.sqrt(np.mean([d.mc_se**2 for d in draws]))
    assert np.sqrt(np.mean(errors**2)) < 1.25 * stated
    assert abs(errors.mean()) < 0.02


@pytest.mark.parametrize(("precision", "mc_se"), [("float32", 0.02), ("float32", 0.08), ("bf16", 0.02)])
def test_a_row_has_the_same_bits_in_any_company(detector: Detector, fresh_rows, precision, mc_se, monkeypatch):
    model = copy.deepcopy(detector.model)
    model.precision = precision
    model.requires_grad_(False)
    x = detector.encode(fresh_rows)
    fitted = []
    monkeypatch.setattr(adaptive, "refined", lambda *args, **kw: fitted.append(args) or refined(*args, **kw))
    whole = log_likelihoods(model, x, mc_se=mc_se, max_k=768)
    assert len(np.unique(whole.k)) > 1
    if mc_se == 0.02:
        assert 0 < whole.reached.sum() < len(x)
    else:
        assert 0 < len(fitted[0][1].x) < len(x), "some rows have posteriors of their own"
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    for size, index in ((1, torch.arange(4)), (7, torch.arange(21)), (299, torch.arange(len(x))), (300, order)):
        parts = [log_likelihoods(model, x[part], mc_se=mc_se, max_k=768) for part in index.split(size)]
        for name in ("value", "mc_se", "ess", "k", "reached"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(whole, name)[index.numpy()], err_msg=f"{name}, {size}")


def test_spans_do_not_show(detector: Detector, fresh_rows, monkeypatch):
    x = detector.encode(fresh_rows)
    whole = log_likelihoods(detector.model, x, mc_se=0.2, max_k=128)
    monkeypatch.setattr(adaptive, "SPAN", 100)
    np.testing.assert_array_equal(log_likelihoods(detector.model, x, mc_se=0.2, max_k=128).value, whole.value)


def test_parts_of_those_with_posteriors_of_their_own_do_not_show(detector: Detector, fresh_rows, monkeypatch):
    x = detector.encode(fresh_rows)[:80]
    whole = log_likelihoods(detector.model, x, mc_se=0.05, max_k=256)
    monkeypatch.setattr(adaptive, "ROOTS", 30 * detector.model.latent**2)
    np.testing.assert_array_equal(log_likelihoods(detector.model, x, mc_se=0.05, max_k=256).value, whole.value)


def test_rows_that_cannot_reach_the_bound_are_said(rows, pair):
    model, _ = pair
    got = log_likelihoods(model, rows, mc_se=1e-6, max_k=200)
    assert not got.reached.any()
    assert (got.k == 192).all(), "a multiple of the chunk"
    assert (got.mc_se > 1e-6).all()


def test_a_small_error_of_few_effective_samples_is_not_believed(rows, pair):
    model, _ = pair
    far = rows[:50].clone()
    far[:, 0] += 500.0
    got = log_likelihoods(model, far, mc_se=10.0, max_k=64)
    assert (got.ess < 5).any()
    np.testing.assert_array_equal(got.reached, got.ess >= 5)


def test_running_sums_are_the_sums():
    w = 30 * torch.randn(192, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = RunningWeights(20)
    for chunk in w.split(64):
        seen.add(torch.arange(20), chunk)
    torch.testing.assert_close(seen.log_mean(), bounds.importance_weighted_bound(w))
    torch.testing.assert_close(seen.effective(), bounds.effective_sample_size(w))
    torch.testing.assert_close(seen.error(), bounds.monte_carlo_error(w, "likelihood"))


def test_looks_grow_and_end_at_the_last_multiple():
    assert looks(64) == [64]
    found = looks(4097)
    assert found[-1] == 4096
    assert all(k % 64 == 0 for k in found)
    assert found == sorted(set(found))
    assert len(found) < 25


def test_score_frame_adds_columns_on_demand_and_changes_no_other(detector: Detector, fresh_rows):
    plain = detector.score_frame(fresh_rows)
    out = detector.score_frame(fresh_rows, mc_se=0.1)
    assert tuple(out.columns) == (*SCORE_COLUMNS, *LIKELIHOOD_COLUMNS)
    pd.testing.assert_frame_equal(out[list(SCORE_COLUMNS)], plain)
    got = detector.estimate_log_likelihood(fresh_rows, mc_se=0.1)
    np.testing.assert_array_equal(out["log_likelihood"], got.value)
    np.testing.assert_array_equal(out["log_likelihood_k"], got.k)
    reference = detector.log_likelihood(fresh_rows, k=5000)
    z = (got.value + reference.value) / np.hypot(got.mc_se, reference.mc_se)
    assert (np.abs(z[got.reached]) < 3.5).mean() > 0.95
    empty = detector.score_frame(fresh_rows[:0], mc_se=0.1)
    assert tuple(empty.columns) == (*SCORE_COLUMNS, *LIKELIHOOD_COLUMNS)


@pytest.mark.parametrize("options", [{"mc_se": 0.0}, {"mc_se": float("nan")}, {"max_k": 63}])
def test_what_cannot_be_is_refused(detector: Detector, fresh_rows, options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))} must be"):
        detector.estimate_log_likelihood(fresh_rows, **options)
