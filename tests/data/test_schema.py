"""Kinds are inferred by the stated rules; encoding loses nothing but float32's digits."""

from __future__ import annotations

import datetime as dt
import json
import tomllib

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_vae.data.cells import UNSEEN
from anomaly_vae.data.schema import MAX_CATEGORIES, NO_COUNT, SATURATION, UNSEEN_FLOOR, Schema
from anomaly_vae.errors import DataWarning, SchemaError

N = 40
EXAMPLES = {
    "continuous": pd.Series(np.linspace(-1, 1, N)),
    "negative whole": pd.Series(np.arange(N) % 7 - 3),
    "count": pd.Series(np.arange(N) % 7),
    "count with gaps": pd.Series([None, *(np.arange(N - 1) % 7)], dtype="float64"),
    "nullable count": pd.Series([None, *(np.arange(N - 1) % 7)], dtype="Int64"),
    "binary numbers": pd.Series(np.arange(N) % 2 * 5),
    "two floats": pd.Series(np.arange(N) % 2 * 0.5),
    "bool": pd.Series(np.arange(N) % 2 == 0),
    "bool with gaps": pd.Series([None, *(np.arange(N - 1) % 2 == 0)], dtype=object),
    "nullable bool": pd.Series([None, *(np.arange(N - 1) % 2 == 0)], dtype="boolean"),
    "two texts": pd.Series(["a", "b"] * (N // 2)),
    "category": pd.Series(list("abcd") * (N // 4), dtype="category"),
    "category of numbers": pd.Series([1, 2, 3, 4] * (N // 4), dtype="category"),
    "constant": pd.Series([3.5] * N),
    "constant text": pd.Series(["x"] * N),
    "all missing": pd.Series([np.nan] * N),
    "time": pd.Series(pd.date_range("2024-01-01", periods=N)),
    "increasing": pd.Series(np.arange(N) * 3 + 100),
    "user_id": pd.Series(np.random.default_rng(0).permutation(N) + 1000),
    "mostly unique": pd.Series([f"name {i}" for i in range(N)]),
}
KINDS = {
    "continuous": "continuous", "negative whole": "continuous", "count": "count", "count with gaps": "count",
    "nullable count": "count", "binary numbers": "binary", "two floats": "continuous",
    "bool": "binary", "bool with gaps": "binary",
    "nullable bool": "binary", "two texts": "binary", "category": "categorical", "category of numbers": "categorical",
    "constant": "categorical", "constant text": "categorical", "all missing": "ignored", "time": "ignored",
    "increasing": "ignored", "user_id": "ignored", "mostly unique": "ignored",
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_kinds(name):
    frame = pd.DataFrame({name: EXAMPLES[name], "other": np.linspace(0, 1, N) ** 2})
    column = Schema.fit(frame).columns[0]
    assert column.kind == KINDS[name]
    assert column.reason or column.kind not in ("ignored",)


def test_kinds_are_the_same_from_arrow():
    frame = pd.DataFrame({k: v for k, v in EXAMPLES.items() if k != "bool with gaps"})
    got = {c.name: c.kind for c in Schema.fit(pa.Table.from_pandas(frame)).columns}
    assert got == {k: v for k, v in KINDS.items() if k in frame}


def test_declared_kinds_win():
    frame = pd.DataFrame({"user_id": EXAMPLES["user_id"], "when": EXAMPLES["time"], "code": np.arange(N) % 5})
    schema = Schema.fit(frame, kinds={"user_id": "count", "when": "continuous", "code": "categorical"})
    assert [c.kind for c in schema.columns] == ["count", "continuous", "categorical"]
    back = schema.decode(schema.encode(frame))
    assert (back["when"] - frame["when"]).abs().max() < dt.timedelta(seconds=30)
    assert back["code"].tolist() == frame["code"].tolist()


def cells(kind: str):
    values = {
        "continuous": st.floats(-1e12, 1e12, allow_nan=False),
        "count": st.integers(0, 10**6),
        "bool": st.booleans(),
        "text": st.sampled_from(["a", "b", "é", "", "007", "nan"]),
    }[kind]
    return st.lists(st.one_of(st.none(), values), min_size=12, max_size=30)


@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore:column 'v'. half of its cells")
@given(st.sampled_from(["continuous", "count", "bool", "text"]).flatmap(lambda k: st.tuples(st.just(k), cells(k))))
def test_decode_inverts_encode(drawn):
    kind, values = drawn
    dtypes = {"continuous": "Float64", "count": "Int64", "bool": "boolean", "text": "object"}
    declared = {"continuous": "continuous", "count": "count", "bool": "binary", "text": "categorical"}[kind]
    frame = pd.DataFrame({"v": pd.Series(values, dtype=dtypes[kind]), "other": np.linspace(0, 1, len(values)) ** 2})
    if frame["v"].isna().all():
        assert Schema.fit(frame).columns[0].kind == "ignored"
        return
    schema = Schema.fit(frame, kinds={"v": declared})
    x = schema.encode(frame)
    back = schema.decode(x)["v"]
    assert x.dtype == np.float32
    assert back.isna().tolist() == frame["v"].isna().tolist()
    present = frame["v"].notna().to_numpy()
    got, wanted = back[present].tolist(), frame["v"][present].tolist()
    if kind == "continuous":
        largest = float(np.abs(x[present, 0]).max())  # in float32 the product with a tiny scale would be 0
        tolerance = 4e-7 * (schema.columns[0].scale * largest + abs(schema.columns[0].center)) + 1e-300
        np.testing.assert_allclose(np.array(got, float), np.array(wanted, float), rtol=0, atol=tolerance)
    else:
        assert got == wanted


def test_order_does_not_matter_and_extra_columns_are_said():
    frame = pd.DataFrame({"a": np.linspace(0, 1, N), "b": np.arange(N) % 3, "c": ["x", "y"] * (N // 2)})
    schema = Schema.fit(frame)
    with pytest.warns(DataWarning, match="columns unknown to the model were ignored: 'z'"):
        shuffled = schema.encode(frame.assign(z=1)[["c", "z", "a", "b"]])
    np.testing.assert_array_equal(shuffled, schema.encode(frame))


def test_absent_columns_are_an_error_with_a_diff():
    frame = pd.DataFrame({"age": np.linspace(0, 1, N), "income": np.arange(N) % 3})
    schema = Schema.fit(frame)
    with pytest.raises(
        SchemaError, match=r"(?s)column 'income' absent.*- income   \(is it 'incomes'\?\).*\+ incomes"
    ) as caught:
        schema.encode(frame.rename(columns={"income": "incomes"}))
    assert caught.value.absent == ("income",)


def test_absent_columns_are_missing_cells_on_demand():
    frame = pd.DataFrame({"a": np.linspace(0, 1, N), "b": np.arange(N) % 3, "c": list("xy") * (N // 2)})
    schema = Schema.fit(frame)
    for absent in (["a"], ["b"], ["c"], ["a", "c"]):
        with pytest.warns(DataWarning, match=f"absent columns count as missing cells: {', '.join(map(repr, absent))}$"):
            got = schema.encode(frame.drop(columns=absent), allow_missing=True)
        empty = frame.assign(**dict.fromkeys(absent, np.nan))
        np.testing.assert_array_equal(got, schema.encode(empty, allow_missing=True))
        with pytest.raises(SchemaError, match=r"allow_missing=True, --allow-missing\."):
            schema.encode(frame.drop(columns=absent))
    with pytest.raises(SchemaError, match=r"3 too few.* without any of them there is nothing to score") as caught:
        schema.encode(pd.DataFrame({"z": [1]}), allow_missing=True)
    assert caught.value.absent == ("a", "b", "c")


def test_unseen_categories_get_the_sentinel_and_a_probability():
    frame = pd.DataFrame({"city": ["Oslo", "Rome", "Lima"] * 20, "x": np.linspace(0, 1, 60)})
    schema = Schema.fit(frame)
    x = schema.encode(pd.DataFrame({"city": ["Bonn", None, "Rome"], "x": 0.5}))
    assert x[0, 0] == 3
    assert np.isnan(x[1, 0])
    assert schema.decode(x)["city"].tolist() == [UNSEEN, None, "Rome"]
    assert schema.columns[0].unseen == UNSEEN_FLOOR
    singles = Schema.fit(pd.DataFrame({"city": ["Oslo", "Rome"] * 10 + ["Lima", "Bonn"], "x": np.linspace(0, 1, 22)}))
    assert singles.columns[0].unseen == pytest.approx(2 / 22), "Good-Turing: the share of values seen once"


def test_rare_categories_beyond_the_limit_become_unseen():
    values = [f"v{i}" for i in range(300) for _ in range(3)] + ["common"] * 10
    schema = Schema.fit(pd.DataFrame({"v": values, "x": np.linspace(0, 1, len(values))}))
    assert len(schema.columns[0].categories) == MAX_CATEGORIES
    assert schema.columns[0].categories[0] == "common"
    assert schema.columns[0].unseen == pytest.approx(45 * 3 / 910)


@pytest.mark.parametrize("value", [1, 1.0, True, "1", "True", "true"])
def test_a_boolean_may_come_back_as_number_or_text(value):
    schema = Schema.fit(pd.DataFrame({"b": [True, False] * 10, "x": np.linspace(0, 1, 20)}))
    assert schema.encode(pd.DataFrame({"b": [value], "x": [0.1]}))[0, 0] == 1


def test_whole_floats_and_integers_are_the_same_category():
    schema = Schema.fit(pd.DataFrame({"b": [3, 7] * 10, "x": np.linspace(0, 1, 20)}))
    assert schema.encode(pd.DataFrame({"b": [7.0, 3.0], "x": [0.1, 0.1]}))[:, 0].tolist() == [1, 0]


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9, 1e300])
def test_scales_neither_vanish_nor_overflow(scale):
    values = scale * (np.linspace(-1, 1, N) + 5)
    schema = Schema.fit(pd.DataFrame({"x": values}))
    x = schema.encode(pd.DataFrame({"x": values}))
    assert abs(x.mean()) < 1e-5
    assert x.std() == pytest.approx(1, rel=1e-5)


def test_absurd_values_saturate_with_a_warning():
    schema = Schema.fit(pd.DataFrame({"x": np.linspace(0, 1, N), "n": np.arange(N) % 5}))
    with pytest.warns(DataWarning, match="beyond"):
        x = schema.encode(pd.DataFrame({"x": [1e300, -1e300], "n": [0, 1]}))
    assert x[:, 0].tolist() == [SATURATION, -SATURATION]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("abc", "column 'x' must hold numbers, got 'abc' in row 'r2'"),
        (np.inf, "column 'x' must be finite, got infinity in row 'r2'"),
        (1 + 2j, "column 'x' must hold real numbers, got complex"),
        ([1, 2], "column 'x' must hold"),
    ],
)
def test_bad_cells_are_named(cell, message):
    schema = Schema.fit(pd.DataFrame({"x": np.linspace(0, 1, N)}))
    values = pd.Series([0.1, 0.2], dtype=object)
    values[1] = cell
    series = values.infer_objects() if isinstance(cell, complex) else values
    frame = pd.DataFrame({"x": series.to_numpy() if isinstance(cell, complex) else series})
    frame.index = ["r1", "r2"]
    with pytest.raises(SchemaError, match=message):
        schema.encode(frame)


def test_numbers_with_a_stray_text_are_refused_at_training():
    frame = pd.DataFrame({"x": [*map(str, range(30)), "n/a?"]})
    with pytest.raises(SchemaError, match=r"column 'x' must hold numbers only or text only, got 'n/a\?' in row 30"):
        Schema.fit(frame)


@pytest.mark.parametrize("value", [-3, 2.5])
def test_what_is_no_count_is_kept_as_such_with_a_warning(value):
    schema = Schema.fit(pd.DataFrame({"n": np.arange(N) % 5}))
    with pytest.warns(
        DataWarning, match=f"count column 'n': .* such as {float(value)} in row 1, score as values never"
    ):
        x = schema.encode(pd.DataFrame({"n": [1, value, None]}))
    assert x[:2, 0].tolist() == [1, NO_COUNT]
    assert schema.decode(x)["n"].tolist() == [1, UNSEEN, pd.NA]


def test_a_declared_count_must_be_one_in_training():
    with pytest.raises(SchemaError, match=r"count column 'n' must hold whole numbers from 0 up, got 2\.5 in row 1"):
        Schema.fit(pd.DataFrame({"n": [1.0, 2.5]}), kinds={"n": "count"})


def test_duplicate_names_no_rows_and_nothing_to_model_are_refused():
    with pytest.raises(SchemaError, match="column names must differ, got 'a' more than once"):
        Schema.fit(pd.DataFrame([[1, 2]], columns=["a", "a"]))
    with pytest.raises(SchemaError, match="must have rows and columns"):
        Schema.fit(pd.DataFrame({"a": []}))
    with pytest.raises(SchemaError, match="must have a column to model"):
        Schema.fit(pd.DataFrame({"a": [None] * N}))
    with pytest.raises(SchemaError, match="Did you mean 'age'"):
        Schema.fit(pd.DataFrame({"age": [1.0, 2.0]}), kinds={"agee": "count"})


def test_a_schema_survives_json_and_its_toml_is_editable():
    frame = pd.DataFrame({**EXAMPLES, 'quo"ted # é': EXAMPLES["continuous"]})
    schema = Schema.fit(frame)
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
    kinds = tomllib.loads(schema.to_toml())["columns"]
    assert kinds == {c.name: c.kind for c in schema.columns}
    again = Schema.fit(frame, kinds=kinds)
    assert [c.kind for c in again.columns] == [c.kind for c in schema.columns]


def test_a_stored_schema_is_checked():
    facts = Schema.fit(pd.DataFrame({"x": np.linspace(0, 1, N)})).to_dict()
    for change in ({"scale": 0.0}, {"kind": "magic"}, {"unseen": 2.0}, {"extra": 1}):
        with pytest.raises(SchemaError, match="stored schema"):
            Schema.from_dict({"columns": [{**facts["columns"][0], **change}]})


def test_three_thousand_columns():
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 3000)))
    schema = Schema.fit(frame)
    assert schema.encode(frame).shape == (30, 3000)


def test_what_a_column_is_is_judged_by_all_rows_and_its_scale_by_the_training_rows():
    frame = pd.DataFrame({"x": [*np.linspace(0, 1, 39), 100.0], "b": ["u"] * 39 + ["v"], "gone": [np.nan] * 39 + [1.5]})
    schema = Schema.fit(frame, rows=np.arange(39))
    assert schema.columns[0].center == pytest.approx(0.5)
    assert (schema.columns[1].kind, schema.columns[1].categories) == ("categorical", ("u",))
    assert schema.columns[2].reason == "every cell is missing in the training rows"
    assert schema.encode(frame)[-1, 1] == 1, "the value that training never saw is unseen"
    stray = pd.DataFrame({"x": [*["30"] * 39, "hot"]})
    with pytest.raises(SchemaError, match="got 'hot' in row 39"):
        Schema.fit(stray, rows=np.arange(39))


def test_a_column_declared_binary_with_one_value_is_constant():
    schema = Schema.fit(pd.DataFrame({"b": [1] * N, "x": np.linspace(0, 1, N)}), kinds={"b": "binary"})
    assert schema.columns[0].kind == "categorical"
    assert schema.encode(pd.DataFrame({"b": [0, 1], "x": 0.5}))[:, 0].tolist() == [1, 0]


def test_times_may_come_as_text():
    frame = pd.DataFrame({"when": EXAMPLES["time"], "x": np.linspace(0, 1, N)})
    schema = Schema.fit(frame, kinds={"when": "continuous"})
    text = frame.assign(when=frame["when"].dt.strftime("%Y-%m-%dT%H:%M:%S"))
    np.testing.assert_array_equal(schema.encode(text), schema.encode(frame))
    with pytest.raises(SchemaError, match=r"column 'when' must hold times such as .*, got 'soon' in row 3"):
        schema.encode(text.assign(when=["soon" if i == 3 else t for i, t in enumerate(text["when"])]))
