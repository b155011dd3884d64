"""RateLimitService.ShouldRateLimit: a RateLimitRequest's bytes to charges, what came of them to a RateLimitResponse's.

    split -> domain -> a limit for each descriptor -> replaced ones dropped -> one `charge` for all -> statuses in order

A request that cannot be decided ends in a gRPC error, which Envoy turns into "allow" or "deny" by its own
`failure_mode_deny`; the reference does the same, with status UNKNOWN for each:

    INVALID_ARGUMENT     not a RateLimitRequest; no domain; no descriptor, or more than DESCRIPTORS_MAX; an override
                         whose unit is not known or whose window is too long; not a reservation's name
    FAILED_PRECONDITION  no configuration was loaded yet
    UNAVAILABLE          the counters cannot be read, where the policy says `error`
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from sidecar.core.limits import Charge, LimitOutcome, LimitStore, OnFailure, Op, StoreFailure, Verdict
from sidecar.envoy import settling
from sidecar.envoy.ratelimit_request import DESCRIPTORS_MAX, Asked, InvalidRequest, Memory, Understood, read, split
from sidecar.envoy.ratelimit_response import Statuses, extras, settled
from sidecar.transport.service import Call, Status, wait_until

if TYPE_CHECKING:
    from sidecar.core.descriptors import Domain, RateLimitConfig
    from sidecar.core.policy import Policy

SHOULD_RATE_LIMIT: Final = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"

_NOTHING: Final = Asked(b"")
_SETTLING_DOMAIN: Final = settling.DOMAIN.encode()


class Answer(enum.StrEnum):
    """What came of a request; the value is its label in metrics."""

    OK = "ok"
    OVER_LIMIT = "over_limit"
    SHADOWED = "shadowed"
    """Over the limit, and answered OK because of the global shadow mode."""
    INVALID = "invalid"
    ERROR = "error"


class RateLimitEvent(Struct, eq=False, gc=False):
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


class _Question(Struct, eq=False, gc=False):
    """A request whose limits are known. `asked` has one item for each descriptor, `charges` one for each to count."""

    service: RateLimitService
    call: Call
    config: RateLimitConfig
    started: float
    domain: str | None = None
    name: str = ""
    hits: int = 0
    asked: Sequence[Asked] = ()
    charges: Sequence[Charge] = ()
    failure: StoreFailure | None = None

    def match(self, domain: Domain, descriptors: list[bytes], hits: int) -> bool:
        """Find the limits and make the charges; whether the same request will always come to the same.

        Raises:
            InvalidRequest: A descriptor is none.
        """
        self.domain = self.name = domain.name
        self.hits = hits
        remembered = domain.asked
        asked: list[Asked] = []
        charges: list[Charge] = []
        same = True
        for raw in descriptors:
            one = remembered.get(raw)
            if one is None:
                same = False
                one = self.service.memory.ask(self.config, domain, raw)
            asked.append(one)
        if domain.replaces:
            asked = _without_replaced(asked)
        for one in asked:
            charge = one.charge
            if charge is None:
                continue
            if one.holds:
                same = False
            charges.append(charge if hits < 2 and not one.holds else one.charge_of(charge, hits))
        self.asked, self.charges = asked, charges
        return same

    def decided(self, result: Verdict | StoreFailure) -> None:
        """The store has answered, or cannot."""
        if isinstance(result, Verdict):
            self._answer(result)
            return
        self.failure = result
        if self.config.options.on_failure is OnFailure.LOCAL:
            self.service.local_store.charge(self.charges, self.call.deadline, self._decided_locally)
        else:
            self._answer_without_counts(result)

    def no_charges(self) -> None:
        """None of the descriptors has a limit that counts."""
        self._respond((), local=False)

    def _decided_locally(self, result: Verdict | StoreFailure) -> None:
        if isinstance(result, Verdict):
            self._answer(result)
        else:
            self._answer_without_counts(result)

    def _answer(self, verdict: Verdict) -> None:
        self._respond(verdict.outcomes, local=verdict.local or self.failure is not None)
        _count(self.asked, self.charges, verdict.outcomes)

    def _answer_without_counts(self, failure: StoreFailure) -> None:
        self.failure = failure
        on_failure = self.config.options.on_failure
        if on_failure is OnFailure.ALLOW:
            self.asked = [_NOTHING] * len(self.asked)
            self._respond((), local=False)
        elif on_failure is OnFailure.DENY:
            outcomes = [LimitOutcome(one.limit, one.op is not Op.TAKE, 0, 0, 0, 0) for one in self.charges]
            self._respond(outcomes, local=False)
        else:
            self.call.fail(Status.UNAVAILABLE, f"the counters cannot be read: {failure.value}")
            self._tell(Answer.ERROR, 0, local=False)

    def _respond(self, outcomes: Sequence[LimitOutcome], *, local: bool) -> None:
        statuses = Statuses(self.asked, outcomes, quota_mode=self.config.options.quota_mode)
        answer = Answer.OVER_LIMIT if statuses.is_over_limit else Answer.OK
        if self.config.has_extras:
            options = self.config.options
            if options.shadow_mode and statuses.is_over_limit:
                statuses.pass_all_the_same()
                answer = Answer.SHADOWED
            statuses.fields += extras(options, self.name, self.hits, self.asked, outcomes)
        self.call.respond(statuses.response)
        self._tell(answer, statuses.over_limit, local=local)

    def _tell(self, answer: Answer, over_limit: int, *, local: bool) -> None:
        latency_s = perf_counter() - self.started
        self.service.on_event(
            RateLimitEvent(self.domain, answer, len(self.asked), over_limit, self.failure, local, latency_s)
        )


class _Settlement(_Question, eq=False, gc=False):
    """A request that ends holds."""

    sizes: Sequence[int] = ()

    def settle(self, charges: list[list[Charge]]) -> None:
        """Take note of what each descriptor settles."""
        self.asked = [_NOTHING] * len(charges)
        self.sizes = [len(of_one) for of_one in charges]
        self.charges = [charge for of_one in charges for charge in of_one]

    def _respond(self, outcomes: Sequence[LimitOutcome], *, local: bool) -> None:
        following = iter([outcome.remaining for outcome in outcomes] or [0] * len(self.charges))
        self.call.respond(settled([min(next(following) for _ in range(size)) for size in self.sizes]))
        self._tell(Answer.OK, 0, local=local)


class RateLimitService:
    """The service's one method.

    Args:
        policy: The current policy; read once for each request.
        store: Counts.
        local_store: Counts in this process, while `store` cannot and the policy says `local`.
        key_prefix: Of all counter keys.
        on_event: Told of each request after its answer; must not raise.

    Attributes:
        memory: What the descriptors that were seen came to.
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
        self.memory = Memory(f"{key_prefix}:".encode())
        self._policy = policy
        self._store = store
        self._settling = settling.Settling(f"{key_prefix}:".encode())

    def handle(self, message: bytes, call: Call) -> None:
        """Answer one ShouldRateLimit call, now or when the store has counted."""
        started = perf_counter()
        policy = self._policy()
        config, memory = policy.ratelimit, self.memory
        known = memory.requests.get(message)
        if known is not None and memory.config is config:
            name = known.domain
            question = _Question(self, call, config, started, name, name, known.hits, known.asked, known.charges)
        else:
            question = _Question(self, call, config, started)
            try:
                question = self._read(question, policy, message)
            except InvalidRequest as fault:
                call.fail(fault.status, fault.message)
                latency_s = perf_counter() - started
                self.on_event(RateLimitEvent(question.domain, Answer.INVALID, 0, 0, None, False, latency_s))
                return
        if question.charges:
            self._store.charge(question.charges, wait_until(call.deadline), question.decided)
        else:
            question.no_charges()

    def _read(self, question: _Question, policy: Policy, message: bytes) -> _Question:
        config = policy.ratelimit
        name, descriptors, hits = split(message) or read(message)
        domain = config.by_wire_name.get(name)
        if domain is None or not 0 < len(descriptors) <= DESCRIPTORS_MAX:
            return self._unusual(question, policy, message)
        if question.match(domain, descriptors, hits):
            understood = Understood(domain.name, hits, question.asked, question.charges)
            self.memory.keep(config, message, understood)
        return question

    def _unusual(self, question: _Question, policy: Policy, message: bytes) -> _Question:
        """A request that is not valid, or not of a configured domain."""
        name, descriptors, hits = read(message)
        if name == _SETTLING_DOMAIN and policy.held_limits:
            settlement = _Settlement(self, question.call, question.config, question.started)
            settlement.settle(self._settling.charges(policy.held_limits, descriptors, hits))
            return settlement
        if not question.config.domains and not question.config.is_empty_on_purpose:
            raise InvalidRequest("no rate limit configuration loaded", Status.FAILED_PRECONDITION)
        question.name = name.decode()
        question.hits = hits
        question.asked = [Asked(raw) for raw in descriptors]
        return question


def _without_replaced(asked: list[Asked]) -> list[Asked]:
    """What is left when each limit that another one replaces is dropped."""
    replaced = {name for one in asked if one.limit is not None for name in one.limit.replaces}
    if not replaced:
        return asked
    return [
        Asked(one.raw) if one.charge is not None and one.limit is not None and one.limit.name in replaced else one
        for one in asked
    ]


def _count(asked: Sequence[Asked], charges: Sequence[Charge], outcomes: Sequence[LimitOutcome]) -> None:
    """Add what came of a request to the statistics."""
    taken = 0
    for one in asked:
        limit, stats = one.limit, one.stats
        if limit is None or stats is None:
            continue
        if one.negative:
            stats.total_negative_hits += charges[taken].cost
        else:
            limit.count(stats, charges[taken].cost, outcomes[taken])
        taken += 1
