"""What looking an API key up costs as keys become many, and what a sidecar remembers of them.

    python -m bench.api_keys

In one process, on a Valkey of its own that holds 1,000 and then 1,000,000 keys. In each row 20,000 keys are shown that
are not remembered (the thousand over and over), 64 at a time: each costs a look-up in Redis, two HMACs, a principal.
Beside it keys that are remembered, keys that do not exist, and what a remembered key takes of the process's memory.

Budget: a look-up among a million keys costs at most 1.3 times the CPU time of one among a thousand.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import socket
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from time import process_time_ns
from typing import Any

from bench.measure import Budget, Scale, alone
from sidecar.core.api_key_cache import KnownKeys
from sidecar.core.api_key_format import ALPHABET, KEY_ID_CHARS, SECRET_CHARS, key_digest, write_key
from sidecar.core.api_key_records import Peppers
from sidecar.core.api_keys import ApiKeyMethod, Keyring, NeedApiKey
from sidecar.core.context import RequestContext
from sidecar.core.credentials import HeaderPlace
from sidecar.core.principal import Principal
from sidecar.edges.api_key_engine import ApiKeyEngine
from sidecar.edges.api_key_store import RedisKeyStore
from sidecar.edges.embedded_valkey import EmbeddedValkey
from sidecar.edges.redis_endpoint import RedisEndpoint
from sidecar.edges.redis_store import RedisStore

FLAT = 1.3
FEW = 1_000
REMEMBERED = 10_000
AT_ONCE = 64
VALKEY_MEMORY_MAX = "2gb"
BATCH = 2_000
SHOWN = 2 * REMEMBERED

PEPPERS = Peppers({1: b"p" * 32})
REQUEST = RequestContext(request_id="1", method="GET", host="api.example.com", path="/")
FOREVER_US = 2**62

_random = random.Random(1)


def new_keys(count: int) -> list[str]:
    def some(chars: int) -> str:
        return "".join(_random.choices(ALPHABET, k=chars))

    return [write_key("acme_live", some(KEY_ID_CHARS), some(SECRET_CHARS)) for _ in range(count)]


def records(keys: Sequence[str], fillers: int) -> Iterator[tuple[str, bytes]]:
    """Ids and records: of keys that will be shown, and as many more as are wanted."""
    usual = {"owner": "customer", "created_at": "2026-01-01T00:00:00Z", "scopes": ["orders:read"], "tier": "gold"}
    for key in keys:
        key_id = key.rsplit("_", 2)[1]
        yield key_id, json.dumps({"id": key_id, "hash": PEPPERS.hash(key_digest(key)), **usual}).encode()
    for number in range(fillers):
        key_id = f"{number:012}"
        yield key_id, json.dumps({"id": key_id, "hash": f"1:{number:064x}", **usual}).encode()


def fill(path: str, store: RedisKeyStore, pairs: Iterator[tuple[str, bytes]]) -> None:
    """Put records into Redis, many in one write."""
    with socket.socket(socket.AF_UNIX) as valkey, valkey.makefile("rb") as replies:
        valkey.settimeout(60)
        valkey.connect(path)
        while batch := list(islice(pairs, BATCH)):
            packed = []
            for key_id, record in batch:
                name = store.records_key(key_id)
                parts = (b"HSET", name, key_id.encode(), record)
                packed.append(b"*4\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts))
            valkey.sendall(b"".join(packed))
            for _ in batch:
                assert replies.readline().startswith(b":")


class Shown:
    """Shows keys as the service does: what is needed is looked up, and the method asked again."""

    def __init__(self, store: RedisStore) -> None:
        self.ring = Keyring(
            name="bench", family="acme_live", peppers=PEPPERS, known=KnownKeys(REMEMBERED, FOREVER_US, FOREVER_US)
        )
        self.engine = ApiKeyEngine(store, "bench", [self.ring], timeout_s=5.0)
        self.method = ApiKeyMethod((self.ring,), HeaderPlace("x-api-key"))
        self.waited_us: list[float] = []
        self.proved = 0

    async def all(self, keys: Sequence[str]) -> float:
        """CPU time in microseconds for each key."""
        began_ns = process_time_ns()
        waiting = iter(keys)
        await asyncio.gather(*(self._one_after_another(waiting) for _ in range(AT_ONCE)))
        return (process_time_ns() - began_ns) / 1000 / len(keys)

    async def _one_after_another(self, keys: Iterator[str]) -> None:
        loop = asyncio.get_running_loop()
        for key in keys:
            began = time.perf_counter()
            result: Any = self.method.prove(key, REQUEST, {}, time.time_ns() // 1000)
            if isinstance(result, NeedApiKey):
                found: asyncio.Future[Any] = loop.create_future()
                self.engine.ensure(result, loop.time() + 5, found.set_result)
                findings = {result.key: await found}
                result = self.method.prove(key, REQUEST, findings, time.time_ns() // 1000)
            self.waited_us.append((time.perf_counter() - began) * 1e6)
            self.proved += isinstance(result, Principal)


async def row(path: str, name: str, keys: Sequence[str]) -> float:
    """Look all of them up, show some again, show some that do not exist; what a look-up costs."""
    store = RedisStore(RedisEndpoint(path=path), timeout_s=5.0)
    store.start()
    while not store.connected:  # noqa: ASYNC110 - it sets no event
        await asyncio.sleep(0.01)
    before = resident_bytes()
    shown = Shown(store)
    passes = max(1, SHOWN // len(keys))
    cold_us = 0.0
    for _ in range(passes):
        for key in keys:
            shown.ring.known.forget(key.rsplit("_", 2)[1])
        cold_us += await shown.all(keys) / passes
    wrong = len(keys) * passes - shown.proved
    shown.waited_us.sort()
    p50, p99 = (shown.waited_us[int(len(shown.waited_us) * share)] for share in (0.5, 0.99))
    shown.waited_us.clear()
    warm_us = await shown.all(keys[-REMEMBERED // 2 :])
    unknown_us = await shown.all(new_keys(REMEMBERED // 2))
    grown = (resident_bytes() - before) / max(1, len(shown.ring.known))
    print(
        f"{name:16}{cold_us:11.1f}{p50:11.0f}{p99:11.0f}{warm_us:11.2f}{unknown_us:11.1f}{len(shown.ring.known):11,}"
        f"{grown / 1024:11.1f}" + (f"  WRONG: {wrong} were refused" if wrong else "")
    )
    await store.close()
    return cold_us


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def _main(scale: Scale) -> list[Budget]:
    costs: list[float] = []
    titles = ("cold us", "p50 us", "p99 us", "warm us", "unknown", "remembered", "KiB each")
    print(f"{'keys in Redis':16}" + "".join(f"{title:>11}" for title in titles))
    for count in (min(FEW, scale.counters // 2), scale.counters):
        keys = new_keys(min(SHOWN, count))
        with EmbeddedValkey(VALKEY_MEMORY_MAX) as valkey:
            store = RedisKeyStore(RedisStore(RedisEndpoint(path=valkey.socket_path)), "bench", "bench")
            fill(valkey.socket_path, store, records(keys, count - len(keys)))
            costs.append(await row(valkey.socket_path, f"{count:,}", keys))
    return [Budget(what="look-up among a million API keys against a thousand", figure=costs[1] / costs[0], unit="x",
                   at_most=FLAT)]  # fmt: skip


def main(scale: Scale) -> list[Budget]:
    """Print the table."""
    return asyncio.run(_main(scale))


if __name__ == "__main__":
    alone(main)
