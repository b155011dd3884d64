"""ShouldRateLimit as a gRPC client sees it: over both transports, counted by a real Valkey."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import grpc.aio
import pytest

from sidecar.core.descriptors import RateLimitOptions
from sidecar.core.limits import OnFailure
from sidecar.edges.local_store import LocalStore
from sidecar.edges.redis_endpoint import RedisEndpoint
from sidecar.edges.redis_store import RedisStore
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitRequest, RateLimitResponse
from sidecar.envoy.ratelimit import SHOULD_RATE_LIMIT, Answer, RateLimitService
from sidecar.policy.ratelimit_files import load_directory
from sidecar.transport.grpcio import GrpcioServer
from sidecar.transport.http2 import Http2Server
from sidecar.transport.service import TcpAddress, UnaryMethod
from tests.support.valkey import ValkeyProcess

CONFIGURATION = """
domain: served
descriptors:
  - {key: user, rate_limit: {unit: year, requests_per_unit: 50}}
"""
CONNECT_WITHIN_S = 5.0


@pytest.fixture(scope="module")
def valkey(tmp_path_factory):
    process = ValkeyProcess(tmp_path_factory.mktemp("valkey"))
    process.start()
    yield process
    process.stop()


@pytest.fixture(params=[Http2Server, GrpcioServer], ids=["http2", "grpcio"])
async def served(request, valkey, tmp_path):
    """A client's call, the events of the service behind it, and its user's name."""
    (tmp_path / "served.yaml").write_text(CONFIGURATION)
    policy = SimpleNamespace(ratelimit=load_directory(tmp_path, RateLimitOptions(on_failure=OnFailure.LOCAL)))
    store, events, errors = RedisStore(RedisEndpoint(host="127.0.0.1", port=valkey.port), timeout_s=2.0), [], []
    store.start()
    service = RateLimitService(lambda: policy, store, LocalStore(), "test", events.append)
    methods = {SHOULD_RATE_LIMIT: UnaryMethod(handler=service.handle)}
    server = request.param(methods, [TcpAddress("127.0.0.1", 0)], on_error=lambda fault, _path: errors.append(fault))
    [address] = await server.start()
    async with grpc.aio.insecure_channel(str(address)) as channel:
        ask = channel.unary_unary(SHOULD_RATE_LIMIT, RateLimitRequest.SerializeToString, RateLimitResponse.FromString)
        await wait_for_redis(ask, events)
        yield SimpleNamespace(ask=ask, events=events, user=request.node.name)
    await server.drain(1.0)
    await store.close()
    assert errors == []


async def wait_for_redis(ask, events):
    async with asyncio.timeout(CONNECT_WITHIN_S):
        while not events or events[-1].local:
            await ask(question("warm-up", hits=1))


def question(*users, hits=0):
    request = RateLimitRequest(domain="served", hits_addend=hits)
    for user in users:
        request.descriptors.add().entries.add(key="user", value=user)
    return request


async def test_as_many_pass_as_the_limit_says(served):
    """Of many callers at once exactly the limit passes, and all are counted."""
    answers = await asyncio.gather(*(served.ask(question(served.user)) for _ in range(80)))
    assert (
        sorted(answer.overall_code for answer in answers)
        == [RateLimitResponse.OK] * 50 + [RateLimitResponse.OVER_LIMIT] * 30
    )
    passed = sorted(answer.statuses[0].limit_remaining for answer in answers if answer.overall_code == 1)
    assert passed == list(range(50))
    assert not any(event.local for event in served.events[-80:])


async def test_equal_descriptors_count_one_after_the_other_in_redis(served):
    """Redis counts two equal descriptors of one request twice, as the in-process store does."""
    answer = await served.ask(question(served.user, served.user, hits=20))
    assert [status.limit_remaining for status in answer.statuses] == [30, 10]
    answer = await served.ask(question(served.user, served.user, hits=10))
    assert [status.code for status in answer.statuses] == [RateLimitResponse.OK, RateLimitResponse.OVER_LIMIT]
    answer = await served.ask(question(served.user))
    assert answer.overall_code == RateLimitResponse.OVER_LIMIT


async def test_an_invalid_request_is_a_grpc_error(served):
    """The client gets the status and the reason."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.ask(RateLimitRequest(domain="served"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "rate limit descriptor list must not be empty"
    assert served.events[-1].answer is Answer.INVALID
