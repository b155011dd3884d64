"""Plain scalars as gopkg.in/yaml.v2 reads them, which is what envoyproxy/ratelimit reads its files with.

There a value's type depends on who wants it: `010` is the text `010` for a descriptor's value, the number 8 for
`requests_per_unit`. So a plain scalar that is not text keeps both: it is a `Plain`, whose text is as written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

INT64_MAX: Final = 2**63 - 1
UINT64_MAX: Final = 2**64 - 1

_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_WORDS: Final[dict[str, bool | float]] = {
    **{word: True for text in ("y", "yes", "true", "on") for word in (text, text.title(), text.upper())},
    **{word: False for text in ("n", "no", "false", "off") for word in (text, text.title(), text.upper())},
    **{f"{sign}.{word}": math.inf for sign in ("", "+") for word in ("inf", "Inf", "INF")},
    **{f"-.{word}": -math.inf for word in ("inf", "Inf", "INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}
_INTEGER: Final = re.compile(
    r"(?P<sign>[+-]?)(?:0[xX](?P<hex>[0-9a-fA-F]+)|0[bB](?P<bin>[01]+)|0[oO]?(?P<oct>[0-7]+)|(?P<dec>0|[1-9][0-9]*))"
)
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_BASES: Final = {"hex": 16, "bin": 2, "oct": 8, "dec": 10}
_DIGITS_MAX: Final = 64
"""As many as a number of 64 bits can have, in binary; more are no integer."""


class Plain(str):
    """A plain scalar: the text as written, and in `resolved` the boolean or number that YAML sees in it."""

    __slots__ = ("resolved",)

    def __new__(cls, text: str, resolved: bool | float) -> Plain:  # noqa: PYI034 - it is not subclassed
        """Both of them."""
        made = super().__new__(cls, text)
        made.resolved = resolved
        return made

    resolved: bool | float


def plain(text: str) -> str | None:
    """A plain scalar: None, text, or a `Plain`."""
    if text in _NULLS:
        return None
    resolved = _WORDS.get(text)
    if resolved is None and text[0] in "+-.0123456789":
        resolved = _number(text)
    return text if resolved is None else Plain(text, resolved)


def _number(text: str) -> float | None:
    digits = text.replace("_", "")
    integer = _INTEGER.fullmatch(digits) if text[0] != "." else None
    if integer is not None and integer.lastgroup is not None and len(digits) <= _DIGITS_MAX + 3:
        value = int(integer["sign"] + integer[integer.lastgroup], _BASES[integer.lastgroup])
        if -INT64_MAX - 1 <= value <= (INT64_MAX if integer["sign"] else UINT64_MAX):
            return value
    return float(digits) if _FLOAT.fullmatch(digits if text[0] != "." else text) else None


def resolved(value: Any) -> Any:
    """What a value is to YAML; all that it holds, too."""
    if isinstance(value, Plain):
        return value.resolved
    if isinstance(value, Mapping):
        return {key: resolved(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [resolved(inner) for inner in value]
    return value
