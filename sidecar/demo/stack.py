"""Sidecar as a child process, configured as in production: a policy file, rate limit files, a Unix socket."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from string import Template

from sidecar.demo.client import Reply, fetch
from sidecar.demo.processes import Child, free_port

TEMPLATES = Path(__file__).parent


def demo_policy(directory: Path, admin_port: int, issuer: str, redis_url: str = "embedded") -> str:
    """The demo's policy file with its places filled in."""
    template = Template((TEMPLATES / "policy.yaml").read_text())
    return template.substitute(directory=directory, admin_port=admin_port, issuer=issuer, redis_url=redis_url)


class Sidecar:
    """`sidecar serve` on a policy file in a directory of its own.

    Attributes:
        policy_file: What it serves; replacing it makes it reload.
        socket: Where it answers Envoy, as the demo's policy says.
    """

    def __init__(self, directory: Path, issuer: str, redis_url: str = "embedded") -> None:
        """Write the demo's policy; `start` serves whatever stands in `policy_file` by then."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.admin_port = free_port()
        self.socket = directory / "sidecar.sock"
        self.policy_file = directory / "sidecar.yaml"
        self.policy_file.write_text(demo_policy(directory, self.admin_port, issuer, redis_url))
        shutil.copytree(TEMPLATES / "ratelimit", directory / "ratelimit", dirs_exist_ok=True)

    def start(self) -> None:
        """Serve, and return once it is ready.

        Raises:
            StartFailedError: It does not get ready; the message holds the end of its log.
        """
        command: list[str | Path] = [sys.executable, "-m", "sidecar", "serve", "--config", self.policy_file]
        self.child = Child("sidecar", command, self.directory / "sidecar.log")
        try:
            self.child.wait_ready(self.ready)
        except BaseException:
            self.child.stop()
            raise

    def ready(self) -> bool:
        """Whether it says so itself."""
        reply = self.admin("/readyz")
        return reply is not None and reply.status == 200

    def admin(self, target: str) -> Reply | None:
        """What its admin listener answers; None when nobody does."""
        return fetch(self.admin_port, target)

    def stop(self) -> int:
        """Let it drain and end; its exit status."""
        return self.child.stop()
