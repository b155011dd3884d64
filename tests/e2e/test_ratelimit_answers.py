"""What the rate limit service answers beside its statuses, as real Envoys pass it on: headers and dynamic metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sidecar.demo.client import Client, Reply
from sidecar.demo.envoy import Envoy
from tests.support.gateway import NEWEST, OLDEST, Lab, binary

if TYPE_CHECKING:
    from pathlib import Path

FILE = """
domain: answers
descriptors:
  - {key: user, rate_limit: {unit: year, requests_per_unit: 2}, metadata: {plan: {name: gold}}}
  - {key: tried, shadow_mode: true, rate_limit: {unit: year}}
"""
FILTERS = "type.googleapis.com/envoy.extensions.filters"
METADATA = "%DYNAMIC_METADATA(envoy.filters.http.ratelimit:{})%"


def by_header(key: str, header: str) -> dict[str, Any]:
    return {"actions": [{"request_headers": {"header_name": header, "descriptor_key": key}}]}


def told_header(name: str, path: str) -> dict[str, Any]:
    return {"header": {"key": name, "value": METADATA.format(path)}}


def limiting_envoy(directory: Path, socket: Path, upstream_port: int, version: str) -> Envoy:
    """The ratelimit filter alone, and routes that tell what it left in the request's dynamic metadata."""
    grpc = {"envoy_grpc": {"cluster_name": "sidecar"}}
    ratelimit = {
        "@type": f"{FILTERS}.http.ratelimit.v3.RateLimit",
        "domain": "answers",
        "timeout": "1s",
        "failure_mode_deny": True,
        "rate_limit_service": {"transport_api_version": "V3", "grpc_service": {**grpc, "timeout": "1s"}},
    }
    route = {
        "match": {"prefix": "/"},
        "route": {"cluster": "upstream", "rate_limits": [by_header("user", "x-user"), by_header("tried", "x-tried")]},
    }
    manager = {
        "@type": f"{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        "http_filters": [
            {"name": "envoy.filters.http.ratelimit", "typed_config": ratelimit},
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{FILTERS}.http.router.v3.Router"}},
        ],
        "route_config": {
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}],
            "response_headers_to_add": [
                told_header("told-plan", "metadata:plan:name"),
                told_header("told-shadow", "shadow"),
            ],
        },
    }
    network = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    here = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    http2 = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    }
    upstream = {"socket_address": {"address": "127.0.0.1", "port_value": upstream_port}}
    config = {
        "admin": {"address": here},
        "static_resources": {
            "listeners": [
                {
                    "name": "edge",
                    "address": here,
                    "enable_reuse_port": False,
                    "filter_chains": [{"filters": [network]}],
                }
            ],
            "clusters": [
                {**cluster("sidecar", {"pipe": {"path": str(socket)}}), "typed_extension_protocol_options": http2},
                cluster("upstream", upstream),
            ],
        },
    }
    return Envoy(config, directory, binary(version))


def cluster(name: str, address: dict[str, Any]) -> dict[str, Any]:
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    return {
        "name": name,
        "connect_timeout": "1s",
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
    }


@pytest.fixture(params=[OLDEST, NEWEST])
def edge(request: pytest.FixtureRequest, lab: Lab) -> Envoy:
    def telling(document: dict[str, Any]) -> None:
        (lab.directory / "sidecar" / document["ratelimit"]["directory"] / "answers.yaml").write_text(FILE)
        document["ratelimit"] |= {
            "response_headers": True,
            "shadow_header": "x-shadow",
            "response_dynamic_metadata": True,
        }

    sidecar = lab.sidecar(telling)
    envoy = limiting_envoy(lab.directory / "envoy", sidecar.socket, lab.upstream.port, request.param)
    lab.stack.callback(envoy.stop)
    return envoy


def ask(edge: Envoy, **headers: str) -> Reply:
    with Client(edge.ports["edge"]) as client:
        return client.request("GET", "/", [(name.replace("_", "-"), value) for name, value in headers.items()])


def test_clients_are_told_the_tightest_limit(edge: Envoy) -> None:
    """Limit, what remains and the seconds until it starts afresh, on answers that pass and on the one that refuses."""
    seen = [ask(edge, x_user="ann") for _ in range(3)]
    assert [reply.status for reply in seen] == [200, 200, 429]
    assert [(reply.header("ratelimit-limit"), reply.header("ratelimit-remaining")) for reply in seen] == [
        ("2", "1"),
        ("2", "0"),
        ("2", "0"),
    ]
    assert all(0 < int(reply.header("ratelimit-reset")) <= 365 * 86_400 for reply in seen)


def test_other_filters_are_told_what_passed_and_what_shadows(edge: Envoy) -> None:
    """What passed has its metadata in the dynamic metadata; a shadow decision is there, and in a header, too."""
    reply = ask(edge, x_user="bob", x_tried="yes")
    assert reply.status == 200
    assert (reply.header("told-plan"), reply.header("told-shadow")) == ("gold", '["tried"]')
    assert reply.header("x-shadow") == "tried"
    assert ask(edge, x_user="bob").header("x-shadow") == ""
