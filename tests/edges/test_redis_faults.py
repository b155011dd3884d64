"""Failovers, freezes, losses and cuts under load, with a count of what was admitted.

Where a counter's state survives (it was replicated before the fault), no more is ever admitted than its limit.
"""

from __future__ import annotations

import asyncio

import pytest

from sidecar.core.limits import US_PER_S, Algorithm, Charge, Limit, StoreFailure, Verdict
from sidecar.edges.redis_cluster import ClusterStore
from sidecar.edges.redis_endpoint import Login
from sidecar.edges.redis_sentinel import SentinelStore
from sidecar.edges.redis_slots import slot_of
from tests.support.asking import ask, running_store, until, until_answered, verdict
from tests.support.valkey import SentinelDeployment, ValkeyCluster, running

TIMEOUT_S = 0.1
LIMIT = Limit(name="l", requests=400, window_us=3_600 * US_PER_S, algorithm=Algorithm.FIXED_WINDOW)


@pytest.fixture(scope="module")
def breakable_cluster(tmp_path_factory):
    with running(ValkeyCluster(tmp_path_factory.mktemp("breakable"), node_timeout_ms=500)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def breakable_sentinel(tmp_path_factory):
    with running(SentinelDeployment(tmp_path_factory.mktemp("breakable"), down_after_ms=300)) as deployment:
        yield deployment


class Load:
    """Makes one decision all the time, 10 at once, until stopped; counts what came of it."""

    def __init__(self, store, *charges):
        self._store, self._charges = store, charges
        self._stopping = asyncio.Event()
        self.admitted = self.denied = 0
        self.failures = dict.fromkeys(StoreFailure, 0)

    async def __aenter__(self):
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_exception):
        self._stopping.set()
        await self._task

    async def _run(self):
        while not self._stopping.is_set():
            for answer in await asyncio.gather(*(ask(self._store, *self._charges) for _ in range(10))):
                if isinstance(answer, StoreFailure):
                    self.failures[answer] += 1
                elif answer.allowed:
                    self.admitted += 1
                else:
                    self.denied += 1
            await asyncio.sleep(0.002)

    @property
    def failed(self):
        return sum(self.failures.values())


async def charge_half(store, charge, master):
    """Take half of the limit, and wait until a replica knows."""
    answers = await asyncio.gather(*(ask(store, charge) for _ in range(200)))
    assert all(isinstance(answer, Verdict) and answer.allowed for answer in answers)
    await until(lambda: replicated(master))


def replicated(master):
    """Whether the replica has everything."""
    _, offset, replicas = master.ask("ROLE")
    return bool(replicas) and int(replicas[0][2]) >= offset


def cluster_store(cluster):
    return ClusterStore(cluster.addresses, Login(), timeout_s=TIMEOUT_S)


def sentinel_store(deployment):
    return SentinelStore(deployment.name, deployment.addresses, Login(), Login(), timeout_s=TIMEOUT_S)


async def test_cluster_master_killed(breakable_cluster):
    """Its replica takes over with what was counted; callers fail in between, and are served again."""
    charge = Charge(LIMIT, b"{killed}")
    async with running_store(cluster_store(breakable_cluster)) as store:
        master = breakable_cluster.master_of(slot_of(charge.key))
        await charge_half(store, charge, master)
        master.kill()
        async with Load(store, charge) as load:
            await until(lambda: load.denied > 50)
        assert load.admitted == 200
        assert load.failed > 0
        assert store.counts.topology_changes >= 1
        master.start()  # in this thread, with which it would end
        await asyncio.to_thread(breakable_cluster.repair)
        assert not (await until_answered(store, charge)).allowed


async def test_cluster_master_frozen_and_resumed(breakable_cluster):
    """While it is frozen its replica takes over; when it is back nobody asks it any more."""
    charge = Charge(LIMIT, b"{frozen}")
    async with running_store(cluster_store(breakable_cluster)) as store:
        master = breakable_cluster.master_of(slot_of(charge.key))
        await charge_half(store, charge, master)
        async with Load(store, charge) as load:
            master.freeze()
            try:
                await until(lambda: load.denied > 50)
            finally:
                master.thaw()
            await asyncio.to_thread(breakable_cluster.repair)
        assert 190 <= load.admitted <= 200
        assert load.failures[StoreFailure.TIMEOUT] > 0
        await until(lambda: master.ask("CLIENT", "LIST").count("name=sidecar ") == 0)


