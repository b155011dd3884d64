"""The published keys, as a running sidecar serves them: fetched, rotated, and the same from every worker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sidecar.edges.admin_client import AdminSilentError, get
from sidecar.edges.internal_tokens import JWKS_PATH
from sidecar.transport.service import UnixAddress
from tests.support.internal_keys import write_keys

TIMEOUT_S = 20.0

POLICY = """
server: {{listen: "unix:{directory}/grpc.sock", workers: {workers}}}
admin: {{listen: "unix:{directory}/admin.sock"}}
audit: {{destination: none}}
internal_tokens: {{issuer: "https://sidecar.internal", audiences: [upstreams], keys: keys}}
rules: [{{name: all, match: {{path: {{prefix: /}}}}, anonymous: true}}]
"""


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def served(request, tmp_path):
    write_keys(tmp_path / "keys", "2026-01-01.pem")
    policy = tmp_path / "sidecar.yaml"
    policy.write_text(POLICY.format(directory=tmp_path, workers=request.param))
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-m", "sidecar", "serve", "--config", str(policy)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, env=environment)
    yield tmp_path
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(TIMEOUT_S) == 0
    finally:
        process.kill()
        process.wait()


async def published(directory, count):
    """The key set, once it has so many keys."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            status, body = await get(UnixAddress(f"{directory}/admin.sock"), JWKS_PATH)
        except AdminSilentError:
            status, body = 0, b""
        if status == 200 and len(keys := json.loads(body)["keys"]) == count:
            return keys
        await asyncio.sleep(0.02)
    raise AssertionError(f"no set of {count} keys: {status} {body!r}")


async def test_a_new_key_is_published_before_it_signs_and_without_a_restart(served):
    """Whoever puts a key into the directory sees it at `/.well-known/jwks.json`, with nothing private of it."""
    [first] = await published(served, 1)
    write_keys(served / "keys", "2999-01-01.pem")
    keys = await published(served, 2)
    assert keys[0] == first
    assert all(set(key) == {"kty", "crv", "x", "kid", "use", "alg"} for key in keys)


async def test_a_bad_key_changes_nothing(served):
    """The keys in use stay in use, and `/readyz` says what is wrong without quoting it."""
    [first] = await published(served, 1)
    (served / "keys" / "2999-01-01.pem").write_text("hunter2")
    deadline = time.monotonic() + TIMEOUT_S
    text = ""
    while "holds no private key in PEM" not in text and time.monotonic() < deadline:
        text = (await get(UnixAddress(f"{served}/admin.sock"), "/readyz"))[1].decode()
        await asyncio.sleep(0.02)
    assert "2999-01-01.pem holds no private key in PEM" in text
    assert "hunter2" not in text + (served / "log").read_text()
    assert await published(served, 1) == [first]
