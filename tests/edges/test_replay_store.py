"""Used proofs: noted once for everyone in a real Valkey, and believed by nobody where that cannot be asked."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from sidecar.core.dpop import NeedFirstUse
from sidecar.core.limits import StoreFailure
from sidecar.edges.redis_endpoint import RedisEndpoint
from sidecar.edges.replay_store import LOCAL_PROOFS_MAX, LocalProofs, ReplayStore
from tests.support.asking import PATIENCE_S, redis_store

if TYPE_CHECKING:
    import redis

    from sidecar.edges.embedded_valkey import EmbeddedValkey


def need(number: int = 0, *, lifetime_ms: int = 60_000, local: bool = False) -> NeedFirstUse:
    return NeedFirstUse(number, number.to_bytes(32, "big"), lifetime_ms, local)


def answered(store: ReplayStore, asked: NeedFirstUse, deadline: float | None = None) -> asyncio.Future[Any]:
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    store.ensure(asked, time.monotonic() + PATIENCE_S if deadline is None else deadline, answer.set_result)
    return answer


class Redis:
    """Sends nothing, and replies what a test wants."""

    def __init__(self, reply: Any) -> None:
        self.reply = reply
        self.sent: list[tuple[bytes, ...]] = []

    def command(self, key: bytes, parts: tuple[bytes, ...], timeout_s: float, done: Any) -> None:
        assert key == parts[1]
        assert timeout_s > 0
        self.sent.append(parts)
        done(self.reply)


async def test_a_proof_is_first_once(valkey: EmbeddedValkey, valkey_admin: redis.Redis) -> None:
    """At two sidecars at the same time, one of many is the first; what is noted ends with the proof's lifetime."""
    endpoint = RedisEndpoint(path=valkey.socket_path)
    async with redis_store(endpoint) as one, redis_store(endpoint) as two:
        stores = [ReplayStore(each, "sidecar", PATIENCE_S) for each in (one, two)]
        found = await asyncio.gather(*[answered(stores[n % 2], need(7)) for n in range(50)])
        assert sorted(found) == [False] * 49 + [True]
        assert [await answered(stores[0], need(8)), await answered(stores[1], need(8))] == [True, False]
        assert sum(each.first for each in stores) == 2
        assert sum(each.replayed for each in stores) == 50
    keys = valkey_admin.keys("sidecar:dpop:*")
    assert len(keys) == 2
    assert all(0 < valkey_admin.pttl(key) <= 60_000 for key in keys)


@pytest.mark.parametrize("reply", [*StoreFailure, [], b"QUEUED", 1, "", ValueError("x")])
async def test_whatever_else_is_answered_is_no_answer(reply: Any) -> None:
    """Failures, errors and surprises are None, which denies; Redis is not asked after the deadline, or without one."""
    redis_ = Redis(reply)
    store = ReplayStore(redis_, "sidecar", 1.0)
    assert await answered(store, need()) is None
    assert len(redis_.sent) == 1
    assert await answered(store, need(), deadline=time.monotonic()) is None
    assert len(redis_.sent) == 1
    assert await answered(ReplayStore(None, "", 1.0), need()) is None
    assert store.unavailable == 2


async def test_the_policy_may_have_each_process_remember() -> None:
    """With `local`, a proof is good once here while Redis is away, also if it was used before Redis went."""
    redis_ = Redis(b"OK")
    store = ReplayStore(redis_, "sidecar", 1.0)
    assert await answered(store, need(1, local=True)) is True
    redis_.reply = StoreFailure.TIMEOUT
    assert await answered(store, need(1, local=True)) is False
    assert [await answered(store, need(2, local=True)) for _ in range(2)] == [True, False]
    assert await answered(store, need(3)) is None
    redis_.reply = None
    assert await answered(store, need(4, local=True)) is False
    assert (store.first, store.replayed, store.unavailable, store.noted_locally) == (2, 3, 1, 1)


def test_what_a_process_remembers_is_bounded() -> None:
    """One more than the limit is refused, not forgotten for; room comes back as proofs end."""
    proofs = LocalProofs(3)
    assert [proofs.first_use(bytes([n]), 10.0, 0.0) for n in range(4)] == [True, True, True, None]
    assert proofs.first_use(b"\x00", 10.0, 9.9) is False
    assert proofs.first_use(b"\x03", 10.0, 10.0) is True
    assert len(proofs) == 1
    assert LOCAL_PROOFS_MAX == 100_000
