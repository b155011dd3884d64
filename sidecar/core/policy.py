"""The compiled policy: immutable, replaced as a whole, identified by its generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.core.api_keys import Keyring
    from sidecar.core.descriptors import RateLimitConfig
    from sidecar.core.internal_tokens import InternalTokens
    from sidecar.core.introspection import IntrospectionPolicy
    from sidecar.core.issuer import IssuerPolicy
    from sidecar.core.limits import Limit
    from sidecar.core.rules import RuleTable


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Policy:
    """All that deciding needs. A request reads the current one once and uses it to its end.

    Attributes:
        generation: Counts from 1; grows by one with each policy that was accepted.
        issuers: By `iss`, for every rule together.
        keyrings: API keys, by the policy's names of the keyrings.
        introspection: Endpoints that know opaque tokens, by the policy's names of them.
        ratelimit: The rate limit service's domains; an empty one where the policy names no directory.
        audit_claims: Names of claims that audit events carry besides the subject.
        held_limits: Limits whose takes are holds that can be settled later, by the id that reservations.py has for
            them.
        internal_tokens: What upstreams are told in place of credentials; None where the policy has no such section.
    """

    generation: int
    rules: RuleTable
    issuers: Mapping[str, IssuerPolicy]
    ratelimit: RateLimitConfig
    keyrings: Mapping[str, Keyring] = field(default_factory=dict)
    introspection: Mapping[str, IntrospectionPolicy] = field(default_factory=dict)
    audit_claims: tuple[str, ...] = ()
    held_limits: Mapping[str, Limit] = field(default_factory=dict)
    internal_tokens: InternalTokens | None = None
