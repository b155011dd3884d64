"""Asks limit stores in tests: one future for each charge, and waiting for a condition with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from sidecar.core.limits import Charge, LimitStore, StoreFailure, Verdict
from sidecar.edges.redis_store import RedisStore

if TYPE_CHECKING:
    from sidecar.edges.redis_endpoint import RedisEndpoint
    from sidecar.edges.redis_topology import TopologyStore

AnyStore = TypeVar("AnyStore", bound="TopologyStore")

PATIENCE_S = 15.0


def ask(store: LimitStore, *charges: Charge, timeout_s: float = PATIENCE_S) -> asyncio.Future[Verdict | StoreFailure]:
    """Charge, and get what is passed to `done`; a second call of `done` is an error."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Verdict | StoreFailure] = loop.create_future()
    store.charge(charges, loop.time() + timeout_s, answer.set_result)
    return answer


async def verdict(store: LimitStore, *charges: Charge) -> Verdict:
    """Charge, and insist on an answer."""
    answer = await ask(store, *charges)
    assert isinstance(answer, Verdict), answer
    return answer


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.002)


async def until_answered(store: RedisStore, *charges: Charge) -> Verdict:
    """Charge until the store answers."""
    async with asyncio.timeout(PATIENCE_S):
        while not isinstance(answer := await ask(store, *charges), Verdict):  # noqa: ASYNC110 - polls Redis
            await asyncio.sleep(0.01)
    return answer


@asynccontextmanager
async def redis_store(endpoint: RedisEndpoint, **settings: Any) -> AsyncIterator[RedisStore]:
    """A started store, connected."""
    async with running_store(RedisStore(endpoint, **{"timeout_s": PATIENCE_S, **settings})) as store:
        yield store


@asynccontextmanager
async def running_store(store: AnyStore) -> AsyncIterator[AnyStore]:
    """Any store, started and connected to all of its servers."""
    store.start()
    try:
        await until(lambda: store.connected)
        yield store
    finally:
        await store.close()
