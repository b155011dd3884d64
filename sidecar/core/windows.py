"""The counting algorithms: pure, exact, and the specification of the Lua in lua/.

All times are integer microseconds since the epoch, all arithmetic is on integers. lua/ computes the same numbers on
doubles, exactly: there every step stays below 2**53, given counts below 2**32 and windows of at most 366 days.

Both windows are aligned to the epoch, so that a counter needs no creation time and every instance agrees on them.

**Sliding window**: what was counted in the last bucket fades linearly while the current one fills,

    used = ceil(previous * left / window) + current            left: time until the current bucket ends

Rounding up is rounding against the caller: `used + cost <= requests` holds for the integers exactly where
`previous * left / window + current + cost <= requests` holds for the real numbers. Between two charges `used` never
grows. Hence there is one earliest time at which a denied charge passes, and it can be solved for: `previous * left <=
room * window` means `left <= floor(room * window / previous)`.

**A clock that steps back** (Redis's TIME is the wall clock) finds a counter that starts in the future. Up to one
window, time stands still for that counter until the clock has caught up. Beyond that it would be locked for too long,
so all that it holds is counted in the bucket of now: not less than before, and gone after two windows at the latest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sidecar.core.limits import REQUESTS_MAX, Algorithm, Charge, LimitOutcome

COUNT_MAX = REQUESTS_MAX
"""Counts saturate here. No limit is larger, so counting on would change no decision (and would overflow the state)."""


class State(NamedTuple):
    """What is remembered of one counter between decisions. `previous` is always 0 in a fixed window."""

    start_us: int
    previous: int
    current: int


@dataclass(slots=True, eq=False)
class Counter:
    """One counter while a decision is made.

    Attributes:
        now_us: The clock.
        at_us: The time that counts: the clock, but never before `start_us`.
        start_us: Start of the current bucket.
        previous: What was counted in the bucket before it.
        current: What was counted in it.
        dirty: Whether it must be written.
        asked: The sum of the costs asked of it by the decision so far.
    """

    window_us: int
    now_us: int
    at_us: int
    start_us: int
    previous: int = 0
    current: int = 0
    dirty: bool = False
    asked: int = 0

    @property
    def ends_after_us(self) -> int:
        """Time until the current bucket ends."""
        return self.start_us + self.window_us - self.now_us

    @property
    def state(self) -> State:
        """What is to be remembered."""
        return State(self.start_us, self.previous, self.current)


class Window(Protocol):
    """One algorithm."""

    def read(self, state: State | None, now_us: int, window_us: int) -> Counter:
        """The counter as it stands now."""

    def used(self, counter: Counter) -> int:
        """How much of a limit is used up."""

    def retry_after_us(self, counter: Counter, requests: int, cost: int) -> int:
        """The exact time until a denied charge passes, if nobody takes anything meanwhile. Needs `cost <= requests`."""

    def reset_after_us(self, counter: Counter) -> int:
        """The time until what the counter holds no longer matters."""


class SlidingWindow:
    """Two adjacent buckets; the last one fades linearly."""

    def read(self, state: State | None, now_us: int, window_us: int) -> Counter:
        """The counter as it stands now."""
        start_us = now_us - now_us % window_us
        counter = Counter(window_us, now_us, now_us, start_us)
        if state is None:
            return counter
        if state.start_us > now_us + window_us:
            counter.current, counter.dirty = min(state.previous + state.current, COUNT_MAX), True
        elif state.start_us >= start_us:
            counter.start_us, counter.previous, counter.current = state
            counter.at_us = max(now_us, state.start_us)
        elif state.start_us + window_us == start_us:
            counter.previous = state.current
        return counter

    def used(self, counter: Counter) -> int:
        """What is left of the last bucket, rounded up, and the current one."""
        left_us = counter.start_us + counter.window_us - counter.at_us
        return -(-counter.previous * left_us // counter.window_us) + counter.current

    def retry_after_us(self, counter: Counter, requests: int, cost: int) -> int:
        """Within this bucket once the last one has faded enough, else within the next, in which this one fades."""
        room = requests - cost - counter.current
        if room >= 0:
            return counter.ends_after_us - room * counter.window_us // counter.previous
        return counter.ends_after_us + counter.window_us - (requests - cost) * counter.window_us // counter.current

    def reset_after_us(self, counter: Counter) -> int:
        """Until the current bucket has faded too; 0 where nothing is counted."""
        if counter.current > 0:
            return counter.ends_after_us + counter.window_us
        return counter.ends_after_us if counter.previous > 0 else 0


class FixedWindow:
    """One bucket; at its end everything is forgotten."""

    def read(self, state: State | None, now_us: int, window_us: int) -> Counter:
        """The counter as it stands now."""
        counter = Counter(window_us, now_us, now_us, now_us - now_us % window_us)
        if state is None:
            return counter
        if state.start_us > now_us + window_us:
            counter.current, counter.dirty = state.current, True
        elif state.start_us >= counter.start_us:
            counter.start_us, counter.current = state.start_us, state.current
        return counter

    def used(self, counter: Counter) -> int:
        """What was counted in this window."""
        return counter.current

    def retry_after_us(self, counter: Counter, requests: int, cost: int) -> int:  # noqa: ARG002 - any cost that fits at all fits then
        """Until the window ends."""
        return counter.ends_after_us

    def reset_after_us(self, counter: Counter) -> int:
        """Until the window ends."""
        return counter.ends_after_us


WINDOWS: dict[Algorithm, Window] = {Algorithm.SLIDING_WINDOW: SlidingWindow(), Algorithm.FIXED_WINDOW: FixedWindow()}


class Write(NamedTuple):
    """A counter's new state, which matters for `lifetime_us`."""

    key: bytes
    state: State
    lifetime_us: int


