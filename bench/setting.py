"""What every benchmark runs on: the servers as processes of their own, on one core; load and Valkey on another."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt import encode
from jwt.algorithms import RSAAlgorithm

from sidecar.edges.embedded_valkey import EmbeddedValkey
from sidecar.envoy.pb.ext_authz_pb2 import CheckRequest

ROOT = Path(__file__).parents[1]
READY_WITHIN_S = 20.0

CHECK = "/envoy.service.auth.v3.Authorization/Check"
SHOULD_RATE_LIMIT = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"

HEADERS = {
    "user-agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "accept": "application/json, text/plain, */*",
    "accept-language": "en-US,en;q=0.5",
    "accept-encoding": "gzip, deflate, br, zstd",
    "content-type": "application/json",
    "x-forwarded-proto": "https",
    "x-forwarded-for": "192.0.2.17",
    "x-request-id": "6f1c9f1e-5d33-9d4f-a0c9-3f1e6f6b8a10",
    "x-envoy-internal": "true",
    "origin": "https://app.example.com",
    "referer": "https://app.example.com/orders",
}


def cores() -> tuple[set[int], set[int]]:
    """The server's core, and what is left for everything else; the same set where there is only one core."""
    available = sorted(os.sched_getaffinity(0))
    return {available[-1]}, set(available[:-1]) or {available[-1]}


@dataclass
class Running:
    """A server process under test."""

    process: subprocess.Popen[bytes]
    address: str
    ready_after_s: float

    @property
    def pid(self) -> int:
        return self.process.pid

    def resident_mib(self) -> float:
        """Resident memory now."""
        line = next(x for x in Path(f"/proc/{self.pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
        return int(line.split()[1]) / 1024


@contextlib.contextmanager
def running(arguments: Sequence[str], address: str, ready: str) -> Iterator[Running]:
    """A process on the server's core, once the file or http:// URL `ready` is there; ended at exit."""
    server_cores, _ = cores()
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, server_cores),  # noqa: PLW1509 - no threads run here yet
    )
    try:
        while not _is_ready(ready):
            if process.poll() is not None or time.perf_counter() - started > READY_WITHIN_S:
                raise SystemExit(f"{' '.join(arguments)} did not start")
            time.sleep(0.01)
        yield Running(process, address, time.perf_counter() - started)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _is_ready(ready: str) -> bool:
    if not ready.startswith("http://"):
        return Path(ready).exists()
    try:
        with urllib.request.urlopen(ready, timeout=1) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


class Setting:
    """A directory with an issuer's keys, a Valkey, and policies made to measure."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-bench-")))
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        jwk = json.loads(RSAAlgorithm.to_jwk(self._key.public_key()))
        (self.directory / "jwks.json").write_text(json.dumps({"keys": [jwk | {"kid": "k1", "alg": "RS256"}]}))
        _, other_cores = cores()
        os.sched_setaffinity(0, other_cores)
        self.valkey = EmbeddedValkey()
        self.valkey.start()
        self._stack.callback(self.valkey.stop)
        self._servers = 0

    def __enter__(self) -> Setting:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def token(self, **claims: object) -> str:
        """A token of about 700 bytes."""
        now = int(time.time())
        held = {
            "iss": "https://issuer.example",
            "aud": "orders-api",
            "sub": "5f0c9a3e-0d5e-4a43-9a37-5ffb1f6f7f10",
            "azp": "web-application",
            "exp": now + 3600,
            "iat": now,
            "scope": "openid profile orders:read",
        }
        return encode(held | claims, self._key, "RS256", {"kid": "k1"})

    def check(self, path: str = "/orders/42", token: str | None = None) -> bytes:
        """A CheckRequest as Envoy sends it: 12 headers, about 1.25 KB."""
        request = CheckRequest()
        attributes = request.attributes
        attributes.source.address.socket_address.address = "192.0.2.17"
        attributes.source.address.socket_address.port_value = 43210
        http = attributes.request.http
        http.id, http.method, http.host, http.path = "11544912312", "GET", "api.example.com", path
        http.scheme, http.protocol = "https", "HTTP/2"
        http.headers.update(HEADERS)
        http.headers.update({":authority": "api.example.com", ":method": "GET", ":path": path, ":scheme": "https"})
        http.headers["authorization"] = f"Bearer {token or self.token()}"
        return request.SerializeToString()

    def policy(self, engine: str = "http2", **overrides: object) -> dict[str, object]:
        """Warm token, one scope, one exact limit in Redis, two identity headers, audit to a file."""
        return {
            "server": {"engine": engine},
            "redis": {"url": f"unix://{self.valkey.socket_path}"},
            "issuers": {
                "main": {
                    "issuer": "https://issuer.example",
                    "audiences": ["orders-api"],
                    "algorithms": ["RS256"],
                    "keys": {"jwks_file": str(self.directory / "jwks.json")},
                }
            },
            "limits": {"per-user": {"rate": "4000000000/hour", "key": {"claim": "sub"}}},
            "upstream": {"headers": {"x-user-id": {"claim": "sub"}, "x-user-scopes": {"claim": "scope"}}},
            "rules": [
                {
                    "name": "orders",
                    "match": {"path": {"template": "/orders/{id}"}, "methods": ["GET"]},
                    "authenticate": {"issuers": ["main"]},
                    "authorize": {"scope": "orders:read"},
                    "limits": ["per-user"],
                }
            ],
            "audit": {"destination": {"file": str(self.directory / "audit.log")}},
            **overrides,
        }

    @contextlib.contextmanager
    def sidecar(self, policy: dict[str, object]) -> Iterator[Running]:
        """`sidecar serve` with this policy, on a TCP port of its own."""
        self._servers += 1
        port, admin = 21000 + 2 * self._servers, 21001 + 2 * self._servers
        server = {"listen": f"127.0.0.1:{port}", **policy["server"]}  # type: ignore[dict-item]
        file = self.directory / f"policy-{self._servers}.yaml"
        file.write_text(yaml.safe_dump(policy | {"server": server, "admin": {"listen": f"127.0.0.1:{admin}"}}))
        address, ready = f"127.0.0.1:{port}", f"http://127.0.0.1:{admin}/readyz"
        with running(["-m", "sidecar", "serve", "--config", str(file)], address, ready) as server:
            yield server

    @contextlib.contextmanager
    def constant(self, engine: str) -> Iterator[Running]:
        """A handler that answers every Check with the same bytes, on the given transport."""
        self._servers += 1
        port = 21000 + 2 * self._servers
        mark = self.directory / f"constant-{self._servers}"
        arguments = ["-m", "bench.constant", "--engine", engine, "--port", str(port), "--ready", str(mark)]
        with running(arguments, f"127.0.0.1:{port}", str(mark)) as server:
            yield server
