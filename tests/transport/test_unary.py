"""Unary calls: both engines answer alike; what only ours can do says so."""

from __future__ import annotations

import asyncio
import gzip
import zlib

import grpc
import pytest

from sidecar.transport.grpcio import MESSAGE_HARD_FACTOR
from sidecar.transport.service import Refusal, ServerLimits, Status, UnaryMethod
from tests.support.grpc_server import CAPPED, ECHO, ENGINES, GUARDED, HELD, LOOPBACK, Running, serving
from tests.support.http2_peer import Http2Peer, eventually, message_frame

SMALL = ServerLimits(message_bytes_max=1000)


async def test_an_answer_has_grpc_headers_one_message_and_a_status_in_trailers(engine: str) -> None:
    """HTTP 200, content-type application/grpc, the message with its prefix, then grpc-status 0."""
    async with serving(engine) as running:
        peer = await Http2Peer.connect(running.address)
        answer = await peer.call(ECHO, message_frame(b"hello"))
        peer.close()
    assert answer.http_status == 200
    assert answer.headers[b"content-type"].startswith(b"application/grpc")
    assert answer.messages == [b"hello"]
    assert answer.trailers[b"grpc-status"] == b"0"


@pytest.mark.parametrize("cut", [1, 3, 5, 6, 9])
async def test_a_message_may_span_data_frames(engine: str, cut: int) -> None:
    """Wherever the body is cut, also inside the length prefix, the message arrives whole."""
    body = message_frame(b"hello")
    async with serving(engine) as running:
        peer = await Http2Peer.connect(running.address)
        stream = peer.begin(ECHO)
        for part in (body[:cut], body[cut:]):
            peer.send(stream, part)
        peer.end(stream)
        assert (await peer.answer(stream)).messages == [b"hello"]
        peer.close()


@pytest.mark.parametrize("content_type", [b"application/grpc+proto", b"application/grpc; charset=utf-8"])
async def test_content_type_may_name_the_codec(engine: str, content_type: bytes) -> None:
    """application/grpc+proto and parameters are gRPC too."""
    async with serving(engine) as running:
        peer = await Http2Peer.connect(running.address)
        assert (await peer.call(ECHO, message_frame(b"x"), content_type=content_type)).messages == [b"x"]
        peer.close()


async def test_a_handler_may_answer_later_and_only_once(engine: str) -> None:
    """A handler that returned None answers through the call; later answers do nothing."""
    async with serving(engine) as running:
        peer = await Http2Peer.connect(running.address)
        stream = peer.begin(HELD)
        peer.send(stream, message_frame(b"x"), ended=True)
        await eventually(lambda: running.held)
        call = running.held[0][1]
        assert running.server.calls_in_flight == 1
        call.respond(b"first")
        call.respond(b"second")
        call.fail(Status.ABORTED, "third")
        assert (await peer.answer(stream)).messages == [b"first"]
        await eventually(lambda: running.server.calls_in_flight == 0)
        assert not call.cancelled
        peer.close()


