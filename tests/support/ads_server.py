"""An xDS server for tests: grpcio's, with what it was asked, and what it is told to send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage

from sidecar.edges.ads import METHOD
from sidecar.envoy.pb.discovery_pb2 import DiscoveryRequest, DiscoveryResponse
from sidecar.envoy.pb.ratelimit_config_pb2 import RateLimitConfig
from sidecar.policy.ratelimit_resources import TYPE_URL

PATIENCE_S = 15.0


def resource(name: str = "shop", domain: str = "shop", **fields: Any) -> AnyMessage:
    """One domain, packed; with a limit where nothing else is said."""
    descriptors = fields.pop("descriptors", [{"key": "user", "rate_limit": {"unit": "HOUR", "requests_per_unit": 2}}])
    config = RateLimitConfig(name=name, domain=domain, descriptors=descriptors, **fields)
    return AnyMessage(type_url=TYPE_URL, value=config.SerializeToString())


class AdsServer:
    """Serves one stream at a time; `asked` has every request, `metadata` the last stream's."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.port = 0
        self.asked: asyncio.Queue[DiscoveryRequest] = asyncio.Queue()
        self.metadata: dict[str, str] = {}
        self.streams = 0
        self._credentials = credentials
        self._outgoing: asyncio.Queue[DiscoveryResponse | None] = asyncio.Queue()
        self._server: grpc.aio.Server | None = None
        self._nonce = 0

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    async def start(self) -> AdsServer:
        """Serve, on the same port as before if there was one."""
        server = self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        _, service, method = METHOD.split("/")
        handler = grpc.stream_stream_rpc_method_handler(
            self._stream, DiscoveryRequest.FromString, DiscoveryResponse.SerializeToString
        )
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
        address = f"127.0.0.1:{self.port}"
        if self._credentials is None:
            self.port = server.add_insecure_port(address)
        else:
            self.port = server.add_secure_port(address, self._credentials)
        await server.start()
        return self

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def send(self, version: str, *resources: AnyMessage, type_url: str = TYPE_URL) -> str:
        """Send a response on the stream that is open, or the next one; returns its nonce."""
        self._nonce += 1
        response = DiscoveryResponse(
            version_info=version, resources=resources, type_url=type_url, nonce=f"n{self._nonce}"
        )
        self._outgoing.put_nowait(response)
        return response.nonce

    def end_stream(self) -> None:
        """End the stream that is open, or the next one."""
        self._outgoing.put_nowait(None)

    async def request(self) -> DiscoveryRequest:
        """The next request that was not looked at yet."""
        return await asyncio.wait_for(self.asked.get(), PATIENCE_S)

    async def _stream(
        self, requests: AsyncIterator[DiscoveryRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[DiscoveryResponse]:
        self.streams += 1
        self.metadata = {str(key): str(value) for key, value in context.invocation_metadata() or ()}
        reader = asyncio.ensure_future(self._read(requests))
        try:
            while (response := await self._outgoing.get()) is not None:
                yield response
        finally:
            reader.cancel()

    async def _read(self, requests: AsyncIterator[DiscoveryRequest]) -> None:
        async for asked in requests:
            self.asked.put_nowait(asked)


def packed(configs: Iterable[RateLimitConfig]) -> list[AnyMessage]:
    """Messages as resources."""
    return [AnyMessage(type_url=TYPE_URL, value=config.SerializeToString()) for config in configs]
