"""Classes as text, their numbers, and images that come with them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from anomaly_vae.data.classes import MOST_CLASSES, Classes
from anomaly_vae.data.images import ImageSchema, frame_of
from anomaly_vae.errors import ConfigError, SchemaError


def with_digits(digits: object) -> pd.DataFrame:
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 2), dtype=np.uint8)
    return frame_of(images).assign(digit=digits)


@pytest.mark.parametrize("cells", [[7, 10, 7, 7], [7.0, 10.0, 7.0, 7.0], ["7", "10", "7", "7"]])
def test_a_class_is_its_text_whatever_type_it_came_in(cells: list[object]) -> None:
    known = Classes.fit(pd.DataFrame({"digit": cells}), "digit")
    assert known == Classes("digit", ("7", "10"), (3, 1))
    for sent in (["10", "7"], [10, 7], [10.0, 7.0], np.array([10, 7])):
        assert known.numbers(pd.DataFrame({"digit": sent}))[0].tolist() == [1, 0]


def test_unknown_and_missing_classes_are_faults_at_their_rows() -> None:
    known = Classes.fit(pd.DataFrame({"site": ["Oslo", "Rome"]}), "site")
    numbers, faults = known.numbers(pd.DataFrame({"site": ["Rome", None, "Roma", np.nan]}))
    assert numbers.tolist() == [1, -1, -1, -1]
    assert [i for i, _ in faults] == [1, 2, 3]
    assert "got none" in faults[0][1]
    assert "got 'Roma'. Is it 'Rome'?" in faults[1][1]
    with pytest.raises(ConfigError, match="must be of a class"):
        known.number("Lima")


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        (["a"] * 4, "from 2 to 256 classes, got 1"),
        (["a", None, "b", "b"], "must have a class.*row 1"),
        (["a", "a", "a", "b"], "got none of 'b'"),
        (list(range(MOST_CLASSES + 1)), "got 257"),
    ],
)
def test_what_cannot_be_a_condition_is_said(cells: list[object], says: str) -> None:
    frame = pd.DataFrame({"kind": cells})
    rows = np.arange(3) if len(cells) == 4 else np.arange(len(cells))
    with pytest.raises(SchemaError, match=says):
        Classes.fit(frame, "kind", rows=rows)
    with pytest.raises(SchemaError, match=r"must come with the column 'other'.*'kind'"):
        Classes.fit(frame, "other")


def test_an_image_and_its_class_are_one_row() -> None:
    frame = with_digits([3, 1, 3, 1])
    schema = ImageSchema.fit(frame, condition="digit")
    x = schema.encode(frame)
    assert schema.names == ("image", "digit")
    assert x.shape == (4, 7)
    assert x[:, -1].tolist() == [1, 0, 1, 0]
    assert (x[:, :-1] == replace(schema, classes=None).encode(frame)).all()
    back = schema.decode(x)
    assert back["digit"].tolist() == ["3", "1", "3", "1"]
    assert (schema.encode(back) == x).all()
    assert (schema.pixels(x) == np.stack(frame["image"])).all()


def test_faults_of_images_and_of_classes_are_told_together_in_order() -> None:
    schema = ImageSchema.fit(with_digits([3, 1, 3, 1]), condition="digit")
    frame = with_digits([3, 2, 1, None])
    frame["image"] = [b"broken", *frame["image"][1:]]
    x, faults = schema.encode_each(frame)
    assert [i for i, _ in faults] == [0, 1, 3]
    assert "got '2'" in faults[1][1]
    assert x.shape == (1, 7)
    assert x[0, -1] == 0
    with pytest.raises(SchemaError, match="the image in row 0"):
        schema.encode(frame)
    with pytest.raises(SchemaError, match="must come with the column 'digit'"):
        schema.encode(frame[["image"]])


def test_the_schema_survives_json_and_stays_as_it_was_without_classes() -> None:
    schema = ImageSchema.fit(with_digits([3, 1, 3, 1]), condition="digit")
    assert ImageSchema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
    assert set(replace(schema, classes=None).to_dict()) == {"kind", "height", "width", "channels", "column"}
    facts = schema.to_dict()
    for bad in ({"names": ["1", "1"]}, {"counts": [0, 2]}, {"names": ["1"], "counts": [1]}, {"column": "image"}):
        with pytest.raises(SchemaError):
            ImageSchema.from_dict({**facts, "classes": {**facts["classes"], **bad}})
