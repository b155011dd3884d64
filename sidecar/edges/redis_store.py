"""The limit store in Redis: one EVALSHA for each decision, on Redis's own clock, behind a circuit breaker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

from sidecar.core.breaker import Breaker
from sidecar.core.limits import REQUESTS_MAX, Charge, Done, LimitOutcome, StoreFailure, Verdict
from sidecar.edges.redis_connection import IN_FLIGHT_MAX, STALL_S, Command, RedisConnection, pack
from sidecar.edges.scripts import charge_script

if TYPE_CHECKING:
    from sidecar.edges.redis_endpoint import RedisEndpoint

TIMEOUT_S = 0.05
CHARGES_MAX = 256
"""Charges of one decision; more are refused as overload."""

_COST_MAX = REQUESTS_MAX + 1
"""Larger costs are sent as this: it exceeds every limit already."""

_COST_ONE = (1).to_bytes(8, "big")
_US = 1_000_000
_REPLY_INTEGERS = 5


class RedisStore:
    """A `LimitStore` on one Redis or Valkey server. Create it anywhere, `start` it in the event loop.

    Args:
        endpoint: Which server, see `redis_endpoint.parse_endpoint`.
        timeout_s: The longest that a decision waits for Redis.
        breaker: Opens when Redis stops answering.
        observe_latency: Called with the seconds that each answered decision took.
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
        in_flight_max: int = IN_FLIGHT_MAX,
        stall_s: float = STALL_S,
    ) -> None:
        script = charge_script()
        self._script = script.encode()
        self.connection = RedisConnection(
            endpoint, script, on_connected=self._connected, in_flight_max=in_flight_max, stall_s=stall_s
        )
        self._sha = self.connection.script_sha
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
        if len(charges) > CHARGES_MAX:
            self._refuse(StoreFailure.OVERLOADED, done)
        elif not self.breaker.untroubled and not self.breaker.admit(int(now * _US)):
            self._refuse(StoreFailure.CIRCUIT_OPEN, done)
        else:
            # not loop time, which uvloop keeps in whole milliseconds
            call = _ChargeCall(min(deadline, now + self._timeout_s), self, charges, done, perf_counter())
            self.connection.send(_pack(b"EVALSHA", self._sha, charges), call, now)

    def _refuse(self, failure: StoreFailure, done: Done) -> None:
        self.failures[failure] += 1
        done(failure)

    def _now(self) -> float:
        return 0.0 if self._loop is None else self._loop.time()

    def settle(self, call: _ChargeCall, reply: Any) -> None:
        """Turn what came back for a call into a verdict or a failure, and tell the breaker."""
        if call.reloads:
            self._reloads_under_way = max(self._reloads_under_way - 1, 0)
        if type(reply) is list and len(reply) == _REPLY_INTEGERS * len(call.charges):
            if not self.breaker.untroubled:
                self.breaker.succeed()
            if self.observe_latency is not None:
                self.observe_latency(perf_counter() - call.started_at)
            call.done(_verdict(call.charges, reply))
            return
        if isinstance(reply, StoreFailure):
            self._count_against_breaker(reply)
            self._refuse(reply, call.done)
            return
        self.breaker.succeed()  # an error is an answer: there is no waiting to be spared
        text = str(reply)
        if text.startswith("NOSCRIPT") and not call.retried:
            self._retry(call)
        else:
            self.last_error_reply = text
            self._refuse(StoreFailure.ERROR_REPLY, call.done)

    def _count_against_breaker(self, failure: StoreFailure) -> None:
        if failure is StoreFailure.OVERLOADED:
            self.breaker.release()  # our own bound, and no news of Redis
        else:
            self.breaker.fail(int(self._now() * _US))

    def _retry(self, call: _ChargeCall) -> None:
        """Send a charge again that provably did not happen: Redis does not know the script (restart, SCRIPT FLUSH).

        The first one brings the source with it; those behind it on the same connection find the script loaded.
        """
        again = _ChargeCall(call.deadline, self, call.charges, call.done, call.started_at)
        again.retried = True
        if self._reloads_under_way:
            packed = _pack(b"EVALSHA", self._sha, call.charges)
        else:
            packed = _pack(b"EVAL", self._script, call.charges)
            again.reloads = True
            self._reloads_under_way += 1
            self.script_reloads_total += 1
        self.connection.send(packed, again, self._now())


class _ChargeCall(Command):
    """One decision under way."""

    __slots__ = ("charges", "done", "reloads", "retried", "started_at", "store")

    def __init__(
        self, deadline: float, store: RedisStore, charges: Sequence[Charge], done: Done, started_at: float
    ) -> None:
        self.deadline = deadline
        self.waiting = True
        self.store = store
        self.charges = charges
        self.done = done
        self.started_at = started_at
        self.retried = False
        self.reloads = False

    def complete(self, reply: Any) -> None:
        self.store.settle(self, reply)


def _pack(command: bytes, script: bytes, charges: Sequence[Charge]) -> bytes:
    """EVALSHA or EVAL as lua/charge.lua wants it."""
    if len(charges) == 1:
        charge = charges[0]
        limit = charge.limit
        cost = _COST_ONE if charge.cost == 1 else min(charge.cost, _COST_MAX).to_bytes(8, "big")
        return pack((command, script, b"1", charge.key + limit.key_suffix, b"", limit.packed + cost))
    keys = [charge.storage_key for charge in charges]
    arguments = [charge.limit.packed + min(charge.cost, _COST_MAX).to_bytes(8, "big") for charge in charges]
    return pack((command, script, b"%d" % len(charges), *keys, b"", *arguments))


def _verdict(charges: Sequence[Charge], reply: list[int]) -> Verdict:
    if len(charges) == 1:
        fits, used, remaining, retry_after_us, reset_after_us = reply
        outcome = LimitOutcome(charges[0].limit, fits == 1, used, remaining, retry_after_us, reset_after_us)
        return Verdict(outcome.allowed, (outcome,))
    rows = iter(reply)
    outcomes = tuple(
        LimitOutcome(charge.limit, fits == 1, used, remaining, retry_after_us, reset_after_us)
        for charge, fits, used, remaining, retry_after_us, reset_after_us in zip(
            charges, rows, rows, rows, rows, rows, strict=True
        )
    )
    return Verdict(all(outcome.allowed for outcome in outcomes), outcomes)
