"""Rate limits from xDS resources: the same limits as from files, and the same faults, by resource."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from sidecar.core.descriptors import RateLimitConfig, RateLimitOptions
from sidecar.envoy.pb import ratelimit_config_pb2 as pb
from sidecar.policy.faults import PolicyError
from sidecar.policy.ratelimit_files import load_directory, load_sources
from sidecar.policy.ratelimit_resources import DEPTH_MAX, RESOURCES_MAX, TYPE_URL, read_resources
from sidecar.ratelimit.debug import rlconfig
from tests.support.ads_server import packed, resource

FILE = """
domain: shop
descriptors:
  - key: path
    value: /orders*
    shadow_mode: true
    metadata: {team: {name: orders, people: [a, b], on_call: true, size: 3}}
    rate_limit: {unit: week, requests_per_unit: 5, name: orders}
    descriptors:
      - key: user
        quota_mode: true
        detailed_metric: true
        rate_limit: {unit: minute, requests_per_unit: 100, replaces: [{name: orders}]}
      - {key: user, value: batch, rate_limit: {unlimited: true}}
  - {key: bare}
"""


def shop() -> pb.RateLimitConfig:
    """What `FILE` says, as a resource."""
    user = pb.RateLimitDescriptor(
        key="user",
        quota_mode=True,
        detailed_metric=True,
        rate_limit={"unit": "MINUTE", "requests_per_unit": 100, "replaces": [{"name": "orders"}]},
    )
    batch = pb.RateLimitDescriptor(key="user", value="batch", rate_limit={"unlimited": True})
    orders = pb.RateLimitDescriptor(
        key="path",
        value="/orders*",
        shadow_mode=True,
        rate_limit={"unit": "WEEK", "requests_per_unit": 5, "name": "orders"},
        descriptors=[user, batch],
    )
    orders.metadata.update({"team": {"name": "orders", "people": ["a", "b"], "on_call": True, "size": 3}})
    return pb.RateLimitConfig(name="s", domain="shop", descriptors=[orders, {"key": "bare"}])


def loaded(*resources: AnyMessage) -> RateLimitConfig:
    return load_sources(read_resources(resources), RateLimitOptions(), "xds")


def faults(*resources: AnyMessage) -> list[str]:
    with pytest.raises(PolicyError) as refused:
        loaded(*resources)
    return [str(fault) for fault in refused.value.faults]


def test_a_resource_means_what_a_file_means(tmp_path: Path) -> None:
    """Every key that resources have comes to the same limits, with the same modes, names, replacements and metadata."""
    (tmp_path / "shop.yaml").write_text(FILE)
    from_file, from_resource = load_directory(tmp_path), loaded(*packed([shop()]))
    assert rlconfig(from_resource) == rlconfig(from_file)
    for ours, theirs in zip(from_resource.domains["shop"].limits, from_file.domains["shop"].limits, strict=True):
        assert (ours.name, ours.replaces, ours.metadata) == (theirs.name, theirs.replaces, theirs.metadata)
        assert (ours.limit, ours.named_levels) == (theirs.limit, theirs.named_levels)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (pb.RateLimitConfig(name="a"), "xds resource 'a': domain: the domain must not be empty"),
        (
            pb.RateLimitConfig(name="a", domain="d", descriptors=[{"value": "v"}]),
            "xds resource 'a': descriptors[0].key: descriptor has empty key",
        ),
        (
            pb.RateLimitConfig(domain="d", descriptors=[{"key": "k", "rate_limit": {"requests_per_unit": 1}}]),
            "xds resource 0: descriptors[0].rate_limit.unit: invalid rate limit unit 'unknown'",
        ),
        (
            pb.RateLimitConfig(domain="d", descriptors=[{"key": "k", "rate_limit": {"unit": 9}}]),
            "xds resource 0: descriptors[0].rate_limit.unit: invalid rate limit unit '9'",
        ),
        (
            pb.RateLimitConfig(domain="d", descriptors=[{"key": "k"}, {"key": "k"}]),
            "xds resource 0: descriptors[1]: duplicate descriptor composite key 'd.k'",
        ),
    ],
    ids=["domain", "key", "unit-unset", "unit-unknown", "duplicate"],
)
def test_what_files_may_not_say_resources_may_not(config: pb.RateLimitConfig, message: str) -> None:
    """A fault names the resource and the field."""
    (fault,) = faults(*packed([config]))
    assert fault.startswith(message)


def test_what_is_no_resource_is_named_by_its_place() -> None:
    """Another type, bytes that cannot be parsed, and domains that meet: all at once where they are of one kind."""
    bad = AnyMessage(type_url=TYPE_URL, value=b"\xff\xff")
    other = AnyMessage(type_url="type.googleapis.com/x.Y")
    found = faults(resource(), bad, other)
    assert [fault.split(": ")[0] for fault in found] == ["xds resource 1", "xds resource 2"]
    assert "duplicate domain 'shop'" in " ".join(faults(resource("a"), resource("b")))


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_metadata_that_json_cannot_say_is_refused_like_any_fault(number: float) -> None:
    """Protobuf carries infinity and NaN, a document does not: the resource is refused, the stream goes on."""
    config = pb.RateLimitConfig(name="a", domain="d", descriptors=[{"key": "k"}])
    config.descriptors[0].metadata.update({"share": {"of": [number]}})
    (fault,) = faults(*packed([config]))
    assert fault.startswith("xds resource 'a': descriptors: a number in metadata is not finite")


def test_resources_and_levels_are_bounded() -> None:
    """As many as the bound are taken, one more is not."""
    assert len(loaded(*(resource(f"{n}", f"{n}") for n in range(RESOURCES_MAX))).domains) == RESOURCES_MAX
    assert faults(*(resource(f"{n}", f"{n}") for n in range(RESOURCES_MAX + 1))) == [
        f"xds: {RESOURCES_MAX + 1} resources; at most {RESOURCES_MAX}"
    ]

    def nested(levels: int) -> list[AnyMessage]:
        config = pb.RateLimitConfig(domain="d")
        below = config.descriptors
        for _ in range(levels):
            below = below.add(key="k").descriptors
        return packed([config])

    assert loaded(*nested(DEPTH_MAX)).domains
    assert "nested too deeply" in faults(*nested(DEPTH_MAX + 1))[0]
