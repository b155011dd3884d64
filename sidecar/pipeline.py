"""THE DATA PATH: what happens to one request, in the order in which it happens.

    match rule -> authenticate -> authorize -> charge limits -> Decision

Pure: where deciding needs the world, it returns what it needs (a `Need`, `Charges`); the shell (check.py) fetches
that and calls again. Every step either goes on or ends in a `Decision`. `sidecar explain` runs this same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct

from sidecar.core.authn import AT_ONCE, Keys, Turns, by_bearer, compose
from sidecar.core.authz import Unmet
from sidecar.core.bindings import charges_of, reservation_name
from sidecar.core.claims import Rejected
from sidecar.core.context import NO_REQUEST
from sidecar.core.decision import NO_PARAMETERS, Decision, DenyReason
from sidecar.core.guard import NO_GUARD
from sidecar.core.limits import Charge, OnFailure, Source, StoreFailure, Verdict
from sidecar.core.methods import NOTHING_FOUND
from sidecar.core.paths import PathFault, canonical, canonical_host, is_plain_method
from sidecar.core.principal import Principal
from sidecar.core.suspects import KNOWN_ALONE, TOO_OFTEN, is_answered_as_usual

if TYPE_CHECKING:
    from sidecar.core.bindings import LimitBinding
    from sidecar.core.context import RequestContext
    from sidecar.core.guard import Guard
    from sidecar.core.limits import LimitOutcome
    from sidecar.core.methods import Findings, Need
    from sidecar.core.policy import Policy
    from sidecar.core.rules import Matched, Rule
    from sidecar.core.selectors import PathParameters
    from sidecar.core.token_cache import TokenCache


class Charges(Struct, eq=False, gc=False):
    """All that is left to decide is in the store's hands: charge these together, then `settle`."""

    policy: Policy
    rule: Rule
    principal: Principal | None
    parameters: PathParameters
    charges: Sequence[Charge]
    local: bool = False
    """To be charged in this process: the store could not answer, and the policy says so."""
    hold: int = 0
    """What names the holds that are taken, 0 for none."""

    def reserve(self, hold: int) -> None:
        """Take what can be held under this number, which is nobody else's (`reservations.HOLD_MAX`)."""
        self.hold = hold
        for binding, charge in zip(self.rule.limits, self.charges, strict=True):
            if binding.held:
                charge.hold = hold


ADMISSIONS_MAX = 10_000
"""Pairs of a rule and a principal whose admission is kept, as many as verified tokens; about 0.4 KiB each."""

Step: TypeAlias = "Decision | Need | Charges"


def begin(
    policy: Policy,
    request: RequestContext,
    cache: TokenCache,
    keys: Keys,
    now_us: int,
    findings: Findings = NOTHING_FOUND,
    guard: Guard = NO_GUARD,
    turns: Turns = AT_ONCE,
) -> Step:
    """Everything up to the limits; `findings` hold what was fetched of what it asked for, `turns` see `authn.Turns`."""
    matched = policy.rules.kept.get((request.host, request.path, request.method)) or _match(policy, request)
    if isinstance(matched, Decision):
        return matched
    rule, parameters = matched

    principal: Principal | None = None
    if not rule.anonymous:
        suspects = guard.suspects
        wait_us = suspects.wait_us(request.source_address, now_us) if suspects.active else 0
        if wait_us and not findings:  # what was asked for is paid for
            findings = KNOWN_ALONE
        composition = rule.composition
        if composition is None:
            proved = by_bearer(rule, request, cache, keys, now_us, findings, guard.revocations, turns)
        else:
            proved = compose(composition, request, parameters, cache, keys, now_us, findings, guard.revocations, turns)
        if not isinstance(proved, Principal):
            return _unproved(policy, rule, proved, wait_us)
        principal = proved

    unmet, charges = _admit(rule, principal)
    if unmet is not None:
        return _denied(policy, unmet.reason, unmet.detail, rule, principal)
    if not rule.limits:
        return Decision(None, rule, principal, (), policy.generation, parameters)
    if charges is None:
        asked = charges_of(rule.limits, request, principal, parameters)
        if isinstance(asked, Unmet):
            return _denied(policy, asked.reason, asked.detail, rule, principal)
        charges = asked
    return Charges(policy, rule, principal, parameters, charges)


def _unproved(policy: Policy, rule: Rule, found: Need | Rejected, wait_us: int = 0) -> Step:
    """Nobody is proved: for now, since something is needed, or for good; `wait_us`: see `suspects`."""
    if wait_us and not is_answered_as_usual(found):
        decision = _denied(policy, TOO_OFTEN.reason, TOO_OFTEN.detail, rule)
        decision.retry_after_us = wait_us
        return decision
    if not isinstance(found, Rejected):
        return found
    decision = _denied(policy, found.reason, found.detail, rule)
    decision.as_error = found.as_error
    return decision


