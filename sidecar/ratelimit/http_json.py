"""The reference's HTTP port: `/json`, the rate limit service for those who cannot speak gRPC, and `/healthcheck`.

`/json` takes a RateLimitRequest in protobuf's JSON mapping by POST, and answers with a RateLimitResponse in it:

    200  within the limits        400  the request cannot be decided, for whatever reason; the body says it in a line
    429  over a limit             500  there is no answer
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from sidecar.edges.admin import Answer, PostRoute, Route
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitRequest, RateLimitResponse

if TYPE_CHECKING:
    from sidecar.transport.service import Status, UnaryHandler

BODY_BYTES_MAX: Final = 1024 * 1024
"""Of a request; 256 descriptors with long values need a tenth."""

TEXT: Final = "text/plain; charset=utf-8"

_STATUSES: Final = {RateLimitResponse.OK: 200, RateLimitResponse.OVER_LIMIT: 429}


class HttpCall:
    """A call of the gRPC handler that came over HTTP.

    Attributes:
        deadline: When it is given up, in seconds of the loop's clock.
        answer: The response's bytes; None for an error, which `fault` names.
    """

    cancelled = False
    metadata: Mapping[str, str] = MappingProxyType({})

    def __init__(self, within_s: float) -> None:
        loop = asyncio.get_running_loop()
        self.deadline = loop.time() + within_s
        self.fault = "it was not answered in time"
        self._answer: asyncio.Future[bytes | None] = loop.create_future()

    def respond(self, message: bytes) -> None:
        """The response."""
        if not self._answer.done():
            self._answer.set_result(message)

    def fail(self, _status: Status, message: str) -> None:
        """The call cannot be answered."""
        if not self._answer.done():
            self.fault = message
            self._answer.set_result(None)

    async def answered(self) -> bytes | None:
        """The response's bytes; None where `fault` says why there are none."""
        try:
            async with asyncio.timeout_at(self.deadline):
                return await self._answer
        except TimeoutError:
            return None


def json_route(handler: UnaryHandler, within_s: float) -> PostRoute:
    """`/json`.

    Args:
        handler: Of ShouldRateLimit.
        within_s: How long an answer may take.
    """

    async def decide(body: bytes, _headers: Mapping[str, str]) -> Answer:
        from google.protobuf import json_format  # noqa: PLC0415 - a few who need it pay for it

        try:
            request = json_format.Parse(body, RateLimitRequest())
        except (json_format.ParseError, UnicodeDecodeError, RecursionError):
            return _refused("the body is not a RateLimitRequest in JSON")
        call = HttpCall(within_s)
        message = handler(request.SerializeToString(), call) or await call.answered()
        if message is None:
            return _refused(call.fault)
        response = RateLimitResponse.FromString(message)
        status = _STATUSES.get(response.overall_code, 500)
        return Answer(status, json_format.MessageToJson(response, indent=None).encode())

    return PostRoute(decide, BODY_BYTES_MAX)


def health_route(healthy: Callable[[], bool]) -> Route:
    """`/healthcheck`: 200 and `OK`, or 500."""

    async def health(_headers: Mapping[str, str]) -> Answer:
        return Answer(200, b"OK", TEXT) if healthy() else Answer(500, b"", TEXT)

    return health


def text_route(text: Callable[[], Awaitable[str]]) -> Route:
    """Plain text, made anew for each request."""

    async def document(_headers: Mapping[str, str]) -> Answer:
        return Answer(200, (await text()).encode("utf-8", "backslashreplace"), TEXT)

    return document


def _refused(reason: str) -> Answer:
    return Answer(400, f"{reason}\n".encode("utf-8", "backslashreplace"), TEXT)