async def test_a_failing_status_reaches_the_caller_with_its_text(engine: str) -> None:
    """Any text survives: percent signs, line ends, other scripts."""
    text = "100 % naïve\n東京"
    method = UnaryMethod(handler=lambda _, call: call.fail(Status.FAILED_PRECONDITION, text))
    async with (
        serving(engine, methods={"/test.Service/Fail": method}) as running,
        grpc.aio.insecure_channel(str(running.address)) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await channel.unary_unary("/test.Service/Fail")(b"")
    assert failure.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert failure.value.details() == text


async def test_an_unknown_method_is_unimplemented(engine: str) -> None:
    """Trailers-only: HTTP 200 and grpc-status 12 in the headers that end the stream."""
    async with serving(engine) as running:
        peer = await Http2Peer.connect(running.address)
        answer = await peer.call("/test.Service/Missing", message_frame(b"x"))
        peer.close()
    assert (answer.http_status, answer.grpc_status, answer.body) == (200, 12, b"")
    assert b"grpc-status" in answer.headers


async def test_an_unknown_methods_path_is_not_echoed_at_length() -> None:
    """http2 only: a path of any length is answered, and the answer's text is bounded."""
    async with serving("http2") as running:
        peer = await Http2Peer.connect(running.address)
        answer = await peer.call("/" + "x" * 20_000, message_frame(b"x"))
        peer.close()
    assert answer.grpc_status == Status.UNIMPLEMENTED
    assert len(answer.headers[b"grpc-message"]) < 300


async def test_a_handler_that_raises_is_an_internal_error(engine: str) -> None:
    """The caller sees INTERNAL and nothing of the exception; on_error sees the exception."""

    def broken(_message: bytes, _call: object) -> bytes:
        raise RuntimeError("told to")

    async with serving(engine, methods={"/test.Service/Broken": UnaryMethod(handler=broken)}) as running:
        peer = await Http2Peer.connect(running.address)
        answer = await peer.call("/test.Service/Broken", message_frame(b"x"))
        peer.close()
    assert answer.grpc_status == Status.INTERNAL
    assert b"told to" not in b"".join([*answer.headers.values(), *answer.trailers.values()])
    assert [method for _, method in running.errors] == ["/test.Service/Broken"]


async def test_a_handler_that_raises_is_answered_by_the_refuse_hook(engine: str) -> None:
    """With a hook, a bug becomes a response message with status OK."""
    async with serving(engine) as running:
        peer = await Http2Peer.connect(running.address)
        assert await peer.ask(GUARDED, b"raise") == b"refused: handler_failed"
        peer.close()
    assert len(running.errors) == 1


async def test_an_error_report_that_fails_does_not_fail_the_call(engine: str) -> None:
    """Where on_error itself raises, the caller is answered, and the loop's exception handler hears of it."""
    heard: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))

    def broken(_fault: Exception, _method: str) -> None:
        raise OSError("no log")

    server = ENGINES[engine](Running().methods(), [LOOPBACK], on_error=broken)
    (address,) = await server.start()
    peer = await Http2Peer.connect(address)
    assert await peer.ask(GUARDED, b"raise") == b"refused: handler_failed"
    peer.close()
    await server.drain(0)
    assert "no log" in [str(context.get("exception")) for context in heard]


async def test_a_refuse_hook_that_raises_still_ends_the_call(engine: str) -> None:
    """INTERNAL, and both exceptions are reported."""

    def broken(*_: object) -> bytes:
        raise RuntimeError("told to")

    method = UnaryMethod(handler=broken, refuse=broken)
    async with serving(engine, methods={"/test.Service/Worse": method}) as running:
        peer = await Http2Peer.connect(running.address)
        assert (await peer.call("/test.Service/Worse", message_frame(b"x"))).grpc_status == Status.INTERNAL
        peer.close()
    assert len(running.errors) == 2


async def test_metadata_is_lower_case_text_and_the_first_of_repeated_values(engine: str) -> None:
    """Handlers read request headers as a mapping."""
    async with serving(engine) as running:
        peer = await Http2Peer.connect(running.address)
        await peer.ask(ECHO, b"metadata", metadata=[(b"x-a", b"1"), (b"x-a", b"2"), (b"x-b", b"z")])
        peer.close()
    (metadata,) = running.metadata
    assert (metadata["x-a"], metadata["x-b"]) == ("1", "z")


# Sizes.


async def test_a_message_of_the_largest_size_is_served_and_one_byte_more_is_refused(engine: str) -> None:
    """N passes; N+1 is MESSAGE_TOO_LARGE, through the hook where there is one."""
    async with serving(engine, SMALL) as running:
        peer = await Http2Peer.connect(running.address)
        assert await peer.ask(GUARDED, b"x" * 1000) == b"x" * 1000
        assert await peer.ask(GUARDED, b"x" * 1001) == b"refused: message_too_large"
        assert (await peer.call(ECHO, message_frame(b"x" * 1001))).grpc_status == Status.RESOURCE_EXHAUSTED
        assert running.server is not None
        assert {refusal: n for refusal, n in running.server.refused.items() if n} == {Refusal.MESSAGE_TOO_LARGE: 2}
        peer.close()


