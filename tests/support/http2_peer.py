"""HTTP/2 peers for tests: one that speaks the protocol well (over ngh2), and one that writes whatever it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import ngh2

from sidecar.transport.service import TcpAddress

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping, Sequence

    from sidecar.transport.service import Address

PATIENCE_S = 10.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4


def message_frame(message: bytes, flag: int = 0) -> bytes:
    """A gRPC message with its prefix."""
    return struct.pack(">BI", flag, len(message)) + message


async def eventually(condition: Callable[[], object], what: str = "the condition") -> None:
    """Wait until a condition holds, with a deadline.

    Raises:
        AssertionError: It did not hold in time.
    """
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"{what} did not come about")
        await asyncio.sleep(0.002)


@dataclass
class Answer:
    """What came back on one stream."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    trailers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False
    closed: bool = False
    reset_code: int | None = None

    @property
    def http_status(self) -> int:
        return int(self.headers[b":status"])

    @property
    def grpc_status(self) -> int | None:
        """The gRPC status, from the trailers or from trailers-only headers; None where there is none."""
        value = self.trailers.get(b"grpc-status", self.headers.get(b"grpc-status"))
        return None if value is None else int(value)

    @property
    def messages(self) -> list[bytes]:
        """The messages in the body; fails where it ends in the middle of one."""
        found, at = [], 0
        while at < len(self.body):
            (length,) = struct.unpack_from(">I", self.body, at + 1)
            found.append(self.body[at + 5 : at + 5 + length])
            at += 5 + length
        assert at == len(self.body), "the body ends inside a message"
        return found

    def take(self, event: ngh2.Event) -> None:
        """Something came on this stream."""
        self.ended = self.ended or bool(getattr(event, "end_stream", False))
        match event:
            case ngh2.ResponseReceived():
                self.headers = dict(event.headers)
            case ngh2.DataReceived():
                self.body += event.data
            case ngh2.TrailersReceived():
                self.trailers = dict(event.headers)
                self.ended = True
            case ngh2.StreamReset():
                self.reset_code = event.error_code
            case ngh2.StreamClosed():
                self.closed = True


class Http2Peer(asyncio.Protocol):
    """A well-behaved HTTP/2 client with access to each step."""

    def __init__(self, settings: Mapping[int, int] | None, auto_window_update: bool) -> None:
        self._h2 = ngh2.Connection(
            ngh2.Role.CLIENT,
            ngh2.Configuration(auto_window_update=auto_window_update, peer_max_concurrent_streams=10_000),
        )
        self._settings = dict(settings or {})
        self._changed = asyncio.Event()
        self.answers: dict[int, Answer] = {}
        self.goaways: list[ngh2.GoAwayReceived] = []
        self.pings = 0
        self.remote_settings: dict[int, int] = {}
        self.lost = False
        self.transport: asyncio.Transport

    @classmethod
    async def connect(
        cls,
        address: Address,
        *,
        settings: Mapping[int, int] | None = None,
        auto_window_update: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> Http2Peer:
        loop = asyncio.get_running_loop()

        def build() -> Http2Peer:
            return cls(settings, auto_window_update)

        if isinstance(address, TcpAddress):
            name = "localhost" if tls is not None else None
            _, peer = await loop.create_connection(build, address.host, address.port, ssl=tls, server_hostname=name)
        else:
            _, peer = await loop.create_unix_connection(build, address.path)
        return peer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._h2.initiate_connection(self._settings)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.lost = True
        self._changed.set()

    def data_received(self, data: bytes) -> None:
        with contextlib.suppress(ngh2.ConnectionStateError):
            self._h2.receive_data(data)
            self._take_events()
            self.flush()
        self._changed.set()

    def _take_events(self) -> None:
        for event in self._h2.events():
            answer = self.answers.get(getattr(event, "stream_id", 0))
            if answer is not None:
                answer.take(event)
            match event:
                case ngh2.GoAwayReceived():
                    self.goaways.append(event)
                case ngh2.PingReceived():
                    self.pings += 1
                case ngh2.ConnectionClosed():
                    self.transport.close()
                case ngh2.SettingsReceived():
                    self.remote_settings.update(event.settings)

    def flush(self) -> None:
        if not self.lost:
            output = self._h2.data_to_send()
            if output:
                self.transport.write(output)
            self._take_events()

    async def until(self, condition: Callable[[], object], what: str = "the condition") -> None:
        """Wait until something that arrives makes the condition true, or the connection is lost."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                assert not self.lost, f"the connection was lost before {what}"
                self._changed.clear()
                await self._changed.wait()

    async def until_lost(self) -> None:
        """Wait until the server has closed the connection."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.lost:
                self._changed.clear()
                await self._changed.wait()

    def begin(
        self,
        path: str,
        *,
        metadata: Sequence[tuple[bytes, bytes]] = (),
        method: bytes = b"POST",
        content_type: bytes | None = b"application/grpc",
        ended: bool = False,
    ) -> int:
        """Send request headers; returns the stream."""
        headers = [(b":method", method), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"test")]
        if content_type is not None:
            headers.append((b"content-type", content_type))
        headers += [(b"te", b"trailers"), *metadata]
        stream_id = self._h2.send_request(headers, end_stream=ended)
        self.answers[stream_id] = Answer()
        self.flush()
        return stream_id

    def send(self, stream_id: int, data: bytes, *, ended: bool = False) -> None:
        """Send a body's bytes as they are, in DATA frames of their own."""
        self._h2.send_data(stream_id, data, end_stream=ended)
        self.flush()

    def end(self, stream_id: int) -> None:
        self._h2.end_stream(stream_id)
        self.flush()

    def unsent(self, stream_id: int) -> int:
        """How much of a body waits for the server's flow-control windows."""
        return self._h2.queued_body_size(stream_id)

    def reset(self, stream_id: int) -> None:
        self._h2.reset_stream(stream_id)
        self.flush()

    def widen(self, stream_id: int, size: int) -> None:
        """Open the stream's receive window to `size`."""
        self._h2.set_local_window_size(size, stream_id=stream_id)
        self.flush()

    async def answer(self, stream_id: int) -> Answer:
        """The whole answer on a stream."""
        answer = self.answers[stream_id]
        await self.until(lambda: answer.ended or answer.reset_code is not None or answer.closed, "the answer")
        return answer

    async def call(
        self,
        path: str,
        body: bytes,
        *,
        metadata: Sequence[tuple[bytes, bytes]] = (),
        method: bytes = b"POST",
        content_type: bytes | None = b"application/grpc",
    ) -> Answer:
        """One request with this body (already framed), and its answer."""
        stream_id = self.begin(path, metadata=metadata, method=method, content_type=content_type)
        self.send(stream_id, body, ended=True)
        return await self.answer(stream_id)

    async def ask(self, path: str, message: bytes, **how: Sequence[tuple[bytes, bytes]]) -> bytes:
        """One good unary call; returns its response message."""
        answer = await self.call(path, message_frame(message), **how)
        assert answer.grpc_status == 0, answer
        (response,) = answer.messages
        return response

    def close(self) -> None:
        self.transport.abort()


