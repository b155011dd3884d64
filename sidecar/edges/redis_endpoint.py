"""Where a Redis is and how to greet it: its address, the credentials and the TLS files, read for each connection."""

from __future__ import annotations

import ssl
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

_PORT_DEFAULT = 6379

PASSWORD_BYTES_MAX = 4096


class LocateError(Exception):
    """Nobody could say where the server is; the text says why and holds no secret."""


class Locator(Protocol):
    """Knows which server to connect to."""

    async def locate(self) -> RedisEndpoint:
        """Asked before each connect.

        Raises:
            LocateError: It cannot be said now.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisEndpoint:
    """One Redis or Valkey server; as a `Locator`, always the same.

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

    async def locate(self) -> RedisEndpoint:
        """Itself."""
        return self

    def __str__(self) -> str:
        """For logs and errors; holds no credential."""
        if self.path:
            return f"unix://{self.path}"
        return f"{'rediss' if self.tls else 'redis'}://{host_port(self.host, self.port)}"


def host_port(host: str, port: int) -> str:
    """An address as it is written; an IPv6 one in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files for TLS to Redis; `ca` None trusts the system's authorities, `server_name` "" means the host.

    With `verify_name` off, the certificate may name whomever, as long as an authority that is trusted signed it.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""
    verify_name: bool = True

    def context(self) -> ssl.SSLContext:
        """To connect with, from the files as they are now.

        Raises:
            ValueError: They cannot be used; says which.
        """
        context = tls_context(self.ca, self.certificate, self.key)
        context.check_hostname = self.verify_name
        return context


class Login:
    """How to greet the servers of one store.

    Files that have changed are read again, so that a rotated secret works. A file that cannot be read, or holds
    nonsense, leaves what was read before in use.

    Args:
        password: What is in use until `password_file` says something else.
        password_file: Its content, less a newline at its end, is the password.
        tls: None for cleartext.

    Raises:
        ValueError: The TLS files cannot be used; says which.
    """

    def __init__(
        self,
        *,
        username: str = "",
        password: str = "",
        password_file: Path | None = None,
        tls: TlsFiles | None = None,
        database: int = 0,
    ) -> None:
        self._username = username
        self._password = password
        self._password_file = password_file
        self._password_signature: tuple[int, int, int] | None = None
        self._tls = tls
        self._database = database
        self._signature = self._signed()
        self._context = None if tls is None else tls.context()

    def endpoint(self, *, host: str = "", port: int = _PORT_DEFAULT, path: str = "") -> RedisEndpoint:
        """A server at an address, with the credentials of now."""
        self._refresh()
        return RedisEndpoint(
            host=host,
            port=port,
            path=path,
            database=self._database,
            username=self._username,
            password=self._password,
            tls=None if path else self._context,
            server_name=self._tls.server_name if self._tls is not None else "",
        )

    def _signed(self) -> tuple[tuple[int, int, int] | None, ...]:
        tls = self._tls
        return tuple(_signature(path) for path in (() if tls is None else (tls.ca, tls.certificate, tls.key)))

    def _refresh(self) -> None:
        path = self._password_file
        if path is not None and (found := _signature(path)) not in {None, self._password_signature}:
            self._password = _read_password(path) or self._password
            self._password_signature = found
        tls = self._tls
        if tls is None or (signature := self._signed()) == self._signature:
            return
        try:
            self._context = tls.context()
        except ValueError:
            return  # such as a new certificate whose key is not written yet; tried again at the next connect
        self._signature = signature


def _signature(path: Path | None) -> tuple[int, int, int] | None:
    """Another one than before: the file has changed. None where there is no regular file."""
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None  # reading a pipe would wait for its writer
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read_password(path: Path) -> str:
    """What the file holds, "" if that is no password."""
    try:
        with path.open("rb") as stream:
            text = stream.read(PASSWORD_BYTES_MAX + 2).removesuffix(b"\n").removesuffix(b"\r").decode()
    except (OSError, UnicodeDecodeError):
        return ""
    return text if len(text) <= PASSWORD_BYTES_MAX and text.isprintable() else ""


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A server at a fixed address, greeted with the credentials of the moment. A `Locator`."""

    login: Login
    host: str = ""
    port: int = _PORT_DEFAULT
    path: str = ""

    async def locate(self) -> RedisEndpoint:
        """The same address each time."""
        return self.login.endpoint(host=self.host, port=self.port, path=self.path)


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
