"""Client certificates: read strictly at one place, and identifying exactly whom the policy accepts."""

from __future__ import annotations

import random
from base64 import b64encode
from hashlib import sha256
from ipaddress import ip_network
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sidecar.core.certificate_reader import CertificateError, check_roots
from sidecar.core.certificates import (
    CERTIFICATE_BYTES_MAX,
    SHOWN_CHARS_MAX,
    SUBJECT_CHARS_MAX,
    XFCC_ELEMENTS_MAX,
    XFCC_PAIRS_MAX,
    CertificateMethod,
    CertificateSource,
    CertificateTrust,
    MalformedError,
    XfccElement,
    certificate_digest,
    der_of_pem,
    dns_name,
    parse_xfcc,
    spiffe_trust_domain,
)
from sidecar.core.claims import Rejected
from sidecar.core.context import RequestContext
from sidecar.core.decision import DenyReason
from sidecar.core.principal import Principal
from tests.support.certificates import Issued, issue
from tests.support.tokens import b64

ID = "spiffe://prod.example.com/ns/shop/sa/cart"
AUTHORITY = issue("authority")
WORKLOAD = issue("cart", AUTHORITY, [x509.UniformResourceIdentifier(ID), x509.DNSName("cart.shop.example")])
NOW_US = int(WORKLOAD.certificate.not_valid_before_utc.timestamp() + 3600) * 10**6

MALFORMED, UNTRUSTED = DenyReason.CERTIFICATE_MALFORMED, DenyReason.CERTIFICATE_UNTRUSTED


def der(issued: Issued) -> bytes:
    return issued.certificate.public_bytes(Encoding.DER)


def url_pem(issued: Issued) -> str:
    """As Envoy writes it."""
    return quote(issued.certificate.public_bytes(Encoding.PEM).decode(), safe="-")


def trust(source: str = "peer_certificate", **changes: Any) -> CertificateTrust:
    settings: dict[str, Any] = {"trust_domains": frozenset({"prod.example.com"})} | changes
    return CertificateTrust(name="mesh", source=CertificateSource(source), **settings)


def request(source: str, text: str, **changes: Any) -> RequestContext:
    places: dict[str, dict[str, Any]] = {
        "peer_certificate": {"peer_certificate": text},
        "peer_principal": {"peer_principal": text},
        "xfcc": {"headers": {"x-forwarded-client-cert": text}},
        "client_cert": {"headers": {"client-cert": text}},
    }
    values = {"request_id": "", "method": "GET", "host": "a", "path": "/", "source_address": "10.1.2.3"}
    return RequestContext(**(values | places[source] | changes))


def proved(text: str, believed: CertificateTrust, now_us: int = NOW_US, **changes: Any) -> Any:
    method = CertificateMethod(believed)
    asked = request(believed.source.value, text, **changes)
    shown = method.shown(asked)
    return method.prove(shown, asked, {}, now_us) if isinstance(shown, str) else shown


def names(*general: x509.GeneralName, name: str = "cart") -> str:
    return url_pem(issue(name, AUTHORITY, list(general)))


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


# --------------------------------------------------------------------------------------------------------------------
# Whom it identifies


def test_a_spiffe_id_is_the_subject() -> None:
    """With the digest as its name, and the same principal when it comes again."""
    found = proved(url_pem(WORKLOAD), trust())
    assert isinstance(found, Principal)
    assert (found.subject, found.issuer, found.method) == (ID, "mesh", "certificate")
    assert found.key_id == found.claims["x5t#S256"] == b64(sha256(der(WORKLOAD)).digest())
    assert found.claims["trust_domain"] == "prod.example.com"
    assert found.claims["dns_names"] == ["cart.shop.example"]
    assert found.claims["exp"] == int(WORKLOAD.certificate.not_valid_after_utc.timestamp())
    believed = trust()
    assert proved(url_pem(WORKLOAD), believed) is proved(url_pem(WORKLOAD), believed)


