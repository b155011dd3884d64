"""Finds secrets in what was written: the whole text, its parts, and what others make of it (base64, hex, escapes)."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote

PART_CHARS = 16
"""Of a secret, anywhere in it: so much of one that is written tells too much. What is shorter is looked for whole."""

_PEM_LINES = re.compile(r"-----[A-Z ]+-----|\s")

LOOKS_SECRET = re.compile(rb"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{16,}|-----BEGIN [A-Z ]*PRIVATE KEY-----", re.DOTALL)
"""A signed token, or a private key: neither has any business in a log, whichever it is."""


def parts(secret: str) -> Iterator[str]:
    """Overlapping parts of a secret, such that whatever is 1.5 times as long holds one of them."""
    if len(secret) <= PART_CHARS:
        yield secret
    for start in range(0, len(secret) - PART_CHARS + 1, PART_CHARS // 2):
        yield secret[start : start + PART_CHARS]


def _base64_cores(raw: bytes) -> Iterator[bytes]:
    """What base64 of these bytes looks like wherever in a longer text they start, less what their neighbours decide."""
    for shift in range(3):
        text = base64.b64encode(bytes(shift) + raw)
        yield text[4 if shift else 0 : len(raw) // 3 * 4 - 4]


def spellings(secret: str) -> dict[str, bytes]:
    """All that must not be found, each with its name; `secret` may be a PEM file's text."""
    body = _PEM_LINES.sub("", secret) if secret.startswith("-----BEGIN") else secret
    raw = body.encode()
    found: dict[str, bytes] = {}
    for number, part in enumerate(parts(body)):
        found[f"part {number}"] = part.encode()
        found[f"part {number} in hex"] = part.encode().hex().encode()
        found[f"part {number} percent-encoded"] = quote(part, safe="").encode()
        found[f"part {number} in JSON"] = json.dumps(part)[1:-1].encode()
    for shift, core in enumerate(_base64_cores(raw)):
        for number, part in enumerate(parts(core.decode())):
            found[f"base64 at {shift}, part {number}"] = part.encode()
            found[f"base64url at {shift}, part {number}"] = part.translate(str.maketrans("+/", "-_")).encode()
    if secret.startswith("-----BEGIN"):
        der = base64.b64decode(body)
        for number, part in enumerate(parts(der.hex())):
            found[f"DER in hex, part {number}"] = part.encode()
    return {name: text for name, text in found.items() if text}


def leaks(written: Mapping[str, bytes], secrets: Mapping[str, str]) -> list[str]:
    """Which secret stands where, and in which spelling; the secret itself is not repeated."""
    found = []
    for name, secret in secrets.items():
        for spelling, text in spellings(secret).items():
            found += [f"{name} ({spelling}) in {where}" for where, haystack in written.items() if text in haystack]
    return found


def suspicious(written: Mapping[str, bytes]) -> list[str]:
    """Where something stands that looks like a token or a private key."""
    return [where for where, text in written.items() if LOOKS_SECRET.search(text) is not None]


def secrets_of_token(text: str, name: str) -> dict[str, str]:
    """What must not be seen of a signed token: the whole, each segment that is long enough, and so the signature."""
    segments: Iterable[str] = (segment for segment in text.split(".") if len(segment) >= PART_CHARS)
    return {name: text, **{f"{name}, segment {number}": segment for number, segment in enumerate(segments)}}
