"""The Check service behind both transports: whatever a store, a sink or a caller's patience does, a denial leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest

from sidecar.check import CHECK, TOGETHER_MAX
from sidecar.core.authn import NeedKey
from sidecar.core.decision import DenyReason
from sidecar.core.limits import LimitStore, StoreFailure
from sidecar.edges.local_store import LocalStore
from sidecar.envoy import ext_authz
from sidecar.envoy.pb.ext_authz_pb2 import CheckResponse
from sidecar.transport.grpcio import GrpcioServer
from sidecar.transport.http2 import Http2Server
from sidecar.transport.service import TcpAddress
from tests.support.asking import until
from tests.support.deciding import Deciding, UnansweringStore, check_request, compiled, deciding, token

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.core.context import RequestContext
    from sidecar.core.limits import Charge, Done
    from sidecar.core.policy import Policy

ANSWER_WITHIN_S = 0.1

ENGINES = pytest.mark.parametrize("engine", [Http2Server, GrpcioServer], ids=["http2", "grpcio"])


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return compiled(tmp_path_factory.mktemp("policy"))


@asynccontextmanager
async def served(
    engine: type[Http2Server | GrpcioServer], policy: Policy, store: LimitStore
) -> AsyncIterator[tuple[Deciding, grpc.aio.UnaryUnaryMultiCallable]]:
    """The service, and a client's call of it; no fault may have reached the transport in the end."""
    faults: list[Exception] = []
    async with deciding(policy, store) as it:
        methods = {CHECK: it.service.method(ANSWER_WITHIN_S)}
        server = engine(methods, [TcpAddress("127.0.0.1", 0)], on_error=lambda fault, _path: faults.append(fault))
        (address,) = await server.start()
        try:
            async with grpc.aio.insecure_channel(str(address)) as channel:
                yield it, channel.unary_unary(CHECK, response_deserializer=CheckResponse.FromString)
        finally:
            await server.drain(1.0)
    assert faults == []


def reason(response: CheckResponse) -> str:
    assert response.status.code != 0
    return response.dynamic_metadata["reason"]


@ENGINES
async def test_a_store_that_never_answers_costs_the_deadline_only(
    engine: type[Http2Server | GrpcioServer], policy: Policy
) -> None:
    """The transport's denial leaves in time; the verdict that comes afterwards is nobody's."""
    store = UnansweringStore()
    async with served(engine, policy, store) as (it, call):
        response = await call(check_request("/allow"))
        assert reason(response) == DenyReason.DEADLINE_EXCEEDED.value
        ((charges, done),) = store.asked
        LocalStore().charge(charges, 0.0, done)
        done(StoreFailure.TIMEOUT)
        assert [event.decision.reason for event in it.events] == [DenyReason.DEADLINE_EXCEEDED]
        assert it.bugs == []


@ENGINES
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"\xff\xff", ["denied_response", "denied_response"]),
        (check_request("/deny"), ["ok_response", "denied_response"]),
        (check_request(), ["ok_response", "ok_response"]),
    ],
    ids=["undecodable", "limited", "public"],
)
async def test_a_sink_that_fails_opens_nothing(
    engine: type[Http2Server | GrpcioServer], policy: Policy, message: bytes, expected: list[str]
) -> None:
    """Where audit or metrics raise, answers are what they would have been, and no gRPC error."""
    async with served(engine, policy, LocalStore()) as (it, call):
        it.sink_fault = RuntimeError("no space left")
        assert [(await call(message)).WhichOneof("http_response") for _ in expected] == expected
        assert it.bugs == [it.sink_fault] * len(expected)


@ENGINES
async def test_a_caller_that_gives_up_leaves_nothing_behind(
    engine: type[Http2Server | GrpcioServer], policy: Policy
) -> None:
    """A call that its caller cancels is not answered, and the verdict for it is dropped."""
    store = UnansweringStore()
    async with served(engine, policy, store) as (it, call):
        asked = call(check_request("/allow"))
        await until(lambda: len(store.asked) == 1)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        answered = await call(check_request())  # the cancellation has arrived before this
        assert answered.status.code == 0
        store.asked[0][1](StoreFailure.UNREACHABLE)
        assert [event.decision.rule.name for event in it.events if event.decision.rule] == ["public"]


