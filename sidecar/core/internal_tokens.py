"""What upstreams are told in place of the caller's credential: a JWT that the sidecar signs (RFC 7519, RFC 9068).

Pure: which key signs at a time, which are published, and the claims about a principal. edges/internal_tokens.py signs.

A key's life needs no state: each says from when it signs, so all sidecars and workers that hold the same keys agree.

    published   from the moment on at which it is held
    signs       from its time on, until the next key's time
    published   for as long again as a token that it signed may live, and `SKEW_US`
    retired     afterwards: not published, and its file may be removed
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sidecar.core.authn import OTHER_CREDENTIALS
from sidecar.core.limits import US_PER_S

if TYPE_CHECKING:
    from sidecar.core.principal import Json, Principal

SKEW_US: Final = 300 * US_PER_S
"""How far the clocks of sidecars may differ before one of them stops to publish a key that another still signs with."""

AUTHENTICATION_CLAIMS: Final = ("acr", "amr", "auth_time", "act")
"""Copied where the credential has them: how the user was authenticated (RFC 9068 section 2.2.1), and who acts for whom
(RFC 8693 section 4.1)."""

OWN_CLAIMS: Final = frozenset(
    {
        "iss", "sub", "aud", "exp", "nbf", "iat", "jti", "client_id", "scope", "roles", "tenant", "tier", "method",
        "origin", "cnf",
    }
)  # fmt: skip
"""Never copied from a credential: the sidecar says these itself, or, as with `cnf`, they bind another token."""


class InternalTokenError(Exception):
    """No token can be made for a principal. The message names a claim and quotes no value."""


@dataclass(frozen=True, slots=True, eq=False)
class SigningKey:
    """A private key in its one use. What it is made of is reached through `sign` alone.

    Attributes:
        kid: The RFC 7638 thumbprint of the public key.
        algorithm: `ES256` or `EdDSA`.
        jwk: The public key as it is published.
        signs_from_us: From when it signs, in microseconds since the epoch.
        sign: From a signing input to its signature in JWS form (RFC 7518 section 3.4, RFC 8037 section 3.1).
    """

    kid: str
    algorithm: str
    jwk: Mapping[str, str]
    signs_from_us: int
    sign: Callable[[bytes], bytes] = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class InternalTokens:
    """How internal tokens are made; compiled from the policy, immutable.

    Attributes:
        issuer: `iss`.
        audiences: `aud`, unless a rule names its own; at least one.
        lifetime_s: From `iat` to `exp`, at most.
        token_type: `typ`.
        claims: Names of claims that are copied from the credential besides `AUTHENTICATION_CLAIMS`.
        directory: Where the keys came from.
        keys: By `signs_from_us`, the earliest first; at least one.
    """

    issuer: str
    audiences: tuple[str, ...]
    lifetime_s: int
    token_type: str
    claims: tuple[str, ...]
    directory: str
    keys: tuple[SigningKey, ...]

    def signing(self, now_us: int) -> SigningKey:
        """The key that signs: the latest whose time has come, or, before that of every key, the earliest."""
        chosen = self.keys[0]
        for key in self.keys:
            if key.signs_from_us <= now_us:
                chosen = key
        return chosen

    def published(self, now_us: int) -> list[SigningKey]:
        """The keys that upstreams must know: of the future, of the present, and those of tokens that may live."""
        overlap_us = self.lifetime_s * US_PER_S + SKEW_US
        successors = [*self.keys[1:], None]
        return [
            key
            for key, successor in zip(self.keys, successors, strict=True)
            if successor is None or now_us < successor.signs_from_us + overlap_us
        ]

    def makes_the_same(self, other: InternalTokens) -> bool:
        """Whether a token that the other one made could be ours."""
        return [key.kid for key in self.keys] == [key.kid for key in other.keys] and all(
            getattr(self, name) == getattr(other, name)
            for name in ("issuer", "audiences", "lifetime_s", "token_type", "claims")
        )


def expiry_s(tokens: InternalTokens, principal: Principal, now_s: int) -> int:
    """When a token about a principal expires: after its lifetime, and never later than any credential of the caller.

    Raises:
        InternalTokenError: A credential's `exp` is no number.
    """
    earliest: int | float = now_s + tokens.lifetime_s
    others = principal.claims.get(OTHER_CREDENTIALS)
    for claims in (principal.claims, *(others.values() if isinstance(others, dict) else ())):
        expires = claims.get("exp") if isinstance(claims, Mapping) else None
        if expires is None:
            continue
        if isinstance(expires, bool) or not isinstance(expires, int | float):
            raise InternalTokenError("the credential's exp is not a number")
        earliest = min(earliest, expires)
    return int(earliest)


def claims_of(
    tokens: InternalTokens, principal: Principal, audiences: Sequence[str], now_s: int, expires_s: int, jti: str
) -> dict[str, Json]:
    """The claims about a principal; what is not known of it is left out, never guessed.

    Args:
        tokens: How tokens are made.
        principal: Who was proved.
        audiences: The rule's own; the policy's where it is empty.
        now_s: Seconds since the epoch.
        expires_s: See `expiry_s`.
        jti: Names the token, and no other.
    """
    aud = list(audiences or tokens.audiences)
    claims: dict[str, Json] = {
        "iss": tokens.issuer,
        "aud": aud[0] if len(aud) == 1 else [*aud],
        "sub": principal.subject,
        "origin": principal.issuer,
        "method": principal.method,
        "iat": now_s,
        "exp": expires_s,
        "jti": jti,
    }
    known = {"client_id": principal.client, "tenant": principal.tenant, "tier": principal.tier}
    claims.update({name: text for name, text in known.items() if text})
    if principal.scopes:
        claims["scope"] = " ".join(sorted(principal.scopes))
    if principal.roles:
        claims["roles"] = [*sorted(principal.roles)]
    for name in (*AUTHENTICATION_CLAIMS, *tokens.claims):
        value = principal.claims.get(name)
        if value is not None:
            claims[name] = value
    return claims