@pytest.mark.parametrize(
    ("text", "believed", "subject"),
    [
        (names(x509.DNSName("a.example")), trust(dns_names=("a.example",)), "a.example"),
        (names(x509.DNSName("A.Example")), trust(dns_names=("a.example",)), "a.example"),
        (
            names(x509.DNSName("x.example"), x509.DNSName("b.a.example")),
            trust(dns_names=("*.a.example",)),
            "b.a.example",
        ),
        (names(name="printer"), trust(common_name=True), "printer"),
        (names(uri("https://a.example/")), trust(common_name=True), "cart"),
    ],
)
def test_other_names_where_the_policy_asks_for_them(text: str, believed: CertificateTrust, subject: str) -> None:
    """DNS names that are listed, then the common name."""
    found = proved(text, believed)
    assert isinstance(found, Principal)
    assert found.subject == subject


@pytest.mark.parametrize(
    ("text", "believed", "reason"),
    [
        (names(uri("spiffe://test.example.com/a")), trust(), UNTRUSTED),
        (names(uri("spiffe://prod.example.com.evil/a")), trust(), UNTRUSTED),
        (names(uri("spiffe://prod.example.com")), trust(), MALFORMED),
        (names(uri("spiffe://prod.example.com/")), trust(), MALFORMED),
        (names(uri("spiffe://prod.example.com/a/")), trust(), MALFORMED),
        (names(uri("spiffe://prod.example.com//a")), trust(), MALFORMED),
        (names(uri("spiffe://prod.example.com/a/../b")), trust(), MALFORMED),
        (names(uri("spiffe://prod.example.com/./a")), trust(), MALFORMED),
        (names(uri("spiffe://prod.example.com/a?x=1")), trust(), MALFORMED),
        (names(uri("spiffe://prod.example.com/a#x")), trust(), MALFORMED),
        (names(uri("spiffe://prod.example.com/a%2Fb")), trust(), MALFORMED),
        (names(uri("spiffe://prod.example.com:8443/a")), trust(), MALFORMED),
        (names(uri("spiffe://user@prod.example.com/a")), trust(), MALFORMED),
        (names(uri("spiffe://PROD.example.com/a")), trust(), MALFORMED),
        (names(uri("SPIFFE://prod.example.com/a")), trust(), MALFORMED),
        (names(uri("spiffe:prod.example.com/a")), trust(), MALFORMED),
        (names(uri("spiffe:///a")), trust(), MALFORMED),
        (names(uri("spiffe://prod.example.com/" + "a" * 2048)), trust(), MALFORMED),
        (names(uri(ID), uri("spiffe://prod.example.com/b")), trust(), UNTRUSTED),
        (names(uri(ID), uri("https://a.example/")), trust(), UNTRUSTED),
        (names(uri(ID + "\0.evil")), trust(), MALFORMED),
        (names(uri(ID), x509.DNSName("a\0.example")), trust(), MALFORMED),
        (names(x509.DNSName("a.example\n")), trust(dns_names=("a.example",)), MALFORMED),
        (names(x509.DNSName("*.a.example")), trust(dns_names=("*.a.example",)), UNTRUSTED),
        (names(x509.DNSName("a.example:443")), trust(dns_names=("a.example",)), UNTRUSTED),
        (names(x509.DNSName("xa.example")), trust(dns_names=("*.a.example", "a.example")), UNTRUSTED),
        (names(x509.DNSName("a.example")), trust(), UNTRUSTED),
        (names(x509.RFC822Name("a@a.example")), trust(), UNTRUSTED),
        (names(name="cart"), trust(), UNTRUSTED),
        (names(uri(ID)), trust(trust_domains=frozenset()), UNTRUSTED),
        (names(uri("spiffe://test.example.com/a"), name="cart"), trust(common_name=True), UNTRUSTED),
        (url_pem(AUTHORITY), trust(common_name=True), UNTRUSTED),
    ],
)
def test_whom_it_does_not_identify(text: str, believed: CertificateTrust, reason: DenyReason) -> None:
    """Other trust domains, ids that break SPIFFE's syntax, control characters, wildcards, authorities."""
    found = proved(text, believed)
    assert isinstance(found, Rejected)
    assert found.reason is reason


