"""Denials that are remembered until the key can pass again, so that Redis is not asked what is known: pure.

A store that denies a charge says exactly when it would pass. Others can only take more meanwhile, so until then the
answer is known, unless something is given back - which is why `forget` exists. Two times are kept of each denial,
because nobody but the store knows when, between being asked and being heard, it decided:

    asked + retry after    never later than the true time: from here on the store is asked again
    heard + retry after    never earlier than the true time: what a caller is told to wait for

So nobody is denied from memory whom the store would let pass, and whoever waits as told passes.

All times are integer microseconds of one monotonic clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from sidecar.core.limits import US_PER_S, Algorithm, Charge, Limit, LimitOutcome, Op, Source

DENIALS_MAX: Final = 16_384
"""Denials that are remembered, about 0.4 KiB each."""

REMEMBERED_US_MAX: Final = 60 * US_PER_S
"""Then the store is asked again, whatever it said: its clock may have been set, or its counters have been emptied."""

LEASED_REMEMBERED_US_MAX: Final = US_PER_S // 4
"""The same of a limit with leases: another process may give back what it took ahead."""

FREED_KEYS_MAX: Final = 4_096
"""Keys of which it is known when something was given back; for older ones, the latest of their times counts."""

_STALE_FACTOR: Final = 4
"""The queue of expiries may hold so many times what is remembered, before what is stale is dropped from it."""


class RememberedDenial(LimitOutcome):
    """A denial from memory; `used` is as of then."""

    source: ClassVar[Source] = Source.REMEMBERED


@dataclass(slots=True, eq=False)
class _Denial:
    """One that is remembered.

    Attributes:
        cost: What was asked of the key, the decision's charges on it summed.
        until_us: From then on the store is asked again.
        retry_at_us: What to tell callers; None: it never passes.
    """

    limit: Limit
    cost: int
    used: int
    until_us: int
    retry_at_us: int | None
    reset_at_us: int


class DenyCache:
    """Remembers denials by storage key. Empty, it costs its callers one look at its length.

    Args:
        denials_max: When so many are remembered, the one that ends soonest makes room.

    Attributes:
        keys: The storage keys of which something is remembered, whether or not it still holds.
        hits_total: Charges that were denied from memory.
        evicted_total: Denials pushed out for want of room.
    """

    def __init__(self, denials_max: int = DENIALS_MAX) -> None:
        self._denials_max = denials_max
        self._denials: dict[bytes, _Denial] = {}
        self.keys = self._denials.keys()
        self._ends: list[tuple[int, bytes]] = []
        self._freed: dict[bytes, int] = {}
        self._all_freed_us = -1
        self.hits_total = 0
        self.evicted_total = 0

    def __len__(self) -> int:
        return len(self._denials)

    def denial(self, charge: Charge, now_us: int) -> RememberedDenial | None:
        """What is known of a TAKE without asking the store: that it is denied, or nothing."""
        limit = charge.limit
        known = self._denials.get(charge.key + limit.key_suffix)
        if known is None or now_us >= known.until_us:
            return None
        if (known.limit is not limit or known.cost != charge.cost) and not _covers(known, charge):
            return None
        self.hits_total += 1
        retry_after_us = -1 if known.retry_at_us is None else known.retry_at_us - now_us
        reset_after_us = known.reset_at_us - now_us
        return RememberedDenial(limit, False, known.used, 0, retry_after_us, max(0, reset_after_us))

    def remember(
        self, charges: Sequence[Charge], outcomes: Sequence[LimitOutcome], asked_us: int, heard_us: int
    ) -> None:
        """Keep what a store denied.

        Args:
            charges: Of one decision.
            outcomes: What came of them, in their order.
            asked_us: From before the store was asked, rounded down.
            heard_us: From after it answered, rounded up.
        """
        asked: dict[bytes, int] = {}
        for charge, outcome in zip(charges, outcomes, strict=True):
            if charge.op is not Op.TAKE:
                continue
            key = charge.storage_key
            cost = asked[key] = asked.get(key, 0) + charge.cost
            if outcome.allowed or not can_be_remembered(charge.limit):
                continue
            if asked_us <= max(self._freed.get(key, -1), self._all_freed_us):
                continue  # something was given back since: the store may have decided before that
            denial = _denial(charge.limit, cost, outcome, asked_us, heard_us)
            if denial.until_us > heard_us:
                self._put(key, denial, heard_us)

    def forget(self, storage_keys: Iterable[bytes] | None, now_us: int) -> None:
        """Drop what is known of some counters, or of all (None), and what is still on its way about them."""
        if storage_keys is None:
            self._denials.clear()
            self._ends.clear()
            self._freed.clear()
            self._all_freed_us = now_us
            return
        for key in storage_keys:
            self._denials.pop(key, None)
            self._freed.pop(key, None)
            self._freed[key] = now_us
            if len(self._freed) > FREED_KEYS_MAX:
                self._all_freed_us = max(self._all_freed_us, self._freed.pop(next(iter(self._freed))))

    def expire(self, now_us: int) -> None:
        """Drop what has ended."""
        ends = self._ends
        while ends and ends[0][0] <= now_us:
            until_us, key = heapq.heappop(ends)
            known = self._denials.get(key)
            if known is not None and known.until_us == until_us:
                del self._denials[key]

    def _put(self, key: bytes, denial: _Denial, now_us: int) -> None:
        known = self._denials.get(key)
        if known is not None and known.cost < denial.cost and known.limit == denial.limit and known.until_us > now_us:
            return  # what is known covers more
        self._denials[key] = denial
        heapq.heappush(self._ends, (denial.until_us, key))
        if len(self._denials) > self._denials_max:
            self._evict()
        elif len(self._ends) > _STALE_FACTOR * self._denials_max:
            self._ends = [(known.until_us, key) for key, known in self._denials.items()]
            heapq.heapify(self._ends)

    def _evict(self) -> None:
        while True:
            until_us, key = heapq.heappop(self._ends)
            known = self._denials.get(key)
            if known is not None and known.until_us == until_us:
                del self._denials[key]
                self.evicted_total += 1
                return


def can_be_remembered(limit: Limit) -> bool:
    """Whether a denial of this limit holds until its stated time.

    Not where holds may be settled any moment, and not where the store must hear of denied requests too - except in a
    fixed window, which is over once one was denied: counting on would change nothing. A shadow limit denies nothing.
    """
    if not limit.deny_cache or limit.shadow or limit.hold_time_us:
        return False
    return not limit.count_denied or limit.algorithm is Algorithm.FIXED_WINDOW


def _denial(limit: Limit, cost: int, outcome: LimitOutcome, asked_us: int, heard_us: int) -> _Denial:
    retry_after_us = outcome.retry_after_us
    if limit.count_denied and outcome.used > limit.requests:
        cost, retry_after_us = 0, outcome.reset_after_us  # the window is over, for every cost
    known_for_us = LEASED_REMEMBERED_US_MAX if limit.lease else REMEMBERED_US_MAX
    if retry_after_us >= 0:
        known_for_us = min(known_for_us, retry_after_us)
    return _Denial(
        limit,
        cost,
        outcome.used,
        asked_us + known_for_us,
        None if retry_after_us < 0 else heard_us + retry_after_us,
        heard_us + outcome.reset_after_us,
    )


def _covers(known: _Denial, charge: Charge) -> bool:
    """Whether the charge is denied too, and passes at the same time.

    More than what was denied is denied all the longer, and only the store can tell for how long - but a fixed window
    ends when it ends.
    """
    limit = charge.limit
    if known.limit is not limit and known.limit != limit:
        return False  # another policy, or an override: it may grant more
    if charge.cost == known.cost:
        return True
    return charge.cost > known.cost and limit.algorithm is Algorithm.FIXED_WINDOW and charge.cost <= limit.requests
