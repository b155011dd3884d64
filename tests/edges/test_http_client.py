"""The GET that fetches keys: which URLs, which answers, and TLS."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from sidecar.core.issuer import FetchSettings
from sidecar.edges.http_client import BODY_BYTES_MAX, FetchError, get, target_of
from tests.support.issuer import Issuer, response, sends
from tests.support.tokens import jwks, make_key

KEY = make_key()
LOCAL = FetchSettings(insecure_http=True)

REFUSED_URLS = {
    "file (CVE-2026-48522)": ("file:///etc/passwd", "not https"),
    "ftp": ("ftp://127.0.0.1/x", "not https"),
    "data": ("data:,x", "not https"),
    "no scheme": ("//127.0.0.1/x", "not https"),
    "empty": ("", "character"),
    "no host": ("https:///x", "no host"),
    "credentials": ("https://user:secret@127.0.0.1/x", "credentials"),
    "user alone": ("https://user@127.0.0.1/x", "credentials"),
    "fragment": ("https://127.0.0.1/x#y", "fragment"),
    "port too large": ("https://127.0.0.1:65536/", "not well-formed"),
    "port no number": ("https://127.0.0.1:x/", "not well-formed"),
    "broken IPv6": ("https://[::1/", "not well-formed"),
    "space": ("https://127.0.0.1/a b", "character"),
    "line break": ("https://127.0.0.1/\r\nx: y", "character"),
    "beyond ASCII": ("https://exämple/", "character"),
    "http to a name": ("http://issuer.example/x", "loopback"),
    "http to another machine": ("http://10.0.0.1/x", "loopback"),
    "http to the metadata service": ("http://169.254.169.254/x", "loopback"),
    "http to a name like localhost": ("http://localhost.evil.example/", "loopback"),
    "http to an integer address": ("http://2130706433/", "loopback"),
}


@pytest.mark.parametrize(("url", "why"), REFUSED_URLS.values(), ids=REFUSED_URLS.keys())
def test_urls_that_are_not_fetched(url: str, why: str) -> None:
    """Even where http:// is allowed; what the URL holds is not repeated."""
    with pytest.raises(FetchError, match=why) as refused:
        target_of(url, insecure_http=True)
    assert "secret" not in str(refused.value)


def test_http_needs_permission() -> None:
    """Loopback too."""
    with pytest.raises(FetchError, match="insecure_http"):
        target_of("http://127.0.0.1/x")


@pytest.mark.parametrize(
    ("url", "authority", "port", "path"),
    [
        ("https://issuer.example", "issuer.example", 443, "/"),
        ("https://issuer.example:443/a?b=c", "issuer.example", 443, "/a?b=c"),
        ("https://issuer.example:8443/a", "issuer.example:8443", 8443, "/a"),
        ("http://127.0.0.2/a", "127.0.0.2", 80, "/a"),
        ("http://localhost:8080/a", "localhost:8080", 8080, "/a"),
        ("http://[::1]:8080/a", "[::1]:8080", 8080, "/a"),
    ],
)
def test_urls_that_are_fetched(url: str, authority: str, port: int, path: str) -> None:
    """Host header, port and path."""
    target = target_of(url, insecure_http=True)
    assert (target.authority, target.port, target.path) == (authority, port, path)


@pytest.mark.parametrize(
    ("header", "max_age_s"),
    [
        ("cache-control: max-age=600", 600),
        ("Cache-Control: public, MAX-AGE=5, must-revalidate", 5),
        ('cache-control: max-age="7"', 7),
        ("cache-control: s-maxage=9", None),
        ("cache-control: max-age=-1", None),
        ("cache-control: max-age=99999999999", None),
        ("cache-control: no-store", 0),
        ("cache-control: no-cache, max-age=60", 0),
        ("x: y", None),
    ],
)
async def test_max_age(header: str, max_age_s: int | None) -> None:
    """RFC 9111 section 5.2.2."""
    async with Issuer() as server:
        server.behaviour = sends(response(200, b"{}", header))
        fetched = await get(f"{server.url}/jwks", LOCAL)
        assert fetched == (b"{}", max_age_s, ("", ""))


async def test_the_largest_body() -> None:
    """N bytes are returned, chunked or not."""
    async with Issuer() as server:
        body = b" " * BODY_BYTES_MAX
        for answer in (
            response(200, body),
            b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body),
            b"HTTP/1.1 103 X\r\n\r\n" + response(200, body),
        ):
            server.behaviour = sends(answer)
            assert (await get(f"{server.url}/jwks", LOCAL)).body == body


async def test_nobody_listens() -> None:
    """A refused connection is a FetchError that names the host."""
    async with Issuer() as server:
        url = f"{server.url}/jwks"
    with pytest.raises(FetchError, match=r"127\.0\.0\.1 cannot be reached"):
        await get(url, LOCAL)


async def test_a_host_that_is_no_name() -> None:
    """What the resolver cannot even encode is a FetchError as well."""
    with pytest.raises(FetchError):
        await get(f"https://{'a' * 70}..example/", FetchSettings())


def certificate(directory: Path, address: str) -> tuple[ssl.SSLContext, str]:
    """A server's TLS context for an address, and the file of the authority that vouches for it: itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    ca, chain = directory / "ca.pem", directory / "chain.pem"
    ca.write_bytes(built.public_bytes(Encoding.PEM))
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    chain.write_bytes(ca.read_bytes() + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return context, str(ca)


async def test_https_with_a_pinned_authority(tmp_path: Path) -> None:
    """The named authority is trusted, and only where it is named."""
    context, ca_file = certificate(tmp_path, "127.0.0.1")
    async with Issuer(KEY, tls=context) as server:
        fetched = await get(f"{server.url}/jwks", FetchSettings(ca_file=ca_file))
        assert fetched.body == jwks(KEY)
        with pytest.raises(FetchError, match="TLS with 127"):
            await get(f"{server.url}/jwks", FetchSettings())


async def test_https_for_another_name(tmp_path: Path) -> None:
    """A certificate for another address proves nothing about this one."""
    context, ca_file = certificate(tmp_path, "127.0.0.9")
    async with Issuer(KEY, tls=context) as server:
        with pytest.raises(FetchError, match="TLS with 127"):
            await get(f"{server.url}/jwks", FetchSettings(ca_file=ca_file))


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_authorities_that_cannot_be_read(tmp_path: Path, content: str | None) -> None:
    """Named as such, without the path."""
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(FetchError, match="CA file") as refused:
        await get("https://127.0.0.1:1/jwks", FetchSettings(ca_file=str(file)))
    assert str(tmp_path) not in str(refused.value)
