"""The sections `dpop` and `certificates`: what bound tokens are proved by, and where client certificates are found."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias

from pydantic import ConfigDict, Field, model_validator

from sidecar.core.certificates import CertificateSource, CertificateTrust, XfccElement, is_trust_domain
from sidecar.core.confirmation import Binding
from sidecar.core.dpop import AGE_S_MAX, LEEWAY_S_MAX, DpopPolicy, origin_of
from sidecar.core.dpop_nonces import KEYS_MAX, Nonces
from sidecar.core.limits import US_PER_S
from sidecar.policy import durations
from sidecar.policy.faults import Wrong, did_you_mean, shown
from sidecar.policy.fields import HOST_PATTERN, Between, Duration, Form, HttpUrl, Name, Text, parse_host, parse_http_url
from sidecar.policy.model import Model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from sidecar.core.introspection import IntrospectionPolicy
    from sidecar.core.issuer import IssuerPolicy
    from sidecar.core.secret import Secret
    from sidecar.policy.files import Files
    from sidecar.policy.validate import Validated
    from sidecar.policy.yaml import PathParts

TRUSTS_MAX: Final = 64
NAMES_MAX: Final = 256
NONCE_KEY_CHARS_MIN: Final = 32
ROOTS_BYTES_MAX: Final = 1024 * 1024

NETWORK_PATTERN: Final = r"^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$"
TRUST_DOMAIN_PATTERN: Final = r"^[a-z0-9._-]{1,255}$"
ORIGIN_PATTERN: Final = r"^https?://[^\s?#]+$"


def parse_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """An address, or a network in CIDR notation."""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        accepted = "an address such as 10.0.0.7, or a network such as 10.0.0.0/8 with no bits beyond its prefix"
        raise Wrong(f"{shown(text)} is not a network", accepted) from None


def parse_trust_domain(text: str) -> str:
    """The name of a SPIFFE trust domain."""
    if not is_trust_domain(text):
        raise Wrong(f"{shown(text)} is not a trust domain", "lower-case letters, digits, '.', '_' and '-'")
    return text


def parse_dns_pattern(text: str) -> str:
    """A host's name, or `*.suffix`."""
    host = parse_host(text)
    if host.startswith("["):
        raise Wrong(f"{shown(text)} is not a DNS name", "a name such as client.example.com, or *.example.com")
    return host


def parse_origin(text: str) -> str:
    """What clients put before a path, in its one spelling."""
    parse_http_url(text)
    origin = origin_of(text)
    if origin is None or "?" in text:
        accepted = "https://host[:port] and, where a proxy in front takes one off, a path"
        raise Wrong(f"{shown(text)} is not an origin", accepted)
    return origin


Network: TypeAlias = Annotated[str, Form(parse_network, NETWORK_PATTERN)]
TrustDomain: TypeAlias = Annotated[str, Form(parse_trust_domain, TRUST_DOMAIN_PATTERN)]
DnsPattern: TypeAlias = Annotated[str, Form(parse_dns_pattern, HOST_PATTERN)]
Origin: TypeAlias = Annotated[HttpUrl, Form(parse_origin, ORIGIN_PATTERN)]

ProofAlgorithm: TypeAlias = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "ES256K", "EdDSA", "Ed25519"
]


class NonceSection(Model):
    """Proofs must carry a nonce that the sidecars gave out (RFC 9449 section 8)."""

    key_files: list[Text] = Field(
        min_length=1,
        max_length=KEYS_MAX,
        description=f"Files with a secret of at least {NONCE_KEY_CHARS_MIN} characters, the same for all sidecars. The "
        "first one signs; the others are accepted, so that a new one can be put first once all sidecars have it.",
        examples=[["secrets/dpop-nonce"]],
    )
    lifetime: Annotated[Duration, Between("10s", "1h", "1s")] = Field(
        "5m", description="How long a nonce is given out; it is accepted for as long again.", examples=["5m"]
    )


class DpopSection(Model):
    """How DPoP proofs are judged (RFC 9449). Without this section, tokens that are bound to a key are refused."""

    algorithms: list[ProofAlgorithm] = Field(
        ["ES256", "EdDSA", "Ed25519", "PS256"],
        min_length=1,
        description="Accepted signature algorithms of proofs; asymmetric ones only.",
        examples=[["ES256", "EdDSA"]],
    )
    origin: Origin | None = Field(
        None,
        description="What clients put before the path: the public scheme, host and port, and a path where a proxy in "
        "front takes one off. Without it, scheme and host of the request as Envoy reports them.",
        examples=["https://api.example.com"],
    )
    max_age: Annotated[Duration, Between("1s", f"{AGE_S_MAX}s", "1s")] = Field(
        "60s", description="How old a proof may be by its `iat`.", examples=["60s"]
    )
    leeway: Annotated[Duration, Between("0s", f"{LEEWAY_S_MAX}s", "1s")] = Field(
        "5s", description="How far a proof's `iat` may be in the future.", examples=["5s"]
    )
    nonce: NonceSection | None = Field(
        None,
        description="Ask for a nonce; none without it.",
        examples=[{"key_files": ["secrets/dpop-nonce"]}],
    )
    on_redis_failure: Literal["deny", "local"] = Field(
        "deny",
        description="What happens while Redis cannot say whether a proof was used before: `deny` (503), or `local`: "
        "each process remembers the proofs that it has seen, so that one may be used once with each.",
        examples=["deny"],
    )


