"""RateLimitService.ShouldRateLimit: a RateLimitRequest's bytes to charges, what came of them to a RateLimitResponse's.

    parse -> domain -> a limit for each descriptor -> replaced ones dropped -> one `charge` for all -> statuses in order

A request that cannot be decided ends in a gRPC error, which Envoy turns into "allow" or "deny" by its own
`failure_mode_deny`; the reference does the same, with status UNKNOWN for each:

    INVALID_ARGUMENT     not a RateLimitRequest; no domain; no descriptor, or more than DESCRIPTORS_MAX; an override
                         whose unit is not known or whose window is too long
    FAILED_PRECONDITION  not one domain is configured
    UNIMPLEMENTED        a refund (`is_negative_hits`) of a limit
    UNAVAILABLE          the counters cannot be read, where the policy says `error`

The response is joined from fragments: the part of a status that a limit always has is encoded once for each limit.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from sidecar.core.descriptors import DescriptorLimit, Domain, Unit
from sidecar.core.limits import (
    REQUESTS_MAX,
    US_PER_S,
    Charge,
    LimitOutcome,
    LimitStore,
    OnFailure,
    StoreFailure,
    Verdict,
)
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitRequest, RateLimitResponse
from sidecar.envoy.pb.type_pb2 import RateLimitUnit
from sidecar.envoy.wire import delimited, varint
from sidecar.transport.service import Call, Status, wait_until

if TYPE_CHECKING:
    from sidecar.core.descriptors import RateLimitConfig
    from sidecar.core.policy import Policy
    from sidecar.envoy.pb.ratelimit_descriptor_pb2 import RateLimitDescriptor

SHOULD_RATE_LIMIT: Final = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"

DESCRIPTORS_MAX: Final = 256
"""Descriptors in one request, each of which may be a counter; Envoy sends one for each configured action list."""

HITS_MAX: Final = REQUESTS_MAX + 1
"""Hits of one descriptor; more are counted as this many, which is above every limit."""

_FIELDS_KEPT: Final = 4096
"""Encoded numbers of each kind that are kept: an hour's seconds, and what remains of a common limit."""

_OVERRIDE_UNITS: Final = {number: Unit(number) for number in RateLimitUnit.values() if number}
"""Of a request's own limit: its enum has no week."""

_STATUSES: Final = 0x12
_OVERALL_OK: Final = b"\x08\x01"
_OVERALL_OVER_LIMIT: Final = b"\x08\x02"
_STATUS_OK: Final = delimited(_STATUSES, b"\x08\x01")
_STATUS_UNLIMITED: Final = delimited(_STATUSES, b"\x08\x01\x18" + varint(REQUESTS_MAX))


class Answer(enum.StrEnum):
    """What came of a request; the value is its label in metrics."""

    OK = "ok"
    OVER_LIMIT = "over_limit"
    INVALID = "invalid"
    ERROR = "error"


@dataclass(slots=True, eq=False)
class RateLimitEvent:
    """One request, for metrics, told after its answer.

    Attributes:
        domain: None where it is not a configured one: what a request says is no label.
        answer: As a whole.
        descriptors: How many the request had; 0 where it is invalid.
        over_limit: How many of them were answered OVER_LIMIT.
        failure: Why the store could not answer, where it could not.
        local: The counts are this process's own.
        latency_s: From the request's arrival to its answer.
    """

    domain: str | None
    answer: Answer
    descriptors: int
    over_limit: int
    failure: StoreFailure | None
    local: bool
    latency_s: float


