"""A real Valkey for the tests of the stores."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from sidecar.edges.embedded_valkey import EmbeddedValkey


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[EmbeddedValkey]:
    """One server for all tests that leave it running."""
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture
def valkey(shared_valkey: EmbeddedValkey, valkey_admin: redis.Redis) -> EmbeddedValkey:
    """The shared server, emptied."""
    valkey_admin.flushall()
    return shared_valkey


@pytest.fixture
def valkey_admin(shared_valkey: EmbeddedValkey) -> Iterator[redis.Redis]:
    """A plain client of the shared server, to look at it and to prepare it."""
    with redis.Redis(unix_socket_path=shared_valkey.socket_path) as client:
        yield client


@pytest.fixture
def own_valkey() -> Iterator[EmbeddedValkey]:
    """A server that the test may kill or freeze."""
    with EmbeddedValkey() as server:
        yield server
