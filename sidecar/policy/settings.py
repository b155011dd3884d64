"""What a policy file says about the process rather than about decisions: read at start, changed by a restart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sidecar.core.limits import OnFailure
from sidecar.core.secret import Secret
from sidecar.transport.service import Address, ServerLimits, TcpAddress, TlsFiles


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
    database: int = 0
    username: str | None = None
    password: Secret | None = None
    tls: RedisTlsFiles | None = None
    timeout_s: float = 0.05
    key_prefix: str = "sidecar"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the process runs. Times in seconds.

    Attributes:
        redis: None where nothing is limited.
        ratelimit_on_failure: What the rate limit service answers while Redis cannot.
        local_share: With `OnFailure.LOCAL`: the part of each limit that one instance grants by itself, over 0, to 1.
        audit: "stdout", "none", or the path of a file.
    """

    listen: tuple[Address, ...] = (TcpAddress("127.0.0.1", 9090),)
    engine: Literal["http2", "grpcio"] = "http2"
    workers: int = 1
    check_timeout_s: float = 0.15
    tls: TlsFiles | None = None
    limits: ServerLimits = field(default_factory=ServerLimits)
    drain_grace_s: float = 20.0
    admin: Address = TcpAddress("127.0.0.1", 9091)
    redis: RedisSettings | None = None
    ratelimit_directory: str | None = None
    ratelimit_on_failure: OnFailure = OnFailure.ERROR
    local_share: float = 1.0
    audit: str = "stdout"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
