"""Detectors of p(image|class): a wrong class is strange, samples are of their class, files give the same bits."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from anomaly_vae import AnomalyDetector, Detector, ImageConfig, fit_detector
from anomaly_vae.data.images import frame_of
from anomaly_vae.detection.image_scores import STATISTICS, statistics
from anomaly_vae.errors import ArtifactError, ConfigError, SchemaError
from anomaly_vae.latent.compression import compress
from anomaly_vae.latent.space import LatentSpace
from anomaly_vae.models import bounds
from anomaly_vae.models.conv import ImageVAE
from anomaly_vae.models.ladder import LadderVAE
from anomaly_vae.row_weigher import RowWeigher
from anomaly_vae.scorecard import make_scorecard
from tests.conftest import digit_images

CONFIG = ImageConfig(steps=120, latent=6, channels=16, calibration_k=(1, 4), condition="digit", validation=0.25)
TRAINED = 240


@pytest.fixture(scope="module")
def labelled() -> pd.DataFrame:
    """Zeros and ones, each with its class; shuffled, since the writers change in the course of the set."""
    images, digit = digit_images()
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(digit < 2))
    return frame_of(images[chosen]).assign(digit=digit[chosen])


@pytest.fixture(scope="module")
def detector(labelled: pd.DataFrame) -> Detector:
    return fit_detector(labelled[:TRAINED], CONFIG).detector


def as_kind(detector: Detector, kind: str) -> Detector:
    return replace(detector, config=replace(CONFIG, score_kind=kind))


def test_a_wrong_class_is_strange_to_the_model_that_is_told_it_alone(
    labelled: pd.DataFrame, detector: Detector
) -> None:
    rest = labelled[TRAINED:]
    wrong = np.arange(len(rest)) % 2 == 1
    told = rest.assign(digit=np.where(wrong, 1 - rest["digit"], rest["digit"]))
    plain = fit_detector(labelled[:TRAINED][["image"]], replace(CONFIG, condition=None)).detector
    for kind in ("statistics", "corrected"):
        found = as_kind(detector, kind).log_likelihood(told, k=4, kind=kind).value
        assert roc_auc_score(wrong, found) > 0.95
        blind = plain.log_likelihood(told[["image"]], k=4, kind=kind).value
        assert 0.35 < roc_auc_score(wrong, blind) < 0.65
    judged = detector.score_frame(told)["is_anomaly"]
    assert judged[wrong].mean() > 0.6
    assert judged[~wrong].mean() < 0.2


def test_samples_are_of_the_class_that_was_asked_for(labelled: pd.DataFrame, detector: Detector) -> None:
    pixels = np.stack(labelled["image"]).reshape(len(labelled), -1) / 255
    judge = LogisticRegression(max_iter=500).fit(pixels, labelled["digit"])
    for digit in (0, 1):
        drawn = detector.sample(100, seed=3, given=digit)
        assert (drawn["digit"] == str(digit)).all()
        assert (judge.predict(detector.pixels(drawn).reshape(100, -1) / 255) == digit).mean() > 0.7
    both = detector.sample(400, seed=3)["digit"].value_counts()
    assert both["0"] / 400 == pytest.approx(
        detector.schema.classes.counts[0] / sum(detector.schema.classes.counts), abs=0.1
    )
    with pytest.raises(ConfigError, match="got '7'"):
        detector.sample(1, given=7)


def test_two_statistics_of_an_image_know_its_class_and_six_do_not(labelled: pd.DataFrame, detector: Detector) -> None:
    frame, noise = labelled[:6], detector.noise[:4]
    own, other = (
        statistics(detector.model, detector.encode(rows), noise=noise)[0]
        for rows in (frame, frame.assign(digit=1 - frame["digit"]))
    )
    assert (own[:, :2] != other[:, :2]).all()
    assert (own[:, 2:] == other[:, 2:]).all()
    scored = detector.score_frame(frame, explain=8)
    for score, text in zip(scored["anomaly_score"], scored["attributions"], strict=True):
        parts = {part["column"]: part["nats"] for part in json.loads(text)}
        assert sum(parts.values()) == pytest.approx(score, abs=1e-6 * max(1, abs(score)))
        assert set(STATISTICS) < set(parts)


@pytest.mark.parametrize("kind", ["corrected", "elbo", "likelihood"])
def test_reasons_sum_to_the_score_and_the_class_costs_nothing(
    labelled: pd.DataFrame, detector: Detector, kind: str
) -> None:
    frame = labelled[:6]
    scored = as_kind(detector, kind).score_frame(frame, explain=64)
    for score, text in zip(scored["anomaly_score"], scored["attributions"], strict=True):
        parts = json.loads(text)
        assert len(parts) == 64 + 2  # the pixels, the others (none) and the latent part
        assert sum(part["nats"] for part in parts) == pytest.approx(score, abs=1e-4 * max(1, abs(score)))
        assert len({part["column"] for part in parts}) == len(parts)


def test_the_scores_are_the_bounds_on_the_density_given_the_class(labelled: pd.DataFrame, detector: Detector) -> None:
    frame, noise = labelled[:20], detector.noise[:4]
    model = ImageVAE(detector.schema.shape, CONFIG, 2).eval()  # whose rows have no class: it is given beside them
    model.load_state_dict(detector.model.state_dict(), strict=False)  # but for companions
    levels = torch.from_numpy(np.stack(frame["image"]).reshape(20, -1).astype(np.float32))
    with torch.no_grad():
        t = bounds.terms(model.given(torch.tensor(frame["digit"].to_numpy())), levels, noise)
    wanted = {"elbo": bounds.elbo(t.log_weights), "likelihood": bounds.importance_weighted_bound(t.log_weights)}
    for kind, bound in wanted.items():
        scores = detector.log_likelihood(frame, k=4, kind=kind)
        assert -scores.value == pytest.approx(bound.numpy(), abs=2e-3)
        assert (scores.mc_se > 0).all()


def test_a_ladder_is_told_classes_too(labelled: pd.DataFrame, tmp_path) -> None:
    config = replace(CONFIG, model="ladder", steps=100, score_kind="elbo")
    detector = fit_detector(labelled[:TRAINED], config).detector
    right = labelled[TRAINED:]
    scores, wrong = (
        detector.log_likelihood(rows, k=4, kind="elbo").value
        for rows in (right, right.assign(digit=1 - right["digit"]))
    )
    assert (wrong > scores).mean() > 0.9
    assert detector.score_frame(right.iloc[[7]])["anomaly_score"].iloc[0] == scores[7]
    model = LadderVAE(detector.schema.shape, config, 2).eval()
    model.load_state_dict(detector.model.state_dict(), strict=False)  # but for companions
    levels = torch.from_numpy(np.stack(right["image"]).reshape(len(right), -1).astype(np.float32))
    with torch.no_grad():
        t = bounds.terms(model.given(torch.tensor(right["digit"].to_numpy())), levels, detector.noise[:4])
    assert -scores == pytest.approx(bounds.elbo(t.log_weights).numpy(), abs=5e-3)
    reasons = detector.score_frame(right[:3], explain=2)
    for score, text in zip(reasons["anomaly_score"], reasons["attributions"], strict=True):
        assert sum(part["nats"] for part in json.loads(text)) == pytest.approx(score, abs=1e-3)
    assert set(LatentSpace(detector).denoise(right[:3])) == {"image", "digit"}
    detector.save(tmp_path / "ladder")
    loaded = Detector.load(tmp_path / "ladder")
    assert (loaded.score_frame(right)["anomaly_score"] == scores).all()
    assert (loaded.sample(5, given=1)["digit"] == "1").all()


def test_an_image_scores_the_same_in_any_company(labelled: pd.DataFrame, detector: Detector) -> None:
    whole = detector.score_frame(labelled)["anomaly_score"]
    for rows in ([5], [200, 3], list(range(100, 160))):
        assert (detector.score_frame(labelled.iloc[rows])["anomaly_score"] == whole.iloc[rows]).all()


def test_heat_maps_and_reconstructions_are_given_the_class(labelled: pd.DataFrame, detector: Detector) -> None:
    frame = labelled[:8]
    other = frame.assign(digit=1 - frame["digit"])
    assert detector.heat_maps(frame).shape == (8, 8, 8)
    assert detector.heat_maps(other).sum() > detector.heat_maps(frame).sum()
    assert (detector.reconstruct(frame) != detector.reconstruct(other)).any()
    assert detector.standardised(frame).shape == (8, 64)


def test_saved_and_loaded_it_scores_the_same_bits(labelled: pd.DataFrame, detector: Detector, tmp_path) -> None:
    detector.save(tmp_path / "model")
    loaded = Detector.load(tmp_path / "model")
    assert loaded.digest == detector.digest
    assert loaded.schema.classes == detector.schema.classes
    assert (loaded.score_frame(labelled)["anomaly_score"] == detector.score_frame(labelled)["anomaly_score"]).all()
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["schema"]["classes"]["names"] == ["0", "1"]
    assert {row["digit"] for row in json.loads((tmp_path / "model" / "golden.json").read_text())["rows"]} == {"0", "1"}
    config["schema"]["classes"]["names"] = ["1", "0"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="changed after saving"):
        Detector.load(tmp_path / "model")


def test_a_class_is_needed_and_must_be_known(labelled: pd.DataFrame, detector: Detector) -> None:
    with pytest.raises(SchemaError, match="must come with the column 'digit'"):
        detector.score_frame(labelled[["image"]])
    with pytest.raises(SchemaError, match=r"the image in row .* got '8'"):
        detector.score_frame(labelled[:3].assign(digit=[0, 8, 1]))
    with pytest.raises(SchemaError, match="no other column, got 3 columns"):
        fit_detector(labelled.assign(more=1), CONFIG)
    with pytest.raises(ConfigError, match="statistics must be"):
        replace(detector, statistics=None).log_likelihood(labelled[:2], kind="statistics")
    for setting in ({"input_noise": 0.1}, {"condition": ""}):
        with pytest.raises(ConfigError, match=next(iter(setting))):
            replace(CONFIG, **setting)


def test_codes_are_decoded_for_a_class(labelled: pd.DataFrame, detector: Detector) -> None:
    space, frame = LatentSpace(detector), labelled[:5]
    assert space.reconstruct(frame)["digit"].tolist() == frame["digit"].map(str).tolist()
    assert (detector.pixels(space.reconstruct(frame)) == detector.reconstruct(frame)).all()
    assert space.denoise(frame)["digit"].tolist() == frame["digit"].map(str).tolist()
    assert set(space.sample(40, expected=True)["digit"]) == {"0", "1"}
    with pytest.raises(ConfigError, match="decoded for a class, got none"):
        space.decode(space.encode(frame))
    zeros, ones = (LatentSpace(detector, given=given).decode(space.encode(frame)) for given in ("0", 1))
    assert set(zeros["digit"]) == {"0"}
    assert (detector.pixels(zeros) != detector.pixels(ones)).any()
    with pytest.raises(ConfigError, match="got '5'"):
        LatentSpace(detector, given="5")


def test_what_is_a_matter_of_all_classes_is_refused(labelled: pd.DataFrame, detector: Detector) -> None:
    with pytest.raises(ConfigError, match=r"scorecard must be of a model of p\(x\)"):
        make_scorecard(detector, labelled)
    with pytest.raises(ConfigError, match=r"resampling's detector must be of a model of p\(x\)"):
        RowWeigher.fit(detector, labelled)
    with pytest.raises(ConfigError, match=r"file of codes must be of a model of p\(x\)"):
        compress(LatentSpace(detector), labelled)


def test_a_model_of_all_images_has_no_class_to_draw(image_detector: Detector) -> None:
    with pytest.raises(ConfigError, match="told classes"):
        image_detector.sample(2, given="1")


def test_the_estimator_takes_images_with_their_classes(labelled: pd.DataFrame) -> None:
    clf = AnomalyDetector(replace(CONFIG, steps=60), random_state=0).fit(labelled[:100])
    assert clf.predict(labelled[:5]).shape == (5,)
    assert clf.detector_.schema.names == ("image", "digit")
