"""Client certificates: where a gateway puts them on a request, and whom they identify.

The gateway ended the client's TLS and judged the certificate's chain; here it is believed exactly where the policy says
that the gateway puts it, and nowhere else (RFC 9440 section 4.1):

* `peer_certificate`: `source.certificate` of the Check, which no client can write.
* `peer_principal`: `source.principal` of the Check: the identity alone.
* `xfcc`: Envoy's x-forwarded-client-cert, which Envoy must sanitize.
* `client_cert`: RFC 9440's Client-Cert, only from proxies that the policy lists.

Every text is refused that could be read in two ways: control characters (a NUL ends names for some readers:
CVE-2025-66220), a quotation that could end in two places, two certificates, names that are no names.
"""

from __future__ import annotations

import enum
import hmac
import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING, NamedTuple, TypeAlias
from urllib.parse import unquote_to_bytes

from sidecar.core import base64url
from sidecar.core.claims import Rejected
from sidecar.core.decision import DenyReason
from sidecar.core.limits import US_PER_S
from sidecar.core.paths import canonical_host
from sidecar.core.principal import Principal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.core.context import RequestContext
    from sidecar.core.methods import Findings
    from sidecar.core.principal import Json

XFCC_HEADER = "x-forwarded-client-cert"
CLIENT_CERT_HEADER = "client-cert"

SHOWN_CHARS_MAX = 64 * 1024
"""Of a header or attribute that shows a certificate: Envoy's limit for all headers."""
CERTIFICATE_BYTES_MAX = 16 * 1024
"""Of a certificate's DER: ten times a usual one."""
XFCC_ELEMENTS_MAX = 16
XFCC_PAIRS_MAX = 64
SUBJECT_CHARS_MAX = 1024
"""Of a subject in XFCC that is searched for common names: a longer one has none."""

SPIFFE_BYTES_MAX = 2048
TRUST_DOMAIN_CHARS_MAX = 255
"""Both: SPIFFE-ID section 2."""
NAME_CHARS_MAX = 256
"""Of a common name; RFC 5280 allows 64."""

IDENTITIES_KEPT_MAX = 1024
"""Who was identified, with the certificate; 4 KiB each as usual, 16 KiB at most: what is kept of a principal is found
again."""
PROXIES_KEPT_MAX = 1024

Networks: TypeAlias = tuple[IPv4Network | IPv6Network, ...]

_MALFORMED = DenyReason.CERTIFICATE_MALFORMED
_UNTRUSTED = DenyReason.CERTIFICATE_UNTRUSTED


class CertificateSource(enum.Enum):
    """Where the gateway puts the client's certificate."""

    PEER_CERTIFICATE = "peer_certificate"
    PEER_PRINCIPAL = "peer_principal"
    XFCC = "xfcc"
    CLIENT_CERT = "client_cert"


class XfccElement(enum.Enum):
    """Which element of x-forwarded-client-cert tells of the client; each proxy on the way may have added one."""

    ONLY = "only"
    FIRST = "first"
    LAST = "last"


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateTrust:
    """Which certificates are believed, and whom they identify.

    Attributes:
        name: The policy's name of it (`certificates.<name>`).
        source: Where the certificate is.
        xfcc_element: For XFCC.
        proxies: XFCC and CLIENT_CERT: addresses from which the header is believed; empty: XFCC from anywhere,
            CLIENT_CERT from nowhere.
        trust_domains: Whose SPIFFE ids identify a client.
        dns_names: Hosts, or `*.suffix` for every host below it, whose DNS names identify a client.
        common_name: The subject's common name identifies a client.
        ca: PEM of the authorities that must have issued the certificate; None: the gateway has judged that.
    """

    name: str
    source: CertificateSource
    xfcc_element: XfccElement = XfccElement.ONLY
    proxies: Networks = ()
    trust_domains: frozenset[str] = frozenset()
    dns_names: tuple[str, ...] = ()
    common_name: bool = False
    ca: bytes | None = None


