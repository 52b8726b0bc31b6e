"""Missing cells are charged what their columns cost on average: rows with different missing cells are comparable."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from anomaly_vae import Detector, TrainConfig, fit_detector
from anomaly_vae.detection.missing import charged, expected_costs, total
from anomaly_vae.detection.scores import SCORES, split_scores
from tests.conftest import mixed_frame

FAST = TrainConfig(steps=300, hidden=(16,), latent=3, calibration_k=(1, 16))


def hidden(frame: pd.DataFrame, share: float, seed: int = 7) -> pd.DataFrame:
    """Hide cells, but none of the first column: rows without a cell are warned of."""
    gone = np.random.default_rng(seed).random(frame.shape) < share
    gone[:, 0] = False
    return frame.mask(gone)


@pytest.fixture
def uncharged(detector: Detector) -> Detector:
    return dataclasses.replace(detector, missing_cost=None)


@pytest.mark.parametrize("kind", SCORES)
def test_a_column_is_charged_the_mean_of_its_observed_cells(detector: Detector, training_rows, kind: str) -> None:
    x, noise = detector.encode(training_rows), detector.noise[:16]
    costs = expected_costs(detector.model, x, noise=noise, kind=kind)
    parts, there = split_scores(detector.model, x, noise=noise, kind=kind).columns, ~x.isnan().numpy()
    assert costs.dtype == torch.float64
    np.testing.assert_allclose(costs, [parts[there[:, j], j].mean() for j in range(x.shape[1])])
    x[:, 2] = torch.nan
    assert expected_costs(detector.model, x, noise=noise, kind=kind)[2] == 0


def test_the_costs_come_from_the_training_rows_alone(training_rows) -> None:
    fit = fit_detector(training_rows, FAST)
    rows = fit.detector.encode(training_rows.iloc[fit.split["train"]])
    want = expected_costs(fit.detector.model, rows, noise=fit.detector.noise[:16], kind=FAST.score_kind)
    torch.testing.assert_close(fit.detector.missing_cost, want, rtol=0, atol=0)


def test_the_charge_is_added_once_a_missing_cell(detector: Detector, uncharged: Detector, fresh_rows) -> None:
    rows = hidden(fresh_rows, 0.3)
    x = detector.encode(rows)
    want = detector.log_likelihood(rows, k=16).value + torch.where(x.isnan(), detector.missing_cost, 0.0).sum(1).numpy()
    got = detector.score_frame(rows)
    np.testing.assert_allclose(got["anomaly_score"], want, rtol=1e-12)
    np.testing.assert_array_equal(got["anomaly_score"], detector.scores_of_encoded(x.numpy()))
    np.testing.assert_array_equal(
        uncharged.score_frame(rows)["anomaly_score"], detector.log_likelihood(rows, k=16).value
    )
    whole = fresh_rows.dropna()
    same = uncharged.score_frame(whole)["anomaly_score"]
    pd.testing.assert_series_equal(detector.score_frame(whole)["anomaly_score"], same)


def test_the_charge_of_a_row_is_the_same_bits_in_any_company() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(np.where(rng.random((300, 41)) < 0.5, np.nan, 0.0))
    costs = torch.from_numpy(rng.normal(size=41) * 10.0 ** rng.integers(-6, 6, 41))
    whole = total(charged(x, costs))
    for size in (1, 7, 64):
        np.testing.assert_array_equal(np.concatenate([total(charged(part, costs)) for part in x.split(size)]), whole)
    assert (total(charged(x, None)) == 0).all()


@pytest.mark.parametrize("explain", [1, 3, 5])
def test_reasons_name_the_charge_and_still_sum_to_the_score(detector: Detector, fresh_rows, explain: int) -> None:
    rows = hidden(fresh_rows, 0.3)[:60]
    out = detector.score_frame(rows, explain=explain)
    gone = detector.encode(rows).isnan().numpy()
    for i, text in enumerate(out["attributions"]):
        reasons = json.loads(text)
        assert sum(r["nats"] for r in reasons) == pytest.approx(out["anomaly_score"].iloc[i], rel=1e-5)
        for reason in reasons[:explain]:
            j = detector.schema.names.index(reason["column"])
            assert (reason["value"] is None) == gone[i, j]
            if gone[i, j]:
                assert reason["nats"] == pytest.approx(float(detector.missing_cost[j]))
                assert reason["expected"] is not None


def test_hiding_cells_leaves_the_mean_score_where_it_was(detector: Detector, uncharged: Detector) -> None:
    rows = mixed_frame(2000, seed=8)
    for share in (0.2, 0.5):
        few = hidden(rows, share)
        moved = [
            (d.score_frame(few)["anomaly_score"] - d.score_frame(rows)["anomaly_score"]).mean()
            for d in (detector, uncharged)
        ]
        assert abs(moved[0]) < 0.2 * abs(moved[1])


def test_it_can_be_switched_off(training_rows, fresh_rows) -> None:
    off = fit_detector(training_rows, dataclasses.replace(FAST, charge_missing=False)).detector
    assert off.missing_cost is None
    rows = hidden(fresh_rows, 0.3)
    got = off.score_frame(rows)["anomaly_score"]
    np.testing.assert_array_equal(got, off.log_likelihood(rows, k=16, kind=FAST.score_kind).value)


def test_it_is_saved_and_part_of_the_digest(
    detector: Detector, uncharged: Detector, fresh_rows, tmp_path: Path
) -> None:
    detector.save(tmp_path / "model")
    loaded = Detector.load(tmp_path / "model")
    rows = hidden(fresh_rows, 0.3)
    pd.testing.assert_frame_equal(loaded.score_frame(rows, explain=2), detector.score_frame(rows, explain=2))
    assert loaded.digest == detector.digest != uncharged.digest
    again = loaded.calibrate(fresh_rows)
    torch.testing.assert_close(again.missing_cost, detector.missing_cost, rtol=0, atol=0)


def test_older_files_charge_nothing() -> None:
    frozen = Detector.load(Path(__file__).parent / "format_1")
    assert frozen.missing_cost is None
    assert not frozen.config.charge_missing
