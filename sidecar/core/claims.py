"""Claims: what must hold before signed content becomes a `Principal` (RFC 7519, RFC 9068, RFC 8725)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, cast

from sidecar.core.decision import DenyReason
from sidecar.core.issuer import ACCESS_TOKEN_TYPE
from sidecar.core.principal import Principal, claim_at

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.core.issuer import IssuerPolicy
    from sidecar.core.principal import Json

_US_PER_S = 1_000_000
_DATE_MAX = 2**53
"""Seconds; every whole number up to here has a double of its own."""

NAME_CHARS_MAX = 256
"""Of `jti`, tier and tenant: they become keys in caches and stores."""

_ACCESS_TOKEN_ONLY = frozenset({ACCESS_TOKEN_TYPE})
_ACCESS_TOKEN_CLAIMS = ("aud", "client_id", "exp", "iat", "jti")
_ID_TOKEN_CLAIMS = ("at_hash", "c_hash", "nonce")

_INVALID = DenyReason.TOKEN_CLAIM_INVALID


class Rejected(NamedTuple):
    """A token that is not believed.

    Attributes:
        reason: For the client, through its row in `decision.REASONS`.
        detail: For the operator: the rule that does not hold. Quotes nothing of the token.
        as_error: What would have proved it failed, under a policy that says `error`: see `decision.Decision.as_error`.
    """

    reason: DenyReason
    detail: str
    as_error: bool = False


def believe(
    claims: dict[str, Json], token_type: str, issuer: IssuerPolicy, now_us: int, signed_by: str = ""
) -> Principal | Rejected:
    """The caller whom these claims describe, provided that a key of this issuer signed them: see `token.verify`.

    `signed_by` is that key's `kid`, "" where it has none.
    """
    fault = (
        _confirmation_fault(claims, issuer)
        or _type_fault(claims, token_type, issuer)
        or _audience_fault(claims, issuer)
        or _date_fault(claims, issuer, now_us)
        or _presence_fault(claims, issuer)
    )
    if fault is not None:
        return fault
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject:
        return Rejected(_INVALID, "sub is missing or not a non-empty string")
    scopes = _strings(claim_at(claims, issuer.scope_claim), spaced=True)
    if scopes is None:
        return Rejected(_INVALID, f"{'.'.join(issuer.scope_claim)} is neither a string nor an array of strings")
    roles = _strings(claim_at(claims, issuer.roles_claim), spaced=False)
    if roles is None:
        return Rejected(_INVALID, f"{'.'.join(issuer.roles_claim)} is neither a string nor an array of strings")
    names: list[str] = []
    for path in (("jti",), issuer.tier_claim, issuer.tenant_claim):
        name = _name(claim_at(claims, path) if path else None)
        if name is None:
            return Rejected(_INVALID, f"{'.'.join(path)} is not a string of 1 to {NAME_CHARS_MAX} characters")
        names.append(name)
    client = claims.get("azp") if claims.get("client_id") is None else claims["client_id"]
    if client is not None and not isinstance(client, str):
        return Rejected(_INVALID, "client_id, or azp without it, is not a string")
    return Principal(
        issuer.name,
        subject,
        client or "",
        scopes,
        roles,
        claims,
        key_id=names[0],
        tier=names[1],
        tenant=names[2] or issuer.tenant,
        signed_by=signed_by,
    )


def still_valid(principal: Principal, issuer: IssuerPolicy, now_us: int) -> Rejected | None:
    """None while the time is within the token's dates and `max_age_s`: repeated whenever a verified token is reused."""
    return _time_fault(principal.claims, issuer, now_us)


def valid_within_us(principal: Principal, issuer: IssuerPolicy) -> tuple[float, float]:
    """From when on, and before when, `still_valid` is None: the same sums, so that a cache does them once."""
    expires: float = principal.claims.get("exp", math.inf)  # type: ignore[assignment] # it was believed: a number
    begins: float = principal.claims.get("nbf", -math.inf)  # type: ignore[assignment] # as above
    if issuer.max_age_s is not None:
        issued: float = principal.claims["iat"]  # type: ignore[assignment] # as above
        expires = min(expires, issued + issuer.max_age_s)
    return (begins - issuer.leeway_s) * _US_PER_S, (expires + issuer.leeway_s) * _US_PER_S


def _time_fault(claims: Mapping[str, Json], issuer: IssuerPolicy, now_us: int) -> Rejected | None:
    """`claims` holds numbers where it holds dates. At `exp` itself a token is expired (RFC 7519 section 4.1.4)."""
    leeway_s = issuer.leeway_s
    expires: float | None = claims.get("exp")  # type: ignore[assignment]
    if expires is not None and now_us >= (expires + leeway_s) * _US_PER_S:
        return Rejected(DenyReason.TOKEN_EXPIRED, f"exp was {now_us // _US_PER_S - int(expires)} s ago")
    begins: float | None = claims.get("nbf")  # type: ignore[assignment]
    if begins is not None and now_us < (begins - leeway_s) * _US_PER_S:
        return Rejected(DenyReason.TOKEN_NOT_YET_VALID, f"nbf is in {int(begins) - now_us // _US_PER_S} s")
    if issuer.max_age_s is not None:
        issued: float | None = claims.get("iat")  # type: ignore[assignment]
        if issued is None:
            return Rejected(_INVALID, "iat is missing, which the policy's maximum age needs")
        if now_us >= (issued + issuer.max_age_s + leeway_s) * _US_PER_S:
            return Rejected(DenyReason.TOKEN_EXPIRED, f"was issued more than {issuer.max_age_s} s ago")
    return None


