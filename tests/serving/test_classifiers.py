"""A classifier that the user names judges samples in the user's own columns, and one that does not fit says so."""

from __future__ import annotations

import json
import textwrap
import warnings
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec

from anomaly_vae import Detector
from anomaly_vae.data.images import frame_of
from anomaly_vae.errors import ArtifactError, ConfigError, SchemaError
from anomaly_vae.options.understanding import ScorecardConfig
from anomaly_vae.scorecard import make_scorecard
from anomaly_vae.serving.classifiers import NamedClassifier, load_classifier
from tests.conftest import digit_images

from .conftest import make_rows

CONFIG = ScorecardConfig(rows=60, k=4, likelihood_rows=10, paths=4, dimensions=4)


def saved(folder: Path, body: str, signature: ModelSignature | None = None) -> str:
    """An MLflow model, kept as its own source, whose answer to `rows` is this code."""
    script, path = folder / "model.py", folder / "model"
    code = f"""
        import mlflow
        import numpy as np
        import pandas as pd

        class Answer(mlflow.pyfunc.PythonModel):
            def predict(self, context, model_input, params=None):
                rows = model_input
                {body}

        mlflow.models.set_model(Answer())
        """
    script.write_text(textwrap.dedent(code))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on hints of types and on examples
        mlflow.pyfunc.save_model(str(path), python_model=str(script), signature=signature, pip_requirements=["numpy"])
    return str(path)


LOAD = "p = 1 / (1 + np.exp(-(rows['load'] - 100) / 2)); return pd.DataFrame({'much': p, 'little': 1 - p})"


def test_probabilities_of_rows_in_the_user_s_columns(detector: Detector, tmp_path: Path) -> None:
    frame = make_rows(180, seed=6)
    classes = np.where(frame["load"] > 100, "much", "little")
    named = load_classifier(saved(tmp_path, LOAD))
    card = make_scorecard(detector, frame, CONFIG, classes=classes, classifier=named)
    assert [one.name for one in card.samples] == ["model", "data", "independent columns"]
    assert any("No Gaussian baseline" in note for note in card.notes)
    agreement = next(note for note in card.notes if "their own class" in note)
    assert float(agreement.split()[3].rstrip("%")) > 97  # float32 of a cell at the border may fall on its other side
    third = np.random.default_rng(CONFIG.seed).permutation(len(frame))[len(frame) // 3 :][: len(frame) // 3]
    assert card.of("data").modes.names[0] in ("much", "little")
    shares = dict(zip(card.of("data").modes.names, card.of("data").modes.samples, strict=True))
    assert shares["much"] == pytest.approx((classes[third] == "much").mean(), abs=0.03)
    assert 1 < card.of("data").inception.value <= 2
    spaced = ScorecardConfig(rows=60, k=4, likelihood_rows=10, paths=4, dimensions=4, space="classifier")
    told = make_scorecard(detector, frame, spaced, classifier=named)
    assert abs(told.of("data").frechet.value) < 5


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [
        (None, (8, 8)),
        ([TensorSpec(np.dtype("float32"), (-1, 64))], (64,)),
        ([TensorSpec(np.dtype("float64"), (-1, 1, 8, 8))], (1, 8, 8)),
        ([TensorSpec(np.dtype("uint8"), (-1, 8, 8, 1))], (8, 8, 1)),
        ([ColSpec("long", f"p{i}") for i in range(64)], (64,)),
        ([ColSpec("binary", "file")], None),
    ],
)
def test_images_come_as_the_classifier_declares(
    image_detector: Detector, tmp_path: Path, inputs: list | None, shape: tuple | None
) -> None:
    if shape is None:
        read = "x = np.array([np.frombuffer(cell, np.uint8)[:4] for cell in rows['file']])"
        body = f"{read}; assert (x[0, 1:] == [80, 78, 71]).all(); return np.where(np.arange(len(x)) % 2, 'a', 'b')"
    else:
        body = (
            f"x = np.asarray(rows); assert x.shape[1:] == {shape}, x.shape; x = x.reshape(len(x), -1); "
            "assert x.max() > 100; left = x.reshape(-1, 8, 8)[:, :, :4].sum((1, 2)); right = x.sum(1) - left; "
            "return np.where(left > right, 'left', 'right')"
        )
    named = load_classifier(saved(tmp_path, body, ModelSignature(Schema(inputs)) if inputs else None))
    images, _ = digit_images()
    card = make_scorecard(image_detector, frame_of(images[:180]), CONFIG, classifier=named)
    assert [one.name for one in card.samples] == ["model", "data", "independent columns", "Gaussian"]
    assert any("labels alone" in note for note in card.notes)
    assert card.of("data").inception.classes == 2
    if shape is not None:
        left = images.reshape(-1, 8, 8)[:, :, :4].astype(int).sum((1, 2)) > images[:, :, 4:].astype(int).sum((1, 2))
        chosen = np.random.default_rng(CONFIG.seed).permutation(180)[60:120]
        share = left[chosen].mean()
        entropy = -(share * np.log(share) + (1 - share) * np.log(1 - share))
        assert card.of("data").inception.value == pytest.approx(np.exp(entropy))  # of certain verdicts


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return rows['absent']", "take rows of this data, got KeyError: 'absent'"),
        ("return np.zeros(3)", "give classes or probabilities of 60 rows, got 3 x 1 values"),
        ("return np.full((len(rows), 2), 0.7)", "sum to 1 in each row"),
        ("return np.full((len(rows), 2), np.nan)", "sum to 1 in each row"),
        ("return np.linspace(0, 1, len(rows))", "got one number a row"),
        ("return np.zeros((len(rows), 2, 2))", "got ndarray"),
        ("return {'score': np.zeros(len(rows)), 'kind': ['a'] * len(rows)}", "in columns score, kind"),
    ],
)
def test_a_classifier_that_does_not_fit_says_so(detector: Detector, tmp_path: Path, body: str, said: str) -> None:
    named = load_classifier(saved(tmp_path, body))
    with pytest.raises(SchemaError, match=said):
        make_scorecard(detector, make_rows(180, seed=6), CONFIG, classifier=named)


