"""Child processes that never outlive their parent, and waiting for conditions with a deadline."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

READY_WITHIN_S = 15.0
"""A child that is not ready by then is reported as failed: all of them start within a second on an idle machine."""

STOP_WITHIN_S = 10.0
"""A child that has not ended this long after SIGTERM is killed."""

LOG_TAIL_LINES = 15

_POLL_S = 0.02
_TIE = Path(__file__).with_name("tie.py")


class StartFailedError(Exception):
    """A child did not become ready; the message holds the end of its log."""


def wait_until(condition: Callable[[], bool], what: str, within_s: float = READY_WITHIN_S) -> None:
    """Poll until the condition holds.

    Raises:
        TimeoutError: It does not hold within the time; the message says what was awaited.
    """
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {within_s:g} s")
        time.sleep(_POLL_S)


def free_port() -> int:
    """A TCP port of 127.0.0.1 on which nobody listens at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Child:
    """A child process in a session of its own (Ctrl-C reaches only the parent, which stops it), its output in a file.

    Linux ends it with its parent, more exactly with the *thread* that started it: see `tie.py`.

    Args:
        command: The program's whole path, and its arguments.
    """

    def __init__(self, name: str, command: Sequence[str | Path], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-IS", _TIE, str(os.getpid()), *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; does nothing when it has ended."""
        self._process.send_signal(number)

    def wait(self, within_s: float = STOP_WITHIN_S) -> int:
        """Its exit status; negative: the signal that ended it.

        Raises:
            subprocess.TimeoutExpired: It is still running.
        """
        return self._process.wait(within_s)

    def stop(self) -> int:
        """SIGTERM, then SIGKILL if that is not enough; the exit status."""
        if self.running:
            self.signal(signal.SIGCONT)  # a stopped process would not act on SIGTERM
            self.signal(signal.SIGTERM)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL; the exit status."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def tail(self) -> str:
        """The last lines of its output."""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join(f"    {line}" for line in lines) or "    (it printed nothing)"

    def wait_ready(self, ready: Callable[[], bool], within_s: float = READY_WITHIN_S) -> None:
        """Poll until it is ready.

        Raises:
            StartFailedError: It ended, or is not ready in time.
        """
        deadline = time.monotonic() + within_s
        while not ready():
            if not self.running:
                raise StartFailedError(f"{self.name} ended with status {self.wait()}; {self.log} ends:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise StartFailedError(
                    f"{self.name} is not ready after {within_s:g} s; {self.log} ends:\n{self.tail()}"
                )
            time.sleep(_POLL_S)

    def _report(self, what: str) -> str:
        return f"{self.name} {what}; {self.log} ends:\n{self.tail()}"
