"""Scores: the same row always scores the same; parts sum to the score; the error is the error."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

from anomaly_vae import Detector, TrainConfig, fit_detector
from anomaly_vae.data.cells import UNSEEN
from anomaly_vae.data.schema import UNSEEN_FLOOR
from anomaly_vae.detection.detector import SCORE_COLUMNS
from anomaly_vae.detection.kept import Kept
from anomaly_vae.detection.scores import (
    FEW_ROWS,
    REDUCED_ROWS,
    SCORES,
    block_rows,
    expected_cells,
    group_rows,
    score_rows,
    split_scores,
)
from anomaly_vae.errors import CalibrationError, ConfigError, DataWarning, SchemaError, ShapeError
from anomaly_vae.models.fused import FusedVAE
from anomaly_vae.models.tried import WORTH_TRYING
from tests.conftest import mixed_frame


@pytest.mark.parametrize("k", [1, 3, 16, 64, 70])
@pytest.mark.parametrize("kind", SCORES)
def test_a_row_scores_the_same_bits_in_any_company(detector, fresh_rows, k, kind):
    x = detector.encode(fresh_rows)
    noise = detector._noise(k)
    whole = score_rows(detector.model, x, noise=noise, kind=kind).value
    alone = np.concatenate([score_rows(detector.model, x[i : i + 1], noise=noise, kind=kind).value for i in range(40)])
    np.testing.assert_array_equal(whole[:40], alone)
    for size in (7, 64, 299):
        parts = [score_rows(detector.model, part, noise=noise, kind=kind).value for part in x.split(size)]
        np.testing.assert_array_equal(whole, np.concatenate(parts))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(whole[order], score_rows(detector.model, x[order], noise=noise, kind=kind).value)


def test_an_error_has_the_same_bits_in_any_company(detector, fresh_rows):
    x, noise = detector.encode(fresh_rows), detector._noise(4)
    many = x.repeat(REDUCED_ROWS // len(x) + 1, 1)
    assert len(many) % 64, "the last rows must be filled up"
    whole = score_rows(detector.model, many, noise=noise, kind="likelihood")
    for start, size in ((0, 1), (7, 9), (REDUCED_ROWS - 3, 5), (len(many) - 1, 1)):
        rows = slice(start, start + size)
        part = score_rows(detector.model, many[rows], noise=noise, kind="likelihood")
        np.testing.assert_array_equal(part.mc_se, whole.mc_se[rows])
        np.testing.assert_array_equal(part.ess, whole.ess[rows])


@pytest.mark.filterwarnings("ignore::anomaly_vae.errors.TrainingWarning")
def test_a_cell_that_moves_away_is_ever_stranger():
    """Of heavy tails too, whose mixtures have classes of very different widths: what is taken off has a bound."""
    rng = np.random.default_rng(1)
    columns = {"a": rng.standard_t(1.5, size=2000), "b": rng.lognormal(0, 2, size=2000), "c": rng.normal(size=2000)}
    model = fit_detector(pd.DataFrame(columns), TrainConfig(steps=200, hidden=(16,))).detector.model
    row, noise = torch.zeros(1, 3), torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    for j, sign in ((0, 1), (0, -1), (1, 1), (2, 1), (2, -1)):
        far = row.repeat(5, 1)
        far[:, j] = sign * torch.tensor([0.0, 1e2, 1e3, 1e4, 1e6])
        scores = score_rows(model, far, noise=noise, kind="ensemble").value
        assert (np.diff(scores) > 0).all(), (j, sign)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("k", [1, 3, 16])
@pytest.mark.parametrize("kind", ["ensemble", "likelihood"])
def test_few_rows_have_the_bits_of_many(detector, fresh_rows, k, kind, precision):
    """Whether they are computed in a small group or, where the machine adds up otherwise in one, in a full one."""
    x, noise, kept, model = detector.encode(fresh_rows), detector._noise(k), Kept(), copy.deepcopy(detector.model)
    model.precision = model.second.precision = precision
    whole = score_rows(model, x, noise=noise, kind=kind)
    for size in (1, 40, FEW_ROWS, FEW_ROWS + 1):
        few = score_rows(model, x[:size], noise=noise, kind=kind, kept=kept)
        for one, other in zip((few.value, few.mc_se, few.ess), (whole.value, whole.mc_se, whole.ess), strict=True):
            np.testing.assert_array_equal(one, other[:size])


def test_a_small_group_is_taken_only_if_it_gives_the_same_bits(detector, fresh_rows):
    noise, heights = detector._noise(16), []

    class Noted(FusedVAE):
        """Differs in the last bits where rows are few, as another machine's products might."""

        off = 0.0

        def rows(self, x):
            heights.append(len(x))
            found = super().rows(x)
            return dataclasses.replace(found, mean=found.mean + self.off) if len(x) == FEW_ROWS else found

    x = detector.encode(fresh_rows[:3])
    for off, height in ((0.0, FEW_ROWS), (1e-5, group_rows(16, x.shape[1]))):
        kept, scorer = Kept(), Noted(detector.model)
        scorer.off, kept._here.scorers = off, {"likelihood": scorer}
        for _ in range(WORTH_TRYING):
            score = score_rows(detector.model, x, noise=noise, kept=kept).value
            assert heights[-1] == group_rows(16, x.shape[1]) or heights[-1] == height == FEW_ROWS
        assert heights[-1] == height
        np.testing.assert_array_equal(score, score_rows(detector.model, x, noise=noise).value)


