"""One GET, for keys, and one POST, for questions about tokens: HTTP/1.1 (h11) over asyncio streams, one error type out.

Everything has a limit.

Deliberately absent: redirects (a server that moves is a change of policy), proxies from the environment, cookies,
credentials in URLs, content codings, and connections that are kept: keys are fetched once in minutes.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from typing import NamedTuple, Protocol, TypeVar, cast
from urllib.parse import urlsplit

import h11

BODY_BYTES_MAX = 512 * 1024
HEADER_BYTES_MAX = 16 * 1024
"""Status line and headers together."""
CONNECT_TIMEOUT_S = 2.0
_READ_BYTES = 64 * 1024
_KEYS_MEDIA_TYPES = "application/jwk-set+json, application/json"
_URL = re.compile(r"[!-~]+")
_MAX_AGE = re.compile(r'(?:^|[,\s])max-age="?(\d{1,9})(?:"|[,\s]|$)', re.IGNORECASE)


T = TypeVar("T")


class FetchError(Exception):
    """Nothing usable came back; the message says why and names no more of the URL than its host."""


class TooLongError(FetchError):
    """The body is longer than is read."""


class StatusError(FetchError):
    """The server answered a POST with another status than 200."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that may be fetched, taken apart."""

    secure: bool
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The Host header's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


class Fetched(NamedTuple):
    """A complete 200 response; `max_age_s` from Cache-Control (RFC 9111 section 5.2.2.1), None without one."""

    body: bytes
    max_age_s: int | None


class Get(Protocol):
    """What `get` is, for those who are given it."""

    async def __call__(
        self, url: str, *, timeout_s: float, insecure_http: bool = False, ca_file: str | None = None
    ) -> Fetched:
        """See `get`."""


def target_of(url: str, *, insecure_http: bool = False) -> Target:
    """The parts of an https URL; of an http one only where that is allowed, and only on this machine.

    Raises:
        FetchError: The URL is of any other kind, or says more than where the document is.
    """
    if not _URL.fullmatch(url):
        raise FetchError("the URL has a character that URLs do not have")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise FetchError("the URL is not well-formed") from None
    if parts.scheme not in {"https", "http"}:
        raise FetchError("the URL is not https://")
    if not host:
        raise FetchError("the URL has no host")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise FetchError("the URL has credentials or a fragment")
    secure = parts.scheme == "https"
    if not secure and not insecure_http:
        raise FetchError("http:// is refused: use https://, or insecure_http for a server on this machine")
    if not secure and not _is_loopback(host):
        raise FetchError("http:// is refused: the host is not this machine's loopback")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(secure, host, port or (443 if secure else 80), path)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


async def get(url: str, *, timeout_s: float, insecure_http: bool = False, ca_file: str | None = None) -> Fetched:
    """The body that a GET of `url` returns with status 200, within `timeout_s` for everything together.

    Args:
        url: https://, or http:// to loopback where `insecure_http`.
        timeout_s: Seconds for connecting, sending and receiving together.
        insecure_http: Permits http://.
        ca_file: PEM file of the authorities that may vouch for the server; the system's where None.

    Raises:
        FetchError: Anything else happened.
    """
    target = target_of(url, insecure_http=insecure_http)
    async with _one_error(target, timeout_s):
        request = h11.Request(method="GET", target=target.path, headers=_headers(target, _KEYS_MEDIA_TYPES))
        context = _tls(ca_file) if target.secure else None
        max_age_s, body = await _exchange(target, context, request, b"", _accept, BODY_BYTES_MAX)
        return Fetched(body, max_age_s)


async def post_form(
    target: Target,
    form: bytes,
    headers: Mapping[str, str],
    *,
    timeout_s: float,
    tls: ssl.SSLContext | None,
    body_bytes_max: int = BODY_BYTES_MAX,
) -> bytes:
    """The body that a POST of a form returns with status 200, within `timeout_s` for everything together.

    Args:
        target: Where to.
        form: `application/x-www-form-urlencoded`.
        headers: Besides those of every request.
        timeout_s: Seconds for connecting, sending and receiving together.
        tls: For an https target; a client certificate may be in it.
        body_bytes_max: Longest body that is read.

    Raises:
        StatusError: The status is another one.
        FetchError: Anything else happened.
    """
    async with _one_error(target, timeout_s):
        form_headers = [
            ("Content-Type", "application/x-www-form-urlencoded"),
            ("Content-Length", str(len(form))),
            *headers.items(),
        ]
        everything = _headers(target, "application/json") + form_headers
        request = h11.Request(method="POST", target=target.path, headers=everything)
        _, body = await _exchange(target, tls, request, form, _accept_posted, body_bytes_max)
        return body


