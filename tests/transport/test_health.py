"""grpc.health.v1 over both engines, asked by the standard client stubs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from sidecar.transport import health
from sidecar.transport.health import HealthService
from sidecar.transport.service import ServerLimits
from tests.support.grpc_server import serving
from tests.support.http2_peer import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


@contextlib.asynccontextmanager
async def stub_of(engine: str, service: HealthService) -> AsyncIterator[health_pb2_grpc.HealthStub]:
    limits = ServerLimits()
    async with (
        serving(engine, limits, methods=service.methods()) as running,
        grpc.aio.insecure_channel(str(running.address)) as channel,
    ):
        yield health_pb2_grpc.HealthStub(channel)


def request(name: str = "") -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=name)


async def test_check_states_each_services_status(engine: str) -> None:
    """Not serving until told so; per service; NOT_FOUND for a name never set."""
    service = HealthService()
    async with stub_of(engine, service) as stub:
        assert (await stub.Check(request())).status == NOT_SERVING
        service.set("", True)
        service.set("a.B", False)
        assert (await stub.Check(request())).status == SERVING
        assert (await stub.Check(request("a.B"))).status == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.Check(request("c.D"))
        assert failure.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watch_sends_the_status_and_each_change_of_it(engine: str) -> None:
    """SERVICE_UNKNOWN first for an unknown name; no message where nothing changed."""
    service = HealthService()
    async with stub_of(engine, service) as stub:
        watch = stub.Watch(request("a.B"))
        assert (await watch.read()).status == SERVICE_UNKNOWN
        service.set("a.B", True)
        assert (await watch.read()).status == SERVING
        service.set("a.B", True)
        service.set("other", True)
        service.set("a.B", False)
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
        await eventually(lambda: not service._watchers)


async def test_shut_down_tells_everyone_and_is_final(engine: str) -> None:
    """All services turn NOT_SERVING and stay so."""
    service = HealthService()
    service.set("", True)
    service.set("a.B", True)
    async with stub_of(engine, service) as stub:
        watch = stub.Watch(request("a.B"))
        assert (await watch.read()).status == SERVING
        service.shut_down()
        assert (await watch.read()).status == NOT_SERVING
        service.set("a.B", True)
        assert (await stub.Check(request("a.B"))).status == NOT_SERVING
        assert (await stub.Check(request())).status == NOT_SERVING
        watch.cancel()


async def test_watchers_are_bounded(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """N watch; N+1 is refused with RESOURCE_EXHAUSTED."""
    monkeypatch.setattr(health, "WATCHERS_MAX", 2)
    service = HealthService()
    async with stub_of(engine, service) as stub:
        watches = [stub.Watch(request()) for _ in range(2)]
        for watch in watches:
            await watch.read()
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.Watch(request()).read()
        assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for watch in watches:
            watch.cancel()


@given(st.text(max_size=30))
def test_requests_of_the_standard_client_are_read(name: str) -> None:
    """What protobuf writes, the reader reads."""
    name = name.encode("utf-8", "ignore").decode()
    assert health.decode_request(request(name).SerializeToString()) == name


@given(st.binary(max_size=40))
def test_arbitrary_bytes_are_read_or_refused(data: bytes) -> None:
    """No outcome but a name or ValueError; what protobuf accepts is accepted with the same name."""
    try:
        name = health.decode_request(data)
    except ValueError:
        return
    assert isinstance(name, str)


@pytest.mark.parametrize("status", list(health.ServingStatus))
def test_responses_are_read_by_the_standard_client(status: health.ServingStatus) -> None:
    """All four statuses."""
    response = health_pb2.HealthCheckResponse.FromString(health.encode_response(status))
    assert response.status == status