async def test_cluster_master_restarted_empty(breakable_cluster):
    """What was counted is gone with the server; nothing else goes wrong, and each life admits the limit at most."""
    charge = Charge(LIMIT, b"{emptied}")
    async with running_store(cluster_store(breakable_cluster)) as store:
        async with Load(store, charge) as load:
            await until(lambda: load.denied > 0)
            master = breakable_cluster.master_of(slot_of(charge.key))
            breakable_cluster.replica_of(master).freeze()
            master.kill()
            master.start()  # in this thread, with which it would end
            await until(lambda: load.admitted > LIMIT.requests)
            denied = load.denied
            await until(lambda: load.denied > denied + 50)
        assert load.admitted <= 2 * LIMIT.requests
        for node in breakable_cluster.nodes:
            node.thaw()
        await asyncio.to_thread(breakable_cluster.repair)


async def test_cluster_connections_cut(breakable_cluster):
    """What was under way fails with an unknown fate and is not repeated: never more than the limit, under any cuts."""
    charge = Charge(LIMIT, b"{cut}")
    async with running_store(cluster_store(breakable_cluster)) as store:
        master = breakable_cluster.master_of(slot_of(charge.key))
        async with Load(store, charge) as load:
            for _ in range(10):
                admitted = load.admitted
                await until(lambda admitted=admitted: load.admitted > admitted or load.denied > 0)
                master.ask("CLIENT", "KILL", "TYPE", "normal")
            await until(lambda: load.denied > 50)
        assert load.admitted <= LIMIT.requests
        assert load.failures[StoreFailure.UNREACHABLE] > 0


async def test_cluster_connections_cut_between_the_parts_of_decisions(breakable_cluster):
    """Parts fail while others have taken: nothing is given back that was not taken, so no counter admits too much."""
    charges = [Charge(LIMIT, b"{part %d}" % n) for n in range(4)]
    async with running_store(cluster_store(breakable_cluster)) as store:
        masters = [breakable_cluster.master_of(slot_of(charge.key)) for charge in charges]
        async with Load(store, *charges) as load:
            for n in range(12):
                admitted = load.admitted
                await until(lambda admitted=admitted: load.admitted > admitted or load.denied > 0)
                masters[n % 4].ask("CLIENT", "KILL", "TYPE", "normal")
            await until(lambda: load.denied > 50)
        looks = [Charge(charge.limit, charge.key, 0) for charge in charges]
        used = [outcome.used for outcome in (await until_answered(store, *looks)).outcomes]
        assert 0 < load.admitted <= min(used)
        assert max(used) == LIMIT.requests
        assert load.failed > 0


async def test_one_master_without_memory(breakable_cluster):
    """OOM fails the decision, counts nothing there, and what was taken elsewhere is given back."""
    full = breakable_cluster.masters[0]
    keys = [b"{%d}" % n for n in range(50)]
    there = next(key for key in keys if breakable_cluster.master_of(slot_of(key)) is full)
    here = next(key for key in keys if breakable_cluster.master_of(slot_of(key)) is not full)
    full.ask("CONFIG", "SET", "maxmemory", "1")
    async with running_store(cluster_store(breakable_cluster)) as store:
        assert await ask(store, Charge(LIMIT, here), Charge(LIMIT, there)) is StoreFailure.ERROR_REPLY
        assert "OOM" in store.counts.last_error_reply
        await until(lambda: store.counts.refunds == 1)
        full.ask("CONFIG", "SET", "maxmemory", "0")
        outcomes = (await verdict(store, Charge(LIMIT, here, 0), Charge(LIMIT, there, 0))).outcomes
        assert [outcome.used for outcome in outcomes] == [0, 0]


async def test_sentinel_master_killed(breakable_sentinel):
    """The replica is promoted with what was counted, and callers are served by it."""
    charge = Charge(LIMIT, b"{killed}")
    async with running_store(sentinel_store(breakable_sentinel)) as store:
        master = breakable_sentinel.master
        await charge_half(store, charge, master)
        master.kill()
        async with Load(store, charge) as load:
            await until(lambda: load.denied > 50)
        assert load.admitted == 200
        assert load.failed > 0
        master.start()  # in this thread, with which it would end
        await asyncio.to_thread(breakable_sentinel.repair)


async def test_sentinel_master_frozen_and_resumed(breakable_sentinel):
    """The old master, back and still sure that it is one, is not asked again."""
    charge = Charge(LIMIT, b"{frozen}")
    async with running_store(sentinel_store(breakable_sentinel)) as store:
        master = breakable_sentinel.master
        await charge_half(store, charge, master)
        async with Load(store, charge) as load:
            master.freeze()
            try:
                await until(lambda: load.denied > 50)
            finally:
                master.thaw()
            denied = load.denied
            await until(lambda: load.denied > denied + 50)
        assert 190 <= load.admitted <= 200
        assert load.failures[StoreFailure.TIMEOUT] > 0
        await until(lambda: master.ask("CLIENT", "LIST").count("name=sidecar ") == 0)
