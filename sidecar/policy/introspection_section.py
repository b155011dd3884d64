"""The section `introspection`: endpoints that know opaque tokens; a description for every key, and how it compiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field

from sidecar.core.introspection import (
    ClientAuthentication,
    ClientSecretBasic,
    IntrospectionPolicy,
    PrivateKeyJwt,
    TlsClientAuth,
)
from sidecar.core.issuer import LEEWAY_S_MAX, IssuerPolicy, JwksUrl
from sidecar.policy.binding_sections import BoundTokens
from sidecar.policy.compile_issuers import claim_path
from sidecar.policy.durations import seconds
from sidecar.policy.fields import Between, Duration, HttpUrl, Printable, RateText, Text, is_loopback, parse_http_url
from sidecar.policy.fields import parse_rate as parse_rate_text
from sidecar.policy.limit_sections import ClaimPath
from sidecar.policy.model import Choice, Model
from sidecar.policy.tls_files import check_authorities, check_key_pair

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.policy.files import Files
    from sidecar.policy.validate import Validated
    from sidecar.policy.yaml import PathParts

INTROSPECTION_MAX: Final = 64
CONCURRENT_MAX: Final = 256
QUEUE_MAX: Final = 4096


class BasicClient(Model):
    """A client's name and secret, in the Authorization header (RFC 6749 section 2.3.1)."""

    id: Printable = Field(description="`client_id`.", examples=["sidecar"])
    secret_file: Text = Field(
        description="File with the secret; a newline at its end is dropped. Read again when it changes.",
        examples=["secrets/introspection"],
    )


class JwtClient(Model):
    """A JWT that the client signs for each question (RFC 7523); it lives for a minute."""

    id: Printable = Field(description="`client_id`: the JWT's `iss` and `sub`.", examples=["sidecar"])
    key: Text = Field(
        description="PEM file with the private key: RSA (RS256), EC on P-256, P-384 or P-521 (ES256, ES384, ES512), or "
        "Ed25519 (EdDSA). Read again when it changes.",
        examples=["secrets/client-key.pem"],
    )
    key_id: Printable | None = Field(None, description="The JWT's `kid`; none without it.", examples=["2026-1"])
    audience: Printable | None = Field(
        None, description="The JWT's `aud`; the endpoint's URL without it.", examples=["https://issuer.example"]
    )


class CertificateClient(Model):
    """A client certificate (RFC 8705 section 2)."""

    id: Printable = Field(description="`client_id`, sent along.", examples=["sidecar"])
    certificate: Text = Field(
        description="PEM file with the certificate. Read again when it changes.", examples=["tls/client.crt"]
    )
    key: Text = Field(description="PEM file with its private key.", examples=["tls/client.key"])


class IntrospectionClient(Choice):
    """How the sidecar proves itself to the endpoint."""

    basic: BasicClient | None = Field(
        None,
        description="By a secret in the Authorization header.",
        examples=[{"id": "sidecar", "secret_file": "secrets/introspection"}],
    )
    private_key_jwt: JwtClient | None = Field(
        None, description="By a JWT that it signs.", examples=[{"id": "sidecar", "key": "secrets/client-key.pem"}]
    )
    certificate: CertificateClient | None = Field(
        None,
        description="By a certificate of its own (mTLS).",
        examples=[{"id": "sidecar", "certificate": "tls/client.crt", "key": "tls/client.key"}],
    )


