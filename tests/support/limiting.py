"""A sidecar's limits without the rest of it: a store, what stands in front of it, and the fallback to this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sidecar.core.limits import Charge, Done, LimitStore, StoreFailure, Verdict
from sidecar.edges.limiter import Limiter
from sidecar.edges.local_store import LocalStore
from sidecar.edges.redis_cluster import ClusterStore
from sidecar.edges.redis_endpoint import Login, RedisAddress
from sidecar.edges.redis_store import RedisStore
from tests.support.asking import ask, until


class CountedStore:
    """Counts what is asked of a store; answers `failure` by itself where that is set."""

    def __init__(self, store: LimitStore) -> None:
        self._store = store
        self.asked: list[Sequence[Charge]] = []
        self.failure: StoreFailure | None = None

    def charge(self, charges: Sequence[Charge], deadline: float, done: Done) -> None:
        self.asked.append(charges)
        if self.failure is not None:
            done(self.failure)
        else:
            self._store.charge(charges, deadline, done)


class Limiting:
    """One sidecar."""

    def __init__(self, redis: RedisStore | ClusterStore, share: float, **settings: Any) -> None:
        self.redis = redis
        self.store = CountedStore(redis)
        self.local = LocalStore(share=share)
        self.limiter = Limiter(self.store, self.local, **settings)
        redis.on_denied = self.limiter.denied
        if isinstance(redis, ClusterStore):
            redis.refund = self.limiter.charge

    @property
    def trips(self) -> int:
        return len(self.store.asked)

    async def verdict(self, *charges: Charge) -> Verdict:
        """Redis's answer, or that of what stands in front of it."""
        answer = await ask(self.limiter, *charges)
        assert isinstance(answer, Verdict), answer
        return answer

    async def admits(self, *charges: Charge) -> bool:
        """As with `on_redis_failure: local`."""
        answer = await ask(self.limiter, *charges)
        if isinstance(answer, StoreFailure):
            answer = await ask(self.limiter.local, *charges)
        assert isinstance(answer, Verdict)
        return answer.allowed

    async def admitted(self, count: int, *charges: Charge) -> int:
        """Of so many at once."""
        return sum(await asyncio.gather(*(self.admits(*charges) for _ in range(count))))


@asynccontextmanager
async def limiting(
    *, path: str = "", port: int = 0, share: float = 1.0, timeout_s: float = 15.0, **settings: Any
) -> AsyncIterator[Limiting]:
    """A started one, connected."""
    address = RedisAddress(Login(), path=path) if path else RedisAddress(Login(), host="127.0.0.1", port=port)
    store = RedisStore(address, timeout_s=timeout_s)
    async with limiting_on(store, lambda: store.connection.connected, share=share, **settings) as sidecar:
        yield sidecar


@asynccontextmanager
async def limiting_on(
    store: RedisStore | ClusterStore, connected: Callable[[], bool], *, share: float = 1.0, **settings: Any
) -> AsyncIterator[Limiting]:
    """The same on any store, which is started and closed."""
    store.start()
    sidecar = Limiting(store, share, **settings)
    sidecar.limiter.start()
    try:
        await until(connected)
        yield sidecar
    finally:
        await sidecar.limiter.close()
        await store.close()