def test_what_is_kept_stays_behind_in_copies(detector, fresh_rows):
    for _ in range(WORTH_TRYING):
        detector.score_frame(fresh_rows[:1])
    assert detector._kept._found
    assert not copy.deepcopy(detector._kept)._found


def test_lists_are_the_table_without_what_json_lacks(detector, fresh_rows):
    x = detector.encode(fresh_rows)
    for options in ({"k": 1}, {"k": 16}, {"fdr": 1e-9}):
        verdicts = detector.verdicts(x, **options)
        table = verdicts.frame(fresh_rows.index).astype(object)
        table = table.where(table.notna() & ~table.isin([np.inf]), None)
        assert verdicts.lists() == {name: table[name].tolist() for name in SCORE_COLUMNS}


@pytest.mark.parametrize("k", [1, 16, 64])
def test_threads_do_not_change_a_bit(detector, fresh_rows, k):
    """Enough rows to be shared out among three threads; each row's score and parts are those of one thread."""
    x, noise = detector.encode(fresh_rows), detector._noise(k)
    n = 6 * group_rows(k, x.shape[1]) + 37
    x = x.repeat(-(-n // len(x)), 1)[:n]
    column = torch.arange(len(x)) % x.shape[1]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            score = score_rows(detector.model, x, noise=noise, kind="likelihood")
            parts = split_scores(detector.model, x, noise=noise, kind="ensemble")
            cells = expected_cells(detector.model, x, column, noise=noise)
            found.append((score.value, score.mc_se, score.ess, parts.columns, parts.latent, parts.dependence, cells))
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*found, strict=True):
        np.testing.assert_array_equal(one, three)


def test_chunks_over_samples_do_not_change_the_score(detector, fresh_rows):
    """k = 200 is computed in chunks; the oracle computes it at once."""
    from anomaly_vae.models import bounds

    x, noise = detector.encode(fresh_rows), detector._noise(200)
    got = score_rows(detector.model, x, noise=noise)
    w = bounds.terms(detector.model, x, noise).log_weights.double()
    np.testing.assert_allclose(got.value, -bounds.importance_weighted_bound(w).numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.ess, bounds.effective_sample_size(w).numpy(), rtol=1e-3)


@pytest.mark.parametrize("k", [1, 16, 200])
@pytest.mark.parametrize("kind", SCORES)
def test_parts_sum_to_the_score(detector, fresh_rows, kind, k):
    x, noise = detector.encode(fresh_rows), detector._noise(k)
    score = score_rows(detector.model, x, noise=noise, kind=kind).value
    parts = split_scores(detector.model, x, noise=noise, kind=kind)
    total = parts.columns.sum(1) + parts.latent + parts.dependence
    assert np.max(np.abs(total - score) / np.maximum(1, np.abs(score))) < 1e-5
    assert (parts.columns[torch.isnan(x).numpy()] == 0).all()


def test_the_ensemble_is_the_mean_of_its_members(detector, fresh_rows):
    """The autoencoders, whose KL terms count by half, have two thirds of the weight; the mixtures share the rest.

    Theirs goes without three tenths of what the columns say by themselves.
    """
    from anomaly_vae.models import bounds

    model, x, noise = detector.model, detector.encode(fresh_rows), detector._noise(16)
    terms = [bounds.terms(one, x, noise) for one in (model, model.second)]
    w = torch.stack([0.5 * (t.log_px.sum(-1) + t.log_weights) for t in terms]).mean(0).double()
    mixtures = torch.stack([mixture.log_prob(x) for mixture in model.companions]).mean(0)
    finest = max((m for m in model.companions if not m.bent), key=lambda m: m.classes)
    mixtures -= 0.3 * finest.marginals(x).sum(1)
    got = score_rows(model, x, noise=noise, kind="ensemble")
    np.testing.assert_allclose(got.value, -(2 * w.mean(0) + mixtures).numpy() / 3, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(got.mc_se, (w.std(0) / 4 * 2 / 3).numpy(), rtol=1e-3, atol=1e-5)


def test_the_block_depends_on_model_and_k_alone():
    assert block_rows(1, 5) == 1024
    assert [block_rows(k, 5) for k in (4, 16, 64)] == [256, 128, 64]
    assert block_rows(5000, 5) == 64
    assert [block_rows(k, 5, "bf16") for k in (1, 16, 64)] == [1024, 256, 64]
    assert block_rows(1, 3000) * 3000 < 2**20


@pytest.mark.parametrize("k", [2, 16, 200])
def test_the_elbo_never_exceeds_the_likelihood(detector, fresh_rows, k):
    """Jensen's inequality, row by row, for the same samples."""
    x, noise = detector.encode(fresh_rows), detector._noise(k)
    likelihood = score_rows(detector.model, x, noise=noise, kind="likelihood").value
    elbo = score_rows(detector.model, x, noise=noise, kind="elbo").value
    assert (elbo >= likelihood - 1e-6).all()
    assert (elbo - likelihood).mean() > 1e-4


def test_the_stated_error_covers_a_long_run(detector, fresh_rows):
    """The estimate at k = 256 lies within three of its errors of a k = 5000 reference for nearly all rows."""
    got = detector.log_likelihood(fresh_rows, k=256)
    reference = detector.log_likelihood(fresh_rows, k=5000)
    z = np.abs(got.value - reference.value) / np.hypot(got.mc_se, reference.mc_se)
    assert (z < 3).mean() > 0.97


def test_score_frame_columns_and_types(detector, fresh_rows):
    frame = fresh_rows.rename(index=lambda i: f"row {i}")
    out = detector.score_frame(frame, explain=2)
    assert tuple(out.columns) == SCORE_COLUMNS
    assert out.index.equals(frame.index)
    assert out["is_anomaly"].dtype == bool
    assert (out["score_kind"] == "likelihood").all()
    assert np.isfinite(out[["anomaly_score", "p_value", "threshold", "mc_se", "ess"]]).all().all()
    assert out["reliable"].tolist() == (out["ess"] >= 5).tolist()
    np.testing.assert_array_equal(out["is_anomaly"], out["p_value"] <= 0.05)
    np.testing.assert_array_equal(out["is_anomaly"], out["anomaly_score"] > out["threshold"])
    one = detector.score_frame(frame, k=1)
    assert one["mc_se"].isna().all()
    assert one["reliable"].isna().all()
    assert one["attributions"].isna().all()


def test_attributions_name_the_guilty_cell_and_what_was_expected(detector):
    rows = mixed_frame(50, seed=3).dropna()[:10]
    broken = rows.assign(weight=200.0)
    out = detector.score_frame(broken, explain=1)
    for text, score, (_, row) in zip(out["attributions"], out["anomaly_score"], broken.iterrows(), strict=True):
        reasons = json.loads(text)
        assert [r["column"] for r in reasons] == ["weight", "(other columns)", "(latent)"]
        assert sum(r["nats"] for r in reasons) == pytest.approx(score, rel=1e-5)
        assert reasons[0]["value"] == 200.0
        truth = 70 + 0.8 * (row["height"] - 170)
        assert reasons[0]["expected"] == pytest.approx(truth, abs=6), "from the other cells, not from the broken one"


def test_expected_categories_are_categories(detector):
    rows = mixed_frame(80, seed=4).assign(city="Bonn")
    out = detector.score_frame(rows, explain=5)
    for text in out["attributions"]:
        by_name = {r["column"]: r for r in json.loads(text)}
        assert by_name["city"]["value"] == "Bonn"
        assert by_name["city"]["expected"] in ("Oslo", "Rome", "Lima")
        assert by_name["member"]["expected"] in (True, False)
        assert isinstance(by_name["visits"]["expected"], int)


def test_an_unseen_category_is_a_large_finite_surprise(detector):
    rows = mixed_frame(100, seed=5).assign(city="Rome")
    seen = detector.score_frame(rows)["anomaly_score"]
    unseen = detector.score_frame(rows.assign(city="Bonn"))["anomaly_score"]
    assert np.isfinite(unseen).all()
    assert (unseen - seen).median() > 8
    assert (unseen - seen).max() < 30
    assert -np.log(UNSEEN_FLOOR) == pytest.approx(13.8, abs=0.1)
    assert detector.schema.decode(detector.encode(rows.assign(city="Bonn")).numpy())["city"].eq(UNSEEN).all()


@pytest.mark.parametrize("value", [-2, 1.5])
def test_what_is_no_count_is_a_large_finite_surprise(detector, value):
    rows = mixed_frame(20, seed=5).assign(visits=value)
    with pytest.warns(DataWarning, match="visits"):
        out = detector.score_frame(rows, explain=5)
    for text in out["attributions"]:
        costs = {r["column"]: r["nats"] for r in json.loads(text)}
        assert costs["visits"] == pytest.approx(-np.log(UNSEEN_FLOOR), abs=1e-3)


@pytest.mark.parametrize("value", [1e300, -1e300, 1e20])
def test_absurd_values_score_finite_and_are_warned_of(detector, value):
    rows = mixed_frame(5, seed=6).assign(height=value)
    with pytest.warns(DataWarning, match="'height': 5 cells lie beyond"):
        out = detector.score_frame(rows, explain=1)
    assert np.isfinite(out["anomaly_score"]).all()
    assert out["is_anomaly"].all()
    assert all(json.loads(t)[0]["column"] == "height" for t in out["attributions"])


def test_rows_without_a_cell_score_finite_and_are_warned_of(detector):
    rows = pd.DataFrame({name: [None, None] for name in detector.schema.names})
    with pytest.warns(DataWarning, match="rows without any observed cell: 2"):
        out = detector.score_frame(rows)
    assert np.isfinite(out["anomaly_score"]).all()


@pytest.mark.parametrize("absent", [["city"], ["height", "member"], ["weight", "city", "visits", "member"]])
def test_absent_columns_are_missing_cells_on_demand(detector, fresh_rows, absent):
    less = fresh_rows.drop(columns=absent)
    with pytest.raises(SchemaError, match=f"{len(absent)} too few.*allow_missing=True, --allow-missing"):
        detector.score_frame(less)
    with pytest.warns(DataWarning, match="absent columns count as missing cells: ") as caught:
        out = detector.score_frame(less, explain=5, allow_missing=True)
    assert len([w for w in caught if "absent" in str(w.message)]) == 1
    empty = fresh_rows.assign(**dict.fromkeys(absent, np.nan))
    pd.testing.assert_frame_equal(out, detector.score_frame(empty, explain=5))
    reasons = [r for text in out["attributions"] for r in json.loads(text) if r["column"] in absent]
    assert len(reasons) == len(absent) * len(out)
    assert all(r["value"] is None and r["expected"] is not None for r in reasons)
    with pytest.raises(SchemaError, match="nothing to score"):
        detector.score_frame(pd.DataFrame({"other": [1.0]}), allow_missing=True)


def test_one_row_and_no_rows(detector, fresh_rows):
    assert len(detector.score_frame(fresh_rows[:1])) == 1
    empty = detector.score_frame(fresh_rows[:0], explain=2)
    assert tuple(empty.columns) == SCORE_COLUMNS
    assert len(empty) == 0


def test_a_false_discovery_rate_flags_by_the_batch(detector, fresh_rows):
    from scipy.stats import false_discovery_control

    broken = fresh_rows.copy()
    broken.loc[broken.index[:100], "height"] = 400.0
    out = detector.score_frame(broken, fdr=0.1)
    wanted = false_discovery_control(out["p_value"]) <= 0.1
    np.testing.assert_array_equal(out["is_anomaly"], wanted)
    assert out["is_anomaly"][:100].all()
    np.testing.assert_array_equal(out["is_anomaly"], out["anomaly_score"] > out["threshold"])
    calm = detector.score_frame(broken.iloc[:100].assign(height=170.0), fdr=1e-6)
    assert not calm["is_anomaly"].any()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 17}, CalibrationError, "k must be one the model is calibrated for \\(1, 16, 64\\), got 17"),
        ({"alpha": 0.001}, CalibrationError, "at least 999 calibration rows, got 79"),
        ({"alpha": 1.5}, ConfigError, "alpha must be a number between 0 and 1"),
        ({"fdr": 0.0}, ConfigError, "fdr must be a number between 0 and 1"),
        ({"explain": -1}, ConfigError, "explain must be"),
    ],
)
def test_what_cannot_be_promised_is_refused(detector, fresh_rows, options, error, message):
    with pytest.raises(error, match=message):
        detector.score_frame(fresh_rows, **options)


def test_wrong_rows_are_refused(detector, fresh_rows):
    with pytest.raises(SchemaError, match="column 'city' absent"):
        detector.score_frame(fresh_rows.drop(columns="city"))
    with pytest.raises(ShapeError, match="must be a pandas DataFrame, got ndarray"):
        detector.score_frame(np.zeros((3, 5)))
    with pytest.raises(ShapeError, match=r"rows must have shape \(n, 5\), got \(2, 4\)"):
        detector.model.posterior(torch.zeros(2, 4))


@pytest.mark.parametrize("kind", SCORES)
def test_every_score_kind_makes_a_detector(training_rows, fresh_rows, kind):
    config = TrainConfig(steps=100, hidden=(16,), score_kind=kind, calibration_k=(4,), k=4)
    detector: Detector = fit_detector(training_rows, config).detector
    out = detector.score_frame(fresh_rows, explain=1)
    assert (out["score_kind"] == kind).all()
    assert out["ess"].isna().all() == (kind != "likelihood")
    assert out["mc_se"].notna().all()
    for text, score in zip(out["attributions"], out["anomaly_score"], strict=True):
        assert sum(r["nats"] for r in json.loads(text)) == pytest.approx(score, rel=1e-5)
