"""The rate limit service's configuration as an xDS server sends it, turned into what its files are read as.

A resource becomes a document with the keys of a file, so that one validation holds for both. Two keys are not in
resources: `share_threshold` and `value_to_metric`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError

from sidecar.envoy.pb.ratelimit_config_pb2 import RateLimitConfig, RateLimitUnit
from sidecar.policy.faults import Fault, PolicyError, shown
from sidecar.policy.yaml import Mapping, Sequence, Source

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as AnyMessage

    from sidecar.envoy.pb.ratelimit_config_pb2 import RateLimitDescriptor, RateLimitPolicy

TYPE_URL: Final = "type.googleapis.com/ratelimit.config.ratelimit.v3.RateLimitConfig"

RESOURCES_MAX: Final = 1024
"""Domains, as many as files."""

DEPTH_MAX: Final = 30
"""Levels of descriptors, as in files."""

_DESCRIPTOR_TEXTS: Final = ("key", "value")
_DESCRIPTOR_FLAGS: Final = ("shadow_mode", "detailed_metric", "quota_mode")


def read_resources(resources: Iterable[AnyMessage]) -> tuple[Source, ...]:
    """Documents for `load_sources`; faults in them will name the resource.

    Raises:
        PolicyError: A resource is of another type or cannot be parsed, is nested too deeply, has a number in its
            metadata that is not finite, or there are too many.
    """
    listed = list(resources)
    if len(listed) > RESOURCES_MAX:
        raise PolicyError([Fault("xds", 0, "", f"{len(listed)} resources", f"at most {RESOURCES_MAX}")])
    faults: list[Fault] = []
    sources: list[Source] = []
    for number, resource in enumerate(listed):
        place = f"xds resource {number}"
        if resource.type_url != TYPE_URL:
            faults.append(Fault(place, 0, "", f"its type is {shown(resource.type_url)}", TYPE_URL))
            continue
        try:
            config = RateLimitConfig.FromString(resource.value)
        except (DecodeError, ValueError):  # a UnicodeDecodeError, where protobuf runs without its C part
            faults.append(Fault(place, 0, "", "it cannot be parsed", "a RateLimitConfig"))
            continue
        if _depth(config.descriptors) > DEPTH_MAX:
            faults.append(Fault(place, 0, "descriptors", "nested too deeply", f"at most {DEPTH_MAX} levels"))
            continue
        place = f"xds resource {shown(config.name)}" if config.name else place
        try:
            root = _mapping(domain=config.domain, descriptors=_descriptors(config.descriptors))
        except ValueError:  # of MessageToDict, the only thing that metadata can hold and JSON cannot say
            faults.append(Fault(place, 0, "descriptors", "a number in metadata is not finite", "numbers that JSON has"))
            continue
        sources.append(Source(place, root))
    if faults:
        raise PolicyError(faults)
    return tuple(sources)


def _depth(descriptors: Iterable[RateLimitDescriptor]) -> int:
    return max((1 + _depth(descriptor.descriptors) for descriptor in descriptors), default=0)


def _descriptors(descriptors: Iterable[RateLimitDescriptor]) -> Sequence:
    return _sequence(map(_descriptor, descriptors))


def _descriptor(descriptor: RateLimitDescriptor) -> Mapping:
    written: dict[str, Any] = {name: getattr(descriptor, name) for name in _DESCRIPTOR_TEXTS}
    written |= {name: True for name in _DESCRIPTOR_FLAGS if getattr(descriptor, name)}
    if descriptor.HasField("rate_limit"):
        written["rate_limit"] = _rate_limit(descriptor.rate_limit)
    if descriptor.descriptors:
        written["descriptors"] = _descriptors(descriptor.descriptors)
    if descriptor.HasField("metadata"):
        written["metadata"] = _known(MessageToDict(descriptor.metadata))
    return _mapping(**written)


def _rate_limit(policy: RateLimitPolicy) -> Mapping:
    written: dict[str, Any] = {"requests_per_unit": policy.requests_per_unit, "name": policy.name}
    if policy.unlimited:
        written["unlimited"] = True
    if policy.unit or not policy.unlimited:
        known = policy.unit in RateLimitUnit.values()
        written["unit"] = RateLimitUnit.Name(policy.unit).lower() if known else str(int(policy.unit))
    written["replaces"] = _sequence(_mapping(name=replaced.name) for replaced in policy.replaces)
    return _mapping(**written)


def _known(value: Any) -> Any:
    """A value out of JSON, as a document has it."""
    match value:
        case dict():
            return _mapping(**{key: _known(inner) for key, inner in value.items()})
        case list():
            return _sequence(map(_known, value))
        case _:
            return value


def _mapping(**items: Any) -> Mapping:
    mapping = Mapping(0)
    mapping.update(items)
    mapping.key_lines = dict.fromkeys(items, 0)
    return mapping


def _sequence(items: Iterable[Any]) -> Sequence:
    sequence = Sequence(0)
    sequence.extend(items)
    sequence.item_lines = [0] * len(sequence)
    return sequence
