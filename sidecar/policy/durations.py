"""Durations as people write them: `150ms`, `30s`, `5m`, `1h30m`, `1d`. Inside, integer microseconds."""

from __future__ import annotations

import re
from itertools import pairwise

from sidecar.policy.faults import Wrong, shown

UNITS_US = {"d": 86_400_000_000, "h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000, "ms": 1_000, "us": 1}
"""From the largest to the smallest: the order in which they are written."""

PATTERN = r"^(?=[0-9])([0-9]{1,9}d)?([0-9]{1,9}h)?([0-9]{1,9}m)?([0-9]{1,9}s)?([0-9]{1,9}ms)?([0-9]{1,9}us)?$"
ACCEPTED = "a duration such as 150ms, 30s, 5m, 1h30m or 1d"

_PART = re.compile(r"([0-9]{1,9})(d|h|ms|m|us|s)")


def parse(text: str) -> int:
    """A duration in microseconds.

    Raises:
        Wrong: It is not one or more numbers with units, each unit once, from large to small.
    """
    parts = [(int(number), unit) for number, unit in _PART.findall(text)] if text.isascii() else []
    if not parts or "".join(part.group() for part in _PART.finditer(text)) != text:
        raise Wrong(f"{shown(text)} is not a duration", ACCEPTED)
    sizes = [UNITS_US[unit] for _, unit in parts]
    if any(later >= earlier for earlier, later in pairwise(sizes)):
        raise Wrong(f"{shown(text)} is not a duration: each unit at most once, from large to small", ACCEPTED)
    return sum(number * UNITS_US[unit] for number, unit in parts)


def seconds(text: str) -> float:
    """A duration in seconds.

    Raises:
        Wrong: As `parse`.
    """
    return parse(text) / UNITS_US["s"]


def render(us: int) -> str:
    """The shortest way to write a duration that is not negative; `parse` gives it back."""
    text = ""
    for unit, size in UNITS_US.items():
        count, us = divmod(us, size)
        if count:
            text += f"{count}{unit}"
    return text or "0s"
