"""Children that the demo and the end-to-end tests start."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from sidecar.demo.processes import Child, StartFailedError, wait_until

SLEEPER = "import signal; print('up', flush=True); signal.pause()"


def python(log: Path, code: str) -> Child:
    return Child("child", [sys.executable, "-c", code], log)


def printed(child: Child) -> str:
    return child.log.read_text()


def test_a_child_that_ends_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    """The status and the last lines tell why it did not start; the lines before them are left out."""
    code = "import sys; [print('line', n) for n in range(100)]; sys.exit('the port is taken')"
    child = python(tmp_path / "log", code)
    with pytest.raises(StartFailedError) as raised:
        child.wait_ready(lambda: False)
    text = str(raised.value)
    assert "child ended with status 1" in text
    assert "the port is taken" in text
    assert "line 0\n" not in text


def test_a_child_that_does_not_get_ready_is_reported(tmp_path: Path) -> None:
    """Waiting has an end."""
    child = python(tmp_path / "log", SLEEPER)
    try:
        wait_until(lambda: "up" in printed(child), "the child runs")
        with pytest.raises(StartFailedError, match="is not ready after 0 s"):
            child.wait_ready(lambda: False, within_s=0)
    finally:
        assert child.stop() == -signal.SIGTERM


def test_a_command_that_cannot_be_run_is_reported(tmp_path: Path) -> None:
    """A missing program is named."""
    child = Child("child", [tmp_path / "nothing"], tmp_path / "log")
    with pytest.raises(StartFailedError, match=r"nothing: .*No such file"):
        child.wait_ready(lambda: False)


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    """Also when the parent is killed and can do nothing about it."""
    inner = (
        "import sys, signal; from pathlib import Path; from sidecar.demo.processes import Child;"
        f"child = Child('inner', [sys.executable, '-c', {SLEEPER!r}], Path({str(tmp_path / 'inner')!r}));"
        "print(child.pid, 'started', flush=True); signal.pause()"
    )
    parent = python(tmp_path / "log", inner)
    wait_until(lambda: "started" in printed(parent), "the parent has started its child")
    wait_until(lambda: "up" in (tmp_path / "inner").read_text(), "the child runs")
    pid = int(printed(parent).split()[0])
    parent.kill()

    def gone() -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
        except OSError:
            return True
        return state == b"Z"

    wait_until(gone, "the child has ended")
