"""DPoP proofs (RFC 9449): each rule of section 4.3, broken once; the RFC's own example; nonces."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.core import base64url
from sidecar.core.claims import Rejected
from sidecar.core.context import RequestContext
from sidecar.core.decision import DenyReason
from sidecar.core.dpop import PROOF_BYTES_MAX, DpopPolicy, NeedFirstUse, origin_of, prove
from sidecar.core.dpop_nonces import Freshness, Nonces
from sidecar.core.secret import Secret
from tests.support.proofs import PROOF_KEY, URL, bound_request, jkt, proof, public_jwk, thumbprint
from tests.support.tokens import NOW_S, NOW_US, SigningKey, b64, make_key, rsa_private

TOKEN = make_key().token()
POLICY = DpopPolicy(algorithms=frozenset({"ES256", "ES384", "ES512", "EdDSA", "PS256", "RS256"}))
PRINT = thumbprint(PROOF_KEY)
OTHER = make_key("ES256", None, 8)
RSA = make_key("RS256", None)
ED25519 = make_key("EdDSA", None)

# RFC 9449 section 7.1, figure 12, and the thumbprint of section 6.1
RFC_PROOF = (
    "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJo"
    "RjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19.eyJ"
    "qdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0ZWRyZXNv"
    "dXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9.2oW9RP35yRqz"
    "hrtNP86L-Ey71EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA"
)
RFC_TOKEN = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"
RFC_JKT = b"0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"


def judged(shown: str | None, policy: DpopPolicy = POLICY, now_us: int = NOW_US, **changes: Any) -> Any:
    return prove(TOKEN, PRINT, policy, bound_request(TOKEN, shown, **changes), {}, now_us)


def test_the_rfcs_own_proof_is_believed() -> None:
    """Figure 12 of RFC 9449 proves the key whose thumbprint its section 6.1 has, for its token, URL and time."""
    request = bound_request(RFC_TOKEN, RFC_PROOF, host="resource.example.org", path="/protectedresource")
    thumb = base64url.decode(RFC_JKT)
    assert isinstance(prove(RFC_TOKEN, thumb, POLICY, request, {}, 1562262618 * 10**6), NeedFirstUse)
    late = prove(RFC_TOKEN, thumb, POLICY, request, {}, (1562262618 + 60) * 10**6)
    assert isinstance(late, Rejected)
    assert late.reason is DenyReason.DPOP_PROOF_INVALID


def test_the_thumbprint_is_rfc_7638s() -> None:
    """The key of RFC 7638 section 3.1 has the thumbprint that is printed there, so a proof by it is asked for more."""
    jwk = {
        "kty": "RSA",
        "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV"
        "4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHz"
        "u6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8aw"
        "apJzKnqDKgw",
        "e": "AQAB",
    }
    print_of_rfc = base64url.decode(b"NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs")
    forged = proof(TOKEN, RSA, header={"jwk": jwk})
    result = prove(TOKEN, print_of_rfc, POLICY, bound_request(TOKEN, forged), {}, NOW_US)
    assert result == Rejected(
        DenyReason.DPOP_PROOF_INVALID, "the proof's signature does not belong to its key and content"
    )


@pytest.mark.parametrize("key", [PROOF_KEY, RSA, ED25519, make_key("ES384", None), make_key("PS256", None)])
def test_each_kind_of_key_can_prove(key: Any) -> None:
    """A good proof is good under each algorithm, and is then asked about; what is asked for shows no secret."""
    text = proof(TOKEN, key)
    need = prove(TOKEN, thumbprint(key), POLICY, bound_request(TOKEN, text), {}, NOW_US)
    assert isinstance(need, NeedFirstUse)
    assert need.lifetime_ms == 70_000
    assert TOKEN not in repr(need)
    assert text not in repr(need)


def test_what_is_found_decides() -> None:
    """First use is believed, a second one and an unknown one are not."""
    request = bound_request(TOKEN, proof(TOKEN))
    need = prove(TOKEN, PRINT, POLICY, request, {}, NOW_US)
    assert isinstance(need, NeedFirstUse)
    outcomes = [prove(TOKEN, PRINT, POLICY, request, {need.key: found}, NOW_US) for found in (True, False, None, "OK")]
    assert outcomes[0] is None
    assert [each.reason for each in outcomes[1:] if isinstance(each, Rejected)] == [
        DenyReason.DPOP_PROOF_REPLAYED,
        DenyReason.PROOFS_UNAVAILABLE,
        DenyReason.PROOFS_UNAVAILABLE,
    ]


def test_one_jti_is_one_proof_for_each_key() -> None:
    """The same jti under the same key has one digest; under another key, another."""

    def digest(key: Any, jti: str) -> bytes:
        need = prove(TOKEN, thumbprint(key), POLICY, bound_request(TOKEN, proof(TOKEN, key, jti=jti)), {}, NOW_US)
        assert isinstance(need, NeedFirstUse)
        return need.digest

    assert digest(PROOF_KEY, "a") == digest(PROOF_KEY, "a") != digest(PROOF_KEY, "b")
    assert digest(PROOF_KEY, "a") != digest(OTHER, "a")


def raw(header: bytes, claims: bytes) -> str:
    return PROOF_KEY.token(claims, header)


HEAD = json.dumps({"typ": "dpop+jwt", "alg": "ES256", "jwk": public_jwk(PROOF_KEY)}).encode()
GOOD = proof(TOKEN)
PUBLIC = public_jwk(PROOF_KEY)
BODY = base64url.decode(GOOD.split(".")[1].encode())


def spelled(text: str, old: str, new: str) -> str:
    return text.replace(old, new, 1)


INVALID = {
    # lexical rules
    "empty": "",
    "two segments": GOOD.rpartition(".")[0],
    "four segments": GOOD + ".a",
    "empty signature": GOOD.rpartition(".")[0] + ".",
    "padded": GOOD + "=",
    "space inside": GOOD.replace(".", ". ", 1),
    "unused bits": GOOD[:-1] + ("B" if GOOD[-1] == "A" else chr(ord(GOOD[-1]) + 1)),
    "not ascii": GOOD + "é",
    "too long": proof(TOKEN, jti="a", filler="x" * PROOF_BYTES_MAX),
    "two proofs in one header": f"{GOOD},{proof(TOKEN)}",
    "header is an array": raw(b"[]", BODY),
    "header names alg twice": raw(spelled(HEAD.decode(), '{"typ"', '{"alg": "none", "typ"').encode(), BODY),
    "claims name htu twice": raw(HEAD, b'{"htu": "https://evil.example/", ' + BODY[1:]),
    "claims are not UTF-8": raw(HEAD, b'{"\xff": 1, ' + BODY[1:]),
    "claims nest too deep": raw(HEAD, b'{"a": ' + b"[" * 40 + b"]" * 40 + b", " + BODY[1:]),
    "payload is text": raw(HEAD, b'"proof"'),
    # typ
    "typ missing": proof(TOKEN, header={"typ": None}),
    "typ JWT": proof(TOKEN, header={"typ": "JWT"}),
    "typ at+jwt": proof(TOKEN, header={"typ": "at+jwt"}),
    "typ of another tree": proof(TOKEN, header={"typ": "text/dpop+jwt"}),
    "typ not text": proof(TOKEN, header={"typ": ["dpop+jwt"]}),
    # alg
    "alg missing": proof(TOKEN, header={"alg": None}),
    "alg none": proof(TOKEN, header={"alg": "none"}),
    "alg None": proof(TOKEN, header={"alg": "NONE"}),
    "alg HS256": proof(TOKEN, header={"alg": "HS256"}),
    "alg not accepted": proof(TOKEN, header={"alg": "RS512"}),
    "alg not text": proof(TOKEN, header={"alg": ["ES256"]}),
    "alg of another curve": proof(TOKEN, header={"alg": "ES384"}),
    "alg of another type": proof(TOKEN, header={"alg": "RS256"}),
    # jwk
    "jwk missing": proof(TOKEN, header={"jwk": None}),
    "jwk text": proof(TOKEN, header={"jwk": json.dumps(PUBLIC)}),
    "jwk empty": proof(TOKEN, header={"jwk": {}}),
    "jwk with d": proof(TOKEN, header={"jwk": PUBLIC | {"d": b64(b"1" * 32)}}),
    "jwk with k": proof(TOKEN, header={"jwk": PUBLIC | {"k": b64(b"1" * 32)}}),
    "jwk with primes": proof(TOKEN, RSA, header={"jwk": public_jwk(RSA) | {"p": "AQAB", "q": "AQAB"}}),
    "jwk oct": proof(TOKEN, header={"jwk": {"kty": "oct", "k": b64(b"1" * 32)}}),
    "jwk without y": proof(TOKEN, header={"jwk": {**PUBLIC, "y": None}}),
    "jwk x not text": proof(TOKEN, header={"jwk": PUBLIC | {"x": 7}}),
    "jwk x with a quote": proof(TOKEN, header={"jwk": PUBLIC | {"x": 'a"b'}}),
    "jwk kty unknown": proof(TOKEN, header={"jwk": PUBLIC | {"kty": "AKP"}}),
    "jwk for encryption": proof(TOKEN, header={"jwk": PUBLIC | {"use": "enc"}}),
    "jwk of another alg": proof(TOKEN, header={"jwk": PUBLIC | {"alg": "ES384"}}),
    # what is not understood, or not believed
    "crit": proof(TOKEN, header={"crit": ["exp"]}),
    "b64": proof(TOKEN, header={"b64": False}),
    "enc": proof(TOKEN, header={"enc": "A256GCM"}),
    "zip": proof(TOKEN, header={"zip": "DEF"}),
    "jku": proof(TOKEN, header={"jku": "https://evil.example/jwks"}),
    "x5u": proof(TOKEN, header={"x5u": "https://evil.example/cert"}),
    # the signature
    "signature of another key": proof(TOKEN, OTHER, header={"jwk": PUBLIC}),
    "signature of zeros": f"{GOOD.rpartition('.')[0]}.{b64(bytes(64))}",
    "signature in DER": f"{GOOD.rpartition('.')[0]}.{b64(bytes([0x30, 0x06, 2, 1, 1, 2, 1, 1]))}",
    "claims replaced": ".".join([GOOD.split(".")[0], proof(TOKEN, jti="z").split(".")[1], GOOD.split(".")[2]]),
    # claims
    "jti missing": proof(TOKEN, jti=None),
    "jti empty": proof(TOKEN, jti=""),
    "jti number": proof(TOKEN, jti=7),
    "jti too long": proof(TOKEN, jti="j" * 257),
    "htm missing": proof(TOKEN, htm=None),
    "htm POST": proof(TOKEN, htm="POST"),
    "htm lower case": proof(TOKEN, htm="get"),
    "htm list": proof(TOKEN, htm=["GET"]),
    "htu missing": proof(TOKEN, htu=None),
    "htu number": proof(TOKEN, htu=1),
    "htu other host": proof(TOKEN, url="https://evil.example/orders/7"),
    "htu other path": proof(TOKEN, url="https://api.example.com/orders/8"),
    "htu path below": proof(TOKEN, url=URL + "/"),
    "htu path in capitals": proof(TOKEN, url="https://api.example.com/Orders/7"),
    "htu http": proof(TOKEN, url="http://api.example.com/orders/7"),
    "htu other port": proof(TOKEN, url="https://api.example.com:8443/orders/7"),
    "htu with user": proof(TOKEN, url="https://api.example.com@evil.example/orders/7"),
    "htu suffix of the host": proof(TOKEN, url="https://api.example.com.evil.example/orders/7"),
    "htu relative": proof(TOKEN, url="/orders/7"),
    "htu dot segments": proof(TOKEN, url="https://api.example.com/x/../orders/7"),
    "htu encoded slash": proof(TOKEN, url="https://api.example.com/orders%2F7"),
    "htu backslash": proof(TOKEN, url="https://api.example.com\\orders/7"),
    "htu too long": proof(TOKEN, url=URL + "?" + "a" * 4000, filler=None),
    "iat missing": proof(TOKEN, iat=None),
    "iat text": proof(TOKEN, iat=str(NOW_S)),
    "iat true": proof(TOKEN, iat=True),
    "iat negative": proof(TOKEN, iat=-1),
    "iat huge": proof(TOKEN, iat=2**60),
    "iat just too old": proof(TOKEN, now_s=NOW_S - 60),
    "iat just too new": proof(TOKEN, now_s=NOW_S + 5.000002),
    "exp passed": proof(TOKEN, exp=NOW_S),
    "exp text": proof(TOKEN, exp="never"),
    "nbf in the future": proof(TOKEN, nbf=NOW_S + 10),
    "ath missing": proof(TOKEN, ath=None),
    "ath of another token": proof(TOKEN + "A"),
    "ath list": proof(TOKEN, ath=[]),
    "ath in hex": proof(TOKEN, ath="ab" * 32),
}


@pytest.mark.parametrize("name", INVALID)
def test_each_rule_is_held_to(name: str) -> None:
    """A proof that breaks one rule is refused as invalid, whatever else is right about it."""
    result = judged(INVALID[name])
    assert isinstance(result, Rejected), name
    assert result.reason is DenyReason.DPOP_PROOF_INVALID
    assert "ath" in name or TOKEN not in result.detail


def test_there_are_as_many_cases_as_the_issue_asks_for() -> None:
    """At least 60 hostile proofs."""
    assert len(INVALID) >= 60


def test_limits_hold_at_their_edge() -> None:
    """What is as old, as new or as long as is accepted, passes; an RSA key of 1024 bits does not."""
    for text in (
        proof(TOKEN, now_s=NOW_S - 59.99),
        proof(TOKEN, now_s=NOW_S + 5),
        proof(TOKEN, jti="j" * 256),
        proof(TOKEN, header={"typ": "application/DPoP+JWT"}),
        proof(TOKEN, exp=NOW_S + 1, nbf=NOW_S),
    ):
        assert isinstance(judged(text), NeedFirstUse)
    weak = SigningKey("RS256", rsa_private(1024), None)
    result = prove(TOKEN, thumbprint(weak), POLICY, bound_request(TOKEN, proof(TOKEN, weak)), {}, NOW_US)
    assert isinstance(result, Rejected)
    assert result.reason is DenyReason.DPOP_PROOF_INVALID


@pytest.mark.parametrize("key", [OTHER, RSA, ED25519])
def test_another_key_is_no_proof(key: Any) -> None:
    """A proof that is right in itself, by a key that the token is not bound to, says so."""
    result = judged(proof(TOKEN, key))
    assert isinstance(result, Rejected)
    assert result.reason is DenyReason.DPOP_KEY_MISMATCH


def test_exactly_one_header() -> None:
    """No proof is one reason, two proofs another, also where the gateway joined them."""
    assert judged(None).reason is DenyReason.DPOP_PROOF_MISSING
    assert judged(GOOD, repeated=frozenset({"dpop"})).reason is DenyReason.DPOP_PROOF_INVALID
    assert judged(f"{GOOD}, {GOOD}").reason is DenyReason.DPOP_PROOF_INVALID


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.com/orders/7",
        "HTTPS://API.Example.COM/orders/7",
        "https://api.example.com:443/orders/7",
        "https://api.example.com./orders/7",
        "https://api.example.com/orders/7?page=2",
        "https://api.example.com/orders/7#top",
        "https://api.example.com/orders/7?a=/../x#y",
    ],
)
def test_htu_is_compared_after_normalization(url: str) -> None:
    """Case of scheme and host, the default port, query and fragment make no difference (RFC 9449 section 4.3)."""
    assert isinstance(judged(proof(TOKEN, url=url)), NeedFirstUse)


def test_htu_spells_reserved_characters_in_any_way() -> None:
    """A character that may stand raw is the same encoded, in the request as in the proof."""
    for path, url in (("/users/a%40b", "/users/a@b"), ("/users/a@b", "/users/a%40b"), ("/%c3%a9", "/%C3%A9")):
        assert isinstance(judged(proof(TOKEN, url="https://api.example.com" + url), path=path), NeedFirstUse)


def test_htu_is_the_public_url() -> None:
    """With an origin in the policy, the request's own scheme and host do not matter; a prefix of it comes first."""
    policy = DpopPolicy(algorithms=POLICY.algorithms, origin="https://public.example/v1")
    inside: dict[str, Any] = {"scheme": "http", "host": "10.0.0.7:8080"}
    assert isinstance(judged(proof(TOKEN, url="https://public.example/v1/orders/7"), policy, **inside), NeedFirstUse)
    assert judged(proof(TOKEN), policy, **inside).reason is DenyReason.DPOP_PROOF_INVALID
    assert isinstance(judged(proof(TOKEN, url="http://10.0.0.7:8080/orders/7"), **inside), NeedFirstUse)
    assert judged(proof(TOKEN), scheme="").reason is DenyReason.DPOP_PROOF_INVALID
    assert judged(proof(TOKEN), scheme="ftp").reason is DenyReason.DPOP_PROOF_INVALID


