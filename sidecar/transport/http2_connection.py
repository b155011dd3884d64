"""One HTTP/2 connection: bytes from the transport into ngh2, its events to calls, its output back in one write a turn.

**Turns.** What a peer sends is worked off in turns of bounded work (EVENTS_PER_TURN, BYTES_PER_TURN, cut into slices
of SLICE_BYTES). What is left over waits, with reading paused, until the loop has served everyone else: a peer that
floods one connection slows that connection only. All output of a turn leaves in one write; answers given outside of a
turn (from a Redis reply, say) are gathered by the server and flushed once per loop iteration.

**Peers that do not read.** ngh2 keeps what flow control holds back. Once the transport's own buffer is above its
high-water mark, nothing more is taken out of ngh2 and nothing is read from the peer; where that, or a closed
flow-control window, lasts for `write_stall_timeout_s`, the connection is aborted.

**Errors.** A violation that ngh2 answers with GOAWAY ends in a ConnectionClosed event, after which the transport is
closed; one on which it gives up (a resource limit) raises, and the GOAWAY is written here. A reset must not overtake
headers that are still queued, so resets happen after output was taken (`AnswerWriter.reset_when_sent`).

**Time.** One timer a connection, for whichever comes first: handshake, keepalive, age, drain, stall (connection_clock).
"""

from __future__ import annotations

import asyncio
import math
import struct
from typing import TYPE_CHECKING, ClassVar, cast

import ngh2
from ngh2 import (
    ConnectionClosed,
    DataReceived,
    Event,
    GoAwayReceived,
    NGH2Error,
    PingAcknowledged,
    PingReceived,
    PriorityUpdateReceived,
    RequestReceived,
    SettingsReceived,
    StreamClosed,
    TrailersReceived,
    WindowUpdated,
)

from sidecar.transport.connection_clock import ConnectionClock
from sidecar.transport.http2_answers import AnswerWriter
from sidecar.transport.http2_calls import ENHANCE_YOUR_CALM, NO_ERROR, StreamCall, UnaryCall
from sidecar.transport.http2_settings import CONNECTION_WINDOW_BYTES
from sidecar.transport.reporting import report
from sidecar.transport.request_head import RequestHead
from sidecar.transport.service import Refusal, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sidecar.transport.http2 import Http2Server
    from sidecar.transport.request_head import Headers

SLICE_BYTES = 8 * 1024
EVENTS_PER_TURN = 256
BYTES_PER_TURN = 128 * 1024
OUTPUT_BYTES = 256 * 1024
WRITE_HIGH_WATER_BYTES = 512 * 1024
WRITE_LOW_WATER_BYTES = 128 * 1024

CONTROL_FRAMES_BURST, CONTROL_FRAMES_PER_S = 2000, 200
"""PING, SETTINGS, PRIORITY_UPDATE and empty DATA frames: cheap to send, costly to answer."""

DRAIN_NOTICE_S = 1.0
"""How long the final GOAWAY waits for the answer to the PING behind the shutdown notice (RFC 9113 section 6.8)."""

SHOWN_PATH_CHARACTERS = 200

_KEEPALIVE_PING = b"keepaliv"
_DRAIN_PING = b"draining"
_GOAWAY = struct.Struct(">3sBBIII")


