"""JSON objects from strangers (RFC 8259), read one way only.

What parsers are known to disagree about is refused: duplicate names (RFC 7515 section 4, RFC 7519 section 4), encodings
other than UTF-8 and byte order marks, NaN and Infinity, numbers beyond a double, lone surrogates; and what costs more
than it is worth: deep nesting, integers of many digits. The standard library's C scanner does the reading (3 us for a
usual payload with the duplicate check, against 2.4 us without it).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NoReturn, cast

if TYPE_CHECKING:
    from sidecar.core.principal import Json

DEPTH_MAX = 16
"""Objects and arrays inside each other, the outermost included: real tokens use up to six."""

VALUES_MAX = 512
"""Commas and opening brackets, those in strings included: each value of 8 KiB of small ones would cost more than a
signature's verification does, 1 ms together, before anything is proved."""

INTEGER_DIGITS_MAX = 32
"""A double keeps 17; identifiers of 128 bits that someone wrote as a number take 39 and belong into a string."""

_BYTE_ORDER_MARK = "\ufeff"
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NO_BRACKETS = re.compile(r"[^\[\]{}]+")


class JsonError(ValueError):
    """The text is not a JSON object that everyone reads alike. The message names the fault and quotes nothing."""


def read_object(raw: bytes, values_max: int = VALUES_MAX) -> dict[str, Json]:
    """The JSON object that `raw` is.

    Args:
        raw: The whole text.
        values_max: See `VALUES_MAX`.

    Raises:
        JsonError: It is anything else, or could be read in more than one way.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise JsonError("is not UTF-8") from None
    if text.startswith(_BYTE_ORDER_MARK):
        raise JsonError("starts with a byte order mark")
    brackets = text.count("{") + text.count("[")
    if brackets + text.count(",") > values_max:
        raise JsonError(f"has more than {values_max} values")
    if brackets > DEPTH_MAX and _depth_exceeds(text, DEPTH_MAX):
        raise JsonError(f"is nested deeper than {DEPTH_MAX}")
    try:
        value = _DECODER.decode(text)
    except JsonError:
        raise
    except (ValueError, RecursionError):
        raise JsonError("is not JSON") from None
    if not isinstance(value, dict):
        raise JsonError("is not an object")
    if "\\u" in text:
        _refuse_lone_surrogates(value)
    return cast("dict[str, Json]", value)


def _depth_exceeds(text: str, depth_max: int) -> bool:
    """Whether brackets outside of strings nest deeper; counted before anything recursive sees the text."""
    depth = 0
    for bracket in _NO_BRACKETS.sub("", _STRING.sub("", text)):
        if bracket in "{[":
            depth += 1
            if depth > depth_max:
                return True
        else:
            depth -= 1
    return False


def _refuse_lone_surrogates(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise JsonError("has a lone surrogate in a string") from None


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise JsonError("names a member twice")
    return members


def _integer(digits: str) -> int:
    if len(digits) > INTEGER_DIGITS_MAX:
        raise JsonError(f"has an integer of more than {INTEGER_DIGITS_MAX} digits")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise JsonError("has a number that is too large")
    return number


def _constant(name: str) -> NoReturn:
    raise JsonError(f"has {name}, which is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_constant, parse_int=_integer, parse_float=_float, strict=True
)