class _Invalid(Exception):  # noqa: N818 - a way out of matching, not an error of its own
    """The request is not one that can be decided."""

    def __init__(self, message: str, status: Status = Status.INVALID_ARGUMENT) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class _Question:
    """A request whose limits are known. `limits` has one item for each descriptor, `charges` one for each to count."""

    __slots__ = ("call", "charges", "domain", "failure", "limits", "on_failure", "service", "started")

    def __init__(self, service: RateLimitService, call: Call, on_failure: OnFailure, started: float) -> None:
        self.service = service
        self.call = call
        self.on_failure = on_failure
        self.started = started
        self.domain: Domain | None = None
        self.limits: list[DescriptorLimit | None] = []
        self.charges: list[Charge] = []
        self.failure: StoreFailure | None = None

    def match(self, domain: Domain, request: RateLimitRequest, key_prefix: bytes) -> None:
        """Find the limits and make the charges.

        Raises:
            _Invalid: A descriptor cannot be charged.
        """
        self.domain = domain
        # read once: protobuf makes a new object for each look
        read = [(descriptor, list(descriptor.entries)) for descriptor in request.descriptors]
        limits = self.limits = [_limit(domain, descriptor, entries) for descriptor, entries in read]
        replaced = {name for limit in limits if limit is not None for name in limit.replaces}
        for index, (descriptor, entries) in enumerate(read):
            limit = limits[index]
            if limit is None or limit.limit is None:
                continue
            if limit.name in replaced:
                limits[index] = None
                continue
            if descriptor.is_negative_hits:
                raise _Invalid("is_negative_hits is not supported", Status.UNIMPLEMENTED)
            key = domain.counter_key(key_prefix, limit, entries)
            self.charges.append(Charge(limit.limit, key, _hits(request, descriptor)))

    def decided(self, result: Verdict | StoreFailure) -> None:
        """The store has answered, or cannot."""
        if isinstance(result, Verdict):
            self._answer(result)
            return
        self.failure = result
        if self.on_failure is OnFailure.LOCAL:
            self.service.local_store.charge(self.charges, self.call.deadline, self._decided_locally)
        else:
            self._answer_without_counts(result)

    def no_charges(self) -> None:
        """None of the descriptors has a limit that counts."""
        self._respond(Statuses(self.limits, ()), local=False)

    def _decided_locally(self, result: Verdict | StoreFailure) -> None:
        if isinstance(result, Verdict):
            self._answer(result)
        else:
            self._answer_without_counts(result)

    def _answer(self, verdict: Verdict) -> None:
        self._respond(Statuses(self.limits, verdict.outcomes), local=verdict.local or self.failure is not None)
        charged = (limit for limit in self.limits if limit is not None and limit.limit is not None)
        for limit, charge, outcome in zip(charged, self.charges, verdict.outcomes, strict=True):
            limit.count(charge.cost, outcome.used, allowed=outcome.allowed)

    def _answer_without_counts(self, failure: StoreFailure) -> None:
        self.failure = failure
        if self.on_failure is OnFailure.ALLOW:
            self._respond(Statuses([None] * len(self.limits), ()), local=False)
        elif self.on_failure is OnFailure.DENY:
            denied = [LimitOutcome(charge.limit, False, 0, 0, 0, 0) for charge in self.charges]
            self._respond(Statuses(self.limits, denied), local=False)
        else:
            self.call.fail(Status.UNAVAILABLE, f"the counters cannot be read: {failure.value}")
            self._tell(Answer.ERROR, 0, local=False)

    def _respond(self, statuses: Statuses, *, local: bool) -> None:
        self.call.respond(statuses.response)
        self._tell(Answer.OVER_LIMIT if statuses.is_over_limit else Answer.OK, statuses.over_limit, local=local)

    def _tell(self, answer: Answer, over_limit: int, *, local: bool) -> None:
        name = self.domain.name if self.domain is not None else None
        latency_s = perf_counter() - self.started
        self.service.on_event(
            RateLimitEvent(name, answer, len(self.limits), over_limit, self.failure, local, latency_s)
        )


class RateLimitService:
    """The service's one method.

    Args:
        policy: The current policy; read once for each request.
        store: Counts.
        local_store: Counts in this process, while `store` cannot and the policy says `local`.
        key_prefix: Of all counter keys.
        on_event: Told of each request after its answer; must not raise.
    """

    def __init__(
        self,
        policy: Callable[[], Policy],
        store: LimitStore,
        local_store: LimitStore,
        key_prefix: str,
        on_event: Callable[[RateLimitEvent], None],
    ) -> None:
        self.local_store = local_store
        self.on_event = on_event
        self._policy = policy
        self._store = store
        self._key_prefix = f"{key_prefix}:".encode()

    def handle(self, message: bytes, call: Call) -> None:
        """Answer one ShouldRateLimit call, now or when the store has counted."""
        started = perf_counter()
        config = self._policy().ratelimit
        question = _Question(self, call, config.on_failure, started)
        try:
            request = _parse(message)
            domain = _domain(config, request)
            if domain is not None:
                question.match(domain, request, self._key_prefix)
            else:
                question.limits = [None] * len(request.descriptors)
        except _Invalid as fault:
            call.fail(fault.status, fault.message)
            name = question.domain.name if question.domain is not None else None
            self.on_event(RateLimitEvent(name, Answer.INVALID, 0, 0, None, False, perf_counter() - started))
            return
        if question.charges:
            self._store.charge(question.charges, wait_until(call.deadline), question.decided)
        else:
            question.no_charges()


