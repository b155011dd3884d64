"""What may be shown of texts that others chose: no credential in them, and nothing that deceives who reads them."""

from __future__ import annotations

import re
from typing import Final

from sidecar.core.secret import MASK

# base64url of `{"`, and what follows: no pattern here may start over within what it has read, since texts may be long.
_JWT: Final = re.compile(r"(?<![A-Za-z0-9])eyJ[\w-]{4,}(?:\.[\w-]*){0,2}")
_BEARER: Final = re.compile(r"(?i)\b(bearer|basic|dpop|apikey)\s+[\w.~+/=-]{6,}")
_API_KEY: Final = re.compile(r"(?<=_)([0-9A-Za-z]{12})_[0-9A-Za-z]{33,}")
"""Of api_key_format.py; the id stays, since operators know keys by it."""
_API_KEY_CHARS: Final = 12 + 1 + 33
_URL_PASSWORD: Final = re.compile(r"(://[^/@\s:]*:)[^/@\s]+@")

# In UTF-8: DEL, C1 controls, line and paragraph separators, and the controls of writing direction (UAX 9), which can
# make a terminal show a line as another one.
_DECEPTIVE: Final = re.compile(
    rb"\x7f|\xc2[\x80-\x9f]|\xd8\x9c|\xe2\x80[\x8e\x8f\xa8-\xae]|\xe2\x81[\xa6-\xa9]",
)


def masked_text(text: str) -> str:
    """The text without anything that looks like a token, a credential or a URL's password."""
    text = _JWT.sub(MASK, text)
    text = _BEARER.sub(lambda match: f"{match[1]} {MASK}", text)
    text = _API_KEY.sub(lambda match: f"{match[1]}_{MASK}", text)
    return _URL_PASSWORD.sub(lambda match: f"{match[1]}{MASK}@", text)


def shown_path(path: str, characters_max: int) -> str:
    """A path for a record: masked, and cut. What is plain costs four looks for a substring."""
    path = path[: characters_max + _API_KEY_CHARS]  # an API key is known by its end
    if "eyJ" in path or "@" in path or " " in path or ("_" in path and len(path) > _API_KEY_CHARS):
        path = masked_text(path)
    return path[:characters_max]


def shown_host(authority: str, characters_max: int) -> str:
    """The same of an authority, without its user information (RFC 3986 section 3.2.1)."""
    host = authority.rpartition("@")[2] if "@" in authority else authority
    return shown_path(host, characters_max)


def escaped_json(encoded: bytes) -> bytes:
    """JSON with DEL, C1, bidirectional controls and line separators written as escapes; what they mean stays.

    They can only stand within strings there. Pure ASCII, the common case, costs next to nothing.
    """
    if encoded.isascii() and b"\x7f" not in encoded:
        return encoded
    return _DECEPTIVE.sub(lambda match: b"\\u%04x" % ord(match[0].decode()), encoded)
