"""How keys are fetched: conditional requests, proxies, client certificates, headers from files, and where not to go."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import pytest
import pytest_asyncio
import uvloop
from cryptography import x509

from sidecar.core.issuer import FetchSettings
from sidecar.edges import http_connect
from sidecar.edges.http_client import HEADER_VALUE_BYTES_MAX, FetchError, Validators, get
from sidecar.edges.http_connect import ADDRESSES_MAX
from tests.support.certificates import issue
from tests.support.issuer import Issuer, drips, hangs, response, sends
from tests.support.tokens import jwks, make_key

KEY = make_key()
LOCAL = FetchSettings(insecure_http=True)


@pytest_asyncio.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer(KEY) as server:
        yield server


def local(**changes: Any) -> FetchSettings:
    return FetchSettings(**({"insecure_http": True} | changes))


async def test_what_is_known_is_not_sent_again(issuer: Issuer) -> None:
    """RFC 9110 section 13.1.2: the validator of the first answer brings a 304 without a body, until the keys change."""
    issuer.etag = '"v1"'
    first = await get(f"{issuer.url}/jwks", LOCAL)
    assert (first.body, first.max_age_s, first.validators) == (jwks(KEY), 0, ('"v1"', ""))
    again = await get(f"{issuer.url}/jwks", LOCAL, known=first.validators)
    assert (again.body, again.validators) == (None, first.validators)
    issuer.etag = 'W/"v2"'
    changed = await get(f"{issuer.url}/jwks", LOCAL, known=first.validators)
    assert (changed.body, changed.validators.etag) == (jwks(KEY), 'W/"v2"')


async def test_last_modified_where_there_is_no_etag(issuer: Issuer) -> None:
    """RFC 9110 section 13.1.3; with an ETag, that alone is asked about."""
    date = "Tue, 15 Nov 1994 12:45:26 GMT"
    issuer.behaviour = sends(response(200, b"{}", f"last-modified: {date}"))
    first = await get(f"{issuer.url}/jwks", LOCAL)
    assert first.validators == ("", date)
    issuer.behaviour = sends(b"HTTP/1.1 304 X\r\n\r\n")
    assert await get(f"{issuer.url}/jwks", LOCAL, known=first.validators) == (None, None, ("", date))
    assert f"if-modified-since: {date.lower()}" in issuer.heads[-1]
    await get(f"{issuer.url}/jwks", LOCAL, known=Validators('"x"', date))
    assert "if-modified-since" not in issuer.heads[-1]


@pytest.mark.parametrize("etag", ['"a"b"', "unquoted", '"é"', '"' + "x" * 257 + '"', '"a\t"'])
async def test_validators_that_are_none_are_not_sent_back(issuer: Issuer, etag: str) -> None:
    """What a server says is not put into a request unless it has the form of a validator, and is short."""
    issuer.behaviour = sends(response(200, b"{}", f"etag: {etag}").decode("latin-1").encode("latin-1"))
    assert (await get(f"{issuer.url}/jwks", LOCAL)).validators == ("", "")


async def test_304_to_a_question_that_was_not_asked(issuer: Issuer) -> None:
    """Nothing is held, so nothing is unchanged."""
    issuer.behaviour = sends(b"HTTP/1.1 304 X\r\n\r\n")
    with pytest.raises(FetchError, match="status 304"):
        await get(f"{issuer.url}/jwks", LOCAL)


@pytest.mark.parametrize(
    ("headers", "max_age_s"),
    [
        (("cache-control: max-age=600", "age: 100"), 500),
        (("cache-control: max-age=600", "age: 601"), 0),
        (("cache-control: max-age=600", "age: x"), 600),
        (("age: 5",), None),
    ],
)
async def test_what_is_old_already_is_fresh_for_less_long(
    issuer: Issuer, headers: tuple[str, ...], max_age_s: int | None
) -> None:
    """RFC 9111 section 4.2.3: caches on the way say for how long they have held an answer."""
    issuer.behaviour = sends(response(200, b"{}", *headers))
    assert (await get(f"{issuer.url}/jwks", LOCAL)).max_age_s == max_age_s


async def test_silence_within_an_answer_is_bounded(issuer: Issuer) -> None:
    """A server that stops in the middle is given up before the time for the whole is over; one that drips is not."""
    issuer.behaviour = hangs
    with pytest.raises(FetchError, match=r"sent nothing for 0\.05 s"):
        await get(f"{issuer.url}/jwks", local(read_timeout_s=0.05, timeout_s=60))
    issuer.behaviour = drips
    with pytest.raises(FetchError, match=r"did not answer completely within 0\.2 s"):
        await get(f"{issuer.url}/jwks", local(read_timeout_s=5, timeout_s=0.2))


@pytest.mark.parametrize("more", [0, 1])
async def test_an_issuers_own_limit_of_bytes(issuer: Issuer, more: int) -> None:
    """N bytes are read, N + 1 are not."""
    issuer.behaviour = sends(response(200, b"x" * (1024 + more)))
    fetched = get(f"{issuer.url}/jwks", local(body_bytes_max=1024))
    if more:
        with pytest.raises(FetchError, match="more than 1024 bytes"):
            await fetched
    else:
        assert (await fetched).body == b"x" * 1024


# ---------------------------------------------------------------------------------------------- headers from files


async def test_headers_come_from_files_at_each_fetch(issuer: Issuer, tmp_path: Path) -> None:
    """A secret that is replaced is used from the next fetch on; the line break at its end is not part of it."""
    file = tmp_path / "secret"
    settings = local(headers=(("x-gateway-key", str(file)),))
    for value in ("first", "second"):
        file.write_text(f"{value}\n")
        await get(f"{issuer.url}/jwks", settings)
        assert f"\r\nx-gateway-key: {value}\r\n" in issuer.heads[-1]


async def test_a_bearer_token_comes_from_its_file(issuer: Issuer, tmp_path: Path) -> None:
    """As API servers want it: the file holds the token alone."""
    file = tmp_path / "token"
    file.write_text("header.claims.signature")
    await get(f"{issuer.url}/jwks", local(bearer_token_file=str(file)))
    assert "\r\nauthorization: bearer header.claims.signature\r\n" in issuer.heads[-1]


async def test_a_discovered_server_is_not_sent_the_policys_headers(issuer: Issuer, tmp_path: Path) -> None:
    """They are for the origin that the policy names."""
    file = tmp_path / "secret"
    file.write_text("hunter2")
    settings = local(headers=(("x-gateway-key", str(file)),), bearer_token_file=str(file), private_addresses=True)
    await get(f"{issuer.url}/jwks", settings, discovered=True)
    assert "x-gateway-key" not in issuer.heads[-1]
    assert "authorization" not in issuer.heads[-1]


HEADER_FILES = {
    "absent": (None, "cannot be read"),
    "empty": (b"", "on one line"),
    "two lines (request splitting)": (b"hunter2\r\nhost: evil", "on one line"),
    "NUL": (b"hunter2\0", "on one line"),
    "space at the end": (b"hunter2 ", "on one line"),
    "one byte too long": (b"h" * (HEADER_VALUE_BYTES_MAX + 1), "on one line"),
}


@pytest.mark.parametrize(("content", "why"), HEADER_FILES.values(), ids=HEADER_FILES.keys())
async def test_header_files_that_hold_no_value(issuer: Issuer, tmp_path: Path, content: bytes | None, why: str) -> None:
    """The header is named, neither the file nor what it holds; nothing is sent."""
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(FetchError, match=why) as refused:
        await get(f"{issuer.url}/jwks", local(headers=(("x-gateway-key", str(file)),)))
    assert "x-gateway-key" in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert str(tmp_path) not in str(refused.value)
    assert issuer.requests == []


# ---------------------------------------------------------------------------------------------- client certificates


class Pki:
    """An authority, a server's context that asks for certificates of it, and a client's certificate."""

    def __init__(self, directory: Path) -> None:
        authority = issue("authority")
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        server, client = issue("server", authority, [address]), issue("client", authority)
        self.ca, self.certificate, self.key = (str(directory / n) for n in ("ca.pem", "client.crt", "client.key"))
        authority.write(Path(self.ca))
        client.write(Path(self.certificate), Path(self.key))
        server.write(directory / "server.crt", directory / "server.key")
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(directory / "server.crt", directory / "server.key")

    def spoil(self, fault: str) -> None:
        if fault == "absent":
            Path(self.certificate).unlink()
        else:
            another = Path(self.ca).with_name("server.key").read_bytes()
            Path(self.key).write_bytes(b"" if fault == "no key" else another)

    def demand(self) -> None:
        self.context.load_verify_locations(self.ca)
        self.context.verify_mode = ssl.CERT_REQUIRED


async def test_a_client_certificate_is_shown_to_who_asks(tmp_path: Path) -> None:
    """Where the server demands one: with it there are keys, without it there are none."""
    pki = Pki(tmp_path)
    pki.demand()
    shown = FetchSettings(ca_file=pki.ca, client_certificate=pki.certificate, client_key=pki.key)
    async with Issuer(KEY, tls=pki.context) as server:
        assert (await get(f"{server.url}/jwks", shown)).body == jwks(KEY)
        with pytest.raises(FetchError):
            await get(f"{server.url}/jwks", FetchSettings(ca_file=pki.ca))


@pytest.mark.parametrize("fault", ["absent", "no key", "another's key"])
async def test_client_certificates_that_cannot_be_used(tmp_path: Path, fault: str) -> None:
    """Named as such, without the path; the terminal is not asked for a password."""
    pki = Pki(tmp_path)
    pki.spoil(fault)
    settings = FetchSettings(ca_file=pki.ca, client_certificate=pki.certificate, client_key=pki.key)
    with pytest.raises(FetchError, match="client certificate cannot be used") as refused:
        await get("https://127.0.0.1:1/jwks", settings)
    assert str(tmp_path) not in str(refused.value)


# ---------------------------------------------------------------------------------------------- proxies


class Proxy:
    """Passes bytes on to whom CONNECT names, or answers whatever a test wants."""

    def __init__(self, answer: bytes | None = None) -> None:
        self.asked: list[str] = []
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._served: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()
        await asyncio.gather(*self._served)

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._served.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            line = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0].decode()
            self.asked.append(line)
            if self._answer is not None:
                writer.write(self._answer)
                await writer.drain()
            else:
                host, _, port = line.split(" ")[1].rpartition(":")
                upstream = await asyncio.open_connection(host, int(port))
                writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
                await asyncio.gather(_pump(reader, upstream[1]), _pump(upstream[0], writer))
        writer.close()
        await _closed(writer)


async def _closed(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
    await _closed(writer)


async def _through_a_proxy(directory: Path) -> None:
    pki = Pki(directory)
    body = b"x" * 300_000
    async with Issuer(tls=pki.context) as server, Proxy() as proxy:
        server.behaviour = sends(response(200, body))
        fetched = await get(f"{server.url}/jwks", FetchSettings(ca_file=pki.ca, proxy=proxy.url))
        assert fetched.body == body
        assert proxy.asked == [f"CONNECT {server.url.removeprefix('https://')} HTTP/1.1"]


async def test_a_proxy_is_asked_to_connect(tmp_path: Path) -> None:
    """TLS is with the server, whose certificate is verified as without a proxy."""
    await _through_a_proxy(tmp_path)


def test_a_proxy_is_asked_to_connect_on_the_loop_that_serves(tmp_path: Path) -> None:
    """The same on uvloop."""
    uvloop.run(_through_a_proxy(tmp_path))


async def test_a_proxy_cannot_pretend_to_be_the_server(tmp_path: Path) -> None:
    """Who answers behind it must have a certificate for the name in the URL."""
    pki = Pki(tmp_path)
    async with Issuer(KEY, tls=pki.context) as server, Proxy() as proxy:
        port = server.url.rpartition(":")[2]
        with pytest.raises(FetchError, match="TLS with localhost"):
            await get(f"https://localhost:{port}/jwks", FetchSettings(ca_file=pki.ca, proxy=proxy.url))


PROXY_ANSWERS = {
    "403": (b"HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n", "status 403"),
    "407": (b"HTTP/1.1 407 Who\r\nproxy-authenticate: Basic\r\n\r\n", "status 407"),
    "302": (b"HTTP/1.1 302 X\r\nlocation: https://evil.example/\r\n\r\n", "status 302"),
    "bytes before the server's": (b"HTTP/1.1 200 X\r\n\r\nHTTP/1.1 200 X\r\n\r\n{}", "status 200"),
    "nothing": (b"", "HTTP/1.1"),
    "not HTTP": (b"\x05\x00\r\n\r\n", "HTTP/1.1"),
}


@pytest.mark.parametrize(("answer", "why"), PROXY_ANSWERS.values(), ids=PROXY_ANSWERS.keys())
async def test_proxies_that_do_not_connect(answer: bytes, why: str) -> None:
    """A fault of the proxy is a fetch that failed."""
    async with Proxy(answer) as proxy:
        with pytest.raises(FetchError, match=why):
            await get("https://127.0.0.1:1/jwks", FetchSettings(proxy=proxy.url))


async def test_a_proxy_is_never_asked_in_the_clear(issuer: Issuer) -> None:
    """http:// is for this machine alone."""
    with pytest.raises(FetchError, match="not fetched through a proxy"):
        await get(f"{issuer.url}/jwks", local(proxy="http://127.0.0.1:1"))