class ShownCertificate(NamedTuple):
    """What a request shows of a certificate; nothing is judged.

    Attributes:
        der: The certificate itself, b"" where only what follows is known.
        digest: SHA-256 of the DER, b"" where not even that is known.
        uris, dns_names: Alternative names, where the DER is not known.
        common_names: Of the subject, likewise.
    """

    der: bytes
    digest: bytes
    uris: tuple[str, ...] = ()
    dns_names: tuple[str, ...] = ()
    common_names: tuple[str, ...] = ()


# --------------------------------------------------------------------------------------------------------------------
# Where it is


def shown_text(request: RequestContext, trust: CertificateTrust) -> str | Rejected | None:
    """The text that shows the client's certificate, at the one place where the policy believes it."""
    text: str | None = None
    match trust.source:
        case CertificateSource.PEER_CERTIFICATE:
            text = request.peer_certificate
        case CertificateSource.PEER_PRINCIPAL:
            text = request.peer_principal
        case CertificateSource.XFCC:
            text = request.headers.get(XFCC_HEADER)
        case CertificateSource.CLIENT_CERT:
            text = request.headers.get(CLIENT_CERT_HEADER)
            if text and CLIENT_CERT_HEADER in request.repeated:
                return Rejected(_MALFORMED, "there is more than one Client-Cert header")
    if not text:
        return None
    is_header = trust.source in {CertificateSource.XFCC, CertificateSource.CLIENT_CERT}
    if is_header and not _is_from_proxy(trust, request.source_address):
        return Rejected(_UNTRUSTED, f"the request does not come from a proxy of certificates.{trust.name}.proxies")
    if len(text) > SHOWN_CHARS_MAX:
        return Rejected(_MALFORMED, f"what shows the certificate is longer than {SHOWN_CHARS_MAX} characters")
    return text


def _is_from_proxy(trust: CertificateTrust, address: str) -> bool:
    if not trust.proxies:
        return trust.source is CertificateSource.XFCC
    return _is_within(trust.proxies, address)


@lru_cache(maxsize=PROXIES_KEPT_MAX)
def _is_within(networks: Networks, address: str) -> bool:
    try:
        client = ip_address(address)
    except ValueError:
        return False
    mapped = getattr(client, "ipv4_mapped", None)
    return any((mapped or client) in network for network in networks)


def read_shown(text: str, trust: CertificateTrust) -> ShownCertificate | Rejected:
    """What the text says, in the form of its source."""
    try:
        match trust.source:
            case CertificateSource.PEER_CERTIFICATE:
                return _of_der(der_of_pem(text))
            case CertificateSource.PEER_PRINCIPAL:
                return ShownCertificate(b"", b"", uris=(text,))
            case CertificateSource.CLIENT_CERT:
                return _of_der(_der_of_byte_sequence(text))
            case CertificateSource.XFCC:
                return _of_element(_chosen(parse_xfcc(text), trust.xfcc_element))
    except MalformedError as error:
        return Rejected(_MALFORMED, str(error))


def certificate_digest(request: RequestContext, trust: CertificateTrust) -> bytes | Rejected:
    """SHA-256 of the client certificate's DER (RFC 8705 section 3.1)."""
    text = shown_text(request, trust)
    if isinstance(text, Rejected):
        return text
    missing = Rejected(DenyReason.CERTIFICATE_MISSING, f"no client certificate is shown as {trust.source.value}")
    if text is None:
        return missing
    shown = read_shown(text, trust)
    if isinstance(shown, Rejected):
        return shown
    return shown.digest or missing


class MalformedError(ValueError):
    """What shows a certificate cannot be read, or in more than one way. The message quotes nothing."""


_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END CERTIFICATE-----(?:\r?\n)?")
_URL_ENCODED = re.compile(r"(?:[!-$&-~ \r\n]++|%[0-9A-Fa-f]{2})*+")
_BYTE_SEQUENCE = re.compile(r":([A-Za-z0-9+/]+={0,2}):")


