"""Looks up API keys for requests, keeps what is known of them up to date, and writes down when they were used.

A key that is not known, or not fresh, is looked up once however many requests ask for it, and no request waits longer
than for Redis. Every POLL_S the news are read, so that a revoked key is refused everywhere within a second; whoever
could not read them begins anew, and looks everything up again. What is too old is looked up again anyhow: a lost piece
of news costs at most the keyring's `cache_ttl`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from sidecar.core.api_key_records import RecordError, decode_record, hold
from sidecar.core.api_keys import NO_RECORD
from sidecar.core.limits import StoreFailure
from sidecar.edges.api_key_store import NEWS_READ_MAX, KeyNews, KeyStoreError, RedisKeyStore

if TYPE_CHECKING:
    from sidecar.core.api_keys import Keyring, NeedApiKey
    from sidecar.edges.limit_changes import Commands

POLL_S: Final = 0.25
LOOK_UP_TIMEOUT_S: Final = 0.05
LOOK_UPS_MAX: Final = 1_024
"""Keys that are looked up at a time; requests with further ones are answered with what there is."""
WAITING_MAX: Final = 8_192
"""Requests that wait for any of them."""
NOTE_USES_S: Final = 5.0
CLOSE_TIMEOUT_S: Final = 1.0

Done = Callable[[Any], None]
Name = tuple[str, str]


class LookUps:
    """Counts, for metrics.

    Attributes:
        found, unknown: Answers of the store.
        failed: It did not answer, or what it holds is no record.
        shed: Too many were under way.
    """

    __slots__ = ("failed", "found", "shed", "unknown")

    def __init__(self) -> None:
        self.found = self.unknown = self.failed = self.shed = 0


class _LookUp:
    """A key that is being looked up, and who waits for it."""

    __slots__ = ("again", "timers", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[int, Done] = {}
        self.timers: dict[int, asyncio.TimerHandle] = {}
        self.again = False


class ApiKeyEngine:
    """Serves the keyrings of the policy. Create it anywhere, `start` it in the event loop.

    Args:
        commands: Of the store.
        prefix: `redis.key_prefix`.
        keyrings: Of the policy.
        in_redis: Whether there is a Redis at all.
        report: Called with the reason when changes cannot be followed or uses cannot be written down, and with "" when
            they can again.
        timeout_s: The longest that a request waits for a record.
        now_us: The clock, microseconds since the epoch.

    Attributes:
        counts: By the keyring's name.
        following: Whether changes are heard of.
    """

    def __init__(
        self,
        commands: Commands,
        prefix: str,
        keyrings: Iterable[Keyring],
        *,
        in_redis: bool = True,
        report: Callable[[str], None] = lambda _reason: None,
        timeout_s: float = LOOK_UP_TIMEOUT_S,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._commands = commands
        self._prefix = prefix
        self._in_redis = in_redis
        self._report = report
        self._timeout_s = timeout_s
        self._now_us = now_us
        self._news = KeyNews(commands, prefix)
        self._look_ups: dict[Name, _LookUp] = {}
        self._waiting = 0
        self._waiters = 0
        self._reason = ""
        self.following = False
        self._tasks: list[asyncio.Task[None]] = []
        self._keyrings: dict[str, Keyring] = {keyring.name: keyring for keyring in keyrings}
        self._stores = self._new_stores()
        self.counts: dict[str, LookUps] = {name: LookUps() for name in self._keyrings}

    @property
    def keyrings(self) -> Mapping[str, Keyring]:
        """Those that are served, by name."""
        return self._keyrings

    @property
    def waiting(self) -> int:
        """Requests that wait for a record."""
        return self._waiting

    def detail(self) -> dict[str, object]:
        """For /readyz; holds no secret."""
        held: dict[str, object] = {
            name: {"keys_held": len(ring.known), **({} if ring.records is None else {"keys": len(ring.records)})}
            for name, ring in self._keyrings.items()
        }
        return {"keyrings": held, "changes_followed": self.following, "last_error": self._reason}

    def replace(self, keyrings: Iterable[Keyring]) -> None:
        """Serve these from now on; what is known of keyrings that stay is kept."""
        before, self._keyrings = self._keyrings, {keyring.name: keyring for keyring in keyrings}
        for name, keyring in self._keyrings.items():
            old = before.get(name)
            if old is not None and old is not keyring:
                keyring.go_on(old)
        self._stores = self._new_stores()
        self.counts = {name: self.counts.get(name) or LookUps() for name in self._keyrings}

    def _new_stores(self) -> dict[str, RedisKeyStore]:
        return {name: RedisKeyStore(self._commands, self._prefix, name) for name in self._keyrings}

    def ensure(self, need: NeedApiKey, deadline: float, done: Done) -> None:
        """Look a key up, and call `done` once with a `HeldKey`, `NO_RECORD`, or None where that cannot be said.

        Args:
            need: Of the request.
            deadline: In seconds of the loop's clock; `done` is called by then.
            done: Called at once, or on the loop.
        """
        name = (need.keyring.name, need.key_id)
        counts = self.counts.get(name[0])
        loop = asyncio.get_running_loop()
        now = loop.time()
        if counts is None or not self._in_redis or now >= deadline:
            done(None)
            return
        look_up = self._look_ups.get(name)
        if self._waiting >= WAITING_MAX or (look_up is None and len(self._look_ups) >= LOOK_UPS_MAX):
            counts.shed += 1
            done(None)
            return
        begins = look_up is None
        if look_up is None:
            look_up = self._look_ups[name] = _LookUp()
        self._waiting += 1
        number = self._waiters = self._waiters + 1
        look_up.waiting[number] = done
        if deadline < now + self._timeout_s:
            look_up.timers[number] = loop.call_at(deadline, self._give_up, look_up, number)
        if begins:
            self._ask(name, look_up)

    def _ask(self, name: Name, look_up: _LookUp) -> None:
        look_up.again = False
        store, key_id = self._stores.get(name[0]), name[1]
        if store is None:  # another policy has none of this name
            self._answered(name, look_up, StoreFailure.ERROR_REPLY)
            return
        key = store.records_key(key_id)
        self._commands.command(
            key, (b"HGET", key, key_id.encode()), self._timeout_s, lambda reply: self._answered(name, look_up, reply)
        )

    def _answered(self, name: Name, look_up: _LookUp, reply: Any) -> None:
        if look_up.again and look_up.waiting:
            self._ask(name, look_up)  # it changed meanwhile: this may be how it was
            return
        self._look_ups.pop(name, None)
        found = None if look_up.again else self._found(name, reply)
        for timer in look_up.timers.values():
            timer.cancel()
        waiting, look_up.waiting = look_up.waiting, {}
        self._waiting -= len(waiting)
        for done in waiting.values():
            done(found)

    def _found(self, name: Name, reply: Any) -> Any:
        keyring = self._keyrings.get(name[0])
        if keyring is None or keyring.records is not None:
            return None
        counts, known = self.counts[name[0]], keyring.known
        if reply is None:
            counts.unknown += 1
            known.put_unknown(name[1], self._now_us())
            return NO_RECORD
        try:
            record = decode_record(reply) if isinstance(reply, bytes) else None
            held = hold(record, keyring.name) if record is not None and record.id == name[1] else None
        except RecordError:
            held = None
        if held is None:
            counts.failed += 1
            return None
        counts.found += 1
        return known.put(held, self._now_us()).held

    def _give_up(self, look_up: _LookUp, number: int) -> None:
        """A request's own deadline has come."""
        done = look_up.waiting.pop(number, None)
        if done is not None:
            self._waiting -= 1
            done(None)

    def start(self) -> None:
        """Begin to follow changes, and to write down uses, in the background."""
        if not self._in_redis:
            return
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._follow(), name="api key changes"),
            loop.create_task(self._note_uses(), name="api key uses"),
        ]

    async def close(self) -> None:
        """Stop; what is not yet written down is, if that is quick."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if tasks:
            with contextlib.suppress(KeyStoreError, TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self.write_uses()

    async def _follow(self) -> None:
        last: bytes | None = None
        while True:
            await asyncio.sleep(POLL_S)
            try:
                if self._keyrings:
                    last = await self._poll(last)
                    self.following = True
                    self._say("")
            except KeyStoreError as error:
                last, self.following = None, False
                self._say(str(error))
            except Exception as bug:  # noqa: BLE001 - what is in Redis there must not end the following
                last, self.following = None, False
                self._say(f"what is kept in Redis of changed keys cannot be read: {type(bug).__name__}")

    async def _poll(self, last: bytes | None) -> bytes:
        """Take the news since `last`; None: begin anew."""
        if last is None:
            newest = await self._news.last()
            for keyring in self._keyrings.values():
                keyring.known.doubt()
            for look_up in self._look_ups.values():
                look_up.again = True
            return newest
        while True:
            changed, last = await self._news.after(last)
            self.changed(changed)
            if len(changed) < NEWS_READ_MAX:
                return last

    def changed(self, names: Iterable[Name]) -> None:
        """Forget keys, each by its keyring and id, since they have changed."""
        for name in names:
            keyring, look_up = self._keyrings.get(name[0]), self._look_ups.get(name)
            if keyring is not None and keyring.records is None:
                keyring.known.forget(name[1])
            if look_up is not None:
                look_up.again = True

    async def _note_uses(self) -> None:
        while True:
            await asyncio.sleep(NOTE_USES_S)
            with contextlib.suppress(KeyStoreError):
                await self.write_uses()

    async def write_uses(self) -> None:
        """Write down when keys were used last.

        Raises:
            KeyStoreError: There is no answer; these uses are dropped, and counted.
        """
        for name, store in list(self._stores.items()):
            keyring = self._keyrings.get(name)
            if keyring is None or not keyring.known.used:
                continue
            used = dict(keyring.known.used)
            keyring.known.used.clear()
            try:
                await store.note_uses({key_id: used_us // 1_000_000 for key_id, used_us in used.items()})
            except KeyStoreError:
                keyring.known.uses_dropped += len(used)
                raise

    def _say(self, reason: str) -> None:
        if reason != self._reason:
            self._reason = reason
            self._report(reason)
