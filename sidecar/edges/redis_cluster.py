"""The limit store on a Redis Cluster: one connection and one breaker for each master, found by the counters' slots.

Charges that share a slot are one EVALSHA; others are split (redis_parts.py). MOVED and ASK are followed: they say that
nothing was executed. So does TRYAGAIN, when a slot is under way and some of a decision's counters have left already:
its charges are then sent one counter at a time. CLUSTERDOWN fails.

Which master has which slot is asked (CLUSTER SLOTS) at the start, then from time to time, and at once when there is
news: a redirection, a lost connection, an open breaker. A master that is responsible for nothing any more is left once
it owes no replies.

All commands, also those that are not hot, go over the connections of redis_connection.py: they are open and greeted
already, and a client library would need others, with their own credentials, for two commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sidecar.core.breaker import BreakerState
from sidecar.core.limits import Charge, Done, OnDenied, StoreFailure, Verdict
from sidecar.edges.redis_connection import IN_FLIGHT_MAX, AskError, RedisConnection
from sidecar.edges.redis_endpoint import Login, RedisAddress, host_port
from sidecar.edges.redis_parts import Ask, charge_parts
from sidecar.edges.redis_slots import NODES_MAX, SLOTS, Address, Topology, TopologyError, read_slots, slot_of
from sidecar.edges.redis_store import CHARGES_MAX, TIMEOUT_S, Call, RedisCounts, RedisStore

HOPS_MAX = 5
"""So often a call is sent elsewhere; more only happens when servers contradict each other."""

WAITING_MAX = 1_024
"""Calls that may wait for a connection to the master that they were redirected to."""

REFRESH_S = 15.0
REFRESH_TROUBLED_S = 0.5
"""Pause between looks at the topology while something is wrong with a master."""
REFRESH_PAUSE_S = 0.1
"""Least pause between two looks, however many redirections ask for one."""

ASK_TIMEOUT_S = 1.0
ASKED_AT_ONCE_MAX = 3
"""Connected masters that are asked before others are connected to."""

TAKING_OVER_S = 60.0
"""A master without slots is kept so long after a redirection last named it: not all servers may know yet."""

_LEAVE_WITHIN_S = 2.0


@dataclass(slots=True, eq=False)
class _Waiting:
    """Calls for a master that is being connected to; the timer is for the first deadline among them."""

    calls: list[tuple[Call, bool]] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None


class ClusterStore:
    """A `LimitStore` on a Redis or Valkey Cluster. Create it anywhere, `start` it in the event loop.

    Args:
        seeds: Where to ask for the topology at first.
        login: How to greet every server.
        timeout_s: The longest that a decision waits for Redis.
        observe_latency, on_denied: As of `RedisStore`, for each part of a decision.
        on_connection: Told of news for the log: "" and the reason, by server.
        in_flight_max: Commands that may await a reply at a time, for each master.

    Attributes:
        on_denied: As given; may be set later.
        refund: Makes the refunds; to be replaced by the `charge` of what remembers denials in front of this store.
        topology: The last one that was seen; None before.
        last_error: Why the topology could not be asked last; "" when it could.
    """

    def __init__(
        self,
        seeds: Sequence[Address],
        login: Login,
        *,
        timeout_s: float = TIMEOUT_S,
        observe_latency: Callable[[float], None] | None = None,
        on_denied: OnDenied | None = None,
        on_connection: Callable[[str], None] = lambda _reason: None,
        in_flight_max: int = IN_FLIGHT_MAX,
    ) -> None:
        self._seeds = list(seeds)
        self._login = login
        self._timeout_s = timeout_s
        self._observe_latency = observe_latency
        self._on_connection = on_connection
        self._in_flight_max = in_flight_max
        self._nodes: dict[Address, RedisStore] = {}
        self._slots: list[RedisStore | None] = [None] * SLOTS
        self._named_at: dict[Address, float] = {}
        self._waiting: dict[Address, _Waiting] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self.counts = RedisCounts()
        self.on_denied = on_denied
        self.refund: Ask = self.charge
        self.topology: Topology | None = None
        self.last_error = "not asked yet"

    @property
    def nodes(self) -> tuple[RedisStore, ...]:
        """The masters."""
        return tuple(self._nodes.values())

    @property
    def connected(self) -> bool:
        """Whether every slot has a master that is connected to."""
        return None not in self._slots and all(node.connection.connected for node in self._nodes.values())

    def detail(self) -> dict[str, object]:
        """For /readyz; holds no secret."""
        return {
            "topology": "cluster",
            "connected": self.connected,
            "slots_without_master": self._slots.count(None),
            "nodes": [node.node_detail() for node in self.nodes],
            "last_error": self.last_error,
            "last_error_reply": self.counts.last_error_reply,
        }

    def start(self) -> None:
        """Begin to look for the masters, in the background; charges fail as unreachable until that is done."""
        self._loop = asyncio.get_running_loop()
        self._watcher = self._loop.create_task(self._watch(), name="redis cluster")

    async def close(self) -> None:
        """Drop all connections; charges under way fail as unreachable."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        self._slots = [None] * SLOTS
        for address in list(self._nodes):
            self._fail_waiting(address)
            await self._nodes.pop(address).close()

    def charge(self, charges: Sequence[Charge], deadline: float, done: Done) -> None:
        """Decide all charges together, then call `done`."""
        if len(charges) == 1:
            charge = charges[0]
            node = self._slots[slot_of(charge.key + charge.limit.key_suffix)]
            if node is None:
                self._refuse(StoreFailure.UNREACHABLE, done)
            else:
                node.charge(charges, deadline, done)
            return
        if not charges:
            done(Verdict(True, ()))
            return
        if len(charges) > CHARGES_MAX:
            self._refuse(StoreFailure.OVERLOADED, done)
            return
        places: dict[int, list[int]] = {}
        for place, charge in enumerate(charges):
            places.setdefault(slot_of(charge.key + charge.limit.key_suffix), []).append(place)
        if len(places) == 1:
            (slot,) = places
            node = self._slots[slot]
            if node is None:
                self._refuse(StoreFailure.UNREACHABLE, done)
            else:
                node.charge(charges, deadline, done)
            return
        parts: list[tuple[Ask, list[int]]] = []
        for slot, each in places.items():
            node = self._slots[slot]
            parts.append((self.charge if node is None else node.charge, each))
        charge_parts(parts, charges, deadline, done, refund=self.refund, counts=self.counts)

    def _denied(self, charges: Sequence[Charge], verdict: Verdict, asked_s: float) -> None:
        if self.on_denied is not None:
            self.on_denied(charges, verdict, asked_s)

    def command(self, key: bytes, parts: tuple[bytes, ...], timeout_s: float, done: Callable[[Any], None]) -> None:
        """Send any command about a key to its master; `done` takes what hiredis parsed, or a `StoreFailure`."""
        node = self._slots[slot_of(key)]
        if node is None:
            done(StoreFailure.UNREACHABLE)
        else:
            node.command(key, parts, timeout_s, done)

    def _refuse(self, failure: StoreFailure, done: Done) -> None:
        self.counts.failures[failure] += 1
        done(failure)

    # --- redirections -------------------------------------------------------------------------------------------------

    def _redirected(self, call: Call, error: str) -> bool:
        loop = self._loop
        if loop is None or call.hops >= HOPS_MAX or call.deadline <= loop.time():
            return False
        code, _, rest = error.partition(" ")
        if code == "TRYAGAIN":
            return self._one_by_one(call)
        if code == "CLUSTERDOWN":
            self._news.set()
            return False
        target = self._named(rest, call)
        if target is None:
            return False
        slot, address = target
        node = self._nodes.get(address)
        if node is None:
            if len(self._nodes) >= NODES_MAX:
                return False
            node = self._join(address)
        if code == "MOVED" and self._slots[slot] is not node:
            self._slots[slot] = node
            self._news.set()
        self._named_at[address] = loop.time()
        self._send_to(node, address, call, asking=code == "ASK")
        return True

    def _named(self, rest: str, call: Call) -> tuple[int, Address] | None:
        """Slot and address of `MOVED 3999 127.0.0.1:6381`; without a host it is that of the server that says so."""
        slot, _, there = rest.partition(" ")
        host, _, port = there.rpartition(":")
        if not host:
            endpoint = call.store.connection.endpoint
            host = "" if endpoint is None else endpoint.host
        if not (slot.isdecimal() and int(slot) < SLOTS and port.isdecimal() and 0 < int(port) < 65_536 and host):
            return None
        return int(slot), (host.removeprefix("[").removesuffix("]"), int(port))

    def _one_by_one(self, call: Call) -> bool:
        """Some counters of a decision have left for another server, and some not: ask for each counter by itself."""
        charges: Sequence[Charge] | None = getattr(call, "charges", None)
        if charges is None:
            return False
        places: dict[bytes, list[int]] = {}
        for place, charge in enumerate(charges):
            places.setdefault(charge.key + charge.limit.key_suffix, []).append(place)
        if len(places) == 1:
            return False
        parts = [(self.charge, each) for each in places.values()]
        done: Done = call.done  # type: ignore[attr-defined]
        charge_parts(parts, charges, call.deadline, done, refund=self.refund, counts=self.counts)
        return True

    def _send_to(self, node: RedisStore, address: Address, call: Call, *, asking: bool) -> None:
        """Send it now, or when the connection, which may have just begun to be made, is there."""
        if node.connection.connected:
            call.send_to(node, asking=asking)
            return
        call.store = node  # whose breaker is to know if it takes too long
        waiting = self._waiting.setdefault(address, _Waiting())
        if len(waiting.calls) >= WAITING_MAX:
            call.complete(StoreFailure.OVERLOADED)
            return
        waiting.calls.append((call, asking))
        if self._loop is None or (waiting.timer is not None and waiting.timer.when() <= call.deadline):
            return
        if waiting.timer is not None:
            waiting.timer.cancel()
        waiting.timer = self._loop.call_at(call.deadline, self._fail_late, address)

    def _send_waiting(self, address: Address) -> None:
        waiting = self._waiting.pop(address, None)
        if waiting is None or self._loop is None:
            return
        if waiting.timer is not None:
            waiting.timer.cancel()
        now = self._loop.time()
        for call, asking in waiting.calls:
            if call.deadline <= now:
                call.complete(StoreFailure.TIMEOUT)
            else:
                call.send_to(self._nodes[address], asking=asking)

    def _fail_late(self, address: Address) -> None:
        """Calls that waited to their deadline have failed; the others wait on."""
        waiting = self._waiting.pop(address, None)
        if waiting is None or self._loop is None:
            return
        now = self._loop.time()
        late = [call for call, _ in waiting.calls if call.deadline <= now]
        left = [each for each in waiting.calls if each[0].deadline > now]
        if left:
            again_at = min(call.deadline for call, _ in left)
            self._waiting[address] = _Waiting(left, self._loop.call_at(again_at, self._fail_late, address))
        for call in late:
            call.complete(StoreFailure.TIMEOUT)

    def _fail_waiting(self, address: Address) -> None:
        waiting = self._waiting.pop(address, None)
        if waiting is None:
            return
        if waiting.timer is not None:
            waiting.timer.cancel()
        for call, _ in waiting.calls:
            call.complete(StoreFailure.UNREACHABLE)

    # --- topology -----------------------------------------------------------------------------------------------------

    def _join(self, address: Address) -> RedisStore:
        node = RedisStore(
            RedisAddress(self._login, *address),
            timeout_s=self._timeout_s,
            observe_latency=self._observe_latency,
            on_denied=self._denied,
            on_connection=partial(self._node_news, address),
            in_flight_max=self._in_flight_max,
            counts=self.counts,
            redirect=self._redirected,
        )
        self._nodes[address] = node
        node.start()
        return node

    def _node_news(self, address: Address, reason: str) -> None:
        self._on_connection(reason)
        if reason:
            self._news.set()
        else:
            self._send_waiting(address)

    def _leave(self, address: Address) -> None:
        node = self._nodes.pop(address)
        self._named_at.pop(address, None)
        self._fail_waiting(address)
        self.counts.breaker_opened_before += node.breaker.opened_total
        task = asyncio.get_running_loop().create_task(_close_when_idle(node), name=f"leave {host_port(*address)}")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _watch(self) -> None:
        while True:
            self._news.clear()
            try:
                self._adopt(await self._ask_topology())
                self.last_error = ""
            except (AskError, TopologyError) as error:
                self.last_error = str(error)
            pause_s = REFRESH_TROUBLED_S if self._troubled() else REFRESH_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._news.wait()
            await asyncio.sleep(REFRESH_PAUSE_S)

    def _troubled(self) -> bool:
        return (
            bool(self.last_error)
            or None in self._slots
            or any(
                not node.connection.connected or node.breaker.state is not BreakerState.CLOSED for node in self.nodes
            )
        )

    async def _ask_topology(self) -> Topology:
        """What the first server says that answers: one of the masters, or a replica, or a seed.

        Raises:
            AskError, TopologyError: None did; the last one's reason.
        """
        last_error: Exception = AskError("no server is known")
        masters = [(address, node) for address, node in self._nodes.items() if node.connection.connected]
        random.shuffle(masters)
        masters.sort(key=lambda each: not each[1].breaker.untroubled)
        attempts: list[tuple[Address, Callable[[], Coroutine[Any, Any, Any]]]] = [
            (address, partial(node.connection.ask, b"CLUSTER", b"SLOTS", timeout_s=ASK_TIMEOUT_S))
            for address, node in masters[:ASKED_AT_ONCE_MAX]
        ]
        asked = {address for address, _ in attempts}
        others = [*(self.topology.replicas if self.topology is not None else ()), *self._nodes, *self._seeds]
        random.shuffle(others)
        attempts += [
            (address, partial(ask_once, RedisAddress(self._login, *address), b"CLUSTER", b"SLOTS"))
            for address in dict.fromkeys(others)
            if address not in asked
        ]
        for address, attempt in attempts:
            try:
                return read_slots(await attempt(), address)
            except AskError as error:
                last_error = AskError(f"{host_port(*address)}: {error}")
            except TopologyError as error:
                last_error = TopologyError(f"{host_port(*address)}: {error}")
        raise last_error

    def _adopt(self, topology: Topology) -> None:
        """Make what was learnt effective: connect to new masters, and leave those that have become none."""
        slots: list[RedisStore | None] = [None] * SLOTS
        for first, last, address in topology.ranges:
            node = self._nodes.get(address) or self._join(address)
            slots[first : last + 1] = [node] * (last + 1 - first)
        if self.topology is not None and self.topology.ranges != topology.ranges:
            self.counts.topology_changes += 1
        self.topology = topology
        self._slots = slots
        keep = set(topology.masters)
        named_after = asyncio.get_running_loop().time() - TAKING_OVER_S
        keep.update(address for address, at in self._named_at.items() if at > named_after)
        for address in [address for address in self._nodes if address not in keep]:
            self._leave(address)


async def ask_once(address: RedisAddress, *parts: bytes) -> Any:
    """Connect, ask one command, and leave.

    Raises:
        AskError: There was no answer in `ASK_TIMEOUT_S`, or it is an error.
    """
    news = asyncio.Event()
    connection = RedisConnection(address, "", on_connected=news.set, on_disconnected=lambda _reason: news.set())
    connection.start()
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            await news.wait()
        if not connection.connected:
            raise AskError(connection.last_error)
        return await connection.ask(*parts, timeout_s=ASK_TIMEOUT_S)
    except TimeoutError:
        raise AskError(f"it did not answer within {ASK_TIMEOUT_S:g} s") from None
    finally:
        await connection.close()


async def _close_when_idle(node: RedisStore) -> None:
    try:
        async with asyncio.timeout(_LEAVE_WITHIN_S):
            while node.connection.in_flight:  # noqa: ASYNC110 - a connection that is left has no event for that
                await asyncio.sleep(0.01)
    except TimeoutError:
        return
    finally:
        await node.close()
