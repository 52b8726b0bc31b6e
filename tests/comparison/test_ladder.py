"""The ladder of models on data whose density is known, and on data that some of its models have no answer to."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA

from anomaly_vae import ImageConfig, TrainConfig
from anomaly_vae.comparison import rungs
from anomaly_vae.comparison.ladder import compare_models
from anomaly_vae.comparison.prepared import prepared
from anomaly_vae.comparison.results import ModelComparison
from anomaly_vae.errors import ConfigError, DataWarning, SchemaError, ShapeError
from anomaly_vae.models import flow
from anomaly_vae.options.understanding import RUNGS, CompareConfig
from tests.conftest import digit_images, mixed_frame

CONFIG = CompareConfig(steps=250, latent=2, test_rows=150, mc_se=0.2, max_k=256, train_k=3)
BASE = TrainConfig(hidden=(16,), continuous="gaussian", learning_rate=0.01)
MIX = np.array([[1.0, 2.0, 0.5, -1.0], [0.0, 1.0, -1.0, 2.0]])
COVARIANCE = MIX.T @ MIX + 0.25 * np.eye(4)


def gaussian_rows() -> tuple[pd.DataFrame, np.ndarray]:
    """Rows near a plane, and after them anomalies off it."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(700, 2)) @ MIX + 0.5 * rng.normal(size=(700, 4))
    off = np.linalg.svd(MIX)[2][2:]
    strange = 4.0 * rng.normal(size=(60, 2)) @ off
    return pd.DataFrame(np.vstack([normal, strange]), columns=list("abcd")), np.arange(760) >= 700


@pytest.fixture(scope="module")
def found() -> ModelComparison:
    frame, anomalous = gaussian_rows()
    return compare_models(frame, CONFIG, base=BASE, labels=anomalous, classes=np.where(frame["a"] > 0, "up", "down"))


def test_every_model_has_figures_or_a_sentence(found: ModelComparison) -> None:
    assert tuple(rung.name for rung in found.rungs) == RUNGS == tuple(rungs.KINDS)
    without = {rung.name for rung in found.rungs if rung.figures is None}
    assert without == ({"ladder_vae"} if flow.flows_available() else {"ladder_vae", "flow"})
    assert all(rung.sentence for rung in found.rungs if rung.figures is None)
    assert found.rows["anomalous"] == 60
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert facts["rungs"][0]["figures"]["parameters"] == 2 * 4 + 4


def test_no_likelihood_is_above_the_truth(found: ModelComparison) -> None:
    """The mean log density of the true distribution is the most that any can have, but for the choice of rows."""
    frame, anomalous = gaussian_rows()
    truth = multivariate_normal(np.zeros(4), COVARIANCE).logpdf(frame[~anomalous].to_numpy()).mean()
    likelihoods = {r.name: r.figures for r in found.rungs if r.figures and r.figures.log_likelihood is not None}
    assert {"probabilistic_pca", "vae", "iwae", "conditional_vae", "exemplar_vae"} <= set(likelihoods)
    for name, figures in likelihoods.items():
        assert figures.log_likelihood < truth + 4 * figures.log_likelihood_se, name
        assert figures.log_likelihood > truth - 1.5, name
        assert figures.elbo <= figures.log_likelihood + 4 * figures.mc_se + 1e-9, name
        assert figures.bits_per_dimension == pytest.approx(-figures.log_likelihood / (4 * np.log(2)))
        assert figures.exact == (figures.mc_se == 0)
    assert likelihoods["probabilistic_pca"].log_likelihood == pytest.approx(truth, abs=0.2)


def test_linear_models_are_those_of_scikit_learn(found: ModelComparison) -> None:
    frame, anomalous = gaussian_rows()
    data = prepared(frame, CONFIG, BASE, anomalous, None)
    train, test = data.numbers("train").numpy(), data.numbers("test").numpy()
    pca = PCA(2).fit(train)
    want = pca.score_samples(test) - np.log(frame.iloc[:700].std(ddof=0)).sum()
    got = found.of("probabilistic_pca").figures.log_likelihood
    assert got == pytest.approx(want.mean(), abs=0.1)  # the scales are those of the training rows
    assert got == pytest.approx(pca.score_samples(test).mean() - data.log_scale, abs=1e-6)
    error = np.square(pca.inverse_transform(pca.transform(test)) - test).mean()
    for name in ("pca", "linear_autoencoder"):
        assert found.of(name).figures.reconstruction_error == pytest.approx(error, rel=1e-3)
    assert found.of("linear_autoencoder").figures.principal_angle < 1


