"""`sidecar ratelimit` as a process: started from variables alone, on the reference's ports and paths."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from sidecar.demo.client import fetch
from sidecar.demo.processes import free_port, wait_until
from tests.support.certificates import make_certificates
from tests.support.ratelimit_process import SHOP, RateLimitProcess, request
from tests.support.valkey import ValkeyProcess

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    valkey = ValkeyProcess(tmp_path_factory.mktemp("valkey"))
    valkey.start()
    yield valkey
    valkey.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, valkey: ValkeyProcess) -> Iterator[RateLimitProcess]:
    """One process for all tests that do it no harm."""
    prometheus = str(free_port())
    process = RateLimitProcess(
        tmp_path_factory.mktemp("ratelimit"),
        REDIS_URL=f"127.0.0.1:{valkey.port}",
        USE_PROMETHEUS="true",
        USE_STATSD="false",
        PROMETHEUS_ADDR=f"127.0.0.1:{prometheus}",
        PROMETHEUS_PATH="/stats/prometheus",
        TRACING_ENABLED="true",
        STATSD_HOST="statsd",
        STATSD_PORT="8125",
        LIMIT_RESPONSE_HEADERS_ENABLED="true",
        LIMIT_LIMIT_HEADER="x-limit",
    )
    process.start()
    yield process
    assert process.stop() == 0


def started(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    environment = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)


def serving(process: RateLimitProcess, name: str = "ratelimit") -> bytes:
    """What the gRPC health service says of a name."""
    with grpc.insecure_channel(f"127.0.0.1:{process.grpc}") as channel:
        check = channel.unary_unary(HEALTH_CHECK)
        return check(b"\x0a" + bytes([len(name)]) + name.encode(), timeout=10, wait_for_ready=True)


def test_json_answers_as_grpc_does(shared: RateLimitProcess) -> None:
    """200 with the statuses within the limit, 429 over it; fields and names as protobuf's JSON mapping has them."""
    user = request("shop", ("user", "ann"))
    first, second, third = (shared.json(user) for _ in range(3))
    assert [first.status, second.status, third.status] == [200, 200, 429]
    assert first.header("content-type") == "application/json"
    answer = first.json()
    assert answer["overallCode"] == "OK"
    (status,) = answer["statuses"]
    assert status["currentLimit"] == {"requestsPerUnit": 2, "unit": "HOUR"}
    assert status["limitRemaining"] == 1
    assert status["durationUntilReset"].endswith("s")
    assert {"key": "x-limit", "value": "2"} in answer["responseHeadersToAdd"]
    assert third.json()["overallCode"] == "OVER_LIMIT"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"nope": 1}', b'{"domain": 7}', b"\xff", b'{"domain":"shop"}', b'{"descriptors":[{}]}'],
    ids=["empty", "torn", "list", "unknown", "type", "bytes", "no-descriptors", "no-domain"],
)
def test_json_refuses_what_is_no_request(shared: RateLimitProcess, body: bytes) -> None:
    """400 and one line that says why, for bad JSON and for requests that cannot be decided."""
    reply = shared.json(body)
    assert reply.status == 400
    assert reply.body.count(b"\n") == 1


def test_json_takes_post_alone_and_bodies_of_a_bounded_size(shared: RateLimitProcess) -> None:
    """405 with the method that is accepted; 413 above a mebibyte."""
    reply = fetch(shared.http, "/json")
    assert reply is not None
    assert (reply.status, reply.header("allow")) == (405, "POST")
    filler = json.dumps({"domain": "x" * 100}).encode()
    body = filler + b" " * (1024 * 1024 - len(filler))
    assert shared.json(body).status == 400
    assert shared.json(body + b" ").status == 413


def test_health_is_told_in_both_ways(shared: RateLimitProcess) -> None:
    """/healthcheck is 200 OK, and the gRPC health service knows `ratelimit` and the server."""
    reply = fetch(shared.http, "/healthcheck")
    assert reply is not None
    assert (reply.status, reply.body) == (200, b"OK")
    assert serving(shared) == serving(shared, "") == SERVING


