"""The gRPC server over grpcio (grpc.aio): for platforms without an ngh2 wheel, and the reference in the tests.

The same interface and behaviour as http2.py, at more than ten times its cost per call, save for what grpcio's core
decides before a handler of ours sees the call:

* A malformed `grpc-timeout`, a message with a wrong prefix or none, an unknown encoding, a content-type that is not
  gRPC, and headers over the limits end in the core's own gRPC status or HTTP error; `refuse` is not asked. Of two
  messages in a unary call the first is taken.
* A stream that the peer abandons may report `half_closed` before `closed`.
* `message_bytes_max` is checked after the whole message was received and decompressed: the core's own limit, which is
  `MESSAGE_HARD_FACTOR` times as much, answers with a gRPC error, which a gateway may take for "allow". So one call may
  hold that much memory, and a gateway must not be configured to send messages beyond it.
* `connections_max`, `header_count_max`, `receive_buffer_bytes_max`, `write_stall_timeout_s` are not enforced, and
  `connections` is always 0: grpcio does not show its connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import grpc.aio

from sidecar.transport import listeners
from sidecar.transport.grpc_framing import answer_within_seconds
from sidecar.transport.reporting import report
from sidecar.transport.service import Refusal, ServerLimits, Status, TcpAddress, UnaryMethod, UnixAddress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from sidecar.transport.service import Address, Method, Service, StreamMethod, StreamReceiver, TlsFiles

    _Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]

MESSAGE_HARD_FACTOR = 16
"""How many times `message_bytes_max` the core may receive, or inflate a compressed message to."""

_INT32_MAX = 2**31 - 1
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class GrpcioServer:
    """A gRPC server; implements `service.Server`; the arguments are those of `Http2Server`.

    Raises:
        OSError: `unix_fds` names a socket: grpcio cannot accept from one that another process bound.
    """

    def __init__(
        self,
        service: Service,
        addresses: Sequence[Address],
        limits: ServerLimits | None = None,
        *,
        tls: TlsFiles | None = None,
        on_error: Callable[[Exception, str], None],
        reuse_port: bool = False,
        unix_fds: Mapping[str, int] | None = None,
    ) -> None:
        if unix_fds:
            raise OSError(f"unix:{next(iter(unix_fds))}: the grpcio engine cannot share a Unix socket between workers")
        self.limits = limits if limits is not None else ServerLimits()
        self.on_error = on_error
        self.refused = dict.fromkeys(Refusal, 0)
        self._service = service
        self._addresses = tuple(addresses)
        self._tls = tls
        self._reuse_port = reuse_port
        self._server: grpc.aio.Server
        self._sockets: list[tuple[UnixAddress, tuple[int, int] | None]] = []
        self._calls: set[_UnaryCall] = set()
        self._streams: set[_Stream] = set()
        self._draining = False

    @property
    def calls_in_flight(self) -> int:
        """How many calls have begun and are not answered."""
        return len(self._calls) + len(self._streams)

    @property
    def connections(self) -> int:
        """Always 0: grpcio does not tell."""
        return 0

    async def start(self) -> tuple[Address, ...]:
        """Bind all addresses and serve; returns them with the real ports.

        Raises:
            OSError: An address cannot be bound, or a TLS file cannot be read; nothing is left listening.
        """
        self._server = grpc.aio.server(options=_options(self.limits, self._reuse_port))
        self._server.add_generic_rpc_handlers((_Router(self, self._service),))
        credentials = _credentials(self._tls) if self._tls is not None else None
        bound: list[Address] = []
        try:
            for address in self._addresses:
                bound.append(self._bind(address, credentials))  # noqa: PERF401 - what was bound before a failure counts
        except OSError:
            await self._server.start()  # grpcio closes listeners only of servers that were started
            await self._server.stop(None)
            self._remove_sockets()
            raise
        await self._server.start()
        return tuple(bound)

    def _bind(self, address: Address, credentials: grpc.ServerCredentials | None) -> Address:
        if isinstance(address, UnixAddress):
            listeners.clear_stale_socket(address)
        try:
            if credentials is not None:
                port = self._server.add_secure_port(str(address), credentials)
            else:
                port = self._server.add_insecure_port(str(address))
        except RuntimeError as fault:
            raise OSError(f"{address}: cannot be bound: {fault}") from fault
        if isinstance(address, TcpAddress):
            return TcpAddress(address.host, port)
        self._sockets.append((address, listeners.socket_identity(address)))
        return address

    def _remove_sockets(self) -> None:
        for address, identity in self._sockets:
            listeners.remove_socket(address, identity)
        self._sockets.clear()

    async def drain(self, grace_s: float) -> None:
        """As `Http2Server.drain`."""
        self._draining = True
        for stream in list(self._streams):
            stream.finish(Refusal.SHUTTING_DOWN.status, Refusal.SHUTTING_DOWN.label)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(grace_s, self._refuse_all)
        await self._server.stop(grace_s + 1.0)
        timer.cancel()
        self._remove_sockets()

    def _refuse_all(self) -> None:
        for call in list(self._calls):
            call.refuse(Refusal.SHUTTING_DOWN)

    async def unary(self, method: UnaryMethod, path: str, message: bytes, context: _Context) -> bytes:
        """Serve one unary call."""
        call = _UnaryCall(self, method, path, context)
        self._calls.add(call)
        try:
            self._open(call, message)
            answer = await call.outcome
        except asyncio.CancelledError:
            call.abandon()
            raise
        finally:
            self._calls.discard(call)
        if isinstance(answer, bytes):
            return answer
        return await context.abort(_CODES[answer[0]], answer[1])

    def _open(self, call: _UnaryCall, message: bytes) -> None:
        if len(self._calls) + len(self._streams) > self.limits.calls_in_flight_max:
            call.refuse(Refusal.OVERLOADED)
        elif len(message) > self.limits.message_bytes_max:
            call.refuse(Refusal.MESSAGE_TOO_LARGE)
        else:
            call.start(message)

    async def stream(self, method: StreamMethod, path: str, messages: AsyncIterator[bytes], context: _Context) -> None:
        """Serve one streaming call."""
        stream = _Stream(self, path, context)
        self._streams.add(stream)
        if len(self._calls) + len(self._streams) > self.limits.calls_in_flight_max:
            stream.finish(Refusal.OVERLOADED.status, Refusal.OVERLOADED.label)
        elif self._draining:
            stream.finish(Refusal.SHUTTING_DOWN.status, Refusal.SHUTTING_DOWN.label)
        else:
            stream.open(method)
        reading = asyncio.ensure_future(stream.read(messages))
        try:
            status, details = await stream.write()
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
            self._streams.discard(stream)
            stream.closed()
        if status is not Status.OK:
            await context.abort(_CODES[status], details)


class _Router(grpc.GenericRpcHandler):
    """Finds the method of a call; grpcio answers UNIMPLEMENTED where there is none."""

    def __init__(self, server: GrpcioServer, service: Service) -> None:
        self._handlers = {path: _handler(server, path, method) for path, method in service.items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """grpcio: what serves this call."""
        return self._handlers.get(handler_call_details.method)


def _handler(server: GrpcioServer, path: str, method: Method) -> grpc.RpcMethodHandler[bytes, bytes]:
    """A grpcio handler, without (de)serializers: raw bytes both ways."""
    if isinstance(method, UnaryMethod):
        unary = method

        async def serve_unary(message: bytes, context: _Context) -> bytes:
            return await server.unary(unary, path, message, context)

        return grpc.unary_unary_rpc_method_handler(serve_unary)
    streaming = method

    async def serve_stream(messages: AsyncIterator[bytes], context: _Context) -> None:
        await server.stream(streaming, path, messages, context)

    return grpc.stream_stream_rpc_method_handler(serve_stream)


def _metadata(context: _Context) -> Mapping[str, str]:
    """Request headers by lower-case name; the first value where a name is repeated."""
    fields: dict[str, str] = {}
    for name, value in context.invocation_metadata() or ():
        fields.setdefault(name, value if isinstance(value, str) else value.decode("latin-1"))
    return fields


class _UnaryCall:
    """One unary call; implements `service.Call`. `outcome` is the response message, or a status and its text."""

    def __init__(self, server: GrpcioServer, method: UnaryMethod, path: str, context: _Context) -> None:
        self._server = server
        self._method = method
        self._path = path
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.outcome: asyncio.Future[bytes | tuple[Status, str]] = self._loop.create_future()
        self.cancelled = False
        within_s = method.answer_within_s if method.answer_within_s is not None else math.inf
        remaining_s = context.time_remaining()
        if remaining_s is not None:
            within_s = min(within_s, answer_within_seconds(remaining_s))
        self.deadline = self._loop.time() + within_s

    @property
    def metadata(self) -> Mapping[str, str]:
        """Request headers by lower-case name; the first value where a name is repeated."""
        return _metadata(self._context)

    def start(self, message: bytes) -> None:
        """Call the handler, and bound the wait for its answer."""
        try:
            answer = self._method.handler(message, self)
        except Exception as fault:  # noqa: BLE001 - whatever a handler raises, its caller gets an answer
            report(self._server.on_error, fault, self._path)
            self.refuse(Refusal.HANDLER_FAILED)
            return
        if answer is not None:
            self.respond(answer)
        elif not self.outcome.done() and self.deadline != math.inf:
            self._timer = self._loop.call_at(self.deadline, self.refuse, Refusal.DEADLINE_EXCEEDED)

    def respond(self, message: bytes) -> None:
        """Send the response message and status OK. Does nothing when the call is over."""
        self._end(message)

    def fail(self, status: Status, message: str) -> None:
        """End the call with a non-OK status. Does nothing when the call is over."""
        self._end((status, message))

    def _end(self, outcome: bytes | tuple[Status, str]) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)
        if self._timer is not None:
            self._timer.cancel()

    def refuse(self, refusal: Refusal) -> None:
        """Answer with the method's response message for this refusal, or with its gRPC status."""
        if self.outcome.done():
            return
        self._server.refused[refusal] += 1
        self.cancelled = refusal in (Refusal.DEADLINE_EXCEEDED, Refusal.SHUTTING_DOWN)
        if self._method.refuse is None:
            self.fail(refusal.status, refusal.label)
            return
        try:
            message = self._method.refuse(refusal)
        except Exception as fault:  # noqa: BLE001 - a broken hook must still end in an answer
            report(self._server.on_error, fault, self._path)
            self.fail(Status.INTERNAL, Refusal.HANDLER_FAILED.label)
        else:
            self.respond(message)

    def abandon(self) -> None:
        """The caller has gone."""
        self.cancelled = True
        self.outcome.cancel()
        if self._timer is not None:
            self._timer.cancel()


