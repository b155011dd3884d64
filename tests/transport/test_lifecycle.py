"""How servers and connections begin and end: addresses, TLS, drain, age, keepalive, limits on connections."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import ssl
from typing import TYPE_CHECKING

import grpc
import pytest
from cryptography import x509

from sidecar.transport.grpcio import GrpcioServer
from sidecar.transport.http2 import Http2Server
from sidecar.transport.listeners import unix_listener
from sidecar.transport.service import ServerLimits, Status, TcpAddress, TlsFiles, UnixAddress
from tests.support.certificates import issue
from tests.support.grpc_server import CHAT, ECHO, ENGINES, GUARDED, HELD, LOOPBACK, Running, serving
from tests.support.http2_peer import (
    GOAWAY,
    PATIENCE_S,
    PING,
    SETTINGS,
    Http2Peer,
    RawPeer,
    eventually,
    message_frame,
    raw_frame,
    raw_request,
)

if TYPE_CHECKING:
    from pathlib import Path

    from sidecar.transport.service import Address


async def hold(running: Running, peer: Http2Peer, path: str = GUARDED) -> int:
    """Begin a call that waits in its handler."""
    waiting = len(running.held)
    stream = peer.begin(path)
    peer.send(stream, message_frame(b"hold"), ended=True)
    await eventually(lambda: len(running.held) > waiting)
    return stream


async def until_refused(address: Address) -> None:
    """Wait until nothing accepts connections at the address."""
    async with asyncio.timeout(PATIENCE_S):
        with contextlib.suppress(OSError):
            while True:
                (await Http2Peer.connect(address)).close()


# Addresses.


async def test_several_addresses_serve_one_service(engine: str, tmp_path: Path) -> None:
    """TCP over IPv4 and a Unix socket at once; real ports are returned; the socket's file goes with the server."""
    unix = UnixAddress(str(tmp_path / "s"))
    async with serving(engine, addresses=[LOOPBACK, unix]) as running:
        tcp, same = running.addresses
        assert isinstance(tcp, TcpAddress)
        assert tcp.port
        assert same == unix
        for address in running.addresses:
            peer = await Http2Peer.connect(address)
            assert await peer.ask(ECHO, b"x") == b"x"
            peer.close()
    assert not (tmp_path / "s").exists()


async def test_a_stale_unix_socket_is_replaced(engine: str, tmp_path: Path) -> None:
    """A dead process's file does not keep the server from starting."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(engine, addresses=[UnixAddress(str(path))]) as running:
        peer = await Http2Peer.connect(running.address)
        assert await peer.ask(ECHO, b"x") == b"x"
        peer.close()


async def test_a_live_unix_socket_is_an_error_and_is_left_alone(engine: str, tmp_path: Path) -> None:
    """The second server fails to start, and the first goes on serving."""
    address = UnixAddress(str(tmp_path / "s"))
    async with serving(engine, addresses=[address]) as running:
        second = ENGINES[engine]({}, [address], on_error=lambda *_: None)
        with pytest.raises(OSError, match="another process"):
            await second.start()
        peer = await Http2Peer.connect(running.address)
        assert await peer.ask(ECHO, b"x") == b"x"
        peer.close()


async def test_a_file_that_is_no_socket_is_never_removed(engine: str, tmp_path: Path) -> None:
    """An operator's typo costs no data."""
    path = tmp_path / "precious"
    path.write_text("data")
    server = ENGINES[engine]({}, [UnixAddress(str(path))], on_error=lambda *_: None)
    with pytest.raises(OSError, match="not a socket"):
        await server.start()
    assert path.read_text() == "data"


