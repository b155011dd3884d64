"""The form of API keys: one spelling each, and a checksum that garbage does not pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.api_key_format import (
    ALPHABET,
    CHECKSUM_CHARS,
    FOREIGN_CHARS_MAX,
    FOREIGN_CHARS_MIN,
    KEY_CHARS_MAX,
    KEY_ID_CHARS,
    SECRET_CHARS,
    ParsedKey,
    checksum,
    family_of,
    foreign_key_id,
    is_foreign_key,
    is_key_id,
    key_digest,
    parse_key,
    write_key,
)

PREFIXES = st.from_regex(r"[a-z][a-z0-9]{0,15}", fullmatch=True)
ENVIRONMENTS = st.from_regex(r"[a-z0-9]{1,16}", fullmatch=True) | st.just("")
KEY = write_key("acme_live", "aB3dE6gH9jK2", "s" * SECRET_CHARS)


def base62(chars: int) -> st.SearchStrategy[str]:
    return st.text(ALPHABET, min_size=chars, max_size=chars)


@given(PREFIXES, ENVIRONMENTS, base62(KEY_ID_CHARS), base62(SECRET_CHARS))
def test_what_is_written_is_read(prefix: str, environment: str, key_id: str, secret: str) -> None:
    """Whatever the parts, a written key says its family and its id, and is no longer than the longest."""
    key = write_key(family_of(prefix, environment), key_id, secret)
    assert parse_key(key) == ParsedKey(family_of(prefix, environment), key_id)
    assert len(key) <= KEY_CHARS_MAX
    assert set(key) <= set(ALPHABET + "_")


def test_a_secret_has_160_bits() -> None:
    """And a checksum and a digest's name hold all values of theirs."""
    assert 62**SECRET_CHARS >= 2**160
    assert 62**CHECKSUM_CHARS >= 2**32
    assert 62 ** (KEY_ID_CHARS - 1) >= 2**64


@given(st.integers(0, len(KEY) - 1), st.sampled_from([*ALPHABET, "_", "-", "é", "\n", "\0", " ", "\ud800"]))
def test_one_changed_character_is_noticed(at: int, character: str) -> None:
    """A CRC finds every error of up to 32 bits in a row."""
    changed = KEY[:at] + character + KEY[at + 1 :]
    assert changed == KEY or parse_key(changed) is None


@given(st.text(max_size=200))
def test_garbage_is_no_key(text: str) -> None:
    """Nothing raises, and what is no key is not taken for one."""
    assert parse_key(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "_",
        KEY + "\n",
        " " + KEY,
        KEY + "=",
        KEY.upper(),
        KEY.lower(),
        KEY.replace("_", "-"),
        KEY.replace("acme_live", "acme__live"),
        KEY.replace("acme_live", "acme_live_x"),
        KEY.replace("acme_live", "_live"),
        KEY[:-1],
        KEY + "0",
        KEY * 1000,
        KEY.replace("a", "\u0430"),
    ],
)
def test_a_key_has_one_spelling(text: str) -> None:
    """No white space, no case, no separators, no lookalikes; and not what is longer."""
    assert parse_key(text) is None


@pytest.mark.parametrize(
    ("family", "key_id", "secret"),
    [
        ("Acme", "a" * KEY_ID_CHARS, "s" * SECRET_CHARS),
        ("acme", "a" * (KEY_ID_CHARS + 1), "s" * SECRET_CHARS),
        ("acme", "a" * KEY_ID_CHARS, "s" * (SECRET_CHARS - 1)),
        ("acme", "a" * KEY_ID_CHARS, "s" * (SECRET_CHARS + 1)),
        ("a" * 17, "a" * KEY_ID_CHARS, "s" * SECRET_CHARS),
    ],
)
def test_a_key_of_other_parts_is_not_written(family: str, key_id: str, secret: str) -> None:
    """Nothing is written that would not be read; what is said of it does not hold the secret."""
    with pytest.raises(ValueError, match="a key is made of") as caught:
        write_key(family, key_id, secret)
    assert secret not in str(caught.value)


def test_the_checksum_is_crc32_in_base62() -> None:
    """So that others can check it: the CRC-32 of `123456789` is 0xCBF43926."""
    assert checksum("123456789") == "3jZRME"
    value = 0
    for character in checksum("123456789"):
        value = value * 62 + ALPHABET.index(character)
    assert value == 0xCBF43926


def test_foreign_keys_have_bounds() -> None:
    """Visible ASCII, of a length from one bound to the other; its id is one, and hangs on the digest alone."""
    assert is_foreign_key("k" * FOREIGN_CHARS_MIN)
    assert is_foreign_key("k" * FOREIGN_CHARS_MAX)
    for text in ("k" * (FOREIGN_CHARS_MIN - 1), "k" * (FOREIGN_CHARS_MAX + 1), "k" * 30 + " ", "k" * 30 + "é"):
        assert not is_foreign_key(text)
    first, second = (foreign_key_id(key_digest(text)) for text in ("k" * 20, "k" * 21))
    assert first != second
    assert is_key_id(first)
    assert is_key_id(foreign_key_id(b"\xff" * 32))
