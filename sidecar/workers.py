"""Several worker processes on one port: started, watched, restarted and stopped by a parent that serves no calls.

TCP listeners are shared through SO_REUSEPORT: the parent reserves each port without listening, every worker listens on
its own socket, and the kernel spreads connections over them. A Unix socket is bound by the parent, and the workers
accept from the one descriptor they inherit. The parent answers the admin listener for all of them, asking each over a
private socket in the run directory. Workers learn their role from one environment variable.

A worker that ends unasked is started again, after a growing pause if it did not last. Until a first worker is up, one
that ends is a failed start: the parent stops everything and fails. SIGTERM and SIGINT drain all workers; who is not
done within the grace time is killed. SIGHUP is passed on. If the parent dies, the kernel sends its workers SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from sidecar.edges.admin import AdminServer
from sidecar.edges.admin_client import AdminSilentError, get
from sidecar.edges.log import get_log
from sidecar.edges.metrics import Metrics
from sidecar.edges.worker_scrape import WorkerScrape, WorkerView
from sidecar.transport.listeners import remove_socket, socket_identity, unix_listener
from sidecar.transport.service import Address, TcpAddress, UnixAddress

ROLE_VARIABLE: Final = "SIDECAR_WORKER"

BACKOFF_S: Final = 0.1
BACKOFF_S_MAX: Final = 10.0
LASTED_S: Final = 30.0
"""A worker that ran for so long is restarted at once, as if it had never failed."""

STARTED_POLL_S: Final = 0.02
KILL_MARGIN_S: Final = 2.0
"""What a worker gets, beyond the grace time that it gives its calls, to end by itself."""

NOT_SPAWNED: Final = 127
PR_SET_PDEATHSIG: Final = 1

_log = get_log("supervisor")


class WorkerRole(msgspec.Struct, frozen=True):
    """What the parent tells a worker.

    Attributes:
        index: From 0.
        parent_pid: Whose end is to be the worker's end.
        run_directory: Private to this parent and its workers.
        ports: The real port for each TCP address that the policy gives with port 0.
        unix_fds: The listening descriptor to accept from, for each Unix address's path.
        redis_socket: Where the parent's embedded Valkey listens; "" without one.
    """

    index: int
    parent_pid: int
    run_directory: str
    ports: dict[str, int]
    unix_fds: dict[str, int]
    redis_socket: str = ""

    @property
    def admin_address(self) -> UnixAddress:
        """Where the worker must serve `/livez`, `/readyz`, `/samples` and `/policy`."""
        return UnixAddress(f"{self.run_directory}/worker-{self.index}.sock")

    @property
    def output_lock(self) -> str:
        """The file that workers lock while they write a batch to their common standard output."""
        return f"{self.run_directory}/stdout.lock"

    def listen(self, addresses: Sequence[Address]) -> tuple[Address, ...]:
        """The policy's addresses with the ports that the parent reserved."""
        return tuple(
            TcpAddress(address.host, self.ports.get(str(address), address.port))
            if isinstance(address, TcpAddress)
            else address
            for address in addresses
        )


def role_from_environment(environment: Mapping[str, str] = os.environ) -> WorkerRole | None:
    """This process's role, None if it is not a worker.

    Raises:
        msgspec.DecodeError: The variable was not set by a parent.
    """
    text = environment.get(ROLE_VARIABLE)
    return None if text is None else msgspec.json.decode(text, type=WorkerRole)


