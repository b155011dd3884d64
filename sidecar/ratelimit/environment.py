"""From environment variables to what `sidecar serve` gets from its policy file: the same document, compiled alike.

    variables (and the file of `--config`, where there is one) -> document -> CompiledDocument
                                                               -> ReferenceSettings, for what a policy has no words for

A variable that is set wins over the file, the file over the reference's default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from urllib.parse import unquote, urlsplit

from sidecar.core.secret import Secret
from sidecar.policy import durations, yaml
from sidecar.policy.compile import CompiledDocument, compile_source
from sidecar.policy.faults import Fault, PolicyError, Wrong, shown
from sidecar.policy.fields import parse_address
from sidecar.policy.settings import RedisServers
from sidecar.policy.yaml import Mapping, PathParts, Sequence, Source, dotted
from sidecar.ratelimit import variables
from sidecar.ratelimit.variables import FILE

if TYPE_CHECKING:
    from sidecar.transport.service import Address

SECTIONS: Final = frozenset({"server", "admin", "redis", "ratelimit", "local_share", "log"})
"""Of a policy file, what `sidecar ratelimit --config` may hold: there is nothing else to serve."""

REDIS_TIMEOUT_S_MAX: Final = 5.0
ANSWER_MARGIN_S: Final = 0.1
"""How much longer than Redis's timeout a call may take."""

