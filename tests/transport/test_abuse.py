"""Hostile and clumsy peers: each is refused or disconnected, nobody else notices, and nothing grows without bound."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable

import pytest

from sidecar.transport import http2_connection
from sidecar.transport.http2_connection import EVENTS_PER_TURN
from sidecar.transport.service import ServerLimits, UnaryMethod
from tests.support.grpc_server import ECHO, HELD, Running, serving
from tests.support.http2_peer import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Http2Peer,
    RawPeer,
    eventually,
    message_frame,
    plain_field,
    raw_frame,
    raw_request,
    request_block,
)

BLOCK = request_block(ECHO.encode())
OPEN = raw_frame(HEADERS, END_HEADERS, 1, BLOCK)


async def assert_serving(running: Running) -> None:
    """A new caller is served."""
    peer = await Http2Peer.connect(running.address)
    assert await peer.ask(ECHO, b"still here") == b"still here"
    peer.close()


# Garbage.


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        bytes(1000),
        b"\xff" * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX",
        PREFACE + b"\xff" * 100,
        PREFACE + raw_frame(PING, 0, 0, bytes(8)),
    ],
    ids=["HTTP/1.1", "TLS", "zeros", "ones", "bad preface", "bad frame", "no SETTINGS"],
)
async def test_garbage_is_disconnected(engine: str, garbage: bytes) -> None:
    """At once, without waiting for a timeout, and the server goes on."""
    async with serving(engine) as running:
        peer = await RawPeer.connect(running.address, greet=False)
        peer.write(garbage)
        await peer.frames_until_closed()
        await assert_serving(running)


# Violations that end the connection with GOAWAY.

NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR = 0, 1, 3, 5, 6
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11


def _window(stream: int, increment: int) -> bytes:
    return raw_frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def _settings(*pairs: tuple[int, int]) -> bytes:
    return raw_frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (_window(0, 2**31 - 1), FLOW_CONTROL_ERROR),
        (_window(0, 0), PROTOCOL_ERROR),
        (raw_frame(WINDOW_UPDATE, 0, 0, b"\0\0\1"), FRAME_SIZE_ERROR),
        (_settings((4, 2**31)), FLOW_CONTROL_ERROR),
        (_settings((5, 1)), PROTOCOL_ERROR),
        (_settings((2, 2)), PROTOCOL_ERROR),
        (raw_frame(SETTINGS, 0, 0, b"\0\4\0"), FRAME_SIZE_ERROR),
        (raw_frame(SETTINGS, 0, 1), PROTOCOL_ERROR),
        (raw_frame(PING, 0, 0, b"short"), FRAME_SIZE_ERROR),
        (raw_frame(PING, 0, 1, bytes(8)), PROTOCOL_ERROR),
        (raw_frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR),
        (raw_frame(DATA, 0, 7, b"x"), PROTOCOL_ERROR),
        (raw_frame(HEADERS, END_HEADERS, 2, BLOCK), PROTOCOL_ERROR),
        (raw_frame(HEADERS, END_HEADERS, 0, BLOCK), PROTOCOL_ERROR),
        (OPEN + _window(1, 0), PROTOCOL_ERROR),
        (OPEN + _window(1, 2**31 - 1), FLOW_CONTROL_ERROR),
        (raw_frame(HEADERS, 0, 1, BLOCK) + raw_frame(PING, 0, 0, bytes(8)), PROTOCOL_ERROR),
        (raw_frame(CONTINUATION, END_HEADERS, 1, BLOCK), PROTOCOL_ERROR),
        (raw_frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2" + BLOCK), PROTOCOL_ERROR),
        (raw_frame(RST_STREAM, 0, 9, bytes(4)), PROTOCOL_ERROR),
        (raw_frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"), COMPRESSION_ERROR),
        (raw_frame(HEADERS, END_HEADERS, 1, b"\xbe"), COMPRESSION_ERROR),
        (raw_frame(HEADERS, END_HEADERS, 1, b"\x3f\xff\xff\x7f" + BLOCK), COMPRESSION_ERROR),
        (OPEN + raw_frame(DATA, 8, 1, b"\xff"), PROTOCOL_ERROR),
        (b"\xff\xff\xff\0\0\0\0\0\1", FRAME_SIZE_ERROR),
    ],
)
async def test_a_violation_ends_in_goaway_and_a_closed_connection(wire: bytes, code: int) -> None:
    """http2 only: the error code of RFC 9113, then the connection is closed, then others are served."""
    async with serving("http2") as running:
        peer = await RawPeer.connect(running.address)
        peer.write(wire)
        assert await peer.goaway_code() == code
        await eventually(lambda: running.server.connections == 0)
        await assert_serving(running)


@pytest.mark.parametrize(
    "wire",
    [
        raw_frame(HEADERS, END_HEADERS, 1, plain_field(b"X-Upper", b"1") + BLOCK),
        raw_frame(HEADERS, END_HEADERS, 1, BLOCK + plain_field(b":path", b"/again")),
        raw_frame(HEADERS, END_HEADERS, 1, BLOCK + plain_field(b"te", b"gzip")),
        raw_frame(HEADERS, END_HEADERS, 1, BLOCK + plain_field(b"connection", b"close")),
        raw_frame(HEADERS, END_HEADERS, 1, BLOCK + plain_field(b"x-a", b"a\nb")),
        raw_frame(HEADERS, END_HEADERS, 1, b"\x83\x86"),
        raw_frame(HEADERS, END_HEADERS, 1, BLOCK + plain_field(b"content-length", b"1")) + raw_frame(DATA, 1, 1, b"xy"),
    ],
    ids=["upper case", "two paths", "te", "connection", "line feed", "no path", "length"],
)
async def test_a_fault_of_one_stream_costs_that_stream(wire: bytes) -> None:
    """http2 only: the stream is reset, no handler sees it, the connection serves the next call."""
    async with serving("http2") as running:
        peer = await RawPeer.connect(running.address)
        peer.write(wire + raw_request(ECHO, 3, b"next"))
        await eventually(lambda: running.handled)
        assert running.handled == [b"next"]
        peer.write(raw_frame(GOAWAY, 0, 0, bytes(8)))
        frames = await peer.frames_until_closed()
        assert [stream for kind, _, stream, _ in frames if kind == RST_STREAM] == [1]
        assert running.server.calls_in_flight == 0


# Floods.


def _rapid_reset() -> bytes:
    cancel = struct.pack(">I", 8)
    return b"".join(
        raw_frame(HEADERS, END_HEADERS, stream, BLOCK) + raw_frame(RST_STREAM, 0, stream, cancel)
        for stream in range(1, 20_001, 2)
    )


def _header_flood(field: bytes) -> bytes:
    """A header block in as many CONTINUATION frames as it takes."""
    return raw_frame(HEADERS, 0, 1, BLOCK) + b"".join(raw_frame(CONTINUATION, 0, 1, field) for _ in range(1000))


def _hpack_bomb() -> bytes:
    """One entry of 4,000 bytes in the dynamic table, referred to over and over."""
    literal = b"\x40\x01x\x7f" + _hpack_tail(4000) + b"y" * 4000
    return raw_frame(HEADERS, END_HEADERS, 1, BLOCK + literal + b"\xbe" * 10_000)


def _hpack_tail(length: int) -> bytes:
    rest, tail = length - 127, b""
    while rest >= 128:
        tail += bytes((rest % 128 + 128,))
        rest //= 128
    return tail + bytes((rest,))


FLOODS: dict[str, Callable[[], bytes]] = {
    "rapid reset": _rapid_reset,
    "continuation": lambda: _header_flood(b""),
    "continuation with fields": lambda: _header_flood(plain_field(b"x-a", b"b" * 100) * 100),
    "HPACK bomb": _hpack_bomb,
    "many headers": lambda: raw_frame(HEADERS, END_HEADERS, 1, BLOCK + plain_field(b"a", b"") * 4000),
    "settings": lambda: raw_frame(SETTINGS, 0, 0) * 20_000,
    "settings entries": lambda: _settings(*[(1, 4096)] * 1000),
    "ping": lambda: raw_frame(PING, 0, 0, bytes(8)) * 20_000,
    "empty data": lambda: OPEN + raw_frame(DATA, 0, 1) * 20_000,
    "window overflow": lambda: OPEN + _window(0, 2**30) * 3,
}


@pytest.mark.parametrize("name", sorted(FLOODS))
async def test_a_flood_is_cut_off_with_goaway(name: str) -> None:
    """http2 only: the connection is closed with an error, no handler ran for nothing, and others are served."""
    async with serving("http2") as running:
        peer = await RawPeer.connect(running.address)
        peer.write(FLOODS[name]())
        code = await peer.goaway_code()
        assert code not in (None, NO_ERROR)
        await eventually(lambda: running.server.connections == 0)
        assert running.server.calls_in_flight == 0
        assert running.handled == []
        await assert_serving(running)


@pytest.mark.parametrize("name", sorted(FLOODS))
async def test_a_flood_leaves_either_engine_serving(engine: str, name: str) -> None:
    """Whatever becomes of the flooding connection, a new caller is served."""
    async with serving(engine) as running:
        peer = await RawPeer.connect(running.address)
        peer.write(FLOODS[name]())
        await assert_serving(running)
        peer.close()


async def test_control_frames_of_an_honest_peer_are_forgiven() -> None:
    """http2 only: up to the burst nothing happens; going on closes the connection."""
    async with serving("http2") as running:
        peer = await RawPeer.connect(running.address)
        first_settings = 1
        peer.write(raw_frame(PING, 0, 0, bytes(8)) * (http2_connection.CONTROL_FRAMES_BURST - first_settings))
        peer.write(raw_request(ECHO, 1, b"still welcome"))
        await eventually(lambda: running.handled == [b"still welcome"])
        peer.write(raw_frame(PING, 0, 0, bytes(8)) * 2 * http2_connection.CONTROL_FRAMES_BURST)
        assert await peer.goaway_code() == ENHANCE_YOUR_CALM


async def test_a_flood_on_one_connection_does_not_hold_up_a_calm_caller() -> None:
    """http2 only: of 20,000 calls that already wait on one connection, a few turns' worth go before the calm call."""
    flood_calls = 20_000
    flood = b"".join(raw_request(ECHO, stream, b"f") for stream in range(1, 2 * flood_calls, 2))
    async with serving("http2", ServerLimits(concurrent_streams_max=2**20)) as running:
        calm = await Http2Peer.connect(running.address)
        assert await calm.ask(ECHO, b"warm") == b"warm"
        peer = await RawPeer.connect(running.address)
        peer.write(flood)
        await eventually(lambda: len(running.handled) > 100)
        before = len(running.handled)
        assert before < flood_calls // 2
        assert await calm.ask(ECHO, b"calm") == b"calm"
        position = running.handled.index(b"calm")
        assert position - before <= 8 * EVENTS_PER_TURN
        await eventually(lambda: len(running.handled) == flood_calls + 2)
        peer.close()


