"""What the gRPC-over-HTTP/2 protocol writes into bytes, as pure functions (grpc/grpc doc/PROTOCOL-HTTP2.md).

A message is `flag (1 byte) | length (4 bytes, big-endian) | payload`; a timeout is up to eight digits and a unit; a
status message is percent-encoded. Nothing here does I/O or knows HTTP/2.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from sidecar.transport.service import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX_BYTES = 5
_PREFIX = struct.Struct(">BI")

TIMEOUT_DIGITS_MAX = 8
_TIMEOUT_UNITS: Mapping[int, float] = {
    ord("H"): 3600.0,
    ord("M"): 60.0,
    ord("S"): 1.0,
    ord("m"): 1e-3,
    ord("u"): 1e-6,
    ord("n"): 1e-9,
}

ACCEPTED_ENCODINGS = b"identity,deflate,gzip"
# wbits as zlib wants them: gzip's own wrapper, and "deflate" meaning the zlib wrapper (RFC 9110 section 8.4.1.2).
_ZLIB_WINDOW_BITS: Mapping[bytes, int] = {b"gzip": 31, b"deflate": 15}

ANSWER_MARGIN_MIN_S = 0.002
ANSWER_MARGIN_SHARE = 0.1


class FramingError(Exception):
    """A message that cannot be accepted; `refusal` says which answer the caller gets."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.label)
        self.refusal = refusal


def timeout_seconds(value: bytes) -> float:
    """The duration that a `grpc-timeout` header states, in seconds.

    Raises:
        ValueError: It is not one to eight ASCII digits followed by one of H M S m u n.
    """
    digits = value[:-1]
    unit = _TIMEOUT_UNITS.get(value[-1]) if value else None
    if unit is None or not digits.isdigit() or len(digits) > TIMEOUT_DIGITS_MAX:
        raise ValueError("grpc-timeout: not 1 to 8 digits and a unit; accepted units are H M S m u n")
    return int(digits) * unit


def answer_within_seconds(timeout_s: float) -> float:
    """How long an answer may take so that it still reaches a caller who waits `timeout_s`; may be zero or less."""
    return timeout_s - max(ANSWER_MARGIN_MIN_S, timeout_s * ANSWER_MARGIN_SHARE)


def percent_encode(message: str) -> bytes:
    """A `grpc-message`: UTF-8 with everything outside 0x20-0x7E, and `%`, percent-encoded."""
    return b"".join(
        bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte
        for byte in message.encode("utf-8", "replace")
    )


def frame(message: bytes) -> bytes:
    """One uncompressed message with its prefix."""
    return _PREFIX.pack(0, len(message)) + message


def decompress(payload: bytes, encoding: bytes, message_bytes_max: int) -> bytes:
    """The message inside a compressed payload; never produces more than `message_bytes_max` + 1 bytes.

    Raises:
        FramingError: COMPRESSION_UNSUPPORTED, MESSAGE_TOO_LARGE, or MESSAGE_MALFORMED (corrupt, cut short, trailing
            bytes, or flagged as compressed where `grpc-encoding` says identity).
    """
    window_bits = _ZLIB_WINDOW_BITS.get(encoding)
    if window_bits is None:
        identity = encoding in (b"", b"identity")
        raise FramingError(Refusal.MESSAGE_MALFORMED if identity else Refusal.COMPRESSION_UNSUPPORTED)
    inflater = zlib.decompressobj(window_bits)
    try:
        message = inflater.decompress(payload, message_bytes_max + 1)
    except zlib.error as fault:
        raise FramingError(Refusal.MESSAGE_MALFORMED) from fault
    if len(message) > message_bytes_max:
        raise FramingError(Refusal.MESSAGE_TOO_LARGE)
    if not inflater.eof or inflater.unused_data:
        raise FramingError(Refusal.MESSAGE_MALFORMED)
    return message


def sole_message(data: bytes, encoding: bytes, message_bytes_max: int) -> bytes:
    """The message of a unary call whose whole body is `data`.

    Raises:
        FramingError: `data` is not exactly one acceptable message.
    """
    if len(data) < PREFIX_BYTES:
        raise FramingError(Refusal.MESSAGE_MALFORMED)
    flag, length = _PREFIX.unpack_from(data)
    if length > message_bytes_max:
        raise FramingError(Refusal.MESSAGE_TOO_LARGE)
    if length != len(data) - PREFIX_BYTES or flag > 1:
        raise FramingError(Refusal.MESSAGE_MALFORMED)
    return decompress(data[PREFIX_BYTES:], encoding, message_bytes_max) if flag else data[PREFIX_BYTES:]


class MessageReader:
    """Cuts a stream of bytes into messages; holds at most one incomplete message of bounded size.

    Args:
        encoding: The call's `grpc-encoding`, empty where it has none.
        message_bytes_max: The largest message, before and after decompression.

    Attributes:
        fault: Why the message after those already returned cannot be accepted; it is known from the message's prefix,
            before its bytes, and final.
    """

    __slots__ = ("_buffer", "_encoding", "_message_bytes_max", "fault")

    def __init__(self, encoding: bytes, message_bytes_max: int) -> None:
        self._buffer = bytearray()
        self._encoding = encoding
        self._message_bytes_max = message_bytes_max
        self.fault: Refusal | None = None

    @property
    def pending_bytes(self) -> int:
        """How many bytes of an incomplete message are held."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Take in bytes; return the messages that they complete."""
        messages: list[bytes] = []
        if self.fault is None:
            self._buffer += data
            try:
                while (message := self._next()) is not None:
                    messages.append(message)
            except FramingError as fault:
                self.fault = fault.refusal
                self._buffer.clear()
        return messages

    def _next(self) -> bytes | None:
        buffer = self._buffer
        if len(buffer) < PREFIX_BYTES:
            return None
        flag, length = _PREFIX.unpack_from(buffer)
        if flag > 1:
            raise FramingError(Refusal.MESSAGE_MALFORMED)
        if length > self._message_bytes_max:
            raise FramingError(Refusal.MESSAGE_TOO_LARGE)
        end = PREFIX_BYTES + length
        if len(buffer) < end:
            return None
        payload = bytes(memoryview(buffer)[PREFIX_BYTES:end])
        del buffer[:end]
        return decompress(payload, self._encoding, self._message_bytes_max) if flag else payload
