"""API keys looked up for requests, followed as they change, and their uses written down, on a real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import redis

from sidecar.core.api_key_cache import KnownKeys
from sidecar.core.api_key_records import HeldKey
from sidecar.core.api_keys import NO_RECORD, Keyring, NeedApiKey
from sidecar.core.limits import StoreFailure
from sidecar.edges import api_key_engine
from sidecar.edges.api_key_engine import ApiKeyEngine
from sidecar.edges.api_key_store import KeyStoreError, RedisKeyStore, news_key
from sidecar.edges.redis_cluster import ClusterStore
from sidecar.edges.redis_endpoint import Login, RedisEndpoint
from tests.support.api_keys import id_of, keyring, new_key, record_of
from tests.support.asking import redis_store, running_store, until

if TYPE_CHECKING:
    from sidecar.edges.embedded_valkey import EmbeddedValkey
    from sidecar.edges.redis_store import RedisStore
    from tests.support.valkey import ValkeyCluster

DAY_US = 86_400_000_000


class Held:
    """Commands that are answered when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[bytes, ...], Any]] = []

    def command(self, key: bytes, parts: tuple[bytes, ...], timeout_s: float, done: Any) -> None:
        del key, timeout_s
        self.asked.append((parts, done))


def far() -> float:
    return asyncio.get_running_loop().time() + 60


def ring() -> Keyring:
    return keyring(KnownKeys(100, DAY_US, DAY_US))


@asynccontextmanager
async def engine(store: RedisStore, served: Keyring, **settings: Any) -> AsyncIterator[ApiKeyEngine]:
    made = ApiKeyEngine(store, "sidecar", [served], **{"timeout_s": 10.0, **settings})
    made.start()
    try:
        yield made
    finally:
        await made.close()


async def look_up(made: ApiKeyEngine, served: Keyring, key: str) -> Any:
    found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    made.ensure(NeedApiKey(served, id_of(key)), far(), found.set_result)
    return await found


@pytest.fixture
async def store(valkey: EmbeddedValkey) -> AsyncIterator[RedisStore]:
    async with redis_store(RedisEndpoint(path=valkey.socket_path)) as made:
        yield made


async def test_a_key_is_found_unknown_or_unreadable(store: RedisStore, valkey_admin: redis.Redis) -> None:
    """And remembered as such; what cannot be read is nobody's key and nobody's fault but ours."""
    served, keys = ring(), RedisKeyStore(store, "sidecar", "partners")
    known, broken, swapped = new_key(), new_key(), new_key()
    await keys.create([record_of(known)])
    valkey_admin.hset(keys.records_key(id_of(broken)).decode(), id_of(broken), b"{}")
    valkey_admin.hset(keys.records_key(id_of(swapped)).decode(), id_of(swapped), msgspec.json.encode(record_of(known)))
    async with engine(store, served) as made:
        found = await look_up(made, served, known)
        assert isinstance(found, HeldKey)
        assert found.record == record_of(known)
        assert served.known.get(id_of(known)) is not None
        assert await look_up(made, served, new_key()) is NO_RECORD
        assert await look_up(made, served, broken) is None
        assert await look_up(made, served, swapped) is None
        counts = made.counts["partners"]
        assert (counts.found, counts.unknown, counts.failed) == (1, 1, 2)


async def test_many_requests_ask_once() -> None:
    """For the same key; all have the answer."""
    commands, served, key = Held(), ring(), new_key()
    made = ApiKeyEngine(commands, "sidecar", [served])
    found: list[Any] = []
    for _ in range(50):
        made.ensure(NeedApiKey(served, id_of(key)), far(), found.append)
    assert len(commands.asked) == 1
    assert made.waiting == 50
    commands.asked[0][1](msgspec.json.encode(record_of(key)))
    assert len(found) == 50
    assert len({id(each) for each in found}) == 1
    assert made.waiting == 0