def test_the_debug_port_prints_the_limits(shared: RateLimitProcess) -> None:
    """/rlconfig has a line for each limit, as the reference prints it; / lists what there is."""
    assert shared.text("/rlconfig").splitlines() == [
        "shop.user: unit=HOUR requests_per_unit=2, shadow_mode: false, quota_mode: false",
        "shop.path_/slow: unit=MINUTE requests_per_unit=1, shadow_mode: true, quota_mode: false",
        "shop.path_/slow.user: unit=DAY requests_per_unit=4, shadow_mode: false, quota_mode: true",
        "shop.free: unit=UNKNOWN requests_per_unit=0, shadow_mode: false, quota_mode: false",
    ]
    assert "/rlconfig: print out the currently loaded configuration for debugging" in shared.text("/").splitlines()


def test_statistics_have_the_references_names(shared: RateLimitProcess) -> None:
    """/stats shows a limit's hits as `ratelimit.service.rate_limit.DOMAIN.PATH.STAT`."""
    shared.json(request("shop", ("path", "/slow"), ("user", "eve")))
    line = "ratelimit.service.rate_limit.shop.path_/slow.user.total_hits: 1"
    assert line in shared.text("/stats").splitlines()


def test_metrics_are_scraped_where_prometheus_looks(shared: RateLimitProcess) -> None:
    """PROMETHEUS_ADDR and PROMETHEUS_PATH serve what the debug port serves at /metrics."""
    port = int(shared.variables["PROMETHEUS_ADDR"].rpartition(":")[2])
    reply = fetch(port, "/stats/prometheus")
    assert reply is not None
    assert reply.status == 200
    assert b"sidecar_ratelimit_total" in reply.body
    assert b"ratelimit_service_total_requests" in reply.body
    assert "sidecar_ratelimit_total" in shared.text("/metrics")


def test_what_is_not_supported_is_named_at_start(shared: RateLimitProcess) -> None:
    """Each variable that has no effect is in a warning with its reason; one that asks for nothing is not."""
    warned = {name: event["why"] for event in shared.events("not_supported") for name in event["variables"]}
    assert set(warned) == {"TRACING_ENABLED", "STATSD_HOST"}
    assert all(warned.values())


def test_a_changed_file_is_loaded_and_a_bad_one_is_not(tmp_path: Path, valkey: ValkeyProcess) -> None:
    """A new limit shows within moments; a fault keeps what was loaded, and is logged with its line."""
    process = RateLimitProcess(tmp_path, REDIS_URL=f"127.0.0.1:{valkey.port}").start()
    try:
        file = process.files / "shop.yaml"
        file.write_text(SHOP.replace("requests_per_unit: 2", "requests_per_unit: 7"))
        wait_until(lambda: "shop.user: unit=HOUR requests_per_unit=7" in process.text("/rlconfig"), "the reload")
        file.write_text(SHOP.replace("unit: hour", "unit: fortnight"))
        wait_until(lambda: bool(process.events("policy_refused")), "the refusal")
        (event,) = process.events("policy_refused")
        assert "shop.yaml:5: " in event["faults"][0]
        assert "fortnight" in event["faults"][0]
        assert "requests_per_unit=7" in process.text("/rlconfig")
    finally:
        process.stop()


def test_it_serves_tls_and_renewed_certificates(tmp_path: Path, valkey: ValkeyProcess) -> None:
    """GRPC_SERVER_USE_TLS and a client's certificate that is asked for by name; files that change are used."""
    issued = make_certificates(tmp_path, "localhost")
    process = RateLimitProcess(
        tmp_path / "tls",
        REDIS_URL=f"127.0.0.1:{valkey.port}",
        GRPC_SERVER_USE_TLS="true",
        GRPC_SERVER_TLS_CERT=str(issued.server),
        GRPC_SERVER_TLS_KEY=str(issued.server_key),
        GRPC_CLIENT_TLS_CACERT=str(issued.ca),
        GRPC_CLIENT_TLS_SAN="client.example",
    ).start()
    try:
        read = [path.read_bytes() for path in (issued.ca, issued.client_key, issued.client)]
        with grpc.secure_channel(f"localhost:{process.grpc}", grpc.ssl_channel_credentials(*read)) as channel:
            answer = channel.unary_unary(HEALTH_CHECK)(b"\x0a\x09ratelimit", timeout=10, wait_for_ready=True)
        assert answer == SERVING
        issued.server.write_bytes(issued.server.read_bytes() + b"\n")
        wait_until(lambda: bool(process.events("certificate_renewed")), "the renewal")
    finally:
        process.stop()