async def test_an_oversized_message_is_refused_before_its_bytes_have_come() -> None:
    """http2 only: the length prefix is enough."""
    async with serving("http2", SMALL) as running:
        peer = await Http2Peer.connect(running.address)
        stream = peer.begin(GUARDED)
        peer.send(stream, message_frame(b"x" * 5000)[:100])
        assert (await peer.answer(stream)).messages == [b"refused: message_too_large"]
        peer.close()


async def test_oversized_messages_leave_the_connection_and_its_windows_intact(engine: str) -> None:
    """What is discarded is given back to flow control: far more than one window can be refused, then calls work."""
    limits = ServerLimits(message_bytes_max=300_000)
    async with serving(engine, limits) as running:
        peer = await Http2Peer.connect(running.address)
        for _ in range(8):
            assert await peer.ask(GUARDED, b"x" * 400_000) == b"refused: message_too_large"
        assert await peer.ask(GUARDED, b"y" * 300_000) == b"y" * 300_000
        peer.close()


async def test_a_peer_that_goes_on_sending_after_its_refusal_is_stopped() -> None:
    """http2 only: after one more message's worth the stream is reset with NO_ERROR, behind the answer."""
    async with serving("http2", SMALL) as running:
        peer = await Http2Peer.connect(running.address)
        stream = peer.begin(GUARDED)
        peer.send(stream, message_frame(b"x" * 5000))
        peer.send(stream, b"x" * 5000)
        await peer.until(lambda: peer.answers[stream].reset_code is not None)
        assert peer.answers[stream].reset_code == 0
        assert peer.answers[stream].messages == [b"refused: message_too_large"]
        assert await peer.ask(GUARDED, b"ok") == b"ok"
        peer.close()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0",
        b"\0\0\0\0",
        message_frame(b"hello")[:-1],
        message_frame(b"hello") + b"!",
        message_frame(b"a") + message_frame(b"b"),
        message_frame(b"a", 2),
        message_frame(b"a", 255),
        message_frame(b"a", 1),
    ],
    ids=["none", "1 byte", "4 bytes", "truncated", "trailing", "two", "flag 2", "flag 255", "compressed identity"],
)
@pytest.mark.parametrize("frames", [1, 2])
async def test_anything_but_one_whole_message_is_malformed(body: bytes, frames: int) -> None:
    """http2 only (grpcio's core decides by itself): the hook's answer for MESSAGE_MALFORMED."""
    async with serving("http2") as running:
        peer = await Http2Peer.connect(running.address)
        stream = peer.begin(GUARDED)
        if frames == 1:
            peer.send(stream, body, ended=True)
        else:
            peer.send(stream, body)
            peer.end(stream)
        assert (await peer.answer(stream)).messages == [b"refused: message_malformed"]
        assert await peer.ask(GUARDED, b"ok") == b"ok"
        assert running.handled == [b"ok"]
        peer.close()


async def test_headers_that_end_the_stream_are_a_call_without_a_message() -> None:
    """http2 only: refused as malformed."""
    async with serving("http2") as running:
        peer = await Http2Peer.connect(running.address)
        answer = await peer.answer(peer.begin(GUARDED, ended=True))
        peer.close()
    assert answer.messages == [b"refused: message_malformed"]


async def test_without_a_hook_a_malformed_message_is_an_internal_error() -> None:
    """http2 only (grpcio takes the first of two messages)."""
    async with serving("http2") as running:
        peer = await Http2Peer.connect(running.address)
        answer = await peer.call(ECHO, message_frame(b"a") + message_frame(b"b"))
        peer.close()
    assert answer.grpc_status == Status.INTERNAL


