"""What the policy says about one issuer of tokens: compiled, immutable, compared by value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

ALGORITHMS: frozenset[str] = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
"""The signature algorithms that can be accepted (RFC 7518 section 3.1, RFC 8037): asymmetric ones only."""

LEEWAY_S_MAX = 300
TOKEN_BYTES_MAX = 8 * 1024


@dataclass(frozen=True, slots=True)
class JwksUrl:
    """Keys from a JWKS document at a URL (RFC 7517 section 5)."""

    url: str


@dataclass(frozen=True, slots=True)
class OidcDiscovery:
    """Keys from the `jwks_uri` of `<issuer>/.well-known/openid-configuration` (OpenID Connect Discovery section 4)."""

    issuer: str

    @property
    def url(self) -> str:
        """Where the configuration is."""
        return self.issuer.rstrip("/") + "/.well-known/openid-configuration"


@dataclass(frozen=True, slots=True)
class JwksFile:
    """Keys from a JWKS file, read again when it changes."""

    path: str


KeySource: TypeAlias = JwksUrl | OidcDiscovery | JwksFile


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerPolicy:
    """One issuer.

    Attributes:
        name: The policy's name for it (`issuers.<name>`); labels metrics.
        issuer: `iss`, compared as an exact string.
        audiences: At least one of them must be in `aud`; empty only where `require_audience` is False.
        algorithms: Accepted `alg` values, a non-empty subset of `ALGORITHMS`.
        token_types: Accepted `typ` values, lower case, without `application/`; "" stands for an absent `typ`.
        leeway_s: Tolerated clock difference for exp, nbf and iat, 0 to 300.
        scope_claim, roles_claim: Paths of claim names.
        insecure_http: Allows http:// (loopback only) for fetching keys.
        allow_missing_kid: Without `kid`, the single key that fits the algorithm is used, if there is exactly one.
        refresh_s: How often keys are fetched in the background (plus or minus 10 %).
        keys_stale_s_max: How long the last good keys are used while fetching fails.
        required: Not ready until its keys have been loaded once.
    """

    name: str
    issuer: str
    audiences: frozenset[str]
    algorithms: frozenset[str]
    keys: KeySource
    token_types: frozenset[str] = frozenset({"", "jwt", "at+jwt"})
    require_audience: bool = True
    require_expiry: bool = True
    leeway_s: int = 30
    max_lifetime_s: int | None = None
    scope_claim: tuple[str, ...] = ("scope",)
    roles_claim: tuple[str, ...] = ("roles",)
    token_bytes_max: int = TOKEN_BYTES_MAX
    insecure_http: bool = False
    ca_file: str | None = None
    allow_missing_kid: bool = True
    refresh_s: int = 300
    fetch_timeout_s: float = 5.0
    keys_stale_s_max: int = 86_400
    required: bool = True