def test_dates_are_judged_by_our_clock() -> None:
    """Good from the first microsecond to the last, and not one before or after."""
    begins = int(WORKLOAD.certificate.not_valid_before_utc.timestamp()) * 10**6
    ends = int(WORKLOAD.certificate.not_valid_after_utc.timestamp()) * 10**6
    believed = trust()
    for now_us, good in ((begins - 1, False), (begins, True), (ends, True), (ends + 1, False)):
        found = proved(url_pem(WORKLOAD), believed, now_us)
        assert isinstance(found, Principal) is good
        assert good or found.reason is DenyReason.CERTIFICATE_EXPIRED


def test_a_chain_is_verified_where_the_policy_names_authorities() -> None:
    """Only what one of them issued, at this time; and roots that cannot be read are refused before."""
    roots = AUTHORITY.certificate.public_bytes(Encoding.PEM)
    other = issue("other").certificate.public_bytes(Encoding.PEM)
    assert isinstance(proved(url_pem(WORKLOAD), trust(ca=roots)), Principal)
    assert proved(url_pem(WORKLOAD), trust(ca=other)).reason is UNTRUSTED
    assert isinstance(proved(url_pem(WORKLOAD), trust(ca=other + roots)), Principal)
    element = f"Hash={sha256(der(WORKLOAD)).hexdigest()};URI={ID}"
    assert proved(element, trust("xfcc", ca=roots)).reason is UNTRUSTED
    check_roots(roots)
    for text in (b"", b"nonsense", roots[:100]):
        with pytest.raises(CertificateError):
            check_roots(text)


def test_the_peers_principal_identifies_a_workload() -> None:
    """Without a certificate there is an id, and no digest."""
    found = proved(ID, trust("peer_principal"))
    assert isinstance(found, Principal)
    assert (found.subject, found.key_id) == (ID, "")
    assert proved("spiffe://test.example.com/a", trust("peer_principal")).reason is UNTRUSTED
    assert proved("cart.shop.example", trust("peer_principal")).reason is UNTRUSTED
    digest = certificate_digest(request("peer_principal", ID), trust("peer_principal"))
    assert isinstance(digest, Rejected)
    assert digest.reason is DenyReason.CERTIFICATE_MISSING


# --------------------------------------------------------------------------------------------------------------------
# Where it is


def test_each_source_is_believed_alone() -> None:
    """What stands anywhere else than where the policy looks does not exist."""
    xfcc = f'Cert="{url_pem(WORKLOAD)}"'
    byte_sequence = f":{b64encode(der(WORKLOAD)).decode()}:"
    proxies = (ip_network("10.0.0.0/8"),)
    shown = {
        "peer_certificate": (url_pem(WORKLOAD), trust()),
        "peer_principal": (ID, trust("peer_principal")),
        "xfcc": (xfcc, trust("xfcc")),
        "client_cert": (byte_sequence, trust("client_cert", proxies=proxies)),
    }
    for source, (text, believed) in shown.items():
        assert isinstance(proved(text, believed), Principal), source
        for other, (elsewhere, _) in shown.items():
            if other != source:
                assert CertificateMethod(believed).shown(request(other, elsewhere)) is None


