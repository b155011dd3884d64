"""What a connection is waiting for, and one timer for whichever comes first. Times are the loop's, in seconds.

The timer fires no later than the first appointment and is moved only towards it: an appointment that moved away (each
byte from the peer moves the keepalive probe) costs nothing until the timer fires early and looks again.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from sidecar.transport.service import ServerLimits


class ConnectionClock:
    """Appointments of one connection; `math.inf` where there is none.

    Attributes:
        heard: When the peer last sent anything.
        probed: When the keepalive PING that is unanswered was sent.
        greet_by: Until when the peer must have sent its preface and SETTINGS.
        drain_at: When the connection is of age.
        goaway_at: When a drain stops waiting for the answer to its PING.
        shut_down_at: When the grace of an aged connection is over.
        closed_by: Until when what was written before closing must have left.
        stalled_since: Since when the peer takes nothing of what waits for it.
    """

    __slots__ = (
        "_limits",
        "_loop",
        "_timer",
        "_when_due",
        "closed_by",
        "drain_at",
        "goaway_at",
        "greet_by",
        "heard",
        "probed",
        "shut_down_at",
        "stalled_since",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: ServerLimits, when_due: Callable[[], None]) -> None:
        self._loop = loop
        self._limits = limits
        self._when_due = when_due
        self._timer: asyncio.TimerHandle | None = None
        self.heard = loop.time()
        self.probed = math.inf
        self.greet_by = self.heard + limits.handshake_timeout_s
        jitter = random.uniform(0.9, 1.1)  # noqa: S311 - spreads reconnects; nothing depends on it being secret
        self.drain_at = self.heard + limits.max_connection_age_s * jitter
        self.goaway_at = self.shut_down_at = self.closed_by = self.stalled_since = math.inf

    def arm(self) -> None:
        """Make sure that the timer fires no later than the first appointment."""
        appointments = (self.drain_at, self.goaway_at, self.shut_down_at, self._probe_at())
        due = min(self._give_up_at(), *appointments) if self.closed_by == math.inf else self._give_up_at()
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._fire)

    def stop(self) -> None:
        """Nothing is due any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _fire(self) -> None:
        self._timer = None
        self._when_due()

    def must_give_up(self, now: float) -> bool:
        """Whether the peer has failed to greet, answer, or take what it was sent, in time."""
        return now >= self._give_up_at()

    def must_probe(self, now: float) -> bool:
        """Whether the peer was quiet for long enough to be asked whether it is alive."""
        return now >= self._probe_at()

    def _give_up_at(self) -> float:
        limits = self._limits
        stalled_by = self.stalled_since + limits.write_stall_timeout_s
        return min(self.closed_by, self.greet_by, stalled_by, self.probed + limits.keepalive_timeout_s)

    def _probe_at(self) -> float:
        return self.heard + self._limits.keepalive_idle_s if self.probed == math.inf else math.inf
