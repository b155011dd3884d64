"""A rate limit service over gRPC."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

import grpc

from sidecar.conformance.judge import Answer, Fault
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitRequest, RateLimitResponse

SHOULD_RATE_LIMIT: Final = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"

CONNECT_WITHIN_S: Final = 5.0
CALL_WITHIN_S: Final = 5.0
"""A call that takes longer is given up, and fails its case."""


class UnreachableError(Exception):
    """Nobody answers at the target; the text says where."""


class GrpcTarget:
    """A connection to the service, without TLS.

    Args:
        address: `host:port` or `unix:path`.

    Raises:
        UnreachableError: By `__enter__`: there is no gRPC server.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        # one that was refused is not asked again soon by itself, but a command is run once
        self._channel = grpc.insecure_channel(address)
        self._call = self._channel.unary_unary(
            SHOULD_RATE_LIMIT, RateLimitRequest.SerializeToString, RateLimitResponse.FromString
        )

    def __enter__(self) -> Self:
        try:
            grpc.channel_ready_future(self._channel).result(CONNECT_WITHIN_S)
        except grpc.FutureTimeoutError:
            self._channel.close()
            raise UnreachableError(f"no gRPC server at {self._address} within {CONNECT_WITHIN_S:g} s") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def ask(self, requests: Sequence[RateLimitRequest]) -> Sequence[Answer]:
        """Ask all at once."""
        calls = [self._call.future(request, timeout=CALL_WITHIN_S) for request in requests]
        return [_answer(call) for call in calls]


def _answer(call: grpc.Future[RateLimitResponse]) -> Answer:
    try:
        return call.result()
    except grpc.RpcError as error:
        return Fault(error.code().name, error.details() or "")
