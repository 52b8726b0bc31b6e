"""What a notebook shows of results: escaped, without scripts, with the figures in it."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from anomaly_vae import Detector, ResampleConfig, TrainConfig, fit_detector
from anomaly_vae.debiasing.resampling import weigh
from anomaly_vae.evaluation.audit import audit
from anomaly_vae.evaluation.metrics import auroc_ap

HOSTILE = "<img src=x onerror=alert(1)>"


def tags(html: str) -> set[str]:
    return set(re.findall(r"<([a-z]+)", html))


PLAIN = {"div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "details", "summary"}


def test_a_detector_shows_its_columns_escaped() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=80)
    frame = pd.DataFrame({HOSTILE: a, "b": a + 0.1 * rng.normal(size=80)})
    fit = fit_detector(frame, TrainConfig(steps=150, hidden=(8,), latent=1, companions=()))
    for html in (fit.detector._repr_html_(), fit._repr_html_()):
        assert tags(html) <= PLAIN
        assert "&lt;img src=x onerror=alert(1)&gt;" in html
        assert fit.detector.digest in html


def test_a_detector_says_what_it_is(detector: Detector) -> None:
    html = detector._repr_html_()
    assert "rows of 5 columns" in html
    for column in detector.schema.names:
        assert column in html


def test_an_audit_shows_findings_and_groups() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat([HOSTILE, "b"], 1000)
    p = np.where(group == "b", rng.random(2000) ** 2, rng.random(2000))
    found = audit(p_values=p, groups={"team": group})
    html = found._repr_html_()
    assert tags(html) <= PLAIN
    assert found.findings
    assert "&lt;img" in html
    assert f"{found.rows:,}" in html


def test_other_results_show_themselves() -> None:
    ranking = auroc_ap([False, True, True, False], [0.1, 0.9, 0.4, 0.5], n_boot=10)
    assert "0.75" in ranking._repr_html_()
    density = np.random.default_rng(0).normal(size=200)
    report = weigh(density, ResampleConfig()).report
    html = report._repr_html_()
    assert tags(html) <= PLAIN
    assert "Resample report" in html
