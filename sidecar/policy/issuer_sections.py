"""The `issuers` section as it is written: whose tokens are accepted, how they are checked, where their keys are."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from sidecar.core.issuer import JWKS_BYTES_MAX, KEYS_MAX, LEEWAY_S_MAX, TOKEN_BYTES_MAX
from sidecar.policy.binding_sections import BoundTokens
from sidecar.policy.fields import Between, Duration, HeaderName, HttpUrl, Name, Text
from sidecar.policy.limit_sections import ClaimPath
from sidecar.policy.model import Choice, Model

FETCH_HEADERS_MAX = 16
CLAIMS_MAX = 32

AlgorithmName: TypeAlias = Literal[
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "ES256K",
    "EdDSA",
    "Ed25519",
    "HS256",
    "HS384",
    "HS512",
]


class KeySource(Choice):
    """Where an issuer's keys come from."""

    discovery: Literal[True] | None = Field(
        None, description="OpenID Connect Discovery at the issuer's URL.", examples=[True]
    )
    jwks_url: HttpUrl | None = Field(
        None, description="URL of a JWKS document.", examples=["https://issuer.example/jwks.json"]
    )
    jwks_file: Text | None = Field(
        None, description="A JWKS file; read again when it changes.", examples=["keys/jwks.json"]
    )
    symmetric_file: Text | None = Field(
        None,
        description="A JWKS file of `oct` keys with `alg`, for HS256, HS384 and HS512: who can read it can sign.",
        examples=["secrets/issuer-keys.json"],
    )


class Fetch(Model):
    """How an issuer's keys are fetched over HTTP. Redirects are never followed."""

    client_certificate: Text | None = Field(
        None,
        description="PEM file of the certificate to show to a server that asks for one; needs `client_key`.",
        examples=["tls/issuer-client.crt"],
    )
    client_key: Text | None = Field(
        None, description="PEM file of its private key, not encrypted.", examples=["tls/issuer-client.key"]
    )
    proxy: HttpUrl | None = Field(
        None,
        description="Proxy that is asked to CONNECT. Variables such as HTTPS_PROXY are never looked at.",
        examples=["http://proxy.internal:3128"],
    )
    headers: dict[HeaderName, Text] = Field(
        {},
        max_length=FETCH_HEADERS_MAX,
        description=(
            "Headers to send, each with the file that holds its value, read for each fetch. A discovered `jwks_uri` "
            "of another origin is not sent them."
        ),
        examples=[{"x-gateway-key": "secrets/gateway-key"}],
    )
    bearer_token_file: Text | None = Field(
        None,
        description="File of a token to send as `Authorization: Bearer`: read, and kept from others, as `headers` are.",
        examples=["/var/run/secrets/kubernetes.io/serviceaccount/token"],
    )
    connect_timeout: Annotated[Duration, Between("100ms", "1m")] = Field(
        "2s", description="Time for the connection, TLS and a proxy's answer.", examples=["2s"]
    )
    read_timeout: Annotated[Duration, Between("100ms", "1m")] = Field(
        "5s", description="Longest silence within an answer; `fetch_timeout` bounds the whole.", examples=["5s"]
    )
    body_bytes_max: int = Field(
        JWKS_BYTES_MAX, ge=1024, le=4 * 1024 * 1024, description="Longest document that is read.", examples=[65536]
    )
    keys_max: int = Field(
        KEYS_MAX, ge=1, le=1000, description="Most keys in a set; one with more is refused whole.", examples=[20]
    )
    private_addresses: bool = Field(
        False,
        description=(
            "Allow a discovered `jwks_uri` of another origin than the issuer's to be at a private, loopback or "
            "link-local address."
        ),
        examples=[False],
    )


