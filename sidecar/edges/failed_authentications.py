"""Counts refused credentials by their source, in the store of the limits, after the answers have left.

Failures of one source are counted together each FLUSH_S. Who is over the budget becomes a suspect (core/suspects.py)
for as long as the store says; where Redis does not answer, this process counts by itself. A source that uses up its
budget between two flushes is a suspect at once, so that a flood costs at most a budget's worth of signature checks a
sidecar.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from sidecar.core.bindings import limit_key
from sidecar.core.limits import US_PER_S, Charge, StoreFailure, Verdict
from sidecar.core.suspects import FAILED, source_of

if TYPE_CHECKING:
    from sidecar.core.audit import DecisionEvent
    from sidecar.core.limits import Limit, LimitStore
    from sidecar.core.suspects import Suspects

FLUSH_S: Final = 0.02
FLUSHED_MAX: Final = 128
"""Sources that are charged for at a time: 6,400 a second, which costs Redis and us some percent of a core."""
WAITING_MAX: Final = 4_096
"""Sources that wait to be charged for; the failures of more are not counted, which the metric says."""
CHARGE_TIMEOUT_S: Final = 1.0
EXPIRE_EVERY_S: Final = 10.0


class FailedAuthentications:
    """Turns failures into suspects.

    Args:
        limit: The budget.
        key_prefix: `redis.key_prefix`.
        suspects: Where those who are over it are put.
        store: Counts for all sidecars.
        local: Counts for this one, while `store` cannot.
        now_us: The clock of the suspects, microseconds since the epoch.

    Attributes:
        counted_total: Failures that were counted.
        dropped_total: Failures of more sources than can wait.
    """

    def __init__(
        self,
        limit: Limit,
        key_prefix: str,
        suspects: Suspects,
        store: LimitStore,
        local: LimitStore,
        now_us: Callable[[], int],
    ) -> None:
        self._limit = limit
        self._prefix = key_prefix
        self._suspects = suspects
        self._store = store
        self._local = local
        self._now_us = now_us
        self._waiting: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._soon = False
        self._expire_at_us = 0
        self.counted_total = 0
        self.dropped_total = 0

    def observe(self, events: Sequence[DecisionEvent]) -> None:
        """Count the failures among these decisions, soon."""
        for event in events:
            if event.decision.reason in FAILED and event.request is not None:
                self._add(source_of(event.request.source_address))

    def close(self) -> None:
        """Stop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _add(self, source: str) -> None:
        waiting = self._waiting
        if not source:
            return
        if source not in waiting and len(waiting) >= WAITING_MAX:
            self.dropped_total += 1
            return
        count = waiting[source] = waiting.get(source, 0) + 1
        if count > self._limit.requests:
            self._suspects.add(source, self._now_us() + int(CHARGE_TIMEOUT_S * US_PER_S))
        if not self._soon:
            self._soon = True
            self._later(FLUSH_S)

    def _flush(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        for source in list(self._waiting)[:FLUSHED_MAX]:
            count = self._waiting.pop(source)
            self.counted_total += count
            self._charge(self._store, source, count, loop.time() + CHARGE_TIMEOUT_S)
        now_us = self._now_us()
        if now_us >= self._expire_at_us:
            self._suspects.expire(now_us)
            self._expire_at_us = now_us + int(EXPIRE_EVERY_S * US_PER_S)
        self._soon = bool(self._waiting)
        if self._soon or self._suspects.active:
            self._later(FLUSH_S if self._soon else EXPIRE_EVERY_S)

    def _later(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._flush)

    def _charge(self, store: LimitStore, source: str, count: int, deadline: float) -> None:
        limit = self._limit
        charge = Charge(limit, limit_key(self._prefix, limit.name, (source,)), min(count, limit.requests))

        def charged(answer: Verdict | StoreFailure) -> None:
            if isinstance(answer, Verdict):
                self._judge(source, count, answer)
            elif store is not self._local:
                self._charge(self._local, source, count, deadline)

        store.charge([charge], deadline, charged)

    def _judge(self, source: str, count: int, verdict: Verdict) -> None:
        """A suspect until its budget has room again; who took more than all of it at once, until all of it has."""
        limit = self._limit
        wait_us = 0
        if not verdict.allowed:
            wait_us = verdict.outcomes[0].retry_after_us
        elif count > limit.requests:
            wait_us = limit.window_us
        if wait_us:
            self._suspects.add(source, self._now_us() + (wait_us if wait_us > 0 else limit.window_us))
