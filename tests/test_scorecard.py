"""The scorecard on models whose samples are known to be good, noisy, or of too few kinds."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch

from anomaly_vae import Detector
from anomaly_vae.data.images import frame_of
from anomaly_vae.errors import ConfigError, SchemaError, ShapeError
from anomaly_vae.options.understanding import ScorecardConfig
from anomaly_vae.scorecard import Scorecard, make_scorecard
from tests.conftest import digit_images, mixed_frame

CONFIG = ScorecardConfig(rows=250, k=16, likelihood_rows=60, dimensions=20, paths=20)


def known_digits() -> tuple[np.ndarray, np.ndarray]:
    images, digit = digit_images()
    return images[digit != 3], digit[digit != 3]


def carded(detector: Detector, monkeypatch: pytest.MonkeyPatch, rows: np.ndarray) -> Scorecard:
    """The scorecard of a model that draws from these images, (n, 8, 8)."""
    flat = torch.from_numpy(rows.reshape(len(rows), -1))

    def sample(n: int, generator: torch.Generator) -> torch.Tensor:
        return flat[torch.randint(len(flat), (n,), generator=generator)]

    monkeypatch.setattr(detector.model, "sample", sample)
    images, digit = known_digits()
    return make_scorecard(detector, frame_of(images), CONFIG, classes=digit)


@pytest.mark.slow
def test_lost_modes_and_lost_quality_are_told_apart(image_detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    images, digit = known_digits()
    noise = 100 * np.random.default_rng(0).normal(size=images.shape)
    good = carded(image_detector, monkeypatch, images)
    few = carded(image_detector, monkeypatch, images[digit < 3])
    noisy = carded(image_detector, monkeypatch, np.clip(images + noise, 0, 255).astype(np.uint8))
    quality: Callable[[Scorecard], float] = lambda card: card.of("model").neighbourhoods.density  # noqa: E731
    coverage: Callable[[Scorecard], float] = lambda card: card.of("model").neighbourhoods.coverage  # noqa: E731
    assert coverage(few) < 0.6 * coverage(good)
    assert quality(few) > 0.8 * quality(good)
    assert quality(noisy) < 0.75 * quality(good)
    assert set("45678") <= set(few.of("model").modes.lost) <= set("456789")  # the judge takes a few others for a 9
    assert noisy.of("model").modes.found >= 8
    assert few.of("model").inception.value < 0.6 * good.of("model").inception.value
    for worse in (few, noisy):
        assert worse.of("model").frechet.value > 3 * abs(good.of("model").frechet.value)
    assert good.of("model").classifier.auroc < 0.75 < noisy.of("model").classifier.auroc


def test_baselines_are_in_their_places(image_detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    images, digit = known_digits()
    card = make_scorecard(image_detector, frame_of(images), CONFIG, classes=digit)
    assert [s.name for s in card.samples] == ["model", "data", "independent columns", "Gaussian"]
    data, independent = card.of("data"), card.of("independent columns")
    assert abs(data.frechet.value) < 0.2 * independent.frechet.value
    assert data.neighbourhoods.coverage == pytest.approx(data.neighbourhoods.expected_coverage, abs=0.08)
    assert independent.classifier.auroc > 0.9
    assert data.modes.found == 9
    assert card.rows_per_second > 10
    assert card.smoothness is not None
    assert card.smoothness.detour >= 1
    assert [b.k for b in card.bounds] == [1, 4, 16]
    assert np.all(np.diff([b.value for b in card.bounds]) > 0)
    assert card.prior is not None
    assert card.prior.kl == pytest.approx(card.prior.mutual_information + card.prior.marginal_kl)
    assert card.factors is not None
    assert card.factors.informativeness > 0.3
    assert 0 <= card.factors.mig < 0.5
    again = json.loads(json.dumps(card.to_dict(), allow_nan=False))
    assert Scorecard.from_dict({**again, "model": "models:/digits/1"}).to_dict() == card.to_dict()


@pytest.mark.parametrize("space", ["latent", "classifier"])
def test_features_of_choice(image_detector: Detector, space: str) -> None:
    images, digit = known_digits()
    config = ScorecardConfig(rows=120, space=space, k=4, likelihood_rows=20, dimensions=5, paths=5)
    card = make_scorecard(image_detector, frame_of(images), config, classes=digit)
    assert card.space == space
    assert abs(card.of("data").frechet.value) < card.of("independent columns").frechet.value


def test_a_table_without_classes(detector: Detector) -> None:
    card = make_scorecard(detector, mixed_frame(450, seed=4), CONFIG)
    assert any("No classes were given" in note for note in card.notes)
    assert any("No factors" in note for note in card.notes)
    assert card.of("model").inception is None
    assert card.factors is None
    by_name = {p.name: p for p in card.perplexities}
    assert set(by_name) == {"member", "city"}
    assert by_name["member"].value < by_name["member"].alone + 0.15  # the other columns tell something of it
    assert card.of("model").neighbourhoods.coverage > 0.6
    assert card.of("model").frechet.value < card.of("independent columns").frechet.value


def test_factors_are_measured_and_those_of_one_value_are_said(detector: Detector) -> None:
    frame = mixed_frame(300, seed=6)
    config = ScorecardConfig(rows=100, k=4, likelihood_rows=20, paths=5)
    card = make_scorecard(detector, frame, config, factors={"tall": frame["height"] > 170})
    assert card.factors.correlation["tall"] > 0.4
    same = make_scorecard(detector, frame, config, factors={"same": np.ones(300)}, classes=np.arange(300))
    assert same.factors is None
    assert any("nothing to be told apart by" in note for note in same.notes)
    assert any("No classifier: it needs 2 to 100 classes" in note for note in same.notes)


def test_what_is_refused(detector: Detector) -> None:
    frame = mixed_frame(90)
    with pytest.raises(SchemaError, match="at least 60 rows, got 2"):
        make_scorecard(detector, frame.head(2))
    with pytest.raises(SchemaError, match="absent"):
        make_scorecard(detector, pd.DataFrame({"other": np.arange(90.0)}))
    with pytest.raises(ShapeError, match="classes must be as many"):
        make_scorecard(detector, frame, classes=["a"])
    with pytest.raises(ConfigError, match="classifier must come with classes"):
        make_scorecard(detector, frame, ScorecardConfig(space="classifier"))
    with pytest.raises(ConfigError, match=r"must have `judged`, or .* got a Detector"):
        make_scorecard(detector, frame, classifier=detector)
    with pytest.raises(ConfigError, match="space must be one of"):
        ScorecardConfig(space="pixels")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": "many"}, "rows must be"),
        ({"rows": True}, "rows must be .* got bool"),
        ({"samples": [{"name": "model"}]}, r"samples.0.frechet must be .* got nothing"),
        ({"notes": [1]}, "notes.0 must be"),
        ({"prior": []}, "prior must be"),
        ({"rows_per_second": 10**400}, "rows_per_second must be .* too large"),
    ],
)
def test_facts_that_are_no_scorecard_are_refused(detector: Detector, change: dict, said: str) -> None:
    config = ScorecardConfig(rows=20, k=4, likelihood_rows=4, paths=2)
    facts = make_scorecard(detector, mixed_frame(60), config).to_dict()
    assert Scorecard.from_dict(facts).rows == 60
    with pytest.raises(SchemaError, match=said):
        Scorecard.from_dict({**facts, **change})
    with pytest.raises(SchemaError, match="the whole must be"):
        Scorecard.from_dict([])
