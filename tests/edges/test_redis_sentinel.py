"""The store that follows the master of Sentinels: how it finds it, and notices that another one has become it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from sidecar.core.limits import US_PER_S, Algorithm, Charge, Limit, StoreFailure
from sidecar.edges import redis_sentinel
from sidecar.edges.redis_endpoint import LocateError, Login, RedisEndpoint
from sidecar.edges.redis_sentinel import SENTINELS_MAX, SentinelMaster, SentinelStore
from sidecar.edges.redis_store import RedisStore
from tests.support.asking import PATIENCE_S, ask, running_store, until, until_answered, verdict

LIMIT = Limit(name="l", requests=100, window_us=3_600 * US_PER_S, algorithm=Algorithm.FIXED_WINDOW)
CHARGE = Charge(LIMIT, b"k")


def sentinel_store(addresses, name="counters", **settings):
    return SentinelStore(name, addresses, Login(), Login(), **{"timeout_s": PATIENCE_S, **settings})


async def test_a_failover_is_noticed_while_the_old_master_answers(sentinel):
    """After an orderly failover, which breaks no connection, the new master is asked; the old one is left."""
    async with running_store(sentinel_store(sentinel.addresses)) as store:
        old = await asyncio.to_thread(lambda: sentinel.master)
        assert (await verdict(store, CHARGE)).outcomes[0].used == 1
        await asyncio.to_thread(sentinel.fail_over)
        await until(lambda: store.connection.connected and store.connection.endpoint.port != old.port)
        assert (await until_answered(store, CHARGE)).outcomes[0].used == 2
        assert store.counts.topology_changes + store.counts.connects >= 2
        assert store.detail()["server"] == str(store.connection.endpoint)
        await until(lambda: old.ask("CLIENT", "LIST").count("name=sidecar ") == 0)
        await asyncio.to_thread(sentinel.repair)


async def test_a_replica_is_never_charged(sentinel):
    """A server that says it is no master is left, whoever named it, and why is said."""
    replica = await asyncio.to_thread(lambda: sentinel.replica)
    store = RedisStore(RedisEndpoint(host="127.0.0.1", port=replica.port), master_only=True)
    store.start()
    await until(lambda: "it is no master but a slave" in store.connection.last_error)
    assert await ask(store, CHARGE) is StoreFailure.UNREACHABLE
    await store.close()


async def test_an_unknown_master_is_named(sentinel):
    """What the Sentinels say of it is shown to the operator."""
    store = sentinel_store(sentinel.addresses, "other")
    store.start()
    await until(lambda: "no sentinel knows the master other" in store.connection.last_error)
    assert "No such master" in store.connection.last_error
    await store.close()


async def test_without_sentinels_it_is_unreachable_and_says_so(monkeypatch):
    """All of them are named, with the reason."""
    monkeypatch.setattr(redis_sentinel, "LOCATE_WITHIN_S", 0.2)
    store = sentinel_store([("127.0.0.1", 1), ("127.0.0.1", 2)])
    store.start()
    await until(lambda: "no sentinel can be reached" in store.connection.last_error)
    assert "127.0.0.1:1" in store.connection.last_error
    assert "127.0.0.1:2" in store.connection.last_error
    await store.close()


async def test_one_sentinel_that_answers_is_enough(sentinel):
    """The others may be down."""
    async with running_store(sentinel_store([("127.0.0.1", 1), *sentinel.addresses[:1]])) as store:
        assert (await verdict(store, CHARGE)).allowed


async def test_sentinels_have_credentials_of_their_own(sentinel):
    """Those of the master are not shown to them, nor the other way round."""
    asked = sentinel.sentinels[0]
    asked.ask("ACL", "SETUSER", "asker", "on", ">of the sentinel", "+sentinel|master", "+client|setname", "resetkeys")
    await asyncio.to_thread(
        lambda: sentinel.master.ask("ACL", "SETUSER", "limiter", "on", ">of the master", "~*", "+@all")
    )
    theirs = Login(username="asker", password="of the sentinel")
    ours = Login(username="limiter", password="of the master")
    store = SentinelStore(sentinel.name, sentinel.addresses[:1], theirs, ours, timeout_s=PATIENCE_S)
    async with running_store(store):
        assert (await verdict(store, CHARGE)).allowed
        assert "of the" not in str(store.detail())
    wrong = SentinelStore(sentinel.name, sentinel.addresses[:1], ours, ours)
    wrong.start()
    await until(lambda: "WRONGPASS" in str(wrong.detail()["sentinel"]))
    await wrong.close()


async def test_closing_leaves_nothing(sentinel):
    """No task and no connection outlives the store."""
    before = asyncio.all_tasks()
    async with running_store(sentinel_store(sentinel.addresses)):
        pass
    assert asyncio.all_tasks() == before
    servers = (*sentinel.servers, *sentinel.sentinels)
    await until(lambda: sum(each.ask("CLIENT", "LIST").count("name=sidecar ") for each in servers) == 0)


class SaidMaster:
    """A Sentinel that says what the test wants."""

    def __init__(self):
        self.epoch, self.port = 0, 0
        self._writers = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = ("127.0.0.1", self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_exception):
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader, writer):
        self._writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(4_096):
                fields = [b"ip", b"127.0.0.1", b"port", b"%d" % self.port, b"config-epoch", b"%d" % self.epoch]
                named = b"".join(b"$%d\r\n%b\r\n" % (len(field), field) for field in fields)
                writer.write(b"*6\r\n" + named if b"MASTER" in data else b"+OK\r\n")


async def test_the_newest_knowledge_is_believed(monkeypatch):
    """Of Sentinels that disagree the one with the highest epoch; older knowledge than seen, only after a time."""
    async with SaidMaster() as cut_off, SaidMaster() as informed:
        cut_off.epoch, cut_off.port = 1, 1_001
        informed.epoch, informed.port = 2, 1_002
        master = SentinelMaster("m", [cut_off.address, informed.address], Login(), Login(), lambda: None)
        master.start()
        await until(lambda: all(each["connected"] for each in master.detail()["sentinels"]))
        assert (await master.locate()).port == 1_002
        informed.epoch = 0
        with pytest.raises(LocateError, match="epoch 1 only, 2 was seen before"):
            await master.locate()
        monkeypatch.setattr(redis_sentinel, "EPOCH_KEPT_S", 0.0)
        assert (await master.locate()).port == 1_001
        await master.close()


def test_the_number_of_sentinels_is_bounded():
    """As many as stated, and not one more; at least one."""
    SentinelMaster("m", [("h", n) for n in range(SENTINELS_MAX)], Login(), Login(), lambda: None)
    for many in (0, SENTINELS_MAX + 1):
        with pytest.raises(ValueError, match=f"1 to {SENTINELS_MAX}"):
            SentinelMaster("m", [("h", n) for n in range(many)], Login(), Login(), lambda: None)
