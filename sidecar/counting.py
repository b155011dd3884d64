"""What counts limits, put together: Redis, what stands in front of it, and what is heard of changes.

Built by app.py, of which this is a part.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sidecar.core.limits import US_PER_S
from sidecar.core.overrides import Overrides
from sidecar.edges import metric_sources
from sidecar.edges.limit_changes import ChangesFollower, LimitChanges
from sidecar.edges.limiter import Limiter
from sidecar.edges.local_store import LocalStore
from sidecar.edges.log import get_log
from sidecar.edges.metrics import LatencyHistogram
from sidecar.edges.redis_store import RedisStore
from sidecar.edges.redis_topology import build_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.core.limits import LimitStore
    from sidecar.edges.metrics import Source
    from sidecar.edges.redis_topology import TopologyStore
    from sidecar.policy.settings import Settings

_log = get_log("app")


class Counting:
    """The counters of one process. Create and `start` it in the event loop.

    Args:
        settings: Say where Redis is, if there is one.
        embedded_socket: Where the embedded Valkey listens, "" without one.
        on_redis: Called when Redis is connected, and when the connection is lost, or not to be had.

    Attributes:
        store: Redis; refuses where there is none.
        limiter: Decides all charges: in Redis, or by what is known already.
        local: Counts in this process, where a policy falls back to that; without Redis nobody is told of it afterwards.
        was_connected: Whether Redis was ever reached.

    Raises:
        OSError: A TLS file cannot be used.
    """

    def __init__(self, settings: Settings, embedded_socket: str, on_redis: Callable[[], None]) -> None:
        redis = settings.redis
        self._in_redis = redis is not None
        self._on_redis = on_redis
        self._latency = LatencyHistogram()
        self._local = LocalStore(share=settings.local_share)
        self.was_connected = False
        try:
            self.store: TopologyStore = build_store(
                redis, embedded_socket, observe_latency=self._answered, on_connection=self._connection_changed
            )
        except ValueError as error:
            raise OSError(error) from None
        overrides = Overrides()
        self._follower = ChangesFollower(
            LimitChanges(self.store, redis.key_prefix if redis is not None else ""),
            overrides,
            forget=self._forget,
            report=_report_changes,
            now_us=_now_us,
        )
        self.limiter = Limiter(
            self.store,
            self._local,
            overrides=overrides,
            on_freed=self._follower.freed,
            wait_s=redis.timeout_s if redis is not None else 0.0,
        )
        self.local: LimitStore = self.limiter.local if redis is not None else self._local
        self.store.on_denied = self.limiter.denied
        if not isinstance(self.store, RedisStore):
            self.store.refund = self.limiter.charge

    def start(self) -> None:
        """Connect to Redis, and begin to follow the changes made there."""
        if self._in_redis:
            self.store.start()
        self.limiter.start()
        if self._in_redis:
            self._follower.start()

    async def close(self) -> None:
        """Give back what is held, and stop."""
        await self._follower.close()
        await self.limiter.close()
        if self._in_redis:
            await self.store.close()

    def detail(self) -> dict[str, object]:
        """For /readyz."""
        return self.store.detail() if self._in_redis else {"used": False}

    def sources(self) -> list[Source]:
        """For /metrics."""
        return [
            metric_sources.redis(self.store, self._latency),
            metric_sources.local_store(self._local),
            metric_sources.limiter(self.limiter),
        ]

    def _forget(self, storage_keys: set[bytes] | None) -> None:
        self.limiter.forget(storage_keys)

    def _answered(self, seconds: float) -> None:
        self._latency.observe(int(seconds * US_PER_S))

    def _connection_changed(self, reason: str) -> None:
        """Connected, where `reason` is empty; else the connection is lost, or was not to be had."""
        if reason:
            _log.warning("redis_unreachable", reason=reason)
        else:
            _log.info("redis_connected")
            self.was_connected = True
            self.limiter.handover.hurry()
        self._on_redis()


def _report_changes(reason: str) -> None:
    if reason:
        _log.warning("limit_changes_not_followed", reason=reason)


def _now_us() -> int:
    return time.time_ns() // 1000
