"""The admin listener: a small HTTP/1.1 server for probes, scrapes and operators. It must not be reachable by clients.

It answers GET and HEAD on a few paths, and POST where a route takes a body. Connections, sizes and waiting times are
bounded; a failure of ours is a 500 without particulars, and an event in the log.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import h11
import msgspec

from sidecar.edges.log import get_log
from sidecar.transport.listeners import remove_socket, socket_identity, unix_listener
from sidecar.transport.service import Address, TcpAddress, UnixAddress

if TYPE_CHECKING:
    import socket

CONNECTIONS_MAX: Final = 64
HEADER_BYTES_MAX: Final = 16 * 1024
REQUEST_TIMEOUT_S: Final = 10.0
"""For a whole request to arrive, and for its answer to be taken; also how long an idle connection is kept."""
REQUESTS_PER_CONNECTION_MAX: Final = 1000
READ_BYTES: Final = 16 * 1024

JSON: Final = "application/json"

_log = get_log("admin")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a route answers."""

    status: int
    body: bytes
    content_type: str = JSON
    cache_control: str = "no-store"


Route: TypeAlias = Callable[[Mapping[str, str]], Awaitable[Answer]]
"""Called with the request's headers, by lower-case name."""


@dataclass(frozen=True, slots=True)
class PostRoute:
    """A route that takes POST alone.

    Attributes:
        handler: Called with the request's body, and its headers by lower-case name.
        body_bytes_max: A longer body is answered 413.
    """

    handler: Callable[[bytes, Mapping[str, str]], Awaitable[Answer]]
    body_bytes_max: int


@dataclass(frozen=True, slots=True)
class Component:
    """Whether one part is ready to serve, and what an operator wants to know about it."""

    ready: bool
    detail: Mapping[str, Any]


def json_answer(value: Any, status: int = 200) -> Answer:
    """A JSON document; what JSON has no type for is shown as text."""
    return Answer(status, msgspec.json.encode(value, enc_hook=str) + b"\n")


def live_route() -> Route:
    """`/livez`: the loop turns. Nothing else is looked at, since restarting would mend nothing else."""

    async def live(_headers: Mapping[str, str]) -> Answer:
        return json_answer({"live": True})

    return live


def ready_route(components: Callable[[], Mapping[str, Component]]) -> Route:
    """`/readyz`: 200 when every component is ready, else 503; the body says which are, and why not."""

    async def ready(_headers: Mapping[str, str]) -> Answer:
        return ready_answer(components())

    return ready


def ready_answer(components: Mapping[str, Component]) -> Answer:
    """The answer of `/readyz`. No component at all is not ready."""
    is_ready = bool(components) and all(component.ready for component in components.values())
    listed = {name: {"ready": component.ready, **component.detail} for name, component in components.items()}
    return json_answer({"ready": is_ready, "components": listed}, 200 if is_ready else 503)


def json_route(value: Callable[[], Any]) -> Route:
    """A document made anew for each request, such as `/policy`."""

    async def document(_headers: Mapping[str, str]) -> Answer:
        return json_answer(value())

    return document