# Peers that do not read.


async def test_a_peer_that_does_not_read_is_not_read_from() -> None:
    """http2 only: once its answers pile up the server takes no more of its calls; others are served."""
    calls: list[bytes] = []

    def large(message: bytes, _call: object) -> bytes:
        calls.append(message)
        return b"r" * 100_000

    async with serving("http2", methods={"/test.Service/Large": UnaryMethod(handler=large)}) as running:
        deaf = await Http2Peer.connect(running.address, settings={4: 2**30})
        deaf.widen(0, 2**30)
        await deaf.until(lambda: deaf.remote_settings)
        deaf.transport.pause_reading()
        sent = 900
        for _ in range(sent):
            deaf.send(deaf.begin("/test.Service/Large"), message_frame(b"x" * 1000), ended=True)
        await eventually(lambda: any(each._writing_paused for each in running.server._connections))
        served = len(calls)
        assert served < sent
        await assert_serving(running)
        await assert_serving(running)
        assert len(calls) == served
        deaf.transport.resume_reading()
        await deaf.until(lambda: all(answer.ended for answer in deaf.answers.values()), "all answers")
        assert len(calls) == sent
        deaf.close()


@pytest.mark.parametrize("how", ["socket", "window"])
async def test_a_peer_that_takes_nothing_for_too_long_is_dropped(how: str) -> None:
    """http2 only: a socket that is not read, and a flow-control window that stays closed."""
    async with serving("http2", ServerLimits(write_stall_timeout_s=0.1)) as running:
        settings = {4: 2**30} if how == "socket" else {4: 10}
        deaf = await Http2Peer.connect(running.address, settings=settings, auto_window_update=False)
        if how == "socket":
            deaf.widen(0, 2**30)
        await deaf.until(lambda: deaf.remote_settings)
        deaf.transport.pause_reading()
        for _ in range(20):
            deaf.send(deaf.begin(HELD), message_frame(b"x"), ended=True)
        await eventually(lambda: len(running.held) == 20)
        for _, call in running.held:
            call.respond(b"r" * 1_000_000)
        await eventually(lambda: running.server.connections == 0)
        await assert_serving(running)
        deaf.close()


