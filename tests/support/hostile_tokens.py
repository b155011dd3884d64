"""Hostile tokens: each breaks one rule, which its name says, and comes with the reason for which it must be refused."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sidecar.core.decision import DenyReason
from sidecar.core.issuer import TOKEN_BYTES_MAX
from sidecar.core.keys import KID_CHARS_MAX
from sidecar.core.strict_json import DEPTH_MAX, INTEGER_DIGITS_MAX, VALUES_MAX
from sidecar.core.token import HEADER_BYTES_MAX
from tests.support.tokens import AUDIENCE, ISSUER, NOW_S, b64, good_claims, issuer_policy, make_key

R = DenyReason
KEY = make_key("ES256")
RSA = make_key("RS256", kid="rsa")
LEEWAY_S = issuer_policy().leeway_s


def header(**changes: Any) -> dict[str, Any]:
    merged = {"alg": "ES256", "typ": "JWT", "kid": "k1"} | changes
    return {name: value for name, value in merged.items() if value is not ...}


def with_header(**changes: Any) -> str:
    return KEY.token(header=header(**changes))


def with_claims(**changes: Any) -> str:
    claims = good_claims() | changes
    return KEY.token({name: value for name, value in claims.items() if value is not ...})


def claims_text(old: str, new: str) -> str:
    """A signed token whose payload is the good one's text with one part replaced."""
    text = json.dumps(good_claims())
    assert old in text
    return KEY.token(text.replace(old, new, 1).encode())


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


def resigned(head: str, payload: str, signature: bytes) -> str:
    return f"{head}.{payload}.{b64(signature)}"


