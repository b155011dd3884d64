"""The limit store in this process: what `on_redis_failure: local` falls back to, and the oracle behind a store's door.

It counts for one process only: with several, each grants its own `share` of every limit.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from sidecar.core.algorithms.decide import Decided, decide
from sidecar.core.limits import Charge, Done, Limit, LimitOutcome, Verdict

if TYPE_CHECKING:
    from sidecar.core.algorithms.account import State

KEYS_MAX = 65_536
"""Counters that are kept: some 25 MB when full."""

PARTS_MAX = 1_000_000
"""Entries of sliding logs (16 bytes each) and holds (some 150) that all counters have together."""

_LIMITS_MAX = 4_096
"""Scaled limits that are remembered; policies have fewer."""


def _now_us() -> int:
    return time.time_ns() // 1_000


class _Entry(NamedTuple):
    state: State
    expires_us: int
    parts: int


class LocalStore:
    """A `LimitStore` in memory; it never fails.

    When `keys_max` counters are kept, or `parts_max` parts of them, a new one takes the place of: one that has expired,
    else the least recently used one that still has room, else, if every counter is exhausted, the least recently used
    of those (`forgotten_total` counts them: each is a caller who could start afresh).

    Args:
        share: The part of each limit that this process grants, 0 < share <= 1; rounded down, but at least 1 of a limit
            that is not 0.
        keys_max: The most counters that are kept.
        parts_max: The most log entries and holds that are kept, all counters together; one counter may have as many
            as its algorithm allows.
        now_us: The clock: microseconds since the epoch.

    Attributes:
        decisions_total: How often it was asked.
        forgotten_total: See above.
    """

    def __init__(
        self,
        *,
        share: float = 1.0,
        keys_max: int = KEYS_MAX,
        parts_max: int = PARTS_MAX,
        now_us: Callable[[], int] = _now_us,
    ) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, not {share}")
        self._share = share
        self._keys_max = keys_max
        self._parts_max = parts_max
        self._parts = 0
        self._now_us = now_us
        self._open: OrderedDict[bytes, _Entry] = OrderedDict()
        self._exhausted: OrderedDict[bytes, _Entry] = OrderedDict()
        self._scaled: dict[Limit, Limit] = {}
        self.forgotten_total = 0
        self.decisions_total = 0

    @property
    def keys(self) -> int:
        """Counters that are kept."""
        return len(self._open) + len(self._exhausted)

    @property
    def parts(self) -> int:
        """Log entries and holds that are kept."""
        return self._parts

    def charge(self, charges: Sequence[Charge], deadline: float, done: Done) -> None:
        """Decide all charges together, then call `done`, before this returns."""
        del deadline  # it takes no time
        self.decisions_total += 1
        now_us = self._now_us()
        scaled = charges if self._share == 1 else [self._scale(charge) for charge in charges]
        decided = decide(scaled, now_us, self._load)
        self._remember(scaled, decided, now_us)
        for charge, outcome in zip(charges, decided.outcomes, strict=True):
            outcome.limit = charge.limit
        done(Verdict(decided.allowed, decided.outcomes, local=True))

    def used(self, charge: Charge) -> int:
        """What is counted now under a charge's key."""
        look = self._scale(Charge(charge.limit, charge.key, 0))
        [outcome] = decide([look], self._now_us(), self._load).outcomes
        return outcome.used

    def _scale(self, charge: Charge) -> Charge:
        limit = charge.limit
        scaled = self._scaled.get(limit)
        if scaled is None:
            if len(self._scaled) >= _LIMITS_MAX:
                self._scaled.clear()
            scaled = self._scaled[limit] = _scaled(limit, self._share)
        return Charge(scaled, charge.key, charge.cost, charge.op, charge.hold)

    def _load(self, key: bytes) -> State | None:
        entry = self._open.get(key) or self._exhausted.get(key)
        return None if entry is None else entry.state

    def _remember(self, charges: Sequence[Charge], decided: Decided, now_us: int) -> None:
        exhausted = {
            charge.storage_key: not _has_room(outcome)
            for charge, outcome in zip(charges, decided.outcomes, strict=True)
        }
        for key, state, lifetime_us in decided.writes:
            is_exhausted = exhausted.pop(key)
            if lifetime_us > 0:
                self._put(key, _Entry(state, now_us + lifetime_us, state.parts), is_exhausted, now_us)
            else:
                self._pop(key)
        for key, is_exhausted in exhausted.items():
            entry = self._open.get(key) or self._exhausted.get(key)
            if entry is not None:
                self._put(key, entry, is_exhausted, now_us)

    def _put(self, key: bytes, entry: _Entry, exhausted: bool, now_us: int) -> None:
        if not self._pop(key):
            self._make_room(now_us)
        while self._parts and self._parts + entry.parts > self._parts_max:
            self._forget_one()
        (self._exhausted if exhausted else self._open)[key] = entry
        self._parts += entry.parts

    def _pop(self, key: bytes) -> bool:
        entry = self._open.pop(key, None) or self._exhausted.pop(key, None)
        if entry is None:
            return False
        self._parts -= entry.parts
        return True

    def _make_room(self, now_us: int) -> None:
        """Drop what has expired at the old ends, so that memory follows use; if there is no room still, one more."""
        for entries in (self._open, self._exhausted):
            if entries and next(iter(entries.values())).expires_us <= now_us:
                self._parts -= entries.popitem(last=False)[1].parts
        if self.keys >= self._keys_max:
            self._forget_one()

    def _forget_one(self) -> None:
        """Drop the least recently used one that has room, or of those that have none."""
        if self._open:
            self._parts -= self._open.popitem(last=False)[1].parts
        else:
            self._parts -= self._exhausted.popitem(last=False)[1].parts
            self.forgotten_total += 1


def _scaled(limit: Limit, share: float) -> Limit:
    """A share of a limit; of GCRA's burst no more than comes back in the time of the whole one."""
    requests = max(int(limit.requests * share), min(limit.requests, 1))
    burst = 0
    if limit.burst:
        burst = max(min(int(limit.burst * share), limit.burst * requests // limit.requests), 1)
    return replace(limit, requests=requests, burst=burst)


def _has_room(outcome: LimitOutcome) -> bool:
    return outcome.allowed and outcome.remaining > 0
