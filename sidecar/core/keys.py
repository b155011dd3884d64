"""Sets of public keys (RFC 7517), and what one of them may verify.

One key serves one algorithm at a time: a set is searched by `kid` *and* `alg`, and a key is only found under algorithms
that its type, its curve and its own `alg` member allow (RFC 8725 section 3.1). So no header can make a key do what it
was not made for. Keys that fall short are left out of the set, each with its reason; the others stay usable.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sidecar.core import base64url
from sidecar.core.issuer import ALGORITHMS, JWKS_BYTES_MAX, KEYS_MAX, SYMMETRIC
from sidecar.core.strict_json import JsonError, read_object
from sidecar.core.verifiers import (
    CURVES,
    RSA_HASHES,
    Verify,
    ecdsa_verifier,
    eddsa_verifier,
    hmac_verifier,
    rsa_verifier,
)

if TYPE_CHECKING:
    from sidecar.core.principal import Json

KID_CHARS_MAX = 256
JWKS_VALUES_MAX = 16 * 1024
"""As `strict_json.VALUES_MAX`: certificates and what else some issuers add to their keys included."""

RSA_BITS_MIN = 2048
"""RFC 7518 section 3.3."""
RSA_BITS_MAX = 8192
"""Verification time grows with the square of this."""
RSA_EXPONENT_BITS_MAX = 64

_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth"})


class KeySetError(ValueError):
    """The document yields no key that could verify anything. The message says why and quotes no key material."""


class _UnusableKeyError(ValueError):
    """One key of a set is left out, for this reason."""


class _ExposedKeyError(_UnusableKeyError):
    """The same, since it holds a secret."""


@dataclass(frozen=True, slots=True, eq=False)
class VerificationKey:
    """One public key in its use for one algorithm.

    Attributes:
        thumbprint: RFC 7638, of the key itself: the same key published again has the same one.
        verify: Whether a signature belongs to a signing input.
    """

    kid: str | None
    algorithm: str
    thumbprint: bytes
    verify: Verify


@dataclass(frozen=True, slots=True)
class DroppedKey:
    """A key of the document that is not in the set.

    Attributes:
        position: Which one, from 0.
        kid: As far as it is a string, at most `KID_CHARS_MAX` characters of it.
        exposed: It holds what must never be published: whoever has read the document can sign.
    """

    position: int
    kid: str
    reason: str
    exposed: bool = False


class KeySet:
    """Public keys by `kid` and algorithm. Immutable; equal fingerprints verify exactly the same tokens.

    Attributes:
        kids: Those that some key is found under.
        count: Usable keys, those without `kid` included.
        dropped: What the document also held, and why it is not used.
        fingerprint: Does not depend on the order or on the spelling of the document.
    """

    __slots__ = ("_by_kid", "_fitting", "count", "dropped", "fingerprint", "kids")

    def __init__(self, keys: list[tuple[VerificationKey, ...]], dropped: tuple[DroppedKey, ...]) -> None:
        self._by_kid: Final[dict[str, dict[str, VerificationKey]]] = {}
        self._fitting: Final[dict[str, list[VerificationKey]]] = {}
        for uses in keys:
            for key in uses:
                self._fitting.setdefault(key.algorithm, []).append(key)
                if key.kid is not None:
                    self._by_kid.setdefault(key.kid, {})[key.algorithm] = key
        self.kids: Final = frozenset(self._by_kid)
        self.count: Final = len(keys)
        self.dropped: Final = dropped
        self.fingerprint: Final = _fingerprint(keys)

    def find(self, kid: str | None, algorithm: str) -> VerificationKey | None:
        """The key with this `kid` in its use for `algorithm`.

        Without a `kid` it is the one key of the set that fits the algorithm; None where none or several do.
        """
        if kid is not None:
            uses = self._by_kid.get(kid)
            return None if uses is None else uses.get(algorithm)
        fitting = self._fitting.get(algorithm, ())
        return fitting[0] if len(fitting) == 1 else None

    @property
    def listed(self) -> list[tuple[str | None, str]]:
        """Every use of every key: its `kid` and its algorithm, in order."""
        uses = [(key.kid, key.algorithm) for fitting in self._fitting.values() for key in fitting]
        return sorted(uses, key=lambda use: (use[0] or "", use[1]))

    def publishes(self, key: VerificationKey) -> bool:
        """Whether this set holds the very same key, under the same `kid` and for the same algorithm."""
        fitting = self._fitting.get(key.algorithm, ())
        return any(other.thumbprint == key.thumbprint and other.kid == key.kid for other in fitting)

    def __repr__(self) -> str:
        return f"KeySet({self.count} keys, {len(self.dropped)} dropped, {self.fingerprint.hex()[:12]})"


def parse_jwks(
    body: bytes, *, keys_max: int = KEYS_MAX, bytes_max: int = JWKS_BYTES_MAX, symmetric: bool = False
) -> KeySet:
    """The usable keys of a JWKS document (RFC 7517 section 5).

    Args:
        body: The document.
        keys_max: The most keys that it may hold.
        bytes_max: The most bytes that it may have.
        symmetric: Its keys are secrets that sign and verify (`oct`): those alone are used. Without it, they never are.

    Raises:
        KeySetError: It is too large, is not such a document, or holds nothing usable.
    """
    entries = _entries(body, bytes_max)
    if len(entries) > keys_max:
        raise KeySetError(f"the document has more than {keys_max} keys")
    found: list[tuple[int, tuple[VerificationKey, ...]]] = []
    dropped: list[DroppedKey] = []
    for position, jwk in enumerate(entries):
        try:
            found.append((position, _uses(jwk, symmetric=symmetric)))
        except _UnusableKeyError as error:
            exposed = isinstance(error, _ExposedKeyError)
            dropped.append(DroppedKey(position, _shown_kid(jwk), str(error), exposed))
    keys = _without_ambiguous(found, dropped)
    if not keys:
        reasons = sorted({key.reason for key in dropped})
        raise KeySetError("the document has no usable key" + (": " + "; ".join(reasons) if reasons else ""))
    return KeySet(keys, tuple(sorted(dropped, key=lambda key: key.position)))


def parse_jwk(jwk: Json, algorithm: str) -> VerificationKey:
    """One public key in its use for `algorithm`, such as the one that a DPoP proof brings along.

    Raises:
        KeySetError: It is not a public key, is weak, or is not for this algorithm.
    """
    try:
        uses = _uses(jwk, symmetric=False)
    except _UnusableKeyError as error:
        raise KeySetError(f"the key {error}") from None
    for key in uses:
        if key.algorithm == algorithm:
            return key
    raise KeySetError("the key does not fit alg")


def usable_part(body: bytes, keys: KeySet) -> list[Json]:
    """What of a document became `keys`, as it was published: what can be kept without keeping anyone's secret."""
    left_out = {key.position for key in keys.dropped}
    entries = _entries(body, len(body))
    return [jwk for position, jwk in enumerate(entries) if position not in left_out]


