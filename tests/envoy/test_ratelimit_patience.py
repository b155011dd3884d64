"""ShouldRateLimit while Redis hangs: the policy's answer leaves before the caller's patience ends (20 ms in Envoy)."""

from __future__ import annotations

from types import SimpleNamespace

import grpc.aio
import pytest

from sidecar.core.descriptors import RateLimitOptions
from sidecar.core.limits import OnFailure
from sidecar.edges.local_store import LocalStore
from sidecar.edges.redis_endpoint import RedisEndpoint
from sidecar.edges.redis_store import RedisStore
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitRequest, RateLimitResponse
from sidecar.envoy.ratelimit import SHOULD_RATE_LIMIT, RateLimitService
from sidecar.policy.ratelimit_files import load_directory
from sidecar.transport.grpcio import GrpcioServer
from sidecar.transport.http2 import Http2Server
from sidecar.transport.service import TcpAddress, UnaryMethod
from tests.support.asking import until
from tests.support.valkey import ValkeyProcess

CONFIGURATION = """
domain: served
descriptors:
  - {key: user, rate_limit: {unit: year, requests_per_unit: 50}}
"""
ENVOY_PATIENCE_S = 0.1
CODES = {OnFailure.DENY: RateLimitResponse.OVER_LIMIT, OnFailure.LOCAL: RateLimitResponse.OK}


@pytest.mark.parametrize("on_failure", CODES, ids=str)
@pytest.mark.parametrize("engine", [Http2Server, GrpcioServer], ids=["http2", "grpcio"])
async def test_the_policy_answers_while_redis_hangs(tmp_path, engine, on_failure):
    """The answer is what `on_redis_failure` says, not the transport's DEADLINE_EXCEEDED, which Envoy lets pass."""
    valkey = ValkeyProcess(tmp_path / "valkey")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "served.yaml").write_text(CONFIGURATION)
    policy = SimpleNamespace(ratelimit=load_directory(tmp_path / "files", RateLimitOptions(on_failure=on_failure)))
    store, errors = RedisStore(RedisEndpoint(host="127.0.0.1", port=valkey.port), timeout_s=5.0), []
    service = RateLimitService(lambda: policy, store, LocalStore(), "test", lambda _event: None)
    methods = {SHOULD_RATE_LIMIT: UnaryMethod(handler=service.handle, answer_within_s=ENVOY_PATIENCE_S)}
    server = engine(methods, [TcpAddress("127.0.0.1", 0)], on_error=lambda fault, _path: errors.append(fault))
    valkey.start()
    store.start()
    try:
        await until(lambda: store.connection.connected)
        valkey.freeze()
        [address] = await server.start()
        async with grpc.aio.insecure_channel(str(address)) as channel:
            ask = channel.unary_unary(
                SHOULD_RATE_LIMIT, RateLimitRequest.SerializeToString, RateLimitResponse.FromString
            )
            for _ in range(4):
                request = RateLimitRequest(domain="served")
                request.descriptors.add().entries.add(key="user", value="u")
                assert (await ask(request)).overall_code == CODES[on_failure]
    finally:
        valkey.thaw()
        await server.drain(1.0)
        await store.close()
        valkey.stop()
    assert errors == []
