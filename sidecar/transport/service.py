"""What a gRPC server offers to its handlers: the one interface both engines (http2.py, grpcio.py) implement.

A handler is called with the request's bytes, on the event loop, and either returns the response's bytes at once or
returns None and calls `Call.respond` (or `Call.fail`) later, exactly once. It never sees HTTP/2.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Protocol, TypeAlias

ANSWER_MARGIN_S = 0.005


def wait_until(deadline: float) -> float:
    """When all that a handler waits for must have ended, so that its own answer leaves and not the transport's refusal.

    Some milliseconds before the call's deadline, since refusals are up to a tick early and loops count whole
    milliseconds; half of the time where there is hardly more than that. Loops keep the monotonic clock (asyncio and
    libuv alike).
    """
    left_s = deadline - monotonic()
    if left_s >= 2 * ANSWER_MARGIN_S:
        return deadline - ANSWER_MARGIN_S
    return deadline - max(0.0, left_s) / 2


class Status(enum.IntEnum):
    """gRPC status codes (grpc/grpc doc/statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Refusal(enum.Enum):
    """Why the transport refuses a call before, or instead of, its handler's answer; the value is the gRPC status."""

    MESSAGE_TOO_LARGE = "message_too_large", Status.RESOURCE_EXHAUSTED
    METADATA_TOO_LARGE = "metadata_too_large", Status.RESOURCE_EXHAUSTED  # more or longer request headers than allowed
    MESSAGE_MALFORMED = "message_malformed", Status.INTERNAL  # wrong length prefix, two messages, none, truncated
    COMPRESSION_UNSUPPORTED = "compression_unsupported", Status.UNIMPLEMENTED
    TIMEOUT_MALFORMED = "timeout_malformed", Status.INVALID_ARGUMENT
    DEADLINE_EXCEEDED = "deadline_exceeded", Status.DEADLINE_EXCEEDED
    OVERLOADED = "overloaded", Status.RESOURCE_EXHAUSTED  # too many calls in flight, or bytes of incomplete messages
    SHUTTING_DOWN = "shutting_down", Status.UNAVAILABLE
    HANDLER_FAILED = "handler_failed", Status.INTERNAL  # the handler raised: a bug, logged by the transport's on_error

    def __init__(self, label: str, status: Status) -> None:
        self.label = label
        self.status = status


class Call(Protocol):
    """One unary call, from the handler's side."""

    @property
    def deadline(self) -> float:
        """When the answer must have left, in seconds of the loop's clock; `math.inf` where nothing bounds it."""

    @property
    def cancelled(self) -> bool:
        """True once the peer reset the stream, the connection was lost, or the call was refused for its deadline."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Request headers by lower-case name; the first value where a name is repeated."""

    def respond(self, message: bytes) -> None:
        """Send the response message and status OK. Does nothing when the call is over or cancelled."""

    def fail(self, status: Status, message: str) -> None:
        """End the call with a non-OK status. Does nothing when the call is over or cancelled."""


UnaryHandler: TypeAlias = Callable[[bytes, Call], "bytes | None"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnaryMethod:
    """One request message in, one response message out.

    Attributes:
        handler: Called on the loop with the message; see the module's docstring.
        refuse: Where given, a refusal becomes this *response message* with status OK instead of a gRPC error.
            Check needs it: under `failure_mode_allow: true` Envoy lets the request pass on any gRPC error. It also
            covers a handler that raises.
        answer_within_s: The longest time a call may take before it is refused with DEADLINE_EXCEEDED; the caller's
            `grpc-timeout`, less a margin that lets the answer arrive in time, shortens it. None: no cap of ours.
    """

    handler: UnaryHandler
    refuse: Callable[[Refusal], bytes] | None = None
    answer_within_s: float | None = None


class ServerStream(Protocol):
    """One streaming call, from the handler's side; bounded buffering, `send` reports back-pressure."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Request headers by lower-case name."""

    def send(self, message: bytes) -> bool:
        """Queue a message. False when the peer is not reading and the queue is full (the stream is then ended)."""

    def finish(self, status: Status = Status.OK, message: str = "") -> None:
        """End the stream with a status."""


class StreamReceiver(Protocol):
    """What a streaming handler is told."""

    def message(self, data: bytes) -> None:
        """The peer sent a message."""

    def half_closed(self) -> None:
        """The peer will send no more messages."""

    def closed(self) -> None:
        """The stream is over (finished, reset, connection lost); called exactly once, last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamMethod:
    """Messages in both directions; `open` is called once per stream and returns what receives its events."""

    open: Callable[[ServerStream], StreamReceiver]


Method: TypeAlias = UnaryMethod | StreamMethod

Service: TypeAlias = Mapping[str, Method]
"""Methods by full path, such as `/envoy.service.auth.v3.Authorization/Check`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """A limit on everything a peer can make the server hold; sizes in bytes, times in seconds.

    `receive_buffer_bytes_max` is the sum over all incomplete request messages. A call whose headers exceed
    `header_list_bytes_max` or `header_count_max` is refused alone; at `HEADER_HARD_FACTOR` times as much its connection
    is closed. A peer that takes none of its answers' bytes for `write_stall_timeout_s` is disconnected.

    `max_connection_age_s` is applied with +-10 % jitter, so that clients do not reconnect in step; at that age the
    connection is drained with GOAWAY, and closed `max_connection_age_grace_s` later at the latest.
    """

    message_bytes_max: int = 4 * 1024 * 1024
    concurrent_streams_max: int = 1024
    connections_max: int = 4096
    calls_in_flight_max: int = 16384
    receive_buffer_bytes_max: int = 64 * 1024 * 1024
    header_list_bytes_max: int = 32 * 1024
    header_count_max: int = 128
    stream_send_queue_messages_max: int = 64
    keepalive_idle_s: float = 60.0
    keepalive_timeout_s: float = 20.0
    handshake_timeout_s: float = 10.0
    max_connection_age_s: float = 3600.0
    max_connection_age_grace_s: float = 30.0
    write_stall_timeout_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files for serving TLS; with `client_ca` a client certificate signed by it is required (mTLS).

    With `client_name` it must name that host, too (`http2.py` alone).
    """

    certificate: str
    key: str
    client_ca: str | None = None
    client_name: str = ""


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """Where to listen: an IP address (or host name) and a port; port 0 picks a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        """`host:port`, IPv6 in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """Where to listen: a Unix socket's path; a stale socket file is replaced, a live one is an error."""

    path: str

    def __str__(self) -> str:
        """`unix:path`."""
        return f"unix:{self.path}"


Address: TypeAlias = TcpAddress | UnixAddress


class Server(Protocol):
    """A gRPC server on the running event loop, over any number of addresses."""

    async def start(self) -> tuple[Address, ...]:
        """Bind all addresses and serve; returns them with the real ports.

        Raises:
            OSError: An address cannot be bound; nothing is left listening.
        """

    async def drain(self, grace_s: float) -> None:
        """Stop accepting, send GOAWAY, let calls in flight finish, then close; return after `grace_s` at the latest."""

    @property
    def calls_in_flight(self) -> int:
        """How many calls have begun and are not answered."""

    @property
    def connections(self) -> int:
        """How many connections are open."""

    @property
    def refused(self) -> Mapping[Refusal, int]:
        """How many unary calls were refused, by the reason."""
