"""Durations: what is written is what is meant, and nothing else is a duration."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.durations import PATTERN, UNITS_US, parse, render
from sidecar.policy.faults import Wrong


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("150ms", 150_000),
        ("30s", 30_000_000),
        ("5m", 300_000_000),
        ("1h30m", 5_400_000_000),
        ("1d", 86_400_000_000),
        ("7us", 7),
        ("0s", 0),
        ("90m", 5_400_000_000),
        ("1d1h1m1s1ms1us", 90_061_001_001),
    ],
)
def test_durations_in_microseconds(text, us):
    """Every unit, and combinations from large to small."""
    assert parse(text) == us


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "s",
        "5 s",
        " 5s",
        "5s ",
        "5s\n",
        "-5s",
        "+5s",
        "1.5s",
        "5S",
        "5m1h",
        "1s1s",
        "5sec",
        "1ms1m",
        "\u0665s",
        "1h,5m",
    ],
)
def test_what_is_not_a_duration(text):
    """No sign, fraction, space, other unit, other order, repetition or other digits."""
    with pytest.raises(Wrong, match="not a duration"):
        parse(text)


@given(st.integers(0, 10**9 * UNITS_US["d"] - 1))
def test_render_and_parse_agree(us):
    """What is rendered means the same, and rendering it again gives the same text."""
    assert parse(render(us)) == us
    assert render(parse(render(us))) == render(us)


@given(st.text(alphabet="0123456789dhmsu .-", max_size=12))
def test_the_schemas_pattern_accepts_exactly_the_durations(text):
    """An editor and the parser agree on every text."""
    try:
        parse(text)
    except Wrong:
        assert re.search(PATTERN, text) is None
    else:
        assert re.search(PATTERN, text)