async def test_proxies_of_the_environment_are_not_asked(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the policy names one."""
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await get(f"{issuer.url}/jwks", LOCAL)).body == jwks(KEY)


# ---------------------------------------------------------------------------------------------- discovered addresses

PRIVATE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0",
    "fc00::1", "fd12::1", "ff02::1", "2001:db8::1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1",
    "64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe", "2002:a00:1::1", "2002:7f00:1::", "not an address",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "64:ff9b::8.8.8.8"]


@pytest.mark.parametrize(
    ("address", "public"), [*((each, False) for each in PRIVATE), *((each, True) for each in PUBLIC)]
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    """Not: private, loopback, link-local, shared, reserved, multicast, nor any of these inside an IPv6 address."""
    assert http_connect._is_public(address) is public


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1"])
async def test_discovered_urls_do_not_lead_inside(host: str) -> None:
    """Refused before anything is connected to, whatever the way."""
    for settings in (FetchSettings(), FetchSettings(proxy="http://127.0.0.1:1")):
        if host == "localhost" and settings.proxy:
            continue  # names are the proxy's to resolve
        with pytest.raises(FetchError, match="not public"):
            await get(f"https://{host}:1/jwks", settings, discovered=True)


def answering(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Each question to DNS gets the next answer; returns who was asked about."""
    asked: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)
    return asked


