"""What every benchmark runs on: the servers as processes of their own, on one core; load and Valkey on another.

Each server listens on free ports, ends with the benchmark however that ends, and logs into the setting's directory.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt import encode
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from bench.load import process_cpu_s
from sidecar.edges.embedded_valkey import EmbeddedValkey
from sidecar.envoy.pb.ext_authz_pb2 import CheckRequest

ROOT = Path(__file__).parents[1]
READY_WITHIN_S = 60.0
ENDED_WITHIN_S = 10.0

VALKEY_MEMORY_MAX = "1gb"
"""A million counters take about a fifth of it."""

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

Policy = dict[str, Any]

_PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None)


def cores() -> tuple[set[int], set[int]]:
    """The server's core, and what is left for everything else; the same set where there is only one core."""
    return _SERVER_CORES, _OTHER_CORES


def _divided() -> tuple[set[int], set[int]]:
    available = sorted(os.sched_getaffinity(0))
    return {available[-1]}, set(available[:-1]) or {available[-1]}


_SERVER_CORES, _OTHER_CORES = _divided()
"""Divided once: a setting then confines its own process to the second set."""


def free_ports(count: int) -> list[int]:
    """TCP ports of 127.0.0.1 that nobody uses now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass
class Running:
    """A server process under test; `ready_after_s` counts from the process's start."""

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

    def cpu_s(self) -> float:
        """CPU time of all its threads so far."""
        return process_cpu_s(self.pid)