@pytest.mark.parametrize("address", ["192.0.2.1", "", "nonsense", "11.0.0.1", "::1"])
def test_headers_are_believed_from_proxies_alone(address: str) -> None:
    """From elsewhere they are refused, not passed over; Client-Cert needs a list of proxies."""
    proxies = (ip_network("10.0.0.0/8"),)
    for source, text in (("xfcc", f"URI={ID}"), ("client_cert", f":{b64encode(der(WORKLOAD)).decode()}:")):
        assert proved(text, trust(source, proxies=proxies), source_address=address).reason is UNTRUSTED
        assert isinstance(proved(text, trust(source, proxies=proxies), source_address="::ffff:10.0.0.1"), Principal)
    assert proved(":AAAA:", trust("client_cert")).reason is UNTRUSTED


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "%",
        "%0",
        "%zz",
        "\0",
        url_pem(WORKLOAD) + "%00",
        url_pem(WORKLOAD) + url_pem(WORKLOAD),
        " " + url_pem(WORKLOAD),
        url_pem(WORKLOAD).replace("BEGIN", "BEGIN%20TRUSTED", 1),
        url_pem(WORKLOAD).replace("CERTIFICATE", "PRIVATE%20KEY"),
        url_pem(WORKLOAD).replace("%0AM", "%0A*M", 1),
        quote("-----BEGIN CERTIFICATE-----\nA===\n-----END CERTIFICATE-----\n"),
        quote("-----BEGIN CERTIFICATE-----\nAAAA=AAA\n-----END CERTIFICATE-----\n"),
        quote("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"),
        quote(
            f"-----BEGIN CERTIFICATE-----\n{b64encode(bytes(CERTIFICATE_BYTES_MAX + 1)).decode()}\n"
            "-----END CERTIFICATE-----\n"
        ),
        "A" * (SHOWN_CHARS_MAX + 1),
    ],
)
def test_what_is_no_certificate(text: str) -> None:
    """Encodings with a second reading, two certificates, other PEM, what is too long: refused before X.509 sees it."""
    assert proved(text, trust()).reason is MALFORMED