class Decided(NamedTuple):
    """What came of all charges together, and what to remember."""

    outcomes: tuple[LimitOutcome, ...]
    writes: list[Write]


class _Judged(NamedTuple):
    """A charge that was looked at but not taken yet. `asked` sums the costs of its key up to and including its own."""

    charge: Charge
    key: bytes
    counter: Counter
    fits: bool
    asked: int


def decide(charges: Sequence[Charge], now_us: int, load: Callable[[bytes], State | None]) -> Decided:
    """Decide all charges together: all are taken or none, except those whose limit counts denials.

    Charges of one decision on the same key are summed in their order: each is judged, and reported, on top of the
    ones before it.

    Args:
        charges: Each with a cost of 0 or more.
        now_us: Microseconds since the epoch.
        load: The state of a storage key (`Charge.storage_key`), None if there is none.
    """
    counters: dict[bytes, Counter] = {}
    judged = [_judge(charge, now_us, counters, load) for charge in charges]
    allowed = all(each.fits for each in judged)
    outcomes = [_take(each, allowed) for each in judged]
    for each, outcome in zip(judged, outcomes, strict=True):
        _report_times(each, outcome)
    return Decided(tuple(outcomes), _writes(judged))


def _judge(
    charge: Charge, now_us: int, counters: dict[bytes, Counter], load: Callable[[bytes], State | None]
) -> _Judged:
    limit, key = charge.limit, charge.storage_key
    window = WINDOWS[limit.algorithm]
    counter = counters.get(key)
    if counter is None:
        counter = counters[key] = window.read(load(key), now_us, limit.window_us)
    counter.asked += charge.cost
    fits = window.used(counter) + counter.asked <= limit.requests
    return _Judged(charge, key, counter, fits, counter.asked)


def _take(judged: _Judged, allowed: bool) -> LimitOutcome:
    charge, counter = judged.charge, judged.counter
    limit = charge.limit
    if charge.cost > 0 and (allowed or limit.count_denied):
        counter.current = min(counter.current + charge.cost, COUNT_MAX)
        counter.dirty = True
    used = WINDOWS[limit.algorithm].used(counter)
    remaining = max(limit.requests - used, 0) if judged.fits else 0
    return LimitOutcome(limit, judged.fits, used, remaining, 0, 0)


def _report_times(judged: _Judged, outcome: LimitOutcome) -> None:
    limit = judged.charge.limit
    window = WINDOWS[limit.algorithm]
    outcome.reset_after_us = window.reset_after_us(judged.counter)
    if judged.fits:
        return
    if limit.requests == 0 or judged.asked > limit.requests:
        outcome.retry_after_us = -1
    else:
        outcome.retry_after_us = window.retry_after_us(judged.counter, limit.requests, judged.asked)


def _writes(judged: Iterable[_Judged]) -> list[Write]:
    writes = {
        each.key: Write(each.key, each.counter.state, WINDOWS[each.charge.limit.algorithm].reset_after_us(each.counter))
        for each in judged
        if each.counter.dirty
    }
    return list(writes.values())
