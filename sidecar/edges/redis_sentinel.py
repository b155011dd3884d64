"""Where the master is that Sentinels watch, asked before each connect and looked at all the time.

All Sentinels that can be reached are asked, and the one whose knowledge is newest (the highest `config-epoch`) is
believed: a Sentinel that was cut off still names the old master. Knowledge older than what was already seen is not
believed for `EPOCH_KEPT_S`. So a failover is noticed even while the old master goes on answering: the connection to it
is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from sidecar.edges.redis_connection import AskError, RedisConnection
from sidecar.edges.redis_endpoint import LocateError, Login, RedisAddress, RedisEndpoint, host_port
from sidecar.edges.redis_store import RedisStore

POLL_S = 0.25
"""How soon a failover is noticed while the old master goes on answering."""

ASK_TIMEOUT_S = 0.5
LOCATE_WITHIN_S = 1.5
"""How long to wait for a Sentinel that can be reached; shorter than the time for a connect and its greeting."""

EPOCH_KEPT_S = 60.0
"""After this time without newer knowledge older one is believed: the Sentinels may have been set up anew."""

SENTINELS_MAX = 32


class SentinelMaster:
    """Finds one master. A `Locator`.

    Args:
        name: The master's, as the Sentinels call it.
        sentinels: Host and port of each, up to `SENTINELS_MAX`.
        sentinel_login: How to greet the Sentinels.
        login: How to greet the master.
        on_switch: Called when another server than the one last located has become master.

    Attributes:
        last_error: Why the master could not be found last; "" when it could.
    """

    def __init__(
        self,
        name: str,
        sentinels: Sequence[tuple[str, int]],
        sentinel_login: Login,
        login: Login,
        on_switch: Callable[[], None],
    ) -> None:
        if not 1 <= len(sentinels) <= SENTINELS_MAX:
            raise ValueError(f"1 to {SENTINELS_MAX} sentinels are accepted, not {len(sentinels)}")
        self._name = name
        self._login = login
        self._on_switch = on_switch
        self._reached = asyncio.Event()
        self._connections = {
            address: RedisConnection(
                RedisAddress(sentinel_login, *address),
                "",
                on_connected=self._reached.set,
                on_disconnected=lambda _reason: None,
            )
            for address in sentinels
        }
        self._watcher: asyncio.Task[None] | None = None
        self._located: tuple[str, int] | None = None
        self._epoch = 0
        self._epoch_at = 0.0
        self.last_error = "not asked yet"

    def start(self) -> None:
        """Connect to the Sentinels, and watch."""
        for connection in self._connections.values():
            connection.start()
        self._watcher = asyncio.get_running_loop().create_task(self._watch(), name="redis sentinel")

    async def close(self) -> None:
        """Leave the Sentinels."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
        for connection in self._connections.values():
            await connection.close()

    def detail(self) -> dict[str, object]:
        """For /readyz; holds no secret."""
        return {
            "master_name": self._name,
            "sentinels": [
                {"server": host_port(*address), "connected": each.connected, "last_error": each.last_error}
                for address, each in self._connections.items()
            ],
            "last_error": self.last_error,
        }

    async def locate(self) -> RedisEndpoint:
        """Where the master is now.

        Raises:
            LocateError: No Sentinel answers, or none knows the master.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + LOCATE_WITHIN_S
        while not any(connection.connected for connection in self._connections.values()):
            self._reached.clear()
            try:
                async with asyncio.timeout_at(give_up_at):
                    await self._reached.wait()
            except TimeoutError:
                reasons = "; ".join(each.last_error for each in self._connections.values())
                self.last_error = f"no sentinel can be reached: {reasons}"
                raise LocateError(self.last_error) from None
        self._located = await self._ask()
        return self._login.endpoint(host=self._located[0], port=self._located[1])

    async def _ask(self) -> tuple[str, int]:
        """The master's address, as of the newest knowledge.

        Raises:
            LocateError: Nobody knows.
        """
        asked = [(address, each) for address, each in self._connections.items() if each.connected]
        answers = await asyncio.gather(*(self._ask_one(each) for _, each in asked), return_exceptions=True)
        known = [answer for answer in answers if isinstance(answer, tuple)]
        if not known:
            reasons = [f"{host_port(*a)}: {e}" for (a, _), e in zip(asked, answers, strict=True)]
            self.last_error = f"no sentinel knows the master {self._name}: {'; '.join(reasons) or 'none answers'}"
            raise LocateError(self.last_error)
        epoch, address = max(known)
        now = asyncio.get_running_loop().time()
        if epoch < self._epoch and now < self._epoch_at + EPOCH_KEPT_S:
            self.last_error = f"the sentinels that answer know epoch {epoch} only, {self._epoch} was seen before"
            raise LocateError(self.last_error)
        self._epoch, self._epoch_at = epoch, now
        self.last_error = ""
        return address

    async def _ask_one(self, connection: RedisConnection) -> tuple[int, tuple[str, int]]:
        reply = await connection.ask(b"SENTINEL", b"MASTER", self._name.encode(), timeout_s=ASK_TIMEOUT_S)
        return _read_master(reply)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            before = self._located
            if before is None:
                continue
            try:
                now = await self._ask()
            except LocateError:
                continue
            if now != before and self._located == before:
                self._located = now
                self._on_switch()


def _read_master(reply: Any) -> tuple[int, tuple[str, int]]:
    """Epoch and address in the reply of SENTINEL MASTER.

    Raises:
        AskError: They are not there.
    """
    try:
        fields = dict(zip(reply[::2], reply[1::2], strict=True))
        return int(fields[b"config-epoch"]), (fields[b"ip"].decode(), int(fields[b"port"]))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise AskError("the reply to SENTINEL MASTER cannot be read") from error


class SentinelStore(RedisStore):
    """A `RedisStore` that follows the master.

    Args:
        name, sentinels, sentinel_login, login: As of `SentinelMaster`.
        settings: As of `RedisStore`.
    """

    def __init__(
        self,
        name: str,
        sentinels: Sequence[tuple[str, int]],
        sentinel_login: Login,
        login: Login,
        **settings: Any,
    ) -> None:
        self.master = SentinelMaster(name, sentinels, sentinel_login, login, self._switched)
        super().__init__(self.master, master_only=True, **settings)

    def start(self) -> None:
        """Begin to look for the master and to connect, in the background."""
        self.master.start()
        super().start()

    async def close(self) -> None:
        """Drop the connections; charges under way fail as unreachable."""
        await super().close()
        await self.master.close()

    def detail(self) -> dict[str, object]:
        """For /readyz; holds no secret."""
        return {**super().detail(), "topology": "sentinel", "sentinel": self.master.detail()}

    def _switched(self) -> None:
        self.counts.topology_changes += 1
        self.connection.drop()
