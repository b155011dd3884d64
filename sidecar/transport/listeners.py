"""What both engines need in order to listen: Unix sockets that replace stale files only, and TLS from PEM files."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sidecar.transport.service import TlsFiles, UnixAddress

PROBE_TIMEOUT_S = 1.0

KEEP_SOCKET_FILE: Final[Mapping[str, Any]] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
"""For `create_unix_server`, which from Python 3.13 on would remove the file, also one that other workers share."""


def clear_stale_socket(address: UnixAddress) -> None:
    """Remove the socket file that a dead process left at `address`.

    Raises:
        OSError: Something lives there: a server that accepts connections, or a file that is no socket.
    """
    path = Path(address.path)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EADDRINUSE, f"{address}: a file that is not a socket is in the way")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise OSError(errno.EADDRINUSE, f"{address}: another process is serving on this socket")


def unix_listener(address: UnixAddress) -> socket.socket:
    """A bound Unix socket, not yet listening.

    Raises:
        OSError: The address is taken, or cannot be bound.
    """
    clear_stale_socket(address)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(address.path)
    except OSError as fault:
        listener.close()
        raise OSError(fault.errno, f"{address}: {fault.strerror}") from fault
    listener.setblocking(False)
    return listener


def socket_identity(address: UnixAddress) -> tuple[int, int] | None:
    """Device and inode of the file at `address`, to know it again; None where there is none."""
    with contextlib.suppress(OSError):
        status = Path(address.path).lstat()
        return status.st_dev, status.st_ino
    return None


def remove_socket(address: UnixAddress, identity: tuple[int, int] | None) -> None:
    """Remove the socket file at `address` if it is still the one that `identity` describes."""
    if identity is not None and socket_identity(address) == identity:
        Path(address.path).unlink(missing_ok=True)


def names(connection: Any, name: str) -> bool:
    """Whether the peer's certificate names a host: exactly, or by a `*` for the first label (RFC 6125).

    Args:
        connection: An `ssl.SSLObject` after its handshake.
        name: The host.
    """
    certificate = connection.getpeercert() or {}
    wanted = name.lower()
    wildcard = f"*.{wanted.partition('.')[2]}"
    found = {value.lower() for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"}
    return wanted in found or ("." in wanted and wildcard in found)


def tls_context(files: TlsFiles) -> ssl.SSLContext:
    """A server context for HTTP/2: TLS 1.2 or later, ALPN h2, client certificates required where a CA is given.

    Raises:
        OSError: A file cannot be read, or is not what it should be (ssl.SSLError is an OSError).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(files.certificate, files.key)
    if files.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(files.client_ca)
    return context
