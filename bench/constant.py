"""The baseline: a server that answers each method with the same bytes, on the transports that the sidecar uses."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import uvloop

from bench.setting import CHECK, SHOULD_RATE_LIMIT
from sidecar.core.decision import Decision, DenyReason
from sidecar.envoy import ext_authz
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitResponse
from sidecar.transport.service import TcpAddress, UnaryMethod


async def serve(engine: str, port: int, on_ready: Callable[[], None]) -> None:
    """Serve until SIGTERM."""
    if engine == "grpcio":
        from sidecar.transport.grpcio import GrpcioServer as Server  # noqa: PLC0415 - as the product does
    else:
        from sidecar.transport.http2 import Http2Server as Server  # type: ignore[assignment]  # noqa: PLC0415 - the same
    answer = ext_authz.encode(Decision(DenyReason.NO_RULE, None, None, (), 1))
    status = RateLimitResponse.DescriptorStatus(code=RateLimitResponse.OK, limit_remaining=41)
    limited = RateLimitResponse(overall_code=RateLimitResponse.OK, statuses=[status]).SerializeToString()
    service = {
        CHECK: UnaryMethod(handler=lambda _message, _call: answer),
        SHOULD_RATE_LIMIT: UnaryMethod(handler=lambda _message, _call: limited),
    }
    server = Server(service, [TcpAddress("127.0.0.1", port)], on_error=lambda error, _method: sys.exit(repr(error)))
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    on_ready()
    await stop.wait()
    await server.drain(1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", choices=("http2", "grpcio"), required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ready", type=Path, required=True)
    chosen = parser.parse_args()
    uvloop.run(serve(chosen.engine, chosen.port, chosen.ready.touch))


if __name__ == "__main__":
    main()
