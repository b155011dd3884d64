"""The headers of a gRPC request, judged once: which method, how long, which encoding, or why not.

Callers repeat their headers from call to call, so a connection keeps the last head and reuses it where the next
headers are equal: 0.4 us instead of 2 us a call (bench/load.py on the constant handler).
"""

from __future__ import annotations

import math
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

from sidecar.transport import grpc_framing
from sidecar.transport.service import Refusal, StreamMethod, UnaryMethod

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.transport.service import Method, ServerLimits

Headers: TypeAlias = "tuple[tuple[bytes, bytes], ...]"
Routes: TypeAlias = "Mapping[bytes, Method]"

CONTENT_TYPE = b"application/grpc"
FIELD_OVERHEAD_BYTES = 32  # RFC 9113 section 6.5.2: what each field adds to the size of a header list
# Headers that change how the call is read: where one is repeated, neither value can be trusted.
_SINGLE = frozenset((b"content-type", b"grpc-timeout", b"grpc-encoding"))


class RequestHead:
    """What a request's headers ask for.

    Attributes:
        headers: As received.
        path: `:path`.
        unary, streaming: What serves the path, as one of the two; both None where nothing does.
        http_status: Not zero where this is no gRPC request: the HTTP status that says so.
        refusal: Why the call is refused before its message, if it is.
        encoding: `grpc-encoding`, empty where absent.
        answer_within_s: Seconds from the call's begin until it is refused for its deadline; may be infinite.
    """

    __slots__ = ("answer_within_s", "encoding", "headers", "http_status", "path", "refusal", "streaming", "unary")

    def __init__(self, headers: Headers, routes: Routes, limits: ServerLimits) -> None:
        fields = dict(headers)
        path = fields.get(b":path", b"")
        self.headers = headers
        self.path = path.decode("latin-1")
        method = routes.get(path)
        self.unary = method if isinstance(method, UnaryMethod) else None
        self.streaming = method if isinstance(method, StreamMethod) else None
        self.http_status = _http_status(fields)
        self.encoding = fields.get(b"grpc-encoding", b"")
        self.refusal: Refusal | None = None
        self.answer_within_s = math.inf
        if self.unary is not None and self.unary.answer_within_s is not None:
            self.answer_within_s = self.unary.answer_within_s
        if len(fields) != len(headers) and _repeats_single(headers):
            self.refusal = Refusal.MESSAGE_MALFORMED
        elif _size_bytes(headers) > limits.header_list_bytes_max or len(headers) > limits.header_count_max:
            self.refusal = Refusal.METADATA_TOO_LARGE
        elif b"grpc-timeout" in fields:
            self._apply_timeout(fields[b"grpc-timeout"])

    def _apply_timeout(self, value: bytes) -> None:
        try:
            timeout_s = grpc_framing.timeout_seconds(value)
        except ValueError:
            self.refusal = Refusal.TIMEOUT_MALFORMED
            return
        if timeout_s == 0:
            self.refusal = Refusal.DEADLINE_EXCEEDED
        self.answer_within_s = min(self.answer_within_s, grpc_framing.answer_within_seconds(timeout_s))

    def metadata(self) -> dict[str, str]:
        """The headers as text by lower-case name; the first value where a name is repeated."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(self.headers)}


def _http_status(fields: Mapping[bytes, bytes]) -> int:
    """Zero for a gRPC request, else the HTTP status that PROTOCOL-HTTP2.md and RFC 9110 ask for."""
    if fields.get(b":method") != b"POST":
        return 405
    content_type = fields.get(b"content-type", b"")
    if content_type == CONTENT_TYPE or content_type.startswith((CONTENT_TYPE + b"+", CONTENT_TYPE + b";")):
        return 0
    return 415


def _size_bytes(headers: Headers) -> int:
    return len(b"".join(chain.from_iterable(headers))) + FIELD_OVERHEAD_BYTES * len(headers)


def _repeats_single(headers: Headers) -> bool:
    names = [name for name, _ in headers if name in _SINGLE]
    return len(names) != len(set(names))