def test_it_is_unhealthy_until_redis_answers(tmp_path: Path) -> None:
    """Without Redis it serves, says NOT_SERVING and 500, and answers requests with an error; later it recovers."""
    valkey = ValkeyProcess(tmp_path / "valkey")
    process = RateLimitProcess(tmp_path, REDIS_URL=f"127.0.0.1:{valkey.port}").start(healthy=False)
    try:
        assert not process.healthy()
        assert serving(process) == NOT_SERVING
        assert process.json(request("shop", ("user", "ann"))).status == 400
        valkey.start()
        wait_until(process.healthy, "health")
        assert serving(process) == SERVING
    finally:
        process.stop()
        valkey.stop()


def test_health_follows_redis_where_that_is_asked_for(tmp_path: Path) -> None:
    """REDIS_HEALTH_CHECK_ACTIVE_CONNECTION: unhealthy once Redis is gone; without it a lost Redis changes nothing."""
    valkey = ValkeyProcess(tmp_path / "valkey")
    valkey.start()
    url = f"127.0.0.1:{valkey.port}"
    strict = RateLimitProcess(tmp_path / "strict", REDIS_URL=url, REDIS_HEALTH_CHECK_ACTIVE_CONNECTION="true")
    lenient = RateLimitProcess(tmp_path / "lenient", REDIS_URL=url)
    try:
        strict.start()
        lenient.start()
        valkey.stop()
        wait_until(lambda: not strict.healthy(), "the failure")
        assert serving(strict) == NOT_SERVING
        assert lenient.healthy()
    finally:
        strict.stop()
        lenient.stop()


def test_it_starts_without_a_configuration_where_that_is_asked_for(tmp_path: Path, valkey: ValkeyProcess) -> None:
    """HEALTHY_WITH_AT_LEAST_ONE_CONFIG_LOADED: an empty directory is unhealthy, and errors; a file mends it."""
    url = f"127.0.0.1:{valkey.port}"
    process = RateLimitProcess(tmp_path, REDIS_URL=url, HEALTHY_WITH_AT_LEAST_ONE_CONFIG_LOADED="true")
    file = process.files / "shop.yaml"
    file.unlink()
    process.start(healthy=False)
    try:
        wait_until(lambda: bool(process.events("redis_connected")), "Redis")
        assert not process.healthy()
        assert b"no rate limit configuration loaded" in process.json(request("shop", ("user", "ann"))).body
        file.write_text(SHOP)
        wait_until(process.healthy, "health")
        assert process.json(request("shop", ("user", "bob"))).status == 200
    finally:
        process.stop()


def test_draining_is_unhealthy(tmp_path: Path, valkey: ValkeyProcess) -> None:
    """After SIGTERM it ends with status 0, and its last word on health is a failure or silence."""
    process = RateLimitProcess(tmp_path, REDIS_URL=f"127.0.0.1:{valkey.port}").start()
    process.child.signal(signal.SIGTERM)
    wait_until(lambda: not process.healthy(), "the failure")
    assert process.child.wait() == 0


def test_every_bad_variable_is_named_at_once(tmp_path: Path) -> None:
    """Exit 1, and a line for each fault: the variable, the value, and what is accepted; no secret is repeated."""
    done = started(
        [sys.executable, "-m", "sidecar", "ratelimit"],
        GRPC_PORT="tcp://10.0.0.1:80",
        LOG_LEVEL="loud",
        SHADOW_MODE="maybe",
        REDIS_AUTH="pass\tword",
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["GRPC_PORT", "LOG_LEVEL", "REDIS_AUTH", "SHADOW_MODE"]
    assert "'tcp://10.0.0.1:80' is not a whole number; a whole number from 0 to 65535" in lines[0]
    assert "word" not in done.stderr


def test_a_directory_is_checked_without_serving(tmp_path: Path) -> None:
    """`sidecar check --ratelimit DIR` prints what it found, or every fault with its line, and exits 0 or 1."""
    (tmp_path / "shop.yaml").write_text(SHOP)
    check = [sys.executable, "-m", "sidecar", "check", "--ratelimit", str(tmp_path)]
    done = started(check)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}: good (1 domains, 4 limits)\n")
    (tmp_path / "shop.yaml").write_text(SHOP.replace("unit: hour", "unit: fortnight").replace("key: free", "key: ''"))
    done = started(check)
    assert done.returncode == 1
    assert [line.removeprefix(f"{tmp_path}/").split(": ")[0] for line in done.stderr.splitlines()] == [
        "shop.yaml:5",
        "shop.yaml:14",
    ]