async def test_look_ups_and_those_who_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit the next is answered at once, with nothing; and counted."""
    monkeypatch.setattr(api_key_engine, "LOOK_UPS_MAX", 2)
    monkeypatch.setattr(api_key_engine, "WAITING_MAX", 4)
    commands, served = Held(), ring()
    made = ApiKeyEngine(commands, "sidecar", [served])
    first, second = new_key(), new_key()
    found: list[Any] = []
    for key in (first, second, new_key(), first, first, first):
        made.ensure(NeedApiKey(served, id_of(key)), far(), found.append)
    assert found == [None, None]
    assert len(commands.asked) == 2
    assert made.counts["partners"].shed == 2
    for _, done in commands.asked:
        done(None)
    assert found == [None, None, *[NO_RECORD] * 4]
    made.ensure(NeedApiKey(served, id_of(new_key())), far(), found.append)
    assert len(commands.asked) == 3


async def test_a_request_waits_no_longer_than_its_deadline() -> None:
    """The look-up goes on for the others; its answer is not given twice."""
    commands, served, key = Held(), ring(), new_key()
    made = ApiKeyEngine(commands, "sidecar", [served], timeout_s=60.0)
    hurried: list[Any] = []
    patient: list[Any] = []
    now = asyncio.get_running_loop().time()
    made.ensure(NeedApiKey(served, id_of(key)), now - 1, hurried.append)
    assert hurried == [None]
    made.ensure(NeedApiKey(served, id_of(key)), now + 0.01, hurried.append)
    made.ensure(NeedApiKey(served, id_of(key)), now + 120, patient.append)
    await until(lambda: len(hurried) == 2)
    assert (hurried, patient, made.waiting) == ([None, None], [], 1)
    commands.asked[0][1](None)
    assert (hurried, patient, made.waiting) == ([None, None], [NO_RECORD], 0)


@pytest.mark.parametrize("reply", [StoreFailure.TIMEOUT, StoreFailure.UNREACHABLE, 7, [b"x"], "OK"])
async def test_no_answer_is_no_record_and_no_unknown_key(reply: object) -> None:
    """Nothing is remembered of it."""
    commands, served, key = Held(), ring(), new_key()
    made = ApiKeyEngine(commands, "sidecar", [served])
    found: list[Any] = []
    made.ensure(NeedApiKey(served, id_of(key)), far(), found.append)
    commands.asked[0][1](reply)
    assert found == [None]
    assert (len(served.known), served.known.unknown) == (0, 0)


async def test_without_redis_nobody_is_asked() -> None:
    """A policy whose keys are all in files."""
    commands, served, found = Held(), ring(), []
    made = ApiKeyEngine(commands, "", [served], in_redis=False)
    made.start()
    made.ensure(NeedApiKey(served, id_of(new_key())), far(), found.append)
    await made.close()
    assert (found, commands.asked) == ([None], [])


async def test_a_change_is_heard_of(store: RedisStore) -> None:
    """By everybody who follows; a record that was known is forgotten, one that was not is not looked up."""
    served, other, key = ring(), ring(), new_key()
    keys, record = RedisKeyStore(store, "sidecar", "partners"), record_of(key)
    await keys.create([record])
    reports: list[str] = []
    async with engine(store, served, report=reports.append) as first, engine(store, other) as second:
        for made, each in ((first, served), (second, other)):
            await until(lambda made=made: made.following)
            await look_up(made, each, key)
        await keys.replace(record, msgspec.structs.replace(record, status="revoked"))
        await until(lambda: len(served.known) == 0 and len(other.known) == 0)
        assert (await look_up(first, served, key)).record.status == "revoked"
    assert reports == []


async def test_a_change_while_a_key_is_looked_up_is_not_missed(store: RedisStore) -> None:
    """What was read before the change is not kept: the key is looked up again."""
    served, key = ring(), new_key()
    record = record_of(key)
    revoked = msgspec.structs.replace(record, status="revoked")
    commands = Held()
    made = ApiKeyEngine(commands, "sidecar", [served])
    found: list[Any] = []
    made.ensure(NeedApiKey(served, id_of(key)), far(), found.append)
    made.changed([("partners", id_of(key))])
    commands.asked[0][1](msgspec.json.encode(record))
    assert found == []
    commands.asked[1][1](msgspec.json.encode(revoked))
    assert found[0].record == revoked


async def test_who_could_not_follow_begins_anew(store: RedisStore, valkey_admin: redis.Redis) -> None:
    """Everything is looked up again; the reason is told once, and that it is over."""
    served, key = ring(), new_key()
    await RedisKeyStore(store, "sidecar", "partners").create([record_of(key)])
    reports: list[str] = []
    async with engine(store, served, report=reports.append) as made:
        await until(lambda: made.following)
        await look_up(made, served, key)
        entry = served.known.get(id_of(key))
        assert entry is not None
        assert entry.fresh_until_us > 0
        valkey_admin.set(news_key("sidecar").decode(), "no stream")
        await until(lambda: len(reports) == 1)
        valkey_admin.delete(news_key("sidecar").decode())
        await until(lambda: len(reports) == 2)
        assert "WRONGTYPE" in reports[0]
        assert reports[1] == ""
        assert entry.fresh_until_us == 0


async def test_uses_are_written_down(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the background, and at the end; when that fails they are dropped and counted."""
    monkeypatch.setattr(api_key_engine, "NOTE_USES_S", 0.01)
    served, keys = ring(), RedisKeyStore(store, "sidecar", "partners")
    ids = [id_of(new_key()) for _ in range(1000)]
    async with engine(store, served) as made:
        served.known.used.update(dict.fromkeys(ids, 7_000_000))
        await until(lambda: not served.known.used)
        async with asyncio.timeout(10):
            while len(await keys.last_used(ids)) < len(ids):  # noqa: ASYNC110 - polls Redis
                await asyncio.sleep(0.01)
        monkeypatch.setattr(api_key_engine, "NOTE_USES_S", 60)
        served.known.used[ids[0]] = 9_000_000
        assert made.waiting == 0
    assert (await keys.last_used(ids[:2])) == {ids[0]: 9, ids[1]: 7}
    failing = ApiKeyEngine(store, "sidecar", [served])
    served.known.used[ids[0]] = 9_000_000
    await store.close()
    with pytest.raises(KeyStoreError):
        await failing.write_uses()
    assert served.known.uses_dropped == 1


