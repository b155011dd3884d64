"""What a policy file says about the process rather than about decisions: read at start, changed by a restart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from sidecar.core.limits import Limit
    from sidecar.core.secret import Secret
    from sidecar.transport.service import Address, ServerLimits, TcpAddress, TlsFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisTlsFiles:
    """TLS to Redis: PEM files; `ca` None trusts the system's authorities, `server_name` None means the host."""

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    server_name: str | None = None
    verify_name: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SentinelSettings:
    """Who knows the master of this name. `tls` None: cleartext."""

    master: str
    sentinels: tuple[TcpAddress, ...]
    username: str | None = None
    password: Secret | None = None
    password_file: str | None = None
    tls: RedisTlsFiles | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisServers:
    """One store: a single server, or, where `sentinel` or `cluster` is set, that.

    Attributes:
        address: Of the single server; None: embedded, or none.
        password: What `password_file` held, or what was given otherwise.
        password_file: Read again for each connection.
        tls: None: cleartext.
        cluster: Servers that are asked for all others.
    """

    address: Address | None
    database: int
    username: str | None
    password: Secret | None
    password_file: str | None = None
    tls: RedisTlsFiles | None
    timeout_s: float
    sentinel: SentinelSettings | None = None
    cluster: tuple[TcpAddress, ...] = ()

    @property
    def embedded(self) -> bool:
        """Whether a server is to be started."""
        return self.address is None and self.sentinel is None and not self.cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSettings(RedisServers):
    """Where limits are counted; `per_second`: those with a window of one second, where they have their own store."""

    key_prefix: str
    per_second: RedisServers | None = None


XDS_MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of a response, unless another bound is set: gRPC's own default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class XdsTlsFiles:
    """TLS to an xDS server: PEM files, read anew for each connection.

    `ca` None trusts gRPC's authorities, `server_name` "" means the host.
    """

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    server_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class XdsSettings:
    """Which xDS server the rate limits come from, as whom it is asked. Times in seconds.

    Attributes:
        server: `host:port`, or what else gRPC connects to.
        tls: None: cleartext.
        headers: Sent with the stream; the values are secrets.
        message_bytes_max: A longer response ends the stream.
        retry_s: The first pause after a server that could not be asked.
        backoff_s: The first pause after a stream that had brought something.
        backoff_s_max: The longest pause.
    """

    server: str
    node_id: str
    node_metadata: tuple[tuple[str, str], ...] = ()
    tls: XdsTlsFiles | None = None
    headers: tuple[tuple[str, Secret], ...] = ()
    message_bytes_max: int = XDS_MESSAGE_BYTES_MAX
    retry_s: float = 1.0
    backoff_s: float = 1.0
    backoff_s_max: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationSettings:
    """How revocations are kept and followed.

    Attributes:
        lifetime_us: How long a revoked token, subject or session stays so, unless it is said.
        deny_unknown: Refuse everybody while it is not known what is revoked.
        stale_after_s: When what is known is not known any more.
        admin_secret: Who shows it may revoke at the admin listener; None: nobody may.
    """

    lifetime_us: int
    deny_unknown: bool
    stale_after_s: float
    admin_secret: Secret | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the process runs. Times in seconds.

    Attributes:
        redis: None where nothing is limited.
        local_share: With `OnFailure.LOCAL`: the part of each limit that one instance grants by itself, over 0, to 1.
        audit: "stdout", "none", or the path of a file.
        revocation: None: nothing is revoked.
        failed_authentications: The budget of each source; None: without bound.
    """

    listen: tuple[Address, ...]
    engine: Literal["http2", "grpcio"]
    workers: int
    check_timeout_s: float
    tls: TlsFiles | None
    limits: ServerLimits
    drain_grace_s: float
    admin: Address
    redis: RedisSettings | None
    ratelimit_directory: str | None
    xds: XdsSettings | None
    local_share: float
    audit: str
    log_level: Literal["debug", "info", "warning", "error"]
    revocation: RevocationSettings | None = None
    failed_authentications: Limit | None = None
