"""What a policy file says about the process rather than about decisions: read at start, changed by a restart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sidecar.core.secret import Secret
    from sidecar.transport.service import Address, ServerLimits, TlsFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisTlsFiles:
    """TLS to Redis: PEM files; `ca` None trusts the system's authorities, `server_name` None means the host."""

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    server_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSettings:
    """Where limits are counted. `address` None: embedded. `tls` is set exactly for `rediss://`."""

    address: Address | None
    database: int
    username: str | None
    password: Secret | None
    tls: RedisTlsFiles | None
    timeout_s: float
    key_prefix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the process runs. Times in seconds.

    Attributes:
        redis: None where nothing is limited.
        local_share: With `OnFailure.LOCAL`: the part of each limit that one instance grants by itself, over 0, to 1.
        audit: "stdout", "none", or the path of a file.
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
    local_share: float
    audit: str
    log_level: Literal["debug", "info", "warning", "error"]