def test_origins_have_one_spelling() -> None:
    """Case, default port and the last slash go; what is no origin is none."""
    assert origin_of("HTTPS://Api.Example.com:443/") == "https://api.example.com"
    assert origin_of("http://[::1]:8080/a/") == "http://[::1]:8080/a"
    assert origin_of("http://[::1]:80") == "http://[::1]"
    assert [origin_of(text) for text in ("api.example.com", "ftp://a", "https://a b", "https://a//b")] == [None] * 4


# --------------------------------------------------------------------------------------------------------------------
# Nonces

KEY, NEXT = Secret("k" * 32), Secret("n" * 32)
NONCES = Nonces((KEY,), 300)
WITH_NONCE = DpopPolicy(algorithms=POLICY.algorithms, nonces=NONCES)


def test_a_nonce_is_asked_for_and_accepted() -> None:
    """Without a nonce of ours the answer offers one; with it, the proof is good, and nothing is offered."""
    request = bound_request(TOKEN, proof(TOKEN))
    result = prove(TOKEN, PRINT, WITH_NONCE, request, {}, NOW_US)
    assert isinstance(result, Rejected)
    assert result.reason is DenyReason.DPOP_NONCE_REQUIRED
    assert request.dpop_nonce
    again = bound_request(TOKEN, proof(TOKEN, nonce=request.dpop_nonce))
    assert isinstance(prove(TOKEN, PRINT, WITH_NONCE, again, {}, NOW_US), NeedFirstUse)
    assert again.dpop_nonce == ""


