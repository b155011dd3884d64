"""API keys in Redis, and how all sidecars hear that one has changed.

    <prefix>:{keys:<keyring>:<shard>}:records   hash: key id -> the record, as JSON
    <prefix>:{keys:<keyring>:<shard>}:used      hash: key id -> when it was used last, in seconds since the epoch
    <prefix>:{keys}:news                        stream of keys that have changed; the last NEWS_KEPT_MAX

A keyring is spread over SHARDS hashes, so that a Cluster's nodes share it, and so that it can be listed without looking
at all other keys. Each change is one command that compares before it writes: of two operators at once, one is told so.
"""

from __future__ import annotations

import asyncio
import time
from binascii import crc32
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sidecar.core.api_key_records import RecordError, decode_record
from sidecar.edges.limit_changes import ChangesError, Commands, ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from sidecar.core.api_key_records import KeyRecord

SHARDS: Final = 256
NEWS_KEPT_MAX: Final = 100_000
NEWS_READ_MAX: Final = 1_000
"""News taken at a time."""
CONNECT_TIMEOUT_S: Final = 5.0
RETRY_S: Final = 0.02
AT_ONCE_MAX: Final = 256
"""Commands under way at a time, and records of a shard read at a time."""

_REPLACE: Final = b"""
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""


class KeyStoreError(Exception):
    """The store of keys did not answer, refused, or holds something that is no record; holds no secret."""


def news_key(prefix: str) -> bytes:
    """Where changes are told, of all keyrings."""
    return f"{prefix}:{{keys}}:news".encode()


class RedisKeyStore:
    """The keys of one keyring.

    Args:
        commands: Of the store.
        prefix: `redis.key_prefix`.
        keyring: The policy's name of it, which has no colon.
    """

    def __init__(self, commands: Commands, prefix: str, keyring: str) -> None:
        self._commands = commands
        self._prefix = prefix
        self._keyring = keyring

    def records_key(self, key_id: str) -> bytes:
        """The hash that a key's record is in."""
        return self._key(_shard(key_id), "records")

    async def connected(self) -> None:
        """Wait until the server answers, for whoever has just begun to connect.

        Raises:
            KeyStoreError: It does not within CONNECT_TIMEOUT_S; says why.
        """
        latest = time.monotonic() + CONNECT_TIMEOUT_S
        while True:
            try:
                await self.last_used(["0"])
            except KeyStoreError:
                if time.monotonic() >= latest:
                    raise
            else:
                return
            await asyncio.sleep(RETRY_S)

    async def get(self, key_id: str) -> KeyRecord | None:
        """A record, None where there is none.

        Raises:
            KeyStoreError: There is no answer, or it is no record.
        """
        key = self.records_key(key_id)
        raw = await self._ask(b"HGET", key, key_id.encode(), key=key)
        return None if raw is None else _decoded(raw)

    async def create(self, records: Sequence[KeyRecord]) -> list[KeyRecord]:
        """Add keys; those whose id is taken are returned, and nothing was changed of them.

        Nobody is told: that no key has an id is forgotten within seconds.

        Raises:
            KeyStoreError: There is no answer.
        """
        taken: list[KeyRecord] = []
        for at in range(0, len(records), AT_ONCE_MAX):
            some = records[at : at + AT_ONCE_MAX]
            added = await asyncio.gather(*(self._create(record) for record in some))
            taken += [record for record, new in zip(some, added, strict=True) if not new]
        return taken

    async def _create(self, record: KeyRecord) -> bool:
        key = self.records_key(record.id)
        return bool(await self._ask(b"HSETNX", key, record.id.encode(), msgspec.json.encode(record), key=key))

    async def replace(self, old: KeyRecord, new: KeyRecord) -> None:
        """Change a key, and tell all sidecars.

        Raises:
            KeyStoreError: There is no answer, or it is not as `old` any more.
        """
        key = self.records_key(old.id)
        raw = await self._ask(b"HGET", key, old.id.encode(), key=key)
        if raw is None or _decoded(raw) != old:
            raise KeyStoreError(f"key {old.id} was changed by somebody else; look at it again")
        encoded = msgspec.json.encode(new)
        if not await self._ask(b"EVAL", _REPLACE, b"1", key, old.id.encode(), bytes(raw), encoded, key=key):
            raise KeyStoreError(f"key {old.id} was changed by somebody else; look at it again")
        await self._tell(old.id)

    async def remove(self, key_ids: Sequence[str]) -> None:
        """Forget keys that are refused already: nobody is told.

        Raises:
            KeyStoreError: There is no answer.
        """
        for kind in ("records", "used"):
            for shard, ids in _by_shard(key_ids).items():
                key = self._key(shard, kind)
                for at in range(0, len(ids), AT_ONCE_MAX):
                    await self._ask(b"HDEL", key, *(each.encode() for each in ids[at : at + AT_ONCE_MAX]), key=key)

    async def all(self) -> AsyncIterator[KeyRecord]:
        """Every record, in no order; one that is added meanwhile may be missing.

        Raises:
            KeyStoreError: There is no answer, or something is no record.
        """
        for shard in range(SHARDS):
            key, cursor, seen = self._key(shard, "records"), b"0", set[bytes]()
            while True:
                reply = await self._ask(b"HSCAN", key, cursor, b"COUNT", b"%d" % AT_ONCE_MAX, key=key)
                cursor, found = bytes(reply[0]), _pairs(reply[1])
                for key_id, raw in found:
                    if key_id not in seen:  # a scan may find one twice
                        seen.add(key_id)
                        yield _decoded(raw)
                if cursor == b"0":
                    break

    async def last_used(self, key_ids: Iterable[str]) -> dict[str, int]:
        """When keys were used last, in seconds since the epoch, of those of which it is known.

        Raises:
            KeyStoreError: There is no answer.
        """
        found: dict[str, int] = {}
        for shard, ids in _by_shard(key_ids).items():
            key = self._key(shard, "used")
            for at in range(0, len(ids), AT_ONCE_MAX):
                some = ids[at : at + AT_ONCE_MAX]
                values = await self._ask(b"HMGET", key, *(each.encode() for each in some), key=key)
                found |= {each: int(value) for each, value in zip(some, values, strict=True) if value is not None}
        return found

    async def note_uses(self, used_s: Mapping[str, int]) -> None:
        """Write down when keys were used last.

        Raises:
            KeyStoreError: There is no answer.
        """
        shards = list(_by_shard(used_s).items())
        for at in range(0, len(shards), AT_ONCE_MAX):
            await asyncio.gather(*(self._note(shard, ids, used_s) for shard, ids in shards[at : at + AT_ONCE_MAX]))

    async def _note(self, shard: int, ids: Sequence[str], used_s: Mapping[str, int]) -> None:
        key = self._key(shard, "used")
        fields = [part for key_id in ids for part in (key_id.encode(), b"%d" % used_s[key_id])]
        await self._ask(b"HSET", key, *fields, key=key)

    async def _tell(self, key_id: str) -> None:
        key = news_key(self._prefix)
        about = (self._keyring.encode(), key_id.encode())
        await self._ask(b"XADD", key, b"MAXLEN", b"~", b"%d" % NEWS_KEPT_MAX, b"*", *about, key=key)

    def _key(self, shard: int, kind: str) -> bytes:
        return f"{self._prefix}:{{keys:{self._keyring}:{shard}}}:{kind}".encode()

    async def _ask(self, *parts: bytes, key: bytes) -> Any:
        return await answer_of(self._commands, *parts, key=key)


