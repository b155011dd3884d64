"""Unary and streaming calls of one HTTP/2 connection, seen from both sides: the handler's and the connection's.

The connection tells a call what arrived (`receive`, `closed`), the handler answers it, the deadline wheel expires it;
whichever ends the call first wins, and everything later does nothing.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from msgspec import Struct, field

from sidecar.transport import grpc_framing
from sidecar.transport.grpc_framing import FramingError, MessageReader, sole_message
from sidecar.transport.service import Refusal, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sidecar.transport.http2_answers import AnswerWriter
    from sidecar.transport.http2_connection import Http2Connection
    from sidecar.transport.request_head import RequestHead
    from sidecar.transport.service import StreamMethod, StreamReceiver

NO_ERROR = 0x0
ENHANCE_YOUR_CALM = 0xB


class _CallBase(Struct, eq=False):
    """What both kinds of call share: identity, deadline, and the one transition from open to over.

    A msgspec.Struct, since one is made for each call: 0.1 us, with an `__init__` 0.5.

    Attributes:
        deadline: When the answer must have left, on the loop's clock; `math.inf` where nothing bounds it.
    """

    _connection: Http2Connection
    _answers: AnswerWriter
    stream_id: int
    head: RequestHead
    deadline: float
    over: bool = False
    cancelled: bool = False
    bucket: int | None = None
    _reader: MessageReader | None = None
    _discarded_bytes: int = 0
    _held_bytes: int = 0

    @property
    def metadata(self) -> Mapping[str, str]:
        """Request headers by lower-case name; the first value where a name is repeated."""
        return self.head.metadata()

    def expire(self) -> None:
        """The deadline has come."""
        raise NotImplementedError

    def _end(self) -> None:
        """The call is answered, refused or abandoned: from here on nothing touches it."""
        self.over = True
        server = self._connection.server
        server.calls_in_flight -= 1
        if self.bucket is not None:
            server.deadlines.discard(self)
        if self._held_bytes:
            self._hold(0)

    def _message_reader(self) -> MessageReader:
        reader = self._reader
        if reader is None:
            reader = self._reader = MessageReader(self.head.encoding, self._connection.limits.message_bytes_max)
        return reader

    def _hold(self, held_bytes: int) -> bool:
        """Keep the server's account of the bytes that calls hold; False when it holds too many to hold more."""
        more = held_bytes - self._held_bytes
        if not more:
            return True
        self._held_bytes = held_bytes
        return self._connection.hold_bytes(more) or more < 0

    def _discard(self, data: bytes) -> None:
        """Bytes after the answer are dropped, up to one message's worth; then the peer is told to stop."""
        self._discarded_bytes += len(data)
        if self._discarded_bytes > self._connection.limits.message_bytes_max:
            self._answers.reset_when_sent(self.stream_id, NO_ERROR)


class UnaryCall(_CallBase):
    """One unary call; implements `service.Call`."""

    _message: bytes | None = None

    def respond(self, message: bytes) -> None:
        """Send the response message and status OK. Does nothing when the call is over."""
        if not self.over:
            self._end()
            self._answers.message(self.stream_id, message)

    def fail(self, status: Status, message: str) -> None:
        """End the call with a non-OK status. Does nothing when the call is over."""
        if not self.over:
            self._end()
            self._answers.status(self.stream_id, status, message)

    def refuse(self, refusal: Refusal) -> None:
        """Answer with the method's response message for this refusal, or with its gRPC status."""
        if self.over:
            return
        self._connection.count_refusal(refusal)
        method = self.head.unary
        hook = method.refuse if method is not None else None
        if hook is not None:
            try:
                message = hook(refusal)
            except Exception as fault:  # noqa: BLE001 - a broken hook must still end in an answer
                self._connection.report(fault, self.head.path)
                self.fail(Status.INTERNAL, Refusal.HANDLER_FAILED.label)
            else:
                self.respond(message)
            return
        self._end()
        self._answers.refusal(self.stream_id, refusal)

    def receive(self, data: bytes, ended: bool) -> None:
        """A DATA frame's payload, and whether the peer has ended its side."""
        if self.over:
            self._discard(data)
            return
        try:
            if ended and self._reader is None:
                message: bytes | None = sole_message(
                    data, self.head.encoding, self._connection.limits.message_bytes_max
                )
            else:
                message = self._gathered(data, ended)
        except FramingError as fault:
            self.refuse(fault.refusal)
            return
        method = self.head.unary
        if message is None or method is None:
            return
        try:
            answer = method.handler(message, self)
        except Exception as fault:  # noqa: BLE001 - whatever a handler raises, its caller gets an answer
            self._connection.report(fault, self.head.path)
            self.refuse(Refusal.HANDLER_FAILED)
        else:
            if answer is not None:
                self.respond(answer)

    def _gathered(self, data: bytes, ended: bool) -> bytes | None:
        """The one message of a unary call that came in pieces, once the peer has ended its side; None before."""
        reader = self._message_reader()
        messages = reader.feed(data)
        if reader.fault is not None:
            raise FramingError(reader.fault)
        if messages:
            if self._message is not None or len(messages) > 1:
                raise FramingError(Refusal.MESSAGE_MALFORMED)
            self._message = messages[0]
        if reader.pending_bytes and (ended or self._message is not None):
            raise FramingError(Refusal.MESSAGE_MALFORMED)
        if not ended:
            if not self._hold(reader.pending_bytes + len(self._message or b"")):
                raise FramingError(Refusal.OVERLOADED)
        elif self._message is None:
            raise FramingError(Refusal.MESSAGE_MALFORMED)
        return self._message if ended else None

    def expire(self) -> None:
        """The deadline has come."""
        if not self.over:
            self.cancelled = True
            self.refuse(Refusal.DEADLINE_EXCEEDED)

    def shut_down(self) -> None:
        """The server cannot wait for this call any longer."""
        if not self.over:
            self.cancelled = True
            self.refuse(Refusal.SHUTTING_DOWN)

    def closed(self) -> None:
        """The stream is gone: answered in full, reset by the peer, or lost with its connection."""
        if not self.over:
            self.cancelled = True
            self._end()


