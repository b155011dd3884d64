"""The hostile table: each case with the rule that it breaks, as a line of section 3.1 of the checklist or as a CVE.

The cases of hostile_tokens.py, more of their kind, tokens of keys that nobody should publish, and credentials that are
not shown as they should be. `RULES` says which case is for which line; a case may be for several.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric import rsa

from sidecar.core.decision import DenyReason
from tests.support.hostile_tokens import (
    CLAIMS,
    GOOD,
    HEAD,
    HEADERS,
    KEY,
    LEEWAY_S,
    LEXICAL,
    ORDER,
    PAYLOAD,
    RSA,
    SIGNATURE,
    SIGNATURES,
    claims_text,
    es256,
    flipped_last,
    header,
    resigned,
    with_claims,
    with_header,
)
from tests.support.tokens import AUDIENCE, ISSUER, NOW_S, SigningKey, b64, b64_integer, good_claims, make_key

R = DenyReason

FOREIGN = make_key("ES256", number=7)
"""A key that no issuer publishes."""


class Hostile(NamedTuple):
    """A request that must be denied.

    Attributes:
        authorization: Values of the Authorization header, in the order in which they are sent.
        reason: What the whole service answers.
        asks_for_key: The token names a key that is not held: within its budget, a fetch is allowed.
        rules: Lines of section 3.1, and CVEs.
    """

    name: str
    authorization: tuple[str, ...]
    reason: DenyReason
    asks_for_key: bool
    rules: frozenset[str]


# --------------------------------------------------------------------------------------------------------------------
# More of their kind


def spoiled(segment: int, change: str) -> str:
    """The good token with something in the middle of one segment."""
    parts = GOOD.split(".")
    middle = len(parts[segment]) // 2
    parts[segment] = parts[segment][:middle] + change + parts[segment][middle:]
    return ".".join(parts)


def with_unused_bits(raw: bytes) -> str:
    """base64url of these bytes, or of these and a space, in a spelling that is not canonical."""
    text = b64(raw) if len(raw) % 3 else b64(raw + b" ")
    return flipped_last(text)


MORE_LEXICAL: dict[str, str] = {
    "unused bits of the header": f"{with_unused_bits(json.dumps(header()).encode())}.{PAYLOAD}.{SIGNATURE}",
    "unused bits of the payload": f"{HEAD}.{with_unused_bits(json.dumps(good_claims()).encode())}.{SIGNATURE}",
    "impossible length of the payload": f"{HEAD}.{PAYLOAD[: len(PAYLOAD) // 4 * 4]}A.{SIGNATURE}",
    "padding in the payload": f"{HEAD}.{PAYLOAD}=.{SIGNATURE}",
    "two dots in a row": f"{HEAD}.{PAYLOAD}..{SIGNATURE}",
    "four segments": f"{HEAD}.{PAYLOAD}.{SIGNATURE}.{SIGNATURE}",
    "a dot at the end": f"{GOOD}.",
    **{
        f"{name} in {part}": spoiled(segment, change)
        for segment, part in enumerate(("the header", "the payload", "the signature"))
        for name, change in {
            "a space": " ",
            "a CRLF": "\r\n",
            "a zero-width space": "\u200b",
            "a soft hyphen": "\u00ad",
            "a percent escape": "%41",
            "a quote": '"',
            "a tilde (SD-JWT)": "~",
        }.items()
    },
    "header name twice inside": KEY.token(header=b'{"alg":"ES256","kid":"k1","x":{"a":1,"a":2}}'),
    "header kid twice by escape": KEY.token(header=b'{"alg":"ES256","kid":"k2","k\\u0069d":"k1"}'),
    "header lone surrogate": KEY.token(header=b'{"alg":"ES256","kid":"k1","x":"\\ud800"}'),
    "header number of 5000 digits": KEY.token(header=b'{"alg":"ES256","kid":"k1","x":' + b"9" * 1400 + b"}"),
    "header nested 17": KEY.token(header=b'{"alg":"ES256","kid":"k1","x":' + b"[" * 17 + b"]" * 17 + b"}"),
    "header comment": KEY.token(header=b'{"alg":"ES256","kid":"k1"/**/}'),
    "header in single quotes": KEY.token(header=b"{'alg':'ES256','kid':'k1'}"),
    "payload nested objects 1000 (CVE-2026-48042)": KEY.token(b'{"x":' * 1000 + b"1" + b"}" * 1000),
    "payload aud twice": claims_text('"aud"', '"aud": "x", "aud"'),
    "payload exp twice": claims_text('"exp"', '"exp": 1, "exp"'),
    "payload cnf twice, null last": claims_text('"sub"', '"cnf": {"jkt": "x"}, "cnf": null, "sub"'),
    "payload 1E999": claims_text(str(NOW_S + 600), "1E999"),
    "payload of bytes that compress well (CVE-2025-65015, CVE-2026-27932)": KEY.token(b" " * 7000 + b"{}"),
}

MORE_HEADERS: dict[str, tuple[str, DenyReason]] = {
    "crit of a number": (with_header(crit=[1]), R.TOKEN_HEADER_REFUSED),
    "crit of the same name twice": (with_header(crit=["x", "x"], x=1), R.TOKEN_HEADER_REFUSED),
    "crit of a name that is not there": (with_header(crit=["x"]), R.TOKEN_HEADER_REFUSED),
    "crit object": (with_header(crit={"x": 1}), R.TOKEN_HEADER_REFUSED),
    "crit b64 true": (with_header(crit=["b64"], b64=True), R.TOKEN_HEADER_REFUSED),
    "crit of what is understood elsewhere": (with_header(crit=["exp"], exp=NOW_S + 600), R.TOKEN_HEADER_REFUSED),
    "b64 null": (with_header(b64=None), R.TOKEN_HEADER_REFUSED),
    "zip null": (with_header(zip=None), R.TOKEN_HEADER_REFUSED),
    "enc null": (with_header(enc=None), R.TOKEN_HEADER_REFUSED),
    "PBES2 (CVE-2024-33664)": (
        with_header(alg="PBES2-HS256+A128KW", enc="A128CBC-HS256", p2c=2**31),
        R.TOKEN_HEADER_REFUSED,
    ),
    "jku of the issuer itself": (with_header(jku=f"{ISSUER}/jwks"), R.TOKEN_HEADER_REFUSED),
    "jku of a file (CVE-2026-48522)": (with_header(jku="file:///etc/passwd"), R.TOKEN_HEADER_REFUSED),
    "jwk of the good key": (with_header(jwk=KEY.jwk), R.TOKEN_HEADER_REFUSED),
    "jwk symmetric": (with_header(jwk={"kty": "oct", "k": "AA"}), R.TOKEN_HEADER_REFUSED),
    "kid true": (with_header(kid=True), R.TOKEN_HEADER_REFUSED),
    "typ list": (with_header(typ=["JWT"]), R.TOKEN_HEADER_REFUSED),
    "typ logout+jwt": (with_header(typ="logout+jwt"), R.TOKEN_TYPE_REFUSED),
    "typ dpop+jwt: a proof is no access token": (with_header(typ="dpop+jwt"), R.TOKEN_TYPE_REFUSED),
    "typ token-introspection+jwt": (with_header(typ="token-introspection+jwt"), R.TOKEN_TYPE_REFUSED),
    "typ secevent+jwt": (with_header(typ="secevent+jwt"), R.TOKEN_TYPE_REFUSED),
    "cty a number": (with_header(cty=1), R.TOKEN_HEADER_REFUSED),
    **{
        f"alg {alg!r}": (with_header(alg=alg), R.TOKEN_ALGORITHM_REFUSED)
        for alg in ("RS1", "ES255", "ES256\n", "HS256", "HS384", "ECDH-ES", "A128KW", True, {}, ["none"])
    },
    "HS256 with an empty secret": (
        resigned(
            HS_HEAD := b64(json.dumps({"alg": "HS256", "kid": "rsa"}).encode()),
            PAYLOAD,
            hmac.digest(b"", f"{HS_HEAD}.{PAYLOAD}".encode(), hashlib.sha256),
        ),
        R.TOKEN_ALGORITHM_REFUSED,
    ),
    "HS256 with a MAC of one byte (CVE-2016-7036)": (resigned(HS_HEAD, PAYLOAD, b"\0"), R.TOKEN_ALGORITHM_REFUSED),
    "ES384 under the kid of a P-256 key": (
        make_key("ES384").token(header=header(alg="ES384")),
        R.TOKEN_ALGORITHM_REFUSED,
    ),
    "EdDSA under the kid of a P-256 key": (
        make_key("EdDSA").token(header=header(alg="EdDSA")),
        R.TOKEN_ALGORITHM_REFUSED,
    ),
}

MORE_SIGNATURES: dict[str, str] = {
    "x5c of the one who signs": FOREIGN.token(header=header(x5c=["MIIB"])),
    "x5t of the one who signs": FOREIGN.token(header=header(**{"x5t#S256": "x"})),
    "no kid, another key": FOREIGN.token(header=header(kid=...)),
    "ES256 r and s exchanged": resigned(
        HEAD, PAYLOAD, KEY.sign(f"{HEAD}.{PAYLOAD}".encode())[32:] + KEY.sign(f"{HEAD}.{PAYLOAD}".encode())[:32]
    ),
    "ES256 r = n - 1, s = n - 1": es256(ORDER - 1, ORDER - 1),
    "ES256 96 bytes (P-384's length)": resigned(HEAD, PAYLOAD, bytes(96)),
    "ES256 132 bytes (P-521's length)": resigned(HEAD, PAYLOAD, bytes(132)),
    "ES256 over the payload alone": resigned(HEAD, PAYLOAD, KEY.sign(PAYLOAD.encode())),
    "ES256 over decoded parts": resigned(HEAD, PAYLOAD, KEY.sign(json.dumps(good_claims()).encode())),
    "signed by the other published key's owner": resigned(HEAD, PAYLOAD, RSA.sign(f"{HEAD}.{PAYLOAD}".encode())),
}

_IN_US = 1.0e-6

MORE_CLAIMS: dict[str, tuple[str, DenyReason]] = {
    "iss with http instead of https": (with_claims(iss=ISSUER.replace("https", "http")), R.TOKEN_ISSUER_UNKNOWN),
    "iss in fullwidth letters": (with_claims(iss=ISSUER.replace("i", "\uff49", 1)), R.TOKEN_ISSUER_UNKNOWN),
    "iss with a port": (with_claims(iss=f"{ISSUER}:443"), R.TOKEN_ISSUER_UNKNOWN),
    "iss that begins with ours": (with_claims(iss=f"{ISSUER}.evil.example"), R.TOKEN_ISSUER_UNKNOWN),
    "iss with a space": (with_claims(iss=f"{ISSUER} "), R.TOKEN_ISSUER_UNKNOWN),
    "iss object": (with_claims(iss={"iss": ISSUER}), R.TOKEN_CLAIM_INVALID),
    "iss true": (with_claims(iss=True), R.TOKEN_CLAIM_INVALID),
    "aud with a trailing slash": (with_claims(aud=f"{AUDIENCE}/"), R.TOKEN_AUDIENCE_MISMATCH),
    "aud with a scheme": (with_claims(aud=f"https://{AUDIENCE}"), R.TOKEN_AUDIENCE_MISMATCH),
    "aud joined by a comma": (with_claims(aud=f"{AUDIENCE},x"), R.TOKEN_AUDIENCE_MISMATCH),
    "aud true": (with_claims(aud=True), R.TOKEN_CLAIM_INVALID),
    "aud list with null": (with_claims(aud=[None, AUDIENCE]), R.TOKEN_CLAIM_INVALID),
    "exp -0.0": (with_claims(exp=-0.0), R.TOKEN_EXPIRED),
    "exp in the last microsecond of the leeway": (with_claims(exp=NOW_S - LEEWAY_S - _IN_US), R.TOKEN_EXPIRED),
    "exp ISO 8601": (with_claims(exp="2099-01-01T00:00:00Z"), R.TOKEN_CLAIM_INVALID),
    "exp in milliseconds, and longer than a date": (with_claims(exp=2**63), R.TOKEN_CLAIM_INVALID),
    "nbf far away": (with_claims(nbf=2**53), R.TOKEN_NOT_YET_VALID),
    "iat a fraction after the leeway": (with_claims(iat=NOW_S + LEEWAY_S + 0.5), R.TOKEN_NOT_YET_VALID),
    "sub true": (with_claims(sub=True), R.TOKEN_CLAIM_INVALID),
    "sub object": (with_claims(sub={"id": "alice"}), R.TOKEN_CLAIM_INVALID),
    "scope list of lists": (with_claims(scope=[["orders:read"]]), R.TOKEN_CLAIM_INVALID),
    "scope true": (with_claims(scope=True), R.TOKEN_CLAIM_INVALID),
    "roles number": (with_claims(roles=1), R.TOKEN_CLAIM_INVALID),
    "roles object": (with_claims(roles={"admin": True}), R.TOKEN_CLAIM_INVALID),
    "roles list with null": (with_claims(roles=["admin", None]), R.TOKEN_CLAIM_INVALID),
    "ID token: c_hash": (with_claims(c_hash="h"), R.TOKEN_TYPE_REFUSED),
}

# --------------------------------------------------------------------------------------------------------------------
# Keys that must not be published, each published together with a token that it signed


def weak_rsa(bits: int, kid: str) -> SigningKey:
    return SigningKey("RS256", rsa.generate_private_key(public_exponent=65537, key_size=bits), kid)


def signed_with_exponent_one(kid: str) -> str:
    """With e = 1 the signature is the padded digest itself: anyone can write it."""
    head = b64(json.dumps({"alg": "RS256", "kid": kid}).encode())
    digest_info = bytes.fromhex("3031300d060960864801650304020105000420")
    digest = digest_info + hashlib.sha256(f"{head}.{PAYLOAD}".encode()).digest()
    return resigned(head, PAYLOAD, b"\0\1" + b"\xff" * (256 - 3 - len(digest)) + b"\0" + digest)


def signed_for_small_order(kid: str) -> str:
    """Under the point of order one, R = the identity and s = 0 fits every message."""
    head = b64(json.dumps({"alg": "EdDSA", "kid": kid}).encode())
    return resigned(head, PAYLOAD, b"\1" + bytes(63))


def signed_with_shared_secret(kid: str, secret: bytes, alg: str = "HS256") -> str:
    head = b64(json.dumps({"alg": alg, "kid": kid}).encode())
    return resigned(head, PAYLOAD, hmac.digest(secret, f"{head}.{PAYLOAD}".encode(), hashlib.sha256))


def published(name: str, members: dict[str, Any], algorithm: str = "ES256", number: int = 3) -> tuple[Any, str]:
    """A key with changed members, and a token that it signed."""
    key = make_key(algorithm, name, number)
    return key.jwk | members, key.token()


_WEAK = weak_rsa(1024, "RSA 1024 bits (CVE-2025-45768)")
_RSA_N = make_key("RS256").private.public_key().public_numbers().n
_EC_X = make_key("ES256", number=3).private.public_key().public_numbers().x
_EC_D = make_key("ES256", number=3).private.private_numbers().private_value

_CHANGED: dict[str, dict[str, Any]] = {
    "use enc": {"use": "enc"},
    "use null": {"use": None},
    "use list": {"use": ["sig"]},
    "key_ops sign": {"key_ops": ["sign"]},
    "key_ops empty": {"key_ops": []},
    "private part published": {"d": b64_integer(_EC_D, 32)},
    "key alg of another curve": {"alg": "ES384"},
    "key alg none": {"alg": "none"},
    "key alg HS256": {"alg": "HS256"},
    "kty in lower case": {"kty": "ec"},
    "kty absent": {"kty": None},
    "crv of another length": {"crv": "P-384"},
    "point not on the curve": {"y": b64(bytes(32))},
    "coordinate with a leading zero": {"x": b64(b"\0" + _EC_X.to_bytes(32, "big"))},
    "coordinate padded": {"x": b64_integer(_EC_X, 32) + "="},
}

_PUBLISHED: dict[str, tuple[Any, str]] = {
    **{name: published(name, members) for name, members in _CHANGED.items()},
    "RSA 1024 bits (CVE-2025-45768)": (_WEAK.jwk, _WEAK.token()),
    "RSA e = 1": (make_key("RS256").jwk | {"e": "AQ"}, signed_with_exponent_one("RSA e = 1")),
    "RSA e even": published("RSA e even", {"e": "AQAA"}, "RS256"),
    "RSA n even": published("RSA n even", {"n": b64_integer(_RSA_N - 1)}, "RS256"),
    "Ed25519 of small order": (
        {"kty": "OKP", "crv": "Ed25519", "x": b64(b"\1" + bytes(31))},
        signed_for_small_order("Ed25519 of small order"),
    ),
    "oct in a remote set": (
        {"kty": "oct", "k": b64(b"s" * 32), "alg": "HS256"},
        signed_with_shared_secret("oct in a remote set", b"s" * 32),
    ),
    "oct empty": ({"kty": "oct", "k": ""}, signed_with_shared_secret("oct empty", b"")),
}

HOSTILE_KEYS: dict[str, tuple[Any, str, DenyReason]] = {
    name: (jwk | {"kid": name}, text, R.TOKEN_ALGORITHM_REFUSED if name.startswith("oct") else R.TOKEN_KEY_UNKNOWN)
    for name, (jwk, text) in _PUBLISHED.items()
}

TWINS = [make_key("ES256", "twins", number).jwk for number in (3, 4)]
"""Two keys under one name: neither is to be guessed."""

PUBLISHED: list[Any] = [KEY, RSA, *(jwk for jwk, _, _ in HOSTILE_KEYS.values()), *TWINS]

UNKNOWN_KEYS: dict[str, str] = {
    "kid of twins": make_key("ES256", "twins", 3).token(),
    "kid that is not published": with_header(kid="k2"),
    "kid of a path": with_header(kid="../../../../dev/null"),
    "kid of a URL": with_header(kid="https://evil.example/jwks"),
    "kid of a file (CVE-2026-48522)": with_header(kid="file:///etc/passwd"),
    "kid of an SQL injection": with_header(kid="' UNION SELECT 'k1' --"),
    "kid of a shell injection": with_header(kid="k1;id"),
    "kid in upper case": with_header(kid="K1"),
    "kid with a trailing space": with_header(kid="k1 "),
    "kid with a NUL": with_header(kid="k1\0"),
    "kid as long as allowed": with_header(kid="k" * 256),
    "kid as new as each request's (CVE-2026-48524)": with_header(kid="8f14e45fceea167a"),
}

# --------------------------------------------------------------------------------------------------------------------
# How a credential is shown

SHOWN: dict[str, tuple[tuple[str, ...], DenyReason]] = {
    "no credential (CVE-2021-21378)": ((), R.CREDENTIAL_MISSING),
    "an empty header": (("",), R.CREDENTIAL_MISSING),
    "basic": (("Basic YWxpY2U6c2VjcmV0",), R.CREDENTIAL_MISSING),
    "a token without its scheme": ((GOOD,), R.CREDENTIAL_MISSING),
    "the scheme alone": (("Bearer",), R.CREDENTIAL_MALFORMED),
    "the scheme and a space": (("Bearer ",), R.CREDENTIAL_MALFORMED),
    "two spaces": ((f"Bearer  {GOOD}",), R.CREDENTIAL_MALFORMED),
    "a tab": ((f"Bearer\t{GOOD}",), R.CREDENTIAL_MISSING),
    "two headers (CVE-2021-32777)": ((f"Bearer {GOOD}", f"Bearer {GOOD}"), R.CREDENTIAL_REPEATED),
    "a bad one first (CVE-2020-25017)": (("Bearer x", f"Bearer {GOOD}"), R.CREDENTIAL_REPEATED),
    "a good one first": ((f"Bearer {GOOD}", "Bearer x"), R.CREDENTIAL_REPEATED),
    "two in one header (CVE-2026-26308)": ((f"Bearer {GOOD}, Bearer {GOOD}",), R.CREDENTIAL_REPEATED),
    "two tokens after one scheme": ((f"Bearer {GOOD} {GOOD}",), R.TOKEN_MALFORMED),
    "the scheme twice": ((f"Bearer Bearer {GOOD}",), R.TOKEN_MALFORMED),
    "bytes that are not UTF-8 (CVE-2023-27488, CVE-2024-23324)": ((f"Bearer {GOOD}\udcff",), R.TOKEN_MALFORMED),
}

_SHOWN_OTHERWISE = {
    "empty": R.CREDENTIAL_MALFORMED,
    "leading space": R.CREDENTIAL_MALFORMED,
    "JSON serialisation": R.CREDENTIAL_REPEATED,
    "comma": R.CREDENTIAL_REPEATED,
    "megabytes (CVE-2025-61920)": R.REQUEST_TOO_LARGE,
}
"""What is wrong with these as a header is found before what is wrong with them as a token."""

# --------------------------------------------------------------------------------------------------------------------
# Which rule

RULES: tuple[tuple[str, str], ...] = (
    ("3.1.1", r"lexical: (one byte too long|megabytes|header too long)"),
    (
        "3.1.2",
        r"lexical: (empty|one byte$|only dots|one dot|two dots|three dots|four seg|five seg|leading|a dot|JSON ser)",
    ),
    (
        "3.1.3",
        r"lexical: (leading space|trailing (space|new)|inner|NUL|padding|standard|percent|comma|letter|digit|full)",
    ),
    ("3.1.3", r"lexical: (lone surrogate$|trailing !|a (space|CRLF|zero|soft|percent|quote|tilde))"),
    ("3.1.3", r"shown: (two tokens|the scheme twice|bytes)"),
    ("3.1.4", r"lexical: (unused bits|impossible length|trailing !|padding)"),
    ("3.1.5", r"lexical: (header (?!too)|two headers|payload)"),
    ("3.1.6", r"headers: (alg|HS\d+|PBES2)|key: (oct|key alg (none|HS256))"),
    ("3.1.7", r"headers: (..(256|384|512) under|EdDSA under|(PS256|RS512) with a key)|key: key alg of|key: crv"),
    ("3.1.8", r"headers: kid|unknown: kid|signature: no kid"),
    ("3.1.9", r"headers: (jku|x5u|jwk)|signature: x5"),
    ("3.1.10", r"headers: (crit|b64)"),
    ("3.1.11", r"headers: (typ|cty|zip)|claims: ID token"),
    ("3.1.12", r"headers: (enc|PBES2)|lexical: five"),
    ("3.1.13", r"key: |unknown: kid of twins"),
    ("3.1.14", r"signature: ES256"),
    ("3.1.15", r"headers: HS256 with a MAC of one byte"),
    ("3.1.16", r"claims: iss"),
    ("3.1.17", r"claims: aud"),
    ("3.1.18", r"claims: exp|lexical: payload (NaN|.?Infinity|1e400|1E999|5000|exp)"),
    ("3.1.19", r"claims: (nbf|iat)"),
    ("3.1.20", r"claims: sub"),
    ("3.1.21", r"claims: (scope|roles)"),
    ("3.1.22", r"claims: cnf|lexical: payload cnf"),
    ("RFC 7515 section 5.2", r"signature: "),
    ("RFC 6750 section 2.1", r"shown: "),
)


def rules_of(group: str, name: str) -> frozenset[str]:
    found = {rule for rule, pattern in RULES if re.match(pattern, f"{group}: {name}")}
    return frozenset(found | set(re.findall(r"CVE-\d{4}-\d+", name)))


def _bearer(group: str, name: str, text: str, reason: DenyReason, *, asks_for_key: bool = False) -> Hostile:
    served = _SHOWN_OTHERWISE.get(name, reason) if group == "lexical" else reason
    return Hostile(f"{group}: {name}", (f"Bearer {text}",), served, asks_for_key, rules_of(group, name))


TABLE: list[Hostile] = [
    *(_bearer("lexical", name, text, R.TOKEN_MALFORMED) for name, text in {**LEXICAL, **MORE_LEXICAL}.items()),
    *(_bearer("headers", name, text, reason) for name, (text, reason) in {**HEADERS, **MORE_HEADERS}.items()),
    *(
        _bearer("signature", name, text, R.TOKEN_SIGNATURE_INVALID)
        for name, text in {**SIGNATURES, **MORE_SIGNATURES}.items()
    ),
    *(_bearer("claims", name, text, reason) for name, (text, reason) in {**CLAIMS, **MORE_CLAIMS}.items()),
    *(
        _bearer("key", name, text, reason, asks_for_key=reason is R.TOKEN_KEY_UNKNOWN)
        for name, (_, text, reason) in HOSTILE_KEYS.items()
    ),
    *(_bearer("unknown", name, text, R.TOKEN_KEY_UNKNOWN, asks_for_key=True) for name, text in UNKNOWN_KEYS.items()),
    *(
        Hostile(f"shown: {name}", values, reason, False, rules_of("shown", name))
        for name, (values, reason) in SHOWN.items()
    ),
]

CVES = {
    *(f"CVE-2016-{number}" for number in (7036,)),
    *(f"CVE-2017-{number}" for number in (11424,)),
    *(f"CVE-2020-{number}" for number in (25017,)),
    *(f"CVE-2021-{number}" for number in (21378, 32777)),
    *(f"CVE-2022-{number}" for number in (29217,)),
    *(f"CVE-2023-{number}" for number in (27488,)),
    *(f"CVE-2024-{number}" for number in (23324, 33663, 33664, 37568, 53861)),
    *(f"CVE-2025-{number}" for number in (45768, 59420, 61920, 62706, 65015)),
    *(f"CVE-2026-{number}" for number in (26308, 27932, 27962, 28490, 32597, 48042)),
    *(f"CVE-2026-{number}" for number in (48522, 48523, 48524, 48525, 48526)),
}
"""Those of the checklist that a token, a key or the header around it can bring; certificates have their own table."""
