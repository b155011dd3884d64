"""The policy that says everything, beside TLS files that work: keys have no place among the sources."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.certificates import make_certificates
from tests.support.internal_keys import write_keys

GOOD = Path(__file__).parent / "good"


@pytest.fixture(scope="session")
def full_directory(tmp_path_factory):
    """A copy of good/full with fresh certificates in `tls`."""
    directory = tmp_path_factory.mktemp("policy") / "full"
    shutil.copytree(GOOD / "full", directory)
    write_keys(directory / "internal-keys", "2026-12-01.pem", "2027-01-01T0600Z.pem")
    (directory / "tls").mkdir()
    made = make_certificates(directory / "tls")
    for source, names in (
        (made.ca, ("clients.pem", "redis-ca.pem", "issuer-ca.pem")),
        (made.server, ("server.crt",)),
        (made.server_key, ("server.key",)),
        (made.client, ("redis.crt",)),
        (made.client_key, ("redis.key",)),
    ):
        for name in names:
            shutil.copy(source, directory / "tls" / name)
    return directory