def test_shapes_that_do_not_fit_and_labels_as_features_are_refused(detector: Detector) -> None:
    levels = np.zeros((30, 8, 8), np.uint8)
    declared = Schema([TensorSpec(np.dtype("float32"), (-1, 28, 28))])
    with pytest.raises(SchemaError, match=r"take images of shape \(8, 8\), got one that declares \(-1, 28, 28\)"):
        NamedClassifier("m", lambda rows: rows, declared).judged(levels)
    with pytest.raises(SchemaError, match="take images of 64 values, got one that declares 3 columns"):
        NamedClassifier("m", lambda rows: rows, Schema([ColSpec("double", n) for n in "abc"])).judged(levels)
    with pytest.raises(SchemaError, match="a table with text in it"):
        NamedClassifier("m", lambda rows: rows, declared).judged(pd.DataFrame({"a": ["x"]}))
    kinds = NamedClassifier("m", lambda rows: rows["site"].map(str))
    config = ScorecardConfig(rows=20, k=4, likelihood_rows=4, paths=2, space="classifier")
    with pytest.raises(ConfigError, match="must come from probabilities, got labels"):
        make_scorecard(detector, make_rows(90, seed=6), config, classifier=kinds)
    card = make_scorecard(detector, make_rows(90, seed=6), CONFIG, classifier=kinds, classes=np.arange(90))
    assert any("None of the classifier's verdicts is a class" in note for note in card.notes)


def test_what_cannot_be_loaded_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="must be a URI"):
        load_classifier("nothing")
    with pytest.raises(ArtifactError, match=r"must be an MLflow model, got .* Check the path"):
        load_classifier(str(tmp_path))
    path = saved(tmp_path, LOAD)
    (tmp_path / "model" / "model.py").write_text("import a_package_that_is_not_here")
    with pytest.raises(ArtifactError, match=r"must load here, got .*a_package_that_is_not_here"):
        load_classifier(path)


def test_the_command_takes_a_classifier(detector: Detector, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from anomaly_vae.cli import main

    detector.save(tmp_path / "detector")
    make_rows(180, seed=6).to_parquet(tmp_path / "rows.parquet", index=False)
    words = ["scorecard", str(tmp_path / "detector"), str(tmp_path / "rows.parquet"), "--rows", "60", "--k", "4",
             "--likelihood-rows", "10", "--paths", "4", "--json", "--classifier"]  # fmt: skip
    done = CliRunner().invoke(main, [*words, saved(tmp_path, LOAD)])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["classifier"] == str(tmp_path / "model")
    assert told["samples"][0]["inception"]["classes"] == 2
    wrong = CliRunner().invoke(main, [*words, str(tmp_path / "detector")])
    assert wrong.exit_code == 2
    assert "must be an MLflow model" in wrong.output