@asynccontextmanager
async def _one_error(target: Target, timeout_s: float) -> AsyncIterator[None]:
    """What can go wrong on the way, as `FetchError`."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise FetchError(f"{target.host} did not answer completely within {timeout_s:g} s") from None
    except ssl.SSLError as error:
        raise FetchError(f"TLS with {target.host} failed: {error.reason or type(error).__name__}") from None
    except OSError as error:
        raise FetchError(f"{target.host} cannot be reached: {error.strerror or type(error).__name__}") from None
    except UnicodeError:
        raise FetchError("the URL's host is not a name") from None
    except h11.RemoteProtocolError:
        raise FetchError(f"{target.host} did not answer in complete HTTP/1.1") from None


async def _exchange(
    target: Target,
    context: ssl.SSLContext | None,
    request: h11.Request,
    content: bytes,
    accept: Callable[[h11.Response, str], T],
    body_bytes_max: int,
) -> tuple[T, bytes]:
    """One request on a connection of its own: what `accept` makes of the response's head, and the body."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(target.host, target.port, ssl=context)
    except TimeoutError:
        raise FetchError(f"no connection to {target.host} within {CONNECT_TIMEOUT_S:g} s") from None
    try:
        peer = writer.get_extra_info("peername")
        if not target.secure and not (peer and _is_loopback(peer[0])):
            raise FetchError("http:// is refused: the name resolves to another machine")
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEADER_BYTES_MAX)
        events = [request, *([h11.Data(data=content)] if content else []), h11.EndOfMessage()]
        writer.write(b"".join(connection.send(event) or b"" for event in events))
        await writer.drain()
        return await _response(connection, reader, target.host, accept, body_bytes_max)
    finally:
        writer.transport.abort()


def _headers(target: Target, accepted: str) -> list[tuple[str, str]]:
    return [
        ("Host", target.authority),
        ("Accept", accepted),
        ("Accept-Encoding", "identity"),
        ("User-Agent", "sidecar"),
        ("Connection", "close"),
    ]


async def _response(
    connection: h11.Connection,
    reader: asyncio.StreamReader,
    host: str,
    accept: Callable[[h11.Response, str], T],
    body_bytes_max: int,
) -> tuple[T, bytes]:
    head: T | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Response):
            head = accept(event, host)
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > body_bytes_max:
                raise TooLongError(f"{host} answered with more than {body_bytes_max} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return cast("T", head), bytes(body)
        elif not isinstance(event, h11.InformationalResponse):
            raise FetchError(f"{host} did not answer in complete HTTP/1.1")


def _accept_posted(response: h11.Response, host: str) -> None:
    """A response whose body is wanted."""
    if response.status_code != 200:
        raise StatusError(f"{host} answered with status {response.status_code}", response.status_code)
    _refuse_coding(response, host)


def _accept(response: h11.Response, host: str) -> int | None:
    """`max-age` of a response whose body is wanted."""
    if 300 <= response.status_code < 400:
        raise FetchError(f"{host} answered with a redirect ({response.status_code}), which is not followed")
    if response.status_code != 200:
        raise FetchError(f"{host} answered with status {response.status_code}")
    headers = _refuse_coding(response, host)
    cache_control = headers.get(b"cache-control", "")
    if "no-store" in cache_control.lower() or "no-cache" in cache_control.lower():
        return 0
    found = _MAX_AGE.search(cache_control)
    return int(found[1]) if found else None


def _refuse_coding(response: h11.Response, host: str) -> Mapping[bytes, str]:
    """The headers."""
    headers = {name: value.decode("latin-1") for name, value in response.headers}
    if headers.get(b"content-encoding", "identity").lower() != "identity":
        raise FetchError(f"{host} answered in a content coding that was not asked for")
    return headers


def _tls(ca_file: str | None) -> ssl.SSLContext:
    """A named file is read each time, so that authorities can be replaced."""
    if ca_file is None:
        return _system_tls()
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise FetchError(f"the CA file cannot be used: {error.strerror or type(error).__name__}") from None


@cache
def _system_tls() -> ssl.SSLContext:
    """Reading every authority of the system takes 20 ms and a few MiB: once."""
    return ssl.create_default_context()
