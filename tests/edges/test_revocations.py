"""Revocations, followed by two sidecars on a real Valkey: pushed, polled, kept while Redis is away."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import redis

from sidecar.core.revocation import NEVER_US, Kind, Revocation, Revocations
from sidecar.edges.limit_changes import ChangesError
from sidecar.edges.redis_endpoint import RedisEndpoint
from sidecar.edges.redis_store import RedisStore
from sidecar.edges.revocation_store import RevocationStore
from sidecar.edges.revocations import RevocationEngine
from tests.support.asking import until
from tests.support.fault_proxy import FaultProxy

if TYPE_CHECKING:
    from sidecar.edges.embedded_valkey import EmbeddedValkey
    from sidecar.edges.redis_topology import TopologyStore
    from tests.support.valkey import ValkeyCluster

REVISION = "sidecar:{revocations}:revision"
ENTRIES = "sidecar:{revocations}:entries"
LOG = "sidecar:{revocations}:log"


def entry(name: str, kind: Kind = Kind.TOKEN, before_us: int = 0, until_us: int = NEVER_US) -> Revocation:
    return Revocation(kind, "main", name, before_us, until_us)


@dataclass
class Sidecar:
    """The part of one that follows the revocations."""

    store: TopologyStore
    deny_unknown: bool = False
    stale_after_s: float = 30.0
    entries_max: int = 1_000
    offset_us: int = 0
    revocations: Revocations = field(default_factory=Revocations)
    reports: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = RevocationEngine(
            self.store,
            RevocationStore(self.store, "sidecar", entries_max=self.entries_max),
            self.revocations,
            stale_after_s=self.stale_after_s,
            deny_unknown=self.deny_unknown,
            report=self.reports.append,
            now_us=self.now_us,
        )

    def now_us(self) -> int:
        return time.time_ns() // 1000 + self.offset_us

    def knows(self, name: str, kind: Kind = Kind.TOKEN) -> bool:
        return self.revocations.get(kind, "main", name) is not None


@asynccontextmanager
async def following(*sidecars: Sidecar) -> AsyncIterator[None]:
    """Started, subscribed and loaded."""
    for sidecar in sidecars:
        sidecar.store.start()
        sidecar.engine.start()
    try:
        await until(lambda: all(each.engine.subscribed and each.reports[-1:] == [""] for each in sidecars))
        yield
    finally:
        for sidecar in sidecars:
            await sidecar.engine.close()
            await sidecar.store.close()


def store_of(valkey: EmbeddedValkey) -> RedisStore:
    return RedisStore(RedisEndpoint(path=valkey.socket_path))


@pytest.fixture
async def pair(valkey: EmbeddedValkey) -> AsyncIterator[tuple[Sidecar, Sidecar]]:
    """Two on one server."""
    one, two = Sidecar(store_of(valkey)), Sidecar(store_of(valkey))
    async with following(one, two):
        yield one, two


@pytest.mark.parametrize("kind", Kind)
async def test_a_revocation_is_pushed_to_every_sidecar_and_its_undoing_too(
    pair: tuple[Sidecar, Sidecar], kind: Kind
) -> None:
    """Of each kind, by the subscription alone; what was said first is what counts in both."""
    one, two = pair
    wanted = entry("x", kind, before_us=5 if kind is Kind.SUBJECT else 0)
    assert await one.engine.commands.revoke(wanted)
    await until(lambda: one.knows("x", kind) and two.knows("x", kind))
    assert two.revocations.get(kind, "main", "x") == wanted
    assert [stored.revocation async for stored in two.engine.commands.entries()] == [wanted]
    assert await two.engine.commands.undo(kind, "main", "x")
    assert not await two.engine.commands.undo(kind, "main", "x")
    await until(lambda: not one.knows("x", kind) and not two.knows("x", kind))
    assert two.engine.pushed_total + two.engine.polled_total == 2


async def test_a_revocation_is_never_made_weaker(pair: tuple[Sidecar, Sidecar]) -> None:
    """An earlier time or end changes nothing; a later one does."""
    one, two = pair
    revoke = one.engine.commands.revoke
    assert await revoke(entry("s", Kind.SUBJECT, before_us=100, until_us=NEVER_US - 1))
    assert not await revoke(entry("s", Kind.SUBJECT, before_us=99, until_us=NEVER_US - 2))
    assert await revoke(entry("s", Kind.SUBJECT, before_us=101, until_us=NEVER_US - 2))
    await until(lambda: two.revocations.get(Kind.SUBJECT, "main", "s") == entry("s", Kind.SUBJECT, 101, NEVER_US - 1))


async def test_the_poll_finds_what_the_subscription_does_not_tell(valkey: EmbeddedValkey) -> None:
    """A half-open subscription costs one poll, is noticed and made anew."""
    one = Sidecar(store_of(valkey))
    async with FaultProxy(valkey.socket_path) as proxy:
        two = Sidecar(store_of(valkey))
        two.engine._subscription.locator = RedisEndpoint(host="127.0.0.1", port=proxy.port)
        async with following(one, two):
            proxy.mute = True
            await one.engine.commands.revoke(entry("x"))
            await until(lambda: two.knows("x"))
            assert two.engine.pushed_total == 0
            assert two.engine.polled_total == 1
            await until(lambda: two.engine.silent_total == 1)
            proxy.mute = False
            await until(lambda: two.engine.subscribed)
            await one.engine.commands.revoke(entry("y"))
            await until(lambda: two.knows("y"))


async def test_a_lost_subscription_is_made_anew_and_misses_nothing(valkey: EmbeddedValkey) -> None:
    """What happened meanwhile is found by asking."""
    one = Sidecar(store_of(valkey))
    async with FaultProxy(valkey.socket_path) as proxy:
        two = Sidecar(store_of(valkey))
        two.engine._subscription.locator = RedisEndpoint(host="127.0.0.1", port=proxy.port)
        async with following(one, two):
            proxy.refusing = True
            proxy.cut()
            await one.engine.commands.revoke(entry("x"))
            await until(lambda: two.knows("x"))
            await until(lambda: not two.engine.subscribed)
            proxy.refusing = False
            await until(lambda: two.engine.subscribed)


async def test_a_fresh_sidecar_reads_the_whole_set(pair: tuple[Sidecar, Sidecar], valkey: EmbeddedValkey) -> None:
    """Also of what the log does not hold any more; what has ended is left out."""
    one, _ = pair
    for number in range(3):
        await one.engine.commands.revoke(entry(f"t{number}"))
    with redis.Redis(unix_socket_path=valkey.socket_path) as client:
        client.xtrim(LOG, maxlen=0, approximate=False)
        client.hset(ENTRIES, '["token","main","old"]', "0 1 ended")
        client.hset(ENTRIES, '["token","main"]', "0 9999999999999999 malformed")
        client.hset(ENTRIES, '["unheard-of","main","x"]', "0 9999999999999999 of another version")
        client.hset(ENTRIES, "{", "0")
    three = Sidecar(store_of(valkey))
    async with following(three):
        assert await three.engine.loaded()
        assert sorted(each.name for each in three.revocations) == ["t0", "t1", "t2"]
        await one.engine.commands.revoke(entry("later"))
        await until(lambda: three.knows("later"))


async def test_what_redis_has_lost_stays_in_force_and_is_put_back(
    pair: tuple[Sidecar, Sidecar], valkey_admin: redis.Redis
) -> None:
    """An emptied Redis gets the entries again from those who know them; a fresh sidecar reads them there."""
    one, two = pair
    await one.engine.commands.revoke(entry("x"))
    await one.engine.commands.revoke(entry("s", Kind.SUBJECT, before_us=7))
    await until(lambda: two.knows("s", Kind.SUBJECT))
    valkey_admin.flushall()
    await until(lambda: valkey_admin.hlen(ENTRIES) == 2)
    assert one.knows("x")
    assert two.knows("x")
    await one.engine.commands.revoke(entry("y"))
    await until(lambda: two.knows("y") and one.knows("y"))
    assert {each.name for each in one.revocations} == {each.name for each in two.revocations} == {"x", "s", "y"}


async def test_an_older_state_of_redis_takes_nothing_back(
    pair: tuple[Sidecar, Sidecar], valkey_admin: redis.Redis
) -> None:
    """As after a failover to a replica that lags behind."""
    one, two = pair
    await one.engine.commands.revoke(entry("x"))
    await until(lambda: two.knows("x"))
    before = {name: bytes(valkey_admin.dump(name) or b"") for name in valkey_admin.keys("sidecar:*")}
    await one.engine.commands.revoke(entry("y"))
    await until(lambda: two.knows("y"))
    await two.engine.close()
    valkey_admin.flushall()
    for name, dumped in before.items():
        valkey_admin.restore(name, 0, dumped)
    await until(lambda: valkey_admin.hexists(ENTRIES, '["token","main","y"]'))
    assert one.knows("x")
    assert one.knows("y")


async def test_an_older_state_of_redis_that_went_on_takes_nothing_back(
    pair: tuple[Sidecar, Sidecar], valkey_admin: redis.Redis
) -> None:
    """As after a failover that lost a revocation, with more changes since than were lost: their number says nothing."""
    one, two = pair
    await one.engine.commands.revoke(entry("x"))
    await until(lambda: two.knows("x"))
    before = {name: bytes(valkey_admin.dump(name) or b"") for name in valkey_admin.keys("sidecar:*")}
    await one.engine.commands.revoke(entry("y"))
    await until(lambda: two.knows("y"))
    await one.engine.close()
    await two.engine.close()
    valkey_admin.flushall()
    for name, dumped in before.items():
        valkey_admin.restore(name, 0, dumped)
    await one.engine.commands.revoke(entry("z"))
    await one.engine.commands.revoke(entry("zz"))
    two.engine.start()
    await until(lambda: two.knows("zz"))
    await until(lambda: valkey_admin.hexists(ENTRIES, '["token","main","y"]'))
    assert two.knows("y")


async def test_a_cut_log_is_made_up_for_by_the_whole_set(
    pair: tuple[Sidecar, Sidecar], valkey_admin: redis.Redis
) -> None:
    """Also where what was missed is an undoing."""
    one, two = pair
    await one.engine.commands.revoke(entry("x"))
    await until(lambda: two.knows("x"))
    await two.engine.close()
    await one.engine.commands.undo(Kind.TOKEN, "main", "x")
    await one.engine.commands.revoke(entry("y"))
    valkey_admin.xtrim(LOG, maxlen=0, approximate=False)
    two.engine.start()
    await until(lambda: two.knows("y"))
    assert not two.knows("x")


async def test_entries_are_bounded(valkey: EmbeddedValkey) -> None:
    """One more than the most is refused and says so; a known one can still be changed, an ended one makes room."""
    one = Sidecar(store_of(valkey), entries_max=2)
    async with following(one):
        revoke = one.engine.commands.revoke
        await revoke(entry("a", until_us=one.now_us() + 50_000))
        await revoke(entry("b"))
        with pytest.raises(ChangesError, match="2 revocations are in force, which is the most"):
            await revoke(entry("c", until_us=NEVER_US))
        assert not await revoke(entry("b"))
        await until(lambda: one.now_us() % 1_000_000 > 0 and _ended(one, "a"))
        with redis.Redis(unix_socket_path=valkey.socket_path) as client:
            client.zadd("sidecar:{revocations}:ends", {'["token","main","a"]': 1})
        assert await revoke(entry("c"))
        await until(lambda: one.knows("c"))


def _ended(sidecar: Sidecar, name: str) -> bool:
    found = sidecar.revocations.get(Kind.TOKEN, "main", name)
    return found is not None and found.until_us <= sidecar.now_us()


async def test_known_entries_stay_in_force_while_redis_is_away(own_valkey: EmbeddedValkey) -> None:
    """`accept`: nothing else is refused. `deny`: everything is, once what is known was not confirmed for too long."""
    async with FaultProxy(own_valkey.socket_path) as proxy:
        endpoint = RedisEndpoint(host="127.0.0.1", port=proxy.port)
        accepting = Sidecar(RedisStore(endpoint))
        denying = Sidecar(RedisStore(endpoint), deny_unknown=True, stale_after_s=30)
        async with following(accepting, denying):
            await accepting.engine.commands.revoke(entry("x"))
            await until(lambda: denying.knows("x") and accepting.knows("x"))
            assert denying.engine.ready
            proxy.frozen = True
            await until(lambda: "did not answer" in accepting.reports[-1] and "did not answer" in denying.reports[-1])
            assert accepting.knows("x")
            assert accepting.engine.ready
            assert accepting.revocations.known_until_us is None
            known_until_us = denying.revocations.known_until_us
            assert known_until_us is not None
            assert known_until_us - denying.now_us() <= 30_000_000
            proxy.frozen = False
            proxy.cut()
            await until(lambda: (denying.revocations.known_until_us or 0) > known_until_us)
            assert accepting.engine.ready


async def test_what_was_never_read_is_unknown(own_valkey: EmbeddedValkey) -> None:
    """A start without Redis: `deny` refuses from the first request on, and is not ready; `accept` waits, bounded."""
    async with FaultProxy(own_valkey.socket_path) as proxy:
        proxy.refusing = True
        endpoint = RedisEndpoint(host="127.0.0.1", port=proxy.port)
        denying, accepting = Sidecar(RedisStore(endpoint), deny_unknown=True), Sidecar(RedisStore(endpoint))
        for sidecar in (denying, accepting):
            sidecar.store.start()
            sidecar.engine.start()
        assert not await denying.engine.loaded(0.01)
        assert denying.revocations.known_until_us == 0
        assert denying.revocations.active
        assert not accepting.revocations.active
        assert not denying.engine.ready
        assert not accepting.engine.ready
        proxy.refusing = False
        await until(lambda: denying.engine.ready and accepting.engine.ready)
        for sidecar in (denying, accepting):
            await sidecar.engine.close()
            await sidecar.store.close()


async def test_on_a_cluster(cluster: ValkeyCluster) -> None:
    """The entries live in one slot; the push comes over the bus, whichever node was subscribed to."""
    from sidecar.edges.redis_cluster import ClusterStore
    from sidecar.edges.redis_endpoint import Login

    one, two = (Sidecar(ClusterStore(cluster.addresses, Login())) for _ in range(2))
    async with following(one, two):
        for number in range(4):
            await one.engine.commands.revoke(entry(f"t{number}"))
        await until(lambda: len(two.revocations) == len(one.revocations) == 4)


async def test_a_foreign_message_changes_nothing(pair: tuple[Sidecar, Sidecar], valkey_admin: redis.Redis) -> None:
    """Who may publish but not write cannot revoke, nor take back."""
    one, two = pair
    await one.engine.commands.revoke(entry("x"))
    await until(lambda: two.knows("x"))
    for message in ("", "x", 'nope\n9-aa-bb\nundo\n0\n0\n["token","main","x"]'):
        valkey_admin.publish("sidecar:{revocations}", message)
    await one.engine.commands.revoke(entry("y"))
    await until(lambda: two.knows("y"))
    assert two.knows("x")


async def test_what_is_no_such_thing_in_redis_is_reported(
    pair: tuple[Sidecar, Sidecar], valkey_admin: redis.Redis
) -> None:
    """And followed again once it is gone; nothing is taken back."""
    one, two = pair
    await one.engine.commands.revoke(entry("x"))
    await until(lambda: two.knows("x"))
    valkey_admin.delete(REVISION)
    valkey_admin.lpush(REVISION, "no text")
    await until(lambda: "WRONGTYPE" in two.reports[-1])
    assert two.knows("x")
    valkey_admin.delete(REVISION)
    await until(lambda: two.reports[-1] == "")
    assert two.knows("x")