class KeyNews:
    """What has changed, of all keyrings.

    Args:
        commands: Of the store.
        prefix: `redis.key_prefix`.
    """

    def __init__(self, commands: Commands, prefix: str) -> None:
        self._commands = commands
        self._key = news_key(prefix)

    async def last(self) -> bytes:
        """The id of the newest news, from which on to read.

        Raises:
            KeyStoreError: There is no answer.
        """
        newest = await answer_of(self._commands, b"XREVRANGE", self._key, b"+", b"-", b"COUNT", b"1", key=self._key)
        return bytes(newest[0][0]) if newest else b"0-0"

    async def after(self, last: bytes) -> tuple[list[tuple[str, str]], bytes]:
        """Keyrings and ids of keys that have changed since `last`, and the id to read from the next time.

        Raises:
            KeyStoreError: There is no answer.
        """
        read = await answer_of(
            self._commands, b"XREAD", b"COUNT", b"%d" % NEWS_READ_MAX, b"STREAMS", self._key, last, key=self._key
        )
        if not read:
            return [], last
        [(_, entries)] = read.items() if isinstance(read, dict) else read
        changed = [(name.decode(), key_id.decode()) for _, fields in entries for name, key_id in _pairs(fields)]
        return changed, bytes(entries[-1][0])


async def answer_of(commands: Commands, *parts: bytes, key: bytes) -> Any:
    """One command's reply.

    Raises:
        KeyStoreError: There is none, or it is an error.
    """
    try:
        return await ask(commands, *parts, key=key)
    except ChangesError as error:
        raise KeyStoreError(str(error)) from None


def _decoded(raw: bytes) -> KeyRecord:
    try:
        return decode_record(bytes(raw))
    except RecordError as error:
        raise KeyStoreError(f"something in Redis is no record of a key: {error}") from None


def _pairs(reply: Any) -> list[tuple[bytes, bytes]]:
    """A flat array, or a map of RESP3."""
    return list(reply.items()) if isinstance(reply, dict) else list(zip(reply[::2], reply[1::2], strict=True))


def _shard(key_id: str) -> int:
    return crc32(key_id.encode()) % SHARDS


def _by_shard(key_ids: Iterable[str]) -> dict[int, list[str]]:
    shards: dict[int, list[str]] = {}
    for key_id in key_ids:
        shards.setdefault(_shard(key_id), []).append(key_id)
    return shards
