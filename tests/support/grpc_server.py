"""A gRPC server of either engine for tests, with methods that echo, wait, break and chat."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sidecar.transport.grpcio import GrpcioServer
from sidecar.transport.http2 import Http2Server
from sidecar.transport.service import ServerLimits, StreamMethod, TcpAddress, UnaryMethod

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from sidecar.transport.service import Address, Call, Method, Refusal, ServerStream, TlsFiles

ENGINES = {"http2": Http2Server, "grpcio": GrpcioServer}
LOOPBACK = TcpAddress("127.0.0.1", 0)

ECHO = "/test.Service/Echo"
"""Unary; answers with the message."""
GUARDED = "/test.Service/Guarded"
"""Unary; as Echo, but raises on `raise`, waits on `hold`, and turns refusals into messages."""
HELD = "/test.Service/Held"
"""Unary; the test answers."""
CAPPED = "/test.Service/Capped"
"""Unary; never answers; refused after CAP_S."""
CHAT = "/test.Service/Chat"
"""Streaming; answers `re:` and the message, finishes on half-close; the test may do more."""
CAP_S = 0.05


@dataclass
class Chatter:
    """A stream's receiver that records what it is told."""

    stream: ServerStream
    heard: list[bytes] = field(default_factory=list)
    half_closes: int = 0
    closes: int = 0

    def message(self, data: bytes) -> None:
        assert not self.closes
        self.heard.append(data)
        if data == b"raise":
            raise RuntimeError("told to")
        self.stream.send(b"re:" + data)

    def half_closed(self) -> None:
        self.half_closes += 1
        self.stream.finish()

    def closed(self) -> None:
        self.closes += 1


@dataclass
class Running:
    """A server that is serving, and what its handlers saw."""

    server: Http2Server | GrpcioServer | None = None
    addresses: tuple[Address, ...] = ()
    handled: list[bytes] = field(default_factory=list)
    held: list[tuple[bytes, Call]] = field(default_factory=list)
    metadata: list[Mapping[str, str]] = field(default_factory=list)
    chatters: list[Chatter] = field(default_factory=list)
    errors: list[tuple[Exception, str]] = field(default_factory=list)

    @property
    def address(self) -> Address:
        return self.addresses[0]

    def methods(self) -> dict[str, Method]:
        return {
            ECHO: UnaryMethod(handler=self._echo),
            GUARDED: UnaryMethod(handler=self._guarded, refuse=refused),
            HELD: UnaryMethod(handler=self._hold),
            CAPPED: UnaryMethod(handler=self._hold, refuse=refused, answer_within_s=CAP_S),
            CHAT: StreamMethod(open=self._chat),
        }

    def _echo(self, message: bytes, call: Call) -> bytes:
        self.handled.append(message)
        if message == b"metadata":
            self.metadata.append(call.metadata)
        return message

    def _hold(self, message: bytes, call: Call) -> None:
        self.held.append((message, call))

    def _guarded(self, message: bytes, call: Call) -> bytes | None:
        if message == b"raise":
            raise RuntimeError("told to")
        return self._hold(message, call) if message == b"hold" else self._echo(message, call)

    def _chat(self, stream: ServerStream) -> Chatter:
        self.chatters.append(Chatter(stream))
        return self.chatters[-1]


def refused(refusal: Refusal) -> bytes:
    """What Guarded and Capped answer to a refusal."""
    return b"refused: " + refusal.label.encode()


@contextlib.asynccontextmanager
async def serving(
    engine: str,
    limits: ServerLimits | None = None,
    *,
    addresses: Sequence[Address] = (LOOPBACK,),
    tls: TlsFiles | None = None,
    methods: Mapping[str, Method] | None = None,
) -> AsyncIterator[Running]:
    """Serve until the block ends; fails where a handler raised without being told to."""
    running = Running()
    server = ENGINES[engine](
        {**running.methods(), **(methods or {})},
        addresses,
        limits,
        tls=tls,
        on_error=lambda fault, method: running.errors.append((fault, method)),
    )
    running.server = server
    running.addresses = await server.start()
    try:
        yield running
    finally:
        await server.drain(0)
    assert [str(fault) for fault, _ in running.errors if str(fault) != "told to"] == []
