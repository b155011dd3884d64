"""The policy as it is written: one model for each section, a description for every key.

Models check what can be seen in one place; what needs two places or the world (names that refer to something, files,
rules that collide) is checked when the document is compiled. Values are kept as they are written: see `fields`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from sidecar.policy.api_key_section import KEYRINGS_MAX, ApiKeyring
from sidecar.policy.authenticate_section import Authenticate, CredentialUse
from sidecar.policy.binding_sections import TRUSTS_MAX, CertificatesSection, DpopSection
from sidecar.policy.fields import (
    HeaderName,
    Host,
    HttpUrl,
    Method,
    Name,
    PathText,
    PrefixText,
    Printable,
    Scope,
    TemplateText,
    Text,
    UpstreamHeaderName,
)
from sidecar.policy.internal_tokens_section import AUDIENCES_MAX, InternalTokensSection
from sidecar.policy.introspection_section import INTROSPECTION_MAX, IntrospectionSection
from sidecar.policy.issuer_sections import Issuer
from sidecar.policy.limit_sections import AnswersSection, LimitSection, Selector
from sidecar.policy.model import BY_KIND, MAPPING, TEXT, Choice, FailureChoice, Model
from sidecar.policy.ratelimit_section import RateLimitSection
from sidecar.policy.redis_sections import RedisSection
from sidecar.policy.revocation_section import AbuseSection, RevocationSection
from sidecar.policy.sections import (
    AdminSection,
    AuditSection,
    LogSection,
    ServerSection,
)

LIMITS_PER_RULE_MAX = 16
"""All of them are charged in one script call."""

UPSTREAM_HEADERS_MAX = 64
ISSUERS_MAX = 256


class UpstreamSection(Model):
    """What the upstream is told."""

    headers: dict[UpstreamHeaderName, Selector] = Field(
        {},
        max_length=UPSTREAM_HEADERS_MAX,
        description="Headers to set from selectors. A client's own headers of these names are always removed.",
        examples=[{"x-user-id": {"claim": "sub"}}],
    )
    credential: CredentialUse | None = Field(
        None,
        description="What becomes of the credential: `remove` it from the request (as without this key), `forward` it, "
        "or `replace` it by a token that the sidecar signs (`internal_tokens`). Credentials that other rules look for "
        "are removed in any case, but for anonymous rules that forward.",
        examples=["forward"],
    )
    audiences: list[Text] = Field(
        [],
        max_length=AUDIENCES_MAX,
        description="With `replace`: the token's `aud`, instead of `internal_tokens.audiences`.",
        examples=[["orders"]],
    )


class PathMatch(Choice):
    """Which paths."""

    exact: PathText | None = Field(None, description="This path as a whole.", examples=["/health"])
    prefix: PrefixText | None = Field(
        None, description="This path and everything below it: `/a` covers `/a/b`, never `/ab`.", examples=["/public"]
    )
    template: TemplateText | None = Field(
        None,
        description="Segments, each literal or a `{parameter}` that stands for one segment.",
        examples=["/orders/{id}"],
    )


class HeaderPresent(Model):
    """A header that must be there, with whatever value."""

    present: Literal[True] = Field(description="The header is there.", examples=[True])


class Match(Model):
    """Which requests a rule is for. The most specific rule that matches applies; file order decides nothing."""

    host: Host | None = Field(
        None,
        description="A host, or `*.suffix` for every host below it; the port does not matter. Any without it.",
        examples=["api.example.com", "*.example.com"],
    )
    path: PathMatch = Field(description="Which paths.", examples=[{"template": "/orders/{id}"}])
    methods: list[Method] | None = Field(
        None, min_length=1, max_length=64, description="Which methods; any without it.", examples=[["GET", "HEAD"]]
    )
    headers: dict[
        HeaderName,
        Annotated[Annotated[Printable, TEXT] | Annotated[HeaderPresent, MAPPING], BY_KIND],
    ] = Field(
        {},
        max_length=16,
        description="Headers that must equal a text, or be `{present: true}`.",
        examples=[{"x-api-version": "2"}],
    )


class Condition(Choice):
    """What the caller must have."""

    scope: Scope | None = Field(None, description="This scope.", examples=["orders:read"])
    role: Text | None = Field(None, description="This role.", examples=["admin"])
    all_of: list[Condition] | None = Field(
        None, min_length=1, description="Every one of these.", examples=[[{"scope": "orders:read"}, {"role": "admin"}]]
    )
    any_of: list[Condition] | None = Field(
        None, min_length=1, description="At least one of these.", examples=[[{"role": "admin"}, {"role": "support"}]]
    )


class RuleSection(Model):
    """What applies to the requests that match: who may, how often, and what the upstream is told."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["authenticate"]}, {"required": ["anonymous"]}]},
    )

    name: Name = Field(description="Names the rule in logs, metrics and answers; once.", examples=["read-order"])
    match: Match = Field(description="Which requests.", examples=[{"path": {"prefix": "/public"}}])
    anonymous: Literal[True] | None = Field(
        None, description="Let everybody in. Instead of `authenticate`.", examples=[True]
    )
    authenticate: Authenticate | None = Field(
        None, description="Who may be proved. Instead of `anonymous`.", examples=[{"issuers": ["main"]}]
    )
    authorize: Condition | None = Field(
        None,
        description="What the caller must have; whoever was proved may without it.",
        examples=[{"scope": "orders:read"}],
    )
    limits: list[Name] = Field(
        [], max_length=LIMITS_PER_RULE_MAX, description="Names of limits; all must have room.", examples=[["per-user"]]
    )
    upstream: UpstreamSection = Field(
        UpstreamSection(),
        description="What the upstream is told, added to the policy's `upstream`.",
        examples=[{"headers": {"x-order": {"path_parameter": "id"}}}],
    )
    realm: Printable = Field("sidecar", description="The challenge's realm.", examples=["orders"])
    resource_metadata: HttpUrl | None = Field(
        None,
        description="URL of the protected resource's metadata for the challenge (RFC 9728).",
        examples=["https://api.example.com/.well-known/oauth-protected-resource"],
    )


