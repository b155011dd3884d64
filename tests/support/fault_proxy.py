"""A proxy in front of a Unix socket that fails on demand, and ends TLS, which the embedded server cannot."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Self

_CHUNK_BYTES = 65_536


class FaultProxy:
    """Listens on a free port of 127.0.0.1; each attribute takes effect at once, also on open connections.

    Attributes:
        frozen: Nothing is forwarded, in either direction, and nothing is closed.
        mute: Requests arrive at the server, replies do not come back (a half-open connection).
        delay_s: Each chunk of replies waits so long.
        upstream_path: Where new connections lead.
        cut_after_bytes: Connections are cut after so many bytes of replies; None: never.
        refusing: New connections are closed at once.
    """

    def __init__(self, upstream_path: str, tls: ssl.SSLContext | None = None) -> None:
        self.upstream_path = upstream_path
        self._tls = tls
        self._moving = asyncio.Event()
        self._moving.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.mute = False
        self.refusing = False
        self.delay_s = 0.0
        self.cut_after_bytes: int | None = None
        self.accepted = 0
        self.port = 0

    @property
    def frozen(self) -> bool:
        return not self._moving.is_set()

    @frozen.setter
    def frozen(self, value: bool) -> None:
        if value:
            self._moving.clear()
        else:
            self._moving.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection."""
        for writer in self._writers:
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.refusing:
            writer.transport.abort()
            return
        with contextlib.suppress(OSError):
            up_reader, up_writer = await asyncio.open_unix_connection(self.upstream_path)
            self._writers |= {writer, up_writer}
            try:
                await asyncio.gather(self._requests(reader, up_writer), self._replies(up_reader, writer))
            finally:
                self._writers -= {writer, up_writer}
                writer.transport.abort()
                up_writer.transport.abort()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            await self._moving.wait()
            writer.write(data)
        writer.transport.abort()

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            await self._moving.wait()
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if self.mute:
                continue
            if self.cut_after_bytes is not None:
                data = data[: self.cut_after_bytes]
                self.cut_after_bytes -= len(data)
            writer.write(data)
            if self.cut_after_bytes == 0:
                await writer.drain()
                break
        writer.close()
