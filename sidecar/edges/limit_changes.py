"""What changes about single counters while everything runs, and how all sidecars hear of it.

In Redis, all under one hash tag so that one script can change them together:

    <prefix>:{limits}:overrides   hash: counter key -> the override, as JSON
    <prefix>:{limits}:revision    a random text, another one after each change of an override
    <prefix>:{limits}:news        stream of counters that were reset or refunded, so that no sidecar goes on denying
                                  from memory; the last NEWS_KEPT_MAX

Every sidecar asks for the revision and the news each POLL_S, so that a change is in force everywhere within a second.
There is no subscription that could be lost unnoticed: whoever could not ask begins anew, with everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import hiredis
import msgspec

from sidecar.core.limits import REQUESTS_MAX, StoreFailure
from sidecar.core.overrides import OVERRIDES_MAX, Override

if TYPE_CHECKING:
    from sidecar.core.overrides import Overrides

POLL_S: Final = 0.25
ASK_TIMEOUT_S: Final = 1.0

NEWS_KEPT_MAX: Final = 10_000
NEWS_READ_MAX: Final = 1_000
"""News taken at a time; a sidecar that is further behind takes the rest with the next poll."""
FREED_KEYS_MAX: Final = 1_000
"""Counters that one sidecar tells of at a time; of more, the others learn when their denials end by themselves."""

_SET: Final = b"""
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('SET', KEYS[2], ARGV[2])
return 1
"""
_CLEAR: Final = b"""
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then
  return 0
