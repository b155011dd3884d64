"""The standard health service, `grpc.health.v1.Health`: Check and Watch (grpc/grpc doc/health-checking.md).

Its two messages have one field each, so they are read and written here by hand:
`HealthCheckRequest { string service = 1; }` and `HealthCheckResponse { ServingStatus status = 1; }`.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from sidecar.transport.service import Status, StreamMethod, UnaryMethod

if TYPE_CHECKING:
    from sidecar.transport.service import Call, ServerStream, Service

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"

WATCHERS_MAX = 1024
"""Open Watch streams over all connections; one more is refused with RESOURCE_EXHAUSTED."""

_VARINT_BYTES_MAX = 10


class ServingStatus(enum.IntEnum):
    """HealthCheckResponse.ServingStatus."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


class HealthService:
    """Which services are serving; the empty name stands for the server as a whole and is always known."""

    def __init__(self) -> None:
        self._statuses: dict[str, ServingStatus] = {"": ServingStatus.NOT_SERVING}
        self._watchers: set[_Watcher] = set()
        self._shut_down = False

    def methods(self) -> Service:
        """Check and Watch, by path, for the server's `service` mapping."""
        return {CHECK: UnaryMethod(handler=self._check), WATCH: StreamMethod(open=self._watch)}

    def set(self, name: str, serving: bool) -> None:
        """State whether a service is serving, and tell its watchers; without effect after `shut_down`."""
        if not self._shut_down:
            self._set(name, ServingStatus.SERVING if serving else ServingStatus.NOT_SERVING)

    def shut_down(self) -> None:
        """The server is about to drain: everything is NOT_SERVING from now on."""
        self._shut_down = True
        for name in self._statuses:
            self._set(name, ServingStatus.NOT_SERVING)

    def status(self, name: str) -> ServingStatus:
        """A service's status; SERVICE_UNKNOWN where it was never set."""
        return self._statuses.get(name, ServingStatus.SERVICE_UNKNOWN)

    def _set(self, name: str, status: ServingStatus) -> None:
        self._statuses[name] = status
        for watcher in list(self._watchers):
            watcher.changed(name)

    def _check(self, message: bytes, call: Call) -> bytes | None:
        try:
            name = decode_request(message)
        except ValueError as fault:
            call.fail(Status.INVALID_ARGUMENT, str(fault))
            return None
        status = self.status(name)
        if status is ServingStatus.SERVICE_UNKNOWN:
            call.fail(Status.NOT_FOUND, "unknown service")
            return None
        return encode_response(status)

    def _watch(self, stream: ServerStream) -> _Watcher:
        watcher = _Watcher(self, stream)
        if len(self._watchers) >= WATCHERS_MAX:
            stream.finish(Status.RESOURCE_EXHAUSTED, "too many watchers")
        else:
            self._watchers.add(watcher)
        return watcher

    def forget(self, watcher: _Watcher) -> None:
        """A Watch stream is over."""
        self._watchers.discard(watcher)


class _Watcher:
    """One Watch stream: the status at once, then each change of it."""

    def __init__(self, health: HealthService, stream: ServerStream) -> None:
        self._health = health
        self._stream = stream
        self._name: str | None = None
        self._sent: ServingStatus | None = None

    def message(self, data: bytes) -> None:
        if self._name is not None:
            self._stream.finish(Status.INVALID_ARGUMENT, "Watch takes one request")
            return
        try:
            self._name = decode_request(data)
        except ValueError as fault:
            self._stream.finish(Status.INVALID_ARGUMENT, str(fault))
            return
        self.changed(self._name)

    def changed(self, name: str) -> None:
        status = self._health.status(name)
        if name == self._name and status is not self._sent:
            self._sent = status
            self._stream.send(encode_response(status))

    def half_closed(self) -> None:
        if self._name is None:
            self._stream.finish(Status.INVALID_ARGUMENT, "Watch takes one request")

    def closed(self) -> None:
        self._health.forget(self)


def encode_response(status: ServingStatus) -> bytes:
    """A HealthCheckResponse (proto3 leaves a zero out)."""
    return bytes((0x08, status)) if status else b""


def decode_request(message: bytes) -> str:
    """The `service` of a HealthCheckRequest; unknown fields are skipped, the last of a repeated field counts.

    Raises:
        ValueError: The bytes are no protobuf message, or the name is no UTF-8.
    """
    name = b""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if not tag >> 3:
            raise ValueError("HealthCheckRequest: field number 0")
        match tag & 7:
            case 0:
                _, at = _varint(message, at)
                continue
            case 1:
                size = 8
            case 2:
                size, at = _varint(message, at)
            case 5:
                size = 4
            case _:
                raise ValueError("HealthCheckRequest: unknown wire type")
        if at + size > len(message):
            raise ValueError("HealthCheckRequest: cut short")
        if tag == 0x0A:
            name = message[at : at + size]
        at += size
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("HealthCheckRequest: service is not UTF-8") from None


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(message[at : at + _VARINT_BYTES_MAX]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("HealthCheckRequest: cut short, or a number of more than ten bytes")
