"""The shell around the pipeline for ext_authz: one Check in, exactly one CheckResponse out.

It fetches what the pipeline asks for, each kind of need from its engine, and calls it again with what was found, until
it decides. A need that comes twice, or one too many, is a fault of ours, and denies. Whatever goes wrong on the way,
the answer is a denied CheckResponse: Envoy under `failure_mode_allow: true` lets a request pass on any gRPC error.

Checks that arrive in one turn of the event loop are decided together, step by step: all are read, then all are matched
and authenticated, then all are charged; and so are the store's replies. Each Check is still decided for itself. A step
that is taken for many in a row finds its code and data in the processor's caches: 3.5 us less a decision than one Check
after the other. A step is taken for `TOGETHER_MAX` at a time, so that what they hold fits into those caches as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from msgspec import Struct

from sidecar import pipeline
from sidecar.core.audit import DecisionEvent
from sidecar.core.authn import NeedKey, NeedTurn
from sidecar.core.decision import Decision, DenyReason
from sidecar.core.guard import NO_GUARD
from sidecar.core.methods import NOTHING_FOUND
from sidecar.edges.holds import new_hold
from sidecar.edges.turns import VerificationTurns
from sidecar.envoy import ext_authz
from sidecar.transport.service import Call, Refusal, UnaryMethod, wait_until

if TYPE_CHECKING:
    from sidecar.core.context import RequestContext
    from sidecar.core.guard import Guard
    from sidecar.core.limits import LimitStore, StoreFailure, Verdict
    from sidecar.core.methods import Findings, Need
    from sidecar.core.policy import Policy
    from sidecar.core.token_cache import TokenCache
    from sidecar.edges.jwks import JwksEngine

CHECK = "/envoy.service.auth.v3.Authorization/Check"

TOGETHER_MAX = 32
"""Checks that take a step together."""

NEEDS_MAX: Final = 24
"""Of one Check: three times as many as there can be credentials."""

OnEvents: TypeAlias = Callable[[Sequence[DecisionEvent]], None]
OnBug: TypeAlias = Callable[[BaseException, str], None]
Soon: TypeAlias = Callable[[Callable[[], None]], object]
Engine: TypeAlias = Callable[[Any, float, Callable[[Any], None]], None]
"""Fetches what a need asks for: given the need, and a deadline in seconds of the loop's clock by which it calls the
third, once, with what it found; None: it could not be had. It must not raise after that."""


class _Check(Struct, eq=False):
    """One Check under way: the policy it sees from beginning to end, what it waits for, and where its answer goes."""

    service: CheckService
    policy: Policy
    request: RequestContext | None
    call: Call
    started_ns: int
    pending: pipeline.Charges | None = None
    findings: Findings = NOTHING_FOUND
    needed: Hashable = None
    """The key of what is being fetched, None for nothing."""

    def charged(self, result: Verdict | StoreFailure) -> None:
        """The store has answered."""
        self.service.charged(self, result)

    def found(self, value: Any) -> None:
        """What was needed was found, or could not be (None); the pipeline looks again."""
        needed = self.needed
        if needed is not None:
            self.needed = None
            self.findings = {**self.findings, needed: value}
            self.service.found(self)


NO_ENGINES: Final[Mapping[type, Engine]] = {}


def _no_token(_decision: Decision, _now_us: int) -> str:
    return ""


def _at_once(step: Callable[[], None]) -> None:
    step()


class CheckService:
    """Answers Checks.

    Args:
        policy: Returns the current policy; called once per Check, or for several that arrive together.
        cache: Verified tokens.
        jwks: The issuers' keys.
        engines: What fetches each other kind of need, by its type.
        store: Counts limits.
        local: Counts limits in this process, where the policy says so while `store` cannot answer.
        on_events: Told decisions after their answers were handed to the transport.
        on_bug: Told of an exception that should not have been possible; must not raise.
        guard: What was revoked, and who has guessed too often.
        token_for: What replaces the credential of a decision at a time in microseconds, "" where nothing does.
        soon: Calls a function once what has arrived by now was handed over: the event loop's `call_soon`.

    Attributes:
        turns: Says when a token that is not in the cache may be verified.
    """

    def __init__(
        self,
        *,
        policy: Callable[[], Policy],
        cache: TokenCache,
        jwks: JwksEngine,
        store: LimitStore,
        local: LimitStore,
        on_events: OnEvents,
        on_bug: OnBug,
        soon: Soon = _at_once,
        engines: Mapping[type, Engine] = NO_ENGINES,
        guard: Guard = NO_GUARD,
        token_for: Callable[[Decision, int], str] = _no_token,
    ) -> None:
        self._token_for = token_for
        self._guard = guard
        self._policy = policy
        self._cache = cache
        self._jwks = jwks
        self.turns = VerificationTurns(soon)
        self._engines: dict[type, Engine] = {NeedKey: self._fetch_keys, NeedTurn: self.turns.ask, **engines}
        self._store = store
        self._local = local
        self._on_events = on_events
        self._on_bug = on_bug
        self._soon = soon
        self._arrived: list[tuple[bytes, Call]] = []
        self._arrived_ns = 0
        self._charged: list[tuple[_Check, Verdict | StoreFailure]] = []

    def method(self, answer_within_s: float) -> UnaryMethod:
        """The method to serve, with the time within which every Check is answered."""
        return UnaryMethod(handler=self.handle, refuse=self.refuse, answer_within_s=answer_within_s)

    def handle(self, message: bytes, call: Call) -> None:
        """Decide one CheckRequest, soon; see `transport.service.UnaryHandler`."""
        arrived = self._arrived
        arrived.append((message, call))
        if len(arrived) == 1:
            self._arrived_ns = time.time_ns()
            self._soon(self._decide_arrived)

    def refuse(self, refusal: Refusal) -> bytes:
        """The denial for a call that the transport refuses."""
        now_ns = time.time_ns()
        decision = Decision(ext_authz.refusal_reason(refusal), None, None, (), self._policy().generation)
        self._emit([DecisionEvent(now_ns // 1000, 0, None, decision)])
        return ext_authz.refusal(refusal)

    def charged(self, check: _Check, result: Verdict | StoreFailure) -> None:
        """The store has answered a Check."""
        charged = self._charged
        charged.append((check, result))
        if len(charged) == 1:
            self._soon(self._settle_charged)

    def found(self, check: _Check) -> None:
        """Decide anew, now that something was fetched, or could not be."""
        self._begin([check], time.time_ns() // 1000)

    def _decide_arrived(self) -> None:
        arrived, self._arrived = self._arrived, []
        policy, started_ns = self._policy(), self._arrived_ns
        for at in range(0, len(arrived), TOGETHER_MAX):
            checks: list[_Check] = []
            decided: list[tuple[_Check, Decision]] = []
            for message, call in arrived[at : at + TOGETHER_MAX]:
                if call.cancelled:
                    continue
                check = _Check(self, policy, None, call, started_ns)
                try:
                    request = ext_authz.decode(message)
                except Exception as bug:  # noqa: BLE001 - whatever it is, it must not become an allow
                    self._fail(check, bug)
                    continue
                if isinstance(request, DenyReason):
                    decided.append((check, Decision(request, None, None, (), policy.generation)))
                else:
                    check.request = request
                    checks.append(check)
            if decided:
                self._answer(decided)
            self._begin(checks, started_ns // 1000)

    def _begin(self, checks: Sequence[_Check], now_us: int) -> None:
        """Everything up to the limits."""
        cache, jwks, guard, turns = self._cache, self._jwks, self._guard, self.turns
        steps: list[tuple[_Check, pipeline.Step]] = []
        for check in checks:
            request = check.request
            if check.call.cancelled or request is None:
                continue
            try:
                step = pipeline.begin(check.policy, request, cache, jwks, now_us, check.findings, guard, turns)
                steps.append((check, step))
            except Exception as bug:  # noqa: BLE001 - as above
                self._fail(check, bug)
        self._advance(steps)

    def _settle_charged(self) -> None:
        charged, self._charged = self._charged, []
        for at in range(0, len(charged), TOGETHER_MAX):
            steps: list[tuple[_Check, pipeline.Step]] = []
            for check, result in charged[at : at + TOGETHER_MAX]:
                pending, check.pending = check.pending, None  # whoever answers twice is heard once
                if check.call.cancelled or pending is None:
                    continue
                try:
                    steps.append((check, pipeline.settle(pending, result)))
                except Exception as bug:  # noqa: BLE001 - as above
                    self._fail(check, bug)
            self._advance(steps)

    def _advance(self, steps: Sequence[tuple[_Check, pipeline.Step]]) -> None:
        """Answer, or ask the world for what the steps need."""
        decided: list[tuple[_Check, Decision]] = []
        for check, step in steps:
            if isinstance(step, Decision):
                decided.append((check, step))
                continue
            try:
                self._ask(check, step)
            except Exception as bug:  # noqa: BLE001 - as above
                self._fail(check, bug)
        if decided:
            self._answer(decided)

    def _ask(self, check: _Check, step: pipeline.Charges | Need) -> None:
        call = check.call
        deadline = wait_until(call.deadline)
        if isinstance(step, pipeline.Charges):
            check.pending = step
            if step.rule.reserves and not step.hold:
                step.reserve(new_hold())
            if check.request is not None:
                check.request.keep_headers(step.rule.answer_headers)
            (self._local if step.local else self._store).charge(step.charges, deadline, check.charged)
        else:
            key = step.key
            if key in check.findings or len(check.findings) >= NEEDS_MAX:
                raise RuntimeError(f"{type(step).__name__} is needed twice, or is one need too many")
            check.needed = key
            self._engines[type(step)](step, deadline, check.found)

    def _fetch_keys(self, need: NeedKey, deadline: float, done: Callable[[Any], None]) -> None:
        self._jwks.ensure(need.issuer, need.kid, deadline, done)

    def _answer(self, decided: Sequence[tuple[_Check, Decision]]) -> None:
        events: list[DecisionEvent] = []
        now_ns = time.time_ns()
        for check, decision in decided:
            try:
                token = "" if check.policy.internal_tokens is None else self._token_for(decision, now_ns // 1000)
                check.call.respond(ext_authz.encode(decision, check.request, token))
            except Exception as bug:  # noqa: BLE001 - as above
                self._fail(check, bug)
                continue
            started_ns = check.started_ns
            elapsed_us = (now_ns - started_ns) // 1000
            if elapsed_us < 0:  # noqa: PLR1730 - max() costs a call
                elapsed_us = 0  # the clock was set back
            events.append(DecisionEvent(started_ns // 1000, elapsed_us, check.request, decision))
        if events:
            self._emit(events)

    def _fail(self, check: _Check, bug: Exception) -> None:
        """Deny, since deciding raised; what is still under way for the Check finds nobody who waits."""
        check.pending = check.needed = None
        self._on_bug(bug, CHECK)
        check.call.respond(self.refuse(Refusal.HANDLER_FAILED))

    def _emit(self, events: Sequence[DecisionEvent]) -> None:
        try:
            self._on_events(events)
        except Exception as bug:  # noqa: BLE001 - who counts and records must never decide
            self._on_bug(bug, CHECK)
