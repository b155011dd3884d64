"""A proxy in front of a Unix socket that fails on demand, and ends TLS, which the embedded server cannot."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

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


@dataclass(frozen=True)
class Certificates:
    """A certificate authority and what it issued, as PEM files."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path

    def server_context(self, *, mutual: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server, self.server_key)
        if mutual:
            context.load_verify_locations(self.ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def make_certificates(directory: Path, server_name: str = "redis.example") -> Certificates:
    """An authority, a certificate of 127.0.0.1 and `server_name`, and one of a client."""
    ca_key, ca = _issue("authority", None, None, names=[])
    issued = Certificates(
        *(directory / f"{name}.pem" for name in ("ca", "server", "server-key", "client", "client-key"))
    )
    issued.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    names = [x509.DNSName(server_name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    for certificate_path, key_path, alternatives in (
        (issued.server, issued.server_key, names),
        (issued.client, issued.client_key, [x509.DNSName("client.example")]),
    ):
        key, certificate = _issue(certificate_path.stem, ca_key, ca, alternatives)
        certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    return issued


def _issue(
    name: str,
    ca_key: ec.EllipticCurvePrivateKey | None,
    ca: x509.Certificate | None,
    names: list[x509.GeneralName],
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(ca.subject if ca is not None else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=24))
        .add_extension(x509.BasicConstraints(ca=ca is None, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return key, builder.sign(ca_key or key, hashes.SHA256())
