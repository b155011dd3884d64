"""A real Valkey for the tests of the stores."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
import redis
import uvloop

from sidecar.edges.embedded_valkey import EmbeddedValkey
from tests.support.valkey import SentinelDeployment, ValkeyCluster, running

ON_UVLOOP = {
    "test_limit_stores.py",
    "test_redis_cluster.py",
    "test_redis_faults.py",
    "test_redis_parts.py",
    "test_redis_sentinel.py",
    "test_redis_store.py",
    "test_redis_topology.py",
}
"""Where transports matter, on the loop that serves in production: its transports and its TLS are not asyncio's."""


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Choose each test's event loop."""
    del config
    return {"uvloop": uvloop.new_event_loop} if item.path.name in ON_UVLOOP else {"asyncio": asyncio.new_event_loop}


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


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyCluster]:
    """Three masters with a replica each, for all tests that leave them running."""
    with running(ValkeyCluster(tmp_path_factory.mktemp("cluster"))) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: ValkeyCluster) -> ValkeyCluster:
    """The shared Cluster, emptied."""
    shared_cluster.flush()
    return shared_cluster


@pytest.fixture(scope="session")
def shared_sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelDeployment]:
    """A master, its replica and three Sentinels, for all tests that leave them running."""
    with running(SentinelDeployment(tmp_path_factory.mktemp("sentinel"))) as deployment:
        yield deployment


@pytest.fixture
def sentinel(shared_sentinel: SentinelDeployment) -> SentinelDeployment:
    """The shared deployment, emptied."""
    shared_sentinel.flush()
    return shared_sentinel


@pytest.fixture
def own_valkey() -> Iterator[EmbeddedValkey]:
    """A server that the test may kill or freeze."""
    with EmbeddedValkey() as server:
        yield server
