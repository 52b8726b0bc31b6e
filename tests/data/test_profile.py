"""A profile counts and keeps nothing of a single row."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from anomaly_vae import Schema
from anomaly_vae.data.profile import FEWEST_ROWS, MOST_BINS, Profile
from anomaly_vae.errors import SchemaError, ShapeError
from tests.conftest import mixed_frame


@pytest.fixture(scope="module")
def table() -> tuple[Schema, np.ndarray]:
    frame = mixed_frame(3000)
    rare = np.where(np.arange(3000) < 7, "Bonn", frame["city"].fillna("Oslo"))
    frame["town"] = np.where(np.arange(3000) == 8, "Rhodes", rare)
    schema = Schema.fit(frame)
    return schema, schema.encode(frame)


def test_every_cell_is_counted_once(table):
    schema, x = table
    profile = Profile.fit(schema, x)
    assert [c.name for c in profile.columns] == list(schema.names)
    for j, column in enumerate(profile.columns):
        assert column.rows == len(x)
        assert column.missing == np.isnan(x[:, j]).sum()
    assert sum(c.missing for c in profile.columns) > 300


def test_no_bin_holds_few_training_rows(table):
    schema, x = table
    for n in (10, 25, 300, 3000):
        for column in Profile.fit(schema, x[:n]).columns:
            filled = column.counts[column.counts > 0]
            alone = len(filled) == 1  # fewer rows than a bin must have
            assert alone or filled.min() >= FEWEST_ROWS, (n, column.name, column.counts)
            assert len(column.counts) <= MOST_BINS + 1


def test_no_edge_is_a_cell(table):
    schema, x = table
    for j, column in enumerate(Profile.fit(schema, x).columns):
        assert not np.isin(column.edges, x[:, j].astype(np.float64)).any(), column.name


def test_parts_add_up_to_the_whole(table):
    schema, x = table
    profile = Profile.fit(schema, x)
    halves = profile.of(x[:1000]) + profile.of(x[1000:])
    for a, b in zip(halves.columns, profile.columns, strict=True):
        assert a.counts.tolist() == b.counts.tolist()
        assert a.missing == b.missing


def test_rare_categories_share_a_bin_and_unseen_ones_have_their_own(table):
    schema, x = table
    town = Profile.fit(schema, x).columns[-1]
    index = schema.modelled[-1].index_of
    assert town.bin_of[index["Bonn"]] == town.bin_of[index["Rhodes"]] == town.bin_of[index["Lima"]]
    assert len(set(town.bin_of.tolist())) == 4
    unseen = Profile((town,)).of(np.full((5, 1), len(index), dtype=np.float32)).columns[0]
    assert unseen.counts.tolist() == [0, 0, 0, 5]
    assert town.counts[-1] == 0


def test_arrays_bring_it_back(table):
    schema, x = table
    profile = Profile.fit(schema, x)
    arrays = profile.to_arrays()
    again = Profile.from_arrays(schema.modelled, arrays)
    for a, b in zip(again.columns, profile.columns, strict=True):
        assert a.edges.tolist() == b.edges.tolist()
        assert a.counts.tolist() == b.counts.tolist()
    with pytest.raises(SchemaError, match="must have a profile in its bins"):
        Profile.from_arrays(schema.modelled, arrays | {"0.counts": arrays["0.counts"][:-1]})
    with pytest.raises(SchemaError, match="must have a profile in its bins"):
        Profile.from_arrays(schema.modelled, arrays | {"0.counts": -arrays["0.counts"]})
    with pytest.raises(ShapeError, match="must have shape"):
        profile.of(x[:, :2])


def test_a_column_of_one_value_has_one_bin():
    frame = pd.DataFrame({"x": np.ones(100), "y": np.arange(100.0) ** 1.1})
    schema = Schema.fit(frame, kinds={"x": "continuous"})
    profile = Profile.fit(schema, schema.encode(frame))
    assert profile.columns[0].counts.tolist() == [100]
