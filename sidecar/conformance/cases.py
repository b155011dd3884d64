"""The kit's cases: YAML as written in `ratelimit/*.yaml` to values; docs/conformance.md describes the notation.

A case is a configuration in the format of envoyproxy/ratelimit, requests in order, and what each must be answered. It
has a domain of its own, so that the configurations of all cases can be loaded at once. Its counters are fresh in each
run: the configuration stands below a descriptor `run` without a value, and each request's descriptors begin with an
entry `run` whose value is new.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from sidecar.core.descriptors import Unit

KIT_DIRECTORY: Final = Path(__file__).with_name("ratelimit")

RUN_KEY: Final = "run"
RUN: Final = "{run}"
"""In a value: what is new in each run."""
DOMAIN: Final = "{domain}"
"""In expected metadata: the case's domain."""

FEATURES: Final = {
    "headers": "response headers with the default names are on (LIMIT_RESPONSE_HEADERS_ENABLED)",
    "dynamic_metadata": "dynamic metadata is on (RESPONSE_DYNAMIC_METADATA)",
    "negative_hits": "is_negative_hits gives hits back",
    "unit_multiplier": "limits in requests may have a unit_multiplier",
    "merged_domains": "several files may configure one domain (MERGE_DOMAIN_CONFIG)",
    "global_shadow_mode": "the whole server only pretends (SHADOW_MODE)",
    "global_quota_mode": "all limits are in quota mode (QUOTA_MODE)",
    "refuses_unknown_unit": "a limit in a request without a known unit is an error; it stops envoyproxy/ratelimit",
    "injective_keys": "counters and descriptors do not collide through `_`, and windows of different units never; in "
    "envoyproxy/ratelimit they do",
    "metadata_of_all": "metadata survives detailed_metric and value_to_metric, and no request changes what another one "
    "is told; in envoyproxy/ratelimit neither holds",
}
"""What a target may have besides what every rate limit service must do."""

MODES: Final = frozenset({"global_shadow_mode", "global_quota_mode"})
"""Features that change all answers: a target in such a mode is asked only the cases that are about it."""

_LIMIT = re.compile(r"(?P<requests>\d+)/(?:(?P<multiplier>\d+) )?(?P<unit>[a-z]+)")
_STATUS = re.compile(
    rf"(?P<code>OK|OVER_LIMIT) (?:(?P<remaining>\d+) of {_LIMIT.pattern}(?: named (?P<name>.+))?"
    r"|(?P<unlimited>unlimited)|no limit)"
)
_UNLIMITED_REMAINING: Final = 2**32 - 1


class KitError(Exception):
    """A case is not written as it must be; the text says which, and what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedLimit:
    """What `current_limit` must be."""

    requests: int
    unit: Unit
    name: str = ""
    multiplier: int | None = None

    @property
    def window_s(self) -> int:
        """The window's length."""
        return self.unit.seconds * (self.multiplier or 1)


@dataclass(frozen=True, slots=True)
class ExpectedStatus:
    """One of `statuses`; without a limit there must be no `current_limit` and no `duration_until_reset`."""

    code: str
    remaining: int
    limit: ExpectedLimit | None


