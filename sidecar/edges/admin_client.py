"""Asks an admin listener: a worker's private one for its supervisor, or a running sidecar's for a command."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import h11
import msgspec

from sidecar.transport.service import Address, UnixAddress

ANSWER_TIMEOUT_S: Final = 1.0
"""A process whose loop does not turn for so long is as good as gone."""
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
READ_BYTES: Final = 256 * 1024
POSTED_TIMEOUT_S: Final = 3.0

_HEADERS: Final = (("Host", "sidecar"), ("Connection", "close"))


class AdminSilentError(Exception):
    """There is no answer, or none that can be read; the text says why."""


async def get(address: Address, target: str) -> tuple[int, bytes]:
    """Status and body of a GET.

    Raises:
        AdminSilentError: There is no answer within `ANSWER_TIMEOUT_S`, or it is not HTTP, or too large.
    """
    return await _ask(address, h11.Request(method="GET", target=target, headers=[*_HEADERS]), b"")


async def post(address: Address, target: str, body: bytes, authorization: str) -> tuple[int, bytes]:
    """Status and body of a POST, whose answer may take a worker as long as Redis may.

    Raises:
        AdminSilentError: As `get`.
    """
    headers = [*_HEADERS, ("Content-Length", str(len(body))), ("Authorization", authorization)]
    return await _ask(address, h11.Request(method="POST", target=target, headers=headers), body, POSTED_TIMEOUT_S)


async def _ask(
    address: Address, request: h11.Request, body: bytes, timeout_s: float = ANSWER_TIMEOUT_S
) -> tuple[int, bytes]:
    try:
        async with asyncio.timeout(timeout_s):
            if isinstance(address, UnixAddress):
                reader, writer = await asyncio.open_unix_connection(address.path)
            else:
                reader, writer = await asyncio.open_connection(address.host, address.port)
            try:
                return await _exchange(reader, writer, request, body)
            finally:
                writer.close()
    except (OSError, TimeoutError, h11.RemoteProtocolError) as error:
        raise AdminSilentError(f"no answer: {str(error) or type(error).__name__}") from error


async def get_json(address: Address, target: str) -> Any:
    """The document of a GET.

    Raises:
        AdminSilentError: As `get`; or the answer is another than 200, or not JSON.
    """
    status, body = await get(address, target)
    if status != 200:
        raise AdminSilentError(f"{target} answers {status}")
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        raise AdminSilentError(f"{target} does not answer with JSON") from None


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: h11.Request, sent: bytes
) -> tuple[int, bytes]:
    http = h11.Connection(h11.CLIENT)
    events = (request, h11.Data(data=sent), h11.EndOfMessage()) if sent else (request, h11.EndOfMessage())
    writer.write(b"".join(http.send(event) or b"" for event in events))
    status, body = 0, bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(READ_BYTES))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > ANSWER_BYTES_MAX:
                raise h11.RemoteProtocolError(f"the answer is longer than {ANSWER_BYTES_MAX} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return status, bytes(body)
        else:
            raise h11.RemoteProtocolError("the connection was closed early")
