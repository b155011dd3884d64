"""What only the whole process can show: signals that come early, and what a worker's log lines say."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from sidecar.app import RELOADS_MAX, App
from sidecar.hang_up import EarlyHangUps
from sidecar.policy.compile import load

TIMEOUT_S = 15.0
T = TypeVar("T")

POLICY = """
server: {listen: "unix:grpc.sock", workers: %d}
admin: {listen: "unix:admin.sock"}
redis: {url: "redis://127.0.0.1:1/0", password_file: password}
audit: {destination: none}
rules: [{name: all, match: {path: {prefix: /}}, anonymous: true}]
"""


class Served:
    """`sidecar serve` whose policy names a pipe: whoever writes into it decides when the policy is read."""

    def __init__(self, directory: Path, workers: int, *, piped: bool = True) -> None:
        self.log = directory / "log"
        self._pipe = directory / "password"
        if piped:
            os.mkfifo(self._pipe)
        else:
            self._pipe.write_text("password")
        policy = written(directory, workers)
        command = [sys.executable, "-m", "sidecar", "serve", "--config", str(policy)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, env=os.environ | {"PYTHONPATH": str(Path.cwd())})

    def reading(self) -> int:
        """Wait until a process reads the policy; the pipe's end that it waits for."""
        return until(lambda: opened(self._pipe), "a process that reads the policy")

    def let_read(self) -> None:
        """Let one process read the policy."""
        give(self.reading())

    def events(self, name: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["event"] == name]


def written(directory: Path, workers: int) -> Path:
    policy = directory / "policy.yaml"
    policy.write_text(POLICY.replace("unix:", f"unix:{directory}/") % workers)
    return policy


def opened(pipe: Path) -> int | None:
    """The pipe's end to write to, None while nobody reads."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


def give(pipe: int) -> None:
    os.write(pipe, b"password")
    os.close(pipe)


def until(condition: Callable[[], T | None], what: str) -> T:
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"still waiting for {what}"
        time.sleep(0.01)
    return found


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def start(workers: int, *, piped: bool = True) -> Served:
        started.append(Served(tmp_path, workers, piped=piped))
        return started[-1]

    yield start
    for served in started:
        if served.process.poll() is None:
            served.process.kill()
            served.process.wait()


def test_a_hangup_before_serving_is_remembered(serve: Callable[..., Served]) -> None:
    """SIGHUP while the policy is read for the first time does not end the process: it reads it again once it serves."""
    served = serve(1)
    pipe = served.reading()
    served.process.send_signal(signal.SIGHUP)
    give(pipe)
    until(lambda: served.events("serving"), "the start")
    served.let_read()
    until(lambda: served.events("policy_replaced"), "the reload")
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(TIMEOUT_S) == 0


@pytest.mark.parametrize(("workers", "named"), [(1, {None}), (2, {0, 1})])
def test_log_lines_name_their_worker(serve: Callable[..., Served], workers: int, named: set[int | None]) -> None:
    """With several workers, what one of them logs carries its index; the parent's lines and a single process's none."""
    served = serve(workers, piped=False)
    until(lambda: len(served.events("serving")) == workers, "every worker")
    assert {line.get("worker") for line in served.events("serving")} == named
    assert all("worker" not in line for line in served.events("supervising"))
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(TIMEOUT_S) == 0


async def test_hangups_beyond_two_reloads_start_none(tmp_path: Path) -> None:
    """One reload under way and one to follow see all that has changed; each is kept until it is done."""
    pipe = tmp_path / "password"
    pipe.write_text("password")
    policy = written(tmp_path, 1)
    app = App(policy, load(policy, 1), {}, EarlyHangUps(), "", None)
    pipe.unlink()
    os.mkfifo(pipe)
    for started in (1, RELOADS_MAX, RELOADS_MAX):
        app._hang_up()
        assert len(app._reloads) == started
    for _ in range(RELOADS_MAX):
        give(await asyncio.to_thread(until, lambda: opened(pipe), "a reload"))
        await asyncio.wait(app._reloads, timeout=TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
    assert app.holder.accepted_total == RELOADS_MAX
    assert not app._reloads
