"""Unary and streaming calls of one HTTP/2 connection, seen from both sides: the handler's and the connection's.

The connection tells a call what arrived (`receive`, `closed`), the handler answers it, the deadline wheel expires it;
whichever ends the call first wins, and everything later does nothing.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from sidecar.transport import grpc_framing
from sidecar.transport.grpc_framing import FramingError, MessageReader
from sidecar.transport.service import Refusal, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sidecar.transport.http2_connection import Http2Connection
    from sidecar.transport.request_head import RequestHead
    from sidecar.transport.service import StreamMethod, StreamReceiver, UnaryMethod

NO_ERROR = 0x0
ENHANCE_YOUR_CALM = 0xB


class _CallBase:
    """What both kinds of call share: identity, deadline, and the one transition from open to over."""

    __slots__ = (
        "_answers",
        "_connection",
        "_discarded_bytes",
        "_held_bytes",
        "_reader",
        "bucket",
        "cancelled",
        "deadline",
        "head",
        "over",
        "stream_id",
    )

    def __init__(self, connection: Http2Connection, stream_id: int, head: RequestHead, started: float) -> None:
        self._connection = connection
        self._answers = connection.answers
        self.stream_id = stream_id
        self.head = head
        self.deadline = started + head.answer_within_s
        """When the answer must have left, on the loop's clock."""
        self.over = False
        self.cancelled = False
        self.bucket: int | None = None
        self._reader: MessageReader | None = None
        self._discarded_bytes = 0
        self._held_bytes = 0

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
        self._connection.call_over(self)
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

    __slots__ = ("_message", "_method")

    def __init__(
        self, connection: Http2Connection, stream_id: int, head: RequestHead, started: float, method: UnaryMethod
    ) -> None:
        super().__init__(connection, stream_id, head, started)
        self._method = method
        self._message: bytes | None = None

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
        hook = self._method.refuse
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
            message = self._sole_message(data, ended)
        except FramingError as fault:
            self.refuse(fault.refusal)
            return
        if message is not None:
            self._invoke(message)

    def _sole_message(self, data: bytes, ended: bool) -> bytes | None:
        """The one message of a unary call, once the peer has ended its side; None before."""
        if ended and self._reader is None:
            return grpc_framing.sole_message(data, self.head.encoding, self._connection.limits.message_bytes_max)
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

    def _invoke(self, message: bytes) -> None:
        try:
            answer = self._method.handler(message, self)
        except Exception as fault:  # noqa: BLE001 - whatever a handler raises, its caller gets an answer
            self._connection.report(fault, self.head.path)
            self.refuse(Refusal.HANDLER_FAILED)
        else:
            if answer is not None:
                self.respond(answer)

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

    __slots__ = ("_finish", "_headers_sent", "_method", "_peer_ended", "_queue", "_receiver")

    def __init__(
        self, connection: Http2Connection, stream_id: int, head: RequestHead, started: float, method: StreamMethod
    ) -> None:
        super().__init__(connection, stream_id, head, started)
        self._method = method
        self._queue: deque[bytes] = deque()
        self._receiver: StreamReceiver | None = None
        self._headers_sent = False
        self._peer_ended = False
        self._finish: tuple[Status, str] | None = None

    def open(self) -> None:
        """Ask the method who receives this stream's events."""
        try:
            self._receiver = self._method.open(self)
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
