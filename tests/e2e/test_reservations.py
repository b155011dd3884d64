"""Reserve and settle through real Envoys, configured as deploy/envoy.settle.yaml says."""

from __future__ import annotations

import asyncio
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sidecar.demo.client import Client, Reply
from sidecar.demo.envoy import Envoy
from sidecar.demo.httpd import HttpServer, Request, Response
from sidecar.demo.processes import wait_until
from tests.support.gateway import NEWEST, OLDEST, ROOT, Lab, binary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sidecar.demo.stack import Sidecar

LIMITS = {
    "tokens": {
        "rate": "100/hour",
        "key": {"header": "x-user"},
        "cost": {"header": "x-tokens-max"},
        "reserve": {"hold": "60s"},
    },
    "exports": {
        "rate": {"requests": 1},
        "algorithm": "concurrency",
        "key": {"header": "x-user"},
        "reserve": {"hold": "60s"},
    },
}


def reserving(document: dict[str, Any]) -> None:
    """Two open rules, one under each of the limits."""
    document["limits"] |= LIMITS
    document["rules"] += [
        {"name": f"by-{name}", "match": {"path": {"prefix": f"/{name}"}}, "anonymous": True, "limits": [name]}
        for name in LIMITS
    ]


def settling_envoy(directory: Path, socket: Path, upstream_port: int, version: str) -> Envoy:
    """The configuration in deploy/, with the addresses of this test."""
    config = yaml.safe_load((ROOT / "deploy" / "envoy.settle.yaml").read_text())
    config["admin"] = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}}
    resources = config["static_resources"]
    [listener] = resources["listeners"]
    listener["address"] = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    listener["enable_reuse_port"] = False
    for cluster in resources["clusters"]:
        [endpoint] = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        address = {"socket_address": {"address": "127.0.0.1", "port_value": upstream_port}}
        endpoint["endpoint"]["address"] = {"pipe": {"path": str(socket)}} if cluster["name"] == "sidecar" else address
    return Envoy(config, directory, binary(version))


class Upstream:
    """It answers /exports/wait when it is told to, and says what the others cost."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.seen = threading.Event()
        self.server = HttpServer(self._answer)

    async def _answer(self, request: Request) -> Response:
        if request.target == "/exports/wait":
            self.seen.set()
            await asyncio.to_thread(self.go.wait, 10)
        used = tuple((b"x-tokens-used", value) for name, value in request.headers if name == b"x-costs")
        return Response(200, b"{}", headers=used)


@pytest.fixture
def told() -> Iterator[Upstream]:
    upstream = Upstream()
    upstream.server.start()
    yield upstream
    upstream.go.set()
    upstream.server.stop()


@dataclass(frozen=True)
class Edge:
    """An Envoy that settles with a Sidecar."""

    envoy: Envoy
    sidecar: Sidecar

    def ask(self, target: str, **headers: str) -> Reply:
        with Client(self.envoy.ports["edge"]) as client:
            named = [(name.replace("_", "-"), value) for name, value in {"x_user": "ann", **headers}.items()]
            return client.request("GET", target, named)

    def settled(self, count: int) -> None:
        """Wait until so much was settled, which happens after the response."""
        counted = re.compile(rb'^sidecar_ratelimit_requests_total{answer="ok",domain="[^"]*"} (\S+)$', re.MULTILINE)

        def so_many() -> bool:
            reply = self.sidecar.admin("/metrics")
            found = counted.search(reply.body) if reply is not None else None
            return found is not None and float(found[1]) >= count

        wait_until(so_many, f"{count} settlements")


@pytest.fixture(params=[OLDEST, NEWEST])
def edge(request: pytest.FixtureRequest, lab: Lab, told: Upstream) -> Edge:
    sidecar = lab.sidecar(reserving)
    envoy = settling_envoy(lab.directory / "envoy", sidecar.socket, told.server.port, request.param)
    lab.stack.callback(envoy.stop)
    return Edge(envoy, sidecar)


def remaining(reply: Reply) -> int:
    return int(reply.header("ratelimit").partition(";r=")[2].partition(";")[0])


def test_what_was_reserved_is_settled_by_what_it_cost(edge: Edge) -> None:
    """90 are reserved and 7 used: the next one has 93 left; a limit never counts both."""
    first = edge.ask("/tokens", x_tokens_max="90", x_costs="7")
    assert (first.status, remaining(first)) == (200, 10)
    edge.settled(1)
    second = edge.ask("/tokens", x_tokens_max="93", x_costs="93")
    assert (second.status, remaining(second)) == (200, 0)
    edge.settled(2)
    assert edge.ask("/tokens", x_tokens_max="1").status == 429


def test_a_request_under_way_counts_until_its_response_is_done(edge: Edge, told: Upstream) -> None:
    """One at a time: the second waits for the first one's end, not for its hold to lapse."""
    replies: list[Reply] = []
    first = threading.Thread(target=lambda: replies.append(edge.ask("/exports/wait")))
    first.start()
    assert told.seen.wait(10)
    assert edge.ask("/exports").status == 429
    told.go.set()
    first.join(10)
    assert [reply.status for reply in replies] == [200]
    edge.settled(1)
    assert edge.ask("/exports").status == 200


def test_what_is_denied_reserves_nothing(edge: Edge) -> None:
    """A request that asks for too much leaves everything to the next."""
    assert edge.ask("/tokens", x_tokens_max="101").status == 429
    assert edge.ask("/tokens", x_tokens_max="x").status == 400
    assert edge.ask("/tokens").status == 400
    assert remaining(edge.ask("/tokens", x_tokens_max="100")) == 0