class StreamCall(_CallBase):
    """One streaming call; implements `service.ServerStream`."""

    _queue: deque[bytes] = field(default_factory=deque)
    _receiver: StreamReceiver | None = None
    _headers_sent: bool = False
    _peer_ended: bool = False
    _finish: tuple[Status, str] | None = None

    def open(self, method: StreamMethod) -> None:
        """Ask the method who receives this stream's events."""
        try:
            self._receiver = method.open(self)
        except Exception as fault:  # noqa: BLE001 - whatever a handler raises, its caller gets a status
            self._failed(fault)

    def send(self, message: bytes) -> bool:
        """Queue a message; False when the stream is over, or its peer does not read and the queue is full."""
        if self.over:
            return False
        queue_max = self._connection.limits.stream_send_queue_messages_max
        if len(self._queue) >= queue_max:
            self._connection.flush()
        if len(self._queue) >= queue_max:
            self._queue.clear()
            self._end()
            self._answers.reset(self.stream_id, ENHANCE_YOUR_CALM)
            return False
        self._queue.append(grpc_framing.frame(message))
        self._connection.stream_output(self)
        return True

    def finish(self, status: Status = Status.OK, message: str = "") -> None:
        """End the stream with a status, after what is queued."""
        if self.over:
            return
        self._end()
        if not self._headers_sent and not self._queue:
            self._answers.status(self.stream_id, status, message)
            self._stop_peer()
        else:
            self._finish = (status, message)
            self._connection.stream_output(self)

    def pump(self) -> bool:
        """Hand the next queued message to HTTP/2 once it has taken the one before; True while more is queued."""
        if self._queue and self._answers.taken(self.stream_id):
            if not self._headers_sent:
                self._headers_sent = True
                self._answers.stream_begin(self.stream_id)
            self._answers.stream_data(self.stream_id, self._queue.popleft())
        if self._finish is not None and not self._queue:
            self._answers.stream_end(self.stream_id, *self._finish)
            self._finish = None
            self._stop_peer()
        return bool(self._queue)

    def _stop_peer(self) -> None:
        if not self._peer_ended:
            self._answers.reset_when_sent(self.stream_id, NO_ERROR)

    def receive(self, data: bytes, ended: bool) -> None:
        """A DATA frame's payload, and whether the peer has ended its side."""
        self._peer_ended = self._peer_ended or ended
        if self.over:
            self._discard(data)
            return
        reader = self._message_reader()
        receiver = self._receiver
        if receiver is None:
            return
        for message in reader.feed(data):
            if not self.over:
                self._tell(receiver.message, message)
        self._after_messages(reader, receiver, ended)

    def _after_messages(self, reader: MessageReader, receiver: StreamReceiver, ended: bool) -> None:
        if self.over:
            return
        if reader.fault is not None:
            self.refuse(reader.fault)
        elif ended and reader.pending_bytes:
            self.refuse(Refusal.MESSAGE_MALFORMED)
        elif ended:
            self._tell(receiver.half_closed)
        elif not self._hold(reader.pending_bytes):
            self.refuse(Refusal.OVERLOADED)

    def _tell(self, event: Callable[..., None], *arguments: bytes) -> None:
        try:
            event(*arguments)
        except Exception as fault:  # noqa: BLE001 - whatever a handler raises, its caller gets a status
            self._failed(fault)

    def _failed(self, fault: Exception) -> None:
        self._connection.report(fault, self.head.path)
        self.finish(Status.INTERNAL, Refusal.HANDLER_FAILED.label)

    def refuse(self, refusal: Refusal) -> None:
        """End the stream for a reason of the transport's."""
        self.finish(refusal.status, refusal.label)

    def expire(self) -> None:
        """The deadline has come."""
        self.refuse(Refusal.DEADLINE_EXCEEDED)

    def shut_down(self) -> None:
        """The server goes away."""
        self.refuse(Refusal.SHUTTING_DOWN)

    def closed(self) -> None:
        """The stream is gone; tell the receiver, once and last."""
        if not self.over:
            self.cancelled = True
            self._end()
        self._queue.clear()
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            self._tell(receiver.closed)