def raw_frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """A frame as it is on the wire (RFC 9113 section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream_id) + payload


def plain_field(name: bytes, value: bytes) -> bytes:
    """A header field, literal without indexing, no Huffman (RFC 7541 section 6.2.2); up to 126 bytes each."""
    assert len(name) < 127
    assert len(value) < 127
    return b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value


def request_block(path: bytes) -> bytes:
    """The header block of a gRPC request: indexed :method POST and :scheme http, the rest literal."""
    return (
        b"\x83\x86"
        + plain_field(b":path", path)
        + plain_field(b":authority", b"test")
        + plain_field(b"content-type", b"application/grpc")
        + plain_field(b"te", b"trailers")
    )


def raw_request(path: str, stream_id: int, message: bytes) -> bytes:
    """A whole unary request: HEADERS and DATA."""
    headers = raw_frame(HEADERS, END_HEADERS, stream_id, request_block(path.encode()))
    return headers + raw_frame(DATA, END_STREAM, stream_id, message_frame(message))


@dataclass
class RawPeer:
    """A socket to write any bytes to, and the frames that came back."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def connect(cls, address: Address, *, greet: bool = True) -> RawPeer:
        assert isinstance(address, TcpAddress)
        peer = cls(*await asyncio.open_connection(address.host, address.port))
        if greet:
            peer.write(PREFACE + raw_frame(SETTINGS, 0, 0))
        return peer

    def write(self, data: bytes) -> None:
        if not self.writer.is_closing():
            self.writer.write(data)

    async def frames_until_closed(self) -> list[tuple[int, int, int, bytes]]:
        """All frames (kind, flags, stream, payload) until the server closes."""
        received = b""
        try:
            async with asyncio.timeout(PATIENCE_S):
                with contextlib.suppress(OSError):
                    while chunk := await self.reader.read(65536):
                        received += chunk
        finally:
            self.close()
        frames = []
        while len(received) >= 9:
            length = int.from_bytes(received[:3], "big")
            kind, flags, stream_id = struct.unpack_from(">BBI", received, 3)
            frames.append((kind, flags, stream_id, received[9 : 9 + length]))
            received = received[9 + length :]
        return frames

    async def goaway_code(self) -> int | None:
        """The error code of the last GOAWAY before the server closed; None where there was none."""
        codes = [
            int.from_bytes(payload[4:8], "big")
            for kind, _, _, payload in await self.frames_until_closed()
            if kind == GOAWAY
        ]
        return codes[-1] if codes else None

    def close(self) -> None:
        self.writer.transport.abort()
