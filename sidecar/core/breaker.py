"""A circuit breaker: pure, told the time. It spares callers the wait for a dependency that does not answer.

Closed, it lets calls through; `failures_max` failures in a row open it. Open, it refuses; after `open_us` it is
half-open and lets `probes_max` calls through at a time. A probe that succeeds closes it, one that fails opens it for
twice as long as before, up to `open_us_max`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class BreakerState(enum.Enum):
    """Where a breaker stands; the value is its label in metrics."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(slots=True, eq=False, kw_only=True)
class Breaker:
    """Counts consecutive failures. Each call that `admit` let through MUST be reported: `succeed`, `fail` or `release`.

    Attributes:
        failures_max: So many failures in a row open it.
        open_us: How long it stays open at first; each failed probe doubles that.
        open_us_max: Never longer than this.
        probes_max: How many calls may be under way at a time while it is half-open.
        opened_total: How often it has opened.
        untroubled: Closed, and the last call succeeded: `admit` would say yes, and `succeed` would change nothing.
    """

    failures_max: int = 5
    open_us: int = 250_000
    open_us_max: int = 1_000_000
    probes_max: int = 1
    state: BreakerState = field(default=BreakerState.CLOSED, init=False)
    opened_total: int = field(default=0, init=False)
    untroubled: bool = field(default=True, init=False)
    _failures: int = field(default=0, init=False)
    _probes: int = field(default=0, init=False)
    _opened_for_us: int = field(default=0, init=False)
    _opens_until_us: int = field(default=0, init=False)

    def admit(self, now_us: int) -> bool:
        """Whether a call may be made now. A True while half-open takes one of the probes."""
        if self.state is BreakerState.CLOSED:
            return True
        if self.state is BreakerState.OPEN:
            if now_us < self._opens_until_us:
                return False
            self.half_open()
        if self._probes >= self.probes_max:
            return False
        self._probes += 1
        return True

    def succeed(self) -> None:
        """A call was answered. While open this is the late answer of an older call, and proves nothing yet."""
        if self.state is BreakerState.OPEN:
            return
        self.state = BreakerState.CLOSED
        self.untroubled = True
        self._failures = self._probes = self._opened_for_us = 0

    def fail(self, now_us: int) -> None:
        """A call was not answered."""
        self._failures += 1
        self.untroubled = False
        if self.state is BreakerState.HALF_OPEN or (
            self.state is BreakerState.CLOSED and self._failures >= self.failures_max
        ):
            self._opened_for_us = min(self._opened_for_us * 2 or self.open_us, self.open_us_max)
            self._opens_until_us = now_us + self._opened_for_us
            self.state = BreakerState.OPEN
            self.opened_total += 1

    def release(self) -> None:
        """A call that was admitted was not made after all."""
        self._probes = max(self._probes - 1, 0)

    def half_open(self) -> None:
        """Probe now instead of at the end of the open time: there is news, such as a fresh connection."""
        if self.state is BreakerState.OPEN:
            self.state = BreakerState.HALF_OPEN
            self._probes = 0