def end_with_parent(role: WorkerRole) -> None:
    """Ask the kernel for a SIGTERM when the parent dies; called first in a worker.

    Raises:
        ProcessLookupError: The parent is dead already.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != role.parent_pid:
        raise ProcessLookupError("the supervisor has ended")


@dataclass(slots=True, eq=False)
class _Worker:
    view: WorkerView
    process: asyncio.subprocess.Process | None = None
    hang_up_due: bool = False
    """A SIGHUP came while it was starting: it gets one once it runs, since it may have read the old files."""


class Supervisor:
    """Runs `count` workers until it is told to stop.

    Args:
        command: Starts a worker, such as `[sys.executable, "-m", "sidecar", "serve", "--config", FILE]`.
        count: How many.
        listen: The policy's gRPC addresses.
        admin: Where to answer for all workers.
        grace_s: What a worker gives its calls in flight when it stops.
        engine: For the metric `sidecar_build_info`.
        redis_socket: See `WorkerRole`.
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        *,
        listen: Sequence[Address],
        admin: Address,
        grace_s: float,
        engine: str = "http2",
        redis_socket: str = "",
    ) -> None:
        self._command = tuple(command)
        self._listen = tuple(listen)
        self._admin_address = admin
        self._grace_s = grace_s
        self._redis_socket = redis_socket
        self._directory = tempfile.TemporaryDirectory(prefix="sidecar-")
        path = self._directory.name
        self._workers = [_Worker(WorkerView(index, f"{path}/worker-{index}.sock")) for index in range(count)]
        self._scrape = WorkerScrape([worker.view for worker in self._workers], Metrics(engine))
        self._admin = AdminServer(self._scrape.routes())
        self._stopping = asyncio.Event()
        self._once_running = False
        self._failed = False
        self._sockets = _Listeners()

    async def run(self) -> int:
        """Start, supervise, stop; returns the exit status: 0 when every worker ended well within its time.

        Raises:
            OSError: An address cannot be bound.
        """
        with self._directory, contextlib.closing(self._sockets):
            self._sockets.bind(self._listen)
            bound = await self._admin.start(self._admin_address)
            self._handle_signals()
            _log.info("supervising", workers=len(self._workers), admin=str(bound))
            try:
                statuses = await asyncio.gather(*map(self._supervise, self._workers))
            finally:
                await self._admin.close()
        _log.info("stopped", statuses=statuses)
        return 1 if self._failed or any(statuses) else 0

    def stop(self) -> None:
        """Drain every worker, then end `run`."""
        self._stopping.set()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)

    def _hang_up(self) -> None:
        for worker in self._workers:
            if worker.process is not None and worker.view.state == "running":
                _signal(worker.process, signal.SIGHUP)
            else:
                worker.hang_up_due = True

    async def _supervise(self, worker: _Worker) -> int:
        """Keep one worker running until the end; returns its last exit status."""
        backoff_s = BACKOFF_S
        while True:
            started = time.monotonic()
            worker.view.state = "starting"
            status = await self._live_once(worker)
            if self._stopping.is_set():
                return status
            _log.error("worker_ended", worker=worker.view.index, status=status, restart_in_s=backoff_s)
            if not self._once_running:
                self._failed = True
                self.stop()
                return status
            self._scrape.retire(worker.view)
            worker.view.state = "restarting"
            backoff_s = BACKOFF_S if time.monotonic() - started >= LASTED_S else backoff_s
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff_s)
                return 0
            backoff_s = min(backoff_s * 2, BACKOFF_S_MAX)

    async def _live_once(self, worker: _Worker) -> int:
        """One worker process from its start to its end; asks it to end when everything stops."""
        role = WorkerRole(
            worker.view.index,
            os.getpid(),
            self._directory.name,
            self._sockets.ports,
            self._sockets.unix_fds,
            self._redis_socket,
        )
        _remove(worker.view.socket_path)  # a killed worker leaves it behind
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                env=os.environ | {ROLE_VARIABLE: msgspec.json.encode(role).decode()},
                pass_fds=tuple(role.unix_fds.values()),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C reaches the parent alone
            )
        except OSError as error:
            _log.error("worker_not_spawned", worker=role.index, error=str(error))
            return NOT_SPAWNED
        worker.process = process
        ended = asyncio.ensure_future(process.wait())
        started = asyncio.ensure_future(self._mark_started(worker, process))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((ended, stopping), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return ended.result()
            status = await self._end(process, ended)
            never_served = worker.view.state == "starting" and status == -signal.SIGTERM
            return 0 if never_served else status
        finally:
            started.cancel()
            stopping.cancel()
            worker.process = None

    async def _mark_started(self, worker: _Worker, process: asyncio.subprocess.Process) -> None:
        view = worker.view
        while True:
            with contextlib.suppress(AdminSilentError):
                await get(UnixAddress(view.socket_path), "/livez")
                break
            await asyncio.sleep(STARTED_POLL_S)
        view.state = "running"
        self._once_running = True
        _log.info("worker_running", worker=view.index)
        if worker.hang_up_due:
            worker.hang_up_due = False
            _signal(process, signal.SIGHUP)

    async def _end(self, process: asyncio.subprocess.Process, ended: asyncio.Future[int]) -> int:
        _signal(process, signal.SIGTERM)
        await asyncio.wait((ended,), timeout=self._grace_s + KILL_MARGIN_S)
        if not ended.done():
            _log.error("worker_killed", pid=process.pid, grace_s=self._grace_s)
            _signal(process, signal.SIGKILL)
        return await ended


class _Listeners:
    """The addresses, held by the parent: TCP ports reserved without listening, Unix sockets listening."""

    def __init__(self) -> None:
        self.ports: dict[str, int] = {}
        self.unix_fds: dict[str, int] = {}
        self._sockets: list[socket.socket] = []
        self._unix: list[tuple[UnixAddress, tuple[int, int] | None]] = []

    def bind(self, addresses: Sequence[Address]) -> None:
        """Take every address.

        Raises:
            OSError: One cannot be bound, or somebody else listens there.
        """
        for address in addresses:
            if isinstance(address, UnixAddress):
                listener = unix_listener(address)
                listener.listen(socket.SOMAXCONN)
                self.unix_fds[address.path] = listener.fileno()
                self._unix.append((address, socket_identity(address)))
                self._sockets.append(listener)
            else:
                self._sockets += self._reserve(address)

    def close(self) -> None:
        """Let every address go."""
        for held in self._sockets:
            held.close()
        for address, identity in self._unix:
            remove_socket(address, identity)

    def _reserve(self, address: TcpAddress) -> list[socket.socket]:
        reserved = []
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, _, _, place in dict.fromkeys(found):
            port = self.ports.get(str(address), place[1])
            where = (place[0], port, *place[2:])
            # Without SO_REUSEPORT first: another process that listens here is an error, not a companion.
            _bound(family, kind, where, reuse_port=False).close()
            held = _bound(family, kind, where, reuse_port=True)
            self.ports[str(address)] = held.getsockname()[1]
            reserved.append(held)
        return reserved


def _bound(family: int, kind: int, where: tuple[object, ...], *, reuse_port: bool) -> socket.socket:
    held = socket.socket(family, kind)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if reuse_port:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        held.bind(where)
    except OSError as error:
        held.close()
        raise OSError(error.errno, f"{where[0]}:{where[1]}: {error.strerror}") from error
    return held


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)