def test_anomalies_off_the_plane_are_found(found: ModelComparison) -> None:
    for name in ("pca", "probabilistic_pca", "linear_autoencoder", "vae", "iwae"):
        figures = found.of(name).figures
        assert figures.auroc > 0.9, name
        assert figures.auroc_low <= figures.auroc <= figures.auroc_high
    assert found.of("pca").figures.score == "reconstruction error"
    assert found.of("vae").figures.score == "log-likelihood"
    assert found.of("beta_vae").figures.active_units <= 2


def test_a_mixed_table_with_gaps_leaves_numbers_to_others() -> None:
    config = CompareConfig(models="pca,probabilistic_pca,autoencoder,vae,conditional_vae,flow", steps=40, latent=2)
    got = compare_models(mixed_frame(200), config, base=TrainConfig(hidden=(8,)))
    sentences = {rung.name: rung.sentence for rung in got.rungs if rung.figures is None}
    assert set(sentences) == {"pca", "probabilistic_pca", "conditional_vae", "flow"}
    assert "'member', 'city'" in sentences["pca"]
    assert "'visits'" in sentences["probabilistic_pca"]
    assert "--classes" in sentences["conditional_vae"]
    figures = got.of("vae").figures
    assert figures.auroc is None
    assert figures.reconstruction_error > 0
    gaps = pd.DataFrame(np.random.default_rng(0).normal(size=(100, 3)), columns=list("abc"))
    gaps.iloc[::7, 0] = np.nan
    assert "missing cells" in compare_models(gaps, CompareConfig(models="pca", latent=1)).of("pca").sentence


@pytest.mark.whole
def test_images_climb_the_whole_ladder() -> None:
    images, digit = digit_images()
    chosen = np.flatnonzero(digit < 3)[:160]
    config = CompareConfig(steps=8, latent=4, test_rows=20, max_k=64, mc_se=5.0, train_k=2)
    base = ImageConfig(channels=16, batch_size=16, pixels="discretized_logistic", mixed_precision=False)
    got = compare_models(images[chosen], config, base=base, labels=digit[chosen] == 2, classes=digit[chosen])
    for rung in got.rungs:
        if rung.name == "flow" and not flow.flows_available():
            continue
        assert rung.figures is not None, rung
        if rung.figures.log_likelihood is not None:  # levels have probabilities, which are at most 1
            assert -700 < rung.figures.log_likelihood < 0, rung.name
    assert got.of("ladder_vae").figures.latent > 4
    assert got.of("linear_autoencoder").figures.principal_angle < 1
    assert got.data == "images of 8 x 8"


def test_sentences_for_classes_that_cannot_be_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, _ = gaussian_rows()
    config = CompareConfig(models="conditional_vae,flow,pca", steps=5)
    for classes, said in ((np.zeros(760), "have 1."), (np.arange(760), "training rows have")):
        monkeypatch.setattr(rungs, "flows_available", lambda: False)
        got = compare_models(frame, config, base=BASE, classes=classes)
        assert said in got.of("conditional_vae").sentence
        assert got.of("flow").sentence.startswith("Skipped: it needs zuko")
        assert got.of("pca").figures is not None
    wide = compare_models(frame, CompareConfig(models="pca,probabilistic_pca", latent=5), base=BASE)
    assert all("leave nothing out" in rung.sentence for rung in wide.rungs)


def test_constant_columns_are_left_out_with_a_warning() -> None:
    frame, _ = gaussian_rows()
    with pytest.warns(DataWarning, match="columns of one value are left out of the comparison: 'e'"):
        got = compare_models(frame.assign(e=1.0), CompareConfig(models="pca", latent=1))
    assert got.dimensions == 4


def test_the_same_seed_gives_the_same_figures() -> None:
    frame, _ = gaussian_rows()
    config = CompareConfig(models="pca,vae", steps=20, latent=2, test_rows=50)
    one, two = (compare_models(frame, config, base=BASE).to_dict() for _ in range(2))
    for found in (one, two):
        for rung in found["rungs"]:
            rung["figures"].pop("seconds")
    assert one == two


def test_what_is_refused() -> None:
    frame, _ = gaussian_rows()
    with pytest.raises(SchemaError, match="at least 20 normal rows, got 2"):
        compare_models(frame.head(2))
    with pytest.raises(SchemaError, match="got 0"):
        compare_models(frame, labels=np.ones(760))
    with pytest.raises(ShapeError, match="classes must be as many as the 760 rows, got 3"):
        compare_models(frame, classes=[1, 2, 3])
    with pytest.raises(ConfigError, match="models must be all or some of"):
        CompareConfig(models="pca,vea")
    with pytest.raises(ConfigError, match="train_k"):
        CompareConfig(train_k=1)
