"""One multiplexed, pipelined connection to Redis, kept open: the hot path's client.

All commands of one turn of the event loop leave in one write; replies are matched to commands by their order. There are
callbacks instead of futures and one shared sweep instead of a timer for each command: a command costs about 3 us of CPU
(bench/redis_client.py).

What is bounded: commands without a reply (`IN_FLIGHT_MAX`), bytes not yet written (`OUTPUT_BYTES_MAX`), the time to
connect and greet (`GREETING_TIMEOUT_S`), and the time a server may say nothing at all while it owes replies
(`STALL_S`), after which the connection is dropped. A command that timed out keeps its place in the order until its
reply comes, which is then discarded. A command is never sent twice: when the connection breaks, the fate of those
under way is unknown, and all of them fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import hiredis

from sidecar.core.limits import StoreFailure
from sidecar.edges.redis_endpoint import LocateError

if TYPE_CHECKING:
    from sidecar.edges.redis_endpoint import Locator, RedisEndpoint

IN_FLIGHT_MAX = 8_192
OUTPUT_BYTES_MAX = 1 << 20
GREETING_TIMEOUT_S = 2.0
STALL_S = 2.0
SWEEP_S = 0.002
"""Commands that are due within this time fail together, that much early."""
BACKOFF_S = 0.05
BACKOFF_MAX_S = 1.0

_CLIENT_NAME = b"sidecar"
_NEVER = math.inf

pack = cast("Callable[[tuple[bytes, ...]], bytes]", hiredis.pack_command)  # its stub knows tuples of one part only
"""A command as Redis reads it."""

_ASKING = pack((b"ASKING",))


class Command:
    """One command under way. Subclasses take the reply.

    Attributes:
        deadline: Loop time by which `complete` is called, with `StoreFailure.TIMEOUT` if need be.
        waiting: Whether somebody still waits for the reply.
    """

    __slots__ = ("deadline", "waiting")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.waiting = True

    def complete(self, reply: Any) -> None:
        """Take the reply: what hiredis parsed (errors as `hiredis.ReplyError`), or a `StoreFailure`. Called once."""
        raise NotImplementedError


class _Awaited(Command):
    """A command whose reply a coroutine awaits: greetings, and what is not hot."""

    __slots__ = ("reply",)

    def __init__(self, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(deadline)
        self.reply: asyncio.Future[Any] = loop.create_future()

    def complete(self, reply: Any) -> None:
        if not self.reply.done():
            self.reply.set_result(reply)


class _Ignored(Command):
    """A command whose reply says nothing."""

    __slots__ = ()

    def __init__(self, deadline: float) -> None:
        super().__init__(deadline)
        self.waiting = False


class GreetingError(Exception):
    """The server refused the greeting; the text is the server's."""


class AskError(Exception):
    """A command that is not hot was not answered, or with an error; the text says why."""


