"""A made-up result of every kind that a report shows, with HTML wherever a user's text may come in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from anomaly_vae import Schema
from anomaly_vae.debiasing.resampling import weigh
from anomaly_vae.debiasing.strata import Strata
from anomaly_vae.evaluation.audit import audit
from anomaly_vae.evaluation.metrics import auroc_ap, flag_rate
from anomaly_vae.evaluation.summaries import ScoredRows, summarise
from anomaly_vae.options import ResampleConfig
from anomaly_vae.reporting.findings import audit_section, drift_section, resample_section
from anomaly_vae.reporting.reasons import StrangeRow, pictured, strangest_section
from anomaly_vae.reporting.scorecards import scorecard_section
from anomaly_vae.reporting.sections import (
    calibration_section,
    data_section,
    latent_section,
    provenance_section,
    scores_section,
    training_section,
)
from anomaly_vae.scorecard import Scorecard
from anomaly_vae.training import Epoch

HOSTILE = "<script>alert('$x$ & y')</script>"
"""Markup, and what matplotlib would take for a formula."""


def history(epochs: int = 40) -> list[Epoch]:
    steps = 25 * np.arange(1, epochs + 1)
    elbo = 30 - 40 * np.exp(-steps / 200)
    return [
        Epoch(
            epoch=i + 1,
            step=int(steps[i]),
            loss=-elbo[i],
            elbo=elbo[i],
            kl=8 - 3 * np.exp(-i / 5),
            reconstruction=elbo[i] + 8,
            validation_elbo=elbo[i] - i / 10,
            active_units=5 - i // 10,
            beta=min(1.0, i / 10),
            seconds=i / 5,
        )
        for i in range(epochs)
    ]


def frame(n: int = 600, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    made = pd.DataFrame(
        {
            HOSTILE: rng.normal(size=n),
            "kind": rng.choice([HOSTILE, "pump", "fan"], n),
            "visits": rng.poisson(3, n),
            "a column with a name that is a good deal longer than any figure has room for": rng.random(n),
        }
    )
    made.loc[rng.random(n) < 0.1, "kind"] = None
    return made


def card() -> dict[str, Any]:
    """A scorecard as its file holds it, with markup wherever a name comes in, and numbers that are none."""
    samples = {
        "frechet": {"value": 1.25, "se": None, "raw": 2.0, "rows": 100, "dimensions": 4},
        "neighbourhoods": {
            "precision": 0.9, "recall": 0.8, "density": 1.1, "coverage": 0.75, "expected_coverage": 0.97,
            "neighbours": 5,
        },
        "classifier": {"auroc": 0.8, "low": 0.75, "high": 0.85, "rows": 200},
        "modes": {
            "count": 2, "found": 1, "different": 1, "lost": [HOSTILE], "names": [HOSTILE, "b"], "data": [0.5, 0.5],
            "samples": [0.0, 1.0],
        },
        "inception": {"value": 1.5, "se": 0.1, "classes": 2},
    }  # fmt: skip
    data = {**samples, "name": "data", "inception": None, "frechet": {**samples["frechet"], "value": 0}}
    bound = {"k": 1, "value": -9.5, "se": 0.2, "gap": 0.75, "ess": 1.0, "unreliable": 1.0}
    return {
        "model": "models:/pumps/1", "data": HOSTILE, "rows": 300, "space": HOSTILE, "rows_per_second": 12345.6,
        "samples": [{**samples, "name": HOSTILE}, data],
        "smoothness": {"detour": 1.2, "largest_step": 1.5, "largest_step_low": 1.4, "largest_step_high": 1.6,
                       "paths": 20, "steps": 16},
        "prior": {"kl": 3.0, "mutual_information": 2.5, "marginal_kl": 0.5, "marginal_se": 0.05, "log_rows": 5.7},
        "active": 3, "latent": 4,
        "factors": {
            "mig": 0.4, "mig_of": {HOSTILE: 0.3, "b": 0.5}, "disentanglement": 0.6, "completeness": 0.7,
            "informativeness": 0.8, "correlation": {HOSTILE: 0.9, "b": 0.95}, "dimension": {HOSTILE: 2, "b": 0},
            "rows": 300, "factor_vae": {"value": 0.875, "se": 0.01, "chance": 0.5, "dimension": {HOSTILE: 2, "b": 0},
                                        "votes": 800},
        },
        "bounds": [bound, {**bound, "k": 16, "value": -8.75, "gap": 0.0, "ess": 9.0, "unreliable": 0.1}],
        "perplexities": [{"name": HOSTILE, "value": 1.7, "se": None, "alone": 1.9, "cells": 300}],
        "notes": [HOSTILE], "config": {HOSTILE: HOSTILE},
    }  # fmt: skip


def sections(n: int = 600) -> list[dict[str, Any]]:
    """One section of each kind."""
    rng = np.random.default_rng(1)
    rows, anomalous = frame(n), rng.random(n) < 0.1
    scores = rng.gamma(3, 5, n) + 40 * anomalous
    p = np.clip((1 + rng.integers(0, 100, n)) / 101 * np.where(anomalous, 0.1, 1), 1 / 101, 1)
    summary = summarise(lambda: [ScoredRows(scores, p, p <= 0.05, anomalous)], threshold=45.0, top=3)
    kinds = rows["kind"].fillna("?").to_numpy()
    strata = Strata.fit(kinds)
    report = weigh(rng.normal(size=n), ResampleConfig(), strata=strata, of=strata.of(kinds)).report
    images = rng.integers(0, 255, (2, 8, 8, 1), dtype=np.uint8)
    pictures = pictured(images, images, rng.random((2, 8, 8)))
    parts = [
        {"column": HOSTILE, "nats": 30.0, "value": HOSTILE, "expected": 1.5},
        {"column": "kind", "nats": -4.0, "value": None, "expected": "pump"},
        {"column": "(other columns)", "nats": 2.0},
        {"column": "(latent)", "nats": 1.0},
    ]
    strange = [
        StrangeRow(name=f"{HOSTILE} {i}", score=29.0, p_value=0.01, flagged=True, parts=parts, label=HOSTILE)
        for i in range(2)
    ]
    strange.append(StrangeRow(name="7.png", score=29.0, p_value=None, flagged=False, parts=parts, images=pictures[0]))
    rates = {kind: flag_rate(np.arange(c.rows) < c.flagged) for kind, c in summary.counts.items()}
    found = audit(
        p_values=p, groups={HOSTILE: rows["kind"]}, codes=rng.normal(size=(n, 4)), frame=rows, normal=~anomalous
    )
    tests = {
        HOSTILE: {"test": "Kolmogorov-Smirnov", "statistic": 0.31, "p_value": 1e-9, "drifted": True},
        "kind": {"test": "chi-squared", "statistic": 0.02, "p_value": 0.6, "drifted": False},
    }
    return [
        data_section(Schema.fit(rows), rows=n, sample=rows, missing=rows.isna().sum().to_dict()),
        training_section(history()),
        calibration_section(summary.counts["normal"], calibration_rows=100, which="rows labelled normal"),
        scores_section(
            summary, score_kind="ensemble", ranking=auroc_ap(anomalous, scores, n_boot=20), rates=rates, notes=[HOSTILE]
        ),
        strangest_section(strange),
        latent_section(rng.normal(size=(n, 4)), p, scores, colours={HOSTILE: rows["kind"]}),
        audit_section(found),
        resample_section(report),
        drift_section(tests),
        scorecard_section(Scorecard.from_dict(card())),
        {"title": HOSTILE, "sentence": HOSTILE, "table": [{HOSTILE: HOSTILE, "number": 0.5}]},
        provenance_section({HOSTILE: HOSTILE, "rows": 12_345}, {"latent": HOSTILE}),
        {"key": "absent", "title": HOSTILE, "absent": HOSTILE},
    ]