class IntrospectionSection(BoundTokens):
    """An endpoint that says what opaque tokens stand for (RFC 7662), and what must hold of its answers."""

    url: HttpUrl = Field(description="The endpoint.", examples=["https://issuer.example/introspect"])
    client: IntrospectionClient = Field(
        description="How the sidecar proves itself to the endpoint.",
        examples=[{"basic": {"id": "sidecar", "secret_file": "secrets/introspection"}}],
    )
    issuer: Text | None = Field(
        None,
        description="`iss` must be in the answer and equal this exactly; not looked at without it.",
        examples=["https://issuer.example"],
    )
    audiences: list[Text] = Field(
        [],
        description="One of them must be in `aud`. At least one, unless `require_audience` is false.",
        examples=[["orders-api"]],
    )
    require_audience: bool = Field(True, description="Refuse tokens without a fitting `aud`.", examples=[True])
    require_expiry: bool = Field(True, description="Refuse tokens without `exp`.", examples=[True])
    leeway: Annotated[Duration, Between("0s", f"{LEEWAY_S_MAX // 60}m", "1s")] = Field(
        "30s", description="Tolerated difference between clocks for `exp`, `nbf` and `iat`.", examples=["30s"]
    )
    subject_claim: Literal["sub", "username", "client_id"] = Field(
        "sub", description="Which member of the answer is the subject.", examples=["sub"]
    )
    scope_claim: ClaimPath = Field("scope", description="The member with the scopes.", examples=["scope"])
    roles_claim: ClaimPath = Field("roles", description="The member with the roles.", examples=["realm_access.roles"])
    tier_claim: ClaimPath | None = Field(None, description="The member with the caller's plan.", examples=["plan"])
    tenant_claim: ClaimPath | None = Field(
        None, description="The member with the tenant that the caller acts for.", examples=["tenant"]
    )
    token_bytes_max: int = Field(
        2048, ge=16, le=16 * 1024, description="Longest token that is asked about, in bytes.", examples=[512]
    )
    token_type_hint: bool = Field(
        True, description="Say that it is an access token (`token_type_hint=access_token`).", examples=[True]
    )
    cache: Annotated[Duration, Between("0s", "1h", "1ms")] = Field(
        "1m",
        description="An active token is asked about again after this time, or at `exp`: one that its issuer revokes is "
        "accepted for so long. `0s` asks each time.",
        examples=["30s"],
    )
    cache_inactive: Annotated[Duration, Between("0s", "1m", "1ms")] = Field(
        "10s", description="The same for a token that is not active, or not acceptable.", examples=["5s"]
    )
    on_failure: Literal["deny", "error"] = Field(
        "deny",
        description="What happens while the endpoint fails: `deny` (503), or `error` (Envoy's failure_mode_allow "
        "decides). Always denied: what callers can bring about, such as too many unknown tokens.",
        examples=["deny"],
    )
    timeout: Annotated[Duration, Between("10ms", "30s")] = Field(
        "2s",
        description="Time for one question. A Check waits for `server.check_timeout` at most; the answer is kept for "
        "the next one.",
        examples=["1s"],
    )
    rate: RateText = Field(
        "100/second",
        description="The most questions, at once or spread. A quarter is kept for tokens that were active before.",
        examples=["100/second"],
    )
    concurrent_max: int = Field(16, ge=1, le=CONCURRENT_MAX, description="Questions under way.", examples=[16])
    queue_max: int = Field(256, ge=0, le=QUEUE_MAX, description="Questions that wait for one to end.", examples=[256])
    insecure_http: bool = Field(
        False, description="Allow `http://` to this machine, for trying things.", examples=[False]
    )
    ca_file: Text | None = Field(
        None, description="PEM file with the authorities to trust; the system's without it.", examples=["tls/ca.pem"]
    )


def compile_introspection(validated: Validated, files: Files) -> Mapping[str, IntrospectionPolicy]:
    """Endpoints by the policy's names for them; what is wrong is added to the faults."""
    return {
        name: _compile(validated, files, ("introspection", name), name, section)
        for name, section in validated.document.introspection.items()
    }


