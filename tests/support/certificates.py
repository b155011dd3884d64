"""Certificates that tests make: authorities, and what they issue, as strict verifiers want them (RFC 5280)."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class Issued(NamedTuple):
    """A certificate and its private key."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def write(self, certificate: Path, key: Path | None = None) -> None:
        """As PEM files."""
        certificate.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        if key is not None:
            pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
            key.write_bytes(self.key.private_bytes(pem, form, serialization.NoEncryption()))


def issue(
    name: str, authority: Issued | None = None, names: list[x509.GeneralName] | None = None, days_ago: int = 0
) -> Issued:
    """A certificate for `names` from an authority; without one, an authority. It is good for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    issuer, issuer_key = (authority.certificate.subject, authority.key) if authority is not None else (subject, key)
    now = dt.datetime.now(dt.UTC) - dt.timedelta(days=days_ago)
    is_authority = authority is None
    usage = x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=24))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Issued(key, builder.sign(issuer_key, hashes.SHA256()))


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
    authority = issue("authority")
    issued = Certificates(
        *(directory / f"{name}.pem" for name in ("ca", "server", "server-key", "client", "client-key"))
    )
    authority.write(issued.ca)
    names = [x509.DNSName(server_name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    issue("server", authority, names).write(issued.server, issued.server_key)
    issue("client", authority, [x509.DNSName("client.example")]).write(issued.client, issued.client_key)
    return issued