async def test_a_failed_start_leaves_nothing_listening(engine: str, tmp_path: Path) -> None:
    """Where the second address is taken, the first is given back."""
    unix = UnixAddress(str(tmp_path / "s"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = ENGINES[engine]({}, [unix, TcpAddress("127.0.0.1", port)], on_error=lambda *_: None)
        with pytest.raises(OSError, match=r".+"):
            await server.start()
    async with serving(engine, addresses=[unix]) as running:
        peer = await Http2Peer.connect(running.address)
        assert await peer.ask(ECHO, b"x") == b"x"
        peer.close()


async def test_workers_may_share_a_port(engine: str) -> None:
    """With reuse_port two servers listen on the same address."""
    build = ENGINES[engine]
    methods = Running().methods()
    first = build(methods, [LOOPBACK], on_error=lambda *_: None, reuse_port=True)
    (address,) = await first.start()
    second = build(methods, [address], on_error=lambda *_: None, reuse_port=True)
    assert await second.start() == (address,)
    await first.drain(0)
    peer = await Http2Peer.connect(address)
    assert await peer.ask(ECHO, b"x") == b"x"
    peer.close()
    await second.drain(0)


async def test_a_worker_serves_on_an_inherited_unix_socket(tmp_path: Path) -> None:
    """http2 only: the parent's listener is used, and its file stays when the worker goes."""
    address = UnixAddress(str(tmp_path / "s"))
    with unix_listener(address) as parent:
        parent.listen()
        fds = {address.path: parent.fileno()}
        server = Http2Server(Running().methods(), [address], on_error=lambda *_: None, unix_fds=fds)
        assert await server.start() == (address,)
        peer = await Http2Peer.connect(address)
        assert await peer.ask(ECHO, b"x") == b"x"
        peer.close()
        await server.drain(0)
        assert (tmp_path / "s").exists()
    with pytest.raises(OSError, match="cannot share"):
        GrpcioServer({}, [address], on_error=lambda *_: None, unix_fds={address.path: 3})


# TLS.


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, a server's and a client's certificate, and another CA, as PEM files."""
    folder = tmp_path_factory.mktemp("tls")
    authority, other = issue("ca"), issue("other-ca")
    authority.write(folder / "ca.pem")
    for name, issuer in (("server", authority), ("client", authority), ("stranger", other)):
        issued = issue(name, issuer, [x509.DNSName("localhost")])
        issued.write(folder / f"{name}.pem", folder / f"{name}.key")
    return folder


def tls_files(certificates: Path, *, client_ca: bool = False) -> TlsFiles:
    ca = str(certificates / "ca.pem") if client_ca else None
    return TlsFiles(certificate=str(certificates / "server.pem"), key=str(certificates / "server.key"), client_ca=ca)


def client_context(certificates: Path, name: str | None = None, protocols: tuple[str, ...] = ("h2",)) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    if protocols:
        context.set_alpn_protocols(list(protocols))
    if name is not None:
        context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    return context


async def test_tls_with_alpn(engine: str, certificates: Path) -> None:
    """h2 is negotiated, calls work, large ones too."""
    async with serving(engine, tls=tls_files(certificates)) as running:
        peer = await Http2Peer.connect(running.address, tls=client_context(certificates))
        assert peer.transport.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        assert await peer.ask(ECHO, b"x" * 1_000_000) == b"x" * 1_000_000
        peer.close()


@pytest.mark.parametrize("protocols", [(), ("http/1.1",)])
async def test_without_alpn_h2_a_tls_connection_is_closed(
    engine: str, certificates: Path, protocols: tuple[str, ...]
) -> None:
    """HTTP/2 is never assumed over TLS (RFC 9113 section 3.2)."""
    async with serving(engine, tls=tls_files(certificates)) as running:
        try:
            peer = await Http2Peer.connect(running.address, tls=client_context(certificates, protocols=protocols))
        except (ssl.SSLError, ConnectionError):
            return
        await peer.until_lost()
        assert not peer.remote_settings


async def test_mutual_tls_admits_known_clients_only(engine: str, certificates: Path) -> None:
    """A certificate of our CA passes; none, or a stranger's, does not."""
    async with serving(engine, tls=tls_files(certificates, client_ca=True)) as running:
        peer = await Http2Peer.connect(running.address, tls=client_context(certificates, "client"))
        assert await peer.ask(ECHO, b"x") == b"x"
        peer.close()
        for name in (None, "stranger"):
            try:
                refused = await Http2Peer.connect(running.address, tls=client_context(certificates, name))
            except (ssl.SSLError, ConnectionError):
                continue
            await refused.until_lost()
            assert not refused.remote_settings


@pytest.mark.parametrize(
    ("named", "wanted", "admitted"),
    [
        ("envoy.internal", "Envoy.internal", True),
        ("*.internal", "envoy.internal", True),
        ("envoy.internal", "other.internal", False),
        ("*.internal", "a.envoy.internal", False),
        ("*.internal", "internal", False),
    ],
)
async def test_a_clients_name_may_be_asked_for(tmp_path: Path, named: str, wanted: str, admitted: bool) -> None:
    """A certificate of our CA passes where it names the host, by itself or by a wildcard for one label; else none."""
    authority = issue("ca")
    authority.write(tmp_path / "ca.pem")
    for name, host in (("server", "localhost"), ("client", named)):
        issue(name, authority, [x509.DNSName(host)]).write(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
    tls = dataclasses.replace(tls_files(tmp_path, client_ca=True), client_name=wanted)
    async with serving("http2", tls=tls) as running:
        peer = await Http2Peer.connect(running.address, tls=client_context(tmp_path, "client"))
        if admitted:
            assert await peer.ask(ECHO, b"x") == b"x"
            peer.close()
        else:
            await peer.until_lost()
            assert not peer.remote_settings


async def test_a_renewed_certificate_is_served_to_new_connections(tmp_path: Path) -> None:
    """After a renewal new connections see the new certificate; a key that does not fit changes nothing."""
    authority = issue("ca")
    authority.write(tmp_path / "ca.pem")

    def renew() -> int:
        issued = issue("server", authority, [x509.DNSName("localhost")])
        issued.write(tmp_path / "server.pem", tmp_path / "server.key")
        return issued.certificate.serial_number

    async def served(running: Running) -> int:
        peer = await Http2Peer.connect(running.address, tls=client_context(tmp_path))
        assert await peer.ask(ECHO, b"x") == b"x"
        shown = peer.transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        peer.close()
        return x509.load_der_x509_certificate(shown).serial_number

    first = renew()
    async with serving("http2", tls=tls_files(tmp_path)) as running:
        assert isinstance(running.server, Http2Server)
        assert await served(running) == first
        second = renew()
        running.server.renew_certificate()
        assert await served(running) == second
        issue("other", authority, [x509.DNSName("localhost")]).write(tmp_path / "server.pem")
        with pytest.raises(ssl.SSLError):
            running.server.renew_certificate()
        assert await served(running) == second


async def test_tls_over_grpcio_clients(engine: str, certificates: Path) -> None:
    """The standard client, with mTLS."""
    read = {name: (certificates / name).read_bytes() for name in ("ca.pem", "client.pem", "client.key")}
    credentials = grpc.ssl_channel_credentials(read["ca.pem"], read["client.key"], read["client.pem"])
    async with serving(engine, tls=tls_files(certificates, client_ca=True)) as running:
        assert isinstance(running.address, TcpAddress)
        async with grpc.aio.secure_channel(f"localhost:{running.address.port}", credentials) as channel:
            assert await channel.unary_unary(ECHO)(b"x") == b"x"


async def test_tls_files_that_cannot_be_used_fail_the_start(engine: str, tmp_path: Path) -> None:
    """OSError, before anything listens."""
    missing = TlsFiles(certificate=str(tmp_path / "no"), key=str(tmp_path / "no"))
    server = ENGINES[engine]({}, [LOOPBACK], tls=missing, on_error=lambda *_: None)
    with pytest.raises(OSError, match="No such file"):
        await server.start()


# Drain.


async def test_drain_lets_calls_in_flight_finish(engine: str) -> None:
    """GOAWAY, no new connections, the held call is answered, then the connection closes and drain returns."""
    async with serving(engine) as running:
        peer, idle = await Http2Peer.connect(running.address), await Http2Peer.connect(running.address)
        await idle.ask(ECHO, b"x")
        stream = await hold(running, peer)
        draining = asyncio.ensure_future(running.server.drain(10))
        await peer.until(lambda: peer.goaways, "GOAWAY")
        await idle.until_lost()
        assert not draining.done()
        await until_refused(running.address)
        running.held[0][1].respond(b"in time")
        assert (await peer.answer(stream)).messages == [b"in time"]
        await peer.until_lost()
        await draining
        assert (running.server.calls_in_flight, running.server.connections) == (0, 0)


async def test_drain_accepts_what_was_on_its_way_before_the_final_goaway() -> None:
    """http2 only: between the shutdown notice and the final GOAWAY a call is still served (RFC 9113 section 6.8)."""
    async with serving("http2") as running:
        peer = await RawPeer.connect(running.address)
        await eventually(lambda: running.server.connections == 1)
        connection = next(iter(running.server._connections))
        await eventually(lambda: connection._established)
        draining = asyncio.ensure_future(running.server.drain(10))
        await eventually(lambda: connection._draining)
        peer.write(raw_request(ECHO, 1, b"racing"))
        await eventually(lambda: running.handled == [b"racing"])
        peer.write(raw_frame(PING, 1, 0, b"draining"))
        frames = await peer.frames_until_closed()
        await draining
    goaways = [payload for kind, _, _, payload in frames if kind == GOAWAY]
    assert [int.from_bytes(payload[:4], "big") for payload in goaways] == [2**31 - 1, 1]


async def test_what_is_not_finished_after_the_grace_is_refused(engine: str) -> None:
    """The hook's answer still arrives, then drain returns."""
    async with serving(engine) as running:
        peer = await Http2Peer.connect(running.address)
        stream = await hold(running, peer)
        await running.server.drain(0.05)
        assert running.held[0][1].cancelled
        assert (await peer.answer(stream)).messages == [b"refused: shutting_down"]
        await peer.until_lost()
        assert running.server.calls_in_flight == 0


async def test_drain_ends_streams_at_once(engine: str) -> None:
    """They have no natural end to wait for: UNAVAILABLE, long before the grace is over."""
    async with serving(engine) as running:
        peer = await Http2Peer.connect(running.address)
        stream = peer.begin(CHAT)
        peer.send(stream, message_frame(b"hi"))
        await eventually(lambda: running.chatters and running.chatters[0].heard)
        draining = asyncio.ensure_future(running.server.drain(60))
        assert (await peer.answer(stream)).grpc_status == Status.UNAVAILABLE
        await draining
        assert running.chatters[0].closes == 1


async def test_drain_of_a_peer_that_does_not_listen_ends_with_the_grace() -> None:
    """http2 only: neither acknowledgement nor reading is needed."""
    async with serving("http2") as running:
        peer = await RawPeer.connect(running.address)
        silent = await RawPeer.connect(running.address, greet=False)
        await eventually(lambda: running.server.connections == 2)
        async with asyncio.timeout(10):
            await running.server.drain(0.05)
        assert running.server.connections == 0
        peer.close()
        silent.close()


# Age, keepalive, handshake, number.


async def test_a_connection_of_age_is_drained(engine: str) -> None:
    """GOAWAY; a call in flight finishes; then the connection closes."""
    limits = ServerLimits(max_connection_age_s=0.1)
    async with serving(engine, limits) as running:
        peer = await Http2Peer.connect(running.address)
        stream = await hold(running, peer)
        await peer.until(lambda: peer.goaways, "GOAWAY")
        running.held[0][1].respond(b"in time")
        assert (await peer.answer(stream)).messages == [b"in time"]
        await peer.until_lost()
        fresh = await Http2Peer.connect(running.address)
        assert await fresh.ask(ECHO, b"x") == b"x"
        fresh.close()


async def test_an_aged_connection_is_closed_when_its_grace_is_over() -> None:
    """http2 only: what is still waiting is refused (grpcio resets it)."""
    limits = ServerLimits(max_connection_age_s=0.05, max_connection_age_grace_s=0.05)
    async with serving("http2", limits) as running:
        peer = await Http2Peer.connect(running.address)
        stream = await hold(running, peer)
        assert (await peer.answer(stream)).messages == [b"refused: shutting_down"]
        await peer.until_lost()


async def test_ages_are_jittered() -> None:
    """http2 only: connections made together do not all go together; within ten percent."""
    async with serving("http2", ServerLimits(max_connection_age_s=1000)) as running:
        peers = [await Http2Peer.connect(running.address) for _ in range(20)]
        await eventually(lambda: running.server.connections == 20)
        now = asyncio.get_running_loop().time()
        ages = [connection._clock.drain_at - now for connection in running.server._connections]
        assert max(ages) - min(ages) > 10
        assert 890 < min(ages) < max(ages) < 1110
        for peer in peers:
            peer.close()


async def test_idle_connections_are_probed_and_answering_ones_kept() -> None:
    """http2 only (grpcio enforces a minimum of its own): a PING each time the peer was quiet for too long."""
    async with serving("http2", ServerLimits(keepalive_idle_s=0.02)) as running:
        peer = await Http2Peer.connect(running.address)
        await peer.until(lambda: peer.pings >= 3, "three probes")
        assert await peer.ask(ECHO, b"x") == b"x"
        peer.close()


async def test_a_dead_peer_is_dropped() -> None:
    """http2 only: no answer to the probe in time."""
    async with serving("http2", ServerLimits(keepalive_idle_s=0.02, keepalive_timeout_s=0.05)) as running:
        peer = await RawPeer.connect(running.address)
        frames = await peer.frames_until_closed()
        assert [kind for kind, flags, _, _ in frames if kind == PING and not flags] == [PING]
        await eventually(lambda: running.server.connections == 0)


@pytest.mark.parametrize("beginning", [b"", b"PRI * HTTP/2.0\r\n"], ids=["nothing", "half a preface"])
async def test_a_connection_without_a_preface_is_closed(engine: str, beginning: bytes) -> None:
    """After handshake_timeout_s."""
    async with serving(engine, ServerLimits(handshake_timeout_s=0.05)) as running:
        peer = await RawPeer.connect(running.address, greet=False)
        peer.write(beginning)
        await peer.frames_until_closed()
        await eventually(lambda: running.server.connections == 0)


async def test_settings_tell_the_limits(engine: str) -> None:
    """MAX_CONCURRENT_STREAMS and MAX_HEADER_LIST_SIZE as configured."""
    limits = ServerLimits(concurrent_streams_max=77, header_list_bytes_max=12_345)
    async with serving(engine, limits) as running:
        peer = await Http2Peer.connect(running.address)
        await peer.ask(ECHO, b"x")
        assert (peer.remote_settings[3], peer.remote_settings[6]) == (77, 12_345)
        peer.close()


async def test_connections_are_bounded() -> None:
    """http2 only: N are served, N+1 is closed, and there is room again when one goes."""
    async with serving("http2", ServerLimits(connections_max=2)) as running:
        peers = [await Http2Peer.connect(running.address) for _ in range(2)]
        for peer in peers:
            assert await peer.ask(ECHO, b"x") == b"x"
        surplus = await Http2Peer.connect(running.address)
        await surplus.until_lost()
        peers[0].close()
        await eventually(lambda: running.server.connections == 1)
        again = await Http2Peer.connect(running.address)
        assert await again.ask(ECHO, b"x") == b"x"
        again.close()
        peers[1].close()


async def test_concurrent_streams_are_bounded() -> None:
    """http2 only: N are served; the N+1st of a peer that ignores the setting is not."""
    async with serving("http2", ServerLimits(concurrent_streams_max=2)) as running:
        peer = await RawPeer.connect(running.address)
        peer.write(raw_frame(SETTINGS, 1, 0))
        for stream in (1, 3):
            peer.write(raw_request(HELD, stream, b"x"))
        await eventually(lambda: len(running.held) == 2)
        peer.write(raw_request(HELD, 5, b"x"))
        assert await peer.goaway_code() is not None
        assert len(running.held) == 2


async def test_the_default_limits_are_used_where_none_are_given() -> None:
    """A server can be built from a service and addresses alone."""
    server = Http2Server({}, [LOOPBACK], on_error=lambda *_: None)
    assert server.limits == ServerLimits()
    await server.start()
    await server.drain(0)
