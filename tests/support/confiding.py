"""A serving sidecar to which secrets are confided, and all that it writes, for whoever looks for them there."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from sidecar.check import CHECK
from sidecar.demo.processes import free_port, wait_until
from sidecar.envoy.pb.ext_authz_pb2 import CheckResponse

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

ADMIN_PATHS = (
    "/metrics",
    "/policy",
    "/readyz",
    "/livez",
    "/issuers",
    "/top",
    "/limits/top",
    "/revocations",
    "/.well-known/jwks.json",
)


class Confidant:
    """`sidecar serve` in a process of its own, at the level `debug`, with its audit log in a file.

    Attributes:
        answers: Every CheckResponse, as it came.
        secrets: What must not be found in anything that is written, by a name that may be shown.
    """

    def __init__(self, directory: Path, policy: dict[str, Any]) -> None:
        self.directory = directory
        self.policy_file = directory / "policy.yaml"
        self.answers: list[bytes] = []
        self.secrets: dict[str, str] = {}
        self._admin = free_port()
        self._socket = directory / "grpc.sock"
        self._written: dict[str, bytes] = {}
        whole = policy | {
            "server": {"listen": f"unix:{self._socket}", "check_timeout": "5s", **policy.get("server", {})},
            "admin": {"listen": f"127.0.0.1:{self._admin}"},
            "audit": {"destination": {"file": str(directory / "audit.jsonl")}, **policy.get("audit", {})},
            "log": {"level": "debug"},
        }
        self.policy_file.write_text(json.dumps(whole))

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "sidecar", "serve", "--config", str(self.policy_file)]
        with (self.directory / "stdout").open("wb") as out, (self.directory / "stderr").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=out, stderr=log)
        try:
            self._channel = grpc.insecure_channel(f"unix:{self._socket}")
            grpc.channel_ready_future(self._channel).result(timeout=20)
        except BaseException:
            self._process.kill()
            self._process.wait()
            sys.stderr.write((self.directory / "stderr").read_text())
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._channel.close()
        self._process.send_signal(signal.SIGTERM)
        try:
            assert self._process.wait(20) == 0
        finally:
            self._process.kill()

    def ask(self, message: bytes, metadata: Iterable[tuple[str, str]] = ()) -> CheckResponse:
        """A Check; its answer is kept."""
        answer = self._channel.unary_unary(CHECK)(message, timeout=10, metadata=tuple(metadata))
        self.answers.append(answer)
        return CheckResponse.FromString(answer)

    def admin(self, path: str) -> bytes:
        """What the admin listener says, whatever its status; it is kept."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._admin}{path}", timeout=5) as answer:
                body: bytes = answer.read()
        except urllib.error.HTTPError as error:
            body = error.read()
        self._written[f"admin {path}"] = self._written.get(f"admin {path}", b"") + body
        return body

    def run(self, *arguments: str) -> str:
        """Another command of the sidecar's, with this policy's directory as its own; what it says is kept."""
        command = [sys.executable, "-m", "sidecar", *arguments]
        done = subprocess.run(command, capture_output=True, timeout=30, check=False, cwd=self.directory)
        assert done.stdout or done.stderr
        self._written[f"sidecar {arguments[0]}, run {len(self._written)}"] = done.stdout + done.stderr
        return done.stdout.decode() + done.stderr.decode()

    def confide(self, *arguments: str) -> str:
        """The same, of a command that shows a secret once, as it should: standard output is not kept."""
        command = [sys.executable, "-m", "sidecar", *arguments]
        done = subprocess.run(command, capture_output=True, timeout=30, check=True, cwd=self.directory)
        self._written[f"sidecar {arguments[0]}, run {len(self._written)}"] = done.stderr
        return done.stdout.decode()

    def reload(self, text: str) -> None:
        """Replace the policy by one that is refused; returns when that was said."""
        lines = self.log().count(b"policy_refused")
        self.policy_file.write_text(text)
        self._process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.log().count(b"policy_refused") > lines, "the refusal is logged")

    def log(self) -> bytes:
        """The log so far."""
        return (self.directory / "stderr").read_bytes()

    @property
    def written(self) -> dict[str, bytes]:
        """All that it has written so far, by where."""
        for path in ADMIN_PATHS:
            self.admin(path)
        files = {name: (self.directory / name).read_bytes() for name in ("stdout", "stderr", "audit.jsonl")}
        return {**self._written, **files, "answers": b"\n".join(self.answers)}
