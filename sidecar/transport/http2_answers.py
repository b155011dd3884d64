"""Answers on their way into ngh2: the header fields of gRPC responses, and what is queued for each stream.

Nothing is written to the transport here. Outside of a connection's turn each operation asks for a flush; within one
(`corked`) the turn's end flushes for all. A stream that is gone is no error: its StreamClosed event tells the call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ngh2 import NGH2Error

from sidecar.transport import grpc_framing
from sidecar.transport.request_head import CONTENT_TYPE, Headers
from sidecar.transport.service import Refusal, Status

if TYPE_CHECKING:
    from collections.abc import Callable

    import ngh2

_RESPONSE: Headers = ((b":status", b"200"), (b"content-type", CONTENT_TYPE))
_TRAILERS_OK: Headers = ((b"grpc-status", b"0"),)
_ACCEPT_ENCODING = (b"grpc-accept-encoding", grpc_framing.ACCEPTED_ENCODINGS)
_ALLOW = (b"allow", b"POST")


def _status_fields(status: Status, text: str) -> Headers:
    fields = ((b"grpc-status", b"%d" % status),)
    return (*fields, (b"grpc-message", grpc_framing.percent_encode(text))) if text else fields


class AnswerWriter:
    """Queues answers on one connection's streams.

    Args:
        h2: The connection's protocol state.
        flush_soon: Called when something was queued while not `corked`.
    """

    __slots__ = ("_flush_soon", "_h2", "_resets", "corked")

    def __init__(self, h2: ngh2.Connection, flush_soon: Callable[[], None]) -> None:
        self._h2 = h2
        self._flush_soon = flush_soon
        self._resets: dict[int, int] = {}
        self.corked = False

    def message(self, stream_id: int, message: bytes) -> None:
        """The whole answer of a unary call."""
        h2 = self._h2
        try:
            h2.send_response(stream_id, _RESPONSE)
            h2.send_data(stream_id, grpc_framing.frame(message))
            h2.send_trailers(stream_id, _TRAILERS_OK)
        except NGH2Error:
            return  # the peer reset the stream behind the event that is being handled
        if not self.corked:
            self._flush_soon()

    def status(self, stream_id: int, status: Status, text: str) -> None:
        """A trailers-only answer."""
        self._headers(stream_id, (*_RESPONSE, *_status_fields(status, text)), end_stream=True)

    def refusal(self, stream_id: int, refusal: Refusal) -> None:
        """A trailers-only answer that says why the transport refused."""
        fields = (*_RESPONSE, *_status_fields(refusal.status, refusal.label))
        if refusal is Refusal.COMPRESSION_UNSUPPORTED:
            fields = (*fields, _ACCEPT_ENCODING)
        self._headers(stream_id, fields, end_stream=True)

    def http_status(self, stream_id: int, status: int) -> None:
        """An HTTP answer to what is no gRPC request."""
        fields: Headers = ((b":status", b"%d" % status),)
        self._headers(stream_id, (*fields, _ALLOW) if status == 405 else fields, end_stream=True)

    def stream_begin(self, stream_id: int) -> None:
        """The headers of a streaming answer."""
        self._headers(stream_id, _RESPONSE, end_stream=False)

    def stream_data(self, stream_id: int, framed: bytes) -> None:
        """One framed message of a streaming answer."""
        self._submit(lambda h2: h2.send_data(stream_id, framed))

    def stream_end(self, stream_id: int, status: Status, text: str) -> None:
        """The trailers of a streaming answer."""
        self._submit(lambda h2: h2.send_trailers(stream_id, _status_fields(status, text)))

    def reset(self, stream_id: int, error_code: int) -> None:
        """Reset a stream now; what is queued on it is lost."""
        self._submit(lambda h2: h2.reset_stream(stream_id, error_code))

    def reset_when_sent(self, stream_id: int, error_code: int) -> None:
        """Reset a stream once ngh2 has taken all that is queued on it: an earlier reset would overtake its headers."""
        self._resets.setdefault(stream_id, error_code)
        if not self.corked:
            self._flush_soon()

    def submit_due_resets(self) -> bool:
        """After ngh2's output was taken: reset the streams that wait for it; True if there were any."""
        due = [stream_id for stream_id in self._resets if self.taken(stream_id)] if self._resets else []
        for stream_id in due:
            self.reset(stream_id, self._resets.pop(stream_id))
        return bool(due)

    def taken(self, stream_id: int) -> bool:
        """Whether ngh2 has taken all that was queued on the stream."""
        return self._h2.queued_body_size(stream_id) == 0

    def ping(self, payload: bytes) -> None:
        """A PING with these eight bytes."""
        self._submit(lambda h2: h2.ping(payload))

    def _headers(self, stream_id: int, fields: Headers, *, end_stream: bool) -> None:
        self._submit(lambda h2: h2.send_response(stream_id, fields, end_stream=end_stream))

    def _submit(self, action: Callable[[ngh2.Connection], None]) -> None:
        try:
            action(self._h2)
        except NGH2Error:
            return
        if not self.corked:
            self._flush_soon()
