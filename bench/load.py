"""A load generator for unary gRPC over cleartext HTTP/2, on ngh2's client role.

Closed loop: N connections keep M calls each in flight. Open loop: calls are sent on a schedule, and latency counts from
the *intended* send time, so that a server (or a generator) that falls behind shows in the percentiles.

    python bench/load.py --address 127.0.0.1:9090 --path /pkg.Service/Method --message request.bin --seconds 5
    python bench/load.py --address unix:/run/x.sock --path /pkg.Service/Method --message request.bin --rate 20000

Prints one JSON object. As a module: `asyncio.run(closed_loop(plan, seconds))`, `open_loop(plan, rate, seconds)`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import struct
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import ngh2
import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CONNECTION_WINDOW_BYTES = 16 * 1024 * 1024
STREAM_WINDOW_BYTES = 1024 * 1024
OPEN_LOOP_TICK_S = 0.001


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to send where.

    Attributes:
        address: `host:port` or `unix:path`.
        path: The method's full path.
        messages: Request messages, used in turn over all connections; may be a sequence that makes them when asked.
        connections: How many connections.
        streams: Closed loop: calls in flight on each. Open loop: the most in flight on each; the rest waits.
        metadata: Further request headers.
        accept: Whether a response message is right; None accepts all.
    """

    address: str
    path: str
    messages: Sequence[bytes]
    connections: int = 4
    streams: int = 32
    metadata: Sequence[tuple[bytes, bytes]] = ()
    accept: Callable[[bytes], bool] | None = None


