"""Settings are checked when made, and read from anywhere by the same names."""

from __future__ import annotations

import dataclasses
import json

import pytest

from anomaly_vae import BatchConfig, ScoreConfig, TrainConfig
from anomaly_vae.errors import AnomalyVaeError, ConfigError


def test_defaults_survive_json_and_toml(tmp_path):
    config = TrainConfig(hidden=(8, 4), columns={"a b": "count"}, latent=3)
    assert TrainConfig.from_mapping(json.loads(json.dumps(config.to_dict()))) == config
    path = tmp_path / "train.toml"
    path.write_text('latent = 3\nhidden = [8, 4]\n[columns]\n"a b" = "count"\n')
    assert TrainConfig.from_toml(path) == config


def test_words_are_toml_or_bare_text():
    config = TrainConfig().updated(["latent=4", "score_kind=elbo", "hidden=[16]", "learning_rate = 1e-2", "k=1"])
    assert (config.latent, config.score_kind, config.hidden, config.learning_rate, config.k) == (
        4,
        "elbo",
        (16,),
        0.01,
        1,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent": 0}, "latent must be an integer of at least 1, got 0"),
        ({"latent": True}, "latent must be an integer"),
        ({"k": 3}, r"k must be one of calibration_k \[1, 16, 64\], got 3"),
        ({"calibration_k": ()}, "calibration_k must name at least one"),
        ({"score_kind": "elb0"}, "score_kind must be one of ensemble, elbo, likelihood, reconstruction"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number above 0"),
        ({"learning_rate": "fast"}, "learning_rate must be a number above 0"),
        ({"validation": 0.5, "calibration": 0.46}, "must leave at least 5 % of the rows"),
        ({"columns": {"a": "integer"}}, "columns.a must be one of continuous"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda, mps"),
        ({"seed": -1}, "seed must be an integer"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**change)


def test_unknown_names_get_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'latent'"):
        TrainConfig().updated(["latnet=3"])
    with pytest.raises(ConfigError, match="must look like key=value"):
        TrainConfig().updated(["latent"])
    with pytest.raises(ConfigError, match="must be a readable file"):
        TrainConfig.from_toml(tmp_path / "no.toml")
    (tmp_path / "bad.toml").write_text("latent = = 3")
    with pytest.raises(ConfigError, match="must be TOML"):
        TrainConfig.from_toml(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    "change",
    [{"alpha": 0.0}, {"fdr": 1.0}, {"explain": -1}, {"batch_rows": 0}, {"k": 0}, {"allow_missing": 1}, {"mc_se": 0}],
)
def test_score_settings_out_of_range_are_refused(change):
    with pytest.raises(ConfigError, match="must be"):
        ScoreConfig(**change)


@pytest.mark.parametrize(
    "change", [{"processes": 0}, {"on_error": "skip"}, {"format": "orc"}, {"processes": 2, "workers": 2}, {"alpha": 2}]
)
def test_batch_settings_out_of_range_are_refused(change):
    with pytest.raises(ConfigError, match="must be"):
        BatchConfig(**change)


def test_what_is_too_many_flags():
    assert [ScoreConfig(max_flagged=0.1).too_many(flagged, 50) for flagged in (5, 6)] == [False, True]
    assert [ScoreConfig(max_flagged=7).too_many(flagged, 50) for flagged in (7, 8)] == [False, True]
    assert [ScoreConfig(max_flagged=0).too_many(flagged, 50) for flagged in (0, 1)] == [False, True]
    assert not ScoreConfig().too_many(50, 50)
    with pytest.raises(ConfigError, match="max_flagged must be a number of at least 0"):
        ScoreConfig(max_flagged=-1)


@pytest.mark.parametrize("config", [TrainConfig, ScoreConfig, BatchConfig])
def test_every_setting_says_what_it_is(config):
    assert all(len(f.metadata["help"]) > 10 for f in dataclasses.fields(config))


def test_errors_carry_their_facts_and_are_the_builtin_kind():
    with pytest.raises(ValueError, match="latent") as caught:
        TrainConfig(latent=0)
    assert isinstance(caught.value, AnomalyVaeError)
    assert caught.value.option == "latent"
    assert caught.value.value == 0
