"""A small HTTP/1.1 client over one kept connection, which sends exactly the headers that it is given."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import h11

READ_BYTES = 65536
TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Reply:
    """A response, whole; header names in lower case."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str:
        """A header's values joined with ", ", "" without one."""
        return ", ".join(value for key, value in self.headers if key == name)

    def json(self) -> Any:
        """The body as JSON; an empty object when it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return {}


class Client:
    """One connection to one server, opened when it is needed and again after the server closed it."""

    def __init__(self, port: int, host: str = "127.0.0.1", timeout_s: float = TIMEOUT_S) -> None:
        self._address = host, port
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._connection = h11.Connection(h11.CLIENT)

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def request(
        self,
        method: str,
        target: str,
        headers: Iterable[tuple[str, str | bytes]] = (),
        body: bytes = b"",
        authority: str = "",
    ) -> Reply:
        """Send a request and read its response.

        Raises:
            OSError: The connection cannot be opened, or was lost before the response was complete, or timed out.
        """
        sock = self._socket or self._open()
        fields = [(b"host", (authority or "{}:{}".format(*self._address)).encode())]
        fields += [(name.encode(), value.encode() if isinstance(value, str) else value) for name, value in headers]
        if body:
            fields.append((b"content-length", str(len(body)).encode()))
        send = self._connection.send
        head = h11.Request(method=method, target=target, headers=fields)
        sock.sendall((send(head) or b"") + (send(h11.Data(data=body)) or b"") + (send(h11.EndOfMessage()) or b""))
        try:
            return self._read(sock)
        except BaseException:
            self.close()
            raise

    def _open(self) -> socket.socket:
        self._socket = sock = socket.create_connection(self._address, self._timeout_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = h11.Connection(h11.CLIENT)
        return sock

    def _read(self, sock: socket.socket) -> Reply:
        connection = self._connection
        head: h11.Response | None = None
        body = b""
        while True:
            match connection.next_event():
                case h11.NEED_DATA:
                    data = sock.recv(READ_BYTES)
                    if not data and head is None:
                        raise ConnectionResetError("the server closed the connection without a response")
                    connection.receive_data(data)
                case h11.Response() as head:
                    pass
                case h11.Data(data=data):
                    body += data
                case h11.EndOfMessage() if head is not None:
                    break
                case h11.InformationalResponse():
                    continue
                case other:
                    raise ConnectionResetError(f"the response is not complete: {other}")
        if connection.our_state is h11.DONE and connection.their_state is h11.DONE:
            connection.start_next_cycle()
        else:
            self.close()
        fields = tuple((name.decode(), value.decode("latin-1")) for name, value in head.headers)
        return Reply(head.status_code, fields, body)


def fetch(port: int, target: str, method: str = "GET") -> Reply | None:
    """One request on a connection of its own; None when nobody answers."""
    with Client(port) as client:
        try:
            return client.request(method, target)
        except (OSError, h11.RemoteProtocolError):
            return None
