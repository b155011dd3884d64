"""Keeps a sidecar's `Revocations` as they are in Redis: pushed within milliseconds, polled as the backstop.

Each change is published. Whoever subscribes hears of it at once, and applies it if it follows what is known; anything
else makes it look into the log, or read the whole set. Everybody also asks for the revision each POLL_S: a subscription
that was lost, or goes on without saying anything, costs half a second and no revocation. A subscription that should
have told of what the poll found is made anew.

What is known never gets less because Redis is away or has lost something: entries stay in force until they end or are
undone, and where Redis comes back without them, the sidecars put them there again. Only an `undo` that Redis itself has
lost comes back to life with its entry.

The subscription is a connection of our own (redis_connection.py) and not redis-py's: importing that takes 5.7 MiB of
the 64 that a sidecar may have at its start, and this takes none.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any, Final

from sidecar.core.limits import US_PER_S
from sidecar.core.revocation import Kind, Revocation, Revocations
from sidecar.edges.limit_changes import ChangesError
from sidecar.edges.redis_connection import RedisConnection
from sidecar.edges.redis_endpoint import LocateError
from sidecar.edges.redis_topology import named_stores
from sidecar.edges.revocation_store import Change, RevocationStore, incarnation_of, number_of, read_change

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.edges.redis_endpoint import RedisEndpoint
    from sidecar.edges.redis_topology import TopologyStore

POLL_S: Final = 0.4
EXPIRE_EVERY_S: Final = 60.0
LOAD_WAIT_S: Final = 0.5
"""How long a starting sidecar waits for the set before it serves: it must serve within a second."""
READY_WAIT_S: Final = 5.0
"""How long it is not ready for want of the set, where the policy accepts what cannot be known."""


class RevocationEngine:
    """Follows the revocations; `start` it in the event loop.

    Args:
        store: Where Redis is asked.
        commands: Reads and changes what is there.
        revocations: Kept as they are in Redis.
        stale_after_s: With `deny_unknown`: how long the set counts as known without news of Redis.
        deny_unknown: Refuse principals while the set is not known; without it, what is known is all that counts.
        report: Called with the reason when the revocations cannot be followed, and with "" when they can again.
        now_us: The clock, microseconds since the epoch.

    Attributes:
        commands: For whoever makes changes.
        pushed_total, polled_total: Changes that were heard of by the subscription, and by asking.
        loads_total: How often the whole set was read.
        restored_total: Entries put back into a Redis that had lost them.
        silent_total: Subscriptions given up because they did not tell of a change.
    """

    def __init__(
        self,
        store: TopologyStore,
        commands: RevocationStore,
        revocations: Revocations,
        *,
        stale_after_s: float,
        deny_unknown: bool,
        report: Callable[[str], None],
        now_us: Callable[[], int],
    ) -> None:
        self.commands = commands
        self._revocations = revocations
        self._stale_after_us = int(stale_after_s * US_PER_S)
        self._deny_unknown = deny_unknown
        self._report = report
        self._now_us = now_us
        self._subscription = RedisConnection(
            _AnyServer(store),
            "",
            on_connected=self._connected,
            on_disconnected=lambda _reason: None,  # the store says so, and the metric
            on_push=self._pushed,
        )
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._loaded = asyncio.Event()
        self._known: bytes | None = None
        self._syncing = False
        self._heard_number = 0
        self._unheard_number = 0
        self._unheard_at = 0.0
        self._reason: str | None = None
        self._confirmed_s: float | None = None
        self._started_s = 0.0
        self.subscribed = False
        self.subscribe_error = ""
        self.pushed_total = 0
        self.polled_total = 0
        self.loads_total = 0
        self.restored_total = 0
        self.silent_total = 0
        if deny_unknown:
            revocations.known_until_us = 0

    def start(self) -> None:
        """Begin, in the background."""
        loop = asyncio.get_running_loop()
        self._started_s = loop.time()
        self._subscription.start()
        self._task = loop.create_task(self._follow(), name="revocations")

    async def close(self) -> None:
        """Stop."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._subscription.close()

    async def loaded(self, within_s: float = LOAD_WAIT_S) -> bool:
        """Whether the whole set was read; waits for it."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._loaded.wait(), within_s)
        return self._loaded.is_set()

    @property
    def ready(self) -> bool:
        """Whether the set is known well enough to serve by it, as the policy sees it."""
        age_s = self.age_s
        if self._deny_unknown:
            return age_s is not None and age_s * US_PER_S < self._stale_after_us
        return self._loaded.is_set() or self._waited_s() >= READY_WAIT_S

    @property
    def age_s(self) -> float | None:
        """How long ago Redis has confirmed what is known; None: never."""
        confirmed_s = self._confirmed_s
        return None if confirmed_s is None else asyncio.get_running_loop().time() - confirmed_s

    def detail(self) -> dict[str, object]:
        """For /readyz."""
        age_s = self.age_s
        return {
            "entries": len(self._revocations),
            "subscribed": self.subscribed,
            "age_s": None if age_s is None else round(age_s, 1),
            "last_error": self._reason or self.subscribe_error,
        }

    def _waited_s(self) -> float:
        return asyncio.get_running_loop().time() - self._started_s if self._task is not None else 0.0

    def _connected(self) -> None:
        self.subscribed = False
        self._subscription.subscribe(self.commands.keys.channel)

    def _pushed(self, reply: Any) -> None:
        """A message of the subscription, or what Redis says to SUBSCRIBE."""
        kind = reply[0] if isinstance(reply, list) and len(reply) == 3 else b""
        if kind == b"subscribe":
            self.subscribed = True
            self.subscribe_error = ""
            self._wake.set()  # what was published before is not told
        elif kind == b"message":
            self._heard(read_change(reply[2]))
        else:
            self.subscribe_error = f"Redis refused SUBSCRIBE: {reply}"

    def _heard(self, change: Change | None) -> None:
        if change is not None:
            self._heard_number = number_of(change.revision)
        if change is None or self._syncing or change.previous != self._known:
            self._wake.set()
            return
        self._apply(change)
        self._known = change.revision
        self.pushed_total += 1

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        expire_at = loop.time() + EXPIRE_EVERY_S
        while True:
            self._wake.clear()
            self._syncing = True
            try:
                await self._sync()
                self._confirm()
                self._say("")
            except ChangesError as error:
                self._say(str(error))
            except Exception as bug:  # noqa: BLE001 - what is in Redis there must not end the following
                self._say(f"what is kept in Redis cannot be read: {type(bug).__name__}")
            finally:
                self._syncing = False
            self.subscribed = self.subscribed and self._subscription.connected
            if loop.time() >= expire_at:
                self._revocations.expire(self._now_us())
                expire_at = loop.time() + EXPIRE_EVERY_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), POLL_S)

    def _confirm(self) -> None:
        self._confirmed_s = asyncio.get_running_loop().time()
        self._loaded.set()
        if self._deny_unknown:
            self._revocations.known_until_us = self._now_us() + self._stale_after_us

    async def _sync(self) -> None:
        revision = await self.commands.revision()
        self._leave_if_silent()
        known = self._known
        if revision == known:
            return
        if known is not None and _follows(known, revision):
            await self._catch_up(known)
            if number_of(self._known or b"") >= number_of(revision):
                self._unheard_number = number_of(self._known or b"")
                self._unheard_at = asyncio.get_running_loop().time()
                return
        await self._load(revision)

    def _leave_if_silent(self) -> None:
        """Make the subscription anew where it has not told, after a while, what was found by asking."""
        unheard = self._unheard_number > self._heard_number and self.subscribed
        if unheard and asyncio.get_running_loop().time() >= self._unheard_at + POLL_S / 2:
            self._heard_number = self._unheard_number
            self.silent_total += 1
            self.subscribed = False
            self._subscription.drop()

    async def _catch_up(self, known: bytes) -> bool:
        """Apply the changes since, as far as the log tells them; False where it does not."""
        while True:
            changes = await self.commands.changes(known)
            if changes is None:
                return False
            if not changes:
                return True
            for change in changes:
                self._apply(change)
            known = self._known = changes[-1].revision
            self.polled_total += len(changes)

    async def _load(self, revision: bytes) -> None:
        """Read the whole set, and what changed meanwhile.

        Where Redis has lost what it had, what is known here stays, and is put back.
        """
        self.loads_total += 1
        known, now_us = self._known, self._now_us()
        stored = Revocations()
        async for each, _ in self.commands.entries():
            if each.until_us > now_us:
                stored.add(each)
        lost: list[Revocation] = []
        if known and (not _follows(known, revision) or await self.commands.has_forgotten(known)):
            lost = [each for each in self._revocations if each.until_us > now_us and _is_stronger(each, stored)]
            for each in lost:
                stored.add(each)
        self._revocations.become(stored)
        self._known, self._heard_number, self._unheard_number = revision, 0, 0
        for each in lost:
            await self.commands.revoke(each, "put back by a sidecar")
            self.restored_total += 1
        if not await self._catch_up(revision):
            self._known = None  # the log was cut under us: once more
            self._wake.set()

    def _apply(self, change: Change) -> None:
        """Keep the set as the change says. What an operation of another version means is for that version to know."""
        if change.kind in _KINDS and change.operation in _CHANGING:
            kind = Kind(change.kind)
            if change.operation == "undo":
                self._revocations.remove(kind, change.issuer, change.name)
            else:
                self._revocations.add(Revocation(kind, change.issuer, change.name, change.before_us, change.until_us))

    def _say(self, reason: str) -> None:
        if reason != self._reason:
            self._reason = reason
            self._report(reason)


_CHANGING: Final = ("revoke", "undo")
_KINDS: Final = frozenset(kind.value for kind in Kind)


def _follows(known: bytes, revision: bytes) -> bool:
    """Whether the one may have come of the other, by changes alone."""
    same = not known or incarnation_of(known) == incarnation_of(revision)
    return same and number_of(revision) > number_of(known)


def _is_stronger(ours: Revocation, stored: Revocations) -> bool:
    """Whether Redis does not have what we have, or weaker."""
    theirs = stored.get(ours.kind, ours.issuer, ours.name)
    return theirs is None or theirs.before_us < ours.before_us or theirs.until_us < ours.until_us


class _AnyServer:
    """Where to subscribe: the server, the master, or any node of a Cluster, whose bus carries what is published."""

    def __init__(self, store: TopologyStore) -> None:
        self._store = named_stores(store)["main"]

    async def locate(self) -> RedisEndpoint:
        nodes = [node for node in self._store.nodes if node.connected] or list(self._store.nodes)
        if not nodes:
            raise LocateError("no server of the Cluster is known yet")
        return await random.choice(nodes).connection.locator.locate()  # noqa: S311 - spreads load, guards nothing