@dataclass(frozen=True, slots=True)
class ExpectedHeaders:
    """`response_headers_to_add`; the reset is checked to lie within the window of this limit."""

    limit: int
    remaining: int
    window_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What an answer must be.

    Attributes:
        error: The call must fail, and its text have this in it. None: it must not.
        aligned: Resets must be those of windows that begin at multiples of their length since 1970.
        headers: None: not looked at.
        metadata: None: not looked at.
        passes: Of calls made at once: as many are OK; the statuses are not looked at.
    """

    overall: str = "OK"
    statuses: tuple[ExpectedStatus, ...] = ()
    error: str | None = None
    aligned: bool = False
    headers: ExpectedHeaders | None = None
    metadata: Mapping[str, Any] | None = None
    passes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedDescriptor:
    """One descriptor of a request."""

    entries: tuple[tuple[str, str], ...]
    limit: tuple[int, int, int | None] | None = None
    """Requests, the unit's number, units per window."""
    hits_addend: int | None = None
    is_negative_hits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One request, and what must be answered.

    Attributes:
        domain: Instead of the case's.
        callers: As many calls at once.
        after_reset: Waits until the windows of the previous answer have ended.
    """

    descriptors: tuple[AskedDescriptor, ...]
    expected: Expected
    hits_addend: int = 0
    domain: str | None = None
    callers: int = 1
    after_reset: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One behaviour.

    Attributes:
        proves: The behaviour, in a sentence.
        rests_on: Where it is written, or in which function of envoyproxy/ratelimit.
        requires: Features without which a target cannot be asked.
        configurations: Files' contents, each with its domain.
        at_top: The configuration is loaded as written, without the descriptor `run`.
    """

    family: str
    name: str
    proves: str
    rests_on: str
    requires: frozenset[str]
    configurations: tuple[Mapping[str, Any], ...]
    at_top: bool
    steps: tuple[Step, ...] = field(repr=False)

    @property
    def title(self) -> str:
        """`family/name`."""
        return f"{self.family}/{self.name}"

    @property
    def domain(self) -> str:
        """Its own."""
        return domain_of(self.family, self.name)

    def runs_with(self, features: frozenset[str]) -> bool:
        """Whether a target with these features can be asked."""
        return self.requires <= features and features & MODES <= self.requires

    def windows_s(self) -> frozenset[int]:
        """Lengths of the windows that its answers are about."""
        limits = (status.limit for step in self.steps for status in step.expected.statuses)
        return frozenset(limit.window_s for limit in limits if limit is not None)


def domain_of(family: str, name: str) -> str:
    """The domain of a case."""
    return f"conformance.{family}.{name}"


def load_kit(directory: Path = KIT_DIRECTORY) -> tuple[Case, ...]:
    """All cases, in the files' order.

    Raises:
        KitError: A file is not a list of cases, a case is not written as it must be, or two have the same name.
        OSError: A file cannot be read.
    """
    cases = tuple(case for path in sorted(directory.glob("*.yaml")) for case in _family(path))
    titles = [case.title for case in cases]
    for title in titles:
        if titles.count(title) > 1:
            raise KitError(f"{title}: there are two cases of this name")
    if not cases:
        raise KitError(f"{directory}: there is no case")
    return cases


def _family(path: Path) -> Iterator[Case]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        _only(document, {"family", "about", "cases"}, path.name)
        for written in document["cases"]:
            try:
                yield _case(document["family"], written)
            except (KeyError, ValueError, TypeError, AttributeError) as fault:
                raise KitError(f"{path.name}: {written.get('name', written)}: {fault!r}") from fault
    except (yaml.YAMLError, KeyError, ValueError, TypeError, AttributeError) as fault:
        raise KitError(f"{path.name}: {fault!r}") from fault


def _only(written: Mapping[str, Any], keys: set[str], where: str) -> None:
    unknown = set(written) - keys
    if unknown:
        raise ValueError(f"{where} has {', '.join(sorted(unknown))}; {', '.join(sorted(keys))} are accepted")


def _case(family: str, written: Mapping[str, Any]) -> Case:
    _only(written, {"name", "proves", "rests_on", "requires", "at_top", "config", "configs", "steps"}, "a case")
    requires = frozenset(written.get("requires", ()))
    if unknown := requires - set(FEATURES):
        raise ValueError(f"requires {', '.join(sorted(unknown))}; there are {', '.join(FEATURES)}")
    at_top = written.get("at_top", False)
    files = written["configs"] if "configs" in written else [written["config"]]
    domain = domain_of(family, written["name"])
    return Case(
        family=family,
        name=written["name"],
        proves=written["proves"],
        rests_on=written["rests_on"],
        requires=requires,
        configurations=tuple(_configuration(domain, descriptors, at_top) for descriptors in files),
        at_top=at_top,
        steps=tuple(_step(step) for step in written["steps"]),
    )