# Fuzz.


def _mutations(chance: random.Random) -> bytes:
    """A conversation with something wrong with it."""
    wire = bytearray(PREFACE + raw_frame(SETTINGS, 0, 0))
    for stream in range(1, 2 * chance.randint(1, 8), 2):
        wire += raw_request(chance.choice([ECHO, HELD, "/no/such"]), stream, chance.randbytes(chance.randint(0, 50)))
        wire += raw_frame(
            chance.randint(0, 12), chance.randint(0, 255), chance.randint(0, 9), chance.randbytes(chance.randint(0, 20))
        )
    for _ in range(chance.randint(0, 6)):
        at = chance.randrange(len(PREFACE), len(wire))
        match chance.randint(0, 3):
            case 0:
                wire[at] = chance.randint(0, 255)
            case 1:
                wire[at] ^= 1 << chance.randint(0, 7)
            case 2:
                del wire[at : at + chance.randint(1, 10)]
            case 3:
                wire[at:at] = chance.randbytes(chance.randint(1, 10))
        if len(wire) <= len(PREFACE) + 1:
            break
    return bytes(wire)


@pytest.mark.parametrize("seed", range(8))
async def test_mutated_conversations_end_well(seed: int) -> None:
    """http2 only. Permitted: frames and silence, or frames and a closed connection; nothing else, and nothing stays.

    Never: an exception (quiet_loop and on_error would tell), a call or a connection that stays behind, a server that
    stopped serving.
    """
    chance = random.Random(seed)
    async with serving("http2") as running:
        for _ in range(25):
            peer = await RawPeer.connect(running.address, greet=False)
            wire = _mutations(chance)
            cut = chance.randrange(len(wire))
            peer.write(wire[:cut])
            await asyncio.sleep(0)
            peer.write(wire[cut:])
            peer.write(raw_frame(PING, ACK, 0, bytes(8)))
            if chance.random() < 0.8 and peer.writer.can_write_eof():
                peer.writer.write_eof()
                for kind, _, _, _ in await peer.frames_until_closed():
                    assert kind in (DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE), kind
            peer.close()
        await eventually(lambda: running.server.connections == 0)
        assert running.server.calls_in_flight == 0
        assert running.server._held_bytes == 0
        await assert_serving(running)


async def test_priority_frames_are_ignored(engine: str) -> None:
    """RFC 9113 deprecates them; peers still send them."""
    async with serving(engine) as running:
        peer = await RawPeer.connect(running.address)
        peer.write(raw_frame(PRIORITY, 0, 1, struct.pack(">IB", 0, 15)) + raw_request(ECHO, 1, b"x"))
        await eventually(lambda: running.handled == [b"x"])
        peer.close()
