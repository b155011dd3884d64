"""`sidecar ratelimit` whose limits come from an xDS server, as a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.demo.processes import wait_until
from tests.support.ads_server import AdsServer, resource
from tests.support.asking import until
from tests.support.ratelimit_process import RateLimitProcess, request
from tests.support.valkey import ValkeyProcess

ANN = request("shop", ("user", "ann"))


@pytest.fixture
async def server() -> AsyncIterator[AdsServer]:
    server = await AdsServer().start()
    yield server
    await server.stop()


@pytest.fixture
async def process(tmp_path: Path, server: AdsServer) -> AsyncIterator[RateLimitProcess]:
    """Not started yet; its Redis is."""
    valkey = ValkeyProcess(tmp_path / "valkey")
    await asyncio.to_thread(valkey.start)
    process = RateLimitProcess(
        tmp_path,
        REDIS_URL=f"127.0.0.1:{valkey.port}",
        CONFIG_TYPE="GRPC_XDS_SOTW",
        CONFIG_GRPC_XDS_SERVER_URL=server.address,
        CONFIG_GRPC_XDS_NODE_ID="shop-edge",
        CONFIG_GRPC_XDS_NODE_METADATA="region=eu,zone=a",
        CONFIG_GRPC_XDS_CLIENT_ADDITIONAL_HEADERS="x-one:1,X-Two:2",
        CONFIG_GRPC_XDS_SERVER_CONNECT_RETRY_INTERVAL="50ms",
        XDS_CLIENT_BACKOFF_INITIAL_INTERVAL="50ms",
        XDS_CLIENT_BACKOFF_MAX_INTERVAL="100ms",
    )
    yield process
    await asyncio.to_thread(process.stop)
    await asyncio.to_thread(valkey.stop)


async def connects(port: int) -> bool:
    """Whether anybody listens there."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def test_limits_come_from_the_server_and_outlive_it(server: AdsServer, process: RateLimitProcess) -> None:
    """No gRPC and no health before a first configuration; then limits; a bad one is refused; the last is kept."""
    await asyncio.to_thread(process.start, healthy=False)
    first = await server.request()
    assert (first.node.id, dict(first.node.metadata)) == ("shop-edge", {"region": "eu", "zone": "a"})
    assert (server.metadata["x-one"], server.metadata["x-two"]) == ("1", "2")
    assert not await asyncio.to_thread(process.healthy)
    assert not await connects(process.grpc)

    server.send("1", resource())
    assert (await server.request()).version_info == "1"
    await asyncio.to_thread(wait_until, process.healthy, "health")
    assert await connects(process.grpc)
    statuses = [(await asyncio.to_thread(process.json, ANN)).status for _ in range(3)]
    assert statuses == [200, 200, 429]

    server.send("2", resource(descriptors=[{"key": "user", "rate_limit": {"requests_per_unit": 9}}]))
    nack = await server.request()
    assert nack.version_info == "1"
    assert "xds resource 'shop': descriptors[0].rate_limit.unit: invalid rate limit unit" in nack.error_detail.message
    assert "requests_per_unit=2," in await asyncio.to_thread(process.text, "/rlconfig")

    await server.stop()
    await until(lambda: bool(process.events("xds_disconnected")))
    assert (await asyncio.to_thread(process.json, ANN)).status == 429
    await server.start()
    assert (await server.request()).version_info == "1"
    server.send("3")
    assert (await server.request()).version_info == "3"
    assert (await asyncio.to_thread(process.json, ANN)).status == 200  # no domain is what the server says
    metrics = (await asyncio.to_thread(process.text, "/metrics")).splitlines()
    assert {"sidecar_xds_connected 1.0", 'sidecar_xds_updates_total{result="refused"} 1.0'} <= set(metrics)


async def test_serving_may_begin_without_a_configuration(process: RateLimitProcess, server: AdsServer) -> None:
    """FORCE_START_WITHOUT_INITIAL_CONFIG: gRPC is served at once, and errors until the server sends something."""
    await server.stop()
    process.variables["FORCE_START_WITHOUT_INITIAL_CONFIG"] = "true"
    await asyncio.to_thread(process.start)
    assert await connects(process.grpc)
    reply = await asyncio.to_thread(process.json, ANN)
    assert (reply.status, reply.body) == (400, b"no rate limit configuration loaded\n")
    await server.start()
    server.send("1", resource())
    await asyncio.wait_for(server.request(), 15)
    assert (await server.request()).version_info == "1"
    assert (await asyncio.to_thread(process.json, ANN)).status == 200
