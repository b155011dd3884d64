"""The section `redis`, compiled to `RedisSettings`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sidecar.policy import durations
from sidecar.policy.durations import seconds
from sidecar.policy.fields import parse_redis_url, parse_server
from sidecar.policy.settings import RedisServers, RedisSettings, RedisTlsFiles, SentinelSettings
from sidecar.policy.tls_files import check_authorities, check_key_pair

if TYPE_CHECKING:
    from sidecar.policy import redis_sections
    from sidecar.policy.files import Files
    from sidecar.policy.redis_sections import RedisSection, RedisSentinel, RedisTls
    from sidecar.policy.validate import Validated
    from sidecar.policy.yaml import PathParts


def compile_redis(validated: Validated, files: Files, redis: RedisSection) -> RedisSettings:
    """Where limits are counted; what is wrong is added to the faults."""
    where = ("redis", "per_second")
    per_second = None
    if redis.per_second is not None:
        if redis.per_second.url == "embedded":
            message = "there is one embedded server, and it is no second store"
            validated.fault((*where, "url"), message, "another server, or leave per_second out")
        per_second = RedisServers(**_servers(validated, files, where, redis.per_second))
    return RedisSettings(
        **_servers(validated, files, ("redis",), redis), key_prefix=redis.key_prefix, per_second=per_second
    )


def _servers(
    validated: Validated, files: Files, where: PathParts, written: redis_sections.RedisServers
) -> dict[str, Any]:
    _check_timeout(validated, where, written)
    password, password_file = _password(files, (*where, "password_file"), written.password_file)
    found: dict[str, Any] = {
        "address": None,
        "database": 0,
        "username": written.username,
        "password": password,
        "password_file": password_file,
        "tls": None,
        "timeout_s": seconds(written.timeout),
        "sentinel": None,
        "cluster": (),
    }
    if written.url is not None:
        url = parse_redis_url(written.url)
        if url.address is None:
            for name in ("username", "password_file", "tls"):
                if getattr(written, name) is not None:
                    message = f"redis.url is embedded, which takes no {name}"
                    validated.fault((*where, name), message, "leave the key out")
        elif written.tls is not None and not url.tls:
            validated.fault((*where, "tls"), "redis.url is not a rediss:// URL", "rediss://, or leave the key out")
        encrypted = url.tls
        found |= {"address": url.address, "database": url.database}
    else:
        encrypted = written.tls is not None
    if encrypted:
        found["tls"] = _tls(validated, files, (*where, "tls"), written.tls)
    if written.sentinel is not None:
        found |= {"database": written.sentinel.database}
        found["sentinel"] = _sentinel(validated, files, (*where, "sentinel"), written.sentinel)
    if written.cluster is not None:
        found["cluster"] = tuple(parse_server(text) for text in written.cluster.nodes)
    return found


def _check_timeout(validated: Validated, where: PathParts, written: redis_sections.RedisServers) -> None:
    server = validated.document.server
    if durations.parse(written.timeout) >= durations.parse(server.check_timeout):
        default = "" if "timeout" in written.model_fields_set else "the default "
        message = f"{default}{written.timeout} is not shorter than server.check_timeout ({server.check_timeout})"
        validated.fault((*where, "timeout"), message, "a shorter time, so that on_redis_failure can apply")


def _sentinel(validated: Validated, files: Files, where: PathParts, written: RedisSentinel) -> SentinelSettings:
    password, password_file = _password(files, (*where, "password_file"), written.password_file)
    return SentinelSettings(
        master=written.master,
        sentinels=tuple(parse_server(text) for text in written.sentinels),
        username=written.username,
        password=password,
        password_file=password_file,
        tls=_tls(validated, files, (*where, "tls"), written.tls) if written.tls is not None else None,
    )


def _password(files: Files, where: PathParts, name: str | None) -> tuple[Any, str | None]:
    if name is None:
        return None, None
    return files.secret(where, name), str(files.path(name))


def _tls(validated: Validated, files: Files, where: PathParts, tls: RedisTls | None) -> RedisTlsFiles:
    if tls is None:
        return RedisTlsFiles()
    if (tls.certificate is None) != (tls.key is None):
        validated.fault(where, "certificate and key are not given together", "both, or neither")
    found = RedisTlsFiles(
        ca=files.optional((*where, "ca"), tls.ca),
        certificate=files.optional((*where, "certificate"), tls.certificate),
        key=files.optional((*where, "key"), tls.key),
        server_name=tls.server_name,
        verify_name=tls.verify_name,
    )
    check_authorities(validated, (*where, "ca"), found.ca)
    check_key_pair(validated, where, found.certificate, found.key)
    return found
