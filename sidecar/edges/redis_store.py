"""The limit store on one Redis server: one EVALSHA for each decision, on Redis's own clock, behind a circuit breaker.

A Cluster has one of these for each master (redis_cluster.py); a Sentinel deployment has one that is led to whichever
server is the master (redis_sentinel.py).
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from hiredis import ReplyError

from sidecar.core.breaker import Breaker
from sidecar.core.limits import Charge, Done, OnDenied, StoreFailure, Verdict
from sidecar.edges.charge_command import pack_charges, read_verdict
from sidecar.edges.redis_connection import IN_FLIGHT_MAX, STALL_S, Command, RedisConnection, pack
from sidecar.edges.scripts import charge_script

if TYPE_CHECKING:
    from sidecar.edges.redis_endpoint import Locator

TIMEOUT_S = 0.05
NEWS_AFTER_S = 0.008
"""Who waited less, because the caller's deadline was near, learnt nothing of Redis: impatient callers must not open the
breaker for everyone."""

CHARGES_MAX = 256
"""Charges of one decision; more are refused as overload."""

REDIRECTIONS = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN")
"""Error codes of a Cluster's node that executed nothing."""

_US = 1_000_000


@dataclass(slots=True, eq=False)
class RedisCounts:
    """What has happened, for metrics; the nodes of a Cluster share one.

    Attributes:
        failures: Decisions that Redis did not make (in a Cluster: parts of decisions).
        connects: How often a connection became usable.
        script_reloads: How often a server had forgotten the script.
        redirections: By error code.
        topology_changes: How often other servers became responsible.
        refunds: Charges to be given back, because another part of their decision was denied or failed.
        refunds_failed: Those that Redis did not confirm; they may stay counted.
        breaker_opened_before: How often breakers had opened of nodes that are gone.
        last_error_reply: The last error that Redis answered with, for the operator.
    """

    failures: dict[StoreFailure, int] = field(default_factory=lambda: dict.fromkeys(StoreFailure, 0))
    connects: int = 0
    script_reloads: int = 0
    redirections: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REDIRECTIONS, 0))
    topology_changes: int = 0
    refunds: int = 0
    refunds_failed: int = 0
    breaker_opened_before: int = 0
    last_error_reply: str = ""


class Call(Protocol):
    """A command that can be sent to another server than the first one."""

    deadline: float
    store: RedisStore

    @property
    def hops(self) -> int:
        """How often it was sent elsewhere."""

    def send_to(self, store: RedisStore, *, asking: bool) -> None:
        """Send it to this server; with `asking`, to one that is only taking the slot over."""

    def complete(self, reply: Any) -> None:
        """Take a `StoreFailure`."""


Redirect = Callable[[Call, str], bool]
"""Takes a call that provably was not executed, and the error that says so. False: nothing can be done."""


@functools.cache
def _script() -> str:
    return charge_script()