def _confirmation_fault(claims: dict[str, Json], issuer: IssuerPolicy) -> Rejected | None:
    """A token that is bound to a key (RFC 7800) must not pass for one that any bearer may use.

    Where the policy says how that is proved, `confirmation.confirm` asks for it on each request.
    """
    if "cnf" in claims and issuer.binding is None:
        return Rejected(DenyReason.TOKEN_BINDING_UNSUPPORTED, "cnf is present, and the policy proves no possession")
    return None


def _type_fault(claims: dict[str, Json], token_type: str, issuer: IssuerPolicy) -> Rejected | None:
    """Whether the token is what its type, its profile, or the only type that the policy accepts, says.

    Where only `at+jwt` is accepted, RFC 9068 section 2.2 applies whole. Where a token says nothing better than `JWT`,
    the claims that only ID tokens have (OpenID Connect Core sections 2 and 3.3.2.11) betray it.
    """
    profile = issuer.profile
    if profile.requires_access_token_claims or issuer.token_types == _ACCESS_TOKEN_ONLY:
        missing = [name for name in _ACCESS_TOKEN_CLAIMS if claims.get(name) is None]
        if missing:
            return Rejected(_INVALID, f"{missing[0]} is missing, which RFC 9068 requires")
        if not isinstance(claims["client_id"], str) or not claims["client_id"]:
            return Rejected(_INVALID, "client_id is not a non-empty string, which RFC 9068 requires")
    is_access_token = token_type == ACCESS_TOKEN_TYPE
    if profile.refuses_id_tokens and not is_access_token and not claims.keys().isdisjoint(_ID_TOKEN_CLAIMS):
        return Rejected(DenyReason.TOKEN_TYPE_REFUSED, "is an ID token: has nonce, at_hash or c_hash")
    return None


def _presence_fault(claims: dict[str, Json], issuer: IssuerPolicy) -> Rejected | None:
    """Claims that the policy demands or forbids; one that is null is not there."""
    for path in issuer.required_claims:
        if claim_at(claims, path) is None:
            return Rejected(_INVALID, f"{'.'.join(path)} is missing, which the policy requires")
    for path in issuer.forbidden_claims:
        if claim_at(claims, path) is not None:
            return Rejected(_INVALID, f"{'.'.join(path)} is present, which the policy forbids")
    return None


def _audience_fault(claims: dict[str, Json], issuer: IssuerPolicy) -> Rejected | None:
    """RFC 7519 section 4.1.3. An `aud` that nobody here is named by is a mismatch, also where none is required."""
    if "aud" not in claims:
        return Rejected(_INVALID, "aud is missing") if issuer.require_audience else None
    written = claims["aud"]
    audience = written if isinstance(written, list) else [written]
    if not audience or not all(isinstance(item, str) for item in audience):
        return Rejected(_INVALID, "aud is neither a string nor a non-empty array of strings")
    names = cast("list[str]", audience)
    if issuer.loose_audience:
        matches = not frozenset(map(_loose, issuer.audiences)).isdisjoint(map(_loose, names))
    else:
        matches = not issuer.audiences.isdisjoint(names)
    return None if matches else Rejected(DenyReason.TOKEN_AUDIENCE_MISMATCH, "aud names none of the policy's audiences")


def _loose(audience: str) -> str:
    """Without scheme and one slash at the end, as some gateways compare."""
    return audience.removeprefix("https://").removeprefix("http://").removesuffix("/")


def _date_fault(claims: dict[str, Json], issuer: IssuerPolicy, now_us: int) -> Rejected | None:
    for name in ("exp", "nbf", "iat"):
        if name in claims and not _is_date(claims[name]):
            return Rejected(_INVALID, f"{name} is not a number of seconds from 0 to 2^53")
    expires: float | None = claims.get("exp")  # type: ignore[assignment]
    issued: float | None = claims.get("iat")  # type: ignore[assignment]
    if expires is None and issuer.require_expiry:
        return Rejected(_INVALID, "exp is missing")
    fault = _time_fault(claims, issuer, now_us)
    if fault is not None:
        return fault
    if issued is not None and now_us < (issued - issuer.leeway_s) * _US_PER_S:
        return Rejected(DenyReason.TOKEN_NOT_YET_VALID, f"iat is in {int(issued) - now_us // _US_PER_S} s")
    if issuer.max_lifetime_s is None:
        return None
    if expires is None or issued is None:
        return Rejected(_INVALID, "exp or iat is missing, which the policy's maximum lifetime needs")
    if expires - issued > issuer.max_lifetime_s:
        return Rejected(_INVALID, f"lives longer than {issuer.max_lifetime_s} s")
    return None


def _is_date(value: Json) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _DATE_MAX


def _name(value: Json) -> str | None:
    """A claim that is one name, "" where it is absent; None where it is anything else."""
    if value is None:
        return ""
    return value if isinstance(value, str) and 0 < len(value) <= NAME_CHARS_MAX else None


def _strings(value: Json, *, spaced: bool) -> frozenset[str] | None:
    """A claim that lists names; `spaced`: a string is a list too, split on U+0020 alone (RFC 6749 section 3.3)."""
    if value is None:
        return frozenset()
    if isinstance(value, str):
        return frozenset(filter(None, value.split(" ") if spaced else [value]))
    if isinstance(value, list):
        return frozenset(cast("list[str]", value)) if all(isinstance(item, str) for item in value) else None
    return None
