"""Hot keys are charged ahead: a process takes more than one request needs, and grants the next ones by itself.

Worth it where many requests a second meet in one counter: `Limit.lease` more are taken in the same script as the
request's own cost - as a charge of its own which denies nothing when it does not fit, so that the request is decided
exactly as without it. What is taken ahead is granted until it is used up, or until LEASE_US have passed; what is left
then is given back.

**The bound.** A request that is granted from a lease was counted at most LEASE_US before. So in any span of a window's
length at most `processes x lease` requests more than the limit's own bound are admitted; in an aligned (fixed) window
none, since a lease ends with the window in which it was counted, by the time from before Redis was asked. What is left
is given back only where it surely still counts as a whole: in the bucket in which it was taken, or (GCRA) before it has
leaked. Later it would be credit for others; so it is left to pass by itself.

Never for sliding logs and holds, whose entries are requests of their own; not for limits that count denied requests,
which would count also what did not fit; not for shadow limits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

from sidecar.core.limits import (
    US_PER_S,
    Algorithm,
    Charge,
    Done,
    Limit,
    LimitOutcome,
    LimitStore,
    Op,
    Source,
    StoreFailure,
    Verdict,
)

HOT_CHARGES: Final = 16
HOT_SPAN_US: Final = 100_000
"""A key is hot once it was charged more than HOT_CHARGES times within one such span: more than 160 times a second."""

LEASE_US: Final = 200_000
"""How long what was taken ahead may be granted."""

LEASES_MAX: Final = 1_024
"""Keys of which something is held at a time; further hot keys are charged one by one."""

WATCHED_MAX: Final = 16_384
"""Keys that are counted in one span; further ones are not found hot in it."""

RETURN_WITHIN_S: Final = 1.0
"""The longest that giving back may take. What passes by itself within this time is not given back."""

CLOSE_WITHIN_S: Final = 0.5

_LEASABLE: Final = {Algorithm.SLIDING_WINDOW, Algorithm.FIXED_WINDOW, Algorithm.GCRA}


class LeasedGrant(LimitOutcome):
    """Granted from what was taken ahead; the numbers are as of then, less what was granted since."""

    source: ClassVar[Source] = Source.LEASE


@dataclass(slots=True, eq=False)
class _Lease:
    """What is held of one key.

    Attributes:
        left: How much of it is not granted yet.
        used: The counter, as the store said when it was taken, without what was left then.
        remaining: What the limit had left besides, as the store said.
        reset_at_us: When the limit is whole again.
        until_us: The last time at which it may be granted.
        return_until_us: The last time at which the rest may be given back.
    """

    limit: Limit
    key: bytes
    left: int
    used: int
    remaining: int
    reset_at_us: int
    until_us: int
    return_until_us: int


class Leases:
    """What this process holds.

    Args:
        store: Where it is taken, and given back.
        now_us: A monotonic clock.
        on_returned: Told the storage keys of what was given back.
        leases_max: Keys of which something may be held.

    Attributes:
        taken_total, granted_total, returned_total: Cost that was taken ahead, granted of it, and given back.
    """

    def __init__(
        self,
        store: LimitStore,
        now_us: Callable[[], int],
        *,
        on_returned: Callable[[Sequence[bytes]], None] = lambda _keys: None,
        leases_max: int = LEASES_MAX,
    ) -> None:
        self._store = store
        self._now_us = now_us
        self._on_returned = on_returned
        self._leases_max = leases_max
        self._held: dict[bytes, _Lease] = {}
        self._taking: set[bytes] = set()
        self._seen: dict[bytes, int] = {}
        self._span_ends_us = 0
        self._timer: asyncio.TimerHandle | None = None
        self._returning = 0
        self._none_returning = asyncio.Event()
        self._none_returning.set()
        self.taken_total = 0
        self.granted_total = 0
        self.returned_total = 0

    @property
    def held(self) -> int:
        """Cost that was taken ahead and is neither granted nor given back: what could be admitted besides the limit."""
        return sum(lease.left for lease in self._held.values())

    async def close(self) -> None:
        """Give everything back; waits CLOSE_WITHIN_S at most."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._give_back(list(self._held))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_WITHIN_S):
                await self._none_returning.wait()

    def grant(self, charges: Sequence[Charge]) -> Verdict | None:
        """Grant a decision from what is held of every one of its keys; None where that is not enough."""
        if not self._held:
            return None
        now_us = self._now_us()
        if len(charges) == 1:
            lease = self._lease_for(charges[0], now_us)
            return None if lease is None else Verdict(True, (self._granted(lease, charges[0], now_us),))
        leases: list[_Lease] = []
        for charge in charges:
            lease = self._lease_for(charge, now_us)
            if lease is None or lease in leases:
                break
            leases.append(lease)
        else:
            return Verdict(True, tuple(self._granted(*pair, now_us) for pair in zip(leases, charges, strict=True)))
        return None

    def _lease_for(self, charge: Charge, now_us: int) -> _Lease | None:
        lease = self._held.get(charge.key + charge.limit.key_suffix)
        if lease is None or lease.left < charge.cost or lease.until_us < now_us or lease.limit is not charge.limit:
            return None
        return None if charge.op or charge.hold or not charge.cost else lease

    def _granted(self, lease: _Lease, charge: Charge, now_us: int) -> LeasedGrant:
        lease.left -= charge.cost
        lease.used += charge.cost
        self.granted_total += charge.cost
        reset_after_us = lease.reset_at_us - now_us
        remaining = lease.remaining + lease.left
        return LeasedGrant(charge.limit, True, lease.used, remaining, 0, max(0, reset_after_us))

    def is_hot(self, charges: Sequence[Charge]) -> bool:
        """Count the charges, and say whether to `take` ahead: all of their keys are hot and can be leased."""
        now_us = self._now_us()
        if now_us >= self._span_ends_us:
            self._span_ends_us = now_us + HOT_SPAN_US
            self._seen.clear()
        hot = True
        for charge in charges:
            if not _can_be_leased(charge):
                return False
            key = charge.key + charge.limit.key_suffix
            seen = self._seen.get(key, 0) + 1
            if seen > 1 or len(self._seen) < WATCHED_MAX:
                self._seen[key] = seen
            hot = hot and (seen > HOT_CHARGES or key in self._held) and key not in self._taking
        return hot and len(self._held) + len(charges) <= self._leases_max

    def take(self, charges: Sequence[Charge], deadline: float, done: Done) -> None:
        """Charge, and take ahead what fits."""
        keys = [charge.storage_key for charge in charges]
        self._taking.update(keys)  # until this is answered, others are charged one by one
        ahead = [Charge(_ahead(charge.limit), charge.key, charge.limit.lease) for charge in charges]
        asked_us = self._now_us()

        def answered(answer: Verdict | StoreFailure) -> None:
            self._taking.difference_update(keys)
            if isinstance(answer, StoreFailure):
                done(answer)
                return
            own, taken = answer.outcomes[: len(charges)], answer.outcomes[len(charges) :]
            if answer.allowed:
                for charge, outcome in zip(charges, taken, strict=True):
                    if outcome.allowed:
                        self._hold(charge, outcome, asked_us)
            done(Verdict(answer.allowed, own, answer.local))

        self._store.charge([*charges, *ahead], deadline, answered)

    def _hold(self, charge: Charge, outcome: LimitOutcome, asked_us: int) -> None:
        limit, key = charge.limit, charge.storage_key
        if key in self._held:
            self._give_back([key])
        passes_us = asked_us + _counts_for_us(limit, outcome)
        until_us = asked_us + LEASE_US
        if limit.algorithm is Algorithm.FIXED_WINDOW:
            until_us = min(until_us, passes_us - 1)
        self.taken_total += limit.lease
        self._held[key] = _Lease(
            limit,
            charge.key,
            left=limit.lease,
            used=outcome.used - limit.lease,
            remaining=outcome.remaining,
            reset_at_us=asked_us + outcome.reset_after_us,
            until_us=until_us,
            return_until_us=passes_us - int(RETURN_WITHIN_S * US_PER_S),
        )
        if self._timer is None:
            self._wait()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LEASE_US / 2 / US_PER_S, self.end_leases)

    def end_leases(self) -> None:
        """Give back what is left of leases whose time has passed; by itself this happens twice in that time."""
        now_us = self._now_us()
        self._timer = None
        self._give_back([key for key, lease in self._held.items() if lease.until_us < now_us or not lease.left])
        if self._held:
            self._wait()

    def _give_back(self, keys: Sequence[bytes]) -> None:
        now_us = self._now_us()
        for key in keys:
            lease = self._held.pop(key)
            if lease.left and now_us <= lease.return_until_us:
                self._return(key, lease)

    def _return(self, key: bytes, lease: _Lease) -> None:
        rest = Charge(lease.limit, lease.key, lease.left, Op.REFUND)

        def returned(answer: Verdict | StoreFailure) -> None:
            self._returning -= 1
            if not self._returning:
                self._none_returning.set()
            if isinstance(answer, Verdict):
                self.returned_total += rest.cost
                self._on_returned([key])

        self._returning += 1
        self._none_returning.clear()
        self._store.charge([rest], asyncio.get_running_loop().time() + RETURN_WITHIN_S, returned)


def _can_be_leased(charge: Charge) -> bool:
    limit = charge.limit
    return (
        limit.lease > 0
        and charge.cost > 0
        and charge.op is Op.TAKE
        and not charge.hold
        and not limit.count_denied
        and not limit.shadow
        and not limit.hold_time_us
        and limit.algorithm in _LEASABLE
    )


def _counts_for_us(limit: Limit, outcome: LimitOutcome) -> int:
    """How long what was just taken ahead counts as a whole: the rest of its bucket, or until it has leaked."""
    if limit.algorithm is Algorithm.SLIDING_WINDOW:
        return outcome.reset_after_us - limit.window_us
    if limit.algorithm is Algorithm.GCRA:
        return limit.lease * limit.window_us // limit.requests
    return outcome.reset_after_us


def _ahead(limit: Limit) -> Limit:
    """The same counter, for a charge that is taken if it fits and denies nothing otherwise."""
    return replace(limit, shadow=True, deny_cache=False, lease=0)
