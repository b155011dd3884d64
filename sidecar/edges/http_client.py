"""One GET, for keys, and one POST, for questions about tokens: HTTP/1.1 (h11) over asyncio streams, one error type out.

Everything has a limit.

Deliberately absent: redirects (a server that moves is a change of policy), proxies from the environment, cookies,
credentials in URLs, content codings, and connections that are kept: keys are fetched once in minutes.
"""

from __future__ import annotations

import asyncio
import math
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar, cast

import h11

from sidecar.edges.http_connect import (
    BODY_BYTES_MAX,
    HEADER_BYTES_MAX,
    READ_BYTES,
    FetchError,
    Target,
    Way,
    connect,
    is_loopback,
    target_of,
)

if TYPE_CHECKING:
    from sidecar.core.issuer import FetchSettings

_KEYS_MEDIA_TYPES = "application/jwk-set+json, application/json"
HEADER_VALUE_BYTES_MAX = 8 * 1024
_HEADER_VALUE = re.compile(r"[!-~\xa0-\xff]([\t -~\xa0-\xff]*[!-~\xa0-\xff])?")
_ETAG = re.compile(r'(W/)?"[!#-~]{0,256}"')
_DATE = re.compile(r"[A-Za-z0-9,: +-]{1,64}")
_SECONDS = re.compile(r"[0-9]{1,9}")
_MAX_AGE = re.compile(r'(?:^|[,\s])max-age="?(\d{1,9})(?:"|[,\s]|$)', re.IGNORECASE)


__all__ = [
    "BODY_BYTES_MAX",
    "FetchError",
    "Fetched",
    "Get",
    "StatusError",
    "Target",
    "TooLongError",
    "Validators",
    "get",
    "post_form",
    "target_of",
]

T = TypeVar("T")


class TooLongError(FetchError):
    """The body is longer than is read."""


class StatusError(FetchError):
    """The server answered a POST with another status than 200."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Validators(NamedTuple):
    """What tells a later request which answer is known already (RFC 9110 section 8.8); "" where there is none."""

    etag: str = ""
    last_modified: str = ""


NOTHING_KNOWN = Validators()


class Fetched(NamedTuple):
    """A complete response.

    Attributes:
        body: None where the answer that the validators name is still the current one (304).
        max_age_s: How long it is fresh, less its `Age` (RFC 9111 section 4.2); None where it does not say.
        validators: Of this answer.
    """

    body: bytes | None
    max_age_s: int | None
    validators: Validators = NOTHING_KNOWN


class Get(Protocol):
    """What `get` is, for those who are given it."""

    async def __call__(
        self,
        url: str,
        settings: FetchSettings,
        *,
        known: Validators = NOTHING_KNOWN,
        discovered: bool = False,
    ) -> Fetched:
        """See `get`."""


async def get(
    url: str, settings: FetchSettings, *, known: Validators = NOTHING_KNOWN, discovered: bool = False
) -> Fetched:
    """The body that a GET of `url` returns with status 200, or that there is nothing new.

    Args:
        url: https://, or http:// to loopback where the settings allow it.
        settings: How it is reached, and what it may cost.
        known: Of the answer that is held: if it is still current, no body is returned.
        discovered: The URL is not the policy's, but was found in a document: what the settings' headers say is not for
            its server, and it must be at a public address unless the settings allow others.

    Raises:
        FetchError: Anything else happened.
    """
    target = target_of(url, insecure_http=settings.insecure_http)
    if settings.proxy is not None and not target.secure:
        raise FetchError("http:// is not fetched through a proxy")
    public_only = discovered and not settings.private_addresses
    way = Way(settings.connect_timeout_s, settings.read_timeout_s, settings.body_bytes_max, settings.proxy, public_only)
    async with _one_error(target, settings.timeout_s):
        headers = _headers(target, _KEYS_MEDIA_TYPES)
        if known.etag:
            headers.append(("If-None-Match", known.etag))
        elif known.last_modified:
            headers.append(("If-Modified-Since", known.last_modified))
        if not discovered and (settings.headers or settings.bearer_token_file is not None):
            headers += await asyncio.to_thread(_headers_from_files, settings)
        request = h11.Request(method="GET", target=target.path, headers=headers)
        context = await _client_tls(settings) if target.secure else None
        fetched, body = await _exchange(target, context, request, b"", partial(_accept, known), way)
        return fetched if fetched.body is None else fetched._replace(body=body)


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
        _, body = await _exchange(target, tls, request, form, _accept_posted, Way(body_bytes_max=body_bytes_max))
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
    way: Way,
) -> tuple[T, bytes]:
    """One request on a connection of its own: what `accept` makes of the response's head, and the body."""
    try:
        async with asyncio.timeout(way.connect_timeout_s):
            reader, writer = await connect(target, context, way)
    except TimeoutError:
        raise FetchError(f"no connection to {target.host} within {way.connect_timeout_s:g} s") from None
    try:
        peer = writer.get_extra_info("peername")
        if not target.secure and not (peer and is_loopback(peer[0])):
            raise FetchError("http:// is refused: the name resolves to another machine")
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEADER_BYTES_MAX)
        events = [request, *([h11.Data(data=content)] if content else []), h11.EndOfMessage()]
        writer.write(b"".join(connection.send(event) or b"" for event in events))
        await writer.drain()
        return await _response(connection, reader, target.host, accept, way)
    finally:
        writer.transport.abort()