class CertificatesSection(Model):
    """Client certificates that are believed, and whom they identify. Their chains are the gateway's to verify."""

    model_config = ConfigDict(json_schema_extra={"required": ["source"]})

    source: Literal["peer_certificate", "peer_principal", "xfcc", "client_cert"] = Field(
        description="Where the gateway puts it: `peer_certificate` (Envoy's `include_peer_certificate: true`), "
        "`peer_principal` (the identity alone), `xfcc` (x-forwarded-client-cert, which Envoy must sanitize), "
        "`client_cert` (RFC 9440).",
        examples=["peer_certificate"],
    )
    xfcc_element: Literal["only", "first", "last"] = Field(
        "only",
        description="Which element of x-forwarded-client-cert tells of the client: there must be one `only`, or it is "
        "the `first` (what the outermost proxy wrote) or the `last` (what the nearest one wrote).",
        examples=["only"],
    )
    proxies: list[Network] = Field(
        [],
        max_length=NAMES_MAX,
        description="Addresses from which a header is believed, as Envoy reports the request's source. Needed by "
        "`client_cert`.",
        examples=[["10.0.0.0/8"]],
    )
    trust_domains: list[TrustDomain] = Field(
        [],
        max_length=NAMES_MAX,
        description="SPIFFE trust domains whose ids (`spiffe://domain/path`) are accepted as the subject.",
        examples=[["prod.example.com"]],
    )
    dns_names: list[DnsPattern] = Field(
        [],
        max_length=NAMES_MAX,
        description="Names, or `*.suffix` for every name below it, that are accepted as the subject.",
        examples=[["*.clients.example.com"]],
    )
    common_name: bool = Field(
        False, description="Accept the subject's common name as the subject, where nothing better is.", examples=[False]
    )
    ca_file: Text | None = Field(
        None,
        description="PEM file with authorities, one of which must itself have issued the certificate. Without it, "
        "whom the gateway believes is believed.",
        examples=["tls/clients-ca.pem"],
    )

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.source == "client_cert" and not self.proxies:
            raise Wrong("anyone could send the header Client-Cert", "proxies: the addresses to believe it from")
        if self.source in {"peer_certificate", "peer_principal"} and self.proxies:
            raise Wrong(f"{self.source} is no header: no client can send it", "proxies with xfcc or client_cert alone")
        if self.source != "xfcc" and self.xfcc_element != "only":
            raise Wrong(f"{self.source} has no elements", "xfcc_element with source: xfcc alone")
        if self.source == "peer_principal" and (self.ca_file is not None or self.dns_names or self.common_name):
            raise Wrong("peer_principal does not say what kind of name it is", "trust_domains alone; or another source")
        return self


class BoundTokens(Model):
    """What an issuer's section says of bound tokens."""

    require_dpop: bool = Field(
        False, description="Refuse tokens that are not bound to a key (RFC 9449): bearer tokens.", examples=[True]
    )
    client_certificates: Name | None = Field(
        None,
        description="The name in `certificates` of where certificates are found that tokens are bound to (RFC 8705). "
        "Without it, tokens that are bound to a certificate are refused.",
        examples=["mesh"],
    )


def _compile_dpop(validated: Validated, files: Files) -> DpopPolicy | None:
    """How proofs are judged; what is wrong is added to the faults."""
    section = validated.document.dpop
    if section is None:
        return None
    if section.on_redis_failure == "deny" and not validated.has("redis"):
        message = "used proofs are remembered in Redis, and the policy has no redis section"
        validated.fault(("dpop", "on_redis_failure"), message, "redis: {url: embedded}, or on_redis_failure: local")
    return DpopPolicy(
        algorithms=frozenset(section.algorithms),
        origin="" if section.origin is None else parse_origin(section.origin),
        age_s_max=_whole_seconds(section.max_age),
        leeway_s=_whole_seconds(section.leeway),
        nonces=None if section.nonce is None else _nonces(validated, files, section.nonce),
        replay_local=section.on_redis_failure == "local",
    )


def _nonces(validated: Validated, files: Files, section: NonceSection) -> Nonces | None:
    keys: list[Secret] = []
    for n, name in enumerate(section.key_files):
        where = ("dpop", "nonce", "key_files", n)
        key = files.secret(where, name)
        if key is not None and len(key.reveal()) < NONCE_KEY_CHARS_MIN:
            accepted = f"at least {NONCE_KEY_CHARS_MIN} characters, such as of `openssl rand -base64 32`"
            validated.fault(where, f"the file {files.path(name)} holds too short a secret", accepted)
        elif key is not None:
            keys.append(key)
    return Nonces(tuple(keys), _whole_seconds(section.lifetime)) if keys else None


