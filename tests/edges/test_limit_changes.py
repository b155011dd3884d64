"""Overrides, resets and refunds, followed by several sidecars on a real Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import redis

from sidecar.core.limits import US_PER_S, Charge, Limit
from sidecar.core.overrides import OVERRIDES_MAX, Overrides
from sidecar.edges.limit_changes import FREED_KEYS_MAX, ChangesError, ChangesFollower, LimitChanges, StoredOverride
from sidecar.edges.redis_endpoint import RedisEndpoint
from sidecar.edges.redis_store import RedisStore
from tests.support.asking import until

if TYPE_CHECKING:
    from sidecar.edges.embedded_valkey import EmbeddedValkey

LIMIT = Limit(name="per-user", requests=10, window_us=US_PER_S)
STORED = StoredOverride("per-user", ["ann", None], 500)


@dataclass
class Sidecar:
    """The part of one that follows the changes."""

    store: RedisStore
    now_us: int = 0
    overrides: Overrides = field(default_factory=Overrides)
    forgotten: list[set[bytes] | None] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.changes = LimitChanges(self.store, "sidecar")
        self.follower = ChangesFollower(
            self.changes,
            self.overrides,
            forget=self.forgotten.append,
            report=self.reports.append,
            now_us=lambda: self.now_us,
        )

    async def start(self) -> None:
        self.store.start()
        await until(lambda: self.store.connection.connected)
        self.follower.start()
        await until(lambda: self.reports == [""])

    async def close(self) -> None:
        await self.follower.close()
        await self.store.close()

    def was_told(self, key: bytes) -> bool:
        return any(keys is not None and key in keys for keys in self.forgotten)

    def granted(self, key: bytes) -> int:
        return self.overrides.applied([Charge(LIMIT, key)])[0].limit.requests


@pytest.fixture
async def sidecars(valkey: EmbeddedValkey) -> AsyncIterator[tuple[Sidecar, Sidecar]]:
    """Two on one server."""
    pair = (
        Sidecar(RedisStore(RedisEndpoint(path=valkey.socket_path))),
        Sidecar(RedisStore(RedisEndpoint(path=valkey.socket_path))),
    )
    for sidecar in pair:
        await sidecar.start()
    yield pair
    for sidecar in pair:
        await sidecar.close()


async def test_an_override_reaches_every_sidecar_and_its_end_too(sidecars: tuple[Sidecar, Sidecar]) -> None:
    """Whoever sets it; other keys keep their limit."""
    one, two = sidecars
    await one.changes.set_override(b"k", STORED)
    await until(lambda: one.granted(b"k") == two.granted(b"k") == 500)
    assert two.granted(b"other") == 10
    assert None in two.forgotten
    assert (await two.changes.overrides()) == {b"k": STORED}

    assert await two.changes.clear_override(b"k")
    assert not await two.changes.clear_override(b"k")
    await until(lambda: one.granted(b"k") == two.granted(b"k") == 10)


async def test_an_override_ends_by_itself(sidecars: tuple[Sidecar, Sidecar]) -> None:
    """At its time by the sidecar's clock, and what was remembered under it is forgotten."""
    one, _ = sidecars
    await one.changes.set_override(b"k", StoredOverride("per-user", ["ann"], 500, until_us=1_000))
    await until(lambda: one.granted(b"k") == 500)
    one.forgotten.clear()
    one.now_us = 1_000
    await until(lambda: one.granted(b"k") == 10)
    await until(lambda: None in one.forgotten)


async def test_a_reset_is_told_to_every_sidecar(sidecars: tuple[Sidecar, Sidecar], valkey_admin: redis.Redis) -> None:
    """The counter is gone, and nobody goes on denying from memory."""
    one, two = sidecars
    valkey_admin.set("sidecar:per-user:{x}:s1", b"whatever")
    assert await one.changes.reset(b"sidecar:per-user:{x}:s1")
    assert not await one.changes.reset(b"sidecar:per-user:{y}:s1")
    assert valkey_admin.exists("sidecar:per-user:{x}:s1") == 0
    await until(lambda: one.was_told(b"sidecar:per-user:{x}:s1") and two.was_told(b"sidecar:per-user:{x}:s1"))


async def test_what_was_emptied_is_noticed(sidecars: tuple[Sidecar, Sidecar], valkey_admin: redis.Redis) -> None:
    """Overrides that are gone from Redis, however, are not in force any more; a later one is."""
    one, _ = sidecars
    await one.changes.set_override(b"k", STORED)
    await until(lambda: one.granted(b"k") == 500)
    valkey_admin.flushall()
    await until(lambda: one.granted(b"k") == 10)
    await one.changes.set_override(b"k", STORED)
    await until(lambda: one.granted(b"k") == 500)


async def test_what_cannot_be_followed_is_reported_once_and_begun_anew(
    sidecars: tuple[Sidecar, Sidecar], valkey_admin: redis.Redis
) -> None:
    """Overrides stay in force meanwhile, and everything remembered is forgotten after it."""
    one, _ = sidecars
    await one.changes.set_override(b"k", STORED)
    await until(lambda: one.granted(b"k") == 500)
    valkey_admin.delete("sidecar:{limits}:news")
    valkey_admin.set("sidecar:{limits}:news", "not a stream")
    await until(lambda: len(one.reports) == 2)
    assert "WRONGTYPE" in one.reports[1]
    assert one.granted(b"k") == 500
    one.forgotten.clear()
    valkey_admin.delete("sidecar:{limits}:news")
    await until(lambda: one.reports[-1] == "")
    assert None in one.forgotten


async def test_foreign_values_are_passed_over(sidecars: tuple[Sidecar, Sidecar], valkey_admin: redis.Redis) -> None:
    """What is no override does not keep the others from working."""
    one, _ = sidecars
    valkey_admin.hset("sidecar:{limits}:overrides", "bad", "{")
    valkey_admin.hset("sidecar:{limits}:overrides", "negative", '{"limit":"a","subject":[],"requests":-1}')
    await one.changes.set_override(b"k", STORED)
    await until(lambda: one.granted(b"k") == 500)
    assert len(one.overrides) == 1


async def test_overrides_are_bounded(sidecars: tuple[Sidecar, Sidecar], valkey_admin: redis.Redis) -> None:
    """One more than the most is refused; one that is there already can still be changed."""
    one, _ = sidecars
    valkey_admin.hset("sidecar:{limits}:overrides", mapping={f"k{n}": "{}" for n in range(OVERRIDES_MAX - 1)})
    await one.changes.set_override(b"last", STORED)
    with pytest.raises(ChangesError, match="overrides are in force"):
        await one.changes.set_override(b"one more", STORED)
    await one.changes.set_override(b"last", StoredOverride("per-user", ["ann"], 7))


async def test_what_one_sidecar_gives_back_all_others_hear(sidecars: tuple[Sidecar, Sidecar]) -> None:
    """With its next poll, many counters in one message; what is too much at a time is left out."""
    one, two = sidecars
    one.follower.freed([b"a", b"b"])
    one.follower.freed([b"c"])
    await until(lambda: all(map(two.was_told, (b"a", b"b", b"c"))))
    one.follower.freed([b"%d" % n for n in range(FREED_KEYS_MAX)])
    one.follower.freed([b"too much"])
    await until(lambda: two.was_told(b"%d" % (FREED_KEYS_MAX - 1)))
    assert not two.was_told(b"too much")
