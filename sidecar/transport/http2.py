"""The gRPC server over ngh2 (libnghttp2) and uvloop: the default engine, about 8 us of CPU for a constant answer.

`Http2Server` owns the listeners and what all connections share: the limits' accounts, the deadline wheel, and the
flush of answers that were given outside of a connection's turn. The rest is in http2_connection.py (one connection)
and http2_calls.py (one call).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING

from sidecar.transport import http2_settings, listeners
from sidecar.transport.deadlines import DeadlineWheel
from sidecar.transport.http2_connection import Http2Connection
from sidecar.transport.service import Refusal, ServerLimits, TcpAddress

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping, Sequence

    from sidecar.transport.service import Address, Method, Service, TlsFiles, UnixAddress

BACKLOG = 1024
TLS_SHUTDOWN_TIMEOUT_S = 5.0
ABORT_WAIT_S = 1.0
"""How long `drain` lets the last bytes of refused calls leave, once its grace is over."""


class Http2Server:
    """A gRPC server; implements `service.Server`.

    Args:
        service: Methods by full path.
        addresses: Where to listen.
        limits: See `ServerLimits`.
        tls: Serve TLS (ALPN h2) on all TCP and Unix addresses; None: cleartext HTTP/2 with prior knowledge.
        on_error: Told of each exception that a handler raised, and the method's path.
        reuse_port: Set SO_REUSEPORT on TCP listeners, so that several worker processes share a port.
        unix_fds: By path: Unix sockets that a parent process listens on already, shared by its workers.
    """

    def __init__(
        self,
        service: Service,
        addresses: Sequence[Address],
        limits: ServerLimits | None = None,
        *,
        tls: TlsFiles | None = None,
        on_error: Callable[[Exception, str], None],
        reuse_port: bool = False,
        unix_fds: Mapping[str, int] | None = None,
    ) -> None:
        self.limits = limits if limits is not None else ServerLimits()
        self.routes: dict[bytes, Method] = {path.encode("latin-1"): method for path, method in service.items()}
        self.on_error = on_error
        self.refused = dict.fromkeys(Refusal, 0)
        self.h2_configuration = http2_settings.configuration(self.limits)
        self.h2_settings = http2_settings.settings(self.limits)
        self.deadlines: DeadlineWheel
        self._addresses = tuple(addresses)
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        self._reuse_port = reuse_port
        self._unix_fds = unix_fds or {}
        self._loop: asyncio.AbstractEventLoop
        self._servers: list[asyncio.AbstractServer] = []
        self._sockets: list[tuple[UnixAddress, tuple[int, int] | None]] = []
        self._connections: set[Http2Connection] = set()
        self.calls_in_flight = 0
        """How many calls have begun and are not answered; the connections count them."""
        self._held_bytes = 0
        self._draining = False
        self._all_gone: asyncio.Event
        self._to_flush: list[Http2Connection] = []

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    async def start(self) -> tuple[Address, ...]:
        """Bind all addresses and serve; returns them with the real ports.

        Raises:
            OSError: An address cannot be bound, or a TLS file cannot be used; nothing is left listening.
        """
        self._loop = asyncio.get_running_loop()
        self._all_gone = asyncio.Event()
        self.deadlines = DeadlineWheel(self._loop)
        context = self._context = listeners.tls_context(self._tls) if self._tls is not None else None
        bound: list[Address] = []
        try:
            for address in self._addresses:
                bound.extend(await self._listen(address, context))
        except OSError:
            self._stop_listening()
            raise
        return tuple(bound)

    async def _listen(self, address: Address, context: ssl.SSLContext | None) -> list[Address]:
        handshake_s = self.limits.handshake_timeout_s if context is not None else None
        shutdown_s = TLS_SHUTDOWN_TIMEOUT_S if context is not None else None
        if not isinstance(address, TcpAddress):
            inherited = self._unix_fds.get(address.path)
            sock = listeners.unix_listener(address) if inherited is None else socket.socket(fileno=os.dup(inherited))
            server: asyncio.AbstractServer = await self._loop.create_unix_server(
                self._accept,
                sock=sock,
                backlog=BACKLOG,
                ssl=context,
                ssl_handshake_timeout=handshake_s,
                ssl_shutdown_timeout=shutdown_s,
                **listeners.KEEP_SOCKET_FILE,
            )
            self._servers.append(server)
            if inherited is None:
                self._sockets.append((address, listeners.socket_identity(address)))
            return [address]
        tcp = await self._loop.create_server(
            self._accept,
            address.host,
            address.port,
            backlog=BACKLOG,
            reuse_port=self._reuse_port or None,
            ssl=context,
            ssl_handshake_timeout=handshake_s,
            ssl_shutdown_timeout=shutdown_s,
        )
        self._servers.append(tcp)
        return [TcpAddress(*listener.getsockname()[:2]) for listener in tcp.sockets]

    def _accept(self) -> Http2Connection:
        return Http2Connection(self, self._loop)

    def _stop_listening(self) -> None:
        for server in self._servers:
            server.close()
        for address, identity in self._sockets:
            listeners.remove_socket(address, identity)
        self._servers.clear()
        self._sockets.clear()

    async def drain(self, grace_s: float) -> None:
        """Stop accepting, send GOAWAY, let calls in flight finish, then close; return after `grace_s` at the latest.

        Streaming calls are ended with UNAVAILABLE at once: they have no natural end to wait for. Unary calls that are
        still unanswered after `grace_s` are refused with SHUTTING_DOWN.
        """
        self._draining = True
        self._stop_listening()
        for connection in list(self._connections):
            connection.drain(end_streams=True)
        await self._wait_until_gone(grace_s)
        for connection in list(self._connections):
            connection.shut_down()
        await self._wait_until_gone(ABORT_WAIT_S)
        for connection in list(self._connections):
            connection.abort()
        await self._wait_until_gone(ABORT_WAIT_S)
        self.deadlines.close()

    async def _wait_until_gone(self, timeout_s: float) -> None:
        if self._connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_gone.wait(), timeout_s)

    # What connections share.

    def renew_certificate(self) -> None:
        """Serve new connections with the certificate and key that the files hold now; authorities stay as they are.

        Raises:
            OSError: They cannot be used, such as a new certificate whose key is not written yet; the old ones stay.
        """
        if self._tls is not None and self._context is not None:
            listeners.tls_context(self._tls)  # a pair that does not fit would leave half of it in the context in use
            self._context.load_cert_chain(self._tls.certificate, self._tls.key)

    def trusts(self, tls: ssl.SSLObject) -> bool:
        """Whether a connection whose handshake succeeded is what was asked for: HTTP/2, and the client's name."""
        client_name = self._tls.client_name if self._tls is not None else ""
        return tls.selected_alpn_protocol() == "h2" and (not client_name or listeners.names(tls, client_name))

    def admit(self, connection: Http2Connection) -> bool:
        """Count a new connection in; False when there are too many, or the server is going away."""
        if self._draining or len(self._connections) >= self.limits.connections_max:
            return False
        self._connections.add(connection)
        return True

    def forget(self, connection: Http2Connection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        if self._draining and not self._connections:
            self._all_gone.set()

    def hold_bytes(self, more: int) -> bool:
        """Account for bytes of incomplete messages; False when that is too many."""
        self._held_bytes += more
        return self._held_bytes <= self.limits.receive_buffer_bytes_max

    def flush_soon(self, connection: Http2Connection) -> None:
        """Flush a connection at the end of this loop iteration, together with all others that have output."""
        if not self._to_flush:
            self._loop.call_soon(self._flush_all)
        self._to_flush.append(connection)

    def _flush_all(self) -> None:
        connections, self._to_flush = self._to_flush, []
        for connection in connections:
            connection.flush()