def _entries(body: bytes, bytes_max: int) -> list[Json]:
    if len(body) > bytes_max:
        raise KeySetError(f"the document is larger than {bytes_max} bytes")
    try:
        document = read_object(body, JWKS_VALUES_MAX)
    except JsonError as error:
        raise KeySetError(f"the document {error}") from None
    entries = document.get("keys")
    if not isinstance(entries, list):
        raise KeySetError('the document has no array "keys"')
    return entries


def _without_ambiguous(
    found: list[tuple[int, tuple[VerificationKey, ...]]], dropped: list[DroppedKey]
) -> list[tuple[VerificationKey, ...]]:
    """Leave out every key that shares a `kid` and an algorithm with another: neither is to be guessed."""
    holders: dict[tuple[str, str], int] = {}
    for _, uses in found:
        for key in uses:
            if key.kid is not None:
                pair = (key.kid, key.algorithm)
                holders[pair] = holders.get(pair, 0) + 1
    kept: list[tuple[VerificationKey, ...]] = []
    for position, uses in found:
        if any(key.kid is not None and holders[key.kid, key.algorithm] > 1 for key in uses):
            reason = "another key has the same kid and could serve the same algorithm"
            dropped.append(DroppedKey(position, uses[0].kid or "", reason))
        else:
            kept.append(uses)
    return kept


def _shown_kid(jwk: Json) -> str:
    kid = jwk.get("kid") if isinstance(jwk, dict) else None
    return kid[:KID_CHARS_MAX] if isinstance(kid, str) else ""


