"""Notices when the event loop cannot keep up: what it is told now is read too late to be of use.

A timer looks when it is really called. Once it is late by twice the time that a decision waits for Redis, a reply would
be found too late as well: asking would cost time, count the request, and end in a timeout. One long turn happens (a
reload, a full garbage collection), so it takes LATE_LOOKS_MIN in a row; one look in time ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Final

LOOK_EVERY_S: Final = 0.025
LATE_S_MIN: Final = 0.1
"""Less says little: a turn of a busy loop takes that long now and then."""

LATE_LOOKS_MIN: Final = 2


class LoopWatch:
    """Looks again and again.

    Args:
        wait_s: How long a decision waits for Redis.
        on_late: Called when `late` becomes true.

    Attributes:
        late: Whether the loop cannot keep up.
        lag_s: By how much the last look was late.
    """

    def __init__(self, wait_s: float, on_late: Callable[[], None]) -> None:
        self._late_s = max(2 * wait_s, LATE_S_MIN)
        self._on_late = on_late
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        self._late_looks = 0
        self.late = False
        self.lag_s = 0.0

    def start(self) -> None:
        """Begin, in the event loop."""
        self._wait(asyncio.get_running_loop())

    def close(self) -> None:
        """Stop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_s = perf_counter() + LOOK_EVERY_S
        self._timer = loop.call_later(LOOK_EVERY_S, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self.lag_s = max(perf_counter() - self._due_s, 0.0)
        self._late_looks = self._late_looks + 1 if self.lag_s > self._late_s else 0
        late, self.late = self.late, self._late_looks >= LATE_LOOKS_MIN
        if self.late and not late:
            self._on_late()
        self._wait(loop)
