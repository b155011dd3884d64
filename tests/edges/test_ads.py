"""The xDS client against a real gRPC server: what it asks, what it answers, and how it comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from sidecar.core.secret import Secret
from sidecar.edges.ads import REASON_CHARS_MAX, AdsClient
from sidecar.envoy.pb.discovery_pb2 import DiscoveryResponse
from sidecar.policy.ratelimit_resources import TYPE_URL
from sidecar.policy.settings import XdsSettings, XdsTlsFiles
from tests.support.ads_server import AdsServer, resource
from tests.support.asking import until
from tests.support.certificates import issue, make_certificates


class Applied:
    """What was put to use; refuses what `reason` names."""

    def __init__(self) -> None:
        self.responses: list[int] = []
        self.reason = ""

    async def __call__(self, resources: Sequence[AnyMessage]) -> str:
        if not self.reason:
            self.responses.append(len(resources))
        return self.reason


def client(server: AdsServer, applied: Applied, **settings: Any) -> AdsClient:
    quick = {"retry_s": 0.01, "backoff_s": 0.01, "backoff_s_max": 0.05}
    return AdsClient(XdsSettings(server=server.address, node_id="edge", **{**quick, **settings}), TYPE_URL, applied)


@pytest.fixture
async def server() -> AsyncIterator[AdsServer]:
    server = await AdsServer().start()
    yield server
    await server.stop()


async def test_it_subscribes_as_its_node_and_acknowledges(server: AdsServer) -> None:
    """The first request has the node, the type, headers and no version; an ACK has the response's version and nonce."""
    applied = Applied()
    ads = client(server, applied, node_metadata=(("region", "eu"),), headers=(("x-key", Secret("sesame")),))
    ads.start()
    try:
        first = await server.request()
        assert (first.node.id, first.node.metadata["region"]) == ("edge", "eu")
        assert (first.type_url, first.version_info, first.response_nonce) == (TYPE_URL, "", "")
        assert server.metadata["x-key"] == "sesame"
        nonce = server.send("7", resource(), resource("other", "other"))
        ack = await server.request()
        assert (ack.version_info, ack.response_nonce, ack.type_url) == ("7", nonce, TYPE_URL)
        assert not ack.HasField("error_detail")
        assert applied.responses == [2]
        assert ads.detail() == {"server": server.address, "connected": True, "version": "7", "last_error": ""}
    finally:
        await ads.close()


async def test_what_is_refused_is_answered_with_the_reason_and_the_version_kept(server: AdsServer) -> None:
    """A NACK has the nonce, the old version and the reason, cut at its bound; the stream goes on, and a cure helps."""
    applied = Applied()
    ads = client(server, applied)
    ads.start()
    try:
        await server.request()
        server.send("1", resource())
        await server.request()
        applied.reason = "x" * (REASON_CHARS_MAX + 1)
        nonce = server.send("2", resource())
        nack = await server.request()
        assert (nack.version_info, nack.response_nonce, nack.error_detail.code) == ("1", nonce, 3)
        assert nack.error_detail.message == "x" * REASON_CHARS_MAX
        server.send("3", resource(), type_url="type.googleapis.com/another")
        assert "another" in (await server.request()).error_detail.message
        applied.reason = ""
        server.send("4", resource())
        assert (await server.request()).version_info == "4"
        assert (ads.status.accepted_total, ads.status.refused_total, server.streams) == (2, 2, 1)
    finally:
        await ads.close()


async def test_it_comes_back_with_the_version_in_use(server: AdsServer) -> None:
    """After the stream ends, and after the server was away, the subscription names what is in use."""
    applied = Applied()
    ads = client(server, applied)
    ads.start()
    try:
        await server.request()
        server.send("1", resource())
        await server.request()
        server.end_stream()
        again = await server.request()
        assert (again.version_info, again.response_nonce, again.node.id) == ("1", "", "edge")
        await server.stop()
        await until(lambda: ads.status.failures_total >= 3)
        assert not ads.status.connected
        await server.start()
        assert (await server.request()).version_info == "1"
        server.send("2", resource())
        assert (await server.request()).version_info == "2"
        assert applied.responses == [1, 1]
    finally:
        await ads.close()


async def test_a_server_that_is_away_at_first_is_asked_again() -> None:
    """Nothing but time is lost while the server does not exist."""
    server = await AdsServer().start()
    await server.stop()
    applied = Applied()
    ads = client(server, applied)
    ads.start()
    try:
        await until(lambda: ads.status.failures_total >= 2)
        assert "UNAVAILABLE" in ads.status.last_error
        await server.start()
        server.send("1", resource())
        await until(lambda: ads.status.version == "1")
    finally:
        await ads.close()
        await server.stop()


async def test_pauses_double_up_to_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """1, 2, 4, 5, 5 times the first pause while nobody answers; jitter takes up to half of each."""
    server = AdsServer()
    ads = AdsClient(
        XdsSettings(server="unused", node_id="edge", retry_s=1.0, backoff_s=9.0, backoff_s_max=5.0),
        TYPE_URL,
        Applied(),
        jitter=lambda: 0.0,
    )
    slept: list[float] = []
    heard = iter([False, False, False, False, True, False])

    async def subscribed() -> bool:
        return next(heard)

    class Enough(Exception):  # noqa: N818 - ends the loop under test
        pass

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 6:
            raise Enough

    monkeypatch.setattr(ads, "_subscribed", subscribed)
    monkeypatch.setattr("sidecar.edges.ads.asyncio.sleep", sleep)
    with pytest.raises(Enough):
        await ads._run()
    assert slept == [0.5, 1.0, 2.0, 2.5, 4.5, 2.5]
    assert server.port == 0


async def test_a_response_has_a_bounded_size(server: AdsServer) -> None:
    """A response of the bound's size is taken, one byte more ends the stream and leaves what was there."""
    bound = 4096
    envelope = DiscoveryResponse(
        version_info="1", resources=[AnyMessage(value=b"x" * 1000)], type_url=TYPE_URL, nonce="n1"
    )
    filler = 1000 + bound - envelope.ByteSize()
    ads = client(server, Applied(), message_bytes_max=bound)
    ads.start()
    try:
        await server.request()
        server.send("1", AnyMessage(value=b"x" * filler))
        assert (await server.request()).version_info == "1"
        server.send("2", AnyMessage(value=b"x" * (filler + 1)))
        assert (await server.request()).version_info == "1"
        assert "RESOURCE_EXHAUSTED" in ads.status.last_error
    finally:
        await ads.close()


async def test_mutual_tls_with_a_name_of_its_own(tmp_path: Path) -> None:
    """The server proves the name that is asked for and sees our certificate; another authority's is not trusted."""
    issued, stranger = make_certificates(tmp_path, "xds.internal"), tmp_path / "stranger.pem"
    issue("stranger").write(stranger)
    pair = (issued.server_key.read_bytes(), issued.server.read_bytes())
    credentials = grpc.ssl_server_credentials([pair], issued.ca.read_bytes(), require_client_auth=True)
    server = await AdsServer(credentials).start()
    tls = {"certificate": str(issued.client), "key": str(issued.client_key), "server_name": "xds.internal"}
    good = client(server, Applied(), tls=XdsTlsFiles(ca=str(issued.ca), **tls))
    bad = client(server, Applied(), tls=XdsTlsFiles(ca=str(stranger), **tls))
    bad.start()
    good.start()
    try:
        await server.request()
        await until(lambda: bad.status.failures_total > 0)
        assert server.streams == 1
    finally:
        await good.close()
        await bad.close()
        await server.stop()
