"""A connection to the Redis of a policy, for commands that look at or change what running sidecars share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from sidecar.edges.limit_changes import ChangesError
from sidecar.edges.redis_topology import build_store

if TYPE_CHECKING:
    from sidecar.edges.redis_topology import TopologyStore
    from sidecar.policy.settings import RedisSettings

T = TypeVar("T")

CONNECT_TIMEOUT_S: Final = 5.0
RETRY_S: Final = 0.02


class UsageError(Exception):
    """The command line names something that is not there; says what there is."""


@asynccontextmanager
async def redis_session(redis: RedisSettings | None, why: str) -> AsyncIterator[TopologyStore]:
    """A store, started; ask it through `answered`, since it connects in the background.

    Args:
        redis: Of the policy.
        why: What follows where the policy names none.

    Raises:
        UsageError: There is none, or none that can be reached from here.
    """
    if redis is None:
        raise UsageError(f"the policy names no Redis: {why}")
    if redis.embedded:
        raise UsageError("an embedded Valkey belongs to the sidecar that started it; name a server in redis.url")
    store = build_store(redis, "")
    store.start()
    try:
        yield store
    finally:
        await store.close()


async def answered(ask: Callable[[], Awaitable[T]]) -> T:
    """What looking finds, as soon as the server that is asked is connected.

    Raises:
        ChangesError: It does not answer.
    """
    latest = time.monotonic() + CONNECT_TIMEOUT_S
    while True:
        try:
            return await ask()
        except ChangesError:
            if time.monotonic() >= latest:
                raise
        await asyncio.sleep(RETRY_S)