def _in_child() -> None:
    """Take the server's core, and end when the benchmark does, even killed."""
    os.sched_setaffinity(0, _SERVER_CORES)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def running(arguments: Sequence[str], address: str, ready: str, log: Path) -> Iterator[Running]:
    """A process on the server's core, once the file or http:// URL `ready` is there; ended at exit.

    Raises:
        SystemExit: It did not get ready; the text has the end of its log.
    """
    started = time.perf_counter()
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C is for the benchmark, which ends its servers
            preexec_fn=_in_child,  # noqa: PLW1509 - no threads run here
        )
    try:
        while not _is_ready(ready):
            if process.poll() is not None or time.perf_counter() - started > READY_WITHIN_S:
                raise SystemExit(f"{' '.join(arguments)} did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.01)
        yield Running(process, address, time.perf_counter() - started)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(ENDED_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_ready(ready: str) -> bool:
    if not ready.startswith("http://"):
        return Path(ready).exists()
    try:
        with urllib.request.urlopen(ready, timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


class Setting:
    """A directory with an issuer's keys, a Valkey, and policies made to measure."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-bench-")))
        self._rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._ec = ec.generate_private_key(ec.SECP256R1())
        keys = [
            json.loads(RSAAlgorithm.to_jwk(self._rsa.public_key())) | {"kid": "RS256", "alg": "RS256"},
            json.loads(ECAlgorithm.to_jwk(self._ec.public_key())) | {"kid": "ES256", "alg": "ES256"},
        ]
        (self.directory / "jwks.json").write_text(json.dumps({"keys": keys}))
        os.sched_setaffinity(0, _OTHER_CORES)
        self.valkey = EmbeddedValkey(VALKEY_MEMORY_MAX)
        self._stack.callback(self.valkey.stop)
        self.valkey.start()
        self._servers = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def counters(self) -> int:
        """How many keys Valkey holds."""
        return int(self._ask(b"DBSIZE").removeprefix(b":"))

    def scripts_run(self) -> int:
        """How many scripts Valkey ran so far."""
        return sum(
            int(calls) for calls in re.findall(rb"cmdstat_evalsha?:calls=(\d+)", self._ask(b"INFO commandstats"))
        )

    def _ask(self, command: bytes) -> bytes:
        """The reply to a command that has a one-line or a bulk reply."""
        with socket.socket(socket.AF_UNIX) as valkey, valkey.makefile("rwb") as stream:
            valkey.settimeout(10)
            valkey.connect(self.valkey.socket_path)
            stream.write(command + b"\r\n")
            stream.flush()
            reply = stream.readline().strip()
            return stream.read(int(reply[1:])) if reply.startswith(b"$") else reply

    def token(self, algorithm: str = "RS256", **claims: object) -> str:
        """A token of about 700 bytes (RS256)."""
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
        return encode(held | claims, self._rsa if algorithm == "RS256" else self._ec, algorithm, {"kid": algorithm})

    def check(self, path: str = "/orders/42", token: str | None = None, headers: Mapping[str, str] = HEADERS) -> bytes:
        """A CheckRequest as Envoy sends it: 12 headers and pseudo-headers besides, about 1.25 KB."""
        request = CheckRequest()
        attributes = request.attributes
        attributes.source.address.socket_address.address = "192.0.2.17"
        attributes.source.address.socket_address.port_value = 43210
        http = attributes.request.http
        http.id, http.method, http.host, http.path = "11544912312", "GET", "api.example.com", path
        http.scheme, http.protocol = "https", "HTTP/2"
        http.headers.update(headers)
        http.headers.update({":authority": "api.example.com", ":method": "GET", ":path": path, ":scheme": "https"})
        http.headers["authorization"] = f"Bearer {token or self.token()}"
        return request.SerializeToString()

    def redis(self) -> Policy:
        """This setting's Valkey, with a timeout that forgives a busy machine: refusals are not to be measured."""
        return {"url": f"unix://{self.valkey.socket_path}", "timeout": "3s"}

    def policy(self, engine: str = "http2", **overrides: object) -> Policy:
        """Warm token, one scope, one exact limit in Redis, two identity headers, audit to a file."""
        return {
            "server": {"engine": engine, "check_timeout": "5s"},
            "redis": self.redis(),
            "issuers": {
                "main": {
                    "issuer": "https://issuer.example",
                    "audiences": ["orders-api"],
                    "algorithms": ["RS256", "ES256"],
                    "keys": {"jwks_file": str(self.directory / "jwks.json")},
                }
            },
            "limits": {"per-user": {"rate": "4000000000/hour", "key": {"claim": "sub"}}},
            "upstream": {"headers": {"x-user-id": {"claim": "sub"}, "x-user-scopes": {"claim": "scope"}}},
            "rules": [self.rule("orders", "/orders/{id}")],
            "audit": {"destination": {"file": str(self.directory / "audit.log")}},
            **overrides,
        }

    def rule(self, name: str, template: str) -> Policy:
        """A rule of that policy."""
        return {
            "name": name,
            "match": {"path": {"template": template}, "methods": ["GET"]},
            "authenticate": {"issuers": ["main"]},
            "authorize": {"scope": "orders:read"},
            "limits": ["per-user"],
        }

    def ratelimit_policy(self, *domains: Policy, **settings: object) -> Policy:
        """A policy that only answers rate limit calls, for these configuration files' contents and these settings."""
        directory = self.directory / f"ratelimit-{len(list(self.directory.glob('ratelimit-*')))}"
        directory.mkdir()
        for domain in domains:
            (directory / f"{domain['domain']}.yaml").write_text(yaml.dump(domain, Dumper=yaml.CSafeDumper))
        return {
            "server": {"check_timeout": "5s"},
            "redis": self.redis(),
            "ratelimit": {"directory": str(directory), **settings},
            "audit": {"destination": "none"},
        }

    @contextlib.contextmanager
    def sidecar(self, policy: Policy) -> Iterator[Running]:
        """`sidecar serve` with this policy, on a TCP port of its own."""
        port, admin = free_ports(2)
        self._servers += 1
        server = {"listen": f"127.0.0.1:{port}"} | policy.get("server", {})
        file = self.directory / f"policy-{self._servers}.yaml"
        whole = policy | {"server": server, "admin": {"listen": f"127.0.0.1:{admin}"}}
        file.write_text(yaml.dump(whole, Dumper=yaml.CSafeDumper))
        arguments = ["-m", "sidecar", "serve", "--config", str(file)]
        with running(arguments, f"127.0.0.1:{port}", f"http://127.0.0.1:{admin}/readyz", self._log()) as started:
            yield started

    @contextlib.contextmanager
    def constant(self, engine: str) -> Iterator[Running]:
        """A handler that answers every Check, and every rate limit call, with the same bytes, on this transport."""
        [port] = free_ports(1)
        self._servers += 1
        mark = self.directory / f"constant-{self._servers}"
        arguments = ["-m", "bench.constant", "--engine", engine, "--port", str(port), "--ready", str(mark)]
        with running(arguments, f"127.0.0.1:{port}", str(mark), self._log()) as started:
            yield started

    def _log(self) -> Path:
        return self.directory / f"server-{self._servers}.log"
