"""The store in Redis when Redis, or the way to it, fails: what callers are told, what is bounded, how it recovers."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
import redis

from sidecar.core.breaker import Breaker, BreakerState
from sidecar.core.limits import US_PER_S, Algorithm, Charge, Limit, StoreFailure, Verdict
from sidecar.edges.redis_endpoint import RedisEndpoint, TlsFiles, tls_context
from sidecar.edges.redis_store import CHARGES_MAX, NEWS_AFTER_S, RedisStore
from tests.support.asking import PATIENCE_S, ask, redis_store, until, until_answered, verdict
from tests.support.certificates import make_certificates
from tests.support.fault_proxy import FaultProxy

HOUR_US = 3_600 * US_PER_S
PLENTY = Charge(Limit(name="l", requests=1_000_000, window_us=HOUR_US), b"plenty")
SHORT_S = 0.1


def patient_breaker():
    """One that never opens, where a test looks at something else."""
    return Breaker(failures_max=1_000_000)


@pytest.fixture
def endpoint(valkey):
    return RedisEndpoint(path=valkey.socket_path)


@pytest.fixture
def own_endpoint(own_valkey):
    return RedisEndpoint(path=own_valkey.socket_path)


@pytest.fixture
async def proxy(valkey):
    async with FaultProxy(valkey.socket_path) as started:
        yield started


def through(proxy):
    return RedisEndpoint(host="127.0.0.1", port=proxy.port)


async def test_not_started_is_unreachable(endpoint):
    """A store that nobody started says so, and a closed one as well."""
    store = RedisStore(endpoint)
    assert await ask(store, PLENTY) is StoreFailure.UNREACHABLE
    store.start()
    await until(lambda: store.connection.connected)
    await store.close()
    assert await ask(store, PLENTY) is StoreFailure.UNREACHABLE


async def test_all_commands_of_a_turn_leave_together(proxy):
    """Two thousand charges in one turn of the loop are answered over one connection, in order."""
    async with redis_store(through(proxy)) as store:
        charges = [Charge(Limit(name="l", requests=5_000, window_us=HOUR_US), b"k", n) for n in (0, 1) * 1_000]
        answers = await asyncio.gather(*(ask(store, charge) for charge in charges))
        assert [answer.outcomes[0].used for answer in answers] == [(n + 1) // 2 for n in range(2_000)]
        assert proxy.accepted == 1


async def test_charges_of_a_decision_are_bounded(endpoint):
    """A decision may have as many charges as stated, and not one more."""
    async with redis_store(endpoint) as store:
        assert (await verdict(store, *[PLENTY] * CHARGES_MAX)).allowed
        assert await ask(store, *[PLENTY] * (CHARGES_MAX + 1)) is StoreFailure.OVERLOADED


async def test_commands_in_flight_are_bounded(endpoint):
    """As many charges as stated may be under way, and not one more."""
    async with redis_store(endpoint, in_flight_max=10) as store:
        answers = await asyncio.gather(*(ask(store, PLENTY) for _ in range(11)))
        assert [isinstance(answer, Verdict) for answer in answers] == [True] * 10 + [False]
        assert answers[10] is StoreFailure.OVERLOADED
        assert store.counts.failures[StoreFailure.OVERLOADED] == 1


async def test_latency_is_observed(endpoint):
    """Each answered decision is reported to the metrics once, in seconds."""
    seen = []
    async with redis_store(endpoint, observe_latency=seen.append) as store:
        await verdict(store, PLENTY)
    assert len(seen) == 1
    assert 0 < seen[0] < PATIENCE_S


async def test_a_flushed_script_is_sent_again(endpoint, valkey_admin):
    """After SCRIPT FLUSH every charge is still answered, counted once, and the source is sent once."""
    async with redis_store(endpoint) as store:
        await verdict(store, PLENTY)
        valkey_admin.script_flush()
        answers = await asyncio.gather(*(ask(store, PLENTY) for _ in range(500)))
        assert sorted(answer.outcomes[0].used for answer in answers) == list(range(2, 502))
        assert store.counts.script_reloads == 1


async def test_error_replies_are_failures(endpoint, valkey_admin):
    """An error of Redis fails the decision, is kept for the operator, and does not open the breaker."""
    valkey_admin.rpush(PLENTY.storage_key, b"x")
    async with redis_store(endpoint, breaker=Breaker(failures_max=1)) as store:
        assert await ask(store, PLENTY) is StoreFailure.ERROR_REPLY
        assert "WRONGTYPE" in store.counts.last_error_reply
        assert store.breaker.state is BreakerState.CLOSED


async def test_a_server_that_became_a_replica_is_left(own_valkey, own_endpoint):
    """READONLY means that another server is the primary now: the name is looked up again with a new connection."""
    async with redis_store(own_endpoint) as store:
        with redis.Redis(unix_socket_path=own_valkey.socket_path) as admin:
            await verdict(store, PLENTY)
            admin.replicaof("127.0.0.1", "1")
            assert await ask(store, PLENTY) is StoreFailure.ERROR_REPLY
            await until(lambda: store.counts.connects == 2)
            admin.replicaof("NO", "ONE")
        await until_answered(store, PLENTY)


async def test_a_deadline_that_has_passed_takes_nothing(endpoint, valkey_admin):
    """Nobody waits for it: it is not even sent."""
    async with redis_store(endpoint) as store:
        assert await ask(store, PLENTY, timeout_s=0) is StoreFailure.TIMEOUT
        assert await ask(store, PLENTY, timeout_s=-1) is StoreFailure.TIMEOUT
    assert valkey_admin.dbsize() == 0


async def test_a_users_password_and_database(endpoint, valkey, valkey_admin):
    """An ACL user with the rights that docs/limits.md lists can charge, in its own database."""
    valkey_admin.execute_command(
        "ACL", "SETUSER", "limiter", "on", ">right", "resetkeys", "~sidecar:*", "-@all",
        "+evalsha", "+eval", "+script|load", "+client|setname", "+select", "+get", "+set", "+time",
    )  # fmt: skip
    settings = {"path": valkey.socket_path, "database": 3, "username": "limiter"}
    charge = Charge(PLENTY.limit, b"sidecar:k")
    async with redis_store(RedisEndpoint(password="right", **settings)) as store:
        assert (await verdict(store, charge)).allowed
        assert await ask(store, Charge(PLENTY.limit, b"other:k")) is StoreFailure.ERROR_REPLY
    with redis.Redis(unix_socket_path=valkey.socket_path, db=3) as client:
        assert client.keys() == [charge.storage_key]
    store = RedisStore(RedisEndpoint(password="a secret", **settings))
    store.start()
    await until(lambda: "WRONGPASS" in store.connection.last_error)
    await store.close()
    assert "a secret" not in store.connection.last_error + repr(RedisEndpoint(password="a secret"))


async def test_a_user_without_script_load_still_charges(valkey, valkey_admin):
    """Loading ahead is a courtesy: a user that may only EVAL and EVALSHA charges as well."""
    valkey_admin.script_flush()
    valkey_admin.execute_command(
        "ACL", "SETUSER", "plain", "on", ">right", "~*", "-@all", "+evalsha", "+eval", "+get", "+set", "+time",
    )  # fmt: skip
    endpoint = RedisEndpoint(path=valkey.socket_path, username="plain", password="right")
    async with redis_store(endpoint) as store:
        assert (await verdict(store, PLENTY)).allowed


async def test_tls_verifies_the_server(valkey, tmp_path):
    """Over TLS charges pass; a server whose authority or name is another one is refused, unless names are moot."""
    certificates = make_certificates(tmp_path)
    async with FaultProxy(valkey.socket_path, certificates.server_context(mutual=False)) as proxy:
        there = {"host": "127.0.0.1", "port": proxy.port}
        trusted = tls_context(certificates.ca)
        for name in ("", "redis.example"):
            async with redis_store(RedisEndpoint(tls=trusted, server_name=name, **there)) as store:
                assert (await verdict(store, PLENTY)).allowed
        nameless = TlsFiles(ca=certificates.ca, verify_name=False).context()
        async with redis_store(RedisEndpoint(tls=nameless, server_name="other.example", **there)) as store:
            assert (await verdict(store, PLENTY)).allowed
        stranger = TlsFiles(verify_name=False).context()
        for tls, name in ((tls_context(), ""), (trusted, "other.example"), (stranger, "")):
            store = RedisStore(RedisEndpoint(tls=tls, server_name=name, **there))
            store.start()
            await until(lambda store=store: "CERTIFICATE_VERIFY_FAILED" in store.connection.last_error)
            assert not store.connection.connected
            await store.close()


async def test_mutual_tls_shows_our_certificate(valkey, tmp_path):
    """A server that asks for a certificate gets ours, and refuses us without one."""
    certificates = make_certificates(tmp_path)
    async with FaultProxy(valkey.socket_path, certificates.server_context(mutual=True)) as proxy:
        there = {"host": "127.0.0.1", "port": proxy.port}
        ours = tls_context(certificates.ca, certificates.client, certificates.client_key)
        async with redis_store(RedisEndpoint(tls=ours, **there)) as store:
            assert (await verdict(store, PLENTY)).allowed
        store = RedisStore(RedisEndpoint(tls=tls_context(certificates.ca), **there))
        store.start()
        await until(lambda: store.connection.last_error != "not connected yet")
        assert await ask(store, PLENTY) is StoreFailure.UNREACHABLE
        await store.close()


@pytest.mark.parametrize("which", ["ca", "certificate", "key"])
def test_bad_tls_files_are_named(tmp_path, which):
    """A TLS file that is not what it should be is named before anything is connected."""
    certificates = make_certificates(tmp_path)
    files = {"ca": certificates.ca, "certificate": certificates.client, "key": certificates.client_key}
    files[which] = tmp_path / f"absent-{which}.pem"
    with pytest.raises(ValueError, match=f"absent-{which}"):
        tls_context(**files)


async def test_a_slow_server_times_out_and_late_replies_are_discarded(proxy):
    """Each charge is told in time; its late reply is not taken for another one's."""
    async with redis_store(through(proxy), timeout_s=SHORT_S, breaker=patient_breaker()) as store:
        proxy.frozen = True
        answers = await asyncio.gather(*(ask(store, PLENTY) for _ in range(20)))
        assert answers == [StoreFailure.TIMEOUT] * 20
        assert store.counts.failures[StoreFailure.TIMEOUT] == 20
        assert store.connection.in_flight == 20
        proxy.frozen = False
        await until(lambda: store.connection.in_flight == 0)
        assert (await verdict(store, PLENTY)).outcomes[0].used == 21
        assert store.counts.connects == 1


