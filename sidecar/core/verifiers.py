"""What verifies a signature: one function per key and algorithm (RFC 7518 section 3, RFC 8037, RFC 8812)."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

Verify: TypeAlias = Callable[[bytes, bytes], bool]
"""From signature and signing input to whether they belong together. Never raises."""


def hmac_verifier(secret: bytes, hash_name: str) -> Verify:
    """RFC 7518 section 3.2, compared in constant time (CVE-2016-7036)."""

    def verify(signature: bytes, signing_input: bytes) -> bool:
        return hmac.compare_digest(hmac.digest(secret, signing_input, hash_name), signature)

    return verify


RSA_HASHES: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "RS256": hashes.SHA256(),
    "RS384": hashes.SHA384(),
    "RS512": hashes.SHA512(),
    "PS256": hashes.SHA256(),
    "PS384": hashes.SHA384(),
    "PS512": hashes.SHA512(),
}


def rsa_verifier(key: rsa.RSAPublicKey, algorithm: str) -> Verify:
    """RFC 7518 sections 3.3 and 3.5: PKCS #1 v1.5, or PSS with MGF1 and a salt as long as the hash."""
    hash_ = RSA_HASHES[algorithm]
    scheme: padding.AsymmetricPadding = padding.PKCS1v15()
    if algorithm.startswith("PS"):
        scheme = padding.PSS(padding.MGF1(hash_), salt_length=hash_.digest_size)
    length = (key.key_size + 7) // 8

    def verify(signature: bytes, signing_input: bytes) -> bool:
        if len(signature) != length:
            return False
        try:
            key.verify(signature, signing_input, scheme, hash_)
        except InvalidSignature:
            return False
        return True

    return verify


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve, and the one algorithm that uses it (RFC 7518 section 3.4, RFC 8812)."""

    algorithm: str
    curve: ec.EllipticCurve
    hash: hashes.HashAlgorithm
    coordinate_bytes: int
    order: int


CURVES: Final[Mapping[str, Curve]] = {
    "P-256": Curve(
        "ES256",
        ec.SECP256R1(),
        hashes.SHA256(),
        32,
        0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    ),
    "P-384": Curve(
        "ES384",
        ec.SECP384R1(),
        hashes.SHA384(),
        48,
        0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
    ),
    "secp256k1": Curve(
        "ES256K",
        ec.SECP256K1(),
        hashes.SHA256(),
        32,
        0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141,
    ),
    "P-521": Curve(
        "ES512",
        ec.SECP521R1(),
        hashes.SHA512(),
        66,
        (1 << 521) - 0x5AE79787C40D069948033FEB708F65A2FC44A36477663B851449048E16EC79BF7,
    ),
}


def ecdsa_verifier(key: ec.EllipticCurvePublicKey, curve: Curve) -> Verify:
    """The numbers r and s side by side, as long as the order, and less than it (RFC 7518 section 3.4, RFC 8812)."""
    half, order = (curve.order.bit_length() + 7) // 8, curve.order
    scheme = ec.ECDSA(curve.hash)

    def verify(signature: bytes, signing_input: bytes) -> bool:
        if len(signature) != 2 * half:
            return False
        r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
        if not (0 < r < order and 0 < s < order):
            return False
        try:
            key.verify(encode_dss_signature(r, s), signing_input, scheme)
        except InvalidSignature:
            return False
        return True

    return verify


def eddsa_verifier(key: Ed25519PublicKey) -> Verify:
    """RFC 8037 section 3.1; `Ed25519` is the same under a name that says so (RFC 9864 section 2.2)."""

    def verify(signature: bytes, signing_input: bytes) -> bool:
        if len(signature) != 64:
            return False
        try:
            key.verify(signature, signing_input)
        except InvalidSignature:
            return False
        return True

    return verify
