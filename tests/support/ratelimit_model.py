"""A rate limit service in a page, written for the conformance kit alone, and ways to get it wrong.

It shares nothing with the product: a plain walk over the files' descriptors and a dictionary of counts. Each `Wrong` is
one mistake that such a service may make; the kit must notice it.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import ParseDict

from sidecar.conformance.judge import Answer, Fault
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitRequest, RateLimitResponse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sidecar.conformance.runner import Clock

UNITS = {"SECOND": 1, "MINUTE": 60, "HOUR": 3600, "DAY": 86400, "MONTH": 2592000, "YEAR": 31536000, "WEEK": 604800}
NUMBERS = {1: "SECOND", 2: "MINUTE", 3: "HOUR", 4: "DAY", 5: "MONTH", 6: "YEAR", 7: "WEEK"}
UNLIMITED = 2**32 - 1


class Time:
    """A clock that only moves when somebody waits."""

    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self._now_s = now_s

    def now_s(self) -> float:
        return self._now_s

    def sleep(self, seconds: float) -> None:
        self._now_s += seconds


@dataclass
class Found:
    """The limit of one descriptor of a request."""

    rate_limit: dict[str, Any]
    counter: tuple[object, ...]
    rule: dict[str, Any] = field(default_factory=dict)
    multiplier: int | None = None

    @property
    def unlimited(self) -> bool:
        return bool(self.rate_limit.get("unlimited"))

    @property
    def window_s(self) -> int:
        return UNITS[self.rate_limit["unit"].upper()] * (self.multiplier or 1)


class Model:
    """Answers as the kit expects, but for what is in `wrong` (see WRONG)."""

    def __init__(
        self,
        configurations: Iterable[Mapping[str, Any]],
        features: frozenset[str],
        clock: Clock,
        wrong: frozenset[str] = frozenset(),
    ) -> None:
        self.domains: dict[str, list[dict[str, Any]]] = {}
        for configuration in configurations:
            if configuration["domain"] not in self.domains or "first file" not in wrong:
                self.domains.setdefault(configuration["domain"], []).extend(configuration["descriptors"])
        self.features = features
        self.clock = clock
        self.wrong = wrong
        self.counts: dict[tuple[object, ...], int] = {}

    def ask(self, requests: list[RateLimitRequest]) -> list[Answer]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: RateLimitRequest) -> Answer:
        fault = self._fault(request)
        if fault is not None:
            return fault
        founds = [self._find(request.domain, descriptor) for descriptor in request.descriptors]
        self._replace(founds)
        answer = RateLimitResponse()
        for descriptor, found in zip(request.descriptors, founds, strict=True):
            self._status(request, descriptor, found, answer.statuses.add())
        self._overall(founds, answer)
        if "headers" in self.features:
            self._headers(founds, answer)
        if "dynamic_metadata" in self.features:
            self._metadata(request, founds, answer)
        if "statuses reversed" in self.wrong:
            statuses = list(answer.statuses)[::-1]
            del answer.statuses[:]
            answer.statuses.extend(statuses)
        return answer

    def _fault(self, request: RateLimitRequest) -> Answer | None:
        if not request.domain and "empty domain" not in self.wrong:
            return Fault("UNKNOWN", "rate limit domain must not be empty")
        if not request.descriptors and "no descriptors" not in self.wrong:
            return Fault("UNKNOWN", "rate limit descriptor list must not be empty")
        if any(d.HasField("limit") and d.limit.unit not in NUMBERS for d in request.descriptors):
            allowed = RateLimitResponse(overall_code=RateLimitResponse.OK)
            return allowed if "unknown unit" in self.wrong else Fault("INVALID_ARGUMENT", "unit")
        if "large hits fail" in self.wrong and any(d.hits_addend.value > UNLIMITED for d in request.descriptors):
            return Fault("INTERNAL", "hits")
        return None

    def _is_quota(self, found: Found | None) -> bool:
        if found is not None and found.unlimited and "unlimited quota" not in self.wrong:
            return False
        if "global_quota_mode" in self.features:
            return True
        return found is not None and bool(found.rule.get("quota_mode")) and "quota" not in self.wrong

    def _overall(self, founds: list[Found | None], answer: RateLimitResponse) -> None:
        codes = [status.code == RateLimitResponse.OVER_LIMIT for status in answer.statuses]
        quotas = [code for code, found in zip(codes, founds, strict=True) if self._is_quota(found)]
        others = [code for code, found in zip(codes, founds, strict=True) if not self._is_quota(found)]
        quota_denies = bool(quotas) and all(quotas)
        if "any quota" in self.wrong:
            quota_denies = any(quotas)
        if "quota never" in self.wrong:
            quota_denies = False
        if "quota of all" in self.wrong:
            quota_denies = bool(quotas) and all(codes)
        is_over = quota_denies or (any(others) and not (quotas and "quota lifts" in self.wrong))
        if "global_shadow_mode" in self.features and "global shadow" not in self.wrong:
            is_over = False
        answer.overall_code = RateLimitResponse.OVER_LIMIT if is_over else RateLimitResponse.OK

    def _find(self, domain: str, descriptor: Any) -> Found | None:
        level = self.domains.get(domain)
        if level is None and "domain by prefix" in self.wrong:
            level = next((d for known, d in self.domains.items() if domain.startswith(known)), None)
        if level is None:
            return None
        entries = [(entry.key, entry.value) for entry in descriptor.entries]
        if "order" in self.wrong:
            entries.sort()
        counter: list[object] = [() if "domains share" in self.wrong else domain]
        if descriptor.HasField("limit") and "no override" not in self.wrong:
            return self._overridden(descriptor.limit, level, (domain, *entries))
        rule = self._walk(level, entries, counter)
        if rule is None or "rate_limit" not in rule:
            return None
        if "keys only" in self.wrong:
            counter = [counter[0], *(key for key, _ in entries)]
        if "joined keys" in self.wrong:
            counter = ["_".join(f"{key}_{value}" for key, value in counter[1:])]  # type: ignore[misc]
        return Found(rule["rate_limit"], tuple(counter), rule)

    def _overridden(self, limit: Any, level: list[dict[str, Any]], counter: tuple[Any, ...]) -> Found:
        multiplier = None
        if limit.HasField("unit_multiplier") and "no multiplier" not in self.wrong:
            multiplier = limit.unit_multiplier.value
        rate_limit = {"unit": NUMBERS[limit.unit], "requests_per_unit": limit.requests_per_unit}
        rule = self._walk(level, list(counter[1:]), []) or {}
        if "override alone" in self.wrong:
            counter = (*counter, "override", limit.requests_per_unit)
        if "override keeps names" in self.wrong:
            written = rule.get("rate_limit", {})
            rate_limit |= {key: written[key] for key in ("name", "replaces") if key in written}
        return Found(rate_limit, counter, rule if "override keeps rule" in self.wrong else {}, multiplier)

    def _walk(
        self, level: list[dict[str, Any]], entries: list[tuple[str, str]], counter: list[object]
    ) -> dict[str, Any] | None:
        rule: dict[str, Any] | None = None
        for index, (key, value) in enumerate(entries):
            if not level and "deeper requests" in self.wrong:
                break
            following, pattern = self._match(level, key, value)
            if following is None:
                return None
            rule = following
            level = following.get("descriptors", [])
            shares = pattern and following.get("share_threshold", False) and "share" not in self.wrong
            if "share first only" in self.wrong and index > 1:
                shares = False
            shares = shares or bool(pattern and "always share" in self.wrong)
            counter.append((key, following["value"] if shares else value))
        if rule is not None and "rate_limit" not in rule and "shallower requests" in self.wrong:
            rule = next(iter(rule.get("descriptors", [])), rule)
        return rule

    def _match(self, level: list[dict[str, Any]], key: str, value: str) -> tuple[dict[str, Any] | None, bool]:
        wrong = self.wrong
        exact, patterns, bare = self._candidates(level, key, value)
        orders = {
            "bare first": [*bare, *exact, *patterns],
            "pattern first": [*patterns, *exact, *bare],
            "bare before pattern": [*exact, *bare, *patterns],
            "file order": sorted([*exact, *patterns, *bare], key=level.index),
        }
        order = next((orders[name] for name in orders if name in wrong), [*exact, *patterns, *bare])
        if "backtracking" in wrong:
            order.sort(key=lambda rule: "rate_limit" not in rule and "descriptors" not in rule)
        if "empty value" in wrong and not value:
            order = []
        chosen = order[0] if order else None
        return chosen, chosen is not None and "*" in chosen.get("value", "")

    def _candidates(self, level: list[dict[str, Any]], key: str, value: str) -> tuple[list[dict[str, Any]], ...]:
        wrong = self.wrong
        exact = [rule for rule in level if rule["key"] == key and rule.get("value") == value and value]
        patterns = [rule for rule in level if "*" in joined(rule) and self._fits(joined(rule), f"{key}_{value}")]
        bare = [rule for rule in level if not rule.get("value") and rule["key"] == key]
        if "value prefix" in wrong:
            exact = [rule for rule in level if rule["key"] == key and value.startswith(rule.get("value", "\0"))]
        if "joined config" in wrong:
            exact = exact or [rule for rule in level if joined(rule) == f"{key}_{value}"]
        if "star in value only" in wrong:
            patterns = [rule for rule in patterns if "*" not in rule["key"]]
        if "longest pattern" in wrong:
            patterns.sort(key=lambda rule: -len(joined(rule)))
        if "last pattern" in wrong:
            patterns.reverse()
        if "key prefix" in wrong:
            bare = [rule for rule in level if not rule.get("value") and key.startswith(rule["key"])]
        return exact, patterns, bare

    def _fits(self, pattern: str, text: str) -> bool:
        if "suffix only" in self.wrong:
            return pattern.endswith("*") and text.startswith(pattern[:-1])
        if "glob" in self.wrong:
            return fnmatch.fnmatchcase(text, pattern)
        if "one or more" in self.wrong:
            return re.fullmatch(".+".join(map(re.escape, pattern.split("*"))), text, re.DOTALL) is not None
        if "dot" in self.wrong:
            return re.match(".*".join(map(re.escape, pattern.split("*"))) + "$", text) is not None
        if "overlap" in self.wrong:
            parts = pattern.split("*")
            return text.startswith(parts[0]) and text.endswith(parts[-1]) and all(part in text for part in parts)
        return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text, re.DOTALL) is not None

    def _replace(self, founds: list[Found | None]) -> None:
        replaced = self._replaced_names(founds)
        if "no replaces" in self.wrong:
            return
        for index, found in enumerate(founds):
            if found is None or (found.unlimited and "unlimited is replaced" not in self.wrong):
                continue
            name = found.rate_limit.get("name", "")
            if name in replaced or (not name and replaced and "nameless are replaced" in self.wrong):
                if "replaced still counts" in self.wrong:
                    self._count(found, 1)
                founds[index] = None

    def _replaced_names(self, founds: list[Found | None]) -> set[str]:
        replaced: set[str] = set()
        for found in founds:
            if found is None:
                continue
            names = [each["name"] for each in found.rate_limit.get("replaces", [])]
            if found.unlimited and "unlimited replaces nothing" in self.wrong:
                names = []
            if found.rate_limit.get("name") in replaced and "replaced replaces nothing" in self.wrong:
                names = []
            replaced |= set(names[:1] if "replaces one" in self.wrong else names)
        if "replaces always" in self.wrong:
            replaced = {"general"}
        return replaced

    def _count(self, found: Found, hits: int) -> int:
        window_s = found.window_s
        now_s = self.clock.now_s() + (1234 if "unaligned" in self.wrong else 0)
        counter = (*found.counter, window_s, 0 if "window never ends" in self.wrong else now_s // window_s)
        if "windows share" in self.wrong:
            counter = found.counter
        before = self.counts.get(counter, 0)
        limit = found.rate_limit.get("requests_per_unit", 0)
        floor = -(10**9) if "mints credit" in self.wrong else 0
        used = max(floor, before + hits)
        if used <= limit or "denied not counted" not in self.wrong:
            self.counts[counter] = used
        if "32 bits" in self.wrong:
            return used % 2**32
        return used

    def _hits(self, request: RateLimitRequest, descriptor: Any) -> int:
        if descriptor.HasField("hits_addend") and "no descriptor hits" not in self.wrong:
            hits = descriptor.hits_addend.value
            hits = hits or (1 if "no peek" in self.wrong else 0)
        else:
            hits = request.hits_addend or (0 if "none by default" in self.wrong else 1)
            hits = 1 if "no request hits" in self.wrong else hits
        if "sum of hits" in self.wrong and descriptor.HasField("hits_addend"):
            hits += request.hits_addend
        if descriptor.is_negative_hits and "no negative" not in self.wrong:
            return -hits
        return hits

    def _status(self, request: RateLimitRequest, descriptor: Any, found: Found | None, status: Any) -> None:
        wrong = self.wrong
        status.code = RateLimitResponse.OK
        if found is None or found.unlimited:
            if found is None and "no match is over" in wrong:
                status.code = RateLimitResponse.OVER_LIMIT
            if descriptor.is_negative_hits and "refund needs a limit" in wrong:
                status.code = RateLimitResponse.OVER_LIMIT
            remains = "no match remains" in wrong if found is None else "unlimited remaining" not in wrong
            status.limit_remaining = UNLIMITED if remains else 0
            return
        hits = self._hits(request, descriptor)
        used = self._count(found, hits)
        limit = found.rate_limit.get("requests_per_unit", 0)
        if limit == 0 and "zero is unlimited" in wrong:
            status.limit_remaining = UNLIMITED
            return
        over = used >= limit if "at the limit" in wrong or ("peek wants room" in wrong and hits == 0) else used > limit
        if self._enforced(found) and over and hits >= 0:
            status.code = RateLimitResponse.OVER_LIMIT
        if not over or hits < 0:
            status.limit_remaining = limit - min(used, limit) + ("off by one" in wrong)
        self._applied(found, status)

    def _enforced(self, found: Found) -> bool:
        if "shadow" in self.wrong:
            return True
        return "shadow_mode" not in found.rule if "any shadow" in self.wrong else not found.rule.get("shadow_mode")

    def _applied(self, found: Found, status: Any) -> None:
        current = status.current_limit
        current.requests_per_unit = found.rate_limit.get("requests_per_unit", 0)
        current.unit = found.rate_limit["unit"].upper()
        if "no name" not in self.wrong:
            current.name = found.rate_limit.get("name", "")
        if found.multiplier is not None:
            current.unit_multiplier.value = found.multiplier
        if "no reset" not in self.wrong:
            now_s = int(self.clock.now_s()) + (1234 if "unaligned" in self.wrong else 0)
            status.duration_until_reset.seconds = found.window_s - now_s % found.window_s
        if "reset too long" in self.wrong:
            status.duration_until_reset.seconds = found.window_s + 1

    def _headers(self, founds: list[Found | None], answer: RateLimitResponse) -> None:
        pairs = list(zip(answer.statuses, founds, strict=True))
        limited = [status for status, _ in pairs if status.HasField("current_limit")]
        if "no headers" in self.wrong or not limited:
            return
        if "last of equals" in self.wrong:
            limited.reverse()
        deniers = [
            status
            for status, found in pairs
            if status.code == RateLimitResponse.OVER_LIMIT
            and ("quota denies" in self.wrong or not self._is_quota(found))
        ]
        if "denier not first" in self.wrong:
            deniers = []
        chosen = limited[0] if "first status" in self.wrong else min(limited, key=lambda s: s.limit_remaining)
        if deniers:
            chosen = deniers[0 if "first denier" in self.wrong else -1]
        answer.response_headers_to_add.add(key="RateLimit-Limit", value=str(chosen.current_limit.requests_per_unit))
        answer.response_headers_to_add.add(key="RateLimit-Remaining", value=str(chosen.limit_remaining))
        reset_s = chosen.duration_until_reset.seconds
        answer.response_headers_to_add.add(key="RateLimit-Reset", value=f"{reset_s}{';w=1' * ('policy' in self.wrong)}")

    def _metadata(self, request: RateLimitRequest, founds: list[Found | None], answer: RateLimitResponse) -> None:
        if "no metadata" in self.wrong:
            return
        told: dict[str, Any] = {"domain": request.domain, "descriptors": []}
        if request.hits_addend:
            told["hitsAddend"] = request.hits_addend
        for descriptor in request.descriptors:
            described: dict[str, Any] = {"entries": [f"{entry.key}={entry.value}" for entry in descriptor.entries]}
            if descriptor.HasField("limit"):
                described["limit"] = "a limit"
            if descriptor.HasField("hits_addend"):
                described["hitsAddend"] = descriptor.hits_addend.value
            told["descriptors"].append(described)
        merged: dict[str, Any] = {}
        for found, status in zip(founds, answer.statuses, strict=True):
            if found is None or found.unlimited or (status.code != RateLimitResponse.OK and "of all" not in self.wrong):
                continue
            named_by_value = found.rule.get("detailed_metric") or found.rule.get("value_to_metric")
            if not (named_by_value and "metadata lost" in self.wrong):
                metadata = found.rule.get("metadata", {})
                merge(merged, metadata, leaks="metadata leaks" in self.wrong, last="last writer" in self.wrong)
        if merged:
            told["metadata"] = merged
        ParseDict(told, answer.dynamic_metadata)


def joined(rule: dict[str, Any]) -> str:
    return f"{rule['key']}_{rule['value']}" if rule.get("value") else rule["key"]


def merge(into: dict[str, Any], other: dict[str, Any], *, leaks: bool, last: bool) -> None:
    for key, value in other.items():
        if key not in into:
            into[key] = value if leaks or not isinstance(value, dict) else {}
        if isinstance(into[key], dict) and isinstance(value, dict) and into[key] is not value:
            merge(into[key], value, leaks=leaks, last=last)
        elif last:
            into[key] = value


WRONG = {
    # mistake: the families that must notice it
    "bare first": {"matching"},
    "pattern first": {"matching"},
    "bare before pattern": {"matching"},
    "file order": {"matching"},
    "backtracking": {"matching"},
    "key prefix": {"matching"},
    "order": {"matching"},
    "deeper requests": {"matching"},
    "shallower requests": {"matching"},
    "empty value": {"matching"},
    "keys only": {"matching", "counting"},
    "longest pattern": {"wildcards"},
    "last pattern": {"wildcards"},
    "suffix only": {"wildcards"},
    "glob": {"wildcards"},
    "one or more": {"wildcards"},
    "dot": {"wildcards"},
    "overlap": {"wildcards"},
    "share": {"share_threshold"},
    "share first only": {"share_threshold"},
    "always share": {"share_threshold", "wildcards"},
    "unlimited remaining": {"unlimited"},
    "no replaces": {"replaces"},
    "replaces one": {"replaces"},
    "replaced still counts": {"replaces"},
    "replaced replaces nothing": {"replaces"},
    "unlimited replaces nothing": {"replaces"},
    "unlimited is replaced": {"replaces"},
    "shadow": {"shadow_mode"},
    "global shadow": {"shadow_mode"},
    "quota": {"quota_mode"},
    "any quota": {"quota_mode"},
    "no override": {"overrides"},
    "override keeps rule": {"overrides"},
    "override keeps names": {"overrides"},
    "no multiplier": {"overrides"},
    "unknown unit": {"overrides"},
    "windows share": {"overrides", "units"},
    "no request hits": {"hits"},
    "no descriptor hits": {"hits"},
    "sum of hits": {"hits"},
    "no peek": {"hits"},
    "peek wants room": {"hits"},
    "at the limit": {"hits", "counting"},
    "denied not counted": {"hits"},
    "32 bits": {"hits"},
    "no negative": {"negative_hits"},
    "mints credit": {"negative_hits"},
    "window never ends": {"units"},
    "unaligned": {"units"},
    "reset too long": {"units"},
    "no reset": {"units", "answers"},
    "statuses reversed": {"answers"},
    "no name": {"answers"},
    "no match is over": {"answers"},
    "no match remains": {"answers"},
    "zero is unlimited": {"answers"},
    "domain by prefix": {"answers"},
    "off by one": {"counting"},
    "domains share": {"counting"},
    "empty domain": {"errors"},
    "no descriptors": {"errors"},
    "joined keys": {"keys"},
    "joined config": {"keys"},
    "no headers": {"headers"},
    "policy": {"headers"},
    "first status": {"headers"},
    "last of equals": {"headers"},
    "denier not first": {"headers"},
    "first denier": {"headers"},
    "quota denies": {"headers"},
    "no metadata": {"dynamic_metadata"},
    "metadata lost": {"dynamic_metadata"},
    "metadata leaks": {"dynamic_metadata"},
    "last writer": {"dynamic_metadata"},
    "of all": {"dynamic_metadata"},
    "value prefix": {"matching"},
    "star in value only": {"wildcards"},
    "first file": {"merged_domains"},
    "large hits fail": {"hits"},
    "none by default": {"hits", "negative_hits"},
    "refund needs a limit": {"negative_hits"},
    "quota never": {"quota_mode"},
    "quota lifts": {"quota_mode"},
    "quota of all": {"quota_mode"},
    "unlimited quota": {"quota_mode"},
    "replaces always": {"replaces"},
    "nameless are replaced": {"replaces"},
    "any shadow": {"shadow_mode"},
    "override alone": {"overrides"},
}