def der_of_pem(text: str) -> bytes:
    """The DER of the one certificate whose URL-encoded PEM this is, as Envoy writes it.

    Raises:
        MalformedError: It is anything else.
    """
    if _URL_ENCODED.fullmatch(text) is None:
        raise MalformedError("the certificate is not URL-encoded text")
    found = _PEM.fullmatch(unquote_to_bytes(text).decode("latin-1"))
    if found is None:
        raise MalformedError("the certificate is not the PEM of one certificate")
    return _der(found[1].replace("\r", "").replace("\n", ""))


def _der_of_byte_sequence(text: str) -> bytes:
    """RFC 9440 section 2.1: a structured field's byte sequence (RFC 9651 section 3.3.5)."""
    found = _BYTE_SEQUENCE.fullmatch(text.strip(" "))
    if found is None:
        raise MalformedError("Client-Cert is not a byte sequence")
    return _der(found[1])


def _der(encoded: str) -> bytes:
    try:
        der = a2b_base64(encoded, strict_mode=True)
    except Base64Error:
        raise MalformedError("the certificate is not base64") from None
    if not 0 < len(der) <= CERTIFICATE_BYTES_MAX:
        raise MalformedError(f"the certificate does not have 1 to {CERTIFICATE_BYTES_MAX} bytes")
    return der


def _of_der(der: bytes) -> ShownCertificate:
    return ShownCertificate(der, sha256(der).digest())


# --------------------------------------------------------------------------------------------------------------------
# x-forwarded-client-cert

_PAIR = re.compile(
    r"(?P<key>[A-Za-z]{1,16})="
    r"(?:\"(?P<quoted>(?:[^\"\\]++|\\\"|\\++(?!\"))*+)\"|(?P<plain>[^\",;]*+))"
    r"(?P<end>[;,]|\Z)"
)
"""A quotation mark inside is written `\\"`, and a backslash stays as it is: of two backslashes before a quotation mark
nobody can say whether it ends the value."""