def test_size_limits_hold_at_their_edge() -> None:
    """A certificate of the largest size is decoded."""
    body = b64encode(bytes(CERTIFICATE_BYTES_MAX)).decode()
    assert len(der_of_pem(quote(f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"))) == (
        CERTIFICATE_BYTES_MAX
    )


def test_one_client_cert_header() -> None:
    """Two headers, two certificates in one, or no byte sequence are refused (RFC 9440 section 2)."""
    proxies = (ip_network("10.0.0.0/8"),)
    good = f":{b64encode(der(WORKLOAD)).decode()}:"
    believed = trust("client_cert", proxies=proxies)
    for text in (f"{good},{good}", good[1:], good[:-1], f'"{good}"', good + ";a=1", "::", good.replace("M", "-", 1)):
        assert proved(text, believed).reason is MALFORMED
    twice = request("client_cert", good, repeated=frozenset({"client-cert"}))
    refused = CertificateMethod(believed).shown(twice)
    assert isinstance(refused, Rejected)


# --------------------------------------------------------------------------------------------------------------------
# x-forwarded-client-cert

HASH = sha256(der(WORKLOAD)).hexdigest()


def test_xfcc_as_envoy_documents_it() -> None:
    """The examples of Envoy's documentation, and what a quotation may hold."""
    text = (
        'By=http://frontend.lyft.com;Hash=468ed33be74eee6556d90c0149c1309e9ba61d6425303443c0748a02dd8de688;Subject="/C=U'
        'S/ST=CA/L=San Francisco/OU=Lyft/CN=Test Client";URI=http://testclient.lyft.com'
    )
    [element] = parse_xfcc(text)
    assert element["uri"] == ["http://testclient.lyft.com"]
    assert element["subject"] == ["/C=US/ST=CA/L=San Francisco/OU=Lyft/CN=Test Client"]
    two = parse_xfcc("By=http://a;Hash=00;URI=http://b,   By=http://c;URI=;DNS=d.example;DNS=e.example")
    assert [each["by"] for each in two] == [["http://a"], ["http://c"]]
    assert two[1]["dns"] == ["d.example", "e.example"]
    quoted = parse_xfcc(r'Subject="CN=a\"b;URI=x,O=Foo\, Inc\\.";hash=00')
    assert quoted == [{"subject": [r"CN=a\"b;URI=x,O=Foo\, Inc\\.".replace('\\"', '"')], "hash": ["00"]}]


@pytest.mark.parametrize(
    "text",
    [
        "",
        ";",
        ",",
        "URI",
        "URI=a;",
        "URI=a,",
        ",URI=a",
        "URI=a;;DNS=b",
        "=a",
        "URI =a",
        "Evil=1",
        'Subject="a',
        'Subject="a"b',
        'Subject=a"b',
        'Subject="a\\"',
        r'Subject="a\\"',
        r'Subject="a\\";URI=spiffe://prod.example.com/b"',
        r'Subject="a\\\";URI=x"',
        "Hash=00;Hash=00",
        'Cert="a";Cert="b"',
        'Subject="a";subject="b"',
        "URI=a\nDNS=b",
        "URI=a\x00b",
        "URI=\x85",
        ",".join(["URI=a"] * (XFCC_ELEMENTS_MAX + 1)),
        ";".join(["URI=a"] * (XFCC_PAIRS_MAX + 1)),
    ],
)
def test_xfcc_that_envoy_does_not_write(text: str) -> None:
    """Broken quotations, unknown and repeated keys, empty pairs, control characters, too many of anything."""
    with pytest.raises(MalformedError):
        parse_xfcc(text)


def test_xfcc_limits_hold_at_their_edge() -> None:
    """As many elements and pairs as are accepted."""
    assert len(parse_xfcc(",".join(["URI=a"] * XFCC_ELEMENTS_MAX))) == XFCC_ELEMENTS_MAX
    assert len(parse_xfcc(";".join(["URI=a"] * XFCC_PAIRS_MAX))[0]["uri"]) == XFCC_PAIRS_MAX


@pytest.mark.parametrize(
    ("text", "element", "outcome"),
    [
        (f"Hash={HASH};URI={ID}", "only", ID),
        (f'Hash={HASH};Cert="{url_pem(WORKLOAD)}";URI=spiffe://prod.example.com/forged', "only", ID),
        (f"URI={ID},URI=spiffe://prod.example.com/b", "only", MALFORMED),
        (f"URI={ID},URI=spiffe://prod.example.com/b", "first", ID),
        (f"URI={ID},URI=spiffe://prod.example.com/b", "last", "spiffe://prod.example.com/b"),
        (f"URI={ID};URI=spiffe://prod.example.com/b", "only", UNTRUSTED),
        (f"By={ID}", "only", UNTRUSTED),
        (f'Hash={"0" * 64};Cert="{url_pem(WORKLOAD)}"', "only", MALFORMED),
        (f"Hash={HASH[:-2]};URI={ID}", "only", MALFORMED),
        (f"Hash={HASH[:-1]}g;URI={ID}", "only", MALFORMED),
        ('Cert="nonsense"', "only", MALFORMED),
        (f'Cert="";URI={ID}', "only", MALFORMED),
        ("URI=", "only", UNTRUSTED),
    ],
)
def test_which_element_tells_of_the_client(text: str, element: str, outcome: Any) -> None:
    """The one, the first or the last; `Cert` beats what others say of it, and must fit `Hash`."""
    found = proved(text, trust("xfcc", xfcc_element=XfccElement(element)))
    assert (found.subject if isinstance(found, Principal) else found.reason) == outcome


def test_digests_for_bound_tokens() -> None:
    """From PEM, from `Cert`, from `Hash` in either case; none where an element has none."""
    expected = sha256(der(WORKLOAD)).digest()
    believed = trust("xfcc")
    assert certificate_digest(request("peer_certificate", url_pem(WORKLOAD)), trust()) == expected
    for text in (f'Cert="{url_pem(WORKLOAD)}"', f"Hash={HASH}", f"Hash={HASH.upper()}"):
        assert certificate_digest(request("xfcc", text), believed) == expected
    missing = certificate_digest(request("xfcc", f"URI={ID}"), believed)
    assert isinstance(missing, Rejected)
    assert missing.reason is DenyReason.CERTIFICATE_MISSING


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("CN=cart,O=Shop", "cart"),
        ("O=Shop,CN=cart", "cart"),
        ("O=Shop+CN=cart", "cart"),
        (r"O=Shop\, Inc.,CN=cart", "cart"),
        ("CN=a,CN=b", None),
        ("O=CN=cart", None),
        ("CN=", None),
        ("CN=a;CN=b", None),
        ("/CN=cart", None),
        ("CN=" + "a" * 257, None),
        ("CN=cart,O=" + "a" * (SUBJECT_CHARS_MAX - len("CN=cart,O=")), "cart"),
        ("CN=cart,O=" + "a" * (SUBJECT_CHARS_MAX - len("CN=cart,O=") + 1), None),
        ("", None),
    ],
)
def test_common_names_of_a_subject(subject: str, expected: str | None) -> None:
    """Exactly one, in the form of RFC 2253; everything else identifies nobody."""
    found = proved(f'Hash={HASH};Subject="{subject}"', trust("xfcc", common_name=True))
    assert (found.subject if isinstance(found, Principal) else None) == expected


