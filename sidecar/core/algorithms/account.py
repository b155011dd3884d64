"""A counter key while a decision is made: its algorithm's counter, the holds on top of it, and what is asked of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sidecar.core.algorithms.gcra import Gcra
from sidecar.core.algorithms.holds import Concurrency, Hold, Holds
from sidecar.core.algorithms.sliding_log import LogState, SlidingLog
from sidecar.core.algorithms.windows import FixedWindow, SlidingWindow
from sidecar.core.limits import HOLDS_MAX, Algorithm, Charge, Limit, Op

if TYPE_CHECKING:
    from sidecar.core.algorithms.counter import Counter

COUNTERS: dict[Algorithm, type[Counter]] = {
    Algorithm.SLIDING_WINDOW: SlidingWindow,
    Algorithm.FIXED_WINDOW: FixedWindow,
    Algorithm.GCRA: Gcra,
    Algorithm.SLIDING_LOG: SlidingLog,
    Algorithm.CONCURRENCY: Concurrency,
}


class State(NamedTuple):
    """What is remembered of one counter key between decisions."""

    counted: Any
    """The algorithm's own."""
    holds: tuple[Hold, ...]

    @property
    def parts(self) -> int:
        """How many entries of a log and holds it has: what it takes more than other counters."""
        return len(self.holds) + (len(self.counted.times_us) if isinstance(self.counted, LogState) else 0)


class Asked(NamedTuple):
    """A TAKE that was judged but not taken yet.

    Attributes:
        cost: The sum of what is asked of its key by the charges before it, and its own.
        holds: How many holds that are.
    """

    fits: bool
    cost: int
    holds: int


class Account:
    """One counter key while a decision is made.

    Attributes:
        dirty: Whether it must be written.
        asked: The sum of the costs asked of it by the decision so far.
        asked_holds: How many holds were.
    """

    __slots__ = ("asked", "asked_holds", "counter", "dirty", "holds", "limit")

    def __init__(self, limit: Limit, now_us: int, state: State | None) -> None:
        self.limit = limit
        self.counter = COUNTERS[limit.algorithm](limit, now_us, None if state is None else state.counted)
        self.holds = Holds(limit.hold_time_us, now_us, () if state is None else state.holds)
        self.dirty = self.counter.dirty or self.holds.dirty
        self.asked = 0
        self.asked_holds = 0

    @property
    def state(self) -> State:
        """What is to be remembered."""
        return State(self.counter.state, tuple(self.holds.entries))

    def used(self) -> int:
        """How much of the limit is used up, holds included."""
        return self.counter.used() + self.holds.held

    def reset_after_us(self) -> int:
        """The time until what is counted and held no longer matters."""
        return max(self.counter.reset_after_us(), self.holds.reset_after_us())

    def ask(self, charge: Charge) -> Asked:
        """Judge a TAKE on top of what was asked before; what does not fit, and denies nothing, asks nothing."""
        limit = charge.limit
        asked = self.asked + charge.cost
        asked_holds = self.asked_holds + (charge.cost > 0 and _is_held(charge))
        fits = self.used() + asked <= limit.capacity and len(self.holds.entries) + asked_holds <= HOLDS_MAX
        if fits or limit.count_denied or not limit.shadow:
            self.asked, self.asked_holds = asked, asked_holds
        return Asked(fits, asked, asked_holds)

    def take(self, charge: Charge) -> None:
        """Count a TAKE or FORCE of 1 or more. What finds no room among the holds is counted at once."""
        self.dirty = True
        if not _is_held(charge):
            self.counter.add(charge.cost)
        elif len(self.holds.entries) < HOLDS_MAX:
            self.holds.put(charge.hold, charge.cost, charge.limit.hold_time_us)
        elif charge.limit.algorithm is Algorithm.CONCURRENCY:
            self.holds.put_on_last(charge.cost, charge.limit.hold_time_us)
        else:
            self.counter.add(charge.cost)

    def apply(self, charge: Charge) -> None:
        """Do what always happens: FORCE, REFUND or SETTLE."""
        if charge.op is Op.FORCE:
            if charge.cost > 0:
                self.take(charge)
            return
        ends_hold = charge.hold != 0 and (charge.op is Op.SETTLE or charge.limit.hold_time_us > 0)
        if ends_hold and self.holds.end(charge.hold):
            self.dirty = True
        if charge.op is Op.SETTLE and charge.limit.algorithm is not Algorithm.CONCURRENCY:
            if charge.cost > 0:
                self.counter.add(charge.cost)
                self.dirty = True
        elif not ends_hold:
            self._take_back(charge)

    def _take_back(self, charge: Charge) -> None:
        """Give a cost back; where there is nothing to give back nothing is written."""
        if charge.limit.algorithm is Algorithm.CONCURRENCY:
            if charge.cost > 0 and self.holds.held > 0:
                self.holds.take_back(charge.cost)
                self.dirty = True
        elif charge.cost > 0 and self.counter.used() > 0:
            self.counter.take_back(charge.cost)
            self.dirty = True

    def retry_after_us(self, limit: Limit, asked: Asked) -> int:
        """The exact time until what was asked passes, if nobody takes or settles anything meanwhile; -1: never.

        After each hold's lapse there is more room, and the counter itself knows when it leaves as much: the first such
        time that comes before the next lapse. What is asked never needs more than all to be gone.
        """
        if limit.requests == 0 or asked.cost > limit.capacity or asked.holds > HOLDS_MAX:
            return -1
        entries, now_us = self.holds.entries, self.holds.now_us
        room = limit.capacity - asked.cost - self.holds.held
        lapsed_us = 0
        for lapsed, hold in enumerate(entries):
            if room >= 0 and len(entries) - lapsed + asked.holds <= HOLDS_MAX:
                wait_us = max(self.counter.wait_us(room), lapsed_us)
                if wait_us <= hold.expires_us - now_us:
                    return wait_us
            lapsed_us = hold.expires_us - now_us
            room += hold.amount
        return max(self.counter.wait_us(room), lapsed_us)


def _is_held(charge: Charge) -> bool:
    limit = charge.limit
    return limit.algorithm is Algorithm.CONCURRENCY or (charge.hold != 0 and limit.hold_us > 0)
