"""Claims: what must hold before signed content becomes a `Principal` (RFC 7519, RFC 9068, RFC 8725)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from sidecar.core.decision import DenyReason
from sidecar.core.principal import Principal, claim_at

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.core.issuer import IssuerPolicy
    from sidecar.core.principal import Json

_US_PER_S = 1_000_000
_DATE_MAX = 2**53
"""Seconds; every whole number up to here has a double of its own."""

_ACCESS_TOKEN = "at+jwt"  # noqa: S105 - a media type (RFC 9068 section 2.1)
_ACCESS_TOKEN_ONLY = frozenset({_ACCESS_TOKEN})
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
    """The caller whom these claims describe; their signature has been verified with a key of this issuer.

    `signed_by` is that key's `kid`, "" where it has none.
    """
    fault = (
        _confirmation_fault(claims)
        or _type_fault(claims, token_type, issuer)
        or _audience_fault(claims, issuer)
        or _date_fault(claims, issuer, now_us)
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
    client = claims.get("client_id", claims.get("azp"))
    return Principal(
        issuer.name,
        subject,
        client if isinstance(client, str) else "",
        scopes,
        roles,
        claims,
        signed_by=signed_by,
    )


def still_valid(principal: Principal, issuer: IssuerPolicy, now_us: int) -> Rejected | None:
    """None while the time is within `nbf` and `exp`: the check that is repeated whenever a verified token is reused."""
    return _time_fault(principal.claims, issuer.leeway_s, now_us)


def valid_within_us(principal: Principal, issuer: IssuerPolicy) -> tuple[float, float]:
    """From when on, and before when, `still_valid` is None: the same sums, so that a cache does them once."""
    expires: float = principal.claims.get("exp", math.inf)  # type: ignore[assignment] # it was believed: a number
    begins: float = principal.claims.get("nbf", -math.inf)  # type: ignore[assignment] # as above
    return (begins - issuer.leeway_s) * _US_PER_S, (expires + issuer.leeway_s) * _US_PER_S


def _time_fault(claims: Mapping[str, Json], leeway_s: int, now_us: int) -> Rejected | None:
    """`claims` holds numbers where it holds dates. At `exp` itself a token is expired (RFC 7519 section 4.1.4)."""
    expires: float | None = claims.get("exp")  # type: ignore[assignment]
    if expires is not None and now_us >= (expires + leeway_s) * _US_PER_S:
        return Rejected(DenyReason.TOKEN_EXPIRED, f"exp was {now_us // _US_PER_S - int(expires)} s ago")
    begins: float | None = claims.get("nbf")  # type: ignore[assignment]
    if begins is not None and now_us < (begins - leeway_s) * _US_PER_S:
        return Rejected(DenyReason.TOKEN_NOT_YET_VALID, f"nbf is in {int(begins) - now_us // _US_PER_S} s")
    return None


def _confirmation_fault(claims: dict[str, Json]) -> Rejected | None:
    """A token that is bound to a key (RFC 7800) must not pass for one that any bearer may use."""
    if "cnf" in claims:
        return Rejected(DenyReason.TOKEN_BINDING_UNSUPPORTED, "cnf is present, and no proof of possession is supported")
    return None


def _type_fault(claims: dict[str, Json], token_type: str, issuer: IssuerPolicy) -> Rejected | None:
    """Whether the token is what its type, or the only type that the policy accepts, says.

    Where only `at+jwt` is accepted, RFC 9068 section 2.2 applies whole. Where a token says nothing better than `JWT`,
    the claims that only ID tokens have (OpenID Connect Core sections 2 and 3.3.2.11) betray it.
    """
    if issuer.token_types == _ACCESS_TOKEN_ONLY:
        missing = [name for name in _ACCESS_TOKEN_CLAIMS if name not in claims]
        if missing:
            return Rejected(_INVALID, f"{missing[0]} is missing, which RFC 9068 requires")
    elif token_type != _ACCESS_TOKEN and not claims.keys().isdisjoint(_ID_TOKEN_CLAIMS):
        return Rejected(DenyReason.TOKEN_TYPE_REFUSED, "is an ID token: has nonce, at_hash or c_hash")
    return None


def _audience_fault(claims: dict[str, Json], issuer: IssuerPolicy) -> Rejected | None:
    """RFC 7519 section 4.1.3. An `aud` that nobody here is named by is a mismatch, also where none is required."""
    if "aud" not in claims:
        return Rejected(_INVALID, "aud is missing") if issuer.require_audience else None
    audience = claims["aud"]
    if isinstance(audience, str):
        matches = audience in issuer.audiences
    elif isinstance(audience, list) and audience and all(isinstance(item, str) for item in audience):
        matches = not issuer.audiences.isdisjoint(audience)
    else:
        return Rejected(_INVALID, "aud is neither a string nor a non-empty array of strings")
    return None if matches else Rejected(DenyReason.TOKEN_AUDIENCE_MISMATCH, "aud names none of the policy's audiences")


def _date_fault(claims: dict[str, Json], issuer: IssuerPolicy, now_us: int) -> Rejected | None:
    for name in ("exp", "nbf", "iat"):
        if name in claims and not _is_date(claims[name]):
            return Rejected(_INVALID, f"{name} is not a number of seconds from 0 to 2^53")
    expires: float | None = claims.get("exp")  # type: ignore[assignment]
    issued: float | None = claims.get("iat")  # type: ignore[assignment]
    if expires is None and issuer.require_expiry:
        return Rejected(_INVALID, "exp is missing")
    fault = _time_fault(claims, issuer.leeway_s, now_us)
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


def _strings(value: Json, *, spaced: bool) -> frozenset[str] | None:
    """A claim that lists names; `spaced`: a string is a list too, split on U+0020 alone (RFC 6749 section 3.3)."""
    if value is None:
        return frozenset()
    if isinstance(value, str):
        return frozenset(filter(None, value.split(" ") if spaced else [value]))
    if isinstance(value, list):
        names = frozenset(item for item in value if isinstance(item, str))
        return names if all(isinstance(item, str) for item in value) else None
    return None
