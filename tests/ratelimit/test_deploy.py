"""deploy/ratelimit.yaml starts: its variables are known, its files are valid, its probes lead somewhere."""

from __future__ import annotations

from pathlib import Path

import yaml

from sidecar.ratelimit import variables
from sidecar.ratelimit.environment import load
from sidecar.transport.service import TcpAddress

ROOT = Path(__file__).parents[2]


def test_the_manifest_is_served_as_it_stands(tmp_path: Path) -> None:
    """Laid out as Kubernetes does, with links, its ConfigMap loads; ports are those that its variables lead to."""
    config_map, deployment, service = yaml.safe_load_all((ROOT / "deploy" / "ratelimit.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment.keys() <= variables.VARIABLES.keys()
    assert variables.ignored(environment) == {}

    (mount,) = container["volumeMounts"]
    volume = tmp_path / Path(mount["mountPath"]).relative_to("/data")
    (volume / "..2026").mkdir(parents=True)
    (volume / "..data").symlink_to("..2026")
    for name, text in config_map["data"].items():
        (volume / "..2026" / name).write_text(text)
        (volume / name).symlink_to(f"..data/{name}")
    found = load({**environment, "RUNTIME_ROOT": str(tmp_path)}, 1)
    assert set(found.document.policy.ratelimit.domains) == {"shop"}

    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert found.document.settings.listen == (TcpAddress("0.0.0.0", ports["grpc"]),)
    assert found.document.settings.admin == TcpAddress("0.0.0.0", ports["debug"])
    assert found.reference.http == TcpAddress("0.0.0.0", ports["http"])
    assert found.reference.prometheus == (TcpAddress("0.0.0.0", ports["metrics"]), "/metrics")
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports.keys()