# --------------------------------------------------------------------------------------------------------------------
# Names and bytes at random


def test_spiffe_ids_and_dns_names() -> None:
    """What their specifications take, and nothing else."""
    assert spiffe_trust_domain("spiffe://a-1_b.example/ns/x") == "a-1_b.example"
    assert spiffe_trust_domain("spiffe://" + "a" * 255 + "/x") == "a" * 255
    assert spiffe_trust_domain("spiffe://" + "a" * 256 + "/x") is None
    assert spiffe_trust_domain("spiffe://a/" + "x" * (2048 - 11)) == "a"
    assert spiffe_trust_domain("spiffe://a/" + "x" * (2048 - 10)) is None
    assert dns_name("A.example.") == "a.example"
    assert [dns_name(text) for text in ("*.a", "a b", "a:1", "[::1]", "", "a..b", "ä.example")] == [None] * 7


PERMITTED = {MALFORMED, UNTRUSTED, DenyReason.CERTIFICATE_EXPIRED}


def test_bytes_at_random_identify_nobody_else() -> None:
    """Whatever is replaced, inserted or cut: the same client, or a refusal out of three, and no exception."""
    chance = random.Random(8705)
    sources = {
        "peer_certificate": url_pem(WORKLOAD),
        "xfcc": f'By=spiffe://prod.example.com/me;Hash={HASH};Subject="CN=cart";URI={ID};DNS=cart.shop.example',
        "client_cert": f":{b64encode(der(WORKLOAD)).decode()}:",
    }
    proxies = (ip_network("10.0.0.0/8"),)
    for source, good in sources.items():
        believed = trust(source, proxies=() if source == "peer_certificate" else proxies)
        for _ in range(1500):
            at = chance.randrange(len(good))
            with_other = chance.choice(['"', "\\", ";", ",", "=", "%", "\0", "A", "/", "é", "\ud800", "%00", ""])
            text = good[:at] + with_other + good[at + chance.randrange(3) :]
            found = proved(text, believed)
            if isinstance(found, Principal):
                assert found.subject.startswith("spiffe://prod.example.com/")
            else:
                assert found is None or found.reason in PERMITTED


def test_der_at_random_raises_nothing() -> None:
    """Bytes of a certificate, any of them altered, are read or refused."""
    chance = random.Random(5280)
    believed, good = trust(common_name=True), bytearray(der(WORKLOAD))
    for _ in range(1500):
        altered = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            altered[chance.randrange(len(altered))] = chance.randrange(256)
        body = b64encode(bytes(altered[: chance.choice([len(altered)] * 9 + [len(altered) // 2])])).decode()
        text = quote(f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
        found = proved(text, believed)
        assert isinstance(found, Principal) or found.reason in PERMITTED