class Document(Model):
    """A whole policy. What no rule matches is denied."""

    server: ServerSection = Field(
        ServerSection(), description="The gRPC server that Envoy asks.", examples=[{"listen": "127.0.0.1:9090"}]
    )
    admin: AdminSection = Field(
        AdminSection(), description="Probes, metrics, and the compiled policy.", examples=[{"listen": "127.0.0.1:9091"}]
    )
    redis: RedisSection | None = Field(
        None,
        description="Where limits are counted; needed by `limits` and `ratelimit`.",
        examples=[{"url": "embedded"}],
    )
    on_redis_failure: FailureChoice = Field(
        "deny",
        description="What happens to a limited request while Redis cannot answer: `deny` it, `error` (Envoy's "
        "failure_mode_allow decides), `local` (each instance counts for itself), or `allow`.",
        examples=["deny"],
    )
    local_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="With `local`: the part of each limit that one instance grants by itself. Changes need a restart.",
        examples=[0.5],
    )
    issuers: dict[Name, Issuer] = Field(
        {},
        max_length=ISSUERS_MAX,
        description="Whose tokens are accepted, by a name that rules refer to.",
        examples=[
            {
                "main": {
                    "issuer": "https://issuer.example",
                    "audiences": ["orders-api"],
                    "algorithms": ["RS256"],
                    "keys": {"discovery": True},
                }
            }
        ],
    )
    api_keys: dict[Name, ApiKeyring] = Field(
        {},
        max_length=KEYRINGS_MAX,
        description="Keyrings: API keys of one kind each, by a name that rules refer to.",
        examples=[{"partners": {"prefix": "acme", "environment": "live", "pepper_file": "secrets/pepper"}}],
    )
    introspection: dict[Name, IntrospectionSection] = Field(
        {},
        max_length=INTROSPECTION_MAX,
        description="Endpoints that know opaque tokens, by a name that rules refer to.",
        examples=[
            {
                "legacy": {
                    "url": "https://issuer.example/introspect",
                    "client": {"basic": {"id": "sidecar", "secret_file": "secrets/introspection"}},
                    "audiences": ["orders-api"],
                }
            }
        ],
    )
    dpop: DpopSection | None = Field(
        None,
        description="How DPoP proofs are judged; tokens that are bound to a key are refused without it.",
        examples=[{"origin": "https://api.example.com"}],
    )
    certificates: dict[Name, CertificatesSection] = Field(
        {},
        max_length=TRUSTS_MAX,
        description="Where client certificates are found and whom they identify, by a name that others refer to.",
        examples=[{"mesh": {"source": "peer_certificate", "trust_domains": ["prod.example.com"]}}],
    )
    limits: dict[Name, LimitSection] = Field(
        {},
        description="Limits, by a name that rules refer to; its counters are shared wherever it is named.",
        examples=[{"per-user": {"rate": "100/minute", "key": {"claim": "sub"}}}],
    )
    answers: AnswersSection = Field(
        AnswersSection(),
        description="What answers say about limits.",
        examples=[{"limit_headers": ["ratelimit", "x_ratelimit"]}],
    )
    upstream: UpstreamSection = Field(
        UpstreamSection(),
        description="What the upstream is told by every rule.",
        examples=[{"headers": {"x-user-id": {"claim": "sub"}}}],
    )
    rules: list[RuleSection] = Field(
        [],
        description="What applies to which request. The most specific match applies; no match is a denial.",
        examples=[[{"name": "public", "match": {"path": {"prefix": "/public"}}, "anonymous": True}]],
    )
    internal_tokens: InternalTokensSection | None = Field(
        None,
        description="JWTs that the sidecar signs for upstreams, in place of the credentials that callers show.",
        examples=[
            {
                "issuer": "https://sidecar.shop.internal",
                "audiences": ["shop-upstreams"],
                "keys": "internal-keys",
            }
        ],
    )
    ratelimit: RateLimitSection | None = Field(
        None,
        description="The rate limit service for Envoy's ratelimit filter.",
        examples=[{"directory": "./ratelimit"}],
    )
    revocation: RevocationSection | None = Field(
        None,
        description="What is not believed any more, kept in Redis; nothing can be revoked without it.",
        examples=[{"lifetime": "1d"}],
    )
    abuse: AbuseSection | None = Field(
        None,
        description="What keeps guessing slow.",
        examples=[{"failed_authentications": {"rate": "20/minute"}}],
    )
    audit: AuditSection = Field(
        AuditSection(), description="One event for each decision.", examples=[{"destination": "stdout"}]
    )
    log: LogSection = Field(LogSection(), description="The log, on standard error.", examples=[{"level": "info"}])
