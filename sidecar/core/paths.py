"""One spelling for each path, host and method: what can be read in two ways is refused, never repaired.

The path that a rule is matched on and the path that the upstream serves come from the same bytes, but the upstream
reads them with a parser of its own. Wherever parsers are known to differ (empty and dot segments, backslashes, path
parameters, an encoded separator that some decode and some do not, a second round of decoding), two readings exist, and
a rule for the one does not protect the other. Such a path is denied: CVE-2021-29492 (`%2F`, `%5C`), CVE-2021-31920 and
CVE-2026-26205 (`//`), GHSA-xcx5-93pw-jw2w and CVE-2026-33494 (`/../`), CVE-2026-33186 (no leading `/`).

What remains is RFC 3986 `path-absolute`, and `canonical` gives it one spelling: hexadecimal digits in upper case, and
the characters that may stand raw (sub-delims, `:`, `@`) decoded, since clients differ on them (`/users/a%40b`,
`/users/a@b`). Two accepted paths have the same canonical spelling exactly when they decode to the same bytes.
"""

from __future__ import annotations

import enum
import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address

PATH_BYTES_MAX = 4096
"""Longer paths are refused: twice what common servers accept in a request line's path, and a bound on the work."""

HOST_BYTES_MAX = 253
"""The longest DNS name in text (RFC 1035 section 2.3.4)."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
"""RFC 9110 section 9 and RFC 5789."""

HOSTS_KEPT_MAX = 1024
"""Spellings whose canonical host is remembered: 0.1 us instead of 0.45."""


class PathFault(enum.Enum):
    """Why a path is refused; the value is a description for operators."""

    NOT_ABSOLUTE = "the path does not begin with /"
    TOO_LONG = f"the path is longer than {PATH_BYTES_MAX} bytes"
    EMPTY_SEGMENT = "the path has an empty segment (//)"
    DOT_SEGMENT = "the path has a segment that is . or .."
    PARAMETER = "the path has a ; parameter"
    BACKSLASH = "the path has a backslash"
    FRAGMENT = "the path has a #"
    CHARACTER = "the path has a character that must be percent-encoded"
    ENCODING_MALFORMED = "the path has a % that is not followed by two hexadecimal digits"
    ENCODED_STRUCTURE = "the path has a percent-encoded / \\ . ; ? # % or control character"
    ENCODED_UNRESERVED = "the path has a percent-encoded letter, digit, - _ or ~, which have a spelling without"
    ENCODED_NOT_UTF8 = "the path has percent-encoded bytes that are not UTF-8"


# RFC 3986 section 3.3: pchar without pct-encoded and without ";", and "/"; 0.25 us for 40 characters.
_PLAIN = re.compile(r"/[A-Za-z0-9\-._~!$&'()*+,=:@/]*")
_ENCODED = re.compile(r"/(?:[A-Za-z0-9\-._~!$&'()*+,=:@/]|%[0-9A-Fa-f]{2})*")
_DOT_SEGMENT = re.compile(r"/\.\.?(?:/|\Z)")
_ESCAPE = re.compile(r"%(..)", re.DOTALL)
_ESCAPE_RUN = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_STRUCTURE = frozenset("/\\.;?#%")
_DECODED = frozenset("!$&'()*+,=:@")


def canonical(raw_path: str) -> str | PathFault:
    """The path's one spelling, or why it has none.

    Args:
        raw_path: `:path` without its query, as it came.
    """
    if len(raw_path) > PATH_BYTES_MAX:
        return PathFault.TOO_LONG
    if _PLAIN.fullmatch(raw_path) is None:
        return _canonical_encoded(raw_path)
    if "//" in raw_path:
        return PathFault.EMPTY_SEGMENT
    if "/." in raw_path and _DOT_SEGMENT.search(raw_path) is not None:
        return PathFault.DOT_SEGMENT
    return raw_path


def _canonical_encoded(raw_path: str) -> str | PathFault:
    if _ENCODED.fullmatch(raw_path) is None:
        return _fault_of_characters(raw_path)
    if "//" in raw_path:
        return PathFault.EMPTY_SEGMENT
    if _DOT_SEGMENT.search(raw_path) is not None:
        return PathFault.DOT_SEGMENT
    for run in _ESCAPE_RUN.finditer(raw_path):
        fault = _fault_of_escapes(run.group())
        if fault is not None:
            return fault
    return _ESCAPE.sub(_respell, raw_path)


def _respell(escape: re.Match[str]) -> str:
    character = chr(int(escape[1], 16))
    return character if character in _DECODED else escape[0].upper()


def _fault_of_escapes(run: str) -> PathFault | None:
    """What is wrong with adjacent percent-encodings, which are well-formed."""
    try:
        text = bytes.fromhex(run.replace("%", "")).decode("utf-8")
    except UnicodeDecodeError:
        return PathFault.ENCODED_NOT_UTF8  # overlong forms of / and . are among these
    if not _STRUCTURE.isdisjoint(text) or _CONTROL.search(text) is not None:
        return PathFault.ENCODED_STRUCTURE
    if any(character.isascii() and (character.isalnum() or character in "-_~") for character in text):
        return PathFault.ENCODED_UNRESERVED  # RFC 3986 section 6.2.2.2
    return None


def _fault_of_characters(raw_path: str) -> PathFault:
    """Names the first kind of fault of a path that is not even in the right characters."""
    if not raw_path.startswith("/"):
        return PathFault.NOT_ABSOLUTE
    for character, fault in (
        ("\\", PathFault.BACKSLASH),
        (";", PathFault.PARAMETER),
        ("#", PathFault.FRAGMENT),
    ):
        if character in raw_path:
            return fault
    escapes = raw_path.count("%")
    if escapes != len(re.findall(r"%[0-9A-Fa-f]{2}", raw_path)):
        return PathFault.ENCODING_MALFORMED
    return PathFault.CHARACTER


# A name of letters, digits, "-", "_" and single dots, with an optional port; 0.4 us.
_NAME = re.compile(r"([A-Za-z0-9_\-]+(?:\.[A-Za-z0-9_\-]+)*)\.?(?::([0-9]{1,5}))?")
_BRACKETED = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\](?::([0-9]{1,5}))?")


def canonical_host(authority: str) -> str | None:
    """The host of an `:authority`: lower case, without port and without the root's trailing dot; None if malformed.

    IPv6 addresses keep their brackets and get their shortest form (RFC 5952). User information, empty names, empty
    labels, percent-encodings, zone ids and ports over 65535 are malformed here (RFC 9110 section 4.2.4 and RFC 6874
    leave none of them in HTTP). International names arrive as A-labels (`xn--`).
    """
    return _canonical_host(authority) if len(authority) <= HOST_BYTES_MAX + len(".:65535") else None


@lru_cache(maxsize=HOSTS_KEPT_MAX)
def _canonical_host(authority: str) -> str | None:
    name = _NAME.fullmatch(authority)
    if name is not None:
        host, port = name.groups()
        if len(host) > HOST_BYTES_MAX or (port is not None and int(port) > 65535):
            return None
        return host.lower()
    bracketed = _BRACKETED.fullmatch(authority)
    if bracketed is None or int(bracketed[2] or 0) > 65535:
        return None
    try:
        return f"[{IPv6Address(bracketed[1]).compressed}]"
    except AddressValueError:
        return None


METHOD_BYTES_MAX = 64
"""Longer ones are refused: the longest registered method has 17."""

_TOKEN = re.compile(rf"[!#$%&'*+.^_`|~0-9A-Za-z-]{{1,{METHOD_BYTES_MAX}}}")


def is_plain_method(method: str) -> bool:
    """Whether everyone reads a method alike.

    Methods are case-sensitive tokens (RFC 9110 section 9.1), and Envoy passes `post` on over HTTP/2. Rules know `POST`
    alone, while some frameworks put a method into capitals first: a spelling that becomes a standard method is no plain
    one.
    """
    return method in METHODS or (_TOKEN.fullmatch(method) is not None and method.upper() not in METHODS)