async def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can say which of them would be connected to."""
    answering(monkeypatch, ["8.8.8.8", "10.0.0.1"])
    with pytest.raises(FetchError, match="not public"):
        await get("https://keys.example/jwks", FetchSettings(), discovered=True)


async def test_a_name_is_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rebinding: connected to is the address that was looked at, though DNS says another one from now on."""
    connected: list[str] = []

    async def open_connection(host: str, _port: int, **options: Any) -> Any:
        connected.append(f"{host} as {options['server_hostname']}")
        raise ConnectionRefusedError(111, "Connection refused")

    asked = answering(monkeypatch, ["8.8.8.8", "1.1.1.1"], ["127.0.0.1"])
    monkeypatch.setattr(asyncio, "open_connection", open_connection)
    with pytest.raises(FetchError, match="cannot be reached"):
        await get("https://keys.example/jwks", FetchSettings(), discovered=True)
    assert asked == ["keys.example"]
    assert connected == ["8.8.8.8 as keys.example", "1.1.1.1 as keys.example"]


@pytest.mark.parametrize("more", [0, 1])
async def test_addresses_of_one_name_are_bounded(monkeypatch: pytest.MonkeyPatch, more: int) -> None:
    """At N all are tried, at N + 1 the last is not."""
    connected: list[str] = []

    async def open_connection(host: str, _port: int, **_: Any) -> Any:
        connected.append(host)
        raise ConnectionRefusedError(111, "Connection refused")

    addresses = [f"8.8.8.{number}" for number in range(1, ADDRESSES_MAX + 1 + more)]
    answering(monkeypatch, addresses)
    monkeypatch.setattr(asyncio, "open_connection", open_connection)
    with pytest.raises(FetchError):
        await get("https://keys.example/jwks", FetchSettings(), discovered=True)
    assert connected == addresses[:ADDRESSES_MAX]


async def test_private_addresses_can_be_allowed(issuer: Issuer) -> None:
    """By the policy, for an issuer whose keys are elsewhere inside."""
    settings = local(private_addresses=True)
    assert (await get(f"{issuer.url}/jwks", settings, discovered=True)).body == jwks(KEY)
    with pytest.raises(FetchError, match="not public"):
        await get(f"{issuer.url}/jwks", LOCAL, discovered=True)
