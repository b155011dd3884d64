"""Who was proved. Authorization, limits and the upstream's headers take a `Principal` and nothing less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


@dataclass(frozen=True, slots=True, eq=False)
class Principal:
    """A caller whose credential was verified.

    Attributes:
        issuer: The policy's name of the issuer (`issuers.<name>`), not the URL.
        subject: `sub`; never empty.
        client: `client_id` or `azp`, "" without one.
        scopes: From `scope` (or the claim that the issuer's policy names), split on single spaces.
        roles: From the claim that the issuer's policy names.
        claims: All verified claims; of an API key or a certificate, what is known of it by names of claims.
        method: What proved it: `token`, `opaque_token`, `api_key` or `certificate`.
        tier: The caller's plan, "" without one.
        tenant: On whose behalf the caller acts, "" without one.
        signed_by: The `kid` of the key that signed the token, "" of anything else and where the key has none.
        key_id: Names the API key, the token (`jti`) or the certificate (its digest); "" where it has no name.
    """

    issuer: str
    subject: str
    client: str
    scopes: frozenset[str]
    roles: frozenset[str]
    claims: Mapping[str, Json]
    method: str = "token"
    tier: str = ""
    tenant: str = ""
    key_id: str = ""
    signed_by: str = ""


def claim_at(claims: Mapping[str, Json], path: tuple[str, ...]) -> Json:
    """The claim at a path of names (`realm_access`, `roles`), None where any part is absent or not an object."""
    value: Json = dict(claims) if not isinstance(claims, dict) else claims
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value
