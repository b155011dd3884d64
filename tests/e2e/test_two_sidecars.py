"""Two sidecars on one Redis, as processes: what stands in front of it, seen over gRPC and in the metrics."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.check import CHECK
from sidecar.demo.processes import free_port, wait_until
from sidecar.envoy.pb.ext_authz_pb2 import CheckResponse
from tests.support.deciding import check_request
from tests.support.valkey import ValkeyProcess

POLICY = """
server: {listen: "unix:GRPC"}
admin: {listen: "127.0.0.1:ADMIN"}
redis: {url: "REDIS", timeout: 100ms}
on_redis_failure: local
local_share: 0.2
limits:
  tight: {rate: 5/day, key: {constant: x}}
  shared: {rate: 100/day, key: {constant: x}}
  hot: {rate: 1000000/day, key: {constant: x}, lease: 50}
rules:
  - {name: tight, match: {path: {prefix: /tight}}, anonymous: true, limits: [tight]}
  - {name: shared, match: {path: {prefix: /shared}}, anonymous: true, limits: [shared]}
  - {name: hot, match: {path: {prefix: /hot}}, anonymous: true, limits: [hot]}
"""


class ServedSidecar:
    """A process, and a client of it."""

    def __init__(self, directory: Path, redis_url: str) -> None:
        directory.mkdir()
        self._grpc = directory / "grpc.sock"
        self._admin = f"127.0.0.1:{free_port()}"
        policy = POLICY.replace("GRPC", str(self._grpc)).replace("127.0.0.1:ADMIN", self._admin)
        (directory / "policy.yaml").write_text(policy.replace("REDIS", redis_url))
        command = [sys.executable, "-m", "sidecar", "serve", "--config", str(directory / "policy.yaml")]
        self._process = subprocess.Popen(command)
        self._channel = grpc.insecure_channel(f"unix:{self._grpc}")
        self._check = self._channel.unary_unary(CHECK, response_deserializer=CheckResponse.FromString)

    def wait_ready(self) -> None:
        wait_until(lambda: self._grpc.exists() and self._connected(), "the sidecar is connected")

    def _connected(self) -> bool:
        try:
            return self.metric("sidecar_redis_connects_total") > 0
        except OSError:
            return False

    def stop(self) -> None:
        self._channel.close()
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(20) == 0

    def admitted(self, path: str, count: int) -> int:
        """Of so many Checks, ten at a time."""
        message = check_request(path)
        with ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(lambda _: self._check(message, timeout=10), range(count)))
        return sum(answer.HasField("ok_response") for answer in answers)

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://{self._admin}/metrics", timeout=5) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            return sum(sample.value for family in families for sample in family.samples if sample.name == name)


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    server = ValkeyProcess(tmp_path_factory.mktemp("valkey"), ["--save", ""])
    server.start()
    yield server
    server.thaw()
    server.kill()


@pytest.fixture(scope="module")
def sidecars(tmp_path_factory: pytest.TempPathFactory, valkey: ValkeyProcess) -> Iterator[list[ServedSidecar]]:
    started = [ServedSidecar(tmp_path_factory.mktemp("sidecar") / "it", valkey.url) for _ in range(2)]
    for sidecar in started:
        sidecar.wait_ready()
    yield started
    valkey.thaw()
    for sidecar in started:
        sidecar.stop()


def test_denials_are_remembered(sidecars: list[ServedSidecar]) -> None:
    """Both together admit the limit; what each has heard to be exhausted it denies by itself."""
    assert sum(sidecar.admitted("/tight", 30) for sidecar in sidecars) == 5
    assert all(sidecar.metric("sidecar_deny_cache_hits_total") >= 10 for sidecar in sidecars)


def test_hot_keys_are_leased(sidecars: list[ServedSidecar]) -> None:
    """A hot key is granted ahead, and what was not needed is given back."""
    first = sidecars[0]
    first.admitted("/hot", 500)
    taken, granted = first.metric("sidecar_lease_taken_total"), first.metric("sidecar_lease_granted_total")
    assert 0 < granted <= taken
    wait_until(lambda: first.metric("sidecar_lease_held") == 0, "leases have ended")


def test_an_outage_ends_without_a_second_helping(valkey: ValkeyProcess, sidecars: list[ServedSidecar]) -> None:
    """Frozen Redis: each grants its share once. Thawed: Redis has counted it before anything else is granted."""
    before = sum(sidecar.admitted("/shared", 5) for sidecar in sidecars)
    valkey.freeze()
    alone = [sidecar.admitted("/shared", 40) for sidecar in sidecars]
    valkey.thaw()
    wait_until(lambda: not any(s.metric("sidecar_handover_counters") for s in sidecars), "nothing is owed")
    after = sum(sidecar.admitted("/shared", 100) for sidecar in sidecars)
    assert (before, alone) == (10, [20, 20])
    assert after <= 100 - before - sum(alone)
    assert sum(s.metric("sidecar_handover_cost_total") for s in sidecars) == 40