class _Stream:
    """One streaming call; implements `service.ServerStream`."""

    def __init__(self, server: GrpcioServer, path: str, context: _Context) -> None:
        self._server = server
        self._path = path
        self._context = context
        self._queue: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._finish: tuple[Status, str] | None = None
        self._receiver: StreamReceiver | None = None

    @property
    def metadata(self) -> Mapping[str, str]:
        """Request headers by lower-case name."""
        return _metadata(self._context)

    def open(self, method: StreamMethod) -> None:
        """Ask the method who receives this stream's events."""
        try:
            self._receiver = method.open(self)
        except Exception as fault:  # noqa: BLE001 - whatever a handler raises, its caller gets a status
            self._failed(fault)

    def send(self, message: bytes) -> bool:
        """Queue a message; False when the stream is over, or its peer does not read and the queue is full."""
        if self._finish is not None:
            return False
        if len(self._queue) >= self._server.limits.stream_send_queue_messages_max:
            self._queue.clear()
            self.finish(Status.RESOURCE_EXHAUSTED, "send queue full")
            return False
        self._queue.append(message)
        self._wake.set()
        return True

    def finish(self, status: Status = Status.OK, message: str = "") -> None:
        """End the stream with a status, after what is queued."""
        if self._finish is None:
            self._finish = (status, message)
            self._wake.set()

    async def write(self) -> tuple[Status, str]:
        """Send what is queued until the stream is finished; returns its status."""
        while True:
            while self._queue:
                await self._context.write(self._queue.popleft())
            if self._finish is not None:
                return self._finish
            self._wake.clear()
            await self._wake.wait()

    async def read(self, messages: AsyncIterator[bytes]) -> None:
        """Tell the receiver what arrives."""
        receiver = self._receiver
        if receiver is None:
            return
        async for message in messages:
            if len(message) > self._server.limits.message_bytes_max:
                self.finish(Refusal.MESSAGE_TOO_LARGE.status, Refusal.MESSAGE_TOO_LARGE.label)
                return
            self._tell(receiver.message, message)
        self._tell(receiver.half_closed)

    def closed(self) -> None:
        """The stream is over; tell the receiver, once and last."""
        self.finish(Status.CANCELLED)
        if self._receiver is not None:
            self._tell(self._receiver.closed)

    def _tell(self, event: Callable[..., None], *arguments: bytes) -> None:
        try:
            event(*arguments)
        except Exception as fault:  # noqa: BLE001 - whatever a handler raises, its caller gets a status
            self._failed(fault)

    def _failed(self, fault: Exception) -> None:
        report(self._server.on_error, fault, self._path)
        self.finish(Status.INTERNAL, Refusal.HANDLER_FAILED.label)


