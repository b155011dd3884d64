"""What is shown of texts that others chose: no credentials, no characters that deceive the reader."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.redaction import escaped_json, masked_text, shown_host, shown_path
from tests.support.api_keys import id_of, new_key

KEY = new_key()
SNAKE_CASE = "/snake_case_paths_that_are_long/and_have_many_underscores"
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"
DECEPTIVE = ["\x7f", "\x80", "\x85", "\x9f", "\u061c", "\u200e", "\u200f", "\u2028", "\u2029", "\u202a", "\u202e"]
DECEPTIVE += ["\u2066", "\u2069"]


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/orders/7", "/orders/7"),
        ("/users/a@b", "/users/a@b"),
        (f"/t/{JWT}/x", "/t/***/x"),
        (f"/t_{JWT}", "/t_***"),
        (f"/t/{JWT[:40]}", "/t/***"),
        (f"/t/{JWT[:15]}", "/t/***"),
        ("/t/http://ann:hunter2@host", "/t/http://ann:***@host"),
        ("/t/Bearer abcdefgh", "/t/Bearer ***"),
        (f"/t/{KEY}/x", f"/t/acme_live_{id_of(KEY)}_***/x"),
        ("/" + "a" * 1000 + f"/{KEY}", ("/" + "a" * 1000 + f"/acme_live_{id_of(KEY)}_***")[:1024]),
        (SNAKE_CASE, SNAKE_CASE),
        ("/monkeyJump.html", "/monkeyJump.html"),
        ("", ""),
    ],
)
def test_what_looks_like_a_credential_is_masked_in_a_path(path, shown):
    """Tokens, also cut ones, and passwords give way to ***; nothing else changes."""
    assert shown_path(path, 1024) == shown


@pytest.mark.parametrize(
    ("authority", "shown"),
    [
        ("api.example.com:8080", "api.example.com:8080"),
        ("ann:hunter2@api.example.com", "api.example.com"),
        ("a@b@c", "c"),
        ("ann@", ""),
        (f"{JWT}.example.com", "***.example.com"),
        ("p" * 5000 + "@h", "h"),
    ],
)
def test_an_authority_loses_its_user_information(authority, shown):
    """Whatever stands before the last @, however long."""
    assert shown_host(authority, 1024) == shown


@pytest.mark.parametrize(("length", "kept"), [(8, 8), (9, 8)])
def test_texts_are_cut(length, kept):
    """At the number of characters that is given, and not below it."""
    assert len(shown_path("/" * length, 8)) == len(shown_host("h" * length, 8)) == kept


@pytest.mark.parametrize("character", DECEPTIVE)
def test_deceptive_characters_are_escaped(character):
    """They are not in the bytes, and still there for who parses them."""
    encoded = escaped_json(json.dumps({"path": f"/a{character}b"}, ensure_ascii=False).encode())
    assert character.encode() not in encoded
    assert f"\\u{ord(character):04x}".encode() in encoded
    assert json.loads(encoded) == {"path": f"/a{character}b"}


@given(st.text())
def test_escaping_keeps_the_meaning(text):
    """Whatever the text, JSON stays the same JSON; what people write stays readable."""
    encoded = json.dumps(text, ensure_ascii=False).encode("utf-8", "replace")
    assert json.loads(escaped_json(encoded)) == json.loads(encoded)
    assert not any(character.encode() in escaped_json(encoded) for character in DECEPTIVE)


@pytest.mark.parametrize("text", ["Grüße", "日本語", "👋"])
def test_writing_is_left_alone(text):
    """Letters of any script are not escaped."""
    assert escaped_json(text.encode()) == text.encode()


@pytest.mark.parametrize("text", ["-eyJabcd", "bearer ", "://a:"])
def test_long_texts_are_masked_in_one_pass(text):
    """Beginnings of tokens and credentials, over and over: this test would not end if each were searched to the end."""
    assert len(masked_text(text * 200_000)) <= 200_000 * len(text)
