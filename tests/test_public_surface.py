"""The public names: a literal list, so that a change of it is a decision and not an accident."""

from __future__ import annotations

import importlib
import inspect

import pytest

import anomaly_vae
from anomaly_vae import errors

SURFACE = [
    "AnomalyDetector",
    "AnomalyVaeError",
    "AuditConfig",
    "BatchConfig",
    "Column",
    "CompareConfig",
    "Detector",
    "ImageConfig",
    "ImageSchema",
    "LatentDensityResampler",
    "LatentSpace",
    "ReportConfig",
    "ResampleConfig",
    "RowWeigher",
    "Schema",
    "ScoreConfig",
    "ScorecardConfig",
    "TrainConfig",
    "compare_models",
    "fit_detector",
    "make_scorecard",
]

ERRORS = {
    "ArtifactError": ValueError,
    "CalibrationError": ValueError,
    "ConfigError": ValueError,
    "LockedError": RuntimeError,
    "NotFittedError": ValueError,
    "OutputExistsError": FileExistsError,
    "SchemaError": ValueError,
    "ShapeError": ValueError,
    "TrainingError": RuntimeError,
    "UnreadableDataError": errors.SchemaError,
}


def test_the_surface_is_this_list() -> None:
    assert anomaly_vae.__all__ == SURFACE
    assert set(SURFACE) <= set(dir(anomaly_vae))


@pytest.mark.parametrize("name", SURFACE)
def test_every_public_thing_resolves_and_explains_itself(name: str) -> None:
    thing = getattr(anomaly_vae, name)
    assert thing.__name__ == name
    assert len(inspect.getdoc(thing) or "") > 20
    if inspect.isclass(thing):
        for method, function in inspect.getmembers(thing, inspect.isfunction):
            if not method.startswith("_") and function.__module__.startswith("anomaly_vae"):
                assert inspect.getdoc(function), f"{name}.{method} has no docstring"


@pytest.mark.parametrize("name", SURFACE)
def test_every_public_signature_is_annotated(name: str) -> None:
    thing = getattr(anomaly_vae, name)
    functions = [thing] if inspect.isfunction(thing) else [f for _, f in inspect.getmembers(thing, inspect.isfunction)]
    for function in functions:
        if function.__module__.startswith("anomaly_vae") and not function.__name__.startswith("_"):
            signature = inspect.signature(function)
            bare = [p for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"]
            assert not bare, f"{function.__qualname__}: {bare}"
            assert signature.return_annotation is not signature.empty, function.__qualname__


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_also_what_a_caller_would_expect(name: str) -> None:
    error = getattr(errors, name)
    assert issubclass(error, ERRORS[name])
    assert issubclass(error, anomaly_vae.AnomalyVaeError)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Detectr'"):
        _ = anomaly_vae.Detectr


def test_rooms_say_what_they_are_for() -> None:
    for room in (
        "data",
        "models",
        "detection",
        "estimator",
        "resampler",
        "row_weigher",
        "debiasing",
        "training",
        "evaluation",
        "comparison",
        "latent",
        "scorecard",
        "judging",
        "reporting",
        "cards",
        "serving",
        "cli",
    ):
        module = importlib.import_module(f"anomaly_vae.{room}")
        assert len(inspect.getdoc(module) or "") > 20, room


def test_the_version_is_that_of_the_installed_package() -> None:
    assert anomaly_vae.__version__ == importlib.import_module("importlib.metadata").version("anomaly-vae")
