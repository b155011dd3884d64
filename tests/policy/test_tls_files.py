"""TLS files that serving could not use are faults of the policy, each at the key that names the file."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization

from sidecar.policy.compile import load
from sidecar.policy.faults import PolicyError
from tests.support.certificates import make_certificates

SERVER = "server: {{tls: {{certificate: {certificate}, key: {key}, client_ca: {ca}}}}}\n"
REDIS = "redis: {{url: 'rediss://localhost', tls: {{certificate: {certificate}, key: {key}, ca: {ca}}}}}\n"
SECTIONS = pytest.mark.parametrize(("section", "ca"), [(SERVER, "server.tls.client_ca"), (REDIS, "redis.tls.ca")])


@pytest.fixture
def files(tmp_path):
    made = make_certificates(tmp_path)
    key = serialization.load_pem_private_key(made.server_key.read_bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"a password that nobody is asked for"),
    )
    (tmp_path / "encrypted.pem").write_bytes(encrypted)
    (tmp_path / "empty.pem").write_bytes(b"")
    return tmp_path


def faults(directory, text):
    path = directory / "sidecar.yaml"
    path.write_text(text)
    try:
        load(path, 1)
    except PolicyError as error:
        return [(fault.path, fault.message, fault.accepted) for fault in error.faults]
    return []


@SECTIONS
def test_files_that_belong_together_are_accepted(files, section, ca):
    """A certificate, its key, and an authority."""
    assert ca
    assert faults(files, section.format(certificate="server.pem", key="server-key.pem", ca="ca.pem")) == []


@SECTIONS
@pytest.mark.parametrize("key", ["client-key.pem", "encrypted.pem", "server.pem", "empty.pem"])
def test_a_key_that_does_not_fit_is_named(files, section, ca, key):
    """Of another certificate, encrypted, no key at all: the fault names the file, and nobody is asked a password."""
    ((where, message, accepted),) = faults(files, section.format(certificate="server.pem", key=key, ca="ca.pem"))
    assert where == f"{ca.rpartition('.')[0]}.key"
    assert f"the file {files / key} holds no key that fits the certificate in {files / 'server.pem'}" in message
    assert accepted == "a PEM file with the certificate's private key, not encrypted"


@SECTIONS
@pytest.mark.parametrize("authorities", ["server-key.pem", "empty.pem"])
def test_a_file_without_certificates_is_named(files, section, ca, authorities):
    """Where authorities belong, a key or an empty file is no use."""
    text = section.format(certificate="server.pem", key="server-key.pem", ca=authorities)
    ((where, message, accepted),) = faults(files, text)
    assert where == ca
    assert f"the file {files / authorities} holds no certificates" in message
    assert accepted == "a PEM file of certificates"


@SECTIONS
def test_a_directory_in_place_of_a_file_is_one_fault(files, section, ca):
    """What cannot be read is not judged a second time."""
    text = section.format(certificate="server.pem", key="server-key.pem", ca=".")
    ((where, message, _),) = faults(files, text)
    assert where == ca
    assert "cannot be read" in message
