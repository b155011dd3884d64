"""`sidecar ratelimit` as a child process, from environment variables alone, on free ports."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from sidecar.demo.client import Client, Reply, fetch
from sidecar.demo.processes import Child, free_port

SHOP = """
domain: shop
descriptors:
  - key: user
    rate_limit: {unit: hour, requests_per_unit: 2}
  - key: path
    value: /slow
    shadow_mode: true
    rate_limit: {unit: minute, requests_per_unit: 1}
    descriptors:
      - key: user
        quota_mode: true
        rate_limit: {unit: day, requests_per_unit: 4}
  - key: free
    rate_limit: {unlimited: true}
"""


class RateLimitProcess:
    """The process; `root` is its RUNTIME_ROOT, `files` the directory of its configuration."""

    def __init__(self, directory: Path, **variables: str) -> None:
        self.directory = directory
        self.root = directory / "runtime"
        self.files = self.root / "shop" / "config"
        self.files.mkdir(parents=True)
        (self.files / "shop.yaml").write_text(SHOP)
        self.http, self.grpc, self.debug = free_port(), free_port(), free_port()
        self.variables = {
            "HOST": "127.0.0.1",
            "PORT": str(self.http),
            "GRPC_HOST": "127.0.0.1",
            "GRPC_PORT": str(self.grpc),
            "DEBUG_HOST": "127.0.0.1",
            "DEBUG_PORT": str(self.debug),
            "RUNTIME_ROOT": str(self.root),
            "RUNTIME_SUBDIRECTORY": "shop",
            "REDIS_SOCKET_TYPE": "tcp",
            "LOG_LEVEL": "info",
            **variables,
        }
        self.child: Child

    def start(self, *, healthy: bool = True) -> RateLimitProcess:
        """Start it; returns once it is healthy, or once its debug port answers."""
        command = [shutil.which("env") or "env", *(f"{name}={value}" for name, value in self.variables.items())]
        self.child = Child(
            "ratelimit", [*command, sys.executable, "-m", "sidecar", "ratelimit"], self.directory / "log"
        )
        try:
            self.child.wait_ready(self.healthy if healthy else lambda: fetch(self.http, "/healthcheck") is not None)
        except BaseException:
            self.child.stop()
            raise
        return self

    def healthy(self) -> bool:
        reply = fetch(self.http, "/healthcheck")
        return reply is not None and reply.status == 200

    def json(self, request: Any) -> Reply:
        """What `/json` answers."""
        body = request if isinstance(request, bytes) else json.dumps(request).encode()
        with Client(self.http) as client:
            return client.request("POST", "/json", body=body)

    def text(self, target: str) -> str:
        """What the debug port shows."""
        reply = fetch(self.debug, target)
        assert reply is not None
        return reply.body.decode()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Lines of its log."""
        lines = [json.loads(line) for line in (self.directory / "log").read_text().splitlines()]
        return [line for line in lines if line["event"] == name]

    def stop(self) -> int:
        return self.child.stop()


def request(domain: str, *entries: tuple[str, str], **fields: Any) -> dict[str, Any]:
    """A RateLimitRequest of one descriptor, as JSON."""
    written = [{"key": key, "value": value} for key, value in entries]
    return {"domain": domain, "descriptors": [{"entries": written}], **fields}
