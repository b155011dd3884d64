"""ShouldRateLimit as a gRPC client sees it: over both transports, counted by a real Valkey."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import grpc.aio
import pytest

from sidecar.core.descriptors import Counting, HeaderNames, RateLimitOptions
from sidecar.core.limits import Algorithm, Charge, Limit, OnFailure, counter_key
from sidecar.core.reservations import Held, Reservation, encode
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
  - {key: user, rate_limit: {unit: year, requests_per_unit: 50}, metadata: {tier: gold}}
  - {key: steady, rate_limit: {unit: year, requests_per_unit: 50}}
  - {key: running, rate_limit: {unit: year, requests_per_unit: 2}}
  - {key: quiet, shadow_mode: true, rate_limit: {unit: year}}
"""
OPTIONS = RateLimitOptions(
    on_failure=OnFailure.LOCAL,
    response_headers=HeaderNames(),
    shadow_header="x-shadow",
    response_dynamic_metadata=True,
    algorithms={
        "served/steady": Counting(algorithm=Algorithm.GCRA, burst=3),
        "served/running": Counting(algorithm=Algorithm.CONCURRENCY),
    },
)
TOKENS = Limit(name="tokens", requests=100, window_us=3_600_000_000, hold_us=60_000_000)
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
    policy = SimpleNamespace(ratelimit=load_directory(tmp_path, OPTIONS), held_limits={"tokens": TOKENS})
    store, events, errors = RedisStore(RedisEndpoint(host="127.0.0.1", port=valkey.port), timeout_s=2.0), [], []
    store.start()
    service = RateLimitService(lambda: policy, store, LocalStore(), "test", events.append)
    methods = {SHOULD_RATE_LIMIT: UnaryMethod(handler=service.handle)}
    server = request.param(methods, [TcpAddress("127.0.0.1", 0)], on_error=lambda fault, _path: errors.append(fault))
    [address] = await server.start()
    async with grpc.aio.insecure_channel(str(address)) as channel:
        ask = channel.unary_unary(SHOULD_RATE_LIMIT, RateLimitRequest.SerializeToString, RateLimitResponse.FromString)
        await wait_for_redis(ask, events)
        yield SimpleNamespace(ask=ask, events=events, user=request.node.name, store=store)
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


def one(key, value, **fields):
    request = RateLimitRequest(domain="served")
    request.descriptors.add(**fields).entries.add(key=key, value=value)
    return request


async def test_a_refund_makes_room_in_redis(served):
    """What is given back can be taken again, and no more than was taken is given back."""
    await served.ask(question(served.user, hits=60))
    assert (await served.ask(one("user", served.user, is_negative_hits=True))).overall_code == RateLimitResponse.OK
    request = one("user", served.user, is_negative_hits=True, hits_addend={"value": 100})
    assert (await served.ask(request)).statuses[0].limit_remaining == 50
    assert (await served.ask(question(served.user))).statuses[0].limit_remaining == 49


async def test_chosen_algorithms_count_in_redis(served):
    """A burst of GCRA; places of a concurrency limit, taken and given back."""
    steady = [(await served.ask(one("steady", served.user))).overall_code for _ in range(4)]
    assert steady == [RateLimitResponse.OK] * 3 + [RateLimitResponse.OVER_LIMIT]
    running = one("running", served.user)
    codes = [answer.overall_code for answer in await asyncio.gather(*(served.ask(running) for _ in range(5)))]
    assert sorted(codes) == [RateLimitResponse.OK] * 2 + [RateLimitResponse.OVER_LIMIT] * 3
    await served.ask(one("running", served.user, is_negative_hits=True))
    codes = [(await served.ask(running)).overall_code for _ in range(2)]
    assert codes == [RateLimitResponse.OK, RateLimitResponse.OVER_LIMIT]


async def test_headers_and_metadata_arrive(served):
    """As any gRPC client parses them."""
    request = question(served.user)
    request.descriptors.add().entries.add(key="quiet", value=served.user)
    answer = await served.ask(request)
    told = {header.key: header.value for header in answer.response_headers_to_add}
    assert told.keys() == {"RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "x-shadow"}
    assert (told["RateLimit-Limit"], told["RateLimit-Remaining"], told["x-shadow"]) == ("0", "0", "quiet")
    assert int(told["RateLimit-Reset"]) == answer.statuses[1].duration_until_reset.seconds > 0
    metadata = answer.dynamic_metadata
    assert (metadata["domain"], dict(metadata["metadata"])["tier"]) == ("served", "gold")
    assert [list(each["entries"]) for each in metadata["descriptors"]] == [
        [f"user={served.user}"],
        [f"quiet={served.user}"],
    ]


async def test_a_reservation_in_redis_is_settled(served):
    """The hold ends, the actual hits count; settled again, they count again."""
    key = counter_key(b"test:tokens:", [served.user])
    loop = asyncio.get_running_loop()
    held = loop.create_future()
    served.store.charge([Charge(TOKENS, key, 60, hold=9)], loop.time() + 5, held.set_result)
    assert (await held).outcomes[0].remaining == 40
    request = one("reservation", encode(Reservation(9, (Held("tokens", key),))), hits_addend={"value": 25})
    request.domain = "sidecar"
    assert [(await served.ask(request)).statuses[0].limit_remaining for _ in range(2)] == [75, 50]


async def test_an_invalid_request_is_a_grpc_error(served):
    """The client gets the status and the reason."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.ask(RateLimitRequest(domain="served"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "rate limit descriptor list must not be empty"
    assert served.events[-1].answer is Answer.INVALID
