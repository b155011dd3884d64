"""Conditions over a principal."""

from __future__ import annotations

import pytest

from sidecar.core.authz import AllOf, AnyOf, Condition, RoleCondition, ScopeCondition, scopes_named
from sidecar.core.decision import DenyReason
from sidecar.core.principal import Principal

READ, WRITE = ScopeCondition("read"), ScopeCondition("write")
ADMIN, SUPPORT = RoleCondition("admin"), RoleCondition("support")


def principal(scopes: str = "", roles: str = "") -> Principal:
    return Principal(
        issuer="main",
        subject="s",
        client="",
        scopes=frozenset(scopes.split()),
        roles=frozenset(roles.split()),
        claims={},
    )


@pytest.mark.parametrize(
    ("condition", "scopes", "roles", "reason"),
    [
        (READ, "read", "", None),
        (READ, "readonly rea", "", DenyReason.SCOPE_INSUFFICIENT),
        (READ, "", "read", DenyReason.SCOPE_INSUFFICIENT),
        (ADMIN, "", "admin", None),
        (ADMIN, "admin", "", DenyReason.ROLE_MISSING),
        (AllOf((READ, ADMIN)), "read", "admin", None),
        (AllOf((READ, ADMIN)), "read", "", DenyReason.ROLE_MISSING),
        (AllOf((READ, ADMIN)), "", "", DenyReason.SCOPE_INSUFFICIENT),
        (AnyOf((ADMIN, READ)), "read", "", None),
        (AnyOf((ADMIN, READ)), "", "", DenyReason.SCOPE_INSUFFICIENT),
        (AnyOf((ADMIN, SUPPORT)), "", "x", DenyReason.ROLE_MISSING),
        (AllOf((READ, AnyOf((ADMIN, SUPPORT)))), "read", "support", None),
        (AllOf(()), "read", "admin", DenyReason.ROLE_MISSING),
        (AnyOf(()), "read", "admin", DenyReason.ROLE_MISSING),
    ],
)
def test_conditions(condition: Condition, scopes: str, roles: str, reason: DenyReason | None) -> None:
    """Scopes and roles are compared as whole strings and never stand for each other; empty lists never hold."""
    unmet = condition.unmet(principal(scopes, roles))
    assert (unmet.reason if unmet else None) is reason


def test_scopes_named_for_the_challenge() -> None:
    """The challenge offers each scope once, in the order of the policy."""
    assert scopes_named(AllOf((READ, AnyOf((ADMIN, WRITE, READ))))) == ("read", "write")
    assert scopes_named(None) == ()
