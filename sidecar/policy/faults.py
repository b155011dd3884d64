"""What can be wrong with a file that a person wrote: where it is, what is wrong, and what would be accepted.

PolicyError     every fault of a load at once; the only error that leaves this package
Wrong           one value is wrong; raised by the parsers of single values, turned into a Fault by who knows the line
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

SHOWN_CHARS_MAX = 60
"""How much of a wrong value a message repeats."""


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One fault. `line` counts from 1, 0 means the file as a whole; `path` is dotted, "" for the whole document."""

    file: str
    line: int
    path: str
    message: str
    accepted: str = ""

    def __str__(self) -> str:
        """`file:line: path: what is wrong; what is accepted`, on one line."""
        where = f"{self.file}:{self.line}: " if self.line else f"{self.file}: "
        path = f"{self.path}: " if self.path else ""
        accepted = f"; {self.accepted}" if self.accepted else ""
        return " ".join(f"{where}{path}{self.message}{accepted}".splitlines())


class PolicyError(Exception):
    """A file was refused. Carries every fault that was found, in the order of their lines."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(sorted(dict.fromkeys(faults)))
        super().__init__(self.faults)

    def __str__(self) -> str:
        """One fault a line."""
        return "\n".join(map(str, self.faults))


class Wrong(ValueError):  # noqa: N818 - it reads as the sentence that it starts
    """A single value is wrong: `message` says what is wrong with it, `accepted` what would do."""

    def __init__(self, message: str, accepted: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.accepted = accepted


def shown(value: object) -> str:
    """A value as a message repeats it: quoted, on one line, cut."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS_MAX else f"{text[:SHOWN_CHARS_MAX]}..."


def did_you_mean(name: str, known: Iterable[str], noun: str) -> str:
    """What to offer for an unknown name: the closest known one, and all of them where they are few."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6) if len(names) <= 2000 else []
    hint = f"did you mean {close[0]!r}? " if close else ""
    if not names:
        return f"{hint}there are no {noun}"
    if len(names) > 30:
        return f"{hint}there are {len(names)} {noun}"
    return f"{hint}{noun}: {', '.join(names)}"
