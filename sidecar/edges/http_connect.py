"""The way to an HTTP server: which URLs may be asked, which addresses may be connected to, and through whom."""

from __future__ import annotations

import asyncio
import math
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple, TypeAlias
from urllib.parse import urlsplit

import h11

BODY_BYTES_MAX = 512 * 1024
HEADER_BYTES_MAX = 16 * 1024
"""Status line and headers together."""
CONNECT_TIMEOUT_S = 2.0
ADDRESSES_MAX = 16
"""Of one host; further ones are not used."""
READ_BYTES = 64 * 1024
_NAT64 = ip_network("64:ff9b::/96")
_COMPATIBLE = ip_network("::/96")
_URL = re.compile(r"[!-~]+")


class FetchError(Exception):
    """Nothing usable came back; the message says why and names no more of the URL than its host."""


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


class Way(NamedTuple):
    """How to get to a server, and how much to take from it."""

    connect_timeout_s: float = CONNECT_TIMEOUT_S
    read_timeout_s: float = math.inf
    body_bytes_max: int = BODY_BYTES_MAX
    proxy: str | None = None
    public_only: bool = False


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
    if not secure and not is_loopback(host):
        raise FetchError("http:// is refused: the host is not this machine's loopback")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(secure, host, port or (443 if secure else 80), path)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, without asking DNS."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(target: Target, context: ssl.SSLContext | None, way: Way) -> Streams:
    """A connection to a server, with TLS where there is a context for it.

    Raises:
        FetchError: The way does not lead to it.
        OSError: It cannot be reached.
    """
    if way.public_only and (way.proxy is None or _address(target.host) is not None):
        addresses = await _public_addresses(target)
        if way.proxy is None:
            return await _connect_to_one(target, addresses, context)
    if way.proxy is not None and context is not None:
        return await _tunnel(target, context, way.proxy)
    return await asyncio.open_connection(target.host, target.port, ssl=context)


async def _connect_to_one(target: Target, addresses: Sequence[str], context: ssl.SSLContext | None) -> Streams:
    """To the addresses that were looked at and no others: asking again might get another answer."""
    name = target.host if context is not None else None
    for address in addresses[:-1]:
        try:
            return await asyncio.open_connection(address, target.port, ssl=context, server_hostname=name)
        except OSError:
            continue
    return await asyncio.open_connection(addresses[-1], target.port, ssl=context, server_hostname=name)


async def _public_addresses(target: Target) -> list[str]:
    """All addresses of a host, of which each must be public."""
    found = await asyncio.get_running_loop().getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    addresses = [str(sockaddr[0]) for *_, sockaddr in found][:ADDRESSES_MAX]
    if not addresses or not all(map(_is_public, addresses)):
        raise FetchError(
            f"{target.host} has an address that is not public, and was named by a document: "
            "allow it by fetch.private_addresses, or name its URL in the policy"
        )
    return addresses


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _is_public(text: str) -> bool:
    """Also of the IPv4 address that an IPv6 one carries for a translator or tunnel (RFC 4291, 6052, 3056, 4380)."""
    address = _address(text)
    if address is None or not address.is_global or address.is_multicast:
        return False
    if isinstance(address, IPv4Address):
        return True
    carried = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64 or address in _COMPATIBLE:
        carried.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return all(inner is None or (inner.is_global and not inner.is_multicast) for inner in carried)


async def _tunnel(target: Target, context: ssl.SSLContext, proxy_url: str) -> Streams:
    """TLS with the server through a proxy that only passes bytes on (RFC 9110 section 9.3.6)."""
    proxy = urlsplit(proxy_url)
    reader, writer = await asyncio.open_connection(proxy.hostname, proxy.port or 80)
    try:
        host = f"[{target.host}]" if ":" in target.host else target.host
        authority = f"{host}:{target.port}"
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEADER_BYTES_MAX)
        ask = h11.Request(method="CONNECT", target=authority, headers=[("Host", authority), ("User-Agent", "sidecar")])
        writer.write(b"".join(connection.send(event) or b"" for event in (ask, h11.EndOfMessage())))
        while (event := connection.next_event()) is h11.NEED_DATA or isinstance(event, h11.InformationalResponse):
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(READ_BYTES))
        _check_tunnel(event, connection, target.host)
        await writer.start_tls(context, server_hostname=target.host)
    except BaseException:
        writer.transport.abort()
        raise
    return reader, writer


def _check_tunnel(event: object, connection: h11.Connection, host: str) -> None:
    """Refuse anything but a success, after which the server's bytes come and none have come yet."""
    if not isinstance(event, h11.Response):
        raise FetchError(f"the proxy does not connect to {host}: it did not answer in HTTP/1.1")
    if not 200 <= event.status_code < 300 or connection.trailing_data[0]:
        raise FetchError(f"the proxy does not connect to {host}: status {event.status_code}")