def _headers_from_files(settings: FetchSettings) -> list[tuple[str, str]]:
    """The values that the files hold now."""
    headers = [(name, _value_from_file(name, path)) for name, path in settings.headers]
    if settings.bearer_token_file is not None:
        token = _value_from_file("authorization", settings.bearer_token_file)
        headers.append(("authorization", f"Bearer {token}"))
    return headers


def _value_from_file(name: str, path: str) -> str:
    """What a file holds, less one line break at the end."""
    try:
        with Path(path).open("rb") as file:
            raw = file.read(HEADER_VALUE_BYTES_MAX + 2)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise FetchError(f"the file of the header {name} cannot be read: {reason}") from None
    value = raw.removesuffix(b"\n").removesuffix(b"\r").decode("latin-1")
    if len(value) > HEADER_VALUE_BYTES_MAX or not _HEADER_VALUE.fullmatch(value):
        raise FetchError(
            f"the file of the header {name} does not hold 1 to {HEADER_VALUE_BYTES_MAX} characters on one line"
        )
    return value


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
    way: Way,
) -> tuple[T, bytes]:
    head: T | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await _read(reader, host, way.read_timeout_s))
        elif isinstance(event, h11.Response):
            head = accept(event, host)
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > way.body_bytes_max:
                raise TooLongError(f"{host} answered with more than {way.body_bytes_max} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return cast("T", head), bytes(body)
        elif not isinstance(event, h11.InformationalResponse):
            raise FetchError(f"{host} did not answer in complete HTTP/1.1")


async def _read(reader: asyncio.StreamReader, host: str, timeout_s: float) -> bytes:
    if math.isinf(timeout_s):
        return await reader.read(READ_BYTES)
    try:
        async with asyncio.timeout(timeout_s):
            return await reader.read(READ_BYTES)
    except TimeoutError:
        raise FetchError(f"{host} sent nothing for {timeout_s:g} s") from None


def _accept_posted(response: h11.Response, host: str) -> None:
    """A response whose body is wanted."""
    if response.status_code != 200:
        raise StatusError(f"{host} answered with status {response.status_code}", response.status_code)
    _refuse_coding(response, host)


def _accept(known: Validators, response: h11.Response, host: str) -> Fetched:
    """What a response's head says; its body is wanted where `body` is not None."""
    not_modified = response.status_code == 304 and any(known)
    if 300 <= response.status_code < 400 and response.status_code != 304:
        raise FetchError(f"{host} answered with a redirect ({response.status_code}), which is not followed")
    if response.status_code != 200 and not not_modified:
        raise FetchError(f"{host} answered with status {response.status_code}")
    headers = _refuse_coding(response, host)
    etag, modified = headers.get(b"etag", ""), headers.get(b"last-modified", "")
    validators = Validators(
        etag if _ETAG.fullmatch(etag) else "",
        modified if _DATE.fullmatch(modified) else "",
    )
    body = None if not_modified else b""
    return Fetched(body, _max_age_s(headers), validators if any(validators) or not not_modified else known)


def _max_age_s(headers: Mapping[bytes, str]) -> int | None:
    cache_control = headers.get(b"cache-control", "")
    if "no-store" in cache_control.lower() or "no-cache" in cache_control.lower():
        return 0
    found = _MAX_AGE.search(cache_control)
    if found is None:
        return None
    age = headers.get(b"age", "0")
    return max(0, int(found[1]) - (int(age) if _SECONDS.fullmatch(age) else 0))


def _refuse_coding(response: h11.Response, host: str) -> Mapping[bytes, str]:
    """The headers."""
    headers = {name: value.decode("latin-1") for name, value in response.headers}
    if headers.get(b"content-encoding", "identity").lower() != "identity":
        raise FetchError(f"{host} answered in a content coding that was not asked for")
    return headers


async def _client_tls(settings: FetchSettings) -> ssl.SSLContext:
    """Files that are named are read each time, so that they can be replaced."""
    if settings.ca_file is None and settings.client_certificate is None:
        return _system_tls()
    return await asyncio.to_thread(_tls, settings.ca_file, settings.client_certificate, settings.client_key)


def _tls(ca_file: str | None, certificate: str | None = None, key: str | None = None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise FetchError(f"the CA file cannot be used: {error.strerror or type(error).__name__}") from None
    if certificate is not None:
        try:
            # asked only for an encrypted key: an empty password fails, where no callback at all asks the terminal
            context.load_cert_chain(certificate, key, password=lambda: "")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise FetchError(f"the client certificate cannot be used: {reason}") from None
    return context


@cache
def _system_tls() -> ssl.SSLContext:
    """Reading every authority of the system takes 20 ms and a few MiB: once."""
    return ssl.create_default_context()
