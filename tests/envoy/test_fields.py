"""Field values for the upstream: visible ASCII that stands for exactly one text."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.envoy.fields import UPSTREAM_VALUE_BYTES_MAX, upstream_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("alice", b"alice"),
        ("orders:read orders:write", b"orders:read orders:write"),
        ('{"a":[1]}', b'{"a":[1]}'),
        ("zo\u00eb", b"zo%C3%AB"),
        ("zo%C3%AB", b"zo%25C3%25AB"),
        (" admin", b"%20admin"),
        ("admin ", b"admin%20"),
        (" ", b"%20"),
        ("  ", b"%20%20"),
        ("\u2028", b"%E2%80%A8"),
        ("", None),
        ("a\r\nx-user-role: admin", None),
        ("a\x00", None),
        ("a\tb", None),
        ("a\x7f", None),
        ("a\x85b", None),
        ("\ud800", None),
        ("a" * UPSTREAM_VALUE_BYTES_MAX, b"a" * UPSTREAM_VALUE_BYTES_MAX),
        ("a" * (UPSTREAM_VALUE_BYTES_MAX + 1), None),
        ("%" * (UPSTREAM_VALUE_BYTES_MAX // 3), b"%25" * (UPSTREAM_VALUE_BYTES_MAX // 3)),
        ("%" * (UPSTREAM_VALUE_BYTES_MAX // 3 + 1), None),
    ],
)
def test_values(text, value):
    """Printable ASCII as it is, the rest percent-encoded, nothing that could end or forge a field line."""
    assert upstream_value(text) == value


@given(st.one_of(st.text(max_size=30), st.text(alphabet=" %2aAé", max_size=8)))
def test_one_decoding_gives_the_text_back(text):
    """So different texts never look alike to an upstream that decodes, nor to one that does not."""
    value = upstream_value(text)
    if value is not None:
        assert unquote(value.decode("ascii"), errors="strict") == text
        assert value == value.strip()
        assert all(0x20 <= byte < 0x7F for byte in value)
