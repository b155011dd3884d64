"""What does one charge cost this process? Ours against redis-py's asyncio client: same script, same server, one run.

    python -m bench.redis_client [--quick]

CPU is this process's own (user and system), so that a server on another core does not count. Callers ask again as soon
as they are answered (closed loop).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import redis.asyncio
import uvloop

from bench.measure import Budget, Scale, alone
from sidecar.core.limits import US_PER_S, Charge, Limit, counter_key
from sidecar.edges.embedded_valkey import EmbeddedValkey
from sidecar.edges.local_store import LocalStore
from sidecar.edges.redis_connection import Command, pack
from sidecar.edges.redis_endpoint import RedisEndpoint
from sidecar.edges.redis_store import RedisStore
from sidecar.edges.scripts import charge_script

CALLERS = 64
KEYS = 1_000
PATIENCE_S = 10.0
LIMIT = Limit(name="bench", requests=100_000_000, window_us=60 * US_PER_S)
CHARGES = [Charge(LIMIT, counter_key(b"sidecar:bench:", [f"user-{n}"])) for n in range(KEYS)]
ARGUMENT = LIMIT.packed + (1).to_bytes(8, "big")


class Tally:
    """Counts answers until the time is up."""

    def __init__(self, seconds: float) -> None:
        self.answers = 0
        self.over = asyncio.get_running_loop().create_future()
        self._seconds = seconds
        self._ends_at = time.perf_counter() + seconds
        self._cpu = time.process_time()

    def more(self) -> bool:
        """Count an answer; whether to ask again."""
        self.answers += 1
        if self.answers % 64 == 0 and time.perf_counter() > self._ends_at and not self.over.done():
            self.over.set_result(None)
        return not self.over.done()

    def report(self, name: str) -> None:
        cpu_us = (time.process_time() - self._cpu) / self.answers * 1e6
        print(f"{name:<58}{self.answers / self._seconds:>12,.0f}{cpu_us:>12.1f}", flush=True)


async def measure(name: str, seconds: float, start: Callable[[Tally], Awaitable[None]]) -> None:
    tally = Tally(seconds)
    await start(tally)
    await tally.over
    tally.report(name)


def ask_store(store: RedisStore | LocalStore, charges_each: int) -> Callable[[Tally], Awaitable[None]]:
    loop = asyncio.get_running_loop()

    async def start(tally: Tally) -> None:
        def ask() -> None:
            first = tally.answers % KEYS
            charges: Sequence[Charge] = [CHARGES[(first + n) % KEYS] for n in range(charges_each)]
            store.charge(charges, loop.time() + PATIENCE_S, done)

        def done(_answer: Any) -> None:
            if tally.more():
                loop.call_soon(ask) if isinstance(store, LocalStore) else ask()

        for _ in range(CALLERS):
            ask()

    return start


class Repeated(Command):
    """A bare EVALSHA that is sent again when it is answered."""

    __slots__ = ("store", "tally")

    def __init__(self, store: RedisStore, tally: Tally) -> None:
        super().__init__(asyncio.get_running_loop().time() + PATIENCE_S)
        self.store = store
        self.tally = tally

    def send(self) -> None:
        self.waiting = True
        key = CHARGES[self.tally.answers % KEYS].storage_key
        packed = pack((b"EVALSHA", self.store.connection.script_sha, b"1", key, b"", ARGUMENT))
        self.store.connection.send(packed, self, self.deadline - PATIENCE_S)

    def complete(self, reply: Any) -> None:
        del reply
        if self.tally.more():
            self.send()


async def redis_py(tally: Tally, path: str) -> None:
    client = redis.asyncio.Redis(unix_socket_path=path, max_connections=CALLERS)
    sha = await client.script_load(charge_script())

    async def ask() -> None:
        while tally.more():
            await client.evalsha(sha, 1, CHARGES[tally.answers % KEYS].storage_key, b"", ARGUMENT)

    await asyncio.gather(*(ask() for _ in range(CALLERS)))
    await client.aclose()


async def measure_all(seconds: float) -> None:
    print(f"{f'{CALLERS} callers at a time, Unix socket, uvloop':<58}{'charges/s':>12}{'CPU us':>12}")
    with EmbeddedValkey() as valkey:
        store = RedisStore(RedisEndpoint(path=valkey.socket_path), timeout_s=PATIENCE_S)
        store.start()
        while not store.connection.connected:  # noqa: ASYNC110 - once, before anything is measured
            await asyncio.sleep(0.01)

        async def bare(tally: Tally) -> None:
            for _ in range(CALLERS):
                Repeated(store, tally).send()

        await measure("baseline: redis-py asyncio, one EVALSHA", seconds, lambda t: redis_py(t, valkey.socket_path))
        await measure("our connection, one EVALSHA", seconds, bare)
        await measure("our store, one limit (verdict, timeout, breaker)", seconds, ask_store(store, 1))
        await measure("our store, two limits", seconds, ask_store(store, 2))
        await measure("our store, ten limits", seconds, ask_store(store, 10))
        await store.close()
    await measure("local store, one limit", seconds, ask_store(LocalStore(), 1))


def main(scale: Scale) -> list[Budget]:
    """Print the table; it has no budget of its own."""
    uvloop.run(measure_all(scale.seconds / 2))
    return []


if __name__ == "__main__":
    alone(main)
