"""Plain scalars, as gopkg.in/yaml.v2 resolves them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.go_yaml import UINT64_MAX, Plain, plain, resolved


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("NULL", None),
        ("nUll", "nUll"),
        ("y", True),
        ("Off", False),
        ("oFF", "oFF"),
        ("0", 0),
        ("-0", 0),
        ("+5", 5),
        ("1_000", 1000),
        ("010", 8),
        ("0o10", 8),
        ("08", 8.0),
        ("0x1F", 31),
        ("-0b101", -5),
        ("1:30", "1:30"),
        ("2026-01-02", "2026-01-02"),
        ("1.5", 1.5),
        ("1.", 1.0),
        (".5", 0.5),
        ("._5", "._5"),
        ("1e3", 1000.0),
        ("-1_0.5", -10.5),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("18446744073709551615", UINT64_MAX),
        ("18446744073709551616", 1.8446744073709552e19),
        ("0xFFFFFFFFFFFFFFFFF", "0xFFFFFFFFFFFFFFFFF"),
        ("-9223372036854775808", -(2**63)),
        ("+", "+"),
        ("-", "-"),
        (".", "."),
        ("1.2.3.4", "1.2.3.4"),
        ("_1", "_1"),
        ("<<", "<<"),
    ],
)
def test_plain_scalars(text, value):
    """Each kind that YAML 1.1 knows, and its borders."""
    found = plain(text)
    assert (resolved(found), type(resolved(found))) == (value, type(value))
    assert found is None or str(found) == text


@given(st.text("0123456789+-._eExXoObBaAfFyn", min_size=1, max_size=12))
def test_the_text_is_kept(text):
    """Whatever is resolved, the text stays as written, and nothing raises."""
    found = plain(text)
    assert found is None or found == text


def test_not_a_number_is_a_number():
    """`.nan` is one."""
    assert math.isnan(resolved(plain(".nan")))


def test_structures_are_resolved_as_a_whole():
    """Mappings and lists keep their form; what they hold is resolved."""
    assert resolved({"a": [Plain("010", 8), {"b": Plain("on", True)}], "c": "010"}) == {
        "a": [8, {"b": True}],
        "c": "010",
    }