class Http2Connection(asyncio.Protocol):
    """The server's side of one connection."""

    def __init__(self, server: Http2Server, loop: asyncio.AbstractEventLoop) -> None:
        self.limits = server.limits
        self.server = server
        self._loop = loop
        self._h2 = ngh2.Connection(ngh2.Role.SERVER, server.h2_configuration)
        self.answers = AnswerWriter(self._h2, self._flush_soon)
        self._transport: asyncio.Transport
        self._calls: dict[int, UnaryCall | StreamCall] = {}
        self._head: RequestHead | None = None
        self._fresh: list[UnaryCall | StreamCall] = []
        self._backlogged: set[StreamCall] = set()
        self._unread = b""
        self._flush_due = False
        self._writing_paused = False
        self._reading_paused = False
        self._closing = False
        self._established = False
        self._draining = False
        self._goaway_sent = False
        self._control_frames = 0.0
        self._now = self._control_since = loop.time()
        self._clock = ConnectionClock(loop, server.limits, self._check_time)

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the peer has connected (and finished its TLS handshake)."""
        self._transport = cast("asyncio.Transport", transport)
        tls = transport.get_extra_info("ssl_object")
        if not self.server.admit(self) or (tls is not None and not self.server.trusts(tls)):
            self._closing = True
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES, low=WRITE_LOW_WATER_BYTES)
        self._h2.initiate_connection(self.server.h2_settings)
        self._h2.set_local_window_size(CONNECTION_WINDOW_BYTES)
        self._flush()
        self._clock.arm()

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes from the peer."""
        if self._unread:
            self._unread += data
        elif not self._closing:
            self._unread = data
            self._turn()

    def eof_received(self) -> None:
        """asyncio: the peer has closed its side; what it asked is cancelled."""

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is gone."""
        del exc
        self._closing = True
        self._unread = b""
        self._clock.stop()
        for call in list(self._calls.values()):
            call.closed()
        self._calls.clear()
        self._backlogged.clear()
        self.server.forget(self)

    def pause_writing(self) -> None:
        """asyncio: the peer does not take what is sent; so nothing more is read from it."""
        self._writing_paused = True
        self._clock.stalled_since = self._loop.time()
        self._pace_reading()
        self._clock.arm()

    def resume_writing(self) -> None:
        """asyncio: the peer reads again."""
        self._writing_paused = False
        self._clock.stalled_since = math.inf
        self._flush()
        if self._unread:
            self._loop.call_soon(self._turn)
        self._pace_reading()

    # Turns.

    def _turn(self) -> None:
        if self._closing or self._writing_paused or not self._unread:
            return
        self._now = self._clock.heard = self._loop.time()
        view = memoryview(self._unread)
        size = min(len(view), BYTES_PER_TURN)
        at = events = 0
        self.answers.corked = True
        try:
            while at < size and events < EVENTS_PER_TURN and not self._closing:
                self._h2.receive_data(view[at : at + SLICE_BYTES])
                at += SLICE_BYTES
                batch = self._h2.events()
                events += len(batch)
                self._handle(batch)
        except NGH2Error:
            self._give_up()
            return
        finally:
            self.answers.corked = False
        self._unread = self._unread[at:] if at < len(view) else b""
        self._flush()
        if self._unread:
            self._loop.call_soon(self._turn)
        self._pace_reading()

    def _pace_reading(self) -> None:
        pause = bool(self._unread) or self._writing_paused
        if pause != self._reading_paused and not self._closing:
            self._reading_paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _handle(self, events: Iterable[Event]) -> None:
        calls = self._calls
        for event in events:
            if type(event) is DataReceived:
                call = calls.get(event.stream_id)
                if call is not None:
                    call.receive(event.data, event.end_stream)
                if not event.data and not event.end_stream:
                    self._count_control_frame(event)
            elif type(event) is RequestReceived:
                self._begin(event.stream_id, event.headers, event.end_stream)
            elif type(event) is StreamClosed:
                call = calls.pop(event.stream_id, None)
                if call is not None:
                    call.closed()
            else:
                other = self._OTHERS.get(type(event))
                if other is not None:
                    other(self, event)
        if self._fresh:
            self._watch_deadlines()

    def _begin(self, stream_id: int, headers: Headers, ended: bool) -> None:
        server = self.server
        head = self._head
        if head is None or head.headers != headers:
            head = self._head = RequestHead(headers, server.routes, self.limits)
        deadline = self._now + head.answer_within_s
        call: UnaryCall | StreamCall
        if head.http_status:
            self._reject(stream_id, head)
            return
        if head.unary is not None:
            call = UnaryCall(self, self.answers, stream_id, head, deadline)
        elif head.streaming is not None:
            call = StreamCall(self, self.answers, stream_id, head, deadline)
        else:
            self._reject(stream_id, head)
            return
        self._calls[stream_id] = call
        server.calls_in_flight += 1
        refusal = head.refusal if server.calls_in_flight <= self.limits.calls_in_flight_max else Refusal.OVERLOADED
        if refusal is not None:
            call.refuse(refusal)
            return
        if deadline != math.inf:
            self._fresh.append(call)
        if head.streaming is not None:
            cast("StreamCall", call).open(head.streaming)
        if ended:
            call.receive(b"", True)

    def _watch_deadlines(self) -> None:
        """What the turn began and did not finish waits for its deadline."""
        waiting = [call for call in self._fresh if not call.over]
        self._fresh.clear()
        if waiting:
            self.server.deadlines.watch(waiting, self._now)

    def _reject(self, stream_id: int, head: RequestHead) -> None:
        """No gRPC request, or no method of ours."""
        if head.http_status:
            self.answers.http_status(stream_id, head.http_status)
        else:
            self.answers.status(stream_id, Status.UNIMPLEMENTED, f"unknown method {head.path[:SHOWN_PATH_CHARACTERS]}")

    # Events that are neither requests nor data.

    def _on_settings(self, event: Event) -> None:
        if not self._established:
            self._established = True
            self._clock.greet_by = math.inf
        self._count_control_frame(event)

    def _on_trailers(self, event: TrailersReceived) -> None:
        call = self._calls.get(event.stream_id)
        if call is not None:
            call.receive(b"", True)

    def _on_ping_acknowledged(self, event: PingAcknowledged) -> None:
        if event.opaque_data == _DRAIN_PING and self._draining:
            self._send_goaway()
        elif self._clock.probed != math.inf:
            self._clock.probed = math.inf
            self._clock.arm()

    def _on_window(self, _event: Event) -> None:
        if not self._writing_paused:
            self._clock.stalled_since = math.inf

    def _on_closed(self, _event: Event) -> None:
        self._close()

    def _count_control_frame(self, _event: Event) -> None:
        self._control_frames += 1
        if self._control_frames > CONTROL_FRAMES_BURST:
            forgiven = (self._now - self._control_since) * CONTROL_FRAMES_PER_S
            self._control_since = self._now
            self._control_frames = max(0.0, self._control_frames - forgiven)
            if self._control_frames > CONTROL_FRAMES_BURST:
                raise ngh2.DenialOfServiceError("too many control frames")

    _OTHERS: ClassVar[dict[type, Callable[..., None]]] = {
        SettingsReceived: _on_settings,
        TrailersReceived: _on_trailers,
        PingAcknowledged: _on_ping_acknowledged,
        PingReceived: _count_control_frame,
        PriorityUpdateReceived: _count_control_frame,
        GoAwayReceived: _count_control_frame,
        WindowUpdated: _on_window,
        ConnectionClosed: _on_closed,
    }

    # What calls ask for.

    def hold_bytes(self, more: int) -> bool:
        """Account for bytes of incomplete messages; False when the server holds too many."""
        return self.server.hold_bytes(more)

    def count_refusal(self, refusal: Refusal) -> None:
        """A unary call was refused."""
        self.server.refused[refusal] += 1

    def report(self, fault: Exception, method: str) -> None:
        """A handler raised."""
        report(self.server.on_error, fault, method)

    def stream_output(self, call: StreamCall) -> None:
        """A stream has something queued."""
        self._backlogged.add(call)
        if not self.answers.corked:
            self._flush_soon()

    # Output.

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self.server.flush_soon(self)

    def flush(self) -> None:
        """The server's: send what was answered outside of a turn."""
        self._flush_due = False
        self._flush()

    def _flush(self) -> None:
        """Write all that ngh2 may send now; then let streams refill it, until neither has anything to say."""
        h2 = self._h2
        try:
            while not self._writing_paused and not self._closing:
                output = h2.data_to_send(OUTPUT_BYTES)
                if output:
                    self._transport.write(output)
                events = h2.events()
                if events:
                    self._handle(events)
                if len(output) < OUTPUT_BYTES and not self._refill():
                    break
        except NGH2Error:
            self._give_up()
            return
        if not self._writing_paused and not self._closing:
            self._watch_stall()

    def _watch_stall(self) -> None:
        """Note since when the peer's flow-control windows hold back what is queued."""
        if not self._h2.queued_body_size():
            self._clock.stalled_since = math.inf
        elif self._clock.stalled_since == math.inf:
            self._clock.stalled_since = self._loop.time()
            self._clock.arm()

    def _refill(self) -> bool:
        """After all output was taken: due resets, and the next message of each stream that waits."""
        more = self.answers.submit_due_resets()
        for call in [each for each in self._backlogged if self.answers.taken(each.stream_id)]:
            more = True
            if not call.pump():
                self._backlogged.discard(call)
        return more

    # Ending.

    def drain(self, *, end_streams: bool) -> None:
        """Announce the end with GOAWAY; calls in flight finish, streams end if told to, then the connection closes."""
        if self._closing:
            return
        if not self._established:
            self._close()
            return
        if not self._draining:
            self._draining = True
            self._clock.drain_at = math.inf
            self._clock.goaway_at = self._loop.time() + DRAIN_NOTICE_S
            try:
                self._h2.send_shutdown_notice()
                self._h2.ping(_DRAIN_PING)
            except NGH2Error:
                self._close()
                return
        if end_streams:
            for call in list(self._calls.values()):
                if isinstance(call, StreamCall):
                    call.shut_down()
        self._flush()
        self._clock.arm()

    def shut_down(self) -> None:
        """End now: every call still in flight is refused, then the connection is closed."""
        if self._closing:
            return
        for call in list(self._calls.values()):
            call.shut_down()
        self._flush()
        if not self._closing:
            self._terminate(NO_ERROR)

    def abort(self) -> None:
        """Drop the connection without a word."""
        self._closing = True
        self._transport.abort()

    def _send_goaway(self) -> None:
        """The final GOAWAY of a drain: later streams are refused; the connection closes with its last call."""
        self._clock.goaway_at = math.inf
        if self._goaway_sent or self._closing:
            return
        self._goaway_sent = True
        try:
            self._h2.send_goaway()
        except NGH2Error:
            self._close()
            return
        for stream_id, call in self._calls.items():
            if call.over:
                self.answers.reset_when_sent(stream_id, NO_ERROR)
        if not self.answers.corked:
            self._flush()

    def _terminate(self, error_code: int) -> None:
        try:
            self._h2.terminate_connection(error_code)
            self._flush()
        except NGH2Error:
            pass
        self._close()

    def _give_up(self) -> None:
        """ngh2 refused to go on: it has no state left to say so, hence this GOAWAY by hand (RFC 9113 section 6.8)."""
        if self._closing:
            return
        greeted = self._established or any(isinstance(event, SettingsReceived) for event in self._h2.events())
        if greeted:
            self._transport.write(_GOAWAY.pack(b"\0\0\x08", 7, 0, 0, 0x7FFFFFFF, ENHANCE_YOUR_CALM))
        self._close()

    def _close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._unread = b""
        self._clock.closed_by = self._loop.time() + self.limits.write_stall_timeout_s
        self._transport.close()
        self._clock.arm()

    # Time.

    def _check_time(self) -> None:
        clock = self._clock
        now = self._loop.time()
        if clock.must_give_up(now):
            self.abort()
            return
        if not self._closing:
            self._keep_appointments(now)
        clock.arm()

    def _keep_appointments(self, now: float) -> None:
        clock = self._clock
        if now >= clock.shut_down_at:
            self.shut_down()
            return
        if now >= clock.goaway_at:
            self._send_goaway()
        if now >= clock.drain_at:
            clock.shut_down_at = now + self.limits.max_connection_age_grace_s
            self.drain(end_streams=False)
        if clock.must_probe(now) and not self._closing:
            clock.probed = now
            self.answers.ping(_KEEPALIVE_PING)
