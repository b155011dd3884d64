"""What the policy says about one issuer of tokens: compiled, immutable, compared by value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from sidecar.core.confirmation import Binding

SYMMETRIC: frozenset[str] = frozenset({"HS256", "HS384", "HS512"})
"""Message authentication codes (RFC 7518 section 3.2): accepted only with keys declared as such, from a file."""

ALGORITHMS: frozenset[str] = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "ES256K", "EdDSA", "Ed25519"}
)
"""The signature algorithms that can be accepted (RFC 7518 section 3.1, RFC 8037, RFC 8812, RFC 9864)."""

SUPPORTED: frozenset[str] = ALGORITHMS | SYMMETRIC

LEEWAY_S_MAX = 300
TOKEN_BYTES_MAX = 8 * 1024


KEYS_MAX = 100
"""Keys in one set, unless the policy says otherwise; a set with more is refused whole."""
JWKS_BYTES_MAX = 512 * 1024

ACCESS_TOKEN_TYPE = "at+jwt"  # noqa: S105 - a media type (RFC 9068 section 2.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Which of the rules that issuers disagree about are held to. All others hold in each profile.

    Attributes:
        token_types: The `typ` values that are accepted where the policy names none.
        requires_access_token_claims: Each of the claims that RFC 9068 section 2.2 requires must be there.
        refuses_id_tokens: A token whose `typ` is not `at+jwt` is refused where it has a claim that ID tokens have.
        refuses_key_pointers: `jku`, `jwk` or `x5u` in the header are refused. They are never used, in no profile.
        may_loosen_audience: The policy may have audiences compared without scheme and trailing slash.
    """

    name: str
    token_types: frozenset[str]
    requires_access_token_claims: bool
    refuses_id_tokens: bool
    refuses_key_pointers: bool
    may_loosen_audience: bool


STRICT = Profile(
    name="strict",
    token_types=frozenset({"", "jwt", ACCESS_TOKEN_TYPE}),
    requires_access_token_claims=False,
    refuses_id_tokens=True,
    refuses_key_pointers=True,
    may_loosen_audience=False,
)
RFC9068 = Profile(
    name="rfc9068",
    token_types=frozenset({ACCESS_TOKEN_TYPE}),
    requires_access_token_claims=True,
    refuses_id_tokens=True,
    refuses_key_pointers=True,
    may_loosen_audience=False,
)
COMPAT = Profile(
    name="compat",
    token_types=frozenset({"", "jwt", ACCESS_TOKEN_TYPE}),
    requires_access_token_claims=False,
    refuses_id_tokens=False,
    refuses_key_pointers=False,
    may_loosen_audience=True,
)
PROFILES = {profile.name: profile for profile in (STRICT, RFC9068, COMPAT)}


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
    """Keys from a JWKS file, read again when it changes.

    Attributes:
        symmetric: The file holds `oct` keys, for `SYMMETRIC` algorithms alone.
    """

    path: str
    symmetric: bool = False


KeySource: TypeAlias = JwksUrl | OidcDiscovery | JwksFile


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSettings:
    """How an issuer's keys are fetched, beside from where. Files are named by their paths; times in seconds.

    Attributes:
        insecure_http: Allows http://, to loopback only.
        ca_file: PEM file of the authorities that may vouch for the server; the system's where None.
        client_certificate, client_key: PEM files shown to servers that ask for a certificate; both or neither.
        proxy: `http://host:port` that is asked to CONNECT; None: straight to the server.
        headers: Names of headers, each with the file that holds its value; sent to the origin in the policy alone.
        bearer_token_file: File of a token that is sent in the Authorization header, as `headers` are.
        timeout_s: For one document as a whole.
        connect_timeout_s: For the connection, TLS and the proxy's part of it included.
        read_timeout_s: Between two pieces of an answer.
        body_bytes_max: Longest document that is read.
        private_addresses: A discovered `jwks_uri` on another host than the issuer's may be on a private network.
    """

    insecure_http: bool = False
    ca_file: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None
    proxy: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    bearer_token_file: str | None = None
    timeout_s: float = 5.0
    connect_timeout_s: float = 2.0
    read_timeout_s: float = 5.0
    body_bytes_max: int = JWKS_BYTES_MAX
    private_addresses: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerPolicy:
    """One issuer.

    Attributes:
        name: The policy's name for it (`issuers.<name>`); labels metrics.
        issuer: `iss`, compared as an exact string.
        audiences: At least one of them must be in `aud`; empty only where `require_audience` is False.
        algorithms: Accepted `alg` values, a non-empty subset of `ALGORITHMS`, or of `SYMMETRIC` where the keys are.
        profile: What is demanded of tokens beyond what is demanded of all.
        token_types: Accepted `typ` values, lower case, without `application/`; "" stands for an absent `typ`.
        loose_audience: Compare `aud` without `https://` or `http://` and one slash at its end.
        leeway_s: Tolerated clock difference for exp, nbf and iat, 0 to 300.
        max_lifetime_s: Longest time from iat to exp.
        max_age_s: Longest time since iat, whatever exp says.
        required_claims, forbidden_claims: Paths of claims that must, or must not, be there; null is not there.
        scope_claim, roles_claim, tier_claim, tenant_claim: Paths of claim names; `()` for none.
        tenant: On whose behalf whoever has its tokens acts, where there is no `tenant_claim`; "" for nobody's.
        allow_missing_kid: Without `kid`, the single key that fits the algorithm is used, if there is exactly one.
        refresh_s: How often keys are fetched in the background (plus or minus 10 %).
        fetch: How they are fetched.
        keys_max: Keys in one set.
        keys_stale_s_max: How long the last good keys are used while fetching fails.
        keys_persist: File in which the last good keys outlive a restart.
        required: Not ready until its keys have been loaded once.
        binding: How the bindings of its tokens are proved; None: bound tokens are refused.
    """

    name: str
    issuer: str
    audiences: frozenset[str]
    algorithms: frozenset[str]
    keys: KeySource
    profile: Profile = STRICT
    token_types: frozenset[str] = STRICT.token_types
    require_audience: bool = True
    loose_audience: bool = False
    require_expiry: bool = True
    leeway_s: int = 30
    max_lifetime_s: int | None = None
    max_age_s: int | None = None
    required_claims: tuple[tuple[str, ...], ...] = ()
    forbidden_claims: tuple[tuple[str, ...], ...] = ()
    scope_claim: tuple[str, ...] = ("scope",)
    roles_claim: tuple[str, ...] = ("roles",)
    tier_claim: tuple[str, ...] = ()
    tenant_claim: tuple[str, ...] = ()
    tenant: str = ""
    token_bytes_max: int = TOKEN_BYTES_MAX
    allow_missing_kid: bool = True
    refresh_s: int = 300
    fetch: FetchSettings = FetchSettings()
    keys_max: int = KEYS_MAX
    keys_stale_s_max: int = 86_400
    keys_persist: str | None = None
    required: bool = True
    binding: Binding | None = None
