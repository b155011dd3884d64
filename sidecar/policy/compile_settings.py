"""The sections that say how the process runs, compiled to `Settings`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sidecar.policy.compile_redis import compile_redis
from sidecar.policy.durations import seconds
from sidecar.policy.fields import parse_address
from sidecar.policy.ratelimit_section import compile_xds
from sidecar.policy.revocation_section import compile_abuse, compile_revocation
from sidecar.policy.settings import Settings
from sidecar.policy.tls_files import check_authorities, check_key_pair
from sidecar.transport.service import Address, ServerLimits, TlsFiles, UnixAddress

if TYPE_CHECKING:
    from sidecar.policy.files import Files
    from sidecar.policy.sections import ServerSection, TransportLimits
    from sidecar.policy.validate import Validated


def compile_settings(validated: Validated, files: Files) -> Settings:
    """Settings; what is wrong is added to the faults."""
    document = validated.document
    server, redis, ratelimit = document.server, document.redis, document.ratelimit
    audit = document.audit.destination
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
        redis=compile_redis(validated, files, redis) if redis is not None else None,
        ratelimit_directory=str(files.path(ratelimit.directory)) if ratelimit and ratelimit.directory else None,
        xds=compile_xds(validated, files),
        local_share=document.local_share,
        audit=audit if isinstance(audit, str) else str(files.path(audit.file)),
        log_level=document.log.level,
        revocation=compile_revocation(validated, files),
        failed_authentications=compile_abuse(validated),
    )


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
        client_name=server.tls.client_name or "",
    )
    if found.client_name and (found.client_ca is None or server.engine != "http2"):
        message = (
            "without client_ca nobody shows a certificate" if found.client_ca is None else "grpcio cannot check it"
        )
        validated.fault((*where, "client_name"), message, "server.tls.client_ca beside it, and engine: http2")
    check_key_pair(validated, where, found.certificate, found.key)
    check_authorities(validated, (*where, "client_ca"), found.client_ca)
    return found