def _fingerprint(keys: list[tuple[VerificationKey, ...]]) -> bytes:
    rows = sorted((key.kid is not None, key.kid or "", key.algorithm, key.thumbprint.hex()) for u in keys for key in u)
    return sha256(json.dumps(rows).encode()).digest()


def _uses(jwk: Json, *, symmetric: bool) -> tuple[VerificationKey, ...]:
    """One key in each of its permitted uses; at least one."""
    if not isinstance(jwk, dict):
        raise _UnusableKeyError("is not an object")
    read = _reader(jwk, symmetric=symmetric)
    kid = jwk.get("kid")
    if kid is not None and not (isinstance(kid, str) and 0 < len(kid) <= KID_CHARS_MAX):
        raise _UnusableKeyError(f"kid is not a string of 1 to {KID_CHARS_MAX} characters")
    if jwk.get("use", "sig") != "sig":
        raise _UnusableKeyError("use is not sig")
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise _UnusableKeyError("key_ops does not contain verify")
    wanted = jwk.get("alg")
    supported = SYMMETRIC if symmetric else ALGORITHMS
    if wanted is not None and not (isinstance(wanted, str) and wanted in supported):
        raise _UnusableKeyError("alg is not a supported signature algorithm")
    verifiers, thumbprint = read(jwk)
    if wanted is not None and wanted not in verifiers:
        raise _UnusableKeyError("alg does not fit kty and crv")
    return tuple(
        VerificationKey(kid, algorithm, thumbprint, verify)
        for algorithm, verify in verifiers.items()
        if wanted is None or algorithm == wanted
    )


def _reader(jwk: Mapping[str, Json], *, symmetric: bool) -> Callable[[Mapping[str, Json]], _Read]:
    """What reads keys of this type, where a key of this type may be in this set at all."""
    kty = jwk.get("kty")
    if symmetric and kty != "oct":
        raise _UnusableKeyError("kty is not oct, in a set of symmetric keys")
    if kty == "oct" and not symmetric:
        raise _ExposedKeyError("is a symmetric key in a public set")
    if not isinstance(kty, str) or kty not in _READERS:
        raise _UnusableKeyError(f"kty is not one of {', '.join(sorted(_READERS.keys() - {'oct'}))}")
    if _PRIVATE_MEMBERS & jwk.keys():
        raise _ExposedKeyError("holds private parts: it is compromised")
    return _READERS[kty]


_Read: TypeAlias = tuple[Mapping[str, Verify], bytes]


def _read_rsa(jwk: Mapping[str, Json]) -> _Read:
    modulus, exponent = _integer(jwk, "n"), _integer(jwk, "e")
    bits = modulus.bit_length()
    if not RSA_BITS_MIN <= bits <= RSA_BITS_MAX:
        raise _UnusableKeyError(f"the RSA modulus has {bits} bits, not {RSA_BITS_MIN} to {RSA_BITS_MAX}")
    if modulus % 2 == 0:
        raise _UnusableKeyError("the RSA modulus is even")
    if all(modulus % prime in powers for prime, powers in _ROCA_RESIDUES.items()):
        raise _UnusableKeyError("the RSA modulus can be factored (ROCA, CVE-2017-15361)")
    if exponent < 3 or exponent % 2 == 0 or exponent.bit_length() > RSA_EXPONENT_BITS_MAX:
        raise _UnusableKeyError(f"the RSA exponent is not an odd number from 3 to 2^{RSA_EXPONENT_BITS_MAX}")
    try:
        key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise _UnusableKeyError("is not an RSA key") from None
    verifiers = {name: rsa_verifier(key, name) for name in RSA_HASHES}
    return verifiers, _thumbprint({"e": _text(jwk, "e"), "kty": "RSA", "n": _text(jwk, "n")})


def _read_ec(jwk: Mapping[str, Json]) -> _Read:
    crv = _text(jwk, "crv")
    curve = CURVES.get(crv)
    if curve is None:
        raise _UnusableKeyError(f"crv is not one of {', '.join(CURVES)}")
    x, y = _bytes(jwk, "x"), _bytes(jwk, "y")
    if not len(x) == len(y) == curve.coordinate_bytes:
        raise _UnusableKeyError(f"x and y are not {curve.coordinate_bytes} bytes long")
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve.curve)
    try:
        key = numbers.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise _UnusableKeyError("the point is not on its curve") from None
    thumbprint = _thumbprint({"crv": crv, "kty": "EC", "x": _text(jwk, "x"), "y": _text(jwk, "y")})
    return {curve.algorithm: ecdsa_verifier(key, curve)}, thumbprint