@ENGINES
@pytest.mark.parametrize("patience_s", [0.003, 0.007, 0.02])
async def test_short_patience_opens_nothing(
    engine: type[Http2Server | GrpcioServer], policy: Policy, patience_s: float
) -> None:
    """Whoever waits hardly at all gets a denial, or nothing: never an allow, and never a gRPC error of ours."""
    async with served(engine, policy, UnansweringStore()) as (_, call):
        for _ in range(5):
            answered = call(check_request("/allow"), timeout=patience_s)
            status = await answered.code()
            if status is grpc.StatusCode.OK:
                assert reason(await answered) == DenyReason.DEADLINE_EXCEEDED.value
            else:
                assert await answered.details() == "Deadline Exceeded"  # the client's own words


@ENGINES
@pytest.mark.parametrize(
    ("host", "method", "path"),
    [
        ("a" * 5000, "GET", "/public"),
        ("x", "GET", "/" + "a/" * 3000),
        ("x", "GET" * 5000, "/public"),
        ("\x1b[2Jx", "GET", "/public"),
        ("x", "GET", "/public\n\x1b[31m"),
        ("x", "GET\x00", "/public"),
        ("\u202e", "\u202e", "/\u202e"),
    ],
)
async def test_hostile_text_is_denied(
    engine: type[Http2Server | GrpcioServer], policy: Policy, host: str, method: str, path: str
) -> None:
    """Text that is too long, or that no request has, is a denial."""
    async with served(engine, policy, LocalStore()) as (it, call):
        assert reason(await call(check_request(path, host=host, method=method)))
        assert it.bugs == []


async def test_checks_of_one_turn_are_decided_each_for_itself(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than take a step together: one that fails is denied, one that is abandoned is left, the others are right."""
    steps: list[Callable[[], None]] = []
    async with deciding(policy) as it:
        it.soon = steps.append
        fault = RuntimeError("out of order")
        decode = ext_authz.decode

        def faulty(message: bytes) -> RequestContext | DenyReason:
            if message == b"fault":
                raise fault
            return decode(message)

        monkeypatch.setattr(ext_authz, "decode", faulty)
        messages = [check_request(), b"fault", b"\xff", check_request("/allow")] * TOGETHER_MAX
        calls = [it.begin(message) for message in messages]
        calls[0].cancelled = True
        assert len(steps) == 1
        assert not any(call.answers for call in calls)
        while steps:
            steps.pop(0)()
        codes = [[CheckResponse.FromString(answer).status.code for answer in call.answers] for call in calls]
        assert codes == [[], [13], [3], [0], *[[0], [13], [3], [8]] * (TOGETHER_MAX - 1)]
        assert it.bugs == [fault] * TOGETHER_MAX
        assert len(it.events) == len(messages) - 1


class _RaisingStore(UnansweringStore):
    """Takes what it is asked, raises, and answers all the same."""

    def charge(self, charges: Sequence[Charge], deadline: float, done: Done) -> None:
        super().charge(charges, deadline, done)
        raise RuntimeError("out of order")


async def test_a_store_that_raises_and_answers_later_is_heard_once(policy: Policy) -> None:
    """The Check is denied when the store raises; what the store says afterwards is nobody's, and counts for nothing."""
    store = _RaisingStore()
    async with deciding(policy, store) as it:
        call = it.begin(check_request("/allow"))
        ((charges, done),) = store.asked
        LocalStore().charge(charges, 0.0, done)
        assert reason(call.response) == DenyReason.INTERNAL.value
        assert [event.decision.reason for event in it.events] == [DenyReason.INTERNAL]
        assert [str(bug) for bug in it.bugs] == ["out of order"]


async def test_a_store_that_answers_twice_is_heard_once(policy: Policy) -> None:
    """The first answer counts."""
    store = UnansweringStore()
    async with deciding(policy, store) as it:
        call = it.begin(check_request("/allow"))
        ((charges, done),) = store.asked
        LocalStore().charge(charges, 0.0, done)
        done(StoreFailure.TIMEOUT)
        assert call.response.status.code == 0
        assert [event.decision.reason for event in it.events] == [None]
        assert it.bugs == []


async def test_an_engine_that_raises_and_answers_later_is_heard_once(policy: Policy) -> None:
    """As of stores: the denial has left, and who calls is not looked at again."""
    asked: list[Callable[[Any], None]] = []

    def raising(_need: object, _deadline: float, done: Callable[[Any], None]) -> None:
        asked.append(done)
        raise RuntimeError("out of order")

    async with deciding(policy, engines={NeedKey: raising}) as it:
        unknown = token(header={"kid": "unknown"})
        call = it.begin(check_request("/public/page", unknown, method="POST"))
        asked[0](None)
        assert reason(call.response) == DenyReason.INTERNAL.value
        assert [event.decision.reason for event in it.events] == [DenyReason.INTERNAL]
        assert [str(bug) for bug in it.bugs] == ["out of order"]