async def test_incomplete_messages_share_one_budget() -> None:
    """http2 only: receive_buffer_bytes_max bounds what all calls hold together; N passes, N+1 is refused."""
    limits = ServerLimits(receive_buffer_bytes_max=1000)
    async with serving("http2", limits) as running:
        peer = await Http2Peer.connect(running.address)
        first, second = peer.begin(GUARDED), peer.begin(GUARDED)
        peer.send(first, message_frame(b"x" * 2000)[:600])
        peer.send(second, message_frame(b"y" * 400)[:400])
        assert await peer.ask(GUARDED, b"whole messages need no room") == b"whole messages need no room"
        peer.send(second, b"y")
        assert (await peer.answer(second)).messages == [b"refused: overloaded"]
        peer.reset(first)
        third = peer.begin(GUARDED)
        peer.send(third, message_frame(b"z" * 995)[:-1])
        peer.send(third, b"z", ended=True)
        assert (await peer.answer(third)).messages == [b"z" * 995]
        peer.close()


# Compression.


def _zlib_bomb(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


@pytest.mark.parametrize(("encoding", "compress"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
async def test_compressed_requests_are_read(engine: str, encoding: bytes, compress: object) -> None:
    """Both gzip and deflate, as grpc-encoding says."""
    async with serving(engine) as running:
        peer = await Http2Peer.connect(running.address)
        body = message_frame(compress(b"hello" * 50), 1)
        answer = await peer.call(ECHO, body, metadata=[(b"grpc-encoding", encoding)])
        assert answer.messages == [b"hello" * 50]
        uncompressed = await peer.call(ECHO, message_frame(b"x"), metadata=[(b"grpc-encoding", encoding)])
        assert uncompressed.messages == [b"x"]
        peer.close()


async def test_an_unknown_encoding_is_unimplemented_and_says_what_is_accepted() -> None:
    """http2 only (grpcio answers INTERNAL): UNIMPLEMENTED with grpc-accept-encoding."""
    async with serving("http2") as running:
        peer = await Http2Peer.connect(running.address)
        answer = await peer.call(ECHO, message_frame(b"x", 1), metadata=[(b"grpc-encoding", b"snappy")])
        peer.close()
    assert answer.grpc_status == Status.UNIMPLEMENTED
    assert b"gzip" in answer.headers[b"grpc-accept-encoding"]


async def test_an_unknown_encoding_reaches_the_hook() -> None:
    """http2 only."""
    async with serving("http2") as running:
        peer = await Http2Peer.connect(running.address)
        answer = await peer.call(GUARDED, message_frame(b"x", 1), metadata=[(b"grpc-encoding", b"snappy")])
        peer.close()
    assert answer.messages == [b"refused: compression_unsupported"]


@pytest.mark.parametrize(
    ("payload", "label"),
    [
        (_zlib_bomb(1000), None),
        (_zlib_bomb(1001), b"message_too_large"),
        (_zlib_bomb(100_000), b"message_too_large"),
        (b"not deflate", b"message_malformed"),
        (zlib.compress(b"x" * 100)[:-1], b"message_malformed"),
        (zlib.compress(b"x") + b"y", b"message_malformed"),
    ],
    ids=["largest", "one more", "bomb", "garbage", "cut", "trailing"],
)
async def test_what_a_message_inflates_to_is_bounded(payload: bytes, label: bytes | None) -> None:
    """http2 only: the limit holds for the decompressed message, and corrupt streams are malformed."""
    async with serving("http2", SMALL) as running:
        peer = await Http2Peer.connect(running.address)
        answer = await peer.call(GUARDED, message_frame(payload, 1), metadata=[(b"grpc-encoding", b"deflate")])
        peer.close()
    assert answer.messages == [bytes(1000) if label is None else b"refused: " + label]


async def test_a_message_that_inflates_beyond_grpcios_own_limit_is_refused_by_its_core() -> None:
    """Only grpcio: up to MESSAGE_HARD_FACTOR times the limit the hook answers, beyond it RESOURCE_EXHAUSTED."""
    hard = 1000 * MESSAGE_HARD_FACTOR
    metadata = [(b"grpc-encoding", b"deflate")]
    async with serving("grpcio", SMALL) as running:
        peer = await Http2Peer.connect(running.address)
        answer = await peer.call(GUARDED, message_frame(_zlib_bomb(hard), 1), metadata=metadata)
        assert answer.messages == [b"refused: message_too_large"]
        answer = await peer.call(GUARDED, message_frame(_zlib_bomb(hard + 1), 1), metadata=metadata)
        assert (answer.messages, answer.grpc_status) == ([], Status.RESOURCE_EXHAUSTED)
        peer.close()


# Deadlines and cancellation.


@pytest.mark.parametrize("grpc_timeout", [b"60m", b"60000u", b"60000000n"])
async def test_a_call_that_takes_longer_than_its_timeout_is_refused_in_time(engine: str, grpc_timeout: bytes) -> None:
    """The hook's answer leaves before the caller's own deadline would have passed."""
    async with serving(engine) as running:
        peer = await Http2Peer.connect(running.address)
        assert (
            await peer.ask(GUARDED, b"hold", metadata=[(b"grpc-timeout", grpc_timeout)])
            == b"refused: deadline_exceeded"
        )
        ((_, call),) = running.held
        assert call.cancelled
        call.respond(b"too late")
        assert await peer.ask(GUARDED, b"next") == b"next"
        peer.close()


@pytest.mark.parametrize("grpc_timeout", [b"1H", b"99999999H", b"2M", b"20S", b"20000m"])
async def test_a_call_within_its_timeout_is_served(engine: str, grpc_timeout: bytes) -> None:
    """Long timeouts in all units do not cut a call short."""
    async with serving(engine) as running:
        peer = await Http2Peer.connect(running.address)
        stream = peer.begin(HELD, metadata=[(b"grpc-timeout", grpc_timeout)])
        peer.send(stream, message_frame(b"x"), ended=True)
        await eventually(lambda: running.held)
        call = running.held[0][1]
        assert call.deadline > 0
        call.respond(b"done")
        assert (await peer.answer(stream)).messages == [b"done"]
        peer.close()


async def test_without_a_hook_a_passed_deadline_is_its_grpc_status() -> None:
    """http2 only (grpcio's core resets the stream at the deadline's end)."""
    async with serving("http2") as running:
        peer = await Http2Peer.connect(running.address)
        answer = await peer.call(HELD, message_frame(b"x"), metadata=[(b"grpc-timeout", b"50m")])
        peer.close()
    assert answer.grpc_status == Status.DEADLINE_EXCEEDED


async def test_the_methods_own_cap_bounds_a_call_that_hangs(engine: str) -> None:
    """answer_within_s holds without a grpc-timeout, and with a longer one."""
    async with serving(engine) as running:
        peer = await Http2Peer.connect(running.address)
        assert await peer.ask(CAPPED, b"x") == b"refused: deadline_exceeded"
        long = [(b"grpc-timeout", b"1H")]
        assert await peer.ask(CAPPED, b"x", metadata=long) == b"refused: deadline_exceeded"
        peer.close()


async def test_a_message_that_never_comes_is_bounded_by_the_cap() -> None:
    """http2 only: the cap counts from the headers."""
    async with serving("http2") as running:
        peer = await Http2Peer.connect(running.address)
        nothing, half = peer.begin(CAPPED), peer.begin(CAPPED)
        peer.send(half, message_frame(b"hello")[:7])
        for stream in (nothing, half):
            assert (await peer.answer(stream)).messages == [b"refused: deadline_exceeded"]
        assert running.held == []
        peer.close()


@pytest.mark.parametrize("grpc_timeout", [b"0n", b"0S", b"1n"])
async def test_a_timeout_that_leaves_no_time_is_refused_at_once(grpc_timeout: bytes) -> None:
    """http2 only: a call that would have to wait is refused; it does not hang."""
    async with serving("http2") as running:
        peer = await Http2Peer.connect(running.address)
        assert (
            await peer.ask(GUARDED, b"hold", metadata=[(b"grpc-timeout", grpc_timeout)])
            == b"refused: deadline_exceeded"
        )
        peer.close()


@pytest.mark.parametrize(
    "grpc_timeout", [b"", b"1", b"m", b"-1m", b"1.5S", b"123456789m", b"1x", b"1 S", b"+1S", b"1s"]
)
async def test_a_malformed_timeout_is_refused(grpc_timeout: bytes) -> None:
    """http2 only: INVALID_ARGUMENT, or the hook's answer."""
    metadata = [(b"grpc-timeout", grpc_timeout)]
    async with serving("http2") as running:
        peer = await Http2Peer.connect(running.address)
        assert await peer.ask(GUARDED, b"x", metadata=metadata) == b"refused: timeout_malformed"
        answer = await peer.call(ECHO, message_frame(b"x"), metadata=metadata)
        assert answer.grpc_status == Status.INVALID_ARGUMENT
        peer.close()


async def test_a_reset_cancels_the_call(engine: str) -> None:
    """The handler sees it; what it answers afterwards does nothing."""
    async with serving(engine) as running:
        peer = await Http2Peer.connect(running.address)
        stream = peer.begin(HELD)
        peer.send(stream, message_frame(b"x"), ended=True)
        await eventually(lambda: running.held)
        call = running.held[0][1]
        peer.reset(stream)
        await eventually(lambda: call.cancelled, "cancellation")
        call.respond(b"nobody hears")
        assert await peer.ask(ECHO, b"next") == b"next"
        await eventually(lambda: running.server.calls_in_flight == 0)
        peer.close()


async def test_a_lost_connection_cancels_its_calls(engine: str) -> None:
    """All calls of the connection, and nothing else."""
    async with serving(engine) as running:
        peer, other = await Http2Peer.connect(running.address), await Http2Peer.connect(running.address)
        for each in (peer, peer, other):
            each.send(each.begin(HELD), message_frame(b"x"), ended=True)
        await eventually(lambda: len(running.held) == 3)
        peer.close()
        await eventually(lambda: running.server.calls_in_flight == 1)
        assert sorted(call.cancelled for _, call in running.held) == [False, True, True]
        other.close()


# Volume.


async def test_a_thousand_concurrent_streams(engine: str) -> None:
    """All are held at once on one connection, then all are answered."""
    async with serving(engine) as running:
        peer = await Http2Peer.connect(running.address)
        await peer.ask(ECHO, b"settings have been exchanged")
        streams = [peer.begin(HELD) for _ in range(1000)]
        for number, stream in enumerate(streams):
            peer.send(stream, message_frame(b"%d" % number), ended=True)
        await eventually(lambda: len(running.held) == 1000)
        for message, call in reversed(running.held):
            call.respond(message)
        answers = [await peer.answer(stream) for stream in streams]
        assert [answer.messages for answer in answers] == [[b"%d" % number] for number in range(1000)]
        peer.close()


@pytest.mark.parametrize("window", [1, 7, 100])
async def test_tiny_windows_of_the_client(engine: str, window: int) -> None:
    """A response arrives whole through a window far smaller than itself."""
    settings = {4: window}
    size = 50 * window
    async with serving(engine) as running:
        peer = await Http2Peer.connect(running.address, settings=settings)
        streams = [peer.begin(ECHO) for _ in range(5)]
        for stream in streams:
            peer.send(stream, message_frame(b"r" * size), ended=True)
        for stream in streams:
            assert (await peer.answer(stream)).messages == [b"r" * size]
        peer.close()


async def test_a_large_response_waits_for_the_window_and_then_goes_on(engine: str) -> None:
    """With a closed window the rest waits in the server; other streams go on."""
    async with serving(engine) as running:
        peer = await Http2Peer.connect(running.address, auto_window_update=False)
        stream = peer.begin(HELD)
        peer.send(stream, message_frame(b"x"), ended=True)
        await eventually(lambda: running.held)
        running.held[0][1].respond(b"r" * 100_000)
        await peer.until(lambda: len(peer.answers[stream].body) == 65_535, "a full window")
        peer.widen(0, 300_000)
        assert await peer.ask(ECHO, b"beside") == b"beside"
        peer.widen(stream, 300_000)
        assert (await peer.answer(stream)).messages == [b"r" * 100_000]
        peer.close()


async def _overload(running: Running, peer: Http2Peer, count: int) -> None:
    for _ in range(count):
        peer.send(peer.begin(GUARDED), message_frame(b"hold"), ended=True)
    await eventually(lambda: len(running.held) == count)


async def test_calls_in_flight_are_bounded(engine: str) -> None:
    """N are served at once; N+1 is OVERLOADED; afterwards there is room again."""
    async with serving(engine, ServerLimits(calls_in_flight_max=3)) as running:
        peer = await Http2Peer.connect(running.address)
        await _overload(running, peer, 2)
        assert await peer.ask(GUARDED, b"third") == b"third"
        peer.send(peer.begin(GUARDED), message_frame(b"hold"), ended=True)
        await eventually(lambda: len(running.held) == 3)
        assert await peer.ask(GUARDED, b"fourth") == b"refused: overloaded"
        running.held[0][1].respond(b"")
        await eventually(lambda: running.server.calls_in_flight == 2)
        assert await peer.ask(GUARDED, b"again") == b"again"
        peer.close()


# HTTP.


@pytest.mark.parametrize("method", [b"GET", b"PUT", b"DELETE"])
async def test_only_post_is_allowed(method: bytes) -> None:
    """http2 only: HTTP 405 with Allow."""
    async with serving("http2") as running:
        peer = await Http2Peer.connect(running.address)
        answer = await peer.call(ECHO, message_frame(b"x"), method=method)
        assert (answer.http_status, answer.headers[b"allow"]) == (405, b"POST")
        assert await peer.ask(ECHO, b"x") == b"x"
        peer.close()


@pytest.mark.parametrize("content_type", [None, b"application/json", b"application/grpcx", b"application/grpc-web"])
async def test_only_grpc_content_is_accepted(content_type: bytes | None) -> None:
    """http2 only: HTTP 415 (PROTOCOL-HTTP2.md)."""
    async with serving("http2") as running:
        peer = await Http2Peer.connect(running.address)
        answer = await peer.call(ECHO, message_frame(b"x"), content_type=content_type)
        peer.close()
    assert (answer.http_status, answer.grpc_status) == (415, None)


async def test_header_limits_refuse_the_call_alone() -> None:
    """http2 only: sizes and counts pass at N, are METADATA_TOO_LARGE at N+1, and the connection lives on."""
    base = 6  # what Http2Peer sends by itself
    async with serving("http2", ServerLimits(header_list_bytes_max=2000, header_count_max=base + 3)) as running:
        peer = await Http2Peer.connect(running.address)
        three = [(b"x-%d" % number, b"") for number in range(3)]
        assert await peer.ask(GUARDED, b"x", metadata=three) == b"x"
        assert await peer.ask(GUARDED, b"x", metadata=[*three, (b"x-3", b"")]) == b"refused: metadata_too_large"
        sizes = (len(b"".join(name + value for name, value in _request_fields())) + 32 * base, 32 + len(b"x-a"))
        room = 2000 - sum(sizes)
        assert await peer.ask(GUARDED, b"x", metadata=[(b"x-a", b"v" * room)]) == b"x"
        large = [(b"x-a", b"v" * (room + 1))]
        assert await peer.ask(GUARDED, b"x", metadata=large) == b"refused: metadata_too_large"
        peer.close()


def _request_fields() -> list[tuple[bytes, bytes]]:
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", GUARDED.encode()),
        (b":authority", b"test"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]


@pytest.mark.parametrize("name", [b"grpc-timeout", b"grpc-encoding", b"content-type"])
async def test_a_repeated_header_that_decides_how_to_read_the_call_is_refused(name: bytes) -> None:
    """http2 only: neither value can be trusted."""
    value = {b"grpc-timeout": b"1S", b"grpc-encoding": b"gzip", b"content-type": b"application/grpc"}[name]
    async with serving("http2") as running:
        peer = await Http2Peer.connect(running.address)
        metadata = [(name, value), (name, value)]
        assert await peer.ask(GUARDED, b"x", metadata=metadata) == b"refused: message_malformed"
        peer.close()