def test_a_missing_proof_is_told_the_nonce_at_once() -> None:
    """That spares a refusal."""
    request = bound_request(TOKEN, None)
    assert isinstance(prove(TOKEN, PRINT, WITH_NONCE, request, {}, NOW_US), Rejected)
    assert NONCES.judge(request.dpop_nonce, NOW_US) is Freshness.CURRENT


def test_a_nonce_is_renewed_on_success_before_it_ends() -> None:
    """In the period after its own it is accepted, with the next one offered; after that it is refused."""
    nonce = NONCES.current(NOW_US)
    period_us = 300 * 10**6
    states = [NONCES.judge(nonce, NOW_US + n * period_us) for n in (-2, -1, 0, 1, 2)]
    assert states == [
        Freshness.REFUSED,
        Freshness.CURRENT,
        Freshness.CURRENT,
        Freshness.ENDING,
        Freshness.REFUSED,
    ]
    later_us = NOW_US + period_us
    request = bound_request(TOKEN, proof(TOKEN, nonce=nonce, now_s=later_us / 10**6))
    assert isinstance(prove(TOKEN, PRINT, WITH_NONCE, request, {}, later_us), NeedFirstUse)
    assert request.dpop_nonce == NONCES.current(later_us) != nonce


def test_nonce_keys_rotate_without_a_gap() -> None:
    """A nonce of the next key, and of the one before, is accepted by everyone who has both."""
    before, between, after = Nonces((KEY, NEXT), 300), Nonces((NEXT, KEY), 300), Nonces((NEXT,), 300)
    assert before.judge(between.current(NOW_US), NOW_US) is Freshness.ENDING
    assert between.judge(before.current(NOW_US), NOW_US) is Freshness.ENDING
    assert after.judge(between.current(NOW_US), NOW_US) is Freshness.CURRENT
    assert after.judge(before.current(NOW_US), NOW_US) is Freshness.REFUSED


