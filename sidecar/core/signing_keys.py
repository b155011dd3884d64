"""Private keys from PEM text, each for the one algorithm that fits it, behind a function that signs.

The key itself stays inside of that function: nothing prints it, nothing serialises it, and nobody can ask for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from msgspec import json

from sidecar.core import base64url
from sidecar.core.internal_tokens import SigningKey
from sidecar.core.keys import parse_jwks

if TYPE_CHECKING:
    from collections.abc import Callable

PEM_BYTES_MAX: Final = 16 * 1024
COORDINATE_BYTES: Final = 32
"""Of P-256, and of r and s in its signatures."""

ACCEPTED: Final = "one private key in PEM, Ed25519 or EC P-256, not encrypted"


class SigningKeyError(ValueError):
    """The text holds no key that may sign. The message quotes nothing of it."""


def read_signing_key(pem: bytes, signs_from_us: int) -> SigningKey:
    """The private key of a PEM text: Ed25519 signs EdDSA (RFC 8037), P-256 signs ES256 (RFC 7518 section 3.4).

    Raises:
        SigningKeyError: It is none of these, is encrypted, or is longer than `PEM_BYTES_MAX`.
    """
    if len(pem) > PEM_BYTES_MAX:
        raise SigningKeyError(f"holds more than {PEM_BYTES_MAX} bytes")
    if pem.count(b"PRIVATE KEY-----") != 2:
        raise SigningKeyError("does not hold exactly one private key")
    try:
        private = load_pem_private_key(pem, None)
    except TypeError:
        raise SigningKeyError("holds an encrypted key") from None
    except (ValueError, UnsupportedAlgorithm):
        raise SigningKeyError("holds no private key that can be read") from None
    if isinstance(private, Ed25519PrivateKey):
        raw = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        jwk = {"kty": "OKP", "crv": "Ed25519", "x": base64url.encode(raw)}
        return _published(jwk, "EdDSA", signs_from_us, private.sign)
    if isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(private.curve, ec.SECP256R1):
        point = private.public_key().public_numbers()
        x, y = (base64url.encode(value.to_bytes(COORDINATE_BYTES, "big")) for value in (point.x, point.y))
        return _published({"kty": "EC", "crv": "P-256", "x": x, "y": y}, "ES256", signs_from_us, _ecdsa_signer(private))
    raise SigningKeyError("holds a key of another kind")


def _published(jwk: dict[str, str], algorithm: str, signs_from_us: int, sign: Callable[[bytes], bytes]) -> SigningKey:
    """The key under its thumbprint, once our own reader of key sets has accepted it."""
    found = parse_jwks(json.encode({"keys": [jwk]})).find(None, algorithm)
    if found is None:
        raise SigningKeyError("holds a key that verifies nothing")
    kid = base64url.encode(found.thumbprint)
    return SigningKey(kid, algorithm, jwk | {"kid": kid, "use": "sig", "alg": algorithm}, signs_from_us, sign)


def _ecdsa_signer(private: ec.EllipticCurvePrivateKey) -> Callable[[bytes], bytes]:
    """RFC 7518 section 3.4: r and s side by side instead of DER."""
    scheme = ec.ECDSA(hashes.SHA256())

    def sign(signing_input: bytes) -> bytes:
        r, s = decode_dss_signature(private.sign(signing_input, scheme))
        return r.to_bytes(COORDINATE_BYTES, "big") + s.to_bytes(COORDINATE_BYTES, "big")

    return sign
