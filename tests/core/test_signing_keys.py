"""Private keys: which are read, what is published of them, and that nothing else gets out."""

from __future__ import annotations

import json
import pickle

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat, PublicFormat

from sidecar.core import base64url
from sidecar.core.keys import parse_jwks
from sidecar.core.private_keys import KEY_BYTES_MAX, KeyFileError
from sidecar.core.signing_keys import read_signing_key
from tests.support.internal_keys import p256_pem, pem


@pytest.mark.parametrize(("text", "algorithm"), [(pem(), "EdDSA"), (p256_pem(), "ES256")], ids=["ed25519", "p-256"])
def test_what_it_signs_its_published_key_verifies(text, algorithm):
    """Also by our own strict reader, under the RFC 7638 thumbprint as `kid`; each of many signatures has one length."""
    key = read_signing_key(text, 7)
    found = parse_jwks(json.dumps({"keys": [key.jwk]}).encode()).find(key.kid, algorithm)
    assert found is not None
    assert (key.algorithm, key.signs_from_us) == (algorithm, 7)
    assert base64url.encode(found.thumbprint) == key.kid
    for n in range(50):
        signature = key.sign(b"input %d" % n)
        assert len(signature) == 64
        assert found.verify(signature, b"input %d" % n)
        assert not found.verify(signature, b"other %d" % n)


def test_nothing_private_is_published_printed_or_serialised():
    """The JWK has public members only, the repr names the key alone, and it cannot be pickled."""
    private = ec.generate_private_key(ec.SECP256R1())
    key = read_signing_key(pem(private), 0)
    assert set(key.jwk) == {"kty", "crv", "x", "y", "kid", "use", "alg"}
    secret = private.private_numbers().private_value
    shown = f"{key!r} {key} {key.sign!r}"
    assert str(secret) not in shown
    assert base64url.encode(secret.to_bytes(32, "big")) not in shown
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        pickle.dumps(key)


def encrypted() -> bytes:
    password = BestAvailableEncryption(b"hunter2")
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, password)


def public() -> bytes:
    return Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "no private key in PEM"),
        (b"hunter2", "no private key in PEM"),
        (public(), "no private key in PEM"),
        (pem() + pem(), "more than one private key"),
        (encrypted(), "or an encrypted one"),
        (pem()[:60] + b"\n-----END PRIVATE KEY-----\n", "no private key in PEM"),
        (pem(rsa.generate_private_key(65537, 2048)), "another kind"),
        (pem(ec.generate_private_key(ec.SECP384R1())), "another kind"),
        (pem().ljust(KEY_BYTES_MAX + 1), "more than"),
    ],
    ids=["empty", "text", "public", "two", "encrypted", "cut", "rsa", "p-384", "too long"],
)
def test_what_cannot_sign_is_refused(text, message):
    """By a reason that quotes nothing of it."""
    with pytest.raises(KeyFileError, match=message) as caught:
        read_signing_key(text, 0)
    assert "hunter2" not in str(caught.value)


def test_a_file_of_the_greatest_length_is_read():
    """The bound itself is accepted."""
    assert read_signing_key(pem().ljust(KEY_BYTES_MAX, b"\n"), 0).algorithm == "EdDSA"