_LEVELS: Final = {
    "panic": "error",
    "fatal": "error",
    "error": "error",
    "warn": "warning",
    "warning": "warning",
    "info": "info",
    "debug": "debug",
    "trace": "debug",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSettings:
    """What the reference's variables say and a policy has no words for.

    Attributes:
        http: Where `/json` and `/healthcheck` are served.
        prometheus: Where metrics are served besides the debug port, and on which path; None: not.
        healthy_with_config: `/healthcheck` fails while no domain is configured.
        healthy_with_redis: `/healthcheck` fails while Redis is not connected; otherwise, until it was once.
        force_start: gRPC is served before a first configuration came.
    """

    http: Address
    prometheus: tuple[Address, str] | None
    healthy_with_config: bool
    healthy_with_redis: bool
    force_start: bool


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the environment came to."""

    document: CompiledDocument
    reference: ReferenceSettings


@dataclass(frozen=True, slots=True, eq=False)
class EnvironmentSource(Source):
    """A document made of variables over a file: faults name the variable where one is to blame, else the file's line.

    Attributes:
        written_by: The variables that a path's value comes from.
        base: The file; None without one.
    """

    written_by: AnyMapping[PathParts, str]
    base: Source | None

    def fault(self, path: PathParts, message: str, accepted: str = "") -> Fault:
        """A fault at a path."""
        around = (self.written_by.get(path[:length]) for length in range(len(path), 0, -1))
        below = (name for where, name in self.written_by.items() if where[: len(path)] == path)
        name = next((name for name in around if name is not None), None)
        if name is None and self.base is not None and path and path[0] in self.base.root:
            return self.base.fault(path, message, accepted)
        return Fault(FILE, 0, name or next(below, dotted(path)), message, accepted)


def load(
    environment: AnyMapping[str, str],
    generation: int,
    config: Path | None = None,
    resources: tuple[Source, ...] | None = None,
) -> Loaded:
    """Read the environment, and all files that it names.

    Args:
        environment: The process's variables.
        generation: Of the policy that is compiled.
        config: A file in the policy's format with settings that have no variable.
        resources: What an xDS server sent; None: nothing yet.

    Raises:
        PolicyError: With every fault.
    """
    found = variables.read(environment)
    writer = _Writer(environment, found, _base(config))
    writer.server()
    writer.redis()
    writer.ratelimit()
    reference = writer.reference()
    try:
        document = compile_source(writer.source, Path(), generation, resources)
    except PolicyError as error:
        raise PolicyError([*writer.faults, *error.faults]) from None
    if document.settings.workers > 1:
        fault = writer.source.fault(("server", "workers"), "`sidecar ratelimit` is one process", "1; or more replicas")
        writer.faults.append(fault)
    if writer.faults:
        raise PolicyError(writer.faults)
    return Loaded(writer.with_secrets(document), reference)


def _base(config: Path | None) -> Source | None:
    """The file of `--config`.

    Raises:
        PolicyError: It cannot be read, or has a section for which there is no use.
    """
    if config is None:
        return None
    source = yaml.read(config)
    if not isinstance(source.root, Mapping):
        raise PolicyError([source.fault((), "the document is not a mapping", ", ".join(sorted(SECTIONS)))])
    faults = [
        source.fault((key,), "`sidecar ratelimit` has no use for this section", ", ".join(sorted(SECTIONS)))
        for key in source.root
        if key not in SECTIONS
    ]
    if faults:
        raise PolicyError(faults)
    return source


class _Writer:
    """Writes the document, one section after the other."""

    def __init__(self, environment: AnyMapping[str, str], found: AnyMapping[str, Any], base: Source | None) -> None:
        self.faults: list[Fault] = []
        self._environment = environment
        self._found = found
        self._written_by: dict[PathParts, str] = {}
        self._credentials: dict[str, Any] = {}
        self._per_second: dict[str, Any] = {}
        root = _copy(base.root) if base is not None else Mapping(0)
        self.source = EnvironmentSource(FILE, root, self._written_by, base)

    def server(self) -> None:
        """The gRPC listener, its TLS, and the log."""
        found = self._found
        if found["GRPC_UDS"]:
            self._put(("server", "listen"), f"unix:{Path(found['GRPC_UDS']).absolute()}", "GRPC_UDS")
        else:
            listen = _host_port(found["GRPC_HOST"], found["GRPC_PORT"])
            self._put(("server", "listen"), listen, "GRPC_HOST", "GRPC_PORT")
        self._put(("admin", "listen"), _host_port(found["DEBUG_HOST"], found["DEBUG_PORT"]), "DEBUG_HOST", "DEBUG_PORT")
        for name, key, longest_s in (
            ("GRPC_MAX_CONNECTION_AGE", "max_connection_age", 720 * 3600),
            ("GRPC_MAX_CONNECTION_AGE_GRACE", "max_connection_age_grace", 3600),
        ):
            self._put(("server", "limits", key), _duration(found[name] or longest_s), name)
        if found["GRPC_SERVER_USE_TLS"]:
            for name, key in (
                ("GRPC_SERVER_TLS_CERT", "certificate"),
                ("GRPC_SERVER_TLS_KEY", "key"),
                ("GRPC_CLIENT_TLS_CACERT", "client_ca"),
                ("GRPC_CLIENT_TLS_SAN", "client_name"),
            ):
                if found[name]:
                    self._put(("server", "tls", key), found[name], name)
                elif key not in {"client_ca", "client_name"}:
                    self._fault(name, "it is not set, and GRPC_SERVER_USE_TLS is true", "the path of a PEM file")
        self.source.root["audit"] = Mapping(0)
        self.source.root["audit"]["destination"] = "none"
        self._put(("log", "level"), _LEVELS[found["LOG_LEVEL"]], "LOG_LEVEL")

    def redis(self) -> None:
        """Where limits are counted."""
        found = self._found
        if found["BACKEND_TYPE"] == "memcache":
            self._fault("BACKEND_TYPE", "memcache is not supported: counters are kept in Redis or Valkey", "redis")
        self._store(("redis",), "REDIS_", self._credentials)
        if found["REDIS_PERSECOND"]:
            self._store(("redis", "per_second"), "REDIS_PERSECOND_", self._per_second)
        if "REDIS_TIMEOUT" in self._environment:
            timeout_s = min(max(found["REDIS_TIMEOUT"], 0.001), REDIS_TIMEOUT_S_MAX)
            self._put(("redis", "timeout"), _duration(timeout_s), "REDIS_TIMEOUT")
            if found["REDIS_PERSECOND"]:
                self._put(("redis", "per_second", "timeout"), _duration(timeout_s), "REDIS_TIMEOUT")
            self._put(("server", "check_timeout"), _duration(timeout_s + ANSWER_MARGIN_S), "REDIS_TIMEOUT")
        if found["CACHE_KEY_PREFIX"]:
            if any(brace in found["CACHE_KEY_PREFIX"] for brace in "{}"):
                self._fault("CACHE_KEY_PREFIX", "it holds a brace, with which a cluster's slots are told", "no { and }")
            self._credentials["key_prefix"] = found["CACHE_KEY_PREFIX"]

    def _store(self, where: PathParts, prefix: str, credentials: dict[str, Any]) -> None:
        """One store: the general one, or that of limits of one second.

        Args:
            where: The section.
            prefix: Of the names of its variables.
            credentials: Is given what stands in no document.
        """
        found, names = self._found, tuple(f"{prefix}{name}" for name in ("URL", "TYPE", "SOCKET_TYPE", "TLS"))
        topology = self.source.root.get("redis", {}) if len(where) == 1 else {}
        is_set = any(name in self._environment for name in names)
        if not is_set and any(key in topology for key in ("url", "sentinel", "cluster")):
            return
        url, kind, socket_type, tls = (found[name] for name in names)
        try:
            if kind == "SINGLE":
                written = _redis_url(url, socket_type, tls=tls)
                self._put((*where, "url"), written.url, *names)
                credentials |= written.credentials
                tls = written.url.startswith("rediss://")
            elif kind == "SENTINEL":
                master, *sentinels = url.split(",")
                self._put((*where, "sentinel", "master"), master, *names)
                self._put((*where, "sentinel", "sentinels"), _texts(sentinels), *names)
                if auth := found[f"{prefix}SENTINEL_AUTH"]:
                    credentials["sentinel"] = _user_and_password(auth)
            else:
                self._put((*where, "cluster", "nodes"), _texts(url.split(",")), *names)
        except Wrong as wrong:
            self._fault(names[0], wrong.message, wrong.accepted)
            self._put((*where, "url"), "redis://127.0.0.1:1", *names)
            tls = False
        if tls:
            self._store_tls((*where, "tls"))
            if kind == "SENTINEL":
                self._store_tls((*where, "sentinel", "tls"))
        if auth := found[f"{prefix}AUTH"]:
            credentials |= _user_and_password(auth)

    def _store_tls(self, where: PathParts) -> None:
        self._section(where)
        for name, key in (
            ("REDIS_TLS_CACERT", "ca"),
            ("REDIS_TLS_CLIENT_CERT", "certificate"),
            ("REDIS_TLS_CLIENT_KEY", "key"),
        ):
            if self._found[name]:
                self._put((*where, key), self._found[name], name)
        if self._found["REDIS_TLS_SKIP_HOSTNAME_VERIFICATION"]:
            self._put((*where, "verify_name"), False, "REDIS_TLS_SKIP_HOSTNAME_VERIFICATION")

    def ratelimit(self) -> None:
        """Where limits come from, and how they are answered."""
        found = self._found
        if found["CONFIG_TYPE"] == "FILE":
            self._files()
        else:
            self._xds()
        for name, key in (
            ("SHADOW_MODE", "shadow_mode"),
            ("QUOTA_MODE", "quota_mode"),
            ("NEAR_LIMIT_RATIO", "near_limit_ratio"),
            ("RESPONSE_DYNAMIC_METADATA", "response_dynamic_metadata"),
            ("MERGE_DOMAIN_CONFIG", "merge_domains"),
        ):
            self._put(("ratelimit", key), found[name], name)
        stop = "STOP_CACHE_KEY_INCREMENT_WHEN_OVERLIMIT"
        self._put(("ratelimit", "count_denied"), not found[stop], stop)
        self._put(("ratelimit", "deny_cache"), found["LOCAL_CACHE_SIZE_IN_BYTES"] > 0, "LOCAL_CACHE_SIZE_IN_BYTES")
        if found["LIMIT_RESPONSE_HEADERS_ENABLED"]:
            for name, key in (
                ("LIMIT_LIMIT_HEADER", "limit"),
                ("LIMIT_REMAINING_HEADER", "remaining"),
                ("LIMIT_RESET_HEADER", "reset"),
            ):
                self._put(("ratelimit", "response_headers", key), found[name], name)

    def _files(self) -> None:
        found = self._found
        names = ("RUNTIME_ROOT", "RUNTIME_SUBDIRECTORY", "RUNTIME_APPDIRECTORY")
        directory = Path(*(found[name] for name in names if found[name])).absolute()
        self._put(("ratelimit", "directory"), str(directory), *names)
        files = "visible" if found["RUNTIME_IGNOREDOTFILES"] else "all"
        self._put(("ratelimit", "files"), files, "RUNTIME_IGNOREDOTFILES")
        may_start = found["FORCE_START_WITHOUT_INITIAL_CONFIG"] or found["HEALTHY_WITH_AT_LEAST_ONE_CONFIG_LOADED"]
        self._put(("ratelimit", "required"), not may_start, "FORCE_START_WITHOUT_INITIAL_CONFIG")

    def _xds(self) -> None:
        found, where = self._found, ("ratelimit", "xds")
        for name, key, value in (
            ("CONFIG_GRPC_XDS_SERVER_URL", "server", found["CONFIG_GRPC_XDS_SERVER_URL"]),
            ("CONFIG_GRPC_XDS_NODE_ID", "node_id", found["CONFIG_GRPC_XDS_NODE_ID"]),
            ("CONFIG_GRPC_XDS_SERVER_CONNECT_RETRY_INTERVAL", "retry", None),
            ("XDS_CLIENT_BACKOFF_INITIAL_INTERVAL", "backoff", None),
            ("XDS_CLIENT_BACKOFF_MAX_INTERVAL", "backoff_max", None),
        ):
            self._put((*where, key), _duration(found[name]) if value is None else value, name)
        for key, value in found["CONFIG_GRPC_XDS_NODE_METADATA"].items():
            self._put((*where, "node_metadata", key), value, "CONFIG_GRPC_XDS_NODE_METADATA")
        if found["XDS_CLIENT_MAX_MSG_SIZE_IN_BYTES"]:
            name = "XDS_CLIENT_MAX_MSG_SIZE_IN_BYTES"
            self._put((*where, "message_bytes_max"), found[name], name)
        if found["CONFIG_GRPC_XDS_SERVER_USE_TLS"]:
            self._section((*where, "tls"))
            for name, key in (
                ("CONFIG_GRPC_XDS_CLIENT_TLS_CERT", "certificate"),
                ("CONFIG_GRPC_XDS_CLIENT_TLS_KEY", "key"),
                ("CONFIG_GRPC_XDS_SERVER_TLS_CACERT", "ca"),
                ("CONFIG_GRPC_XDS_SERVER_TLS_SAN", "server_name"),
            ):
                if found[name]:
                    self._put((*where, "tls", key), found[name], name)

    def reference(self) -> ReferenceSettings:
        """What a policy has no words for."""
        found = self._found
        prometheus = None
        if found["USE_PROMETHEUS"] and not found["DISABLE_STATS"]:
            host, _, port = found["PROMETHEUS_ADDR"].rpartition(":")
            path = found["PROMETHEUS_PATH"]
            if not path.startswith("/"):
                self._fault("PROMETHEUS_PATH", f"{shown(path)} is not a path", "a path such as /metrics")
            prometheus = self._address("PROMETHEUS_ADDR", f"{host or '0.0.0.0'}:{port}"), path
        return ReferenceSettings(
            http=self._address("HOST", _host_port(found["HOST"], found["PORT"])),
            prometheus=prometheus,
            healthy_with_config=found["HEALTHY_WITH_AT_LEAST_ONE_CONFIG_LOADED"],
            healthy_with_redis=found["REDIS_HEALTH_CHECK_ACTIVE_CONNECTION"],
            force_start=found["FORCE_START_WITHOUT_INITIAL_CONFIG"],
        )

    def with_secrets(self, document: CompiledDocument) -> CompiledDocument:
        """The document with what a policy would read from files of their own."""
        settings = document.settings
        if settings.xds is not None:
            headers = self._found["CONFIG_GRPC_XDS_CLIENT_ADDITIONAL_HEADERS"]
            added = tuple((name.lower(), Secret(value)) for name, value in headers.items())
            xds = dataclasses.replace(settings.xds, headers=(*settings.xds.headers, *added))
            settings = dataclasses.replace(settings, xds=xds)
        if settings.redis is not None:
            per_second = settings.redis.per_second
            if per_second is not None:
                per_second = _with_credentials(per_second, self._per_second)
            redis = dataclasses.replace(_with_credentials(settings.redis, self._credentials), per_second=per_second)
            settings = dataclasses.replace(settings, redis=redis)
        return dataclasses.replace(document, settings=settings)

    def _section(self, path: PathParts) -> Mapping:
        node = self.source.root
        for part in path:
            if not isinstance(node.get(part), Mapping):
                node[part] = Mapping(0)
                node.key_lines[str(part)] = 0
            node = node[part]
        return cast("Mapping", node)

    def _put(self, path: PathParts, value: Any, *names: str) -> None:
        """Write a value, unless none of its variables is set and the file has it."""
        node, key = self._section(path[:-1]), str(path[-1])
        is_set = next((name for name in names if name in self._environment), None)
        if key in node and is_set is None:
            return
        node[key] = value
        node.key_lines[key] = 0
        self._written_by[path] = is_set or names[0]

    def _address(self, name: str, written: str) -> Address:
        try:
            return parse_address(written)
        except Wrong as wrong:
            self._fault(name, wrong.message, wrong.accepted)
            return parse_address("127.0.0.1:0")

    def _fault(self, name: str, message: str, accepted: str) -> None:
        self.faults.append(Fault(FILE, 0, name, message, accepted))


@dataclass(frozen=True, slots=True)
class _RedisUrl:
    url: str
    credentials: dict[str, Any]


def _redis_url(value: str, socket_type: str, *, tls: bool) -> _RedisUrl:
    """A policy's `redis.url`, and what the text holds besides.

    Raises:
        Wrong: It is none. The text is not repeated: people put passwords there.
    """
    if socket_type == "unix":
        if tls:
            raise Wrong("TLS does not go with a socket type of unix", "a socket type of tcp")
        if not value.startswith("/"):
            raise Wrong("it is not a socket's path, which a socket type of unix asks for", "an absolute path")
        return _RedisUrl(f"unix://{value}", {})
    if "://" not in value:
        return _RedisUrl(f"{'rediss' if tls else 'redis'}://{value}", {})
    scheme, _, rest = value.partition("://")
    try:
        url = urlsplit(value)
        user, password = url.username, url.password
    except ValueError:
        raise Wrong("the URL cannot be read", "host:port, or redis://user:password@host:port/0") from None
    credentials = {"username": unquote(user or "") or None, "password": Secret(unquote(password))} if password else {}
    return _RedisUrl(f"{'rediss' if tls else scheme}://{rest.rpartition('@')[2]}", credentials)


def _user_and_password(auth: str) -> dict[str, Any]:
    """`password`, or `user:password`."""
    user, colon, password = auth.partition(":")
    return {"username": user, "password": Secret(password)} if colon else {"username": None, "password": Secret(auth)}


_Servers = TypeVar("_Servers", bound=RedisServers)


def _with_credentials(servers: _Servers, credentials: AnyMapping[str, Any]) -> _Servers:
    own = dict(credentials)
    sentinel = own.pop("sentinel", None)
    if sentinel is not None and servers.sentinel is not None:
        own["sentinel"] = dataclasses.replace(servers.sentinel, **sentinel)
    return dataclasses.replace(servers, **own)


def _texts(items: list[str]) -> Sequence:
    """A list as a document has it."""
    sequence = Sequence(0)
    sequence.extend(item.strip() for item in items)
    sequence.item_lines = [0] * len(items)
    return sequence


def _copy(node: Any) -> Any:
    """A document's mappings anew, so that variables can be written into them."""
    if not isinstance(node, Mapping):
        return node
    copied = Mapping(node.line)
    copied.key_lines = dict(node.key_lines)
    copied.update({key: _copy(value) for key, value in node.items()})
    return copied


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host or '0.0.0.0'}:{port}"


def _duration(seconds: float) -> str:
    return durations.render(round(seconds * 1000) * 1000)