def _match(policy: Policy, request: RequestContext) -> Matched | Decision:
    """The rule for a request that has one spelling, or the denial."""
    host = canonical_host(request.host)
    if host is None or not is_plain_method(request.method):
        detail = "the host is not well-formed" if host is None else "the method is not well-formed, or not in capitals"
        return _denied(policy, DenyReason.REQUEST_MALFORMED, detail)
    path = canonical(request.path)
    if isinstance(path, PathFault):
        return _denied(policy, DenyReason.PATH_AMBIGUOUS, path.value)
    matched = policy.rules.match(host, path, request.method, request.headers)
    if matched is None:
        return _denied(policy, DenyReason.NO_RULE, "no rule matches the host, path, method and headers")
    policy.rules.keep((request.host, request.path, request.method), matched)
    return matched


@lru_cache(maxsize=ADMISSIONS_MAX)
def _admit(rule: Rule, principal: Principal | None) -> tuple[Unmet | None, Sequence[Charge] | None]:
    """What a rule and a principal alone decide: whether they may, and the charges where no key needs the request.

    Kept for callers that come again: 0.1 us instead of 2.
    """
    unmet: Unmet | None = None
    if rule.authorize is not None:
        nobody = Unmet(DenyReason.ROLE_MISSING, "nobody was proved")
        unmet = rule.authorize.unmet(principal) if principal is not None else nobody
    if unmet is not None or rule.charged_by_request:
        return unmet, None
    charges = charges_of(rule.limits, NO_REQUEST, principal, NO_PARAMETERS)
    return (charges, None) if isinstance(charges, Unmet) else (None, charges)


def settle(pending: Charges, result: Verdict | StoreFailure) -> Decision | Charges:
    """What the store's answer means; `Charges` again where the policy says to count in this process instead."""
    if isinstance(result, StoreFailure):
        return _without_store(pending, result)
    policy, rule = pending.policy, pending.rule
    outcomes = result.outcomes
    reason = None
    if not result.allowed:
        reason = DenyReason.LIMIT_EXCEEDED
        outcomes = tuple([each for each in outcomes if each.source is not Source.UNASKED])  # nothing to say of them
    decision = Decision(reason, rule, pending.principal, outcomes, policy.generation, pending.parameters)
    decision.degraded = result.local
    if rule.shadows:
        shadows = [each.limit.name for each in outcomes if each.limit.shadow and not each.allowed]
        decision.shadowed = tuple(shadows)
    if reason is not None:
        exceeded = [repr(each.limit.name) for each in outcomes if not (each.allowed or each.limit.shadow)]
        decision.detail = f"limit {', '.join(exceeded)} is exceeded"
    elif pending.hold:
        bindings = _counted_here(rule) if pending.local else rule.limits
        decision.reservation = reservation_name(bindings, pending.charges, result.outcomes, pending.hold)
    if rule.warns:
        decision.warned = _warned(outcomes)
    return decision


def _warned(outcomes: Sequence[LimitOutcome]) -> tuple[str, ...]:
    """The limits above their soft threshold."""
    above = [each.limit.name for each in outcomes if (at := each.limit.warn_above) is not None and each.used > at]
    return tuple(above)


def _without_store(pending: Charges, failure: StoreFailure) -> Decision | Charges:
    """The strictest of the limits' wishes is granted: deny, then error, then local, then allow."""
    policy, rule, principal = pending.policy, pending.rule, pending.principal
    wishes = {binding.on_failure for binding in rule.limits}
    detail = f"the store did not answer: {failure.value}"
    if pending.local or OnFailure.DENY in wishes or OnFailure.ERROR in wishes:
        decision = _denied(policy, DenyReason.LIMITS_UNAVAILABLE, detail, rule, principal)
        decision.as_error = not pending.local and OnFailure.DENY not in wishes
        return decision
    bindings = _counted_here(rule)
    if bindings:
        bound = zip(rule.limits, pending.charges, strict=True)
        local = [charge for binding, charge in bound if binding in bindings]
        return Charges(policy, rule, principal, pending.parameters, local, local=True, hold=pending.hold)
    decision = Decision(None, rule, principal, (), policy.generation, pending.parameters)
    decision.degraded = True
    decision.detail = detail
    return decision


def _counted_here(rule: Rule) -> list[LimitBinding]:
    """Whose charges this process makes by itself while the store cannot answer."""
    return [binding for binding in rule.limits if binding.on_failure is OnFailure.LOCAL]


def _denied(
    policy: Policy, reason: DenyReason, detail: str, rule: Rule | None = None, principal: Principal | None = None
) -> Decision:
    decision = Decision(reason, rule, principal, (), policy.generation)
    decision.detail = detail
    return decision
