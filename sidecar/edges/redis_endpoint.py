"""Where a Redis is and how to greet it: its address, the credentials, and the TLS files, read once."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

_PORT_DEFAULT = 6379


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisEndpoint:
    """One Redis or Valkey server.

    Attributes:
        host: Name or address; "" for a Unix socket.
        path: Of the Unix socket; "" for TCP.
        username: ACL user, "" for the default one.
        password: "" for a server that asks for none.
        tls: The context to connect with, None for cleartext.
        server_name: What the server's certificate must name; "" means `host`.
    """

    host: str = ""
    port: int = _PORT_DEFAULT
    path: str = ""
    database: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = None
    server_name: str = ""

    def __str__(self) -> str:
        """For logs and errors; holds no credential."""
        if self.path:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}"


def tls_context(ca: Path | None = None, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """A context that verifies the server, and shows our certificate where one is given (mutual TLS).

    Args:
        ca: Certificates to trust (PEM); None means the system's.
        certificate: Our certificate chain (PEM).
        key: Its private key (PEM), not encrypted.

    Raises:
        ValueError: A file cannot be read or is not what it should be; says which.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"redis.tls.ca: {ca} is no readable PEM file of certificates: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except (OSError, ssl.SSLError) as error:
            raise ValueError(
                f"redis.tls: {certificate} and {key} are no certificate and its unencrypted private key: {error}"
            ) from error
    elif key is not None:
        raise ValueError(f"redis.tls.key: {key} is given without redis.tls.certificate")
    return context


def _no_password() -> str:
    # asked only for an encrypted key: an empty password fails, where no callback at all would ask the terminal
    return ""
