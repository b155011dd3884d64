"""SIGHUP before serving can handle it: remembered, since by default it ends the process."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


class EarlyHangUps:
    """Whether a SIGHUP came since `remembered` began.

    Attributes:
        seen: A reload is due once serving has begun.
    """

    def __init__(self) -> None:
        self.seen = False


@contextlib.contextmanager
def remembered() -> Iterator[EarlyHangUps]:
    """Let SIGHUP do no more than leave a note, until another handler is installed or the block ends."""
    early = EarlyHangUps()

    def note(_number: int, _frame: object) -> None:
        early.seen = True

    before = signal.signal(signal.SIGHUP, note)
    try:
        yield early
    finally:
        signal.signal(signal.SIGHUP, before)