def _whole_seconds(duration: str) -> int:
    return durations.parse(duration) // US_PER_S


def _compile_certificates(validated: Validated, files: Files) -> Mapping[str, CertificateTrust]:
    """Trusts by the policy's names of them; what is wrong is added to the faults."""
    return {
        name: CertificateTrust(
            name=name,
            source=CertificateSource(section.source),
            xfcc_element=XfccElement(section.xfcc_element),
            proxies=tuple(parse_network(text) for text in section.proxies),
            trust_domains=frozenset(section.trust_domains),
            dns_names=tuple(parse_dns_pattern(text) for text in section.dns_names),
            common_name=section.common_name,
            ca=_roots(validated, files, ("certificates", name, "ca_file"), section.ca_file),
        )
        for name, section in validated.document.certificates.items()
    }


def _roots(validated: Validated, files: Files, where: PathParts, name: str | None) -> bytes | None:
    if name is None:
        return None
    from sidecar.core.certificate_reader import CertificateError, check_roots  # noqa: PLC0415 - X.509 takes 5 MiB

    path = files.readable(where, name)
    accepted = f"a PEM file of certificates, of at most {ROOTS_BYTES_MAX} bytes"
    try:
        with open(path, "rb") as stream:  # noqa: PTH123 - `readable` returns text
            pem = stream.read(ROOTS_BYTES_MAX + 1)
        check_roots(pem)
    except OSError:
        return None  # `readable` has reported it
    except CertificateError as error:
        validated.fault(where, f"the file {path}: {error}", accepted)
        return None
    if len(pem) > ROOTS_BYTES_MAX:
        validated.fault(where, f"the file {path} is too large", accepted)
    return pem


@dataclass(frozen=True, slots=True, eq=False)
class Bindings:
    """How bound tokens are proved, for whoever issues them.

    Attributes:
        dpop: How proofs are judged; None: the policy does not say.
        trusts: Where client certificates are found, by the policy's names.
    """

    validated: Validated
    dpop: DpopPolicy | None
    trusts: Mapping[str, CertificateTrust]

    def issuers(self, issuers: Mapping[str, IssuerPolicy]) -> Mapping[str, IssuerPolicy]:
        """The same issuers, each with what its section says of bound tokens."""
        sections = self.validated.document.issuers
        return {
            name: replace(issuer, binding=self._binding(("issuers", name), sections[name]))
            for name, issuer in issuers.items()
        }

    def introspection(self, endpoints: Mapping[str, IntrospectionPolicy]) -> Mapping[str, IntrospectionPolicy]:
        """The same for endpoints that know opaque tokens."""
        sections = self.validated.document.introspection
        return {
            name: replace(
                endpoint,
                rules=replace(endpoint.rules, binding=self._binding(("introspection", name), sections[name])),
            )
            for name, endpoint in endpoints.items()
        }

    def _binding(self, where: PathParts, section: BoundTokens) -> Binding | None:
        if section.require_dpop and not self.validated.has("dpop"):
            message = "the policy does not say how proofs are judged"
            self.validated.fault((*where, "require_dpop"), message, "the section dpop; dpop: {} has its defaults")
        trust = self._trust((*where, "client_certificates"), section.client_certificates)
        if self.dpop is None and trust is None and not section.require_dpop:
            return None
        return Binding(dpop=self.dpop, certificates=trust, require_dpop=section.require_dpop)

    def _trust(self, where: PathParts, name: str | None) -> CertificateTrust | None:
        trust = None if name is None else self.trusts.get(name)
        if name is not None and name not in self.validated.names["certificates"]:
            accepted = did_you_mean(name, self.validated.names["certificates"], "certificates")
            self.validated.fault(where, f"{shown(name)} is not in certificates", accepted)
        if trust is not None and trust.source is CertificateSource.PEER_PRINCIPAL:
            message = "the certificate's digest is needed, and peer_principal has none"
            self.validated.fault(where, message, "certificates with another source")
        return trust


def compile_bindings(validated: Validated, files: Files) -> Bindings:
    """What the sections `dpop` and `certificates` say; what is wrong is added to the faults."""
    _check_identities(validated)
    return Bindings(validated, _compile_dpop(validated, files), _compile_certificates(validated, files))


def _check_identities(validated: Validated) -> None:
    """Where a rule takes certificates for callers, it is known whom they identify."""
    sections = validated.document.certificates
    for number, rule in zip(validated.rule_numbers, validated.document.rules, strict=True):
        written = rule.authenticate
        kind = "all_of" if written is not None and written.all_of is not None else "any_of"
        for n, credential in enumerate(getattr(written, kind, None) or ()):
            section = sections.get(credential.certificate.trust) if credential.certificate is not None else None
            if section is not None and not (section.trust_domains or section.dns_names or section.common_name):
                name = credential.certificate.trust
                message = f"certificates.{name} does not say whom a certificate identifies"
                accepted = f"trust_domains, dns_names or common_name in certificates.{name}"
                where = ("rules", number, "authenticate", kind, n, "certificate", "trust")
                validated.fault(where, message, accepted)