class AdminServer:
    """Serves routes by exact path on one address, on the running loop."""

    def __init__(
        self,
        routes: Mapping[str, Route | PostRoute],
        *,
        connections_max: int = CONNECTIONS_MAX,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        self._routes = dict(routes)
        self._connections_max = connections_max
        self._timeout_s = timeout_s
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._unix: tuple[UnixAddress, tuple[int, int] | None] | None = None

    async def start(self, address: Address) -> Address:
        """Bind and serve; returns the address with the real port.

        Raises:
            OSError: The address cannot be bound.
        """
        if isinstance(address, UnixAddress):
            listener = _private_listener(address)
            self._server = await asyncio.start_unix_server(self._connected, sock=listener, limit=READ_BYTES)
            self._unix = address, socket_identity(address)
            return address
        self._server = await asyncio.start_server(self._connected, address.host, address.port, limit=READ_BYTES)
        return TcpAddress(address.host, self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and drop every connection."""
        if self._server is not None:
            self._server.close()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)
            await self._server.wait_closed()
        if self._unix is not None:
            remove_socket(*self._unix)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._serving) >= self._connections_max:
            writer.transport.abort()
            return
        self._serving.add(task)
        try:
            await _Connection(reader, writer, self._routes, self._timeout_s).serve()
        except (OSError, TimeoutError, h11.LocalProtocolError, asyncio.CancelledError):
            pass  # the peer is gone, too slow, or we are closing: there is nobody to tell
        finally:
            self._serving.discard(task)
            writer.transport.abort() if writer.transport.is_closing() else writer.close()


class _Connection:
    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        routes: Mapping[str, Route | PostRoute],
        timeout_s: float,
    ) -> None:
        self._body = b""
        self._reader = reader
        self._writer = writer
        self._routes = routes
        self._timeout_s = timeout_s
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_BYTES_MAX)

    async def serve(self) -> None:
        for _ in range(REQUESTS_PER_CONNECTION_MAX):
            try:
                async with asyncio.timeout(self._timeout_s):
                    request = await self._request()
            except h11.RemoteProtocolError as error:
                await self._refuse(error)
                return
            if request is None:
                return
            answer = await self._answer(request)
            async with asyncio.timeout(self._timeout_s):
                await self._send(answer, request)
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _request(self) -> h11.Request | None:
        """The next request, its body read over or kept for a route that takes one; None when the peer has no more."""
        request: h11.Request | None = None
        body_bytes_max = 0
        self._body = b""
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                await self._receive()
            elif isinstance(event, h11.Request):
                request = event
                route = self._routes.get(_path(request))
                if isinstance(route, PostRoute) and request.method == b"POST":
                    body_bytes_max = route.body_bytes_max
                elif event.method not in (b"GET", b"HEAD"):
                    return request  # its body is not read: the connection closes after the answer
            elif isinstance(event, h11.EndOfMessage):
                return request
            elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                return None
            elif isinstance(event, h11.Data):
                self._body += event.data
                if len(self._body) > body_bytes_max:
                    what = f"a body of more than {body_bytes_max} bytes" if body_bytes_max else "a body"
                    raise h11.RemoteProtocolError(f"a request here has not {what}", error_status_hint=413)

    async def _receive(self) -> None:
        if self._http.they_are_waiting_for_100_continue:
            self._writer.write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        self._http.receive_data(await self._reader.read(READ_BYTES))

    async def _answer(self, request: h11.Request) -> Answer:
        path = _path(request)
        route = self._routes.get(path)
        if route is None:
            return json_answer({"error": "not found", "paths": sorted(self._routes)}, 404)
        if request.method not in _methods(route):
            return json_answer({"error": "method not allowed", "methods": _names(_methods(route))}, 405)
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
            if isinstance(route, PostRoute):
                return await route.handler(self._body, headers)
            return await route(headers)
        except Exception:  # noqa: BLE001 - a route's fault must not end in a traceback on the wire
            _log.exception("admin_route_failed", path=path)
            return json_answer({"error": "internal error"}, 500)

    async def _refuse(self, error: h11.RemoteProtocolError) -> None:
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            status = error.error_status_hint or 400
            await self._send(json_answer({"error": "malformed request"}, status), None, close=True)

    async def _send(self, answer: Answer, request: h11.Request | None, *, close: bool = False) -> None:
        headers = [
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            ("Cache-Control", answer.cache_control),
        ]
        if answer.status == 405 and request is not None:
            headers.append(("Allow", ", ".join(_names(_methods(self._routes[_path(request)])))))
        if close or self._http.their_state is not h11.DONE:
            headers.append(("Connection", "close"))
        send = self._http.send
        reason = _REASONS.get(answer.status, b"")
        data = send(h11.Response(status_code=answer.status, headers=headers, reason=reason)) or b""
        if request is None or request.method != b"HEAD":
            data += send(h11.Data(data=answer.body)) or b""
        data += send(h11.EndOfMessage()) or b""
        self._writer.write(data)
        await self._writer.drain()


def _path(request: h11.Request) -> str:
    return str(request.target.partition(b"?")[0].decode("ascii", "replace"))


def _methods(route: Route | PostRoute) -> tuple[bytes, ...]:
    return (b"POST",) if isinstance(route, PostRoute) else (b"GET", b"HEAD")


def _names(methods: tuple[bytes, ...]) -> list[str]:
    return [method.decode() for method in methods]


_REASONS: Final = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    404: b"Not Found",
    405: b"Method Not Allowed",
    413: b"Content Too Large",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    503: b"Service Unavailable",
}


def _private_listener(address: UnixAddress) -> socket.socket:
    umask = os.umask(0o177)
    try:
        return unix_listener(address)
    finally:
        os.umask(umask)
