"""An exact log: what was taken counts for exactly one window, then no longer.

No span shorter than or as long as a window (its end excluded) ever admits more than the limit. The log is as long as
the limit is large, so the limit has a bound (`LOG_ENTRIES_MAX`). What is taken at the same microsecond is one entry,
whatever it costs. Each entry has the running total up to and including itself, so that whatever is asked of the log is
found by bisection instead of adding up.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

from sidecar.core.algorithms.counter import COUNT_MAX
from sidecar.core.limits import LOG_ENTRIES_MAX

if TYPE_CHECKING:
    from sidecar.core.limits import Limit


class LogState(NamedTuple):
    """The entries, oldest first."""

    base: int
    """The running total before the first entry."""
    times_us: array[int]
    totals: array[int]


class SlidingLog:
    """What was taken, and when."""

    __slots__ = ("at_us", "base", "dirty", "now_us", "times_us", "totals", "window_us")

    def __init__(self, limit: Limit, now_us: int, state: LogState | None) -> None:
        self.window_us = limit.window_us
        self.now_us = self.at_us = now_us
        self.base = 0
        self.times_us = self.totals = array("Q")
        self.dirty = False
        if state is None or not state.times_us:
            return
        newest_us = state.times_us[-1]
        if newest_us > now_us + limit.window_us:
            self.times_us = array("Q", [now_us])
            self.totals = array("Q", [state.totals[-1] - state.base])
            self.dirty = True
            return
        self.base, self.times_us, self.totals = state
        self.at_us = max(now_us, newest_us)
        lapsed = bisect_right(self.times_us, self.at_us - self.window_us)
        if lapsed:
            self.base = self.totals[lapsed - 1]
            self.times_us, self.totals = self.times_us[lapsed:], self.totals[lapsed:]

    @property
    def state(self) -> LogState:
        """What is to be remembered."""
        return LogState(self.base, self.times_us, self.totals)

    def used(self) -> int:
        """All that the log has."""
        return self.totals[-1] - self.base if self.totals else 0

    def add(self, cost: int) -> None:
        """Append; into a full log as part of its newest entry, which then counts from now on."""
        total = self.base + min(self.used() + cost, COUNT_MAX)
        keep = len(self.times_us)
        if keep and (self.times_us[-1] == self.at_us or keep >= LOG_ENTRIES_MAX):
            keep -= 1
        self.times_us = self.times_us[:keep] + array("Q", [self.at_us])
        self.totals = self.totals[:keep] + array("Q", [total])

    def take_back(self, cost: int) -> None:
        """Remove the newest entries, the last of them in part."""
        left = self.used() - cost
        if left <= 0:
            self.times_us = self.totals = array("Q")
            return
        total = self.base + left
        keep = bisect_left(self.totals, total)
        self.times_us = self.times_us[: keep + 1]
        self.totals = self.totals[:keep] + array("Q", [total])

    def wait_us(self, room: int) -> int:
        """Until enough of the oldest entries have lapsed."""
        excess = self.used() - room
        if excess <= 0:
            return 0
        last = bisect_left(self.totals, self.base + excess)
        return self.times_us[last] + self.window_us - self.now_us

    def reset_after_us(self) -> int:
        """Until the newest entry has lapsed."""
        return self.times_us[-1] + self.window_us - self.now_us if self.times_us else 0
