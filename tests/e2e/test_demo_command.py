"""`python -m sidecar.demo`, as `make run` and `make demo` start it."""

from __future__ import annotations

import re
import shutil
import signal
import sys
from pathlib import Path

import pytest

from sidecar.demo.client import Client, Reply
from sidecar.demo.issuer import DemoIssuer
from sidecar.demo.processes import Child, wait_until
from sidecar.demo.scenarios import scenarios

WITHIN_S = 60.0


def demo(log: Path, *arguments: str) -> Child:
    return Child("demo", [sys.executable, "-m", "sidecar.demo", *arguments], log)


def processes() -> dict[int, int]:
    """The parent of each process that runs (not of those that ended and were not yet waited for)."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (entry / "stat").read_bytes().rpartition(b")")[2].split()[:2]
        except OSError:
            continue
        if state != b"Z":
            parents[int(entry.name)] = int(parent)
    return parents


def descendants(pid: int) -> set[int]:
    found = {pid}
    parents = processes()
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def test_once_ends_well_and_leaves_nothing(tmp_path: Path) -> None:
    """`make demo` prints a row for each scenario and ends with 0."""
    child = demo(tmp_path / "log", "--once")
    status = child.wait(WITHIN_S)
    output = child.log.read_text()
    assert status == 0, output
    assert output.count("✓") >= 12
    assert "✗" not in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stays_up_until_a_signal_and_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    """It serves until it is told to end; even when it is killed, Envoy, Sidecar and Valkey end with it."""
    child = demo(tmp_path / "log")
    try:
        child.wait_ready(lambda: "Ctrl-C stops everything" in child.log.read_text(), WITHIN_S)
        output = child.log.read_text()
        port = int(re.search(r"envoy +http://127\.0\.0\.1:(\d+)", output).group(1))
        token_file = Path(re.search(r"\$\(cat ([^)]+)\)", output).group(1))
        token = token_file.read_text()
        with Client(port) as client:
            assert client.request("GET", "/orders/7", [("authorization", f"Bearer {token}")]).status == 200
        started = descendants(child.pid)
        assert len(started) >= 3
        child.signal(number)
        status = child.wait(WITHIN_S)
    finally:
        child.stop()
    assert status == {signal.SIGINT: 0, signal.SIGTERM: 128 + signal.SIGTERM}.get(number, -number)
    if number == signal.SIGKILL:
        shutil.rmtree(token_file.parent)  # which nobody was left to do
    assert not token_file.parent.exists()
    wait_until(lambda: not started & processes().keys(), "every process has ended")


def test_two_run_beside_each_other(tmp_path: Path) -> None:
    """Taken ports are no obstacle."""
    first, second = demo(tmp_path / "first", "--once"), demo(tmp_path / "second", "--once")
    assert (first.wait(WITHIN_S), second.wait(WITHIN_S)) == (0, 0), first.tail() + second.tail()


def test_a_wrong_answer_is_told_apart() -> None:
    """No scenario is content with an empty answer of the right status, nor with the right answer of a wrong status."""
    issuer = DemoIssuer().start()
    rows = scenarios(issuer)
    issuer.stop()
    for row in rows:
        assert row.differences(Reply(row.status, (), b""))
        assert row.differences(Reply(204, (), b""))
