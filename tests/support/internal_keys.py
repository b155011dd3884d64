"""Private keys as an operator makes them: PEM files, named by the time from which they sign."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sidecar.core.internal_tokens import InternalTokens
from sidecar.core.signing_keys import read_signing_key
from tests.support.tokens import NOW_US

if TYPE_CHECKING:
    from pathlib import Path

INTERNAL_ISSUER = "https://sidecar.internal"


def pem(private: Any = None) -> bytes:
    """A private key, not encrypted; a fresh Ed25519 one unless another is given."""
    private = private or Ed25519PrivateKey.generate()
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def p256_pem() -> bytes:
    return pem(ec.generate_private_key(ec.SECP256R1()))


def write_keys(directory: Path, *names: str) -> Path:
    """The directory, with a fresh key of each name."""
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).write_bytes(pem())
    return directory


def internal_tokens(*keys: tuple[bytes, int], **changes: Any) -> InternalTokens:
    """How tokens are made, with keys by PEM text and the second from which each signs."""
    written = keys or ((pem(), NOW_US // 1_000_000 - 1000),)
    settings: dict[str, Any] = {
        "issuer": INTERNAL_ISSUER,
        "audiences": ("upstreams",),
        "lifetime_s": 120,
        "token_type": "at+jwt",
        "claims": (),
        "directory": "",
        "keys": tuple(read_signing_key(text, at_s * 1_000_000) for text, at_s in written),
    }
    return InternalTokens(**(settings | changes))