async def test_another_policy_goes_on(store: RedisStore) -> None:
    """Keyrings that stay keep what they know; of those that are gone nothing is looked up."""
    served, key = ring(), new_key()
    await RedisKeyStore(store, "sidecar", "partners").create([record_of(key)])
    async with engine(store, served) as made:
        await look_up(made, served, key)
        after = ring()
        made.replace([after])
        assert after.known.get(id_of(key)) is not None
        assert made.counts["partners"].found == 1
        made.replace([])
        assert await look_up(made, after, key) is None


async def test_readiness_tells_what_is_held(store: RedisStore) -> None:
    """Of each keyring, and whether changes are heard of."""
    served, key = ring(), new_key()
    await RedisKeyStore(store, "sidecar", "partners").create([record_of(key)])
    async with engine(store, served) as made:
        await until(lambda: made.following)
        await look_up(made, served, key)
        assert made.detail() == {
            "keyrings": {"partners": {"keys_held": 1}},
            "changes_followed": True,
            "last_error": "",
        }


async def test_a_cluster_shares_a_keyring(cluster: ValkeyCluster) -> None:
    """Every node has a part of it; all of it is found, listed, changed and followed."""
    made = ClusterStore(cluster.addresses, Login(), timeout_s=10.0)
    async with running_store(made) as store:
        keys, served = RedisKeyStore(store, "sidecar", "partners"), ring()
        shown = [new_key() for _ in range(100)]
        records = [record_of(key) for key in shown]
        await keys.create(records)
        assert {record.id async for record in keys.all()} == {record.id for record in records}
        assert min(int(node.ask("DBSIZE")) for node in cluster.masters) > 0
        async with engine(store, served) as following:
            await until(lambda: following.following)
            for key in shown:
                assert isinstance(await look_up(following, served, key), HeldKey)
            await keys.replace(records[0], msgspec.structs.replace(records[0], status="revoked"))
            await until(lambda: served.known.get(records[0].id) is None)
            served.known.used[records[0].id] = 7_000_000
            await following.write_uses()
        assert await keys.last_used([record.id for record in records]) == {records[0].id: 7}


async def test_records_are_made_changed_listed_and_removed(store: RedisStore) -> None:
    """All of them are found again; of two who change one, the second is told."""
    keys = RedisKeyStore(store, "sidecar", "partners")
    records = [record_of(new_key()) for _ in range(600)]
    assert await keys.create(records) == []
    assert await keys.create(records[:3]) == records[:3]
    assert await RedisKeyStore(store, "sidecar", "other").get(records[0].id) is None
    found = {record.id: record async for record in keys.all()}
    assert found == {record.id: record for record in records}
    first = records[0]
    await keys.replace(first, msgspec.structs.replace(first, tier="gold"))
    for stale in (first, record_of(new_key())):
        with pytest.raises(KeyStoreError, match="changed by somebody else"):
            await keys.replace(stale, msgspec.structs.replace(stale, tier="silver"))
    changed = await keys.get(first.id)
    assert changed is not None
    assert changed.tier == "gold"
    await keys.remove([record.id for record in records[:300]])
    assert len([record async for record in keys.all()]) == 300
