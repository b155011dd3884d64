"""The generic cell rate algorithm, as a bucket that leaks: exact for every rate.

A bucket holds what was taken; it leaks `requests` every `window_us` microseconds, and has room for `capacity`. (The
algorithm's usual form keeps the time at which the bucket will be empty. It is the same arithmetic, but this one also
survives a change of the rate, and a clock that steps back is told apart from a full bucket.)

The bucket's content is `level + fraction / window_us` with 0 <= fraction < window_us: in units of 1 / window_us of a
request, `elapsed_us` microseconds leak exactly `requests * elapsed_us` units. Nothing is rounded, so nothing drifts.

    used = ceil(content)

so that `used + cost <= capacity` holds for the integers exactly where it does for the real content. Any span of length
d admits at most `capacity + requests * d / window`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sidecar.core.algorithms.counter import COUNT_MAX
from sidecar.core.limits import WINDOW_US_MAX

if TYPE_CHECKING:
    from sidecar.core.limits import Limit


class GcraState(NamedTuple):
    """What the bucket held at some time."""

    at_us: int
    level: int
    fraction: int
    """Of a request, in parts of the window: 0 to `window_us - 1`."""


class Gcra:
    """A bucket that leaks."""

    __slots__ = ("at_us", "dirty", "fraction", "level", "now_us", "requests", "window_us")

    def __init__(self, limit: Limit, now_us: int, state: GcraState | None) -> None:
        self.requests = limit.requests
        self.window_us = limit.window_us
        self.now_us = self.at_us = now_us
        self.level = self.fraction = 0
        self.dirty = False
        if state is None or limit.requests == 0:
            return
        at_us, self.level, self.fraction = state
        self._saturate()
        if at_us > now_us + limit.window_us:
            self.dirty = True
        elif at_us > now_us:
            self.at_us = at_us
        else:
            self._leak(now_us - at_us)

    def _leak(self, elapsed_us: int) -> None:
        content = self.level * self.window_us + self.fraction - self.requests * elapsed_us
        self.level, self.fraction = divmod(max(content, 0), self.window_us)

    def _saturate(self) -> None:
        """Keep no more than what leaks within 366 days (which is never less than the capacity)."""
        level_max = min(self.requests * WINDOW_US_MAX // self.window_us, COUNT_MAX)
        if self.level >= level_max:
            self.level, self.fraction = level_max, 0

    @property
    def state(self) -> GcraState:
        """What is to be remembered."""
        return GcraState(self.at_us, self.level, self.fraction)

    def used(self) -> int:
        """The content, rounded up."""
        return self.level + (self.fraction > 0)

    def add(self, cost: int) -> None:
        """Pour in."""
        self.level += cost
        self._saturate()

    def take_back(self, cost: int) -> None:
        """Pour out, down to an empty bucket."""
        if cost > self.level:
            self.level = self.fraction = 0
        else:
            self.level -= cost

    def wait_us(self, room: int) -> int:
        """Until all but the room has leaked."""
        excess = (self.level - room) * self.window_us + self.fraction
        return self.at_us - self.now_us - (-excess // self.requests) if excess > 0 else 0

    def reset_after_us(self) -> int:
        """Until the bucket is empty."""
        return self.wait_us(0)