end
redis.call('SET', KEYS[2], ARGV[2])
return 1
"""


class ChangesError(Exception):
    """Redis could not be asked, or refused; the text says what, and holds no secret."""


class UnreachableError(ChangesError):
    """There is no connection to Redis, which its own event in the log says already."""


class Commands(Protocol):
    """Sends any command; what a store of any topology can do."""

    def command(self, key: bytes, parts: tuple[bytes, ...], timeout_s: float, done: Callable[[Any], None]) -> None:
        """Send a command about a key; `done` takes what hiredis parsed, or a `StoreFailure`. Called once."""


class StoredOverride(msgspec.Struct, frozen=True, omit_defaults=True):
    """An override as it is kept: with what a person needs to recognise it."""

    limit: str
    subject: list[str | None]
    requests: int
    burst: int = 0
    until_us: int | None = None

    def override(self) -> Override:
        """As charging uses it."""
        return Override(self.requests, self.burst, self.until_us)


@dataclass(frozen=True, slots=True)
class ChangeKeys:
    """Where it is kept in Redis."""

    overrides: bytes
    revision: bytes
    news: bytes

    @classmethod
    def of(cls, prefix: str) -> ChangeKeys:
        """Below a `redis.key_prefix`."""
        return cls(*(f"{prefix}:{{limits}}:{name}".encode() for name in ("overrides", "revision", "news")))


async def ask(commands: Commands, *parts: bytes, key: bytes) -> Any:
    """One command's reply.

    Raises:
        ChangesError: There is none, or it is an error.
    """
    reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done(answer: Any) -> None:
        if not reply.done():
            reply.set_result(answer)

    commands.command(key, parts, ASK_TIMEOUT_S, done)
    answer = await reply
    if isinstance(answer, StoreFailure):
        kind = UnreachableError if answer is StoreFailure.UNREACHABLE else ChangesError
        raise kind(f"Redis did not answer {parts[0].decode()}: {answer.value}")
    if isinstance(answer, hiredis.ReplyError):
        raise ChangesError(f"Redis refused {parts[0].decode()}: {answer}")
    return answer


class LimitChanges:
    """Reads and makes the changes.

    Args:
        commands: Of the store.
        prefix: `redis.key_prefix`.
    """

    def __init__(self, commands: Commands, prefix: str) -> None:
        self._commands = commands
        self._keys = ChangeKeys.of(prefix)

    async def revision(self) -> bytes | None:
        """Another one than before: an override has changed."""
        return _bytes_or_none(await self._ask(b"GET", self._keys.revision))

    async def overrides(self) -> dict[bytes, StoredOverride]:
        """All overrides, by counter key; one that cannot be read is passed over.

        Raises:
            ChangesError: Redis did not answer.
        """
        reply = await self._ask(b"HGETALL", self._keys.overrides)
        pairs: list[tuple[bytes, bytes]] = (
            list(reply.items()) if isinstance(reply, dict) else list(zip(reply[::2], reply[1::2], strict=True))
        )
        found: dict[bytes, StoredOverride] = {}
        for key, value in pairs:
            with contextlib.suppress(msgspec.DecodeError):
                stored = msgspec.json.decode(value, type=StoredOverride)
                if 0 <= stored.requests <= REQUESTS_MAX and 0 <= stored.burst <= REQUESTS_MAX:
                    found[key] = stored
        return found

    async def set_override(self, key: bytes, override: StoredOverride) -> None:
        """Put an override in force on all sidecars.

        Raises:
            ChangesError: Redis did not answer, or `OVERRIDES_MAX` are in force.
        """
        value = msgspec.json.encode(override)
        if not await self._eval(_SET, key, _revision(), value, b"%d" % OVERRIDES_MAX):
            raise ChangesError(f"{OVERRIDES_MAX} overrides are in force; clear some first")

    async def clear_override(self, key: bytes) -> bool:
        """End an override; False where there was none.

        Raises:
            ChangesError: Redis did not answer.
        """
        return bool(await self._eval(_CLEAR, key, _revision()))

    async def reset(self, storage_key: bytes) -> bool:
        """Empty a counter, on all sidecars; False where nothing was counted.

        Raises:
            ChangesError: Redis did not answer.
        """
        removed = await ask(self._commands, b"DEL", storage_key, key=storage_key)
        await self.tell([storage_key])
        return bool(removed)

    async def tell(self, storage_keys: Sequence[bytes]) -> None:
        """Tell all sidecars that these counters have more room than they may remember.

        Raises:
            ChangesError: Redis did not answer.
        """
        for storage_key in storage_keys:
            await self._ask(b"XADD", self._keys.news, b"MAXLEN", b"~", b"%d" % NEWS_KEPT_MAX, b"*", b"key", storage_key)

    async def last_news(self) -> bytes:
        """The id of the newest news, from which on to read."""
        newest = await self._ask(b"XREVRANGE", self._keys.news, b"+", b"-", b"COUNT", b"1")
        return bytes(newest[0][0]) if newest else b"0-0"

    async def news(self, after: bytes) -> tuple[set[bytes], bytes]:
        """Storage keys told since `after`, and the id to read from the next time."""
        read = await self._ask(
            b"XREAD", b"COUNT", b"%d" % NEWS_READ_MAX, b"STREAMS", self._keys.news, after, key=self._keys.news
        )
        if not read:
            return set(), after
        [(_, entries)] = read.items() if isinstance(read, dict) else read
        return {key for _, fields in entries for key in fields[1::2]}, bytes(entries[-1][0])

    async def _ask(self, *parts: bytes, key: bytes | None = None) -> Any:
        return await ask(self._commands, *parts, key=key if key is not None else parts[1])

    async def _eval(self, script: bytes, *arguments: bytes) -> Any:
        keys = self._keys
        return await self._ask(b"EVAL", script, b"2", keys.overrides, keys.revision, *arguments, key=keys.overrides)


def _revision() -> bytes:
    return secrets.token_hex(16).encode()


def _bytes_or_none(value: Any) -> bytes | None:
    return None if value is None else bytes(value)


class ChangesFollower:
    """Keeps this process up to date with the changes that anyone makes.

    Args:
        changes: Where to read.
        overrides: Kept as they are in Redis.
        forget: Called with storage keys of which nothing may be remembered any more, or None: of any.
        report: Called with the reason when the changes cannot be followed though Redis is connected, and with "" when
            they can.
        now_us: The clock, microseconds since the epoch.
    """

    def __init__(
        self,
        changes: LimitChanges,
        overrides: Overrides,
        *,
        forget: Callable[[set[bytes] | None], None],
        report: Callable[[str], None],
        now_us: Callable[[], int],
    ) -> None:
        self._changes = changes
        self._overrides = overrides
        self._forget = forget
        self._report = report
        self._now_us = now_us
        self._task: asyncio.Task[None] | None = None
        self._revision: bytes | None = None
        self._last_news: bytes | None = None
        self._reason: str | None = None
        self._freed: set[bytes] = set()

    def freed(self, storage_keys: Sequence[bytes]) -> None:
        """Tell all other sidecars with the next poll that these counters have more room than they may remember."""
        if len(self._freed) < FREED_KEYS_MAX:
            self._freed.update(storage_keys)

    def start(self) -> None:
        """Begin, in the background."""
        self._task = asyncio.get_running_loop().create_task(self._follow(), name="limit changes")

    async def close(self) -> None:
        """Stop."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _follow(self) -> None:
        while True:
            try:
                await self._poll()
                self._say("")
            except UnreachableError:
                self._last_news = None
            except ChangesError as error:
                self._last_news = None
                self._say(str(error))
            except Exception as bug:  # noqa: BLE001 - what is in Redis there must not end the following
                self._last_news = None
                self._say(f"what is kept in Redis cannot be read: {type(bug).__name__}")
            if self._overrides.active and self._overrides.expire(self._now_us()):
                self._forget(None)
            await asyncio.sleep(POLL_S)

    async def _poll(self) -> None:
        if self._freed:
            freed, self._freed = self._freed, set()
            await self._changes.tell(list(freed))
        if self._last_news is None:
            last_news = await self._changes.last_news()
            await self._reload(await self._changes.revision())
            self._last_news = last_news
            self._forget(None)
            return
        revision = await self._changes.revision()
        if revision != self._revision:
            await self._reload(revision)
        keys, self._last_news = await self._changes.news(self._last_news)
        if keys:
            self._forget(keys)

    async def _reload(self, revision: bytes | None) -> None:
        stored: Mapping[bytes, StoredOverride] = await self._changes.overrides()
        changed = self._overrides.replace({key: each.override() for key, each in stored.items()})
        self._overrides.expire(self._now_us())
        self._revision = revision
        if changed:
            self._forget(None)

    def _say(self, reason: str) -> None:
        if reason != self._reason:
            self._reason = reason
            self._report(reason)