class Issuer(BoundTokens):
    """Whose tokens are accepted, and how they are checked."""

    issuer: Text = Field(description="`iss`, compared as an exact string.", examples=["https://issuer.example"])
    profile: Literal["strict", "rfc9068", "compat"] = Field(
        "strict",
        description="Which of the rules that issuers disagree about are held to: docs/tokens.md has the table.",
        examples=["rfc9068"],
    )
    audiences: list[Text] = Field(
        [],
        description="One of them must be in `aud`. At least one, unless `require_audience` is false.",
        examples=[["orders-api"]],
    )
    algorithms: list[AlgorithmName] = Field(
        min_length=1,
        description="Accepted signature algorithms; HS256, HS384 and HS512 with `keys.symmetric_file` alone.",
        examples=[["RS256", "ES256"]],
    )
    keys: KeySource = Field(description="Where the keys come from.", examples=[{"discovery": True}])
    token_types: list[str] | None = Field(
        None,
        min_length=1,
        description='Accepted `typ` headers, without `application/`; "" for none. The profile\'s if left out.',
        examples=[["at+jwt"]],
    )
    require_audience: bool = Field(True, description="Refuse tokens without a fitting `aud`.", examples=[True])
    loose_audience: bool = Field(
        False,
        description="Compare `aud` without `https://` or `http://` and one slash at its end; with `compat` alone.",
        examples=[False],
    )
    require_expiry: bool = Field(True, description="Refuse tokens without `exp`.", examples=[True])
    leeway: Annotated[Duration, Between("0s", f"{LEEWAY_S_MAX // 60}m", "1s")] = Field(
        "30s", description="Tolerated difference between clocks for `exp`, `nbf` and `iat`.", examples=["30s"]
    )
    max_lifetime: Annotated[Duration, Between("1s", "366d", "1s")] | None = Field(
        None, description="Refuse tokens whose `exp` is further than this from `iat`.", examples=["1h"]
    )
    max_age: Annotated[Duration, Between("1s", "366d", "1s")] | None = Field(
        None,
        description="Refuse tokens that were issued (`iat`) longer ago than this, whatever `exp` says.",
        examples=["12h"],
    )
    required_claims: list[ClaimPath] = Field(
        [],
        max_length=CLAIMS_MAX,
        description="Claims that must be there and not null; `a.b` goes into objects.",
        examples=[["jti", "realm_access.roles"]],
    )
    forbidden_claims: list[ClaimPath] = Field(
        [], max_length=CLAIMS_MAX, description="Claims that must not be there, or be null.", examples=[["act"]]
    )
    scope_claim: ClaimPath = Field(
        "scope", description="The claim with the scopes; `a.b` goes into objects.", examples=["scope"]
    )
    roles_claim: ClaimPath = Field(
        "roles",
        description="The claim with the roles; a list of names where a name has a dot of its own.",
        examples=["realm_access.roles", ["https://issuer.example/roles"]],
    )
    tier_claim: ClaimPath | None = Field(
        None, description="The claim with the caller's tier (a string); none where it is left out.", examples=["plan"]
    )
    tenant_claim: ClaimPath | None = Field(
        None, description="The claim with the caller's tenant (a string); none where it is left out.", examples=["tid"]
    )
    tenant: Name | None = Field(
        None, description="The tenant of all of its tokens, instead of `tenant_claim`.", examples=["acme"]
    )
    token_bytes_max: int = Field(
        TOKEN_BYTES_MAX, ge=256, le=64 * 1024, description="Longest accepted token, in bytes.", examples=[4096]
    )
    insecure_http: bool = Field(
        False, description="Allow `http://` for fetching keys from this machine, for trying things.", examples=[False]
    )
    ca_file: Text | None = Field(
        None, description="PEM file with the authorities to trust when fetching keys.", examples=["tls/issuer-ca.pem"]
    )
    allow_missing_kid: bool = Field(
        True,
        description="Without `kid`, use the one key that fits the algorithm, if there is exactly one.",
        examples=[True],
    )
    refresh: Annotated[Duration, Between("10s", "1d", "1s")] = Field(
        "5m",
        description="How often keys are fetched in the background (+-10 %); sooner, to 30 s, where max-age says so.",
        examples=["5m"],
    )
    fetch_timeout: Annotated[Duration, Between("100ms", "1m")] = Field(
        "5s", description="Time for one fetch of keys.", examples=["5s"]
    )
    fetch: Fetch = Field(Fetch(), description="How the keys are fetched.", examples=[{"keys_max": 20}])
    keys_stale_max: Annotated[Duration, Between("0s", "30d", "1s")] = Field(
        "1d", description="How long the last good keys are used while fetching fails.", examples=["24h"]
    )
    keys_persist: Text | None = Field(
        None,
        description=(
            "File in which the last good keys are kept, so that a restart while the issuer is away has keys until "
            "they are `keys_stale_max` old."
        ),
        examples=["state/main-keys.json"],
    )
    required: bool = Field(True, description="Not ready until its keys were loaded once.", examples=[True])
