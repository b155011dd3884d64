"""One document in envoyproxy/ratelimit's format: what its validation refuses is refused here, all at once.

A key of the format
that stands where it has no effect (such as `shadow_mode` below `rate_limit`) is loaded as there, with a warning. What
may stand where:

    root          domain, descriptors
    descriptor    key, value, descriptors, rate_limit, shadow_mode, quota_mode, share_threshold, detailed_metric,
                  value_to_metric, metadata
    rate_limit    unit, requests_per_unit, unlimited, name, replaces
    replaces[]    name
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sidecar.core.descriptor_tree import WILDCARD
from sidecar.core.descriptors import DescriptorRule, RateLimitRule, Unit
from sidecar.core.limits import REQUESTS_MAX
from sidecar.policy.faults import Fault, did_you_mean, shown
from sidecar.policy.go_yaml import INT64_MAX, resolved
from sidecar.policy.yaml import Mapping, PathParts, Sequence, Source

_ROOT_KEYS: Final = frozenset({"domain", "descriptors"})
_REPLACES_KEYS: Final = frozenset({"name"})
_RATE_LIMIT_KEYS: Final = frozenset({"unit", "requests_per_unit", "unlimited", "name", "replaces"})
_DESCRIPTOR_FLAGS: Final = ("shadow_mode", "quota_mode", "share_threshold", "detailed_metric", "value_to_metric")
_DESCRIPTOR_KEYS: Final = frozenset({"key", "value", "descriptors", "rate_limit", "metadata", *_DESCRIPTOR_FLAGS})

_PLACES: Final = (
    ("at the top of the file", _ROOT_KEYS),
    ("in a descriptor", _DESCRIPTOR_KEYS),
    ("in rate_limit", _RATE_LIMIT_KEYS),
    ("in an item of replaces", _REPLACES_KEYS),
)

KEYS: Final = frozenset().union(*(keys for _, keys in _PLACES))
"""All keys of the format."""

_TEXTUAL: Final = "text, in quotes where YAML would read something else"
_UNITS: Final = {unit.name.lower(): unit for unit in Unit}
_UNIT_NAMES: Final = ", ".join(sorted(_UNITS, key=lambda name: _UNITS[name].seconds))


@dataclass(slots=True)
class RateLimitDocument:
    """One file. Faults are collected, and what is wrong reads as if it were absent, so that all are found at once."""

    source: Source
    faults: list[Fault]
    warnings: list[Fault]

    def name(self) -> str:
        """The domain's name, "" where it is wrong."""
        root = self._mapping((), self.source.root, _ROOT_KEYS, "a mapping with domain and descriptors")
        if root is None:
            return ""
        return self._required(("domain",), root, "the domain must not be empty", "the name that requests carry")

    def descriptors(self, name: str, lines: dict[str, str]) -> tuple[DescriptorRule, ...]:
        """Its descriptors.

        Args:
            name: The domain's.
            lines: Where the domain has a descriptor already, in another document; is added to.
        """
        root = self.source.root
        if not isinstance(root, Mapping):
            return ()
        return self._descriptors(("descriptors",), root.get("descriptors"), name, lines)

    def _descriptors(
        self, path: PathParts, value: Any, parent: str, lines: dict[str, str]
    ) -> tuple[DescriptorRule, ...]:
        rules: list[DescriptorRule] = []
        for index, item in enumerate(self._sequence(path, value)):
            here = (*path, index)
            rule = self._descriptor(here, item, parent)
            if rule is None:
                continue
            if rule.composite in lines:
                message = f"duplicate descriptor composite key '{parent}.{rule.composite}'"
                first = lines[rule.composite].removeprefix(f"{self.source.file}:")
                place = f"line {first}" if first.isdecimal() else first
                accepted = f"each key and value once a level; the first is in {place}"
                self._fault(here, message, accepted)
            lines.setdefault(rule.composite, f"{self.source.file}:{self.source.line_of(here)}")
            rules.append(rule)
        return tuple(rules)

    def _descriptor(self, path: PathParts, value: Any, parent: str) -> DescriptorRule | None:
        written = self._mapping(path, value, _DESCRIPTOR_KEYS, "a mapping with key and more")
        if written is None:
            return None
        key = self._required((*path, "key"), written, "descriptor has empty key", "the key of a request's entry")
        text = self._text((*path, "value"), written)
        flags = {flag: self._flag((*path, flag), written) for flag in _DESCRIPTOR_FLAGS}
        if flags["share_threshold"] and WILDCARD not in key + text:
            message = "share_threshold needs a wildcard, and this value has none"
            self._fault((*path, "share_threshold"), message, f"a value with {WILDCARD}, or no share_threshold")
        composite = f"{key}_{text}" if text else key
        rate_limit = self._rate_limit((*path, "rate_limit"), written.get("rate_limit"))
        descriptors = self._descriptors((*path, "descriptors"), written.get("descriptors"), f"{parent}.{composite}", {})
        if not key:
            return None
        metadata = self._metadata((*path, "metadata"), written.get("metadata"))
        return DescriptorRule(
            key=key, value=text, rate_limit=rate_limit, descriptors=descriptors, metadata=metadata, **flags
        )

    def _rate_limit(self, path: PathParts, value: Any) -> RateLimitRule | None:
        if value is None:
            return None
        written = self._mapping(path, value, _RATE_LIMIT_KEYS, "a mapping with unit and requests_per_unit")
        if written is None:
            return None
        unlimited = self._flag((*path, "unlimited"), written)
        unit = self._unit((*path, "unit"), written, unlimited=unlimited)
        requests = self._requests((*path, "requests_per_unit"), written.get("requests_per_unit"))
        name = self._text((*path, "name"), written)
        replaces = self._replaces((*path, "replaces"), written.get("replaces"), name)
        if unit is None and not unlimited:
            return None
        return RateLimitRule(
            unit=unit, requests_per_unit=requests, unlimited=unlimited, name=name, replaces=tuple(replaces)
        )

    def _unit(self, path: PathParts, written: Mapping, *, unlimited: bool) -> Unit | None:
        text = self._text(path, written)
        unit = _UNITS.get(text.lower())
        if unlimited:
            if unit is not None:
                self._fault(path, "should not specify rate limit unit when unlimited", "either unit or unlimited")
            return None
        if unit is None and self._is_textual(written.get("unit")):
            self._fault(path, f"invalid rate limit unit '{text}'", _UNIT_NAMES)
        return unit

    def _requests(self, path: PathParts, written: Any) -> int:
        value = resolved(written)
        if value is None:
            return 0
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= REQUESTS_MAX:
            self._fault(path, f"{shown(value)} is not a number of requests", f"a whole number from 0 to {REQUESTS_MAX}")
            return 0
        return value

    def _replaces(self, path: PathParts, value: Any, own_name: str) -> list[str]:
        names: list[str] = []
        for index, item in enumerate(self._sequence(path, value)):
            here = (*path, index)
            written = self._mapping(here, item, _REPLACES_KEYS, "a mapping with name")
            if written is None:
                continue
            accepted = "the name of another rate limit"
            name = self._required((*here, "name"), written, "should not have an empty replaces entry", accepted)
            if name and name == own_name:
                self._fault((*here, "name"), "replaces should not contain name of same descriptor", accepted)
            names.append(name)
        return names

    def _metadata(self, path: PathParts, value: Any) -> dict[str, Any] | None:
        if value is None:
            return None
        if isinstance(value, Mapping):
            return dict(resolved(value))
        self._fault(path, f"{shown(resolved(value))} is not a mapping", "a mapping, whatever is in it")
        return None

    def _mapping(self, path: PathParts, value: Any, keys: frozenset[str], accepted: str) -> Mapping | None:
        if not isinstance(value, Mapping):
            if isinstance(path[-1] if path else None, int):
                self._fault(path, "the list contains something other than a mapping", accepted)
            else:
                self._fault(path, f"{shown(resolved(value))} is not a mapping", accepted)
            return None
        for key, inner in value.items():
            if key in KEYS - keys:
                places = " or ".join(place for place, theirs in _PLACES if key in theirs)
                warning = f"the key {key!r} has no effect here"
                self.warnings.append(self.source.fault((*path, key), warning, f"it stands {places}"))
                self._ignored((*path, key), inner)
            elif key not in keys:
                self._fault((*path, key), f"unknown key {shown(key)}", did_you_mean(key, keys, "keys"))
        return value

    def _ignored(self, path: PathParts, value: Any) -> None:
        """What has no effect must still be written in the format's keys and kinds of values."""
        if path[-1] == "metadata":
            return
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if key not in KEYS:
                    self._fault((*path, key), f"unknown key {shown(key)}", did_you_mean(key, KEYS, "keys"))
                else:
                    self._ignored((*path, key), inner)
        elif isinstance(value, Sequence):
            for index, item in enumerate(value):
                if isinstance(item, Mapping):
                    self._ignored((*path, index), item)
                else:
                    self._fault((*path, index), "the list contains something other than a mapping", "mappings")
        elif not self._is_textual(value):
            self._fault(
                path, f"{shown(resolved(value))} is not accepted anywhere", "text, a whole number, true or false"
            )

    def _sequence(self, path: PathParts, value: Any) -> Sequence:
        if isinstance(value, Sequence):
            return value
        if value is not None:
            self._fault(path, f"{shown(resolved(value))} is not a list", "a list of mappings")
        return Sequence(0)

    def _required(self, path: PathParts, written: Mapping, message: str, accepted: str) -> str:
        text = self._text(path, written)
        if not text and self._is_textual(written.get(str(path[-1]))):
            self._fault(path, message, accepted)
        return text

    def _text(self, path: PathParts, written: Mapping) -> str:
        """Text, also where YAML reads a plain number or boolean: as it is written; "" where it is absent or wrong."""
        value = written.get(str(path[-1]))
        if value is None:
            return ""
        if not self._is_textual(value):
            self._fault(path, f"{shown(resolved(value))} is not text", _TEXTUAL)
            return ""
        return str(value)

    @staticmethod
    def _is_textual(value: Any) -> bool:
        """Whether the reference takes it for text: anything that is single, but for fractions and huge numbers."""
        found = resolved(value)
        return found is None or isinstance(found, str) or (isinstance(found, int) and found <= INT64_MAX)

    def _flag(self, path: PathParts, written: Mapping) -> bool:
        value = resolved(written.get(str(path[-1])))
        if value is not None and not isinstance(value, bool):
            self._fault(path, f"{shown(value)} is not a boolean", "true or false, without quotes")
        return value is True

    def _fault(self, path: PathParts, message: str, accepted: str) -> None:
        self.faults.append(self.source.fault(path, message, accepted))
