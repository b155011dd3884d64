"""How an API key is written: `<prefix>_<environment>_<key id>_<secret><checksum>`; the environment may be left out.

The checksum lets garbage be refused before anything is looked up, and lets scanners recognise leaked keys; it is no
security: whoever knows the format can compute it. Every part has a fixed length, so a key has one spelling. A double
click selects the whole of it, since `_` and base62 alone occur.
"""

from __future__ import annotations

import re
from binascii import crc32
from hashlib import sha256
from typing import Final, NamedTuple

ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""Of base62, in the order of the digits' values."""

KEY_ID_CHARS: Final = 12
SECRET_CHARS: Final = 27
"""62^27 is more than 2^160."""
CHECKSUM_CHARS: Final = 6
"""62^6 is more than 2^32."""

PREFIX_PATTERN: Final = r"^[a-z][a-z0-9]{0,15}$"
ENVIRONMENT_PATTERN: Final = r"^[a-z0-9]{1,16}$"

KEY_CHARS_MAX: Final = 16 + 1 + 16 + 1 + KEY_ID_CHARS + 1 + SECRET_CHARS + CHECKSUM_CHARS

FOREIGN_CHARS_MIN: Final = 20
"""Of keys that were made elsewhere; shorter ones can be guessed."""
FOREIGN_CHARS_MAX: Final = 256

_KEY: Final = re.compile(
    rf"([a-z][a-z0-9]{{0,15}}(?:_[a-z0-9]{{1,16}})?)_([0-9A-Za-z]{{{KEY_ID_CHARS}}})"
    rf"_[0-9A-Za-z]{{{SECRET_CHARS}}}([0-9A-Za-z]{{{CHECKSUM_CHARS}}})"
)
_KEY_ID: Final = re.compile(rf"[0-9A-Za-z]{{{KEY_ID_CHARS}}}")
_FOREIGN: Final = re.compile(rf"[!-~]{{{FOREIGN_CHARS_MIN},{FOREIGN_CHARS_MAX}}}")
_FOREIGN_ID_BYTES: Final = 8
_FOREIGN_MARK: Final = "x"


class ParsedKey(NamedTuple):
    """What a well-formed key says of itself.

    Attributes:
        family: The prefix, with the environment where there is one: `acme` or `acme_live`.
        key_id: Names the key.
    """

    family: str
    key_id: str


def parse_key(text: str) -> ParsedKey | None:
    """A key as sent; None where it has another form, or a checksum that does not fit."""
    if len(text) > KEY_CHARS_MAX:
        return None
    found = _KEY.fullmatch(text)
    if found is None or checksum(text[:-CHECKSUM_CHARS]) != found[3]:
        return None
    return ParsedKey(found[1], found[2])


def family_of(prefix: str, environment: str = "") -> str:
    """What keys of a prefix and an environment ("" for none) begin with."""
    return f"{prefix}_{environment}" if environment else prefix


def write_key(family: str, key_id: str, secret: str) -> str:
    """The whole key.

    Raises:
        ValueError: A part has not its form.
    """
    text = f"{family}_{key_id}_{secret}"
    text += checksum(text)
    if parse_key(text) is None:
        raise ValueError(
            f"a key is made of a prefix, {KEY_ID_CHARS} base62 characters of id and {SECRET_CHARS} of secret"
        )
    return text


def checksum(text: str) -> str:
    """The CRC-32 of what is before it, in base62."""
    return _base62(crc32(text.encode("utf-8", "surrogatepass")), CHECKSUM_CHARS)


def is_key_id(text: str) -> bool:
    """Whether a text can name a key."""
    return _KEY_ID.fullmatch(text) is not None


def key_digest(text: str) -> bytes:
    """The SHA-256 of a key as sent: what is hashed under a pepper, and what names a key that was proved before."""
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


def is_foreign_key(text: str) -> bool:
    """Whether a text may be a key that was made elsewhere: printable ASCII of a bounded length."""
    return _FOREIGN.fullmatch(text) is not None


def foreign_key_id(digest: bytes) -> str:
    """The name of a key that has none in itself, from its digest: 64 bits of it."""
    number = int.from_bytes(digest[:_FOREIGN_ID_BYTES], "big")
    return _FOREIGN_MARK + _base62(number, KEY_ID_CHARS - len(_FOREIGN_MARK))


def _base62(number: int, chars: int) -> str:
    text = ""
    for _ in range(chars):
        number, digit = divmod(number, len(ALPHABET))
        text = ALPHABET[digit] + text
    return text
