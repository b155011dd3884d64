"""The keys that internal tokens are signed by, from PEM text, as upstreams get to know them (RFC 7517)."""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import json

from sidecar.core import base64url
from sidecar.core.internal_tokens import SigningKey
from sidecar.core.keys import parse_jwks
from sidecar.core.private_keys import KeyFileError, read_private_key

COORDINATE_BYTES: Final = 32
"""Of P-256."""

ACCEPTED: Final = "one private key in PEM, Ed25519 or EC P-256, not encrypted"


def read_signing_key(pem: bytes, signs_from_us: int) -> SigningKey:
    """The private key of a PEM text: Ed25519 signs EdDSA (RFC 8037), P-256 signs ES256 (RFC 7518 section 3.4).

    Raises:
        KeyFileError: It is neither, or there are several.
    """
    if pem.count(b"PRIVATE KEY-----") > 2:
        raise KeyFileError("holds more than one private key")
    private = read_private_key(pem)
    public = private.public
    if isinstance(public, Ed25519PublicKey):
        raw = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
        jwk = {"kty": "OKP", "crv": "Ed25519", "x": base64url.encode(raw)}
    elif isinstance(public, ec.EllipticCurvePublicKey) and private.algorithm == "ES256":
        point = public.public_numbers()
        x, y = (base64url.encode(value.to_bytes(COORDINATE_BYTES, "big")) for value in (point.x, point.y))
        jwk = {"kty": "EC", "crv": "P-256", "x": x, "y": y}
    else:
        raise KeyFileError("holds a key of another kind")
    found = parse_jwks(json.encode({"keys": [jwk]})).find(None, private.algorithm)
    if found is None:
        raise KeyFileError("holds a key that verifies nothing")
    kid = base64url.encode(found.thumbprint)
    jwk |= {"kid": kid, "use": "sig", "alg": private.algorithm}
    return SigningKey(kid, private.algorithm, jwk, signs_from_us, private.sign)