class _Link(asyncio.Protocol):
    """One physical connection, from being made to being lost."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        in_flight_max: int,
        stall_s: float,
        on_lost: Callable[[], None],
        on_push: Callable[[Any], None] | None,
    ) -> None:
        self._loop = loop
        self._on_lost = on_lost
        self._on_push = on_push
        self._in_flight_max = in_flight_max
        self._stall_s = stall_s
        self._reader = hiredis.Reader()
        self._output: list[bytes] = []
        self._paused = False
        self._transport: asyncio.Transport | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._sweep_at = _NEVER
        self._heard_at = 0.0
        self.pending: deque[Command] = deque()
        self.closed = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.Transport", transport)  # uvloop's transports are none of asyncio's classes
        self._transport = stream
        stream.set_write_buffer_limits(high=OUTPUT_BYTES_MAX)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False

    def send(self, packed: bytes, command: Command, now: float) -> bool:
        """Queue a command; False if there are too many, or too much of them is unwritten."""
        pending = self.pending
        if len(pending) >= self._in_flight_max or self._paused:
            return False
        if not pending:
            self._heard_at = now
        pending.append(command)
        if not self._output:
            self._loop.call_soon(self._flush)
        self._output.append(packed)
        if command.deadline < self._sweep_at:
            self._sweep_later(command.deadline)
        return True

    def send_asking(self, packed: bytes, command: Command, now: float) -> bool:
        """The same, with ASKING before it; both or neither, since ASKING is about the next command, whosever it is."""
        if len(self.pending) + 2 > self._in_flight_max:
            return False
        return self.send(_ASKING, _Ignored(command.deadline), now) and self.send(packed, command, now)

    def write(self, packed: bytes) -> None:
        """Send what has no reply of its own, at once."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(packed)

    def _flush(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(self._output))
        self._output.clear()

    def data_received(self, data: bytes) -> None:
        pending = self.pending
        reader = self._reader
        self._heard_at = self._loop.time()
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                if not pending:
                    if self._on_push is not None:
                        self._on_push(reply)
                        continue
                    self.abort()  # nobody asked: what comes next could be matched to the wrong command
                    return
                command = pending.popleft()
                if command.waiting:
                    command.waiting = False
                    try:
                        command.complete(reply)
                    except Exception as error:  # noqa: BLE001 - as in `_complete`, without a call on the hot path
                        self._report(error)
        except hiredis.ProtocolError:
            self.abort()

    def _complete(self, command: Command, reply: Any) -> None:
        try:
            command.complete(reply)
        except Exception as error:  # noqa: BLE001 - one caller's fault must not lose the replies of the others
            self._report(error)

    def _report(self, error: Exception) -> None:
        self._loop.call_exception_handler({"message": "a Redis reply's receiver failed", "exception": error})

    def _sweep_later(self, at: float) -> None:
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        self._sweep_at = at
        self._sweep_timer = self._loop.call_at(at, self._sweep)

    def _sweep(self) -> None:
        self._sweep_timer = None
        self._sweep_at = _NEVER
        if not self.pending:
            return
        now = self._loop.time()
        stalled_at = self._heard_at + self._stall_s
        if now >= stalled_at:
            self.abort()
            return
        due = now + SWEEP_S
        expired = []
        next_at = stalled_at
        for command in self.pending:
            if command.waiting:
                if command.deadline <= due:
                    command.waiting = False
                    expired.append(command)
                elif command.deadline < next_at:
                    next_at = command.deadline
        self._sweep_later(next_at)
        for command in expired:
            self._complete(command, StoreFailure.TIMEOUT)

    def abort(self) -> None:
        """Drop the connection; `connection_lost` follows."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # whatever it was, the outcome is the same
        self._transport = None
        self._on_lost()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        if not self.closed.done():
            self.closed.set_result(None)
        lost, self.pending = self.pending, deque()
        for command in lost:
            if command.waiting:
                command.waiting = False
                self._complete(command, StoreFailure.UNREACHABLE)


class RedisConnection:
    """Keeps one link open: connects, greets, and after a loss does so again with a jittered, growing pause.

    Args:
        locator: Which server; asked before each connect.
        script: Lua source that is loaded on every connect, so that EVALSHA finds it; "" for none.
        master_only: A server that is not a master is left again.
        on_connected: Called each time that the connection has become usable.
        on_disconnected: Called with the reason when it is lost or cannot be made, once for each new reason.
        in_flight_max: Commands that may await a reply at a time.
        stall_s: A server that owes replies and sends nothing for so long is given up.
        on_push: Takes what the server sends unasked; without it, such a server is left. Must not raise.

    Attributes:
        locator: Which server.
        script_sha: What EVALSHA calls it by.
        endpoint: The server that was last connected to; None before.
        last_error: Why it is not connected, for the operator; "" while it is. Holds no secret.
    """

    def __init__(
        self,
        locator: Locator,
        script: str,
        *,
        master_only: bool = False,
        on_connected: Callable[[], None],
        on_disconnected: Callable[[str], None],
        in_flight_max: int = IN_FLIGHT_MAX,
        stall_s: float = STALL_S,
        on_push: Callable[[Any], None] | None = None,
    ) -> None:
        self.locator = locator
        self._on_push = on_push
        self._master_only = master_only
        self._script = script.encode()
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._in_flight_max = in_flight_max
        self._stall_s = stall_s
        self._link: _Link | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self.script_sha = hashlib.sha1(self._script, usedforsecurity=False).hexdigest().encode()
        self.endpoint: RedisEndpoint | None = None
        self.last_error = "not connected yet"

    @property
    def connected(self) -> bool:
        """Whether commands can be sent."""
        return self._link is not None

    @property
    def in_flight(self) -> int:
        """Commands that await a reply, also those that timed out meanwhile."""
        return 0 if self._link is None else len(self._link.pending)

    def start(self) -> None:
        """Begin to connect, in the background. Call it in the event loop."""
        if self._supervisor is None:
            self._supervisor = asyncio.get_running_loop().create_task(self._supervise(), name="redis connection")

    async def close(self) -> None:
        """Drop the connection. Commands under way fail as unreachable."""
        supervisor, self._supervisor = self._supervisor, None
        link = self._link
        if supervisor is not None:
            supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await supervisor
        if link is not None:
            await link.closed

    def drop(self) -> None:
        """Give this connection up and make a new one. Commands under way fail as unreachable."""
        if self._link is not None:
            self._link.abort()

    def send(self, packed: bytes, command: Command, now: float) -> None:
        """Send a packed command with the next flush; `now` is loop time. It may fail before this returns."""
        link = self._link
        if link is None:
            command.waiting = False
            command.complete(StoreFailure.UNREACHABLE)
        elif not link.send(packed, command, now):
            command.waiting = False
            command.complete(StoreFailure.OVERLOADED)

    def send_asking(self, packed: bytes, command: Command, now: float) -> None:
        """The same for a server of a Cluster that is only taking over the command's slot."""
        link = self._link
        if link is None or not link.send_asking(packed, command, now):
            command.waiting = False
            command.complete(StoreFailure.UNREACHABLE if link is None else StoreFailure.OVERLOADED)

    def subscribe(self, *channels: bytes) -> None:
        """Ask for what is published; it comes to `on_push`, as does what the server says to this.

        Afterwards nothing else can be sent on this connection. Nothing happens while it is not connected.
        """
        if self._link is not None:
            self._link.write(pack((b"SUBSCRIBE", *channels)))

    async def ask(self, *parts: bytes, timeout_s: float) -> Any:
        """Send a command that is not hot and await its reply.

        Raises:
            AskError: There was none in time, or it is an error.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        command = _Awaited(now + timeout_s, loop)
        self.send(pack(parts), command, now)
        reply = await command.reply
        if isinstance(reply, StoreFailure):
            raise AskError(f"{parts[0].decode()}: {reply.value}")
        if isinstance(reply, hiredis.ReplyError):
            raise AskError(f"{parts[0].decode()}: {reply}")
        return reply

    async def _supervise(self) -> None:
        failures = 0
        while True:
            greeted = False
            try:
                greeted = await self._live_once()
                reason = f"{self.endpoint}: the connection was lost"
            except LocateError as error:
                reason = str(error)
            except GreetingError as error:
                reason = f"{self.endpoint} refused the greeting: {error}"
            except TimeoutError:
                reason = f"{self.endpoint or 'the server'} did not answer within {GREETING_TIMEOUT_S} s"
            except Exception as error:  # noqa: BLE001 - whatever it was, it must be tried again
                reason = f"{self.endpoint or 'the server'}: {error}"
            if reason != self.last_error:
                self.last_error = reason
                self._on_disconnected(reason)
            failures = 0 if greeted else failures + 1
            pause_s = min(BACKOFF_S * 2 ** min(failures, 16), BACKOFF_MAX_S)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads reconnects, guards nothing

    async def _live_once(self) -> bool:
        """Connect, greet, and stay until the link is lost. True if it was ever usable."""
        loop = asyncio.get_running_loop()
        link = _Link(loop, self._in_flight_max, self._stall_s, self._lost, self._on_push)
        try:
            async with asyncio.timeout(GREETING_TIMEOUT_S):
                endpoint = self.endpoint = await self.locator.locate()
                await _connect(loop, link, endpoint)
                await self._greet(loop, link, endpoint)
            self._link = link
            self.last_error = ""
            self._on_connected()
            await asyncio.shield(link.closed)
            return True
        finally:
            link.abort()

    def _lost(self) -> None:
        self._link = None

    def _greeting(self, endpoint: RedisEndpoint) -> list[tuple[bytes, ...]]:
        parts: list[tuple[bytes, ...]] = []
        if endpoint.username:
            parts.append((b"AUTH", endpoint.username.encode(), endpoint.password.encode()))
        elif endpoint.password:
            parts.append((b"AUTH", endpoint.password.encode()))
        if endpoint.database:
            parts.append((b"SELECT", b"%d" % endpoint.database))
        parts.append((b"CLIENT", b"SETNAME", _CLIENT_NAME))
        if self._master_only:
            parts.append((b"ROLE",))
        if self._script:
            parts.append((b"SCRIPT", b"LOAD", self._script))
        return parts

    async def _greet(self, loop: asyncio.AbstractEventLoop, link: _Link, endpoint: RedisEndpoint) -> None:
        """Authenticate, name ourselves, ask the server's role and load the script, all in one write.

        Raises:
            GreetingError: The server refused.
        """
        parts = self._greeting(endpoint)
        now = loop.time()
        commands = [_Awaited(now + GREETING_TIMEOUT_S, loop) for _ in parts]
        for part, command in zip(parts, commands, strict=True):
            link.send(pack(part), command, now)
        for part, command in zip(parts, commands, strict=True):
            reply = await command.reply
            if isinstance(reply, StoreFailure):
                raise GreetingError(f"{part[0].decode()}: {reply.value}")
            if isinstance(reply, hiredis.ReplyError) and not _tolerable(part[0], str(reply)):
                raise GreetingError(f"{part[0].decode()}: {reply}")
            if part[0] == b"ROLE" and reply[0] != b"master":
                raise GreetingError(f"it is no master but a {reply[0].decode(errors='replace')}")


async def _connect(loop: asyncio.AbstractEventLoop, link: _Link, endpoint: RedisEndpoint) -> None:
    if endpoint.path:
        await loop.create_unix_connection(lambda: link, endpoint.path)
    elif endpoint.tls is None:
        await loop.create_connection(lambda: link, endpoint.host, endpoint.port)
    else:
        name = endpoint.server_name or endpoint.host
        await loop.create_connection(lambda: link, endpoint.host, endpoint.port, ssl=endpoint.tls, server_hostname=name)


def _tolerable(command: bytes, error: str) -> bool:
    """A user may lack the right to name its connection, or to load scripts ahead of their use."""
    return command in (b"CLIENT", b"SCRIPT") and error.startswith("NOPERM")