@dataclass
class Result:
    """What came back in the measured time; latencies in seconds, not sorted."""

    seconds: float = 0.0
    calls: int = 0
    wrong: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    server_cpu_s: float | None = None

    def percentile(self, share: float) -> float:
        """The latency that `share` of the calls (0 to 1) did not exceed; seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")

    def summary(self) -> dict[str, object]:
        """The figures that are printed."""
        figures: dict[str, object] = {
            "calls": self.calls,
            "per_second": round(self.calls / self.seconds) if self.seconds else 0,
            "statuses": dict(self.statuses),
            "wrong": self.wrong,
            "p50_ms": round(self.percentile(0.5) * 1e3, 3),
            "p99_ms": round(self.percentile(0.99) * 1e3, 3),
            "p999_ms": round(self.percentile(0.999) * 1e3, 3),
        }
        if self.server_cpu_s is not None and self.calls:
            figures["server_cpu_us_per_call"] = round(self.server_cpu_s / self.calls * 1e6, 2)
        return figures


class Caller(asyncio.Protocol):
    """One connection. `refill(caller)` is called after each turn and may `send`."""

    def __init__(self, plan: Plan, bodies: Iterator[bytes], result: Result, refill: Callable[[Caller], None]) -> None:
        self._result = result
        self._refill = refill
        self._accept = plan.accept
        authority = b"localhost" if plan.address.startswith("unix:") else plan.address.encode()
        self._headers = (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", plan.path.encode()),
            (b":authority", authority),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            *plan.metadata,
        )
        self._bodies = bodies
        self._h2 = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration(peer_max_concurrent_streams=plan.streams))
        self._since: dict[int, float] = {}
        self._bytes: dict[int, bytes] = {}
        self.lost = False
        self._transport: asyncio.Transport

    @property
    def in_flight(self) -> int:
        return len(self._since)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._h2.initiate_connection({ngh2.Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES})
        self._h2.set_local_window_size(CONNECTION_WINDOW_BYTES)
        self._refill(self)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.lost = True
        if self._since:
            self._result.statuses["connection lost"] += len(self._since)
            self._since.clear()

    def send(self, intended: float) -> None:
        """Queue one call whose latency counts from `intended`."""
        h2 = self._h2
        stream_id = h2.send_request(self._headers)
        h2.send_data(stream_id, next(self._bodies), end_stream=True)
        self._since[stream_id] = intended

    def flush(self) -> None:
        if not self.lost:
            self._transport.write(self._h2.data_to_send())

    def data_received(self, data: bytes) -> None:
        self._h2.receive_data(data)
        now = time.perf_counter()
        since, result, accept = self._since, self._result, self._accept
        for event in self._h2.events():
            if isinstance(event, ngh2.StreamClosed):
                begun = since.pop(event.stream_id, None)
                if begun is not None:
                    result.statuses["reset"] += 1
            elif isinstance(event, ngh2.DataReceived):
                if accept is not None:
                    stream_id = event.stream_id
                    self._bytes[stream_id] = self._bytes.get(stream_id, b"") + event.data
            elif isinstance(event, ngh2.TrailersReceived) or (
                isinstance(event, ngh2.ResponseReceived) and event.end_stream
            ):
                self._answered(event.stream_id, event.headers, now)
        self._refill(self)
        self.flush()

    def _answered(self, stream_id: int, headers: tuple[tuple[bytes, bytes], ...], now: float) -> None:
        result = self._result
        begun = self._since.pop(stream_id, None)
        if begun is None:
            return
        result.calls += 1
        result.latencies.append(now - begun)
        if headers[0] == (b"grpc-status", b"0"):
            result.statuses["0"] += 1
        else:
            fields = dict(headers)
            result.statuses[fields.get(b"grpc-status", b"http " + fields.get(b":status", b"")).decode()] += 1
        if self._accept is not None and not self._accept(self._bytes.pop(stream_id, b"")[5:]):
            result.wrong += 1

    def close(self) -> None:
        self._since.clear()
        if not self.lost:
            self._transport.close()


def _framed(messages: Sequence[bytes]) -> Iterator[bytes]:
    """The messages with their length prefixes, for ever."""
    while True:
        for message in messages:
            yield struct.pack(">BI", 0, len(message)) + message


async def _connect(plan: Plan, result: Result, refill: Callable[[Caller], None]) -> list[Caller]:
    loop = asyncio.get_running_loop()
    bodies = _framed(plan.messages)
    callers = []
    for _ in range(plan.connections):
        if plan.address.startswith("unix:"):
            _, caller = await loop.create_unix_connection(
                lambda: Caller(plan, bodies, result, refill), plan.address.removeprefix("unix:")
            )
        else:
            host, _, port = plan.address.rpartition(":")
            _, caller = await loop.create_connection(lambda: Caller(plan, bodies, result, refill), host, int(port))
        callers.append(caller)
    return callers


def process_cpu_s(pid: int) -> float:
    """User and system CPU time of a process so far, in seconds (proc(5): fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def closed_loop(plan: Plan, seconds: float, *, warm_up_s: float = 0.5, server_pid: int | None = None) -> Result:
    """Keep `plan.streams` calls in flight on each connection for `seconds`."""
    stopped = False
    result = Result()

    def refill(caller: Caller) -> None:
        if not stopped:
            now = time.perf_counter()
            for _ in range(plan.streams - caller.in_flight):
                caller.send(now)

    callers = await _connect(plan, result, refill)
    await asyncio.sleep(warm_up_s)
    await _measure(result, seconds, server_pid)
    stopped = True
    for caller in callers:
        caller.close()
    return result


async def open_loop(
    plan: Plan, rate: float, seconds: float, *, warm_up_s: float = 0.5, server_pid: int | None = None
) -> Result:
    """Send `rate` calls a second, evenly spaced, over all connections in turn, for `seconds`."""
    result = Result()
    waiting: deque[float] = deque()

    def refill(caller: Caller) -> None:
        while waiting and caller.in_flight < plan.streams:
            caller.send(waiting.popleft())

    callers = await _connect(plan, result, refill)
    loop = asyncio.get_running_loop()
    begin = time.perf_counter()
    sent = turn = 0
    stopped = False

    def tick() -> None:
        nonlocal sent, turn
        if stopped:
            return
        due = int((time.perf_counter() - begin) * rate)
        waiting.extend(begin + number / rate for number in range(sent, due))
        sent = due
        for offset in range(len(callers)):
            if not waiting:
                break
            caller = callers[(turn + offset) % len(callers)]
            refill(caller)
            caller.flush()
        turn += 1
        loop.call_later(OPEN_LOOP_TICK_S, tick)

    tick()
    await asyncio.sleep(warm_up_s)
    await _measure(result, seconds, server_pid)
    stopped = True
    result.statuses["never sent"] = len(waiting)
    for caller in callers:
        caller.close()
    return result


async def _measure(result: Result, seconds: float, server_pid: int | None) -> None:
    """Forget the warm-up, then let the measured time pass."""
    result.calls = result.wrong = 0
    result.statuses.clear()
    result.latencies.clear()
    cpu = process_cpu_s(server_pid) if server_pid is not None else 0.0
    begin = time.perf_counter()
    await asyncio.sleep(seconds)
    result.seconds = time.perf_counter() - begin
    if server_pid is not None:
        result.server_cpu_s = process_cpu_s(server_pid) - cpu


def run(main: object) -> Result:
    """Run one of the loops on uvloop."""
    result: Result = uvloop.run(main)  # type: ignore[arg-type]
    return result


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True, help="host:port or unix:path")
    parser.add_argument("--path", required=True, help="/package.Service/Method")
    parser.add_argument("--message", action="append", default=[], help="file with a request message; may be repeated")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=float, help="calls a second (open loop); without it, closed loop")
    parser.add_argument("--server-pid", type=int, help="also report this process's CPU per call")
    chosen = parser.parse_args()
    plan = Plan(
        address=chosen.address,
        path=chosen.path,
        messages=[Path(name).read_bytes() for name in chosen.message] or [b""],
        connections=chosen.connections,
        streams=chosen.streams,
    )
    if chosen.rate is None:
        result = run(closed_loop(plan, chosen.seconds, server_pid=chosen.server_pid))
    else:
        result = run(open_loop(plan, chosen.rate, chosen.seconds, server_pid=chosen.server_pid))
    print(json.dumps(result.summary()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
