"""THE DATA PATH: what happens to one request, in the order in which it happens.

    match rule -> authenticate -> authorize -> charge limits -> Decision

Pure: where deciding needs the world, it returns what it needs (`NeedKey`, `Charges`); the shell (check.py) fetches
that and calls again. Every step either goes on or ends in a `Decision`. `sidecar explain` runs this same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from sidecar.core.authn import Keys, NeedKey, authenticate
from sidecar.core.decision import Decision, DenyReason
from sidecar.core.limits import Charge, OnFailure, StoreFailure, Verdict, counter_key
from sidecar.core.paths import PathFault, canonical, canonical_host, is_plain_method
from sidecar.core.principal import Principal

if TYPE_CHECKING:
    from sidecar.core.context import RequestContext
    from sidecar.core.policy import Policy
    from sidecar.core.rules import Rule
    from sidecar.core.selectors import PathParameters
    from sidecar.core.token_cache import TokenCache


@dataclass(slots=True, eq=False)
class Charges:
    """All that is left to decide is in the store's hands: charge these together, then `settle`."""

    policy: Policy
    rule: Rule
    principal: Principal | None
    parameters: PathParameters
    charges: list[Charge]
    local: bool = False
    """To be charged in this process: the store could not answer, and the policy says so."""


Step: TypeAlias = Decision | NeedKey | Charges


def begin(
    policy: Policy, request: RequestContext, cache: TokenCache, keys: Keys, now_us: int, *, fetched: bool = False
) -> Step:
    """Everything up to the limits; `fetched` says that the keys it asked for were fetched, or could not be."""
    host = canonical_host(request.host)
    if host is None:
        return _denied(policy, DenyReason.REQUEST_MALFORMED, "the host is not well-formed")
    if not is_plain_method(request.method):
        return _denied(policy, DenyReason.REQUEST_MALFORMED, "the method is not well-formed, or not in capitals")
    path = canonical(request.path)
    if isinstance(path, PathFault):
        return _denied(policy, DenyReason.PATH_AMBIGUOUS, path.value)

    matched = policy.rules.match(host, path, request.method, request.headers)
    if matched is None:
        return _denied(policy, DenyReason.NO_RULE, "no rule matches the host, path, method and headers")
    rule, parameters = matched

    principal: Principal | None = None
    if not rule.anonymous:
        proved = authenticate(rule, request, cache, keys, now_us, fetched=fetched)
        if isinstance(proved, NeedKey):
            return proved
        if not isinstance(proved, Principal):
            return _denied(policy, proved.reason, proved.detail, rule)
        principal = proved
        unmet = rule.authorize.unmet(principal) if rule.authorize is not None else None
        if unmet is not None:
            return _denied(policy, unmet.reason, unmet.detail, rule, principal)

    if not rule.limits:
        return Decision(None, rule, principal, (), policy.generation, parameters)
    charges = [
        Charge(
            binding.limit,
            counter_key(binding.key_prefix, [part.select(request, principal, parameters) for part in binding.key]),
            binding.cost,
        )
        for binding in rule.limits
    ]
    return Charges(policy, rule, principal, parameters, charges)


def settle(pending: Charges, result: Verdict | StoreFailure) -> Decision | Charges:
    """What the store's answer means; `Charges` again where the policy says to count in this process instead."""
    if isinstance(result, StoreFailure):
        return _without_store(pending, result)
    policy, rule = pending.policy, pending.rule
    reason = None if result.allowed else DenyReason.LIMIT_EXCEEDED
    decision = Decision(reason, rule, pending.principal, result.outcomes, policy.generation, pending.parameters)
    decision.degraded = result.local
    if reason is not None:
        exceeded = [repr(outcome.limit.name) for outcome in result.outcomes if not outcome.allowed]
        decision.detail = f"limit {', '.join(exceeded)} is exceeded"
    return decision


def _without_store(pending: Charges, failure: StoreFailure) -> Decision | Charges:
    """The strictest of the limits' wishes is granted: deny, then error, then local, then allow."""
    policy, rule, principal = pending.policy, pending.rule, pending.principal
    wishes = {binding.on_failure for binding in rule.limits}
    detail = f"the store did not answer: {failure.value}"
    if pending.local or OnFailure.DENY in wishes or OnFailure.ERROR in wishes:
        decision = _denied(policy, DenyReason.LIMITS_UNAVAILABLE, detail, rule, principal)
        decision.as_error = not pending.local and OnFailure.DENY not in wishes
        return decision
    bound = zip(rule.limits, pending.charges, strict=True)
    local = [charge for binding, charge in bound if binding.on_failure is OnFailure.LOCAL]
    if local:
        return Charges(policy, rule, principal, pending.parameters, local, local=True)
    decision = Decision(None, rule, principal, (), policy.generation, pending.parameters)
    decision.degraded = True
    decision.detail = detail
    return decision


def _denied(
    policy: Policy, reason: DenyReason, detail: str, rule: Rule | None = None, principal: Principal | None = None
) -> Decision:
    decision = Decision(reason, rule, principal, (), policy.generation)
    decision.detail = detail
    return decision
