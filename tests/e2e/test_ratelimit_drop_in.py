"""A real Envoy's ratelimit filter against `sidecar ratelimit`, which is started from variables and files alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sidecar.demo.client import Client, Reply
from sidecar.demo.envoy import Envoy, Listener, bootstrap
from tests.support.gateway import NEWEST, OLDEST, binary
from tests.support.ratelimit_process import RateLimitProcess
from tests.support.valkey import ValkeyProcess

if TYPE_CHECKING:
    from sidecar.demo.httpd import HttpServer

CONFIG = """
domain: demo
descriptors:
  - key: header_match
    value: reports
    rate_limit: {unit: hour, requests_per_unit: 3}
  # each plan has its own limit, each user of a plan its own counter
  - key: plan
    value: free
    descriptors:
      - key: user
        rate_limit: {name: per-user, unit: day, requests_per_unit: 2}
  - key: plan
    value: gold
    descriptors:
      - key: user
        rate_limit: {unlimited: true}
  - key: plan
    value: trial
    descriptors:
      - key: user
        shadow_mode: true
        rate_limit: {unit: day, requests_per_unit: 1}
"""


def gateway_config(socket: Path, upstream_port: int) -> dict[str, Any]:
    """Envoy with the ratelimit filter alone; descriptors (plan, user) from headers, and header_match on /reports."""
    config = bootstrap([Listener(name="edge")], socket, upstream_port)
    (listener,) = config["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http_filters"] = [f for f in manager["http_filters"] if "ext_authz" not in f["name"]]
    headers = [{"request_headers": {"header_name": f"x-{name}", "descriptor_key": name}} for name in ("plan", "user")]
    reports = {
        "header_value_match": {
            "descriptor_value": "reports",
            "headers": [{"name": ":path", "string_match": {"prefix": "/reports"}}],
        }
    }
    route = {"cluster": "upstream", "rate_limits": [{"actions": headers}, {"actions": [reports]}]}
    manager["route_config"]["virtual_hosts"][0]["routes"] = [{"match": {"prefix": "/"}, "route": route}]
    return config


@pytest.fixture(scope="module", params=[OLDEST, NEWEST])
def edge(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, upstream: HttpServer
) -> Iterator[Client]:
    directory = tmp_path_factory.mktemp("drop-in")
    valkey = ValkeyProcess(directory / "valkey")
    socket = directory / "ratelimit.sock"
    process = RateLimitProcess(
        directory, REDIS_URL=f"127.0.0.1:{valkey.port}", GRPC_UDS=str(socket), LIMIT_RESPONSE_HEADERS_ENABLED="true"
    )
    (process.files / "shop.yaml").write_text(CONFIG)
    valkey.start()
    process.start()
    envoy = Envoy(gateway_config(socket, upstream.port), directory / "envoy", binary=binary(request.param))
    with Client(envoy.ports["edge"]) as client:
        yield client
    envoy.stop()
    assert process.stop() == 0
    valkey.stop()


def ask(edge: Client, target: str, **headers: str) -> Reply:
    return edge.request("GET", target, [(f"x-{name}", value) for name, value in headers.items()])


def test_each_user_of_a_plan_has_a_counter(edge: Client) -> None:
    """Two requests a day for each free user; the third is 429, another user's passes; headers say what remains."""
    replies = [ask(edge, "/", plan="free", user="ann") for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 429]
    assert [reply.header("ratelimit-remaining") for reply in replies] == ["1", "0", "0"]
    assert replies[0].header("ratelimit-limit") == "2"
    assert replies[2].header("x-ratelimit-limit") == '2, 2;w=86400;name="per-user"'
    assert ask(edge, "/", plan="free", user="bob").status == 200


def test_unlimited_shadowed_and_unknown_plans_pass(edge: Client) -> None:
    """What is unlimited, in shadow mode or not configured is never refused."""
    for plan in ("gold", "trial", "none"):
        assert [ask(edge, "/", plan=plan, user="eve").status for _ in range(4)] == [200] * 4


def test_several_descriptors_are_all_counted(edge: Client) -> None:
    """A path's limit holds over all users, beside each user's own."""
    statuses = [ask(edge, "/reports", plan="gold", user=f"user-{n}").status for n in range(4)]
    assert statuses == [200, 200, 200, 429]
