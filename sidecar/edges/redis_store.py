"""The limit store in Redis: one EVALSHA for each decision, on Redis's own clock, behind a circuit breaker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

from sidecar.core.breaker import Breaker
from sidecar.core.limits import Charge, Done, StoreFailure, Verdict
from sidecar.edges.charge_command import pack_charges, read_verdict
from sidecar.edges.redis_connection import IN_FLIGHT_MAX, STALL_S, Command, RedisConnection, pack
from sidecar.edges.scripts import charge_script

if TYPE_CHECKING:
    from sidecar.edges.redis_endpoint import RedisEndpoint

TIMEOUT_S = 0.05
NEWS_AFTER_S = 0.008
"""Who waited less, because the caller's deadline was near, learnt nothing of Redis: impatient callers must not open the
breaker for everyone."""

CHARGES_MAX = 256
"""Charges of one decision; more are refused as overload."""

_US = 1_000_000


class RedisStore:
    """A `LimitStore` on one Redis or Valkey server. Create it anywhere, `start` it in the event loop.

    Args:
        endpoint: Which server.
        timeout_s: The longest that a decision waits for Redis.
        breaker: Opens when Redis stops answering.
        observe_latency: Called with the seconds that each answered decision took.
        on_connection: Called with "" when the connection has become usable, and with the reason when it is lost or
            cannot be made (once for each new reason; it holds no secret): for the log.
        in_flight_max: Commands that may await a reply at a time.
        stall_s: When to give up a connection that owes replies and sends nothing.

    Attributes:
        breaker: Its `state` and `opened_total` are for metrics.
        failures: How often each failure was reported.
        script_reloads_total: How often Redis had forgotten the script.
        last_error_reply: The last error that Redis answered with, for the operator.
    """

    def __init__(
        self,
        endpoint: RedisEndpoint,
        *,
        timeout_s: float = TIMEOUT_S,
        breaker: Breaker | None = None,
        observe_latency: Callable[[float], None] | None = None,
        on_connection: Callable[[str], None] = lambda _reason: None,
        in_flight_max: int = IN_FLIGHT_MAX,
        stall_s: float = STALL_S,
    ) -> None:
        script = charge_script()
        self.connection = RedisConnection(
            endpoint,
            script,
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
        self.breaker = breaker or Breaker()
        self.observe_latency = observe_latency
        self.failures = dict.fromkeys(StoreFailure, 0)
        self.script_reloads_total = 0
        self.last_error_reply = ""

    def start(self) -> None:
        """Begin to connect, in the background; charges fail as unreachable until that is done."""
        self._loop = asyncio.get_running_loop()
        self.connection.start()

    async def close(self) -> None:
        """Drop the connection; charges under way fail as unreachable."""
        await self.connection.close()

    def _connected(self) -> None:
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
            self._refuse(StoreFailure.UNREACHABLE, done)
            return
        now = loop.time()
        latest = now + self._timeout_s
        if len(charges) > CHARGES_MAX:
            self._refuse(StoreFailure.OVERLOADED, done)
        elif deadline <= now:
            self._refuse(StoreFailure.TIMEOUT, done)
        elif not self.breaker.untroubled and not self.breaker.admit(int(now * _US)):
            self._refuse(StoreFailure.CIRCUIT_OPEN, done)
        else:
            # not loop time, which uvloop keeps in whole milliseconds
            by = deadline if deadline < latest else latest  # noqa: FURB136 - min() costs a call
            call = _ChargeCall(by, self, charges, done, perf_counter())
            self.connection.send(pack_charges(self._evalsha, charges), call, now)

    def command(self, key: bytes, parts: tuple[bytes, ...], timeout_s: float, done: Callable[[Any], None]) -> None:
        """Send any command; `done` takes what hiredis parsed, or a `StoreFailure`. Called once."""
        del key  # one server has all of them
        now = self._now()
        self.connection.send(pack(parts), _AnyCommand(now + timeout_s, done), now)

    def _refuse(self, failure: StoreFailure, done: Done) -> None:
        self.failures[failure] += 1
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
            call.done(read_verdict(call.charges, reply))
            return
        if isinstance(reply, StoreFailure):
            self._count_against_breaker(reply, perf_counter() - call.started_at)
            self._refuse(reply, call.done)
            return
        self.breaker.succeed()  # an error is an answer: there is no waiting to be spared
        text = str(reply)
        if text.startswith("NOSCRIPT") and not call.retried:
            self._retry(call)
        else:
            self.last_error_reply = text
            if text.startswith("READONLY"):
                self.connection.drop()  # after a failover the name leads elsewhere
            self._refuse(StoreFailure.ERROR_REPLY, call.done)

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
        if self._reloads_under_way:
            packed = pack_charges(self._evalsha, call.charges)
            kind = _RetriedCall
        else:
            packed = pack_charges(self._eval, call.charges)
            kind = _ReloadingCall
            self._reloads_under_way += 1
            self.script_reloads_total += 1
        again = kind(call.deadline, self, call.charges, call.done, call.started_at)
        self.connection.send(packed, again, self._now())


class _AnyCommand(Command):
    """A command that is not a charge."""

    __slots__ = ("_done",)

    def __init__(self, deadline: float, done: Callable[[Any], None]) -> None:
        super().__init__(deadline)
        self._done = done

    def complete(self, reply: Any) -> None:
        self._done(reply)


class _ChargeCall(Command):
    """One decision under way."""

    __slots__ = ("charges", "done", "started_at", "store")

    retried = False
    reloads = False

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


class _RetriedCall(_ChargeCall):
    """One that is sent again, because Redis did not know the script."""

    __slots__ = ()

    retried = True


class _ReloadingCall(_RetriedCall):
    """The same, with the source."""

    __slots__ = ()

    reloads = True
