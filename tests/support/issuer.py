"""A real HTTP server that publishes keys, and misbehaves on demand."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Self

from tests.support.tokens import jwks

if TYPE_CHECKING:
    import ssl

    from tests.support.tokens import SigningKey

Behaviour = Callable[["Issuer", asyncio.StreamWriter], Awaitable[None]]


def response(status: int = 200, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def sends(*chunks: bytes) -> Behaviour:
    """Writes these bytes, whatever they are, and closes."""

    async def behave(_issuer: Issuer, writer: asyncio.StreamWriter) -> None:
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()

    return behave


async def hangs(issuer: Issuer, _writer: asyncio.StreamWriter) -> None:
    """Never answers, and keeps the connection."""
    await issuer.closing.wait()


async def drips(issuer: Issuer, writer: asyncio.StreamWriter) -> None:
    """Sends a good answer one byte at a time, so slowly that it never ends."""
    answer = response(body=jwks(*issuer.keys))
    for byte in answer:
        writer.write(bytes([byte]))
        await writer.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                await issuer.closing.wait()
                return


class Issuer:
    """What it publishes can be changed between two requests.

    Attributes:
        keys: Published at /jwks.
        configuration: Members that replace those of the discovery document.
        behaviour: Instead of an answer, for /jwks.
        gate: While not set, answers wait.
        requests: The paths that were asked for.
        heads: What was asked, whole, in lower case.
        etag: Sent with the keys; who names it is told that they are unchanged (304). "" for none.
    """

    def __init__(self, *keys: SigningKey | dict[str, Any], tls: ssl.SSLContext | None = None) -> None:
        self.keys = list(keys)
        self.configuration: dict[str, Any] = {}
        self.behaviour: Behaviour | None = None
        self.headers: tuple[str, ...] = ("cache-control: max-age=0",)
        self.gate = asyncio.Event()
        self.gate.set()
        self.closing = asyncio.Event()
        self.requests: list[str] = []
        self.heads: list[str] = []
        self.etag = ""
        self._tls = tls
        self._server: asyncio.Server | None = None

    @property
    def fetches(self) -> int:
        """How often the keys were asked for."""
        return self.requests.count("/jwks")

    @property
    def url(self) -> str:
        assert self._server is not None
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self.closing.set()
        self.gate.set()
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ")[1].decode()
            self.requests.append(path)
            self.heads.append(head.decode("latin-1").lower())
            await self.gate.wait()
            await self._answer(path, writer, self.heads[-1])
        writer.close()

    async def _answer(self, path: str, writer: asyncio.StreamWriter, head: str) -> None:
        if path == "/.well-known/openid-configuration":
            document = {"issuer": self.url, "jwks_uri": f"{self.url}/jwks"} | self.configuration
            writer.write(response(200, json.dumps(document).encode()))
        elif path != "/jwks":
            writer.write(response(404))
        elif self.behaviour is not None:
            await self.behaviour(self, writer)
        elif self.etag and f"if-none-match: {self.etag}\r\n" in head:
            writer.write(b"HTTP/1.1 304 X\r\netag: %b\r\n\r\n" % self.etag.encode())
        else:
            etag = [f"etag: {self.etag}"] if self.etag else []
            writer.write(response(200, jwks(*self.keys), *self.headers, *etag))
        await writer.drain()
