"""May they? Conditions over a principal. An empty `all_of` fails, like an empty `any_of`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from sidecar.core.decision import DenyReason

if TYPE_CHECKING:
    from sidecar.core.principal import Principal


@dataclass(frozen=True, slots=True)
class Unmet:
    """A condition that does not hold: the reason for the client, the detail for the operator."""

    reason: DenyReason
    detail: str


@dataclass(frozen=True, slots=True)
class ScopeCondition:
    """The token carries this scope, compared as a whole string."""

    scope: str

    def unmet(self, principal: Principal) -> Unmet | None:
        """None when it holds."""
        if self.scope in principal.scopes:
            return None
        return Unmet(DenyReason.SCOPE_INSUFFICIENT, f"scope {self.scope!r} is missing")


@dataclass(frozen=True, slots=True)
class RoleCondition:
    """The principal has this role, compared as a whole string."""

    role: str

    def unmet(self, principal: Principal) -> Unmet | None:
        """None when it holds."""
        if self.role in principal.roles:
            return None
        return Unmet(DenyReason.ROLE_MISSING, f"role {self.role!r} is missing")


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every condition holds, and there is at least one."""

    conditions: tuple[Condition, ...]

    def unmet(self, principal: Principal) -> Unmet | None:
        """The first condition that does not hold."""
        for condition in self.conditions:
            failed = condition.unmet(principal)
            if failed is not None:
                return failed
        return None if self.conditions else Unmet(DenyReason.ROLE_MISSING, "all_of is empty")


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one condition holds."""

    conditions: tuple[Condition, ...]

    def unmet(self, principal: Principal) -> Unmet | None:
        """Why none holds: a missing scope is named before a missing role, since the client can ask for a scope."""
        failures: list[Unmet] = []
        for condition in self.conditions:
            failed = condition.unmet(principal)
            if failed is None:
                return None
            failures.append(failed)
        if not failures:
            return Unmet(DenyReason.ROLE_MISSING, "any_of is empty")
        reasons = [failed.reason for failed in failures]
        reason = DenyReason.SCOPE_INSUFFICIENT if DenyReason.SCOPE_INSUFFICIENT in reasons else DenyReason.ROLE_MISSING
        return Unmet(reason, "none of: " + "; ".join(failed.detail for failed in failures))


Condition: TypeAlias = ScopeCondition | RoleCondition | AllOf | AnyOf


def scopes_named(condition: Condition | None) -> tuple[str, ...]:
    """Every scope a condition names, in order, once: what the `scope` attribute of a challenge offers (RFC 6750)."""
    match condition:
        case None | RoleCondition():
            return ()
        case ScopeCondition(scope):
            return (scope,)
        case AllOf(conditions) | AnyOf(conditions):
            return tuple(dict.fromkeys(scope for inner in conditions for scope in scopes_named(inner)))
