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
from anomaly_vae.reporting.sections import (
    calibration_section,
    data_section,
    latent_section,
    provenance_section,
    scores_section,
    training_section,
)
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
        {"title": HOSTILE, "sentence": HOSTILE, "table": [{HOSTILE: HOSTILE, "number": 0.5}]},
        provenance_section({HOSTILE: HOSTILE, "rows": 12_345}, {"latent": HOSTILE}),
        {"key": "absent", "title": HOSTILE, "absent": HOSTILE},
    ]
