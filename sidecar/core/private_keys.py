"""Private keys from PEM text, each behind a function that signs by the one algorithm that fits it.

The key itself stays inside of that function: nothing prints it, nothing serialises it, and nobody can ask for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

RSA_BITS_MIN: Final = 2048
KEY_BYTES_MAX: Final = 16 * 1024
"""Of a PEM file; an RSA key of 8192 bits has 6,400."""

_CURVES: Final[dict[str, tuple[str, hashes.HashAlgorithm]]] = {
    "secp256r1": ("ES256", hashes.SHA256()),
    "secp384r1": ("ES384", hashes.SHA384()),
    "secp521r1": ("ES512", hashes.SHA512()),
}

Sign: TypeAlias = Callable[[bytes], bytes]
PublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class KeyFileError(ValueError):
    """The file holds no private key that can sign; the message quotes nothing of it."""


@dataclass(frozen=True, slots=True, eq=False)
class PrivateKey:
    """A private key in its one use.

    Attributes:
        algorithm: `alg` (RFC 7518 section 3.1, RFC 8037).
        sign: From a signing input to its signature in JWS form (RFC 7518 section 3).
        public: What belongs to it.
    """

    algorithm: str
    sign: Sign = field(repr=False)
    public: PublicKey


def read_private_key(pem: bytes) -> PrivateKey:
    """RSA of 2048 bits or more (RS256), EC on P-256, P-384 or P-521 (ES256 ...), or Ed25519 (EdDSA).

    Raises:
        KeyFileError: It is none of these, is encrypted, or is longer than `KEY_BYTES_MAX`.
    """
    if len(pem) > KEY_BYTES_MAX:
        raise KeyFileError(f"has more than {KEY_BYTES_MAX} bytes")
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it is encrypted
        raise KeyFileError("holds no private key in PEM, or an encrypted one") from None
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < RSA_BITS_MIN:
            raise KeyFileError(f"holds an RSA key of fewer than {RSA_BITS_MIN} bits")
        return PrivateKey("RS256", _rsa_signer(key), key.public_key())
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return PrivateKey("EdDSA", key.sign, key.public_key())
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        algorithm, digest = _CURVES[key.curve.name]
        return PrivateKey(algorithm, _ecdsa_signer(key, digest), key.public_key())
    raise KeyFileError("holds a key of another kind than RSA, EC (P-256, P-384, P-521) and Ed25519")


def _rsa_signer(key: rsa.RSAPrivateKey) -> Sign:
    scheme, digest = padding.PKCS1v15(), hashes.SHA256()
    return lambda signing_input: key.sign(signing_input, scheme, digest)


def _ecdsa_signer(key: ec.EllipticCurvePrivateKey, digest: hashes.HashAlgorithm) -> Sign:
    """RFC 7518 section 3.4: r and s side by side instead of DER."""
    scheme, length = ec.ECDSA(digest), (key.key_size + 7) // 8

    def sign(signing_input: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(signing_input, scheme))
        return r.to_bytes(length, "big") + s.to_bytes(length, "big")

    return sign
