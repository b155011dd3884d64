"""A client of an xDS server: subscribes to one type of resource over ADS, and says what became of each response.

    connect -> subscribe (node, the version in use) -> response -> apply -> ACK, or NACK with the reason -> ...

The protocol is "state of the world": a response holds all resources, and replaces what was there as a whole. What is
refused changes nothing, and neither does a server that is gone: it is asked again, after pauses that double up to a
bound and are jittered, so that many clients do not return in step.

    https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol

grpcio is imported when a client is made: it costs 20 MiB, which a process without xDS does not pay.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sidecar.edges.log import get_log
from sidecar.envoy.pb.discovery_pb2 import DiscoveryRequest, DiscoveryResponse

if TYPE_CHECKING:
    import grpc.aio
    from google.protobuf.any_pb2 import Any as AnyMessage

    from sidecar.policy.settings import XdsSettings

METHOD: Final = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"

REASON_CHARS_MAX: Final = 4096
"""Of a NACK's reason."""

KEEPALIVE_S: Final = 30.0
"""A connection that is silent for so long is pinged, and given up if there is no answer in as much time."""

INVALID_ARGUMENT: Final = 3

Apply: TypeAlias = Callable[[Sequence["AnyMessage"]], Awaitable[str]]
"""Called with all resources of a response; returns "" when they are in use, else why they were refused."""

_log = get_log("xds")


@dataclass(slots=True, eq=False)
class AdsStatus:
    """How things stand, for operators and metrics.

    Attributes:
        connected: A stream is open, and something came over it.
        version: What is in use; "" before anything is.
        last_error: Why the last stream ended, or the last response was refused; "" once a response was accepted.
    """

    connected: bool = False
    version: str = ""
    last_error: str = ""
    accepted_total: int = 0
    refused_total: int = 0
    failures_total: int = 0


class AdsClient:
    """Keeps one subscription. Use it in one event loop.

    Args:
        settings: The server.
        type_url: Of the resources.
        apply: Puts a response to use.
        jitter: From 0 to 1; a pause is between half of its length and all of it.
    """

    def __init__(
        self,
        settings: XdsSettings,
        type_url: str,
        apply: Apply,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.status = AdsStatus()
        self._settings = settings
        self._type_url = type_url
        self._apply = apply
        self._jitter = jitter
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to ask, in the background."""
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else gRPC writes lines of its own between those of the log
        self._task = asyncio.get_running_loop().create_task(self._run(), name="xds")
        self._task.add_done_callback(_report)

    async def close(self) -> None:
        """End the subscription."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def detail(self) -> dict[str, object]:
        """For /readyz; holds no secret."""
        status = self.status
        return {
            "server": self._settings.server,
            "connected": status.connected,
            "version": status.version,
            "last_error": status.last_error,
        }

    async def _run(self) -> None:
        pause_s = 0.0
        while True:
            heard = await self._subscribed()
            first_s = self._settings.backoff_s if heard else self._settings.retry_s
            pause_s = first_s if heard or not pause_s else min(pause_s * 2, self._settings.backoff_s_max)
            await asyncio.sleep(pause_s * (0.5 + self._jitter() / 2))

    async def _subscribed(self) -> bool:
        """One stream, from connecting to its end; whether anything came over it."""
        import grpc  # noqa: PLC0415 - see the module's head

        heard = False
        try:
            async with _channel(self._settings) as channel:
                stream = channel.stream_stream(
                    METHOD,
                    request_serializer=DiscoveryRequest.SerializeToString,
                    response_deserializer=DiscoveryResponse.FromString,
                )(metadata=tuple((name, value.reveal()) for name, value in self._settings.headers))
                await stream.write(self._subscription())
                async for response in stream:
                    if not heard:
                        _log.info("xds_connected", server=self._settings.server)
                    heard = self.status.connected = True
                    await stream.write(await self._answer(response))
            reason = "the server ended the stream"
        except grpc.aio.AioRpcError as error:
            reason = f"{error.code().name}: {error.details()}"
        except (OSError, ValueError, grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            reason = str(error) or type(error).__name__
        self.status.connected = False
        self.status.failures_total += 1
        self.status.last_error = reason
        _log.warning("xds_disconnected", server=self._settings.server, reason=reason, version=self.status.version)
        return heard

    def _subscription(self) -> DiscoveryRequest:
        request = DiscoveryRequest(type_url=self._type_url, version_info=self.status.version)
        request.node.id = self._settings.node_id
        request.node.user_agent_name = "sidecar"
        request.node.metadata.update(dict(self._settings.node_metadata))
        return request

    async def _answer(self, response: DiscoveryResponse) -> DiscoveryRequest:
        """Put a response to use; the ACK or NACK."""
        status = self.status
        if response.type_url != self._type_url:
            reason = f"resources of type {response.type_url} were not asked for"
        else:
            reason = await self._apply(response.resources)
        answer = DiscoveryRequest(type_url=self._type_url, response_nonce=response.nonce)
        if reason:
            status.refused_total += 1
            status.last_error = f"version {response.version_info} was refused: {reason}"
            _log.error("xds_refused", version=response.version_info, version_kept=status.version, reason=reason)
            answer.error_detail.code = INVALID_ARGUMENT
            answer.error_detail.message = reason[:REASON_CHARS_MAX]
        else:
            status.accepted_total += 1
            status.version, status.last_error = response.version_info, ""
        answer.version_info = status.version
        return answer


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (bug := task.exception()) is not None:
        _log.error("xds_failed", exc_info=bug)


def _channel(settings: XdsSettings) -> grpc.aio.Channel:
    """A new channel, so that nothing of a failed one is waited for.

    Raises:
        OSError: A TLS file cannot be read.
    """
    import grpc.aio  # noqa: PLC0415 - see the module's head

    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", settings.message_bytes_max),
        ("grpc.keepalive_time_ms", int(KEEPALIVE_S * 1000)),
        ("grpc.keepalive_timeout_ms", int(KEEPALIVE_S * 1000)),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]
    if settings.tls is None:
        return grpc.aio.insecure_channel(settings.server, options=options)
    tls = settings.tls
    if tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    credentials = grpc.ssl_channel_credentials(_bytes(tls.ca), _bytes(tls.key), _bytes(tls.certificate))
    return grpc.aio.secure_channel(settings.server, credentials, options=options)


def _bytes(path: str | None) -> bytes | None:
    return Path(path).read_bytes() if path is not None else None