def _compile(
    validated: Validated, files: Files, where: PathParts, name: str, section: IntrospectionSection
) -> IntrospectionPolicy:
    if section.require_audience != bool(section.audiences):
        accepted = "at least one audience, or require_audience: false"
        message = "audiences are listed but not required" if section.audiences else "no audience is accepted"
        validated.fault((*where, "audiences"), message, accepted)
    _check_url(validated, (*where, "url"), section)
    ca_file = files.optional((*where, "ca_file"), section.ca_file)
    check_authorities(validated, (*where, "ca_file"), ca_file)
    rate_count, rate_us = parse_rate_text(section.rate)
    if not (rate_count and rate_us):
        validated.fault((*where, "rate"), "the rate asks nothing", "a rate such as 100/second")
    return IntrospectionPolicy(
        name=name,
        url=section.url,
        client=_client(validated, files, (*where, "client"), section),
        rules=_rules(name, section),
        subject_claim=section.subject_claim,
        token_type_hint=section.token_type_hint,
        token_bytes_max=section.token_bytes_max,
        active_s=seconds(section.cache),
        inactive_s=seconds(section.cache_inactive),
        on_failure_error=section.on_failure == "error",
        timeout_s=seconds(section.timeout),
        rate_count=rate_count,
        rate_us=rate_us,
        concurrent_max=section.concurrent_max,
        queue_max=section.queue_max,
        insecure_http=section.insecure_http,
        ca_file=ca_file,
    )


def _rules(name: str, section: IntrospectionSection) -> IssuerPolicy:
    """What must hold of claims, in the words of issuers; nothing is signed here, so there are no algorithms."""
    return IssuerPolicy(
        name=name,
        issuer=section.issuer or "",
        audiences=frozenset(section.audiences),
        algorithms=frozenset(),
        keys=JwksUrl(section.url),
        require_audience=section.require_audience,
        require_expiry=section.require_expiry,
        leeway_s=int(seconds(section.leeway)),
        scope_claim=claim_path(section.scope_claim),
        roles_claim=claim_path(section.roles_claim),
        tier_claim=() if section.tier_claim is None else claim_path(section.tier_claim),
        tenant_claim=() if section.tenant_claim is None else claim_path(section.tenant_claim),
    )


def _client(
    validated: Validated, files: Files, where: PathParts, section: IntrospectionSection
) -> ClientAuthentication:
    _, client = section.client.chosen
    match client:
        case BasicClient():
            at = (*where, "basic", "secret_file")
            files.secret(at, client.secret_file)
            return ClientSecretBasic(client.id, str(files.path(client.secret_file)))
        case JwtClient():
            key = files.readable((*where, "private_key_jwt", "key"), client.key)
            _check_key(validated, (*where, "private_key_jwt", "key"), key)
            return PrivateKeyJwt(client.id, key, client.key_id, client.audience or section.url)
        case CertificateClient():
            at = (*where, "certificate")
            certificate = files.readable((*at, "certificate"), client.certificate)
            key = files.readable((*at, "key"), client.key)
            check_key_pair(validated, at, certificate, key)
            if not section.url.startswith("https://"):
                validated.fault(at, "the endpoint's URL is not https://, so no certificate is shown", "https://")
            return TlsClientAuth(client.id, certificate, key)
    raise AssertionError(client)  # pragma: no cover - the model has these alone


def _check_key(validated: Validated, where: PathParts, path: str) -> None:
    """Files that cannot be read at all are reported already."""
    from sidecar.core.client_assertion import Signer  # noqa: PLC0415 - for signers alone
    from sidecar.core.private_keys import KEY_BYTES_MAX, KeyFileError  # noqa: PLC0415 - as above

    try:
        with open(path, "rb") as file:  # noqa: PTH123 - as the path is written
            Signer(file.read(KEY_BYTES_MAX + 1))
    except KeyFileError as error:
        validated.fault(where, f"the file {path} {error}", "a PEM file with a private key, not encrypted")
    except (OSError, ValueError):
        return


def _check_url(validated: Validated, where: PathParts, section: IntrospectionSection) -> None:
    url = parse_http_url(section.url)
    if url.scheme == "https":
        return
    if not is_loopback(url.hostname or ""):
        validated.fault(where, "tokens would be sent over http:// to another machine", "https://")
    elif not section.insecure_http:
        validated.fault(where, "tokens would be sent over http://", "https://, or insecure_http: true for loopback")
