"""Key sets: what is usable, what is left out and why, and what one key may verify."""

from __future__ import annotations

import hmac
import json
import math
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.issuer import ALGORITHMS, JWKS_BYTES_MAX, KEYS_MAX
from sidecar.core.keys import KID_CHARS_MAX, KeySet, KeySetError, parse_jwks, usable_part
from tests.support.tokens import SigningKey, b64, b64_integer, jwks, make_key

GOOD = make_key("ES256", kid="good")
RSA, EC, ED = make_key("RS256").jwk, make_key("ES256").jwk, make_key("EdDSA").jwk
RSA_SECRETS = ("d", "p", "q", "dp", "dq", "qi", "oth")
N = make_key("RS256").private.public_key().public_numbers().n


def without(jwk: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in jwk.items() if name not in names}


def modulus(bits: int) -> str:
    """An odd number of this many bits: as good as a product of primes to whoever looks at its size."""
    return b64_integer((1 << (bits - 1)) | 1)


def roca() -> str:
    """A modulus like those of the flawed library: a power of 65537 modulo the product of many small primes."""
    product = math.prod(number for number in range(3, 168) if all(number % other for other in range(2, number)))
    value = pow(65537, 5, product)
    value += ((1 << 2047) // product + 1) * product
    return b64_integer(value if value % 2 else value + product)


SMALL_ORDER = {
    "zero": bytes(32),
    "identity": bytes([1]) + bytes(31),
    "identity, sign bit set": bytes([1]) + bytes(30) + b"\x80",
    "order 2": bytes.fromhex("ec" + "ff" * 30 + "7f"),
    "order 4, not reduced": bytes.fromhex("ed" + "ff" * 30 + "7f"),
    "identity, not reduced": bytes.fromhex("ee" + "ff" * 30 + "7f"),
    "order 8": bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    "order 8, the other": bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
}

UNUSABLE: dict[str, tuple[Any, str]] = {
    "not an object": ("x", "not an object"),
    "null": (None, "not an object"),
    "no kty": (without(EC, "kty"), "kty"),
    "kty number": (EC | {"kty": 1}, "kty"),
    "kty list": (EC | {"kty": ["EC"]}, "kty"),
    "kty in lower case": (EC | {"kty": "ec"}, "kty"),
    "kty unknown": (EC | {"kty": "AKP"}, "kty"),
    "oct (CVE-2026-48526)": ({"kty": "oct", "k": b64(bytes(32)), "kid": "x", "alg": "HS256"}, "symmetric"),
    "oct without a key": ({"kty": "oct"}, "symmetric"),
    "use enc": (RSA | {"use": "enc"}, "use is not sig"),
    "use list": (RSA | {"use": ["sig"]}, "use is not sig"),
    "use null": (RSA | {"use": None}, "use is not sig"),
    "key_ops sign": (RSA | {"key_ops": ["sign"]}, "key_ops"),
    "key_ops empty": (RSA | {"key_ops": []}, "key_ops"),
    "key_ops string": (RSA | {"key_ops": "verify"}, "key_ops"),
    "kid number": (RSA | {"kid": 1}, "kid"),
    "kid empty": (RSA | {"kid": ""}, "kid"),
    "kid one too long": (RSA | {"kid": "k" * (KID_CHARS_MAX + 1)}, "kid"),
    "alg none": (RSA | {"alg": "none"}, "not a supported"),
    "alg HS256": (RSA | {"alg": "HS256"}, "not a supported"),
    "alg RSA-OAEP": (RSA | {"alg": "RSA-OAEP"}, "not a supported"),
    "alg number": (RSA | {"alg": 1}, "not a supported"),
    "alg of an EC key on RSA": (RSA | {"alg": "ES256"}, "does not fit"),
    "alg of another curve": (EC | {"alg": "ES384"}, "does not fit"),
    "alg of RSA on Ed25519": (ED | {"alg": "RS256"}, "does not fit"),
    **{f"RSA private {name}": (RSA | {name: "AQAB"}, "private") for name in RSA_SECRETS},
    "EC private": (EC | {"d": "AQAB"}, "private"),
    "Ed25519 private": (ED | {"d": "AQAB"}, "private"),
    "RSA 512 bits": (RSA | {"n": modulus(512)}, "512 bits"),
    "RSA 1024 bits (CVE-2025-45768)": (RSA | {"n": modulus(1024)}, "1024 bits"),
    "RSA one bit short": (RSA | {"n": modulus(2047)}, "2047 bits"),
    "RSA one bit long": (RSA | {"n": modulus(8193)}, "8193 bits"),
    "RSA even": (RSA | {"n": b64_integer(N - 1)}, "even"),
    "RSA of the ROCA kind (CVE-2017-15361)": (RSA | {"n": roca()}, "ROCA"),
    "RSA e = 1": (RSA | {"e": "AQ"}, "exponent"),
    "RSA e = 2": (RSA | {"e": "Ag"}, "exponent"),
    "RSA e even": (RSA | {"e": "AQAA"}, "exponent"),
    "RSA e huge": (RSA | {"e": modulus(65)}, "exponent"),
    "RSA e = 0": (RSA | {"e": "AA"}, "zero byte"),
    "RSA n with a leading zero": (RSA | {"n": b64(b"\0" + N.to_bytes(256, "big"))}, "zero byte"),
    "RSA n padded": (RSA | {"n": RSA["n"] + "="}, "alphabet"),
    "RSA n in the standard alphabet": (RSA | {"n": "+" + RSA["n"][1:]}, "alphabet"),
    "RSA n with unused bits": (RSA | {"n": RSA["n"][:-1] + "_"}, "unused bits"),
    "RSA n beyond ASCII": (RSA | {"n": "é" + RSA["n"][1:]}, "alphabet"),
    "RSA n absent": (without(RSA, "n"), "n is missing"),
    "RSA e absent": (without(RSA, "e"), "e is missing"),
    "RSA n number": (RSA | {"n": 5}, "n is missing"),
    "RSA n empty": (RSA | {"n": ""}, "n is missing"),
    "EC no crv": (without(EC, "crv"), "crv"),
    "EC P-256 point called secp256k1": (EC | {"crv": "secp256k1", "alg": "ES256"}, "not on its curve"),
    "EC secp256k1 for ES256": (make_key("ES256K").jwk | {"alg": "ES256"}, "does not fit"),
    "EC P-192": (EC | {"crv": "P-192", "alg": "ES256"}, "crv"),
    "EC crv object": (EC | {"crv": {}}, "crv"),
    "EC another curve's name": (EC | {"crv": "P-384"}, "48 bytes"),
    "EC x short": (EC | {"x": b64(bytes(31))}, "32 bytes"),
    "EC x long": (EC | {"x": b64(bytes(33))}, "32 bytes"),
    "EC no y": (without(EC, "y"), "y is missing"),
    "EC not on the curve": (EC | {"y": EC["x"]}, "not on its curve"),
    "EC at zero": (EC | {"x": b64(bytes(32)), "y": b64(bytes(32))}, "not on its curve"),
    "EC beyond the field": (EC | {"x": b64(b"\xff" * 32)}, "not on its curve"),
    "Ed448": ({"kty": "OKP", "crv": "Ed448", "x": b64(bytes(57))}, "Ed25519"),
    "X25519": (ED | {"crv": "X25519"}, "Ed25519"),
    "Ed25519 short": (ED | {"x": b64(bytes(31))}, "32 bytes"),
    "Ed25519 no x": (without(ED, "x"), "x is missing"),
    **{f"Ed25519 {name}": (ED | {"x": b64(point)}, "small order") for name, point in SMALL_ORDER.items()},
}


@pytest.mark.parametrize(("jwk", "why"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_unusable_keys_are_left_out_for_their_fault(jwk: Any, why: str) -> None:
    """The others of the set stay usable; alone, such a key makes no set."""
    keys = parse_jwks(jwks(jwk, GOOD))
    assert keys.kids == {"good"}
    assert keys.count == 1
    (dropped,) = keys.dropped
    assert dropped.position == 0
    assert why in dropped.reason
    with pytest.raises(KeySetError, match="no usable key: "):
        parse_jwks(jwks(jwk))


DOCUMENTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not JSON"),
    "an array": (b"[]", "not an object"),
    "no keys": (b"{}", 'no array "keys"'),
    "keys an object": (b'{"keys":{}}', 'no array "keys"'),
    "keys null": (b'{"keys":null}', 'no array "keys"'),
    "keys empty": (b'{"keys":[]}', "no usable key"),
    "keys twice": (b'{"keys":[],"keys":[]}', "twice"),
    "a bare key": (json.dumps(EC).encode(), 'no array "keys"'),
    "deep": (b'{"keys":' + b"[" * 1000, "nested"),
    "UTF-16": (jwks(GOOD).decode().encode("utf-16"), "UTF-8"),
    "one key too many": (jwks(*[GOOD] * (KEYS_MAX + 1)), "more than 100"),
    "one byte too long": (jwks(GOOD).ljust(JWKS_BYTES_MAX + 1), "larger than"),
    "PEM": (b"-----BEGIN PUBLIC KEY-----", "not JSON"),
}


@pytest.mark.parametrize(("body", "why"), DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_documents_that_are_no_key_sets(body: bytes, why: str) -> None:
    """The fault is named, nothing is quoted."""
    with pytest.raises(KeySetError, match=why):
        parse_jwks(body)


def test_limits_are_inclusive() -> None:
    """N keys, N bytes, N characters of kid, and the RSA sizes at both ends."""
    many = [make_key("ES256", kid=f"k{number}") for number in range(KEYS_MAX)]
    assert parse_jwks(jwks(*many)).count == KEYS_MAX
    assert parse_jwks(jwks(GOOD).ljust(JWKS_BYTES_MAX)).count == 1
    assert parse_jwks(jwks(GOOD.renamed("k" * KID_CHARS_MAX))).count == 1
    assert parse_jwks(jwks(RSA | {"n": modulus(2048)}, RSA | {"kid": "k2", "n": modulus(8192)})).count == 2
    assert parse_jwks(jwks(RSA | {"e": "Aw"})).count == 1


USES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "RSA for any": (without(RSA, "alg"), {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
    "RSA for one": (RSA | {"alg": "PS384"}, {"PS384"}),
    "P-256": (without(EC, "alg"), {"ES256"}),
    "P-384": (without(make_key("ES384").jwk, "alg"), {"ES384"}),
    "P-521": (without(make_key("ES512").jwk, "alg"), {"ES512"}),
    "Ed25519": (without(ED, "alg"), {"EdDSA", "Ed25519"}),
    "Ed25519 under its own name (RFC 9864)": (ED | {"alg": "Ed25519"}, {"Ed25519"}),
    "Ed25519 under the name of its family": (ED, {"EdDSA"}),
    "secp256k1 (RFC 8812)": (without(make_key("ES256K").jwk, "alg"), {"ES256K"}),
    "no use": (without(EC, "use"), {"ES256"}),
    "key_ops verify": (EC | {"key_ops": ["verify", "sign"]}, {"ES256"}),
    "extra members": (EC | {"x5c": ["MII"], "x5t": "x", "nbf": 1}, {"ES256"}),
}


@pytest.mark.parametrize(("jwk", "algorithms"), USES.values(), ids=USES.keys())
def test_a_key_is_found_only_for_what_it_may_verify(jwk: dict[str, Any], algorithms: set[str]) -> None:
    """RFC 8725 section 3.1: by kty, crv and alg."""
    keys = parse_jwks(jwks(jwk))
    assert {name for name in [*ALGORITHMS, "HS256", "none"] if keys.find("k1", name) is not None} == algorithms
    assert {name for name in ALGORITHMS if keys.find(None, name) is not None} == algorithms


SECRET = bytes(range(64))
OCT = {"kty": "oct", "k": b64(SECRET), "alg": "HS512", "kid": "k1"}
NO_SECRETS: dict[str, tuple[dict[str, Any], str]] = {
    "HS256 one byte short": (OCT | {"alg": "HS256", "k": b64(SECRET[:31])}, "shorter than the 32 bytes"),
    "HS384 one byte short": (OCT | {"alg": "HS384", "k": b64(SECRET[:47])}, "shorter than the 48 bytes"),
    "HS512 one byte short": (OCT | {"alg": "HS512", "k": b64(SECRET[:63])}, "shorter than the 64 bytes"),
    "k empty": (OCT | {"k": ""}, "k is missing"),
    "k absent": (without(OCT, "k"), "k is missing"),
    "alg absent": (without(OCT, "alg"), "alg is missing"),
    "alg RS256": (OCT | {"alg": "RS256"}, "not a supported"),
    "alg none": (OCT | {"alg": "none"}, "not a supported"),
    "use enc": (OCT | {"use": "enc"}, "use is not sig"),
    "key_ops sign": (OCT | {"key_ops": ["sign"]}, "key_ops"),
    "RSA (CVE-2017-11424)": (RSA, "kty is not oct"),
    "RSA with a secret of its own": (RSA | {"k": b64(SECRET), "alg": "HS256"}, "kty is not oct"),
}


@pytest.mark.parametrize(("jwk", "why"), NO_SECRETS.values(), ids=NO_SECRETS.keys())
def test_symmetric_keys_that_are_none(jwk: dict[str, Any], why: str) -> None:
    """RFC 7518 section 3.2: as long as the hash or longer, and for the one algorithm that it says."""
    good = OCT | {"kid": "good"}
    keys = parse_jwks(jwks(jwk, good), symmetric=True)
    assert keys.listed == [("good", "HS512")]
    assert why in keys.dropped[0].reason


@pytest.mark.parametrize(("alg", "length"), [("HS256", 32), ("HS384", 48), ("HS512", 64)])
def test_a_symmetric_key_serves_its_algorithm_alone(alg: str, length: int) -> None:
    """From exactly the hash's length on; and no part of a signature is enough."""
    secret = SECRET[:length]
    keys = parse_jwks(jwks(OCT | {"alg": alg, "k": b64(secret)}), symmetric=True)
    assert keys.listed == [("k1", alg)]
    key = keys.find("k1", alg)
    assert key is not None
    signature = hmac.digest(secret, b"signed", f"sha{alg[2:]}")
    assert key.verify(signature, b"signed")
    for wrong in (signature[:-1], signature + b"\0", b"", bytes(length), signature[:-1] + bytes([signature[-1] ^ 1])):
        assert not key.verify(wrong, b"signed")
    assert not key.verify(signature, b"Signed")


def test_exposed_keys_are_marked() -> None:
    """Private parts and secrets in a public set are worse than useless: who published them must hear of it."""
    dropped = parse_jwks(jwks(GOOD, EC | {"d": "AQAB"}, OCT, RSA | {"use": "enc"})).dropped
    assert [key.exposed for key in dropped] == [True, True, False]


def test_what_is_kept_of_a_document_is_what_is_used() -> None:
    """No secret and no unusable key is in the part that may be written to a file, and it makes the same set."""
    body = jwks(GOOD, EC | {"d": "AQAB"}, OCT, RSA)
    keys = parse_jwks(body)
    kept = usable_part(body, keys)
    assert kept == [GOOD.jwk, RSA]
    assert parse_jwks(jwks(*kept)).fingerprint == keys.fingerprint  # type: ignore[arg-type]


@pytest.mark.parametrize("more", [0, 1])
def test_limits_of_a_policy(more: int) -> None:
    """N keys and N bytes are read, one more is not."""
    body = jwks(GOOD, *[make_key("ES256", kid=f"k{number}") for number in range(1 + more)])
    each: list[dict[str, Any]] = [{"keys_max": 2}, {"bytes_max": len(body) - more}]
    for limits in each:
        if more:
            with pytest.raises(KeySetError):
                parse_jwks(body, **limits)
        else:
            assert parse_jwks(body, **limits).count == 2


def test_kids_that_two_keys_share() -> None:
    """Both are dropped where one algorithm could mean either; both are kept where none could."""
    other = make_key("ES256", number=1)
    keys = parse_jwks(jwks(make_key("ES256"), GOOD, other))
    assert keys.kids == {"good"}
    assert [dropped.position for dropped in keys.dropped] == [0, 2]
    keys = parse_jwks(jwks(make_key("ES256"), make_key("RS256"), make_key("RS512", number=1)))
    assert keys.count == 3
    assert all(keys.find("k1", alg) for alg in ("ES256", "RS256", "RS512"))
    keys = parse_jwks(jwks(GOOD, RSA, without(RSA, "alg")))
    assert keys.kids == {"good"}


def test_keys_without_kid_serve_tokens_without_kid() -> None:
    """One that fits is found, two are not, and neither is found under any name."""
    bare = make_key("ES256", kid=None)
    keys = parse_jwks(jwks(bare))
    assert keys.kids == frozenset()
    assert keys.find(None, "ES256") is not None
    assert keys.find("k1", "ES256") is None
    assert parse_jwks(jwks(bare, GOOD)).find(None, "ES256") is None


def test_fingerprint() -> None:
    """Order and spelling do not matter; a key, a kid or an algorithm does."""
    first, second = make_key("ES256", kid="a"), make_key("RS256", kid="b")
    reference = parse_jwks(jwks(first, second)).fingerprint
    assert parse_jwks(jwks(second.jwk | {"x5t": "z"}, first)).fingerprint == reference
    assert parse_jwks(jwks(first, second, {"kty": "oct"})).fingerprint == reference
    changed = [
        jwks(first),
        jwks(first, second.renamed("c")),
        jwks(first, second.renamed(None)),
        jwks(first, make_key("RS512", kid="b")),
        jwks(first, make_key("RS256", kid="b", number=1)),
    ]
    prints = {parse_jwks(body).fingerprint for body in changed}
    assert len(prints) == len(changed)
    assert reference not in prints


def test_publishes_knows_the_same_key_again() -> None:
    """The very same key under the same name and use; not its namesake."""
    old = parse_jwks(jwks(GOOD, RSA))
    key = old.find("good", "ES256")
    assert key is not None
    assert parse_jwks(jwks(GOOD)).publishes(key)
    assert not parse_jwks(jwks(RSA)).publishes(key)
    assert not parse_jwks(jwks(GOOD.renamed("other"))).publishes(key)
    assert not parse_jwks(jwks(make_key("ES256", kid="good", number=1))).publishes(key)


def test_what_is_shown_of_a_set() -> None:
    """Counts, and nothing of the keys."""
    assert "1 keys, 1 dropped" in repr(parse_jwks(jwks(GOOD, {"kty": "oct", "k": "c2VjcmV0"})))


@pytest.mark.parametrize("alg", sorted(ALGORITHMS))
def test_verify_never_raises(alg: str) -> None:
    """Signatures of every length, of zeros and of ones, are wrong and no more."""
    key = parse_jwks(jwks(make_key(alg))).find("k1", alg)
    assert key is not None
    for length in (0, 1, 32, 63, 64, 65, 96, 128, 132, 255, 256, 257, 512):
        assert key.verify(bytes(length), b"x") is False
        assert key.verify(b"\xff" * length, b"x") is False


def test_odd_sizes_verify() -> None:
    """An RSA modulus that does not fill its first byte: lengths are rounded up."""
    for number, bits in enumerate((2049, 3072)):
        private = rsa.generate_private_key(public_exponent=65537, key_size=bits)
        signing = SigningKey("PS256", private, f"k{number}")
        key = parse_jwks(jwks(signing)).find(signing.kid, "PS256")
        assert key is not None
        assert key.verify(signing.sign(b"x"), b"x")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_set_or_refused(body: bytes) -> None:
    """Permitted: a set with a usable key, or KeySetError."""
    try:
        keys = parse_jwks(body)
    except KeySetError:
        return
    assert keys.count > 0


_INTEGERS = st.integers(-(10**20), 10**20)  # more digits than 32 are no strict JSON, and refused with the whole set
_VALUES = st.none() | st.booleans() | _INTEGERS | st.text(max_size=8) | st.lists(st.text(max_size=4), max_size=2)
_MEMBERS = ["kty", "kid", "use", "key_ops", "alg", "n", "e", "crv", "x", "y"]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([*_MEMBERS, "k"]), _VALUES, max_size=3))
def test_any_changed_secret_is_used_or_dropped(changes: dict[str, Any]) -> None:
    """The same of declared secrets; and in a public set none of them is ever used."""
    keys = parse_jwks(jwks(OCT | {"kid": "good"}, OCT | changes), symmetric=True)
    assert keys.count + len(keys.dropped) == 2
    assert {alg for _, alg in keys.listed} <= {"HS256", "HS384", "HS512"}
    public = parse_jwks(jwks(GOOD, OCT | changes))
    assert not {alg for _, alg in public.listed} & {"HS256", "HS384", "HS512"}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([RSA, EC, ED]), st.dictionaries(st.sampled_from(_MEMBERS), _VALUES, max_size=3))
def test_any_changed_key_is_used_or_dropped(jwk: dict[str, Any], changes: dict[str, Any]) -> None:
    """A good neighbour is never lost, and nothing is raised."""
    keys = parse_jwks(jwks(GOOD, jwk | changes))
    assert isinstance(keys, KeySet)
    assert keys.count + len(keys.dropped) == 2
    assert "good" in keys.kids or jwk | changes | {"kid": "good"} == jwk | changes
