"""The values of environment variables, read as the reference reads them (Go's strconv and time packages).

Each parser takes the text and returns what it means.

Raises:
    Wrong: What is wrong with the text, and what is accepted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from sidecar.policy.faults import Wrong, shown

Parser: TypeAlias = Callable[[str], Any]

TEXT_BYTES_MAX: Final = 4096
ITEMS_MAX: Final = 64

_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})

_INTEGER: Final = re.compile(r"[-+]?(0[xX][0-9a-fA-F_]+|0[oO]?[0-7_]+|0[bB][01_]+|[0-9][0-9_]*)")
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def text(value: str) -> str:
    """Any text without control characters."""
    if not value.isprintable() or len(value.encode("utf-8", "surrogateescape")) > TEXT_BYTES_MAX:
        raise Wrong("the value is no plain text", f"up to {TEXT_BYTES_MAX} bytes without control characters")
    return value


def boolean(value: str) -> bool:
    """Go's booleans."""
    if value not in _TRUE | _FALSE:
        raise Wrong(f"{shown(value)} is not a boolean", "true or false, 1 or 0, t or f, in these spellings")
    return value in _TRUE


def integer(least: int, most: int) -> Parser:
    """A whole number from `least` to `most`; hexadecimal, octal and binary with Go's prefixes."""

    def parse(value: str) -> int:
        accepted = f"a whole number from {least} to {most}"
        if not _INTEGER.fullmatch(value):
            raise Wrong(f"{shown(value)} is not a whole number", accepted)
        digits = re.sub(r"^([-+]?)0(?=[0-7])", r"\g<1>0o", value)
        try:
            found = int(digits, 0)
        except ValueError:
            raise Wrong(f"{shown(value)} is not a whole number", accepted) from None
        if not least <= found <= most:
            raise Wrong(f"{shown(value)} is out of range", accepted)
        return found

    return parse


def fraction(value: str) -> float:
    """A number from 0 to 1."""
    found = number(value)
    if not 0 <= found <= 1:
        raise Wrong(f"{shown(value)} is not a share", "a number from 0 to 1, such as 0.8")
    return found


def number(value: str) -> float:
    """A number."""
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise Wrong(f"{shown(value)} is not a number", "a number, such as 0.5")
    return found


def duration(least: str, most: str) -> Parser:
    """A time in seconds, such as `1h30m`, `1.5s`, `300ms`, or `0`; from `least` to `most`."""

    def parse(value: str) -> float:
        seconds = _seconds(value)
        if seconds is None or not _required(least) <= seconds <= _required(most):
            raise Wrong(
                f"{shown(value)} is not a duration within the bounds",
                f"{least} to {most}, with the units ns, us, ms, s, m, h: 300ms, 1.5h, 2h45m",
            )
        return seconds

    return parse


def _required(value: str) -> float:
    seconds = _seconds(value)
    if seconds is None:
        raise AssertionError(f"{value} is no bound")
    return seconds


def _seconds(value: str) -> float | None:
    if value in {"0", "+0", "-0"}:
        return 0.0
    unsigned = value.removeprefix("+")
    parts = _DURATION.findall(unsigned)
    if not parts or "".join(number + unit for number, unit in parts) != unsigned:
        return None
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def choice(*names: str) -> Parser:
    """One of the names, in any case; returned as it stands here."""
    known = {name.lower(): name for name in names}

    def parse(value: str) -> str:
        found = known.get(value.lower())
        if found is None:
            raise Wrong(f"{shown(value)} is not known", ", ".join(names))
        return found

    return parse


def pairs(separator: str) -> Parser:
    """`key<separator>value` items with commas between them, as a dictionary; "" is none."""

    def parse(value: str) -> dict[str, str]:
        found: dict[str, str] = {}
        accepted = f"up to {ITEMS_MAX} items key{separator}value with commas between them"
        for item in text(value).split(",") if value else ():
            key, sign, rest = item.partition(separator)
            if not sign or not key:
                raise Wrong("an item is not a key and a value", accepted)
            found[key.strip()] = rest.strip()
        if len(found) > ITEMS_MAX:
            raise Wrong(f"{len(found)} items", accepted)
        return found

    return parse


def items(value: str) -> tuple[str, ...]:
    """Texts with commas between them."""
    return tuple(item for item in text(value).split(",") if item)