def _read_okp(jwk: Mapping[str, Json]) -> _Read:
    if _text(jwk, "crv") != "Ed25519":
        raise _UnusableKeyError("crv is not Ed25519")
    x = _bytes(jwk, "x")
    if len(x) != 32:
        raise _UnusableKeyError("x is not 32 bytes long")
    if int.from_bytes(x, "little") & _ED25519_Y_MASK in _ED25519_SMALL_ORDER_Y:
        raise _UnusableKeyError("the point is of small order")
    try:
        key = Ed25519PublicKey.from_public_bytes(x)
    except (ValueError, UnsupportedAlgorithm):
        raise _UnusableKeyError("is not an Ed25519 key") from None
    verify = eddsa_verifier(key)
    thumbprint = _thumbprint({"crv": "Ed25519", "kty": "OKP", "x": _text(jwk, "x")})
    return {"EdDSA": verify, "Ed25519": verify}, thumbprint


def _read_oct(jwk: Mapping[str, Json]) -> _Read:
    """A secret serves the one algorithm that it says, and is at least as long as its hash (RFC 7518 section 3.2)."""
    algorithm = jwk.get("alg")
    if not isinstance(algorithm, str):
        raise _UnusableKeyError("alg is missing, which a symmetric key must have")
    hash_name, length_min = _HMAC_HASHES[algorithm]
    secret = _bytes(jwk, "k")
    if len(secret) < length_min:
        raise _UnusableKeyError(f"k is shorter than the {length_min} bytes that {algorithm} needs")
    return {algorithm: hmac_verifier(secret, hash_name)}, _thumbprint({"k": _text(jwk, "k"), "kty": "oct"})


_READERS: dict[str, Callable[[Mapping[str, Json]], _Read]] = {
    "RSA": _read_rsa,
    "EC": _read_ec,
    "OKP": _read_okp,
    "oct": _read_oct,
}


def _text(jwk: Mapping[str, Json], member: str) -> str:
    value = jwk.get(member)
    if not isinstance(value, str) or not value:
        raise _UnusableKeyError(f"{member} is missing or not a string")
    return value


def _bytes(jwk: Mapping[str, Json], member: str) -> bytes:
    try:
        return base64url.decode(_text(jwk, member).encode())
    except base64url.Base64UrlError as error:
        raise _UnusableKeyError(f"{member} {error}") from None


def _integer(jwk: Mapping[str, Json], member: str) -> int:
    """A Base64urlUInt (RFC 7518 section 2): the fewest bytes that hold it, so that it has one thumbprint."""
    value = _bytes(jwk, member)
    if value[0] == 0:
        raise _UnusableKeyError(f"{member} starts with a zero byte")
    return int.from_bytes(value, "big")


def _thumbprint(members: dict[str, str]) -> bytes:
    """RFC 7638 section 3: the required members, in order, without white space."""
    return sha256(json.dumps(members, separators=(",", ":"), sort_keys=True).encode()).digest()


_ROCA_PRIMES = (11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157)
_ROCA_RESIDUES = {prime: frozenset(pow(65537, power, prime) for power in range(prime)) for prime in _ROCA_PRIMES}
"""The flawed library made primes that are powers of 65537 modulo many small primes, and so are their products."""

_HMAC_HASHES = {"HS256": ("sha256", 32), "HS384": ("sha384", 48), "HS512": ("sha512", 64)}
"""With the bytes of the digest, and of the shortest key."""


_ED25519_PRIME = (1 << 255) - 19
_ED25519_Y_MASK = (1 << 255) - 1
_ED25519_ORDER_8_Y = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_ED25519_SMALL_ORDER_Y = frozenset(
    {
        0,
        1,
        _ED25519_PRIME - 1,
        _ED25519_PRIME,
        _ED25519_PRIME + 1,
        _ED25519_ORDER_8_Y,
        _ED25519_PRIME - _ED25519_ORDER_8_Y,
    }
)
"""The y coordinates of the points of order 1, 2, 4 and 8: under such a key, one signature fits many messages."""