async def test_the_callers_deadline_counts(proxy):
    """A deadline before the store's own timeout is kept."""
    async with redis_store(through(proxy), breaker=patient_breaker()) as store:
        proxy.frozen = True
        late = ask(store, PLENTY)
        assert await ask(store, PLENTY, timeout_s=SHORT_S) is StoreFailure.TIMEOUT
        assert not late.done()
        proxy.frozen = False
        assert isinstance(await late, Verdict)


async def test_a_silent_server_is_given_up(proxy):
    """A half-open connection does not keep state for ever: it is dropped, and a new one is made."""
    async with redis_store(through(proxy), timeout_s=SHORT_S, stall_s=0.3, breaker=patient_breaker()) as store:
        proxy.mute = True
        assert await ask(store, PLENTY) is StoreFailure.TIMEOUT
        await until(lambda: not store.connection.connected)
        assert store.connection.in_flight == 0
        proxy.mute = False
        await until_answered(store, PLENTY)
        assert store.counts.connects == 2


async def test_connects_and_losses_are_told_once(proxy):
    """The operator learns of each change, and why, but not of every attempt in between."""
    told = []
    async with redis_store(through(proxy), on_connection=told.append) as store:
        proxy.refusing = True
        proxy.cut()
        await until(lambda: proxy.accepted >= 4)
        proxy.refusing = False
        await until(lambda: store.connection.connected)
    assert (told[0], told[-1]) == ("", "")
    assert "the connection was lost" in told[1]
    assert all("127.0.0.1" in reason for reason in told[1:-1])
    assert len(told) <= 5


