"""The shell around the pipeline for ext_authz: one Check in, exactly one CheckResponse out.

It fetches what the pipeline asks for and calls it again. Whatever goes wrong on the way, the answer is a denied
CheckResponse: Envoy under `failure_mode_allow: true` lets a request pass on any gRPC error.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from sidecar import pipeline
from sidecar.core.audit import DecisionEvent
from sidecar.core.decision import Decision, DenyReason
from sidecar.edges.holds import new_hold
from sidecar.envoy import ext_authz
from sidecar.transport.service import Call, Refusal, UnaryMethod, wait_until

if TYPE_CHECKING:
    from sidecar.core.context import RequestContext
    from sidecar.core.keys import KeySet
    from sidecar.core.limits import LimitStore, StoreFailure, Verdict
    from sidecar.core.policy import Policy
    from sidecar.core.token_cache import TokenCache
    from sidecar.edges.jwks import JwksEngine

CHECK = "/envoy.service.auth.v3.Authorization/Check"

OnEvent: TypeAlias = Callable[[DecisionEvent], None]
OnBug: TypeAlias = Callable[[BaseException, str], None]


class _Check:
    """One Check under way: the policy it sees from beginning to end, what it waits for, and where its answer goes."""

    __slots__ = ("call", "pending", "policy", "request", "service", "started_ns")

    def __init__(
        self, service: CheckService, policy: Policy, request: RequestContext, call: Call, started_ns: int
    ) -> None:
        self.service = service
        self.policy = policy
        self.request = request
        self.call = call
        self.started_ns = started_ns
        self.pending: pipeline.Charges

    def charged(self, result: Verdict | StoreFailure) -> None:
        """The store has answered."""
        if self.call.cancelled:
            return
        try:
            self.service.advance(self, pipeline.settle(self.pending, result))
        except Exception as bug:  # noqa: BLE001 - whatever it is, it must not become an allow
            self.service.fail(self, bug)

    def fetched(self, _keys: KeySet | None) -> None:
        """The issuer's keys were fetched, or could not be; the pipeline looks again."""
        if self.call.cancelled:
            return
        try:
            self.service.begin_again(self)
        except Exception as bug:  # noqa: BLE001 - as above
            self.service.fail(self, bug)


class CheckService:
    """Answers Checks.

    Args:
        policy: Returns the current policy; called once per Check.
        cache: Verified tokens.
        jwks: The issuers' keys.
        store: Counts limits.
        local: Counts limits in this process, where the policy says so while `store` cannot answer.
        on_event: Told each decision after its answer was handed to the transport.
        on_bug: Told of an exception that should not have been possible; must not raise.
    """

    def __init__(
        self,
        *,
        policy: Callable[[], Policy],
        cache: TokenCache,
        jwks: JwksEngine,
        store: LimitStore,
        local: LimitStore,
        on_event: OnEvent,
        on_bug: OnBug,
    ) -> None:
        self._policy = policy
        self._cache = cache
        self._jwks = jwks
        self._store = store
        self._local = local
        self._on_event = on_event
        self._on_bug = on_bug

    def method(self, answer_within_s: float) -> UnaryMethod:
        """The method to serve, with the time within which every Check is answered."""
        return UnaryMethod(handler=self.handle, refuse=self.refuse, answer_within_s=answer_within_s)

    def handle(self, message: bytes, call: Call) -> None:
        """Decide one CheckRequest; see `transport.service.UnaryHandler`."""
        started_ns = time.time_ns()
        policy = self._policy()
        request = ext_authz.decode(message)
        if isinstance(request, DenyReason):
            decision = Decision(request, None, None, (), policy.generation)
            call.respond(ext_authz.encode(decision, None))
            self._emit(decision, None, started_ns)
            return
        step = pipeline.begin(policy, request, self._cache, self._jwks, started_ns // 1000)
        self.advance(_Check(self, policy, request, call, started_ns), step)

    def refuse(self, refusal: Refusal) -> bytes:
        """The denial for a call that the transport refuses."""
        decision = Decision(ext_authz.refusal_reason(refusal), None, None, (), self._policy().generation)
        self._emit(decision, None, time.time_ns())
        return ext_authz.refusal(refusal)

    def begin_again(self, check: _Check) -> None:
        """Decide anew, now that keys were fetched, or could not be."""
        now_us = time.time_ns() // 1000
        self.advance(check, pipeline.begin(check.policy, check.request, self._cache, self._jwks, now_us, fetched=True))

    def advance(self, check: _Check, step: pipeline.Step) -> None:
        """Answer, or ask the world for what the step needs."""
        if isinstance(step, Decision):
            check.call.respond(ext_authz.encode(step, check.request))
            self._emit(step, check.request, check.started_ns)
            return
        deadline = wait_until(check.call.deadline)
        if isinstance(step, pipeline.Charges):
            check.pending = step
            if step.rule.reserves and not step.hold:
                step.reserve(new_hold())
            check.request.keep_headers(step.rule.answer_headers)
            (self._local if step.local else self._store).charge(step.charges, deadline, check.charged)
        else:
            self._jwks.ensure(step.issuer, step.kid, deadline, check.fetched)

    def fail(self, check: _Check, bug: Exception) -> None:
        """Deny, since deciding raised."""
        self._on_bug(bug, CHECK)
        check.call.respond(self.refuse(Refusal.HANDLER_FAILED))

    def _emit(self, decision: Decision, request: RequestContext | None, started_ns: int) -> None:
        elapsed_us = (time.time_ns() - started_ns) // 1000
        if elapsed_us < 0:  # noqa: PLR1730 - max() costs a call
            elapsed_us = 0  # the clock was set back
        try:
            self._on_event(DecisionEvent(started_ns // 1000, elapsed_us, request, decision))
        except Exception as bug:  # noqa: BLE001 - who counts and records must never decide
            self._on_bug(bug, CHECK)
