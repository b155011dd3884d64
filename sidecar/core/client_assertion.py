"""A client's own JWT, which proves to an authorization server who asks (RFC 7523 section 3)."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from typing import TypeAlias

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

LIFETIME_S = 60
"""From `iat` to `exp`: it is used at once, and clocks differ."""

RSA_BITS_MIN = 2048
KEY_BYTES_MAX = 16 * 1024
"""Of a PEM file; an RSA key of 8192 bits has 6,400."""

_CURVES = {"secp256r1": ("ES256", hashes.SHA256()), "secp384r1": ("ES384", hashes.SHA384()),
           "secp521r1": ("ES512", hashes.SHA512())}  # fmt: skip

Sign: TypeAlias = Callable[[bytes], bytes]


class KeyFileError(ValueError):
    """The file holds no private key that can sign; the message quotes nothing of it."""


class Signer:
    """Signs assertions with a private key.

    Args:
        pem: The key: RSA of 2048 bits or more (RS256), EC on P-256, P-384 or P-521 (ES256 ...), or Ed25519 (EdDSA).

    Raises:
        KeyFileError: It is none of these.
    """

    __slots__ = ("_algorithm", "_sign")

    def __init__(self, pem: bytes) -> None:
        self._algorithm, self._sign = _signing(pem)

    @property
    def algorithm(self) -> str:
        """`alg` (RFC 7518 section 3.1)."""
        return self._algorithm

    def assertion(self, client_id: str, audience: str, key_id: str | None, jti: str, now_s: int) -> str:
        """A JWT for one use, which `jti` names: nobody can guess it, and it never comes again."""
        header = {"alg": self._algorithm, "typ": "JWT"} | ({} if key_id is None else {"kid": key_id})
        claims = {
            "iss": client_id,
            "sub": client_id,
            "aud": audience,
            "jti": jti,
            "iat": now_s,
            "exp": now_s + LIFETIME_S,
        }
        signing_input = f"{_segment(header)}.{_segment(claims)}"
        return f"{signing_input}.{_base64url(self._sign(signing_input.encode()))}"


def _segment(members: Mapping[str, object]) -> str:
    return _base64url(json.dumps(members, separators=(",", ":")).encode())


def _base64url(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _signing(pem: bytes) -> tuple[str, Sign]:
    """The algorithm that fits the key, and the signature in JWS form (RFC 7518 section 3)."""
    if len(pem) > KEY_BYTES_MAX:
        raise KeyFileError(f"has more than {KEY_BYTES_MAX} bytes")
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError):  # TypeError: it is encrypted
        raise KeyFileError("holds no private key in PEM, or an encrypted one") from None
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < RSA_BITS_MIN:
            raise KeyFileError(f"holds an RSA key of fewer than {RSA_BITS_MIN} bits")
        return "RS256", lambda data: key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "EdDSA", key.sign
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        algorithm, digest = _CURVES[key.curve.name]
        length = (key.key_size + 7) // 8

        def sign(data: bytes) -> bytes:
            r, s = decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
            return r.to_bytes(length, "big") + s.to_bytes(length, "big")

        return algorithm, sign
    raise KeyFileError("holds a key of another kind than RSA, EC (P-256, P-384, P-521) and Ed25519")
