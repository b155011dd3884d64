"""Mints keys and tokens, good ones and any other: each part can be replaced by whatever bytes a test wants."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sidecar.core.issuer import ALGORITHMS, IssuerPolicy, JwksUrl

ISSUER = "https://issuer.example"
AUDIENCE = "orders-api"
NOW_S = 1_800_000_000
NOW_US = NOW_S * 1_000_000

_HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
_CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1(), "ES256K": ec.SECP256K1()}
_CURVE_NAMES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "ES256K": "secp256k1"}
_EDWARDS = ("EdDSA", "Ed25519")


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def b64_integer(value: int, length: int | None = None) -> str:
    return b64(value.to_bytes(length or (value.bit_length() + 7) // 8, "big"))


@dataclass(frozen=True, eq=False)
class SigningKey:
    """A private key that says under which kid and algorithm it signs."""

    alg: str
    private: Any
    kid: str | None = "k1"

    @property
    def jwk(self) -> dict[str, Any]:
        """The public key as an issuer publishes it."""
        public = self.private.public_key()
        jwk: dict[str, Any]
        if isinstance(public, rsa.RSAPublicKey):
            numbers = public.public_numbers()
            jwk = {"kty": "RSA", "n": b64_integer(numbers.n), "e": b64_integer(numbers.e)}
        elif isinstance(public, ec.EllipticCurvePublicKey):
            point, length = public.public_numbers(), (public.curve.key_size + 7) // 8
            crv = _CURVE_NAMES[self.alg]
            jwk = {"kty": "EC", "crv": crv, "x": b64_integer(point.x, length), "y": b64_integer(point.y, length)}
        else:
            jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64(public.public_bytes(Encoding.Raw, PublicFormat.Raw))}
        jwk |= {"use": "sig", "alg": self.alg}
        return jwk if self.kid is None else jwk | {"kid": self.kid}

    def renamed(self, kid: str | None) -> SigningKey:
        return replace(self, kid=kid)

    def sign(self, signing_input: bytes) -> bytes:
        """The signature in JWS form (RFC 7518 section 3)."""
        if self.alg in _EDWARDS:
            return self.private.sign(signing_input)
        digest = _HASHES[self.alg[2:5]]
        if self.alg.startswith("ES"):
            r, s = decode_dss_signature(self.private.sign(signing_input, ec.ECDSA(digest)))
            length = (self.private.curve.key_size + 7) // 8
            return r.to_bytes(length, "big") + s.to_bytes(length, "big")
        pss = padding.PSS(padding.MGF1(digest), salt_length=digest.digest_size)
        return self.private.sign(signing_input, pss if self.alg.startswith("PS") else padding.PKCS1v15(), digest)

    def token(self, claims: object = None, header: object = None, **changes: Any) -> str:
        """A signed token; `claims` and `header` may be raw bytes. `changes` go into good claims, None removes one."""
        if header is None:
            header = {"alg": self.alg, "typ": "JWT"} | ({} if self.kid is None else {"kid": self.kid})
        if claims is None:
            claims = good_claims(**changes)
        signing_input = f"{b64(as_bytes(header))}.{b64(as_bytes(claims))}"
        return f"{signing_input}.{b64(self.sign(signing_input.encode()))}"


def as_bytes(part: object) -> bytes:
    return part if isinstance(part, bytes) else json.dumps(part).encode()


@cache
def rsa_private(bits: int = 2048, number: int = 0) -> rsa.RSAPrivateKey:
    """Making one takes long: tests share them by number."""
    del number
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def make_key(alg: str = "ES256", kid: str | None = "k1", number: int = 0) -> SigningKey:
    if alg in _CURVES:
        return SigningKey(alg, _shared_ec(alg, number), kid)
    return SigningKey(alg, _shared_ed25519(number) if alg in _EDWARDS else rsa_private(2048, number), kid)


@cache
def _shared_ec(alg: str, number: int) -> ec.EllipticCurvePrivateKey:
    del number
    return ec.generate_private_key(_CURVES[alg])


@cache
def _shared_ed25519(number: int) -> Ed25519PrivateKey:
    del number
    return Ed25519PrivateKey.generate()


def jwks(*keys: SigningKey | dict[str, Any]) -> bytes:
    return json.dumps({"keys": [key.jwk if isinstance(key, SigningKey) else key for key in keys]}).encode()


def good_claims(**changes: Any) -> dict[str, Any]:
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "alice",
        "exp": NOW_S + 600,
        "iat": NOW_S - 10,
        "jti": "7f1c",
        "client_id": "web",
        "scope": "orders:read orders:write",
    } | changes
    return {name: value for name, value in claims.items() if value is not None}


def issuer_policy(**changes: Any) -> IssuerPolicy:
    settings: dict[str, Any] = {
        "name": "main",
        "issuer": ISSUER,
        "audiences": frozenset({AUDIENCE}),
        "algorithms": ALGORITHMS,
        "keys": JwksUrl("https://issuer.example/jwks"),
    }
    return IssuerPolicy(**(settings | changes))