_XFCC_KEYS = frozenset({"by", "hash", "cert", "chain", "subject", "uri", "dns"})
_SEVERAL = frozenset({"by", "uri", "dns"})
_HASH = re.compile(r"[0-9A-Fa-f]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

Element: TypeAlias = dict[str, list[str]]


def parse_xfcc(text: str) -> list[Element]:
    """The elements of an x-forwarded-client-cert header: values by key in lower case.

    Raises:
        MalformedError: It is not exactly what Envoy writes, or could be read in another way.
    """
    if _CONTROL.search(text) is not None:
        raise MalformedError("x-forwarded-client-cert has a control character")
    elements: list[Element] = [{}]
    at, pairs = 0, 0
    while True:
        if text[at : at + 1] == " " and not elements[-1]:
            at = len(text) - len(text[at:].lstrip(" "))  # a proxy may have put spaces after the comma when it merged
        pair = _PAIR.match(text, at)
        pairs += 1
        if pair is None or pairs > XFCC_PAIRS_MAX or len(elements) > XFCC_ELEMENTS_MAX:
            raise MalformedError("x-forwarded-client-cert is not a list of elements of pairs")
        _add(elements[-1], pair)
        at = pair.end()
        if pair["end"] == ",":
            elements.append({})
        elif not pair["end"]:
            return elements


def _add(element: Element, pair: re.Match[str]) -> None:
    key = pair["key"].lower()
    if key not in _XFCC_KEYS:
        raise MalformedError("x-forwarded-client-cert has an unknown key")
    if key in element and key not in _SEVERAL:
        raise MalformedError(f"x-forwarded-client-cert has {key} twice in one element")
    quoted = pair["quoted"]
    value = pair["plain"] if quoted is None else quoted.replace('\\"', '"')
    element.setdefault(key, []).append(value)


def _chosen(elements: Sequence[Element], which: XfccElement) -> Element:
    if which is XfccElement.ONLY and len(elements) > 1:
        raise MalformedError("x-forwarded-client-cert has more than one element")
    return elements[0 if which is XfccElement.FIRST else -1]


def _of_element(element: Element) -> ShownCertificate:
    """`Cert` tells everything; without it, what the gateway has read of it."""
    digest = b""
    if "hash" in element:
        if _HASH.fullmatch(element["hash"][0]) is None:
            raise MalformedError("Hash in x-forwarded-client-cert is not a SHA-256 digest")
        digest = bytes.fromhex(element["hash"][0])
    if "cert" in element:
        shown = _of_der(der_of_pem(element["cert"][0]))
        if digest and not hmac.compare_digest(shown.digest, digest):
            raise MalformedError("Hash in x-forwarded-client-cert is not that of Cert")
        return shown
    uris = tuple(uri for uri in element.get("uri", ()) if uri)
    names = tuple(name for name in element.get("dns", ()) if name)
    return ShownCertificate(b"", digest, uris, names, _common_names(element.get("subject", [""])[0]))


_ATTRIBUTE = re.compile(r"(?P<type>[A-Za-z0-9.-]+)=(?P<value>(?:[^,+\\\"<>;=#]|\\[ ,+\\\"<>;=#])*)(?P<end>[,+]|\Z)")


def _common_names(subject: str) -> tuple[str, ...]:
    """Of a subject in RFC 2253's form; none where it is written in any way that needs more understanding."""
    if len(subject) > SUBJECT_CHARS_MAX:
        return ()
    found = []
    at = 0
    while at < len(subject):
        attribute = _ATTRIBUTE.match(subject, at)
        if attribute is None:
            return ()
        if attribute["type"].upper() == "CN":
            found.append(re.sub(r"\\(.)", r"\1", attribute["value"]))
        at = attribute.end()
    return tuple(found)


# --------------------------------------------------------------------------------------------------------------------
# Whom it identifies


class Identified(NamedTuple):
    """Who a certificate is of, and when it holds: microseconds since the epoch, both included."""

    principal: Principal
    not_before_us: int
    not_after_us: int


_ALWAYS = 2**63


@dataclass(frozen=True, slots=True, eq=False)
class CertificateMethod:
    """Proves a client by its certificate; a `methods.Method`."""

    trust: CertificateTrust

    def shown(self, request: RequestContext) -> str | Rejected | None:
        """What shows the certificate; None where there is none."""
        return shown_text(request, self.trust)

    def prove(self, shown: str, _request: RequestContext, _findings: Findings, now_us: int) -> Principal | Rejected:
        """Who the certificate identifies at this time."""
        read = read_shown(shown, self.trust)
        if isinstance(read, Rejected):
            return read
        found = identify(self.trust, read)
        if isinstance(found, Rejected):
            return found
        if not found.not_before_us <= now_us <= found.not_after_us:
            return Rejected(DenyReason.CERTIFICATE_EXPIRED, "the certificate is not valid yet, or no longer")
        if self.trust.ca is not None and not _is_issued(read.der, self.trust.ca, now_us):
            return Rejected(_UNTRUSTED, f"no authority of certificates.{self.trust.name}.ca_file vouches for it")
        return found.principal


def _is_issued(der: bytes, roots_pem: bytes, now_us: int) -> bool:
    from sidecar.core.certificate_reader import is_issued_by  # noqa: PLC0415 - X.509 brings 5 MiB along

    return bool(der) and is_issued_by(der, roots_pem, now_us)


@lru_cache(maxsize=IDENTITIES_KEPT_MAX)
def identify(trust: CertificateTrust, shown: ShownCertificate) -> Identified | Rejected:
    """Who a certificate identifies to someone who trusts like this; its dates are still to be judged."""
    if shown.der:
        from sidecar.core.certificate_reader import CertificateError, read_certificate  # noqa: PLC0415 - as above

        try:
            read = read_certificate(shown.der)
        except CertificateError as error:
            return Rejected(_MALFORMED, f"the certificate: {error}")
        if read.is_authority:
            return Rejected(_UNTRUSTED, "the certificate is an authority's, and identifies no client")
        begins, ends = read.not_before_us, read.not_after_us
        shown = ShownCertificate(shown.der, shown.digest, read.uris, read.dns_names, read.common_names)
    else:
        begins, ends = 0, _ALWAYS
    if any(_CONTROL.search(name) is not None for name in (*shown.uris, *shown.dns_names, *shown.common_names)):
        return Rejected(_MALFORMED, "a name of the certificate has a control character")
    subject = _subject(trust, shown)
    if isinstance(subject, Rejected):
        return subject
    digest = base64url.encode(shown.digest) if shown.digest else ""
    claims = _claims(subject, digest, shown)
    if ends != _ALWAYS:
        claims["exp"] = ends // US_PER_S
    principal = Principal(trust.name, subject, "", frozenset(), frozenset(), claims, "certificate", key_id=digest)
    return Identified(principal, begins, ends)


def _claims(subject: str, digest: str, shown: ShownCertificate) -> dict[str, Json]:
    claims: dict[str, Json] = {"sub": subject}
    if digest:
        claims["x5t#S256"] = digest
    if subject.startswith(_SPIFFE):
        claims["trust_domain"] = subject.removeprefix(_SPIFFE).partition("/")[0]
    if shown.dns_names:
        claims["dns_names"] = list(shown.dns_names)
    if len(shown.common_names) == 1:
        claims["common_name"] = shown.common_names[0]
    return claims


def _subject(trust: CertificateTrust, shown: ShownCertificate) -> str | Rejected:
    """The name by which the policy knows the client: a SPIFFE id, else a DNS name, else the common name."""
    if trust.trust_domains and any(uri[:7].lower() == "spiffe:" for uri in shown.uris):
        return _spiffe_subject(trust, shown.uris)
    if trust.dns_names:
        for name in shown.dns_names:
            host = dns_name(name)
            if host is not None and _is_listed(trust.dns_names, host):
                return host
    if trust.common_name and len(shown.common_names) == 1 and 0 < len(shown.common_names[0]) <= NAME_CHARS_MAX:
        return shown.common_names[0]
    return Rejected(_UNTRUSTED, f"the certificate has no name that certificates.{trust.name} accepts")


def _spiffe_subject(trust: CertificateTrust, uris: Sequence[str]) -> str | Rejected:
    """X509-SVID section 2: exactly one URI, and no client has the trust domain's own id (section 4.1)."""
    if len(uris) > 1:
        return Rejected(_UNTRUSTED, "the certificate has more than one URI")
    domain = spiffe_trust_domain(uris[0])
    if domain is None:
        return Rejected(_MALFORMED, "the certificate's SPIFFE id is malformed")
    if domain not in trust.trust_domains:
        return Rejected(_UNTRUSTED, "the certificate is of another trust domain")
    return uris[0]


_SPIFFE = "spiffe://"
_TRUST_DOMAIN = re.compile(rf"[a-z0-9._-]{{1,{TRUST_DOMAIN_CHARS_MAX}}}")
_SPIFFE_SEGMENT = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]+")


def spiffe_trust_domain(text: str) -> str | None:
    """The trust domain of a workload's SPIFFE id; None: it is not one (SPIFFE-ID section 2)."""
    if not text.startswith(_SPIFFE) or len(text) > SPIFFE_BYTES_MAX:
        return None
    domain, *segments = text.removeprefix(_SPIFFE).split("/")
    if not is_trust_domain(domain) or not segments:
        return None
    return domain if all(_SPIFFE_SEGMENT.fullmatch(segment) for segment in segments) else None


def is_trust_domain(text: str) -> bool:
    """Whether this names a trust domain: lower-case letters, digits, `.`, `_` and `-` (SPIFFE-ID section 2.1)."""
    return _TRUST_DOMAIN.fullmatch(text) is not None


def dns_name(text: str) -> str | None:
    """A host's name in lower case; None where it is anything else, a wildcard included."""
    host = canonical_host(text)
    return host if host is not None and host.rstrip(".") == text.lower().rstrip(".") and host[:1] != "[" else None


def _is_listed(patterns: Sequence[str], host: str) -> bool:
    return any(host.endswith(each[1:]) if each.startswith("*.") else host == each for each in patterns)
