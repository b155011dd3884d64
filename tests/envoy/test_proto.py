"""The wire contracts: generated modules are fresh, and agree with Envoy's complete API."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.envoy.pb import ratelimit_config_pb2

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "sidecar/envoy/pb"
SCRIPT = ROOT / "proto/generate.py"


def test_generated_modules_are_what_the_definitions_generate(tmp_path):
    """Generating again changes no byte of any checked-in module, and leaves none over."""
    subprocess.run([sys.executable, SCRIPT, tmp_path], check=True, timeout=60)
    fresh = {path.name: path.read_text() for path in (tmp_path / "sidecar/envoy/pb").iterdir()}
    checked_in = {path.name: path.read_text() for path in GENERATED.glob("*_pb2.py*")}
    assert sorted(fresh) == sorted(checked_in)
    for name, text in fresh.items():
        assert text == checked_in[name], f"{name} is stale: run `make proto`"


def test_generated_modules_do_not_ask_for_the_runtime_of_the_compiler_that_made_them():
    """The oldest protobuf of pyproject.toml can load them: no version of the compiler is left in."""
    for path in GENERATED.glob("*_pb2.py"):
        assert "ValidateProtobufRuntimeVersion" not in path.read_text()


COMPARE = ROOT / "tests/envoy/compare_wire_contracts.py"


@pytest.fixture(scope="module")
def comparison():
    """What compare_wire_contracts.py found, in a process of its own: one pool cannot hold two definitions of a name."""
    run = subprocess.run(
        [sys.executable, COMPARE], check=True, capture_output=True, text=True, timeout=120, cwd=ROOT, env={}
    )
    return json.loads(run.stdout)


def test_every_field_agrees_with_the_complete_api(comparison):
    """Each of our fields has the number, type, label, JSON name and oneof that Envoy's has; enums have its numbers."""
    assert comparison["messages"] >= 20
    assert comparison["differences"] == []


def test_only_known_fields_are_newer_than_the_complete_api(comparison):
    """A field that the reference package lacks is one of those that Envoy added after the package was made."""
    assert set(comparison["newer"]) <= {
        "envoy.extensions.common.ratelimit.v3.RateLimitDescriptor.is_negative_hits",
        "envoy.extensions.common.ratelimit.v3.RateLimitDescriptor.RateLimitOverride.unit_multiplier",
        "envoy.service.ratelimit.v3.RateLimitResponse.RateLimit.unit_multiplier",
    }


def test_services_and_methods_agree(comparison):
    """The paths under which Envoy calls, their message types, and which of them stream."""
    assert comparison["services"] == [
        "envoy.service.auth.v3.Authorization/Check",
        "envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
        "envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit",
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
    ]


def test_random_messages_survive_both_ways(comparison):
    """Messages filled at random are the same after a trip through the other definition's parser and serializer."""
    assert comparison["round_trips"] >= 1000
    assert comparison["round_trip_failures"] == []


def test_the_reference_configuration_has_its_numbers():
    """rls_conf.proto of envoyproxy/ratelimit f2fb157: field numbers and types, and units not in order of length."""
    fields = {
        message: {field.name: (field.number, field.type) for field in descriptor.fields}
        for message, descriptor in ratelimit_config_pb2.DESCRIPTOR.message_types_by_name.items()
    }
    text, flag, message, number, enum = 9, 8, 11, 13, 14
    assert fields == {
        "RateLimitConfig": {"name": (1, text), "domain": (2, text), "descriptors": (3, message)},
        "RateLimitDescriptor": {
            "key": (1, text),
            "value": (2, text),
            "rate_limit": (3, message),
            "descriptors": (4, message),
            "shadow_mode": (5, flag),
            "detailed_metric": (6, flag),
            "quota_mode": (7, flag),
            "metadata": (8, message),
        },
        "RateLimitPolicy": {
            "unit": (1, enum),
            "requests_per_unit": (2, number),
            "unlimited": (3, flag),
            "name": (4, text),
            "replaces": (5, message),
        },
        "RateLimitReplace": {"name": (1, text)},
    }
    names = ("UNKNOWN", "SECOND", "MINUTE", "HOUR", "DAY", "MONTH", "YEAR", "WEEK")
    assert dict(ratelimit_config_pb2.RateLimitUnit.items()) == {name: n for n, name in enumerate(names)}