def _parse(message: bytes) -> RateLimitRequest:
    try:
        request = RateLimitRequest.FromString(message)
    except (DecodeError, ValueError):  # a UnicodeDecodeError, where protobuf runs without its C part
        raise _Invalid("the message is not a RateLimitRequest") from None
    if not request.domain:
        raise _Invalid("rate limit domain must not be empty")
    count = len(request.descriptors)
    if not count:
        raise _Invalid("rate limit descriptor list must not be empty")
    if count > DESCRIPTORS_MAX:
        raise _Invalid(f"{count} descriptors in one request; at most {DESCRIPTORS_MAX} are accepted")
    return request


def _domain(config: RateLimitConfig, request: RateLimitRequest) -> Domain | None:
    if not config.domains:
        raise _Invalid("no rate limit configuration loaded", Status.FAILED_PRECONDITION)
    return config.domains.get(request.domain)


def _limit(
    domain: Domain, descriptor: RateLimitDescriptor, entries: Sequence[RateLimitDescriptor.Entry]
) -> DescriptorLimit | None:
    if not descriptor.HasField("limit"):
        return domain.find(entries)
    override = descriptor.limit
    unit = _OVERRIDE_UNITS.get(override.unit)
    if unit is None:
        accepted = ", ".join(f"{unit.name} ({number})" for number, unit in _OVERRIDE_UNITS.items())
        raise _Invalid(f"{int(override.unit)} is not the unit of a rate limit; {accepted} are accepted")
    multiplier = override.unit_multiplier.value if override.HasField("unit_multiplier") else 1
    try:
        return domain.override(override.requests_per_unit, unit, multiplier)
    except ValueError:
        raise _Invalid(f"a window of {multiplier} {unit.name} is not accepted; from 1 SECOND to 366 days are") from None


def _hits(request: RateLimitRequest, descriptor: RateLimitDescriptor) -> int:
    """A descriptor's own addend counts where it is present, even 0; a request's where it is not 0; else 1."""
    if descriptor.HasField("hits_addend"):
        return min(descriptor.hits_addend.value, HITS_MAX)
    return request.hits_addend or 1


class Statuses:
    """The response of statuses in order, and what it says.

    The whole is over the limit when a status is, except that limits in quota mode count only together: when all of
    them are over.

    Attributes:
        response: A RateLimitResponse's bytes.
        is_over_limit: As a whole.
        over_limit: How many of the statuses are.
    """

    __slots__ = ("is_over_limit", "over_limit", "response")

    def __init__(self, limits: Iterable[DescriptorLimit | None], outcomes: Sequence[LimitOutcome]) -> None:
        fields = [_OVERALL_OK]
        quota = over_quota = over = 0
        following = iter(outcomes)
        for limit in limits:
            if limit is None:
                fields.append(_STATUS_OK)
                continue
            if limit.limit is None:
                fields.append(_STATUS_UNLIMITED)
                continue
            outcome = next(following)
            is_over = not outcome.allowed and not limit.shadow_mode
            fields.append(_status(limit, outcome, is_over))
            over += is_over
            if limit.quota_mode:
                quota += 1
                over_quota += is_over
        self.over_limit = over
        self.is_over_limit = over > over_quota or 0 < quota == over_quota
        if self.is_over_limit:
            fields[0] = _OVERALL_OVER_LIMIT
        self.response = b"".join(fields)


def _status(limit: DescriptorLimit, outcome: LimitOutcome, is_over: bool) -> bytes:
    encoded = limit.encoded
    if encoded is None:
        encoded = limit.encoded = _encode(limit)
    status = encoded[is_over] + _remaining(outcome.remaining) + _until_reset(-(-outcome.reset_after_us // US_PER_S))
    return delimited(_STATUSES, status)


@lru_cache(maxsize=_FIELDS_KEPT)
def _remaining(requests: int) -> bytes:
    return b"\x18" + varint(requests) if requests else b""


@lru_cache(maxsize=_FIELDS_KEPT)
def _until_reset(seconds: int) -> bytes:
    return delimited(0x22, b"\x08" + varint(seconds)) if seconds else b""


def _encode(limit: DescriptorLimit) -> tuple[bytes, bytes]:
    """What all statuses of a limit begin with, while within and while over it: code and current_limit."""
    if limit.limit is None or limit.unit is None:
        raise AssertionError("an unlimited descriptor has no current_limit")
    current = RateLimitResponse.RateLimit(
        requests_per_unit=limit.limit.requests,
        unit=RateLimitResponse.RateLimit.Unit.Name(limit.unit),
        name=limit.name,
    )
    if limit.unit_multiplier != 1:
        current.unit_multiplier.value = limit.unit_multiplier
    field = delimited(0x12, current.SerializeToString())
    return b"\x08\x01" + field, b"\x08\x02" + field