async def test_a_reply_cut_in_the_middle_fails_what_was_under_way(proxy):
    """The fate of what was under way is unknown: every such charge fails once, and none is sent again."""
    async with redis_store(through(proxy), breaker=patient_breaker()) as store:
        proxy.cut_after_bytes = 25
        answers = await asyncio.gather(*(ask(store, PLENTY) for _ in range(50)))
        failed = [answer for answer in answers if not isinstance(answer, Verdict)]
        assert failed
        assert set(failed) == {StoreFailure.UNREACHABLE}
        proxy.cut_after_bytes = None
        assert (await until_answered(store, PLENTY)).outcomes[0].used == 51


async def test_garbage_drops_the_connection(valkey):
    """A peer that does not speak RESP, or answers what nobody asked, is not believed."""
    said = []

    async def nonsense(_reader, writer):
        said.append(writer)
        writer.write((b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+OK\r\n+OK\r\n+OK\r\n+OK\r\n")[len(said) % 2])
        await writer.drain()

    server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    store = RedisStore(RedisEndpoint(host="127.0.0.1", port=server.sockets[0].getsockname()[1]))
    store.start()
    await until(lambda: len(said) >= 4)
    await store.close()
    server.close()
    for writer in said:
        writer.transport.abort()


async def test_the_breaker_spares_the_wait(proxy):
    """After a few timeouts callers are told at once; when Redis is back, so are they, without a restart."""
    async with redis_store(through(proxy), timeout_s=SHORT_S, breaker=Breaker(failures_max=3)) as store:
        proxy.frozen = True
        for _ in range(3):
            assert await ask(store, PLENTY) is StoreFailure.TIMEOUT
        assert store.breaker.state is BreakerState.OPEN
        assert await ask(store, PLENTY) is StoreFailure.CIRCUIT_OPEN
        proxy.frozen = False
        await until_answered(store, PLENTY)
        assert store.breaker.untroubled


async def under_load(store, stop):
    """Charge all the time until told to stop; how often each kind of answer came."""
    kinds = dict.fromkeys([Verdict, *StoreFailure], 0)
    while not stop.is_set():
        for answer in await asyncio.gather(*(ask(store, PLENTY) for _ in range(20))):
            kinds[Verdict if isinstance(answer, Verdict) else answer] += 1
        await asyncio.sleep(0.002)
    return kinds


async def test_frozen_under_load_and_thawed(own_valkey, own_endpoint):
    """A stopped server makes callers fail, in bounded state; continued, it serves them again."""
    async with redis_store(own_endpoint, timeout_s=SHORT_S, stall_s=0.4) as store:
        stop = asyncio.Event()
        load = asyncio.create_task(under_load(store, stop))
        await until(lambda: own_valkey.alive and store.connection.in_flight > 0)
        os.kill(own_valkey.pid, signal.SIGSTOP)
        try:
            await until(lambda: not store.connection.connected)
            assert store.connection.in_flight == 0
        finally:
            os.kill(own_valkey.pid, signal.SIGCONT)
        await until_answered(store, PLENTY)
        stop.set()
        kinds = await load
        assert kinds[StoreFailure.TIMEOUT] > 0
        assert kinds[StoreFailure.CIRCUIT_OPEN] > 0


async def test_killed_under_load_and_started_again_empty(own_valkey):
    """A killed server fails callers at once; an empty one in its place serves them, script and all."""
    async with FaultProxy(own_valkey.socket_path) as proxy, redis_store(through(proxy), timeout_s=1.0) as store:
        stop = asyncio.Event()
        load = asyncio.create_task(under_load(store, stop))
        await until(lambda: store.connection.in_flight > 0)
        own_valkey.kill()
        await until(lambda: not own_valkey.alive and not store.connection.connected)
        assert isinstance(await ask(store, PLENTY), StoreFailure)
        own_valkey.stop()
        own_valkey.start()
        proxy.upstream_path = own_valkey.socket_path
        answer = await until_answered(store, PLENTY)
        stop.set()
        kinds = await load
        assert answer.outcomes[0].used < 1_000_000
        assert kinds[StoreFailure.UNREACHABLE] > 0
        assert kinds[Verdict] > 0


async def test_never_more_than_the_limit_while_failing(proxy):
    """However the connection breaks, no more charges pass than the limit: none is taken back or sent twice."""
    charge = Charge(Limit(name="l", requests=300, window_us=HOUR_US, algorithm=Algorithm.FIXED_WINDOW), b"k")
    async with redis_store(through(proxy), timeout_s=SHORT_S, breaker=patient_breaker()) as store:
        allowed = 0
        for round_number in range(12):
            asked = [ask(store, charge) for _ in range(50)]
            if round_number % 4 == 1:
                await asyncio.sleep(0)
                proxy.cut()
            answers = await asyncio.gather(*asked)
            allowed += sum(isinstance(answer, Verdict) and answer.allowed for answer in answers)
            await until(lambda: store.connection.connected)
        assert 0 < allowed <= 300
        assert not (await verdict(store, charge)).allowed


async def test_impatient_callers_do_not_open_the_breaker(proxy):
    """Who leaves Redis no time learns nothing of it; the others are served on."""
    async with redis_store(through(proxy), breaker=Breaker(failures_max=1)) as store:
        await verdict(store, PLENTY)
        proxy.frozen = True
        for _ in range(3):
            assert await ask(store, PLENTY, timeout_s=NEWS_AFTER_S / 4) is StoreFailure.TIMEOUT
        proxy.frozen = False
        assert store.breaker.state is BreakerState.CLOSED
        await verdict(store, PLENTY)
