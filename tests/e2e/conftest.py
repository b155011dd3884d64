"""One Sidecar and two Envoys for all tests that do them no harm; a lab for those that do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sidecar.demo.issuer import DemoIssuer
from sidecar.demo.stack import Sidecar
from sidecar.demo.upstream import echo_server
from tests.support.gateway import NEWEST, OLDEST, Gateway, Lab, change_policy, open_grpc, start_gateway
from tests.support.valkey import ValkeyProcess

if TYPE_CHECKING:
    from sidecar.demo.httpd import HttpServer


@pytest.fixture(scope="session")
def issuer() -> Iterator[DemoIssuer]:
    issuer = DemoIssuer().start()
    yield issuer
    issuer.stop()


@pytest.fixture(scope="session")
def upstream() -> Iterator[HttpServer]:
    server = echo_server().start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def shared_sidecar(tmp_path_factory: pytest.TempPathFactory, issuer: DemoIssuer) -> Iterator[Sidecar]:
    """One Sidecar for all tests that do it no harm."""
    sidecar = Sidecar(tmp_path_factory.mktemp("shared"), issuer.url)
    change_policy(sidecar, open_grpc)
    sidecar.start()
    yield sidecar
    assert sidecar.stop() == 0


@pytest.fixture(scope="session", params=[OLDEST, NEWEST])
def envoy_version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def gateway(
    envoy_version: str, tmp_path_factory: pytest.TempPathFactory, shared_sidecar: Sidecar, upstream: HttpServer
) -> Iterator[Gateway]:
    """Envoy in front of the shared Sidecar."""
    gateway = start_gateway(envoy_version, tmp_path_factory.mktemp("envoy"), shared_sidecar, upstream)
    yield gateway
    gateway.envoy.stop()


@pytest.fixture
def lab(tmp_path: Path, issuer: DemoIssuer, upstream: HttpServer) -> Iterator[Lab]:
    with ExitStack() as stack:
        valkey = ValkeyProcess(tmp_path / "valkey")
        valkey.start()
        stack.callback(valkey.stop)
        yield Lab(tmp_path, issuer, upstream, valkey, stack)
