"""Counting in windows: sliding, fixed, and those of the calendar.

All but the calendar's are aligned to the epoch, so that a counter needs no creation time and every instance agrees.

**Sliding window**: what was counted in the last bucket fades linearly while the current one fills,

    used = ceil(previous * left / window) + current            left: time until the current bucket ends

Rounding up is rounding against the caller: `used + cost <= requests` holds for the integers exactly where
`previous * left / window + current + cost <= requests` holds for the real numbers. Between two charges `used` never
grows. Hence there is one earliest time at which a denied charge passes, and it can be solved for: `previous * left <=
room * window` means `left <= floor(room * window / previous)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sidecar.core.algorithms.counter import COUNT_MAX

if TYPE_CHECKING:
    from sidecar.core.limits import Limit


class SlidingState(NamedTuple):
    """Two adjacent buckets."""

    start_us: int
    """Of the current bucket."""
    previous: int
    current: int


class SlidingWindow:
    """Two adjacent buckets; the last one fades linearly."""

    __slots__ = ("at_us", "current", "dirty", "now_us", "previous", "start_us", "window_us")

    def __init__(self, limit: Limit, now_us: int, state: SlidingState | None) -> None:
        window_us = limit.window_us
        start_us = now_us - now_us % window_us
        self.window_us = window_us
        self.now_us = self.at_us = now_us
        self.start_us = start_us
        self.previous = self.current = 0
        self.dirty = False
        if state is None:
            return
        if state.start_us > now_us + window_us:
            self.current, self.dirty = min(state.previous + state.current, COUNT_MAX), True
        elif state.start_us >= start_us:
            self.start_us, self.previous, self.current = state
            self.at_us = max(now_us, state.start_us)
        elif state.start_us + window_us == start_us:
            self.previous = state.current

    @property
    def state(self) -> SlidingState:
        """What is to be remembered."""
        return SlidingState(self.start_us, self.previous, self.current)

    @property
    def _ends_after_us(self) -> int:
        return self.start_us + self.window_us - self.now_us

    def used(self) -> int:
        """What is left of the last bucket, rounded up, and the current one."""
        left_us = self.start_us + self.window_us - self.at_us
        return -(-self.previous * left_us // self.window_us) + self.current

    def add(self, cost: int) -> None:
        """Count in the current bucket."""
        self.current = min(self.current + cost, COUNT_MAX)

    def take_back(self, cost: int) -> None:
        """From the current bucket, then from the last one."""
        from_previous = max(cost - self.current, 0)
        self.current = max(self.current - cost, 0)
        self.previous = max(self.previous - from_previous, 0)

    def wait_us(self, room: int) -> int:
        """Within this bucket once the last one has faded enough, else within the next, in which this one fades."""
        if self.used() <= room:
            return 0
        if room >= self.current:
            return self._ends_after_us - (room - self.current) * self.window_us // self.previous
        return self._ends_after_us + self.window_us - room * self.window_us // self.current

    def reset_after_us(self) -> int:
        """Until the current bucket has faded too; 0 where nothing is counted."""
        if self.current > 0:
            return self._ends_after_us + self.window_us
        return self._ends_after_us if self.previous > 0 else 0


class FixedState(NamedTuple):
    """One window's count."""

    start_us: int
    current: int


class FixedWindow:
    """One window; at its end everything is forgotten."""

    __slots__ = ("current", "dirty", "end_us", "now_us", "start_us")

    def __init__(self, limit: Limit, now_us: int, state: FixedState | None) -> None:
        self.now_us = now_us
        self.current = 0
        self.dirty = False
        if limit.calendar is None:
            self._open_aligned(limit.window_us, state)
        else:
            self._open_calendar(limit.calendar.around(now_us).starts, state)

    def _open_aligned(self, window_us: int, state: FixedState | None) -> None:
        now_us = self.now_us
        self.start_us = now_us - now_us % window_us
        if state is not None and state.start_us > now_us + window_us:
            self.current, self.dirty = state.current, True
        elif state is not None and state.start_us >= self.start_us:
            self.start_us, self.current = state
        self.end_us = self.start_us + window_us

    def _open_calendar(self, starts: tuple[int, ...], state: FixedState | None) -> None:
        """Begin at one of the boundaries around now.

        What began between these boundaries was counted by other rules of the zone: it counts as of now, like what
        began in the far future.
        """
        own = next(n for n in range(len(starts) - 1) if starts[n] <= self.now_us < starts[n + 1])
        if state is not None and state.start_us > (starts[own - 1] if own > 0 else starts[0] - 1):
            self.current = state.current
            if state.start_us in starts[own:-1]:
                own = starts.index(state.start_us)
            else:
                self.dirty = True
        self.start_us, self.end_us = starts[own], starts[own + 1]

    @property
    def state(self) -> FixedState:
        """What is to be remembered."""
        return FixedState(self.start_us, self.current)

    def used(self) -> int:
        """What was counted in this window."""
        return self.current

    def add(self, cost: int) -> None:
        """Count in this window."""
        self.current = min(self.current + cost, COUNT_MAX)

    def take_back(self, cost: int) -> None:
        """From this window."""
        self.current = max(self.current - cost, 0)

    def wait_us(self, room: int) -> int:
        """Until the window ends."""
        return 0 if self.current <= room else self.end_us - self.now_us

    def reset_after_us(self) -> int:
        """Until the window ends."""
        return self.end_us - self.now_us
