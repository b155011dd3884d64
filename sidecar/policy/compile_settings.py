"""The sections that say how the process runs, compiled to `Settings`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sidecar.core.limits import US_PER_S
from sidecar.policy import durations
from sidecar.policy.fields import parse_address, parse_redis_url
from sidecar.policy.settings import RedisSettings, RedisTlsFiles, Settings
from sidecar.policy.tls_files import check_authorities, check_key_pair
from sidecar.transport.service import Address, ServerLimits, TlsFiles, UnixAddress

if TYPE_CHECKING:
    from sidecar.policy.files import Files
    from sidecar.policy.sections import RedisSection, RedisTls, ServerSection, TransportLimits
    from sidecar.policy.validate import Validated


def compile_settings(validated: Validated, files: Files) -> Settings:
    """Settings; what is wrong is added to the faults."""
    document = validated.document
    server, redis, ratelimit = document.server, document.redis, document.ratelimit
    audit = document.audit.destination
    if redis is not None and durations.parse(redis.timeout) >= durations.parse(server.check_timeout):
        written = "" if "timeout" in redis.model_fields_set else "the default "
        message = f"{written}{redis.timeout} is not shorter than server.check_timeout ({server.check_timeout})"
        validated.fault(("redis", "timeout"), message, "a shorter time, so that on_redis_failure can apply")
    if not validated.has("redis") and (ratelimit is not None or any(rule.limits for rule in document.rules)):
        validated.fault(("redis",), "the section is missing: limits are counted in Redis", "redis: {url: embedded}")
    if not isinstance(audit, str) and not files.path(audit.file).parent.is_dir():
        message = f"the directory {files.path(audit.file).parent} does not exist"
        validated.fault(("audit", "destination", "file"), message, "a file in a directory that exists")
    listen = _listen(validated, server)
    if server.engine == "grpcio" and server.workers > 1 and any(isinstance(one, UnixAddress) for one in listen):
        message = "workers cannot share a Unix socket on the grpcio engine"
        validated.fault(("server", "workers"), message, "engine: http2, workers: 1, or TCP addresses alone")
    return Settings(
        listen=listen,
        engine=server.engine,
        workers=server.workers,
        check_timeout_s=seconds(server.check_timeout),
        tls=_server_tls(validated, files, server),
        limits=server_limits(server.limits),
        drain_grace_s=seconds(server.drain_grace),
        admin=parse_address(document.admin.listen),
        redis=_redis(validated, files, redis) if redis is not None else None,
        ratelimit_directory=str(files.path(ratelimit.directory)) if ratelimit is not None else None,
        local_share=document.local_share,
        audit=audit if isinstance(audit, str) else str(files.path(audit.file)),
        log_level=document.log.level,
    )


def seconds(duration: str) -> float:
    """A duration in seconds."""
    return durations.parse(duration) / US_PER_S


def server_limits(written: TransportLimits) -> ServerLimits:
    """The transport's limits: the same names, with `_s` where a duration is written."""
    values: dict[str, Any] = {
        (f"{name}_s" if isinstance(value, str) else name): seconds(value) if isinstance(value, str) else value
        for name, value in written.model_dump().items()
    }
    return ServerLimits(**values)


def _listen(validated: Validated, server: ServerSection) -> tuple[Address, ...]:
    texts = [server.listen] if isinstance(server.listen, str) else server.listen
    for n, text in enumerate(texts):
        if text in texts[:n]:
            validated.fault(("server", "listen", n), f"{text} is listed twice", "each address once")
    return tuple(parse_address(text) for text in texts)


def _server_tls(validated: Validated, files: Files, server: ServerSection) -> TlsFiles | None:
    if server.tls is None:
        return None
    where = ("server", "tls")
    found = TlsFiles(
        certificate=files.readable((*where, "certificate"), server.tls.certificate),
        key=files.readable((*where, "key"), server.tls.key),
        client_ca=files.optional((*where, "client_ca"), server.tls.client_ca),
    )
    check_key_pair(validated, where, found.certificate, found.key)
    check_authorities(validated, (*where, "client_ca"), found.client_ca)
    return found


def _redis(validated: Validated, files: Files, redis: RedisSection) -> RedisSettings:
    url = parse_redis_url(redis.url)
    if url.address is None:
        for name in ("username", "password_file", "tls"):
            if getattr(redis, name) is not None:
                validated.fault(("redis", name), f"redis.url is embedded, which takes no {name}", "leave the key out")
    elif redis.tls is not None and not url.tls:
        validated.fault(("redis", "tls"), "redis.url is not a rediss:// URL", "rediss://, or leave the key out")
    password = files.secret(("redis", "password_file"), redis.password_file) if redis.password_file else None
    return RedisSettings(
        address=url.address,
        database=url.database,
        username=redis.username,
        password=password,
        tls=_redis_tls(validated, files, redis.tls) if url.tls else None,
        timeout_s=seconds(redis.timeout),
        key_prefix=redis.key_prefix,
    )


def _redis_tls(validated: Validated, files: Files, tls: RedisTls | None) -> RedisTlsFiles:
    if tls is None:
        return RedisTlsFiles()
    where = ("redis", "tls")
    if (tls.certificate is None) != (tls.key is None):
        validated.fault(where, "certificate and key are not given together", "both, or neither")
    found = RedisTlsFiles(
        ca=files.optional((*where, "ca"), tls.ca),
        certificate=files.optional((*where, "certificate"), tls.certificate),
        key=files.optional((*where, "key"), tls.key),
        server_name=tls.server_name,
    )
    check_authorities(validated, (*where, "ca"), found.ca)
    check_key_pair(validated, where, found.certificate, found.key)
    return found
