"""Files come in as a stream; splits are reproducible."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from anomaly_vae.data.rows import labels, read_frames, read_table, split_rows
from anomaly_vae.errors import ConfigError, SchemaError, UnreadableDataError


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame({"a": np.arange(1000) / 7, "zip": [f"{i:05d}" for i in range(1000)], "c": ["x", None] * 500})


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".parquet"])
def test_a_stream_is_the_whole_table(tmp_path, frame, suffix):
    path = tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    parts = list(read_frames(path, batch_rows=300, text={"zip"}))
    assert [len(p) for p in parts] == [300, 300, 300, 100]
    got = pd.concat(parts)
    assert got.index.tolist() == list(range(1000))
    pd.testing.assert_frame_equal(got, frame, check_dtype=False, check_index_type=False)
    pd.testing.assert_frame_equal(read_table(path, text={"zip"}), frame, check_dtype=False, check_index_type=False)


def test_a_folder_is_read_in_order_of_name(tmp_path, frame):
    frame[:400].to_parquet(tmp_path / "part-0.parquet")
    frame[400:].to_csv(tmp_path / "part-1.csv", index=False)
    (tmp_path / "_SUCCESS").write_text("")
    got = pd.concat(read_frames(tmp_path, text={"zip"}))
    assert got.index.tolist() == list(range(1000))
    assert got["zip"].tolist() == frame["zip"].tolist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", "", "got an empty file"),
        ("empty.parquet", "", "got an empty file"),
        ("header.csv", "a,b\n", "got a header and nothing under it"),
        ("twice.csv", "a,b,a\n1,2,3\n", "got 'a' more than once"),
        ("ragged.csv", "a,b\n1,2\n1,2,3,4\n", "must be a readable table"),
        ("damaged.parquet", "PAR1 no", "must be a readable table"),
        ("binary.csv", b"\xff\xfe\x00\x01,\xff\n\xff\xfe,1\n", "must be a readable table"),
        ("table.xlsx", "x", "must be one of .csv"),
    ],
)
def test_unreadable_files_are_said(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UnreadableDataError, match=message):
        list(read_frames(path))


def test_absent_paths_and_empty_folders_are_said(tmp_path):
    with pytest.raises(UnreadableDataError, match="does not exist"):
        read_table(tmp_path / "no.csv")
    with pytest.raises(UnreadableDataError, match="got none in"):
        read_table(tmp_path)


def test_files_of_a_folder_must_agree(tmp_path):
    pd.DataFrame({"a": [1]}).to_csv(tmp_path / "1.csv", index=False)
    pd.DataFrame({"b": [1]}).to_csv(tmp_path / "2.csv", index=False)
    with pytest.raises(UnreadableDataError, match="must have the same columns"):
        read_table(tmp_path)


def test_labels():
    assert labels(pd.Series([1, 0, 1])).tolist() == [True, False, True]
    assert labels(pd.Series([1.0, 0.0])).tolist() == [True, False]
    assert labels(pd.Series(["Yes", " no "])).tolist() == [True, False]
    assert labels(pd.Series([True, False])).tolist() == [True, False]
    with pytest.raises(SchemaError, match="got '2' in row 1"):
        labels(pd.Series([1, 2], name="y"))
    with pytest.raises(SchemaError, match="in row 1"):
        labels(pd.Series([True, None], name="y"))


def test_splits_are_exact_disjoint_and_reproducible():
    fractions = {"calibration": 0.2, "validation": 0.1}
    parts = split_rows(1000, fractions=fractions, seed=3)
    assert {name: len(p) for name, p in parts.items()} == {
        "calibration": 200,
        "validation": 100,
        "train": 700,
    }
    assert sorted(np.concatenate(list(parts.values()))) == list(range(1000))
    again, other = (
        split_rows(1000, fractions=fractions, seed=3),
        split_rows(1000, fractions=fractions, seed=4),
    )
    np.testing.assert_array_equal(parts["train"], again["train"])
    assert not np.array_equal(parts["train"], other["train"])


def test_a_row_keeps_its_part_by_its_key():
    keys = pd.Series(np.arange(20_000) // 2)
    parts = split_rows(keys, fractions={"calibration": 0.2}, seed=1)
    chosen = set(keys.iloc[parts["calibration"]])
    assert len(parts["calibration"]) == 2 * len(chosen), "equal keys stay together"
    assert len(chosen) / 10_000 == pytest.approx(0.2, abs=0.02)
    shuffled = keys.sample(5000, random_state=0)
    again = split_rows(shuffled, fractions={"calibration": 0.2}, seed=1)
    assert set(shuffled.iloc[again["calibration"]]) <= chosen
    assert set(shuffled.iloc[again["train"]]).isdisjoint(chosen)


def test_fractions_must_leave_rows():
    with pytest.raises(ConfigError, match="less than 1"):
        split_rows(10, fractions={"a": 0.6, "b": 0.4})


def test_large_whole_numbers_with_gaps_keep_their_digits(tmp_path):
    pd.DataFrame({"id": pd.array([2**53 + 1, None], dtype="Int64")}).to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet")["id"][0] == 2**53 + 1


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_wide_tables_come_in_shorter_frames(tmp_path, frame, suffix, monkeypatch):
    monkeypatch.setattr("anomaly_vae.data.rows.MOST_CELLS", 600)
    path = tmp_path / f"t{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    assert [len(part) for part in read_frames(path)] == [200] * 5