def test_nonces_of_others_are_refused() -> None:
    """Altered, foreign and malformed ones, and such of another type, are asked for again."""
    nonce = NONCES.current(NOW_US)
    other = Nonces((NEXT,), 300).current(NOW_US)
    altered = nonce[:-1] + ("A" if nonce[-1] != "A" else "B")
    for text in ("", "x", other, altered, nonce + "A", nonce[:-4], "é" * len(nonce), "=" * len(nonce), "\ud800" * 32):
        assert NONCES.judge(text, NOW_US) is Freshness.REFUSED
    for value in (7, None, [nonce], {"nonce": nonce}):
        request = bound_request(TOKEN, proof(TOKEN, nonce=value))
        result = prove(TOKEN, PRINT, WITH_NONCE, request, {}, NOW_US)
        assert isinstance(result, Rejected)
        assert result.reason is DenyReason.DPOP_NONCE_REQUIRED


def test_nonces_do_not_show_their_keys() -> None:
    """Neither in print, nor without any key."""
    assert "kkkk" not in repr(WITH_NONCE)
    for keys in ((), (Secret(""),), (KEY,) * 5):
        with pytest.raises(ValueError, match="1 to 4 keys"):
            Nonces(keys, 300)


def test_bytes_at_random_are_refused() -> None:
    """A good proof with any one character replaced or left out never passes."""
    passed = []
    for at in range(0, len(GOOD), 3):
        for text in (GOOD[:at] + GOOD[at + 1 :], GOOD[:at] + ("A" if GOOD[at] != "A" else "_") + GOOD[at + 1 :]):
            result = judged(text)
            if not isinstance(result, Rejected):
                passed.append((at, text))
    assert passed == []
    assert jkt() != jkt(OTHER)
    assert isinstance(judged(GOOD), NeedFirstUse)
    assert isinstance(bound_request(TOKEN, GOOD), RequestContext)
