"""The product passes its own kit: processes as they are deployed, counted by a real Valkey."""

from __future__ import annotations

import sys
import urllib.request
from pathlib import Path

import pytest
import yaml

from sidecar.conformance.cases import FEATURES, MODES, load_kit
from sidecar.conformance.command import write_configurations
from sidecar.conformance.grpc_target import GrpcTarget
from sidecar.conformance.runner import Runner, SystemClock
from sidecar.demo.processes import Child, free_port
from tests.conformance import beside
from tests.support.ratelimit_model import Model
from tests.support.ratelimit_process import RateLimitProcess
from tests.support.valkey import ValkeyProcess

KIT = load_kit()
SETTINGS = {
    "merged_domains": {"merge_domains": True},
    "headers": {"response_headers": True},
    "dynamic_metadata": {"response_dynamic_metadata": True},
    "global_shadow_mode": {"shadow_mode": True},
    "global_quota_mode": {"quota_mode": True},
}
"""What the policy says so that the service has a feature; it has the others without being told."""

VARIABLES = {
    "merged_domains": "MERGE_DOMAIN_CONFIG",
    "headers": "LIMIT_RESPONSE_HEADERS_ENABLED",
    "dynamic_metadata": "RESPONSE_DYNAMIC_METADATA",
    "global_shadow_mode": "SHADOW_MODE",
    "global_quota_mode": "QUOTA_MODE",
}
"""The same for the service that starts from environment variables."""

ALL = frozenset(FEATURES) - MODES
SERVERS = pytest.mark.parametrize(
    "features", [ALL, *(frozenset({mode}) for mode in sorted(MODES))], ids=["all", *sorted(MODES)]
)


@pytest.fixture(scope="module")
def valkey(tmp_path_factory):
    process = ValkeyProcess(tmp_path_factory.mktemp("valkey"))
    process.start()
    yield process
    process.stop()


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=1) as reply:
            return reply.status == 200
    except OSError:
        return False


def serve(directory: Path, valkey: ValkeyProcess, features: frozenset[str]) -> tuple[Child, str]:
    """`sidecar serve` with the kit's configurations."""
    write_configurations([case for case in KIT if case.runs_with(features)], directory / "limits")
    ratelimit = {"directory": str(directory / "limits")}
    for feature in features & SETTINGS.keys():
        ratelimit |= SETTINGS[feature]
    port, admin = free_port(), free_port()
    policy = {
        "server": {"listen": f"127.0.0.1:{port}", "check_timeout": "5s"},
        "admin": {"listen": f"127.0.0.1:{admin}"},
        "redis": {"url": valkey.url, "timeout": "3s"},
        "ratelimit": ratelimit,
        "audit": {"destination": "none"},
    }
    (directory / "policy.yaml").write_text(yaml.safe_dump(policy))
    command = [sys.executable, "-m", "sidecar", "serve", "--config", directory / "policy.yaml"]
    child = Child("sidecar", command, directory / "sidecar.log")
    child.wait_ready(lambda: answers(f"http://127.0.0.1:{admin}/readyz"))
    return child, f"127.0.0.1:{port}"


def conforms(address: str, features: frozenset[str]) -> None:
    """Every case that a service with these features can be asked passes."""
    with GrpcTarget(address) as target:
        results = [result for result in Runner(target, features).run(KIT) if result.outcome != "skipped"]
    assert [(result.case.title, result.differences) for result in results if result.differences] == []
    assert len(results) == sum(case.runs_with(features) for case in KIT) > 0


@SERVERS
def test_sidecar_serve_conforms(tmp_path, valkey, features):
    """With a policy file."""
    child, address = serve(tmp_path, valkey, features)
    try:
        conforms(address, features)
    finally:
        child.stop()


def test_random_configurations_are_served_as_the_model_answers_them(tmp_path, valkey):
    """Statuses, headers and metadata are those of a service that shares no code with ours."""
    domains = 40
    beside.write(tmp_path / "limits", domains)
    model = Model(map(beside.configuration, range(domains)), ALL, SystemClock())
    child, address = serve(tmp_path, valkey, ALL)
    try:
        with GrpcTarget(address) as target:
            assert beside.differences(model, target, seed=1, domains=domains, requests=40) == []
    finally:
        child.stop()


@pytest.mark.parametrize("mistake", ["longest pattern", "share", "no replaces", "any quota", "denied not counted"])
def test_random_configurations_find_mistakes(mistake):
    """What differs in one of them is found."""
    configurations = list(map(beside.configuration, range(40)))
    right, wrong = (Model(configurations, ALL, SystemClock(), frozenset(given)) for given in ([], [mistake]))
    assert beside.differences(right, wrong, seed=1, domains=40, requests=40) != []


@SERVERS
def test_sidecar_ratelimit_conforms(tmp_path, valkey, features):
    """From the reference's variables alone, with its cache of denials."""
    variables = {variable: "true" for feature, variable in VARIABLES.items() if feature in features}
    process = RateLimitProcess(
        tmp_path, REDIS_URL=f"127.0.0.1:{valkey.port}", LOCAL_CACHE_SIZE_IN_BYTES="1000000", **variables
    )
    write_configurations([case for case in KIT if case.runs_with(features)], process.files)
    process.start()
    try:
        conforms(f"127.0.0.1:{process.grpc}", features)
    finally:
        process.stop()
