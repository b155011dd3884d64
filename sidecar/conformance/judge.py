"""Compares an answer with what a case expects, and says precisely what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from google.protobuf.json_format import MessageToDict

from sidecar.conformance.cases import DOMAIN, RUN, Expected, ExpectedHeaders, ExpectedLimit, ExpectedStatus
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitResponse

CLOCKS_DIFFER_S_MAX: Final = 2.0
"""How far the target's clock and ours may be apart where resets are compared with ours."""

HEADER_NAMES: Final = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")

METADATA_KEYS: Final = frozenset({"domain", "descriptors", "hitsAddend", "metadata"})
"""What is looked at; a server may tell more."""

ANYTHING: Final = "{anything}"
"""In expected metadata: any value."""

_ABSENT: Final = "nothing"


@dataclass(frozen=True, slots=True)
class Fault:
    """A call that failed: the gRPC status's name, and its text."""

    code: str
    details: str

    def __str__(self) -> str:
        return f"{self.code} {self.details!r}"


Answer: TypeAlias = RateLimitResponse | Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the answer's text may refer to, and the target's features."""

    domain: str
    run: str
    now_s: float
    features: frozenset[str]

    def filled(self, text: str) -> str:
        """The text with its placeholders replaced."""
        return text.replace(RUN, self.run).replace(DOMAIN, self.domain)


def differences(expected: Expected, answers: Sequence[Answer], asked: Asked) -> list[str]:
    """What is not as expected; empty where all is."""
    if expected.passes is not None:
        return _together(expected.passes, answers)
    [answer] = answers
    return list(_differences(expected, answer, asked))


def _together(passes: int, answers: Sequence[Answer]) -> list[str]:
    faults = [str(answer) for answer in answers if isinstance(answer, Fault)]
    passed = sum(not isinstance(answer, Fault) and answer.overall_code == RateLimitResponse.OK for answer in answers)
    found = [f"{len(faults)} of {len(answers)} calls failed; the first with {faults[0]}"] if faults else []
    return found if passed == passes else [*found, f"of {len(answers)} calls at once {passed} are OK, not {passes}"]


def _differences(expected: Expected, answer: Answer, asked: Asked) -> Iterator[str]:
    if isinstance(answer, Fault):
        if expected.error is None:
            yield f"the call failed with {answer}"
        elif expected.error not in answer.details:
            yield f"the call failed with {answer}, whose text does not say {expected.error!r}"
        return
    if expected.error is not None:
        yield f"overall_code is {_code(answer.overall_code)}, but the call should have failed"
        return
    yield from _differs("overall_code", _code(answer.overall_code), expected.overall)
    yield from _differs("the number of statuses", len(answer.statuses), len(expected.statuses))
    for index, (status, wanted) in enumerate(zip(answer.statuses, expected.statuses, strict=False)):
        for text in _status(wanted, status, asked.now_s if expected.aligned else None):
            yield f"statuses[{index}].{text}"
    yield from _never_set(answer, asked.features)
    if expected.headers is not None:
        yield from _headers(expected.headers, answer)
    if expected.metadata is not None:
        told = MessageToDict(answer.dynamic_metadata)
        found = {key: value for key, value in told.items() if key in METADATA_KEYS}
        yield from _values("dynamic_metadata", found, expected.metadata, asked)


def _code(number: int) -> str:
    return RateLimitResponse.Code.Name(RateLimitResponse.Code.ValueType(number)) if number in (0, 1, 2) else str(number)


def _differs(what: str, found: object, wanted: object) -> Iterator[str]:
    if found != wanted:
        yield f"{what} is {found}, not {wanted}"


def _status(
    wanted: ExpectedStatus, status: RateLimitResponse.DescriptorStatus, aligned_at_s: float | None
) -> Iterator[str]:
    yield from _differs("code", _code(status.code), wanted.code)
    yield from _differs("current_limit", _found_limit(status), _wanted_limit(wanted.limit))
    yield from _differs("limit_remaining", status.limit_remaining, wanted.remaining)
    yield from _reset(wanted.limit, status, aligned_at_s)


def _found_limit(status: RateLimitResponse.DescriptorStatus) -> str:
    if not status.HasField("current_limit"):
        return _ABSENT
    limit = status.current_limit
    multiplier = limit.unit_multiplier.value if limit.HasField("unit_multiplier") else None
    units = RateLimitResponse.RateLimit.Unit
    unit = units.Name(limit.unit) if limit.unit in units.values() else str(limit.unit)
    return _limit_text(limit.requests_per_unit, unit, multiplier, limit.name)


def _wanted_limit(limit: ExpectedLimit | None) -> str:
    return _ABSENT if limit is None else _limit_text(limit.requests, limit.unit.name, limit.multiplier, limit.name)


def _limit_text(requests: int, unit: str, multiplier: int | None, name: str) -> str:
    units = unit if multiplier is None else f"{multiplier} {unit}"
    return f"{requests}/{units}{f' named {name!r}' if name else ''}"


def _reset(
    limit: ExpectedLimit | None, status: RateLimitResponse.DescriptorStatus, aligned_at_s: float | None
) -> Iterator[str]:
    if limit is None:
        if status.HasField("duration_until_reset"):
            yield "duration_until_reset is set, though no limit applies"
        return
    if not status.HasField("duration_until_reset"):
        yield "duration_until_reset is not set"
        return
    reset_s = status.duration_until_reset.seconds + status.duration_until_reset.nanos / 1e9
    if not 0 < reset_s <= limit.window_s:
        yield f"duration_until_reset is {reset_s:g} s; it must be above 0 and at most {limit.window_s} s"
    elif aligned_at_s is not None:
        wanted_s = limit.window_s - aligned_at_s % limit.window_s
        apart_s = abs(reset_s - wanted_s)
        if min(apart_s, limit.window_s - apart_s) > CLOCKS_DIFFER_S_MAX:
            yield f"duration_until_reset is {reset_s:g} s; windows that began at 1970 end in {wanted_s:.0f} s"


def _never_set(answer: RateLimitResponse, features: frozenset[str]) -> Iterator[str]:
    if answer.request_headers_to_add:
        yield "request_headers_to_add is set"
    if answer.raw_body:
        yield "raw_body is set"
    if answer.response_headers_to_add and "headers" not in features:
        yield "response_headers_to_add is set, though the target is not said to have headers"
    if answer.dynamic_metadata.fields and "dynamic_metadata" not in features:
        yield "dynamic_metadata is set, though the target is not said to have dynamic_metadata"


def _headers(wanted: ExpectedHeaders, answer: RateLimitResponse) -> Iterator[str]:
    found = [(header.key, header.value) for header in answer.response_headers_to_add]
    names = [name for name, _ in found]
    if [name.lower() for name in names] != [name.lower() for name in HEADER_NAMES]:  # their case means nothing
        yield f"response_headers_to_add are {', '.join(names) or _ABSENT}; they must be {', '.join(HEADER_NAMES)}"
        return
    limit, remaining, reset = (value for _, value in found)
    yield from _differs(HEADER_NAMES[0], limit, str(wanted.limit))
    yield from _differs(HEADER_NAMES[1], remaining, str(wanted.remaining))
    if not (reset.isascii() and reset.isdigit() and 0 < int(reset) <= wanted.window_s):
        yield f"{HEADER_NAMES[2]} is {reset!r}; it must be 1 to {wanted.window_s}"


def _values(where: str, found: Any, wanted: Any, asked: Asked) -> Iterator[str]:
    if wanted == ANYTHING:
        return
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        for key in wanted.keys() - found.keys():
            yield f"{where}.{key} is not set"
        for key in found.keys() - wanted.keys():
            yield f"{where}.{key} is set to {found[key]!r}; it should not be there"
        for key in wanted.keys() & found.keys():
            yield from _values(f"{where}.{key}", found[key], wanted[key], asked)
    elif isinstance(wanted, list) and isinstance(found, list):
        yield from _differs(f"the length of {where}", len(found), len(wanted))
        for index, (one, other) in enumerate(zip(found, wanted, strict=False)):
            yield from _values(f"{where}[{index}]", one, other, asked)
    else:
        if isinstance(wanted, str):
            wanted = asked.filled(wanted)
        yield from _differs(where, repr(found), repr(wanted)) if found != wanted else ()
