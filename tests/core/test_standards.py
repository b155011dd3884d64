"""The examples that the standards print (`vectors/standards.json`): keys, signatures, proofs, what is to be refused."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from sidecar.core import base64url
from sidecar.core import token as tokens
from sidecar.core.decision import DenyReason
from sidecar.core.dpop import DpopPolicy, NeedFirstUse, prove
from sidecar.core.issuer import ALGORITHMS
from sidecar.core.keys import KeySet, KeySetError, parse_jwk, parse_jwks
from sidecar.core.token import Rejected
from tests.support.proofs import bound_request
from tests.support.tokens import b64, issuer_policy, jwks, make_key

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors/standards.json").read_text())
JOE_EXPIRES_S = 1_300_819_380

R = DenyReason


def examples(kind: str) -> Any:
    """The examples of one kind, each named by where it stands."""
    return pytest.mark.parametrize("example", VECTORS[kind], ids=[example["source"] for example in VECTORS[kind]])


def parts(text: str) -> tuple[bytes, bytes]:
    """Signature and signing input."""
    signing_input, _, segment = text.rpartition(".")
    return base64url.decode(segment.encode()), signing_input.encode()


def judge(text: str, keys: KeySet) -> DenyReason | None:
    """Why a text is refused as a token of `joe` whose policy accepts whatever can be accepted; None: it is not."""
    policy = issuer_policy(issuer="joe", algorithms=ALGORITHMS, require_audience=False)
    parsed = tokens.parse(text)
    if isinstance(parsed, Rejected):
        return parsed.reason
    outcome = tokens.verify(parsed, policy, keys, (JOE_EXPIRES_S - 60) * 1_000_000)
    return outcome.reason if isinstance(outcome, Rejected) else None


@examples("signatures")
def test_signatures_are_verified_as_they_are_printed(example: dict[str, Any]) -> None:
    """By the printed key, for this algorithm alone; with one bit changed in signature or content they are not."""
    keys = parse_jwks(jwks(example["jwk"]))
    key = keys.find(example["jwk"].get("kid"), example["alg"])
    assert key is not None
    signature, content = parts(example["jws"])
    assert key.verify(signature, content)
    for at in (0, len(signature) // 2, len(signature) - 1):
        changed = bytearray(signature)
        changed[at] ^= 1
        assert not key.verify(bytes(changed), content)
    assert not key.verify(signature, content[:-1] + bytes([content[-1] ^ 1]))
    same = {"EdDSA", "Ed25519"} if example["alg"] == "EdDSA" else {example["alg"]}  # RFC 9864: two names of one
    for alg in ALGORITHMS - same:
        other = keys.find(example["jwk"].get("kid"), alg)
        assert other is None or not other.verify(signature, content)


@examples("signatures")
def test_a_good_signature_alone_proves_nobody(example: dict[str, Any]) -> None:
    """As access tokens they are refused: most sign plain text, and what RFC 7515 signs names no subject."""
    assert judge(example["jws"], parse_jwks(jwks(example["jwk"]))) is R(example["as_a_token"])


@examples("hmac")
def test_symmetric_signatures_are_refused(example: dict[str, Any]) -> None:
    """A secret from a file verifies what it signed; published it is no key, and what it signed is no token."""
    signature, content = parts(example["jws"])
    secret = base64url.decode(example["k"].encode())
    assert hmac.digest(secret, content, hashlib.sha256) == signature
    published = {"kty": "oct", "k": example["k"], "alg": "HS256"}
    keys = parse_jwks(jwks(published, make_key("ES256")))
    assert keys.count == 1
    declared = parse_jwks(jwks(published), symmetric=True).find(None, "HS256")
    assert declared is not None
    assert declared.verify(signature, content)
    assert judge(example["jws"], keys) in {R.TOKEN_ALGORITHM_REFUSED, R.TOKEN_MALFORMED}


@examples("hmac")
def test_symmetric_signatures_are_verified_where_a_file_declares_the_secret(example: dict[str, Any]) -> None:
    """As a key of one algorithm, and of no other; without the declared algorithm it is no key."""
    signature, content = parts(example["jws"])
    keys = parse_jwks(jwks({"kty": "oct", "k": example["k"], "alg": "HS256"}), symmetric=True)
    key = keys.find(None, "HS256")
    assert key is not None
    assert key.verify(signature, content)
    assert not key.verify(signature[:-1] + bytes([signature[-1] ^ 1]), content)
    assert keys.find(None, "HS512") is None
    with pytest.raises(KeySetError, match="alg"):
        parse_jwks(jwks({"kty": "oct", "k": example["k"]}), symmetric=True)


@examples("refused")
def test_what_the_standards_describe_and_nobody_should_accept(example: dict[str, Any]) -> None:
    """Unsecured, symmetric, encrypted, unencoded, critical and unknown: each refused for its fault."""
    assert judge(example["jws"], parse_jwks(jwks(make_key("RS256", kid=None)))) is R(example["reason"])


@examples("keys")
def test_keys_serve_what_they_were_printed_for(example: dict[str, Any]) -> None:
    """Public signature keys serve their algorithms and have their thumbprint; all others are left out, and why."""
    jwk = example["jwk"]
    if "why" in example:
        with pytest.raises(KeySetError, match=example["why"]):
            parse_jwks(jwks(jwk))
        return
    keys = parse_jwks(jwks(jwk))
    found = {alg: keys.find(jwk.get("kid"), alg) for alg in ALGORITHMS}
    assert {alg for alg, key in found.items() if key is not None} == set(example["serves"])
    if "thumbprint" in example:
        assert {b64(key.thumbprint) for key in found.values() if key is not None} == {example["thumbprint"]}


@examples("dpop")
def test_proofs_are_signed_with_the_key_they_bring_along(example: dict[str, Any]) -> None:
    """RFC 9449: the signature, the key's thumbprint, what is claimed, and the access token's hash."""
    header, claims = (json.loads(base64url.decode(part.encode())) for part in example["proof"].split(".")[:2])
    assert (header["typ"], header["alg"]) == ("dpop+jwt", "ES256")
    key = parse_jwk(header["jwk"], "ES256")
    assert key.verify(*parts(example["proof"]))
    assert b64(key.thumbprint) == VECTORS["dpop_thumbprint"]
    assert claims.items() >= {name: example[name] for name in ("htm", "htu", "iat", "jti")}.items()
    if "access_token" in example:
        assert claims["ath"] == b64(hashlib.sha256(example["access_token"].encode()).digest())


def test_the_request_of_figure_12_is_proved_once_its_proof_is_known_to_be_new() -> None:
    """RFC 9449 section 7.1: the resource, the access token and the key as they are printed; a second later as well."""
    example = next(each for each in VECTORS["dpop"] if "access_token" in each)
    dpop = DpopPolicy(algorithms=frozenset({"ES256"}), origin="https://resource.example.org")
    token, thumbprint = example["access_token"], base64url.decode(VECTORS["dpop_thumbprint"].encode())
    request = bound_request(token, example["proof"], path="/protectedresource")
    for later_s, method, proved in ((0, "GET", True), (1, "GET", True), (0, "POST", False), (3600, "GET", False)):
        request.method = method
        found = prove(token, thumbprint, dpop, request, {}, (example["iat"] + later_s) * 1_000_000)
        assert isinstance(found, NeedFirstUse if proved else Rejected)