def _configuration(domain: str, descriptors: Sequence[Any], at_top: bool) -> Mapping[str, Any]:
    whole = descriptors if at_top else [{"key": RUN_KEY, "descriptors": descriptors}]
    return {"domain": domain, "descriptors": whole}


def _step(written: Mapping[str, Any]) -> Step:
    _only(written, {"ask", "hits_addend", "domain", "callers", "after_reset", "expect"}, "a step")
    return Step(
        descriptors=tuple(_descriptor(descriptor) for descriptor in written["ask"]),
        expected=_expected(written["expect"]),
        hits_addend=written.get("hits_addend", 0),
        domain=written.get("domain"),
        callers=written.get("callers", 1),
        after_reset=written.get("after_reset", False),
    )


def _descriptor(written: Sequence[str] | Mapping[str, Any]) -> AskedDescriptor:
    if not isinstance(written, Mapping):
        return AskedDescriptor(entries=_entries(written))
    _only(written, {"entries", "limit", "hits_addend", "is_negative_hits"}, "a descriptor")
    return AskedDescriptor(
        entries=_entries(written["entries"]),
        limit=_asked_limit(written["limit"]) if "limit" in written else None,
        hits_addend=written.get("hits_addend"),
        is_negative_hits=written.get("is_negative_hits", False),
    )


def _entries(written: Sequence[str]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for entry in written:
        key, equals, value = entry.partition("=")
        if not equals:
            raise ValueError(f"{entry!r} is not an entry; key=value is")
        pairs.append((key, value))
    return tuple(pairs)


def _asked_limit(written: str | Mapping[str, int]) -> tuple[int, int, int | None]:
    """`3/minute`, `3/2 minute`, or numbers as on the wire."""
    if isinstance(written, Mapping):
        return written["requests_per_unit"], written["unit"], None
    limit = _limit(_matched(_LIMIT, written, "a limit"))
    return limit.requests, limit.unit.value, limit.multiplier


def _limit(found: re.Match[str]) -> ExpectedLimit:
    multiplier = found["multiplier"]
    return ExpectedLimit(
        requests=int(found["requests"]),
        unit=Unit[found["unit"].upper()],
        name=found.groupdict().get("name") or "",
        multiplier=int(multiplier) if multiplier else None,
    )


def _matched(pattern: re.Pattern[str], text: str, what: str) -> re.Match[str]:
    found = pattern.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not {what}")
    return found


def _status(text: str) -> ExpectedStatus:
    found = _matched(_STATUS, text, "a status")
    if found["remaining"] is None:
        return ExpectedStatus(found["code"], _UNLIMITED_REMAINING if found["unlimited"] else 0, None)
    return ExpectedStatus(found["code"], int(found["remaining"]), _limit(found))


def _expected(written: Sequence[str] | Mapping[str, Any]) -> Expected:
    if not isinstance(written, Mapping):
        written = {"statuses": written}
    _only(written, {"overall", "statuses", "error", "aligned", "headers", "metadata", "passes"}, "what is expected")
    statuses = tuple(_status(status) for status in written.get("statuses", ()))
    over = any(status.code == "OVER_LIMIT" for status in statuses)
    headers = None
    if "headers" in written:
        chosen = _status(written["headers"])
        if chosen.limit is None:
            raise ValueError("headers are those of a limit")
        headers = ExpectedHeaders(chosen.limit.requests, chosen.remaining, chosen.limit.window_s)
    return Expected(
        overall=written.get("overall", "OVER_LIMIT" if over else "OK"),
        statuses=statuses,
        error=written.get("error"),
        aligned=written.get("aligned", False),
        headers=headers,
        metadata=written.get("metadata"),
        passes=written.get("passes"),
    )
