"""JSON that everyone reads alike is read; anything else is refused, and nothing is raised but `JsonError`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.strict_json import DEPTH_MAX, INTEGER_DIGITS_MAX, VALUES_MAX, JsonError, read_object

NAMES = st.text(max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=4), st.booleans())
def test_what_a_writer_wrote_is_read(members: dict[str, Any], escaped: bool) -> None:
    """With and without escapes; only nesting may be refused."""
    text = json.dumps(members, ensure_ascii=escaped)
    try:
        assert read_object(text.encode()) == members
    except JsonError as error:
        assert "nested" in str(error)  # noqa: PT017 - the other outcome is permitted
        assert text.count("[") + text.count("{") > DEPTH_MAX


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=40), st.text('{}[]",:\\u0dA1e.-+ \n', max_size=40).map(str.encode)))
def test_any_bytes_are_an_object_or_refused(raw: bytes) -> None:
    """Permitted: an object that the standard library reads too, or `JsonError`."""
    try:
        members = read_object(raw)
    except JsonError:
        return
    assert members == json.loads(raw)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("filler", ["", '"[[[[{{{{",', '"\\"[[[[",', '"\\\\",'])
def test_depth_is_exact(opening: str, filler: str) -> None:
    """At N it is read, at N + 1 refused, and brackets within strings do not count."""
    closing = "]" if opening == "[" else "}"

    def nested(depth: int) -> bytes:
        inner = opening * (depth - 2) + "1" + closing * (depth - 2)
        return f'{{"x":[{filler}{"[],[],[],[],[],[],[],[],[],[],[],[],[],"}{inner}]}}'.encode()

    assert read_object(nested(DEPTH_MAX))
    with pytest.raises(JsonError, match="nested deeper"):
        read_object(nested(DEPTH_MAX + 1))


def test_values_and_digits_are_counted_exactly() -> None:
    """At N they are read, at N + 1 refused; the caller may allow more values."""
    many = [1] * (VALUES_MAX - 1)
    assert read_object(json.dumps({"x": many}).encode())
    with pytest.raises(JsonError, match="more than 512 values"):
        read_object(json.dumps({"x": [*many, 1]}).encode())
    assert read_object(json.dumps({"x": [*many, 1]}).encode(), VALUES_MAX + 1)
    assert read_object(b'{"x":%d}' % (10 ** (INTEGER_DIGITS_MAX - 1)))
    with pytest.raises(JsonError, match="digits"):
        read_object(b'{"x":%d}' % 10**INTEGER_DIGITS_MAX)


def test_a_fault_quotes_nothing() -> None:
    """The message of an error holds nothing of the text."""
    for raw in (b'{"secret":1,"secret":2}', b'{"secret"', b'{"secret":NaN}', b'"secret"', b'{"secret":"\\ud800"}'):
        with pytest.raises(JsonError) as refused:
            read_object(raw)
        assert "secret" not in str(refused.value)
        assert refused.value.__cause__ is None