class RedisStore:
    """A `LimitStore` on one Redis or Valkey server. Create it anywhere, `start` it in the event loop.

    Args:
        locator: Which server.
        timeout_s: The longest that a decision waits for Redis.
        breaker: Opens when Redis stops answering.
        observe_latency: Called with the seconds that each answered decision took.
        on_denied: Told of each denial, before `done`.
        on_connection: Called with "" when the connection has become usable, and with the reason when it is lost or
            cannot be made (once for each new reason; it holds no secret): for the log.
        in_flight_max: Commands that may await a reply at a time.
        stall_s: When to give up a connection that owes replies and sends nothing.
        master_only: A server that is not a master is left again.
        counts: Where to count; None: its own.
        redirect: Follows a Cluster's redirections; None: they are errors like any other.

    Attributes:
        breaker: Its `state` and `opened_total` are for metrics.
    """

    def __init__(
        self,
        locator: Locator,
        *,
        timeout_s: float = TIMEOUT_S,
        breaker: Breaker | None = None,
        observe_latency: Callable[[float], None] | None = None,
        on_denied: OnDenied | None = None,
        on_connection: Callable[[str], None] = lambda _reason: None,
        in_flight_max: int = IN_FLIGHT_MAX,
        stall_s: float = STALL_S,
        master_only: bool = False,
        counts: RedisCounts | None = None,
        redirect: Redirect | None = None,
    ) -> None:
        script = _script()
        self.connection = RedisConnection(
            locator,
            script,
            master_only=master_only,
            on_connected=self._connected,
            on_disconnected=on_connection,
            in_flight_max=in_flight_max,
            stall_s=stall_s,
        )
        self._on_connection = on_connection
        self._evalsha = b"$7\r\nEVALSHA\r\n$40\r\n%b\r\n" % self.connection.script_sha
        self._eval = b"$4\r\nEVAL\r\n$%d\r\n%b\r\n" % (len(script.encode()), script.encode())
        self._timeout_s = timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reloads_under_way = 0
        self._redirect = redirect
        self.breaker = breaker or Breaker()
        self.observe_latency = observe_latency
        self.on_denied = on_denied
        self.counts = counts or RedisCounts()

    @property
    def nodes(self) -> tuple[RedisStore, ...]:
        """All servers of this store."""
        return (self,)

    @property
    def connected(self) -> bool:
        """Whether it can be asked."""
        return self.connection.connected

    def detail(self) -> dict[str, object]:
        """For /readyz; holds no secret."""
        return {"topology": "single", **self.node_detail(), "last_error_reply": self.counts.last_error_reply}

    def node_detail(self) -> dict[str, object]:
        """How this server is, as one of several; holds no secret."""
        connection = self.connection
        return {
            "server": str(connection.endpoint or ""),
            "connected": connection.connected,
            "breaker": self.breaker.state.value,
            "last_error": connection.last_error,
        }

    def start(self) -> None:
        """Begin to connect, in the background; charges fail as unreachable until that is done."""
        self._loop = asyncio.get_running_loop()
        self.connection.start()

    async def close(self) -> None:
        """Drop the connection; charges under way fail as unreachable."""
        await self.connection.close()

    def _connected(self) -> None:
        self.counts.connects += 1
        self._reloads_under_way = 0
        self.breaker.half_open()
        self._on_connection("")

    def charge(self, charges: Sequence[Charge], deadline: float, done: Done) -> None:
        """Decide all charges together, then call `done`."""
        if not charges:
            done(Verdict(True, ()))
            return
        loop = self._loop
        if loop is None:
            self.refuse(StoreFailure.UNREACHABLE, done)
            return
        now = loop.time()
        latest = now + self._timeout_s
        if len(charges) > CHARGES_MAX:
            self.refuse(StoreFailure.OVERLOADED, done)
        elif deadline <= now:
            self.refuse(StoreFailure.TIMEOUT, done)
        elif not self.breaker.untroubled and not self.breaker.admit(int(now * _US)):
            self.refuse(StoreFailure.CIRCUIT_OPEN, done)
        else:
            # not loop time, which uvloop keeps in whole milliseconds
            by = deadline if deadline < latest else latest  # noqa: FURB136 - min() costs a call
            call = _ChargeCall(by, self, charges, done, perf_counter())
            self.connection.send(pack_charges(self._evalsha, charges), call, now)

    def command(self, key: bytes, parts: tuple[bytes, ...], timeout_s: float, done: Callable[[Any], None]) -> None:
        """Send any command about a key; `done` takes what hiredis parsed, or a `StoreFailure`. Called once."""
        del key  # this server has all of them
        now = self._now()
        call = _AnyCall(now + timeout_s, self, pack(parts), done)
        self.connection.send(call.packed, call, now)

    def refuse(self, failure: StoreFailure, done: Done) -> None:
        """Count a failure and report it."""
        self.counts.failures[failure] += 1
        done(failure)

    def _now(self) -> float:
        return 0.0 if self._loop is None else self._loop.time()

    def settle(self, call: _ChargeCall, reply: Any) -> None:
        """Turn what came back for a call into a verdict or a failure, and tell the breaker."""
        if call.reloads:
            self._reloads_under_way = max(self._reloads_under_way - 1, 0)
        if type(reply) is list and len(reply) == len(call.charges):
            if not self.breaker.untroubled:
                self.breaker.succeed()
            if self.observe_latency is not None:
                self.observe_latency(perf_counter() - call.started_at)
            verdict = read_verdict(call.charges, reply)
            if not verdict.allowed and self.on_denied is not None:
                self.on_denied(call.charges, verdict, call.started_at)
            call.done(verdict)
            return
        if isinstance(reply, StoreFailure):
            self._count_against_breaker(reply, perf_counter() - call.started_at)
            self.refuse(reply, call.done)
            return
        self.breaker.succeed()  # an error is an answer: there is no waiting to be spared
        text = str(reply)
        if text.startswith("NOSCRIPT") and not call.retried:
            self._retry(call)
        elif not self.redirected(call, text):
            self.counts.last_error_reply = text
            if text.startswith("READONLY") or "-READONLY " in text:  # Redis 6.2 wraps errors of a script's commands
                self.connection.drop()  # after a failover the name leads elsewhere
            self.refuse(StoreFailure.ERROR_REPLY, call.done)

    def redirected(self, call: Call, error: str) -> bool:
        """Whether an error is a redirection that is being followed."""
        if self._redirect is None or not error.startswith(REDIRECTIONS):
            return False
        self.counts.redirections[error.partition(" ")[0]] += 1
        return self._redirect(call, error)

    def _count_against_breaker(self, failure: StoreFailure, waited_s: float) -> None:
        hurried = failure is StoreFailure.TIMEOUT and waited_s < min(self._timeout_s / 2, NEWS_AFTER_S)
        if hurried or failure is StoreFailure.OVERLOADED:
            self.breaker.release()  # our own bound, or the caller's, and no news of Redis
        else:
            self.breaker.fail(int(self._now() * _US))

    def _retry(self, call: _ChargeCall) -> None:
        """Send a charge again that provably did not happen: Redis does not know the script (restart, SCRIPT FLUSH).

        The first one brings the source with it; those behind it on the same connection find the script loaded.
        """
        reloads = not self._reloads_under_way
        if reloads:
            self._reloads_under_way += 1
            self.counts.script_reloads += 1
        self._send_again(_AgainCall(call, self, reloads=reloads, retried=True, hops=call.hops, asking=call.asking))

    def take_over(self, call: _ChargeCall, *, asking: bool) -> None:
        """Send a charge here that another server provably did not make."""
        self._send_again(_AgainCall(call, self, reloads=False, retried=False, hops=call.hops + 1, asking=asking))

    def _send_again(self, call: _AgainCall) -> None:
        packed = pack_charges(self._eval if call.reloads else self._evalsha, call.charges)
        if call.asking:
            self.connection.send_asking(packed, call, self._now())
        else:
            self.connection.send(packed, call, self._now())


