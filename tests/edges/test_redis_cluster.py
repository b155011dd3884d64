"""The store on a Cluster: where counters lie, redirections, slots that move, and what is left behind."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from sidecar.core.limits import US_PER_S, Algorithm, Charge, Limit, StoreFailure, Verdict, counter_key
from sidecar.edges import redis_cluster
from sidecar.edges.redis_cluster import WAITING_MAX, ClusterStore
from sidecar.edges.redis_endpoint import Login
from sidecar.edges.redis_slots import NODES_MAX, TopologyError, read_slots, slot_of
from tests.support.asking import PATIENCE_S, ask, running_store, until, until_answered, verdict

HOUR_US = 3_600 * US_PER_S


def limit_of(requests, **settings):
    return Limit(name="l", requests=requests, window_us=HOUR_US, algorithm=Algorithm.FIXED_WINDOW, **settings)


def cluster_store(cluster, **settings):
    return ClusterStore(cluster.addresses[:1], Login(), **{"timeout_s": PATIENCE_S, **settings})


@pytest.fixture
async def store(cluster):
    async with running_store(cluster_store(cluster)) as started:
        yield started


def test_slots_are_those_of_the_server(cluster):
    """Every key is looked for where the server keeps it, whatever its hash tag looks like."""
    keys = ["k", "{a}b", "x{a}b{c}", "{}a", "{a", "a}{b}", "{{a}}", "", "a{b}{c}", counter_key(b"p:", ["x"]).decode()]
    assert [slot_of(key.encode()) for key in keys] == [cluster.nodes[0].ask("CLUSTER", "KEYSLOT", k) for k in keys]


def test_counters_of_the_same_parts_share_a_slot():
    """So that several limits of one caller are one call; those of different callers are spread over all slots."""
    slots = {slot_of(counter_key(b"sidecar:one:", [f"user-{n}"])) for n in range(2_000)}
    assert slot_of(counter_key(b"sidecar:one:", ["a"])) == slot_of(counter_key(b"sidecar:other:", ["a"]))
    assert len(slots) > 1_800


async def test_counters_are_spread_over_the_masters(store, cluster):
    """Every master has a share of them, and no replica is asked."""
    charges = [Charge(limit_of(5), counter_key(b"s:l:", [str(n)])) for n in range(300)]
    for charge in charges:
        assert (await verdict(store, charge)).allowed
    sizes = [master.ask("DBSIZE") for master in cluster.masters]
    assert sum(sizes) == 300
    assert min(sizes) > 50
    assert {node.connection.endpoint.port for node in store.nodes} == {master.port for master in cluster.masters}


async def test_one_seed_that_answers_is_enough(cluster):
    """Seeds that nobody answers at, and a replica as the only one that does, lead to all masters."""
    replica = next(node for node in cluster.nodes if node.role() == "slave")
    store = ClusterStore([("127.0.0.1", 1), replica.address], Login(), timeout_s=PATIENCE_S)
    async with running_store(store):
        assert store.connected
        assert (await verdict(store, Charge(limit_of(1), b"k"))).allowed


async def test_without_a_seed_it_is_unreachable_and_says_why():
    """Until the topology is known every charge fails at once."""
    store = ClusterStore([("127.0.0.1", 1)], Login())
    assert await ask(store, Charge(limit_of(1), b"k")) is StoreFailure.UNREACHABLE
    store.start()
    await until(lambda: "127.0.0.1:1" in store.last_error)
    assert await ask(store, Charge(limit_of(1), b"k")) is StoreFailure.UNREACHABLE
    assert store.counts.failures[StoreFailure.UNREACHABLE] == 2
    assert store.detail()["connected"] is False
    await store.close()


async def test_scripts_flushed_on_one_master(store, cluster):
    """Only its charges bring the source along again, once; all are counted once."""
    charges = [Charge(limit_of(100), b"{%d}" % n) for n in range(60)]
    flushed = cluster.masters[0]
    flushed.ask("SCRIPT", "FLUSH")
    answers = await asyncio.gather(*(ask(store, charge) for charge in charges))
    assert [answer.outcomes[0].used for answer in answers] == [1] * 60
    assert store.counts.script_reloads == 1


@contextlib.asynccontextmanager
async def moving_slot(cluster, key):
    """A slot between its owner and another master; it is brought back afterwards."""
    slot = slot_of(key)
    source = cluster.master_of(slot)
    target = next(master for master in cluster.masters if master is not source)
    yield slot, source, target
    await asyncio.to_thread(cluster.begin_move, slot, target, source)
    await asyncio.to_thread(cluster.move_keys, slot, target, source)
    await asyncio.to_thread(cluster.end_move, slot, source)


async def test_a_slot_that_moves_under_load_admits_exactly_the_limit(store, cluster):
    """ASK while it moves, MOVED afterwards: no charge is lost, made twice or refused for another reason."""
    charge = Charge(limit_of(1_000), b"{moves}")
    answers = []

    async def load():
        while len(answers) < 3_000:
            answers.extend(await asyncio.gather(*(ask(store, charge) for _ in range(20))))
            await asyncio.sleep(0.001)

    async with moving_slot(cluster, charge.key) as (slot, source, target):
        loading = asyncio.create_task(load())
        await until(lambda: len(answers) > 200)
        await asyncio.to_thread(cluster.begin_move, slot, source, target)
        assert await asyncio.to_thread(cluster.move_keys, slot, source, target) == 1
        await until(lambda: store.counts.redirections["ASK"] > 20)
        await asyncio.to_thread(cluster.end_move, slot, target)
        await until(lambda: store.counts.redirections["MOVED"] > 0)
        await loading
    assert all(isinstance(answer, Verdict) for answer in answers)
    assert sum(answer.allowed for answer in answers) == 1_000
    assert not any(store.counts.failures.values())


async def test_a_new_counter_in_a_moving_slot_is_made_at_its_new_place(store, cluster):
    """ASK is followed with ASKING, also where the new place has forgotten the script."""
    charge = Charge(limit_of(2), b"{asked}")
    async with moving_slot(cluster, charge.key) as (slot, source, target):
        await asyncio.to_thread(cluster.begin_move, slot, source, target)
        target.ask("SCRIPT", "FLUSH")
        assert [(await verdict(store, charge)).allowed for _ in range(3)] == [True, True, False]
        assert source.ask("CLUSTER", "COUNTKEYSINSLOT", slot) == 0
        assert target.ask("CLUSTER", "COUNTKEYSINSLOT", slot) == 1
        await asyncio.to_thread(cluster.end_move, slot, target)
        assert not (await verdict(store, charge)).allowed


async def test_counters_on_both_sides_of_a_move_are_charged_one_by_one(store, cluster):
    """TRYAGAIN: some counters of a decision have left. It is decided nonetheless, and all or nothing."""
    old, new = Charge(limit_of(3), b"{both}old"), Charge(limit_of(5), b"{both}new")
    assert (await verdict(store, old)).allowed
    async with moving_slot(cluster, old.key) as (slot, source, target):
        await asyncio.to_thread(cluster.begin_move, slot, source, target)
        answers = [await verdict(store, old, new) for _ in range(3)]
        assert [answer.allowed for answer in answers] == [True, True, False]
        assert [[o.used for o in answer.outcomes] for answer in answers] == [[2, 1], [3, 2], [3, 2]]
        assert store.counts.redirections["TRYAGAIN"] == 3
        await asyncio.to_thread(cluster.move_keys, slot, source, target)
        await asyncio.to_thread(cluster.end_move, slot, target)
        await until(lambda: store.counts.refunds == 1)
        assert [o.used for o in (await verdict(store, Charge(new.limit, new.key, 0))).outcomes] == [2]


async def test_any_command_is_redirected_as_well(store, cluster):
    """What is not a charge finds its key, too, wherever the slot is now."""
    async with moving_slot(cluster, b"{any}") as (slot, source, target):
        await asyncio.to_thread(cluster.begin_move, slot, source, target)
        replies = []
        store.command(b"{any}", (b"SET", b"{any}", b"1"), PATIENCE_S, replies.append)
        await until(lambda: replies == [b"OK"])
        await asyncio.to_thread(cluster.end_move, slot, target)
        store.command(b"{any}", (b"GET", b"{any}"), PATIENCE_S, replies.append)
        await until(lambda: replies == [b"OK", b"1"])
    assert (store.counts.redirections["ASK"], store.counts.redirections["MOVED"]) == (1, 1)


def our_connections(node):
    return node.ask("CLIENT", "LIST").count("name=sidecar ")


async def test_a_promoted_replica_is_followed_and_the_old_master_is_left(store, cluster):
    """After an orderly failover nothing is lost, and no connection stays behind."""
    charge = Charge(limit_of(10), b"{promoted}")
    assert (await verdict(store, charge)).allowed
    old = cluster.master_of(slot_of(charge.key))
    new = await asyncio.to_thread(cluster.fail_over, old)
    assert (await until_answered(store, charge)).outcomes[0].used == 2
    await until(lambda: new.port in {node.connection.endpoint.port for node in store.nodes if node.connection.endpoint})
    await until(lambda: our_connections(old) == 0 and our_connections(new) == 1)
    assert len(store.nodes) == 3
    assert store.counts.topology_changes >= 1


async def test_closing_leaves_nothing(cluster):
    """No task and no connection outlives the store."""
    before = asyncio.all_tasks()
    async with running_store(cluster_store(cluster)):
        assert sum(our_connections(node) for node in cluster.nodes) == 3
    assert asyncio.all_tasks() == before
    await until(lambda: sum(our_connections(node) for node in cluster.nodes) == 0)


async def test_closing_leaves_no_master_that_is_just_being_left(cluster):
    """One that still owes replies is not waited for."""
    before = asyncio.all_tasks()
    charge = Charge(limit_of(1), b"{left}")
    master = cluster.master_of(slot_of(charge.key))
    async with running_store(cluster_store(cluster)) as store:
        master.freeze()
        asked = ask(store, charge)
        store._leave(master.address)
        assert not asked.done()
    master.thaw()
    assert await asked is StoreFailure.UNREACHABLE
    assert asyncio.all_tasks() == before
    await until(lambda: our_connections(master) == 0)


async def test_users_passwords_and_their_rights(cluster):
    """An ACL user with the rights that docs/limits.md lists can charge, on every master."""
    rule = ["SETUSER", "limiter", "on", ">right", "resetkeys", "~sidecar:*", "-@all"]
    rights = ["+evalsha", "+eval", "+get", "+set", "+time", "+cluster|slots", "+asking"]
    for node in cluster.nodes:
        node.ask("ACL", *rule, *rights)
    store = ClusterStore(cluster.addresses[:1], Login(username="limiter", password="right"), timeout_s=PATIENCE_S)
    async with running_store(store):
        charges = [Charge(limit_of(5), counter_key(b"sidecar:l:", [str(n)])) for n in range(20)]
        assert (await verdict(store, *charges)).allowed
        assert await ask(store, Charge(limit_of(5), b"other:l")) is StoreFailure.ERROR_REPLY
        assert "NOPERM" in store.counts.last_error_reply
    for node in cluster.nodes:
        node.ask("ACL", "DELUSER", "limiter")


def node_at(host, port=7_000):
    return [host, port, b"id", []]


@pytest.mark.parametrize("host", [b"", None, b"?"])
def test_a_server_that_does_not_know_its_address_is_where_it_was_asked(host):
    """CLUSTER SLOTS may leave the host out."""
    topology = read_slots([[0, 16_383, node_at(host), node_at(b"10.0.0.2", 7_001)]], ("10.0.0.9", 6_379))
    assert topology.ranges == ((0, 16_383, ("10.0.0.9", 7_000)),)
    assert topology.replicas == (("10.0.0.2", 7_001),)


@pytest.mark.parametrize(
    "reply",
    [None, 7, [], [[0]], [[0, 16_384, node_at(b"a")]], [[5, 4, node_at(b"a")]], [[b"x", 1, node_at(b"a")]], [7]],
)
def test_nonsense_about_slots_is_refused(reply):
    """What is known stays in force instead."""
    with pytest.raises(TopologyError):
        read_slots(reply, ("127.0.0.1", 1))


def test_the_masters_of_a_cluster_are_bounded():
    """As many as stated are followed, and not one more."""
    entries = [[n, n, node_at(b"10.0.0.1", n + 1)] for n in range(NODES_MAX + 1)]
    assert len(read_slots(entries[:-1], ("a", 1)).masters) == NODES_MAX
    with pytest.raises(TopologyError):
        read_slots(entries, ("a", 1))


@contextlib.asynccontextmanager
async def contradicting():
    """A server that owns all slots, and redirects every charge: to where nobody listens, or to itself."""
    asked = []
    state = {"there": ""}

    async def serve(reader, writer):
        while line := await reader.readline():
            parts = [line]
            for _ in range(int(line[1:])):
                size = int((await reader.readline())[1:])
                parts.append((await reader.readexactly(size + 2))[:-2])
            if parts[1] == b"CLUSTER":
                writer.write(b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$0\r\n\r\n:%d\r\n" % port)
            elif parts[1] == b"EVALSHA":
                asked.append(parts)
                writer.write(b"-MOVED 1 %b\r\n" % state["there"].encode())
            else:
                writer.write(b"+OK\r\n")

    writers = []

    async def accept(reader, writer):
        writers.append(writer)
        with contextlib.suppress(ConnectionError):
            await serve(reader, writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield port, asked, state
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


async def test_redirections_in_a_circle_end():
    """A charge is sent elsewhere so often as stated, and then fails with the last error."""
    async with contradicting() as (port, asked, state):
        state["there"] = f"127.0.0.1:{port}"
        async with running_store(ClusterStore([("127.0.0.1", port)], Login(), timeout_s=PATIENCE_S)) as store:
            assert await ask(store, Charge(limit_of(1), b"k")) is StoreFailure.ERROR_REPLY
            assert len(asked) == redis_cluster.HOPS_MAX + 1
            assert store.counts.last_error_reply.startswith("MOVED")


@pytest.mark.parametrize("there", ["", "nowhere", "host:0", "host:65536", "host:x"])
async def test_redirections_to_nowhere_fail(there):
    """What cannot be read is not followed."""
    async with contradicting() as (port, _, state):
        state["there"] = there
        async with running_store(ClusterStore([("127.0.0.1", port)], Login(), timeout_s=PATIENCE_S)) as store:
            assert await ask(store, Charge(limit_of(1), b"k")) is StoreFailure.ERROR_REPLY


async def test_calls_that_wait_for_a_connection_are_bounded_and_keep_their_deadline():
    """Redirected to a server that cannot be reached, as many wait as stated, until their deadline."""
    async with contradicting() as (port, _, state):
        state["there"] = "127.0.0.1:1"
        async with running_store(ClusterStore([("127.0.0.1", port)], Login(), timeout_s=PATIENCE_S)) as store:
            asked = [ask(store, Charge(limit_of(1), b"k"), timeout_s=0.5) for _ in range(WAITING_MAX + 1)]
            answers = await asyncio.gather(*asked)
            assert answers.count(StoreFailure.TIMEOUT) == WAITING_MAX
            assert answers.count(StoreFailure.OVERLOADED) == 1


async def test_a_call_that_waits_for_a_connection_fails_at_its_own_deadline():
    """Also behind one that waits there longer, such as a command that is not hot."""
    async with contradicting() as (port, _, state):
        state["there"] = "127.0.0.1:1"
        async with running_store(ClusterStore([("127.0.0.1", port)], Login(), timeout_s=PATIENCE_S)) as store:
            patient = ask(store, Charge(limit_of(1), b"k"), timeout_s=PATIENCE_S)
            await until(lambda: store.counts.redirections["MOVED"] == 1)
            assert await ask(store, Charge(limit_of(1), b"k"), timeout_s=0.2) is StoreFailure.TIMEOUT
            assert not patient.done()
        assert await patient is StoreFailure.UNREACHABLE