GOOD = KEY.token()
HEAD, PAYLOAD, SIGNATURE = GOOD.split(".")
RSA_GOOD = RSA.token()
SIGNATURE_BYTES = KEY.sign(f"{HEAD}.{PAYLOAD}".encode())
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
PEM = RSA.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
SSH = RSA.private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def flipped_last(segment: str) -> str:
    """The same value in another spelling: an unused bit is set."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert len(segment) % 4
    return segment[:-1] + alphabet[alphabet.index(segment[-1]) + 1]


def padded_to(length: int, claims: dict[str, Any] | None = None) -> str:
    """A good token of exactly this many bytes."""
    for filler in range(length):
        text = KEY.token((claims or good_claims()) | {"f": "x" * (filler + max(0, length * 3 // 4 - 700))})
        if len(text) >= length:
            return text
    raise AssertionError(length)


def header_of(length: int) -> str:
    """A good token whose header segment is exactly this many bytes."""
    for filler in range(length):
        text = with_header(f="x" * filler)
        if len(text.split(".")[0]) >= length:
            return text
    raise AssertionError(length)


def hmac_token(key: bytes, alg: str = "HS256") -> str:
    """Algorithm confusion: signed with what everyone knows, the public key."""
    head, payload = b64(json.dumps({"alg": alg, "kid": "rsa"}).encode()), b64(json.dumps(good_claims()).encode())
    return resigned(head, payload, hmac.new(key, f"{head}.{payload}".encode(), hashlib.sha256).digest())


def unsigned(alg: Any) -> str:
    head, payload = b64(json.dumps({"alg": alg, "kid": "k1"}).encode()), b64(json.dumps(good_claims()).encode())
    return f"{head}.{payload}.AA"


LEXICAL: dict[str, str] = {
    "empty": "",
    "one byte": "x",
    "only dots": "..",
    "one dot": f"{HEAD}.{PAYLOAD}",
    "three dots (JWE or worse)": GOOD + ".x",
    "five segments (JWE)": f"{HEAD}.{HEAD}.{HEAD}.{PAYLOAD}.{SIGNATURE}",
    "leading dot (Envoy skips empties)": "." + GOOD,
    "leading and trailing dot": f".{GOOD}.",
    "empty header": f".{PAYLOAD}.{SIGNATURE}",
    "empty payload": f"{HEAD}..{SIGNATURE}",
    "empty signature": f"{HEAD}.{PAYLOAD}.",
    "JSON serialisation": json.dumps({"payload": PAYLOAD, "protected": HEAD, "signature": SIGNATURE}),
    "leading space": " " + GOOD,
    "trailing space": GOOD + " ",
    "trailing newline": GOOD + "\n",
    "inner newline": GOOD[:20] + "\n" + GOOD[20:],
    "inner tab": GOOD[:20] + "\t" + GOOD[20:],
    "NUL": GOOD + "\0",
    "padding =": GOOD + "=",
    "padding ==": GOOD + "==",
    "padding in the header": f"{HEAD}=.{PAYLOAD}.{SIGNATURE}",
    "trailing !!!!": GOOD + "!!!!",
    "standard alphabet +": f"{HEAD}.{PAYLOAD}.{SIGNATURE[:-2]}+A",
    "standard alphabet /": f"{HEAD}.{PAYLOAD}.{SIGNATURE[:-2]}/A",
    "percent encoding": GOOD.replace(".", "%2e", 1),
    "comma": GOOD + ",x",
    "letter outside of ASCII": GOOD[:-1] + "\u00e9",
    "digit outside of ASCII": GOOD[:-1] + "\u0663",
    "fullwidth dot": GOOD.replace(".", "\uff0e", 1),
    "lone surrogate": GOOD[:-1] + "\ud800",
    "unused bits of the signature": f"{HEAD}.{PAYLOAD}.{flipped_last(SIGNATURE)}",
    "impossible length of the signature": f"{HEAD}.{PAYLOAD}.{SIGNATURE[:-1]}",
    "impossible length of the header": f"{HEAD[: len(HEAD) // 4 * 4]}A.{PAYLOAD}.{SIGNATURE}",
    "one byte too long": padded_to(TOKEN_BYTES_MAX + 1),
    "megabytes (CVE-2025-61920)": GOOD + "A" * 5_000_000,
    "header too long": header_of(HEADER_BYTES_MAX + 1),
    "header not an object": KEY.token(header=b"[1]"),
    "header a string": KEY.token(header=b'"x"'),
    "header null": KEY.token(header=b"null"),
    "header not JSON": KEY.token(header=b"{alg:1}"),
    "header with a tail": KEY.token(header=json.dumps(header()).encode() + b"x"),
    "two headers in one": KEY.token(header=json.dumps(header()).encode() * 2),
    "header alg twice (last wins in PyJWT)": KEY.token(header=b'{"alg":"none","alg":"ES256","kid":"k1"}'),
    "header 1000 [ (RecursionError in PyJWT)": KEY.token(header=b"[" * 1000),
    "header 1000 {": KEY.token(header=b'{"a":' * 250),
    "header UTF-16": KEY.token(header=json.dumps(header()).encode("utf-16")),
    "header UTF-16-LE": KEY.token(header=json.dumps(header()).encode("utf-16-le")),
    "header byte order mark": KEY.token(header=b"\xef\xbb\xbf" + json.dumps(header()).encode()),
    "header invalid UTF-8": KEY.token(header=b'{"alg":"ES256","kid":"\xff"}'),
    "header overlong UTF-8": KEY.token(header=b'{"alg":"ES256","kid":"\xc0\xaf"}'),
    "header NaN": KEY.token(header=b'{"alg":"ES256","x":NaN}'),
    "payload not an object": KEY.token(b"[1]"),
    "payload empty": KEY.token(b" "),
    "payload a number": KEY.token(b"1"),
    "payload not JSON": KEY.token(b"iss=x"),
    "payload comment": KEY.token(b"{}//"),
    "payload trailing comma": KEY.token(b'{"iss":"x",}'),
    "payload UTF-16": KEY.token(json.dumps(good_claims()).encode("utf-16")),
    "payload UTF-32": KEY.token(json.dumps(good_claims()).encode("utf-32")),
    "payload byte order mark": KEY.token(b"\xef\xbb\xbf" + json.dumps(good_claims()).encode()),
    "payload invalid UTF-8": claims_text("alice", "alice").replace(PAYLOAD, b64(b'{"sub":"\xed\xa0\x80"}')),
    "payload sub twice (user, then admin)": claims_text('"sub"', '"sub": "user", "sub"'),
    "payload name twice inside": claims_text('"jti"', '"act": {"sub": "a", "sub": "b"}, "jti"'),
    "payload name twice by escape": claims_text('"sub"', '"s\\u0075b": "user", "sub"'),
    "payload nested one too deep": KEY.token(good_claims(x=nested(DEPTH_MAX))),
    "payload nested 1000": KEY.token(b'{"x":' + b"[" * 1000 + b"]" * 1000 + b"}"),
    "payload of one value too many": KEY.token(good_claims(x=[1] * (VALUES_MAX - 8))),
    "payload of many objects": KEY.token(good_claims(x=[{}] * 1500)),
    "payload lone surrogate": claims_text("alice", "\\ud800"),
    "payload lone surrogate in a name": claims_text('"jti"', '"\\udfff": 1, "jti"'),
    "payload reversed surrogates": claims_text("alice", "\\udc00\\ud800"),
    "payload control byte in a string": claims_text("alice", "al\nice"),
    "payload NaN": claims_text(str(NOW_S + 600), "NaN"),
    "payload Infinity": claims_text(str(NOW_S + 600), "Infinity"),
    "payload -Infinity": claims_text(str(NOW_S + 600), "-Infinity"),
    "payload 1e400 (OverflowError in PyJWT)": claims_text(str(NOW_S + 600), "1e400"),
    "payload 5000 digits": claims_text(str(NOW_S + 600), "9" * 5000),
    "payload one digit too many": claims_text('"jti"', f'"n": {"9" * (INTEGER_DIGITS_MAX + 1)}, "jti"'),
    "payload leading zero": claims_text(str(NOW_S + 600), "0" + str(NOW_S + 600)),
    "payload hexadecimal": claims_text(str(NOW_S + 600), "0xFFFFFFFFFF"),
    "payload plus sign": claims_text(str(NOW_S + 600), "+" + str(NOW_S + 600)),
}

HEADERS: dict[str, tuple[str, DenyReason]] = {
    "crit empty": (with_header(crit=[]), R.TOKEN_HEADER_REFUSED),
    "crit unknown (CVE-2026-32597, CVE-2025-59420)": (with_header(crit=["x"], x=1), R.TOKEN_HEADER_REFUSED),
    "crit b64 (CVE-2026-48525)": (with_header(crit=["b64"], b64=False), R.TOKEN_HEADER_REFUSED),
    "crit of a registered name": (with_header(crit=["alg"]), R.TOKEN_HEADER_REFUSED),
    "crit string": (with_header(crit="exp"), R.TOKEN_HEADER_REFUSED),
    "crit null": (with_header(crit=None), R.TOKEN_HEADER_REFUSED),
    "b64 false without crit (RFC 7797)": (with_header(b64=False), R.TOKEN_HEADER_REFUSED),
    "b64 true": (with_header(b64=True), R.TOKEN_HEADER_REFUSED),
    "enc (CVE-2024-33664)": (with_header(enc="A128GCM"), R.TOKEN_HEADER_REFUSED),
    "zip (CVE-2025-62706)": (with_header(zip="DEF"), R.TOKEN_HEADER_REFUSED),
    "jku": (with_header(jku="https://evil.example/jwks"), R.TOKEN_HEADER_REFUSED),
    "x5u": (with_header(x5u="https://evil.example/cert"), R.TOKEN_HEADER_REFUSED),
    "jwk (CVE-2026-27962)": (
        make_key("ES256", number=7).token(header=header(jwk=make_key("ES256", number=7).jwk)),
        R.TOKEN_HEADER_REFUSED,
    ),
    "jwk null": (with_header(jwk=None), R.TOKEN_HEADER_REFUSED),
    "kid number": (with_header(kid=1), R.TOKEN_HEADER_REFUSED),
    "kid null": (with_header(kid=None), R.TOKEN_HEADER_REFUSED),
    "kid list": (with_header(kid=["k1"]), R.TOKEN_HEADER_REFUSED),
    "kid object": (with_header(kid={"$ne": 1}), R.TOKEN_HEADER_REFUSED),
    "kid empty": (with_header(kid=""), R.TOKEN_HEADER_REFUSED),
    "kid one too long": (with_header(kid="k" * (KID_CHARS_MAX + 1)), R.TOKEN_HEADER_REFUSED),
    "typ number": (with_header(typ=1), R.TOKEN_HEADER_REFUSED),
    "typ null": (with_header(typ=None), R.TOKEN_HEADER_REFUSED),
    "typ empty": (with_header(typ=""), R.TOKEN_HEADER_REFUSED),
    "cty JWT (nested)": (with_header(cty="JWT"), R.TOKEN_HEADER_REFUSED),
    "cty jwt": (with_header(cty="jwt"), R.TOKEN_HEADER_REFUSED),
    "cty application/jwt": (with_header(cty="application/jwt"), R.TOKEN_HEADER_REFUSED),
    "cty number": (with_header(cty=1), R.TOKEN_HEADER_REFUSED),
    "typ of a DPoP proof": (with_header(typ="dpop+jwt"), R.TOKEN_TYPE_REFUSED),
    "typ of a security event": (with_header(typ="secevent+jwt"), R.TOKEN_TYPE_REFUSED),
    "typ of a logout token": (with_header(typ="logout+jwt"), R.TOKEN_TYPE_REFUSED),
    "typ JOSE+JSON": (with_header(typ="JOSE+JSON"), R.TOKEN_TYPE_REFUSED),
    "typ with another slash": (with_header(typ="application/x/jwt"), R.TOKEN_TYPE_REFUSED),
    "typ image/jwt": (with_header(typ="image/jwt"), R.TOKEN_TYPE_REFUSED),
    "typ with a space": (with_header(typ="JWT "), R.TOKEN_TYPE_REFUSED),
    "alg absent": (with_header(alg=...), R.TOKEN_ALGORITHM_REFUSED),
    "alg null": (with_header(alg=None), R.TOKEN_ALGORITHM_REFUSED),
    "alg number": (with_header(alg=256), R.TOKEN_ALGORITHM_REFUSED),
    "alg list": (with_header(alg=["ES256"]), R.TOKEN_ALGORITHM_REFUSED),
    "alg empty": (with_header(alg=""), R.TOKEN_ALGORITHM_REFUSED),
    "alg in lower case": (with_header(alg="es256"), R.TOKEN_ALGORITHM_REFUSED),
    "alg with a space": (with_header(alg="ES256 "), R.TOKEN_ALGORITHM_REFUSED),
    "alg ES256K": (with_header(alg="ES256K"), R.TOKEN_ALGORITHM_REFUSED),
    "alg RSA1_5 (CVE-2026-28490)": (with_header(alg="RSA1_5"), R.TOKEN_ALGORITHM_REFUSED),
    "alg dir": (with_header(alg="dir"), R.TOKEN_ALGORITHM_REFUSED),
    **{
        f"alg {alg} (RFC 8725 section 3.1)": (unsigned(alg), R.TOKEN_ALGORITHM_REFUSED)
        for alg in ("none", "None", "NONE", "nOnE", " none", "none\u0000")
    },
    "HS256 with the PEM as secret (CVE-2017-11424)": (hmac_token(PEM), R.TOKEN_ALGORITHM_REFUSED),
    "HS256 with the SSH key as secret (CVE-2022-29217, CVE-2024-33663)": (hmac_token(SSH), R.TOKEN_ALGORITHM_REFUSED),
    "HS256 with the JWK as secret (CVE-2026-48526)": (
        hmac_token(json.dumps(RSA.jwk).encode()),
        R.TOKEN_ALGORITHM_REFUSED,
    ),
    "HS512 (CVE-2024-37568)": (hmac_token(PEM, "HS512"), R.TOKEN_ALGORITHM_REFUSED),
    "RS256 under the kid of an EC key": (RSA.token(header=header(alg="RS256")), R.TOKEN_ALGORITHM_REFUSED),
    "ES256 under the kid of an RSA key": (with_header(kid="rsa"), R.TOKEN_ALGORITHM_REFUSED),
    "PS256 with a key for RS256 (CVE-2026-48523)": (
        make_key("PS256", kid="rsa").token(),
        R.TOKEN_ALGORITHM_REFUSED,
    ),
    "RS512 with a key for RS256": (make_key("RS512", kid="rsa").token(), R.TOKEN_ALGORITHM_REFUSED),
}

HIGH_S = ORDER - int.from_bytes(SIGNATURE_BYTES[32:], "big")


def es256(r: int, s: int, length: int = 32) -> str:
    return resigned(HEAD, PAYLOAD, r.to_bytes(length, "big") + s.to_bytes(length, "big"))


SIGNATURE_R, _S = int.from_bytes(SIGNATURE_BYTES[:32], "big"), int.from_bytes(SIGNATURE_BYTES[32:], "big")
_RSA_HEAD, _RSA_PAYLOAD, _RSA_SIGNATURE = RSA_GOOD.split(".")
_RSA_BYTES = RSA.sign(f"{_RSA_HEAD}.{_RSA_PAYLOAD}".encode())

SIGNATURES: dict[str, str] = {
    "another key of the same kind": make_key("ES256", number=7).token(),
    "payload exchanged": f"{HEAD}.{b64(json.dumps(good_claims(sub='admin')).encode())}.{SIGNATURE}",
    "header exchanged": f"{b64(json.dumps(header(typ='at+jwt')).encode())}.{PAYLOAD}.{SIGNATURE}",
    "signature of another token": f"{HEAD}.{PAYLOAD}.{KEY.token(sub='bob').split('.')[2]}",
    "first byte flipped": resigned(HEAD, PAYLOAD, bytes([SIGNATURE_BYTES[0] ^ 1]) + SIGNATURE_BYTES[1:]),
    "last byte flipped": resigned(HEAD, PAYLOAD, SIGNATURE_BYTES[:-1] + bytes([SIGNATURE_BYTES[-1] ^ 1])),
    "one byte": resigned(HEAD, PAYLOAD, b"\0"),
    "ES256 in DER": resigned(HEAD, PAYLOAD, encode_dss_signature(SIGNATURE_R, _S)),
    "ES256 one byte short": resigned(HEAD, PAYLOAD, SIGNATURE_BYTES[:-1]),
    "ES256 one byte long": resigned(HEAD, PAYLOAD, SIGNATURE_BYTES + b"\0"),
    "ES256 with wider halves": es256(SIGNATURE_R, _S, 33),
    "ES256 r = 0, s = 0 (CVE-2022-21449)": es256(0, 0),
    "ES256 r = 0": es256(0, _S),
    "ES256 s = 0": es256(SIGNATURE_R, 0),
    "ES256 r = n": es256(ORDER, _S),
    "ES256 s = n": es256(SIGNATURE_R, ORDER),
    "ES256 r = s = n (zero modulo n)": es256(ORDER, ORDER),
    "ES256 all ones": es256(2**256 - 1, 2**256 - 1),
    "ES256 r = s = 1": es256(1, 1),
    "RS256 one byte short": resigned(_RSA_HEAD, _RSA_PAYLOAD, _RSA_BYTES[:-1]),
    "RS256 leading zero": resigned(_RSA_HEAD, _RSA_PAYLOAD, b"\0" + _RSA_BYTES),
    "RS256 zeros": resigned(_RSA_HEAD, _RSA_PAYLOAD, bytes(256)),
    "RS256 larger than the modulus": resigned(_RSA_HEAD, _RSA_PAYLOAD, b"\xff" * 256),
    "RS256 signature made with PSS": resigned(
        _RSA_HEAD, _RSA_PAYLOAD, make_key("PS256").sign(f"{_RSA_HEAD}.{_RSA_PAYLOAD}".encode())
    ),
    "RS256 over another hash": resigned(
        _RSA_HEAD, _RSA_PAYLOAD, make_key("RS512").sign(f"{_RSA_HEAD}.{_RSA_PAYLOAD}".encode())
    ),
}

BAD_DATES: list[Any] = [None, True, "9999999999", "", [], [NOW_S], {}, -1, -0.5, 2**53 + 1, 1e300]

CLAIMS: dict[str, tuple[str, DenyReason]] = {
    "iss absent": (with_claims(iss=...), R.TOKEN_CLAIM_INVALID),
    "iss null": (with_claims(iss=None), R.TOKEN_CLAIM_INVALID),
    "iss empty": (with_claims(iss=""), R.TOKEN_CLAIM_INVALID),
    "iss list (CVE-2024-53861)": (with_claims(iss=[ISSUER]), R.TOKEN_CLAIM_INVALID),
    "iss substring (CVE-2024-53861)": (with_claims(iss=ISSUER[:-1]), R.TOKEN_ISSUER_UNKNOWN),
    "iss one character": (with_claims(iss="h"), R.TOKEN_ISSUER_UNKNOWN),
    "iss trailing slash": (with_claims(iss=ISSUER + "/"), R.TOKEN_ISSUER_UNKNOWN),
    "iss in upper case": (with_claims(iss=ISSUER.upper()), R.TOKEN_ISSUER_UNKNOWN),
    "iss with a NUL": (with_claims(iss=ISSUER + "\0"), R.TOKEN_ISSUER_UNKNOWN),
    "aud absent": (with_claims(aud=...), R.TOKEN_CLAIM_INVALID),
    "aud null": (with_claims(aud=None), R.TOKEN_CLAIM_INVALID),
    "aud empty list": (with_claims(aud=[]), R.TOKEN_CLAIM_INVALID),
    "aud object": (with_claims(aud={AUDIENCE: 1}), R.TOKEN_CLAIM_INVALID),
    "aud number": (with_claims(aud=1), R.TOKEN_CLAIM_INVALID),
    "aud list with a number": (with_claims(aud=[AUDIENCE, 1]), R.TOKEN_CLAIM_INVALID),
    "aud nested list": (with_claims(aud=[[AUDIENCE]]), R.TOKEN_CLAIM_INVALID),
    "aud another": (with_claims(aud="billing"), R.TOKEN_AUDIENCE_MISMATCH),
    "aud empty string": (with_claims(aud=""), R.TOKEN_AUDIENCE_MISMATCH),
    "aud substring": (with_claims(aud=AUDIENCE[:-1]), R.TOKEN_AUDIENCE_MISMATCH),
    "aud with the name inside": (with_claims(aud=f"x {AUDIENCE}"), R.TOKEN_AUDIENCE_MISMATCH),
    "aud in upper case": (with_claims(aud=AUDIENCE.upper()), R.TOKEN_AUDIENCE_MISMATCH),
    "aud list of others": (with_claims(aud=["a", "b"]), R.TOKEN_AUDIENCE_MISMATCH),
    "exp absent": (with_claims(exp=...), R.TOKEN_CLAIM_INVALID),
    "exp zero": (with_claims(exp=0), R.TOKEN_EXPIRED),
    "exp long ago": (with_claims(exp=NOW_S - 3600), R.TOKEN_EXPIRED),
    "exp at the end of the leeway": (with_claims(exp=NOW_S - LEEWAY_S), R.TOKEN_EXPIRED),
    "exp a fraction, ended": (with_claims(exp=NOW_S - LEEWAY_S - 0.25), R.TOKEN_EXPIRED),
    "nbf after the leeway": (with_claims(nbf=NOW_S + LEEWAY_S + 1), R.TOKEN_NOT_YET_VALID),
    "iat after the leeway": (with_claims(iat=NOW_S + LEEWAY_S + 1), R.TOKEN_NOT_YET_VALID),
    **{
        f"{name} {value!r}": (with_claims(**{name: value}), R.TOKEN_CLAIM_INVALID)
        for name in ("exp", "nbf", "iat")
        for value in BAD_DATES
    },
    "sub absent": (with_claims(sub=...), R.TOKEN_CLAIM_INVALID),
    "sub null": (with_claims(sub=None), R.TOKEN_CLAIM_INVALID),
    "sub empty": (with_claims(sub=""), R.TOKEN_CLAIM_INVALID),
    "sub number": (with_claims(sub=1), R.TOKEN_CLAIM_INVALID),
    "sub list": (with_claims(sub=["alice"]), R.TOKEN_CLAIM_INVALID),
    "scope number": (with_claims(scope=1), R.TOKEN_CLAIM_INVALID),
    "scope object": (with_claims(scope={"orders:read": True}), R.TOKEN_CLAIM_INVALID),
    "scope list with a number": (with_claims(scope=["orders:read", 1]), R.TOKEN_CLAIM_INVALID),
    "roles boolean": (with_claims(roles=True), R.TOKEN_CLAIM_INVALID),
    "roles nested": (with_claims(roles=[["admin"]]), R.TOKEN_CLAIM_INVALID),
    "cnf jkt (RFC 9449)": (with_claims(cnf={"jkt": "x"}), R.TOKEN_BINDING_UNSUPPORTED),
    "cnf x5t#S256 (RFC 8705)": (with_claims(cnf={"x5t#S256": "x"}), R.TOKEN_BINDING_UNSUPPORTED),
    "cnf unknown": (with_claims(cnf={"new": 1}), R.TOKEN_BINDING_UNSUPPORTED),
    "cnf empty": (with_claims(cnf={}), R.TOKEN_BINDING_UNSUPPORTED),
    "cnf null": (with_claims(cnf=None), R.TOKEN_BINDING_UNSUPPORTED),
    "ID token: nonce": (with_claims(nonce="n"), R.TOKEN_TYPE_REFUSED),
    "ID token: at_hash": (with_claims(at_hash="h"), R.TOKEN_TYPE_REFUSED),
    "ID token: c_hash, no typ": (KEY.token(good_claims(c_hash="h"), header(typ=...)), R.TOKEN_TYPE_REFUSED),
}

HOSTILE: list[Any] = [
    *(pytest.param(text, R.TOKEN_MALFORMED, id=name) for name, text in LEXICAL.items()),
    *(pytest.param(text, reason, id=name) for name, (text, reason) in HEADERS.items()),
    *(pytest.param(text, R.TOKEN_SIGNATURE_INVALID, id=name) for name, text in SIGNATURES.items()),
    *(pytest.param(text, reason, id=name) for name, (text, reason) in CLAIMS.items()),
]
