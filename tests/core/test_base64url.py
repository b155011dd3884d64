"""One spelling for each value, and no other text is accepted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core import base64url
from tests.support.tokens import b64


@given(st.binary(max_size=100))
def test_every_value_is_decoded(value: bytes) -> None:
    """What an encoder writes without padding comes back."""
    assert base64url.decode(b64(value).encode()) == value


@given(st.one_of(st.binary(max_size=12), st.text("ABab01-_=+/", max_size=12).map(str.encode)))
def test_every_other_spelling_is_refused(text: bytes) -> None:
    """Text that is accepted is exactly what the encoder would have written."""
    try:
        value = base64url.decode(text)
    except base64url.Base64UrlError:
        return
    assert b64(value).encode() == text


@pytest.mark.parametrize(
    "text", [b"A", b"AAAAA", b"AB", b"AAB", b"A=", b"AA==", b"A+", b"A/", b"A A", b"AA\n", b"\xff\xff"]
)
def test_forgiving_decoders_accept_these(text: bytes) -> None:
    """RFC 7515 section 2: no padding, no white space, no other alphabet, no unused bits, no impossible length."""
    with pytest.raises(base64url.Base64UrlError):
        base64url.decode(text)