class _ChargeCall(Command):
    """One decision under way."""

    __slots__ = ("charges", "done", "started_at", "store")

    retried = False
    reloads = False
    asking = False
    hops = 0

    def __init__(
        self, deadline: float, store: RedisStore, charges: Sequence[Charge], done: Done, started_at: float
    ) -> None:
        self.deadline = deadline
        self.waiting = True
        self.store = store
        self.charges = charges
        self.done = done
        self.started_at = started_at

    def complete(self, reply: Any) -> None:
        self.store.settle(self, reply)

    def send_to(self, store: RedisStore, *, asking: bool) -> None:
        store.take_over(self, asking=asking)


class _AgainCall(_ChargeCall):
    """One that is sent again because it provably was not executed.

    Attributes:
        retried: The server did not know the script.
        reloads: So it is sent with the source.
        asking: The server is only taking the slot over, and is told that we know.
        hops: How often it was sent to another server.
    """

    __slots__ = ("asking", "hops", "reloads", "retried")

    def __init__(
        self, call: _ChargeCall, store: RedisStore, *, retried: bool, reloads: bool, hops: int, asking: bool
    ) -> None:
        super().__init__(call.deadline, store, call.charges, call.done, call.started_at)
        self.retried = retried
        self.reloads = reloads
        self.hops = hops
        self.asking = asking


class _AnyCall(Command):
    """A command that is not a charge."""

    __slots__ = ("_done", "hops", "packed", "store")

    def __init__(self, deadline: float, store: RedisStore, packed: bytes, done: Callable[[Any], None]) -> None:
        super().__init__(deadline)
        self.store = store
        self.packed = packed
        self.hops = 0
        self._done = done

    def complete(self, reply: Any) -> None:
        if not isinstance(reply, ReplyError) or not self.store.redirected(self, str(reply)):
            self._done(reply)

    def send_to(self, store: RedisStore, *, asking: bool) -> None:
        self.store = store
        self.waiting = True
        self.hops += 1
        now = asyncio.get_running_loop().time()
        if asking:
            store.connection.send_asking(self.packed, self, now)
        else:
            store.connection.send(self.packed, self, now)
