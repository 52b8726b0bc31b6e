"""A request's text is read by a fast parser where that says what the strict one would, else by the strict one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_vae.serving.payload import MOST_DEPTH, RefusedError, strict_json

LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
LEAVES |= st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner), max_leaves=8)


def depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


@given(VALUES.filter(lambda value: depth(value) <= MOST_DEPTH))
def test_it_says_what_the_standard_parser_says(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert repr(strict_json(text.encode())) == repr(json.loads(text))  # 1 is not 1.0 here, nor 0.0 -0.0


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}',
        '{"a": [{"b": 1, "b": 2}]}',
        '{"a": [[{"b": 1, "b": 2}]], "c": {"d": 1}}',
        '{"a": {"b": {"c": 1, "c": 2}}, "t": "no: colons: of keys"}',
        '{"a": [{"b": {"c": 1, "c": 1}}]}',
    ],
)
def test_a_key_twice_is_refused_at_any_depth(text: str) -> None:
    with pytest.raises(RefusedError, match="more than once"):
        strict_json(text.encode())


@pytest.mark.parametrize("digits", ["-9223372036854775809", "18446744073709551616", "-9999999999999999999", "1" * 25])
@pytest.mark.parametrize("frame", ["[%s]", "[0,%s]", '{"a":%s}', '{"a": \n%s}', "[0.12345678901234567890,%s]"])
def test_a_whole_number_of_more_than_64_bits_is_refused_wherever_it_stands(digits: str, frame: str) -> None:
    with pytest.raises(RefusedError, match="64 bits"):
        strict_json((frame % digits).encode())


def test_long_fractions_are_numbers() -> None:
    assert strict_json(b'{"a": [0.001234567890123456789012, 12345678901234567890123.5]}') == {
        "a": [0.0012345678901234567, 1.2345678901234568e22]
    }
