"""Streaming calls."""

from __future__ import annotations

import pytest

from sidecar.transport.service import ServerLimits, Status, StreamMethod
from tests.support.grpc_server import CHAT, Chatter, serving
from tests.support.http2_peer import Http2Peer, eventually, message_frame


async def test_messages_go_both_ways_and_half_close_ends_the_stream(engine: str) -> None:
    """The receiver hears all, in order, then the half-close, then the end, once."""
    async with serving(engine) as running:
        peer = await Http2Peer.connect(running.address)
        stream = peer.begin(CHAT)
        for number in range(20):
            peer.send(stream, message_frame(b"%d" % number))
        peer.end(stream)
        answer = await peer.answer(stream)
        assert answer.grpc_status == 0
        assert answer.messages == [b"re:%d" % number for number in range(20)]
        (chatter,) = running.chatters
        await eventually(lambda: chatter.closes)
        assert (chatter.heard, chatter.half_closes) == ([b"%d" % number for number in range(20)], 1)
        assert running.server.calls_in_flight == 0
        peer.close()
    assert chatter.closes == 1


async def test_the_server_may_send_at_any_time(engine: str) -> None:
    """A message leaves without anything having arrived, through a window smaller than itself too."""
    async with serving(engine) as running:
        peer = await Http2Peer.connect(running.address, settings={4: 10})
        stream = peer.begin(CHAT)
        peer.send(stream, message_frame(b"hi"))
        await eventually(lambda: running.chatters and running.chatters[0].heard)
        chat = running.chatters[0].stream
        for number in range(10):
            assert chat.send(b"news %d" % number * 10)
        chat.finish(Status.ABORTED, "enough")
        assert not chat.send(b"after the end")
        answer = await peer.answer(stream)
        assert answer.messages == [b"re:hi", *(b"news %d" % number * 10 for number in range(10))]
        assert answer.grpc_status == Status.ABORTED
        peer.close()


@pytest.mark.parametrize("how", ["reset", "lost"])
async def test_an_abandoned_stream_is_closed_once(engine: str, how: str) -> None:
    """Reset or lost: the receiver is told, once, and sending reports it (grpcio may report a half-close before)."""
    async with serving(engine) as running:
        peer = await Http2Peer.connect(running.address)
        stream = peer.begin(CHAT)
        peer.send(stream, message_frame(b"hi"))
        await eventually(lambda: running.chatters and running.chatters[0].heard)
        if how == "reset":
            peer.reset(stream)
        else:
            peer.close()
        chatter = running.chatters[0]
        await eventually(lambda: chatter.closes)
        assert not chatter.stream.send(b"nobody hears")
        await eventually(lambda: running.server.calls_in_flight == 0)
        peer.close()
    assert chatter.closes == 1
    assert engine == "grpcio" or not chatter.half_closes


async def test_a_receiver_that_raises_ends_its_stream(engine: str) -> None:
    """INTERNAL for the caller, on_error for us, closed for the receiver."""
    async with serving(engine) as running:
        peer = await Http2Peer.connect(running.address)
        stream = peer.begin(CHAT)
        peer.send(stream, message_frame(b"raise"))
        assert (await peer.answer(stream)).grpc_status == Status.INTERNAL
        await eventually(lambda: running.chatters[0].closes == 1)
        peer.close()
    assert [method for _, method in running.errors] == [CHAT]


async def test_an_opener_that_raises_ends_its_stream(engine: str) -> None:
    """INTERNAL, reported."""

    def broken(_stream: object) -> Chatter:
        raise RuntimeError("told to")

    async with serving(engine, methods={"/test.Service/Broken": StreamMethod(open=broken)}) as running:
        peer = await Http2Peer.connect(running.address)
        answer = await peer.answer(peer.begin("/test.Service/Broken"))
        peer.close()
    assert answer.grpc_status == Status.INTERNAL
    assert len(running.errors) == 1


async def test_a_peer_that_does_not_read_fills_its_queue_and_no_more() -> None:
    """http2 only (grpcio takes a message before its window opens): N messages wait, N+1 ends the stream."""
    limits = ServerLimits(stream_send_queue_messages_max=5)
    async with serving("http2", limits) as running:
        peer = await Http2Peer.connect(running.address, settings={4: 0}, auto_window_update=False)
        stream = peer.begin(CHAT)
        await eventually(lambda: running.chatters)
        chatter = running.chatters[0]
        taken_by_http2 = 1
        assert [chatter.stream.send(b"x") for _ in range(taken_by_http2 + 5)] == [True] * 6
        assert not chatter.stream.send(b"x")
        await peer.until(lambda: peer.answers[stream].reset_code is not None)
        await eventually(lambda: chatter.closes == 1)
        peer.close()


async def test_a_burst_of_messages_to_a_peer_that_reads_is_not_a_full_queue() -> None:
    """http2 only: what the window has room for leaves before the queue counts."""
    limits = ServerLimits(stream_send_queue_messages_max=2)
    async with serving("http2", limits) as running:
        peer = await Http2Peer.connect(running.address)
        stream = peer.begin(CHAT)
        await eventually(lambda: running.chatters)
        chat = running.chatters[0].stream
        assert all(chat.send(b"%d" % number) for number in range(100))
        chat.finish()
        assert (await peer.answer(stream)).messages == [b"%d" % number for number in range(100)]
        peer.close()


async def test_stream_messages_are_bounded(engine: str) -> None:
    """N passes, N+1 ends the stream with RESOURCE_EXHAUSTED."""
    async with serving(engine, ServerLimits(message_bytes_max=100)) as running:
        peer = await Http2Peer.connect(running.address)
        stream = peer.begin(CHAT)
        peer.send(stream, message_frame(b"x" * 100) + message_frame(b"x" * 101))
        answer = await peer.answer(stream)
        assert answer.grpc_status == Status.RESOURCE_EXHAUSTED
        assert running.chatters[0].heard == [b"x" * 100]
        peer.close()


async def test_a_stream_that_ends_inside_a_message_is_malformed() -> None:
    """http2 only: INTERNAL."""
    async with serving("http2") as running:
        peer = await Http2Peer.connect(running.address)
        stream = peer.begin(CHAT)
        peer.send(stream, message_frame(b"hello")[:-1], ended=True)
        assert (await peer.answer(stream)).grpc_status == Status.INTERNAL
        peer.close()


async def test_a_streams_deadline_ends_it() -> None:
    """http2 only (grpcio's core resets the stream): DEADLINE_EXCEEDED."""
    async with serving("http2") as running:
        peer = await Http2Peer.connect(running.address)
        stream = peer.begin(CHAT, metadata=[(b"grpc-timeout", b"50m")])
        assert (await peer.answer(stream)).grpc_status == Status.DEADLINE_EXCEEDED
        await eventually(lambda: running.chatters[0].closes == 1)
        peer.close()