def _options(limits: ServerLimits, reuse_port: bool) -> list[tuple[str, Any]]:
    """Our limits as channel arguments (grpc/impl/channel_arg_names.h)."""
    return [
        ("grpc.max_receive_message_length", min(limits.message_bytes_max * MESSAGE_HARD_FACTOR, _INT32_MAX)),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", limits.concurrent_streams_max),
        ("grpc.max_metadata_size", limits.header_list_bytes_max),
        ("grpc.absolute_max_metadata_size", limits.header_list_bytes_max),
        ("grpc.keepalive_time_ms", round(limits.keepalive_idle_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(limits.keepalive_timeout_s * 1000)),
        ("grpc.server_handshake_timeout_ms", round(limits.handshake_timeout_s * 1000)),
        ("grpc.max_connection_age_ms", round(limits.max_connection_age_s * 1000)),
        ("grpc.max_connection_age_grace_ms", round(limits.max_connection_age_grace_s * 1000)),
        ("grpc.so_reuseport", int(reuse_port)),
    ]


def _credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """As `listeners.tls_context`, for grpcio.

    Raises:
        OSError: A file cannot be read.
    """
    pair = (Path(files.key).read_bytes(), Path(files.certificate).read_bytes())
    if files.client_ca is None:
        return grpc.ssl_server_credentials([pair])
    return grpc.ssl_server_credentials([pair], Path(files.client_ca).read_bytes(), require_client_auth=True)
