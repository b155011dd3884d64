"""The admin listener, over real sockets."""

import asyncio
import json
import socket
from collections.abc import Mapping

import pytest

from sidecar.edges.admin import (
    HEADER_BYTES_MAX,
    AdminServer,
    Answer,
    Component,
    PostRoute,
    json_route,
    live_route,
    ready_route,
)
from sidecar.transport.service import TcpAddress, UnixAddress

LOOPBACK = TcpAddress("127.0.0.1", 0)


async def _broken(_headers):
    raise RuntimeError("a secret detail")


def _server(components=None, **options):
    components = {"policy": Component(True, {})} if components is None else components
    routes = {
        "/livez": live_route(),
        "/readyz": ready_route(lambda: components),
        "/policy": json_route(lambda: {"generation": 3}),
        "/broken": _broken,
    }
    return AdminServer(routes, **options)


async def _exchange(address, raw: bytes, *, close_ours: bool = True) -> bytes:
    if isinstance(address, UnixAddress):
        reader, writer = await asyncio.open_unix_connection(address.path)
    else:
        reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(raw)
    if close_ours:
        writer.write_eof()
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    return answer


async def _get(address, target: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    raw = await _exchange(address, f"{method} {target} HTTP/1.1\r\nHost: admin\r\n\r\n".encode())
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


@pytest.fixture
async def address():
    server = _server()
    yield await server.start(LOOPBACK)
    await server.close()


async def test_answers_its_routes(address):
    """Each route is answered with its document as JSON."""
    status, _, body = await _get(address, "/livez")
    assert (status, body) == (200, b'{"live":true}\n')
    status, headers, body = await _get(address, "/policy?pretty=1")
    assert (status, json.loads(body)) == (200, {"generation": 3})
    assert headers["content-type"] == "application/json"
    assert headers["cache-control"] == "no-store"


async def test_head_has_the_headers_and_no_body(address):
    """HEAD tells the length and sends nothing."""
    status, headers, body = await _get(address, "/livez", "HEAD")
    assert (status, headers["content-length"], body) == (200, "14", b"")


async def test_unknown_path_and_method(address):
    """An unknown path is 404, a method other than GET and HEAD 405 with Allow."""
    assert (await _get(address, "/nothing"))[0] == 404
    status, headers, _ = await _get(address, "/livez", "POST")
    assert (status, headers["allow"], headers["connection"]) == (405, "get, head", "close")


async def test_a_failing_route_shows_nothing(address):
    """What went wrong inside a route is not told on the wire."""
    status, _, body = await _get(address, "/broken")
    assert (status, json.loads(body)) == (500, {"error": "internal error"})


async def test_connection_is_kept_for_a_second_request(address):
    """Two requests of one connection are both answered."""
    request = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
    assert (await _exchange(address, request + request)).count(b'{"live":true}') == 2


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b""),
        (b"GET /livez\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", b"413"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"404"),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nX: " + b"x" * HEADER_BYTES_MAX * 2 + b"\r\n\r\n", b"431"),
        (b"", b""),
    ],
)
async def test_garbage_is_refused_and_hurts_nobody(address, raw, status):
    """Malformed requests get a 4xx or a closed connection, and the next caller is served."""
    answer = await _exchange(address, raw)
    assert status in answer.split(b"\r\n")[0]
    assert (await _get(address, "/livez"))[0] == 200


@pytest.mark.parametrize(
    ("components", "status"),
    [
        ({"a": Component(True, {}), "b": Component(True, {"keys": 2})}, 200),
        ({"a": Component(True, {}), "b": Component(False, {"error": "no keys"})}, 503),
        ({}, 503),
    ],
)
async def test_ready_only_when_every_component_is(components, status):
    """One component that is not ready makes 503, and so does having none; the body names each."""
    server = _server(components)
    address = await server.start(LOOPBACK)
    answered, _, body = await _get(address, "/readyz")
    await server.close()
    assert answered == status
    listed = json.loads(body)
    assert listed["ready"] is (status == 200)
    assert listed["components"] == {name: {"ready": c.ready, **c.detail} for name, c in components.items()}


async def test_connections_are_bounded():
    """The connection after the last one allowed is closed; when one goes, there is room again."""
    server = _server(connections_max=2)
    address = await server.start(LOOPBACK)
    held = [await asyncio.open_connection(address.host, address.port) for _ in range(2)]
    for _, writer in held:
        writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
    for reader, _ in held:
        await reader.readuntil(b"}\n")
    assert not await _served(address)
    held.pop()[1].close()
    async with asyncio.timeout(5):
        while not await _served(address):
            pass
    held.pop()[1].close()
    await server.close()


async def _served(address) -> bool:
    try:
        return b"200 OK" in await _exchange(address, b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
    except OSError:
        return False


async def test_a_silent_connection_is_closed():
    """A peer that sends half a request and waits does not hold its connection."""
    server = _server(timeout_s=0.05)
    address = await server.start(LOOPBACK)
    assert await _exchange(address, b"GET /livez HT", close_ours=False) == b""
    await server.close()


async def test_close_drops_idle_connections():
    """Closing does not wait for a peer that keeps its connection."""
    server = _server()
    address = await server.start(LOOPBACK)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
    await reader.readuntil(b"}\n")
    async with asyncio.timeout(5):
        await server.close()
        assert await reader.read() == b""
    writer.close()


async def test_unix_socket_is_private_and_replaces_a_stale_one(tmp_path):
    """A Unix address works for this user only; a left-over socket file is replaced, a live one and a file are not."""
    path = tmp_path / "admin.sock"
    address = UnixAddress(str(path))
    first = _server()
    await first.start(address)
    assert path.stat().st_mode & 0o777 == 0o600
    assert (await _get(address, "/livez"))[0] == 200
    with pytest.raises(OSError, match="another process"):
        await _server().start(address)
    await first.close()
    assert not path.exists()

    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(address.path)
    second = _server()
    await second.start(address)
    assert (await _get(address, "/livez"))[0] == 200
    await second.close()

    path.write_text("precious")
    with pytest.raises(OSError, match="not a socket"):
        await _server().start(address)
    assert path.read_text() == "precious"


async def _doubled(body: bytes, _headers: Mapping[str, str]) -> Answer:
    return Answer(200, body + body, "text/plain")


@pytest.fixture
async def taking():
    """A server with a route that takes up to 8 bytes."""
    server = AdminServer({"/double": PostRoute(_doubled, 8), "/livez": live_route()})
    yield await server.start(LOOPBACK)
    await server.close()


def _post(target: str, body: bytes, *fields: str) -> bytes:
    head = "\r\n".join([f"POST {target} HTTP/1.1", "Host: admin", f"Content-Length: {len(body)}", *fields, "", ""])
    return head.encode() + body


async def test_a_route_may_take_a_body_of_bounded_size(taking):
    """A body up to the bound is handed over, on one connection after another request; one byte more is 413."""
    answers = await _exchange(taking, _post("/double", b"12345678") + _post("/double", b""))
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert b"1234567812345678" in answers
    assert b" 413 " in await _exchange(taking, _post("/double", b"123456789"))


async def test_a_body_comes_in_chunks_and_after_a_go_ahead(taking):
    """Transfer-Encoding: chunked is put together, and who expects 100-continue is told to go on."""
    chunked = b"POST /double HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    assert (await _exchange(taking, chunked)).endswith(b"abcabc")
    reader, writer = await asyncio.open_connection(taking.host, taking.port)
    head, _, body = _post("/double", b"abc", "Expect: 100-continue").partition(b"\r\n\r\n")
    writer.write(head + b"\r\n\r\n")
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 100")
        writer.write(body)
        writer.write_eof()
        assert (await reader.read()).endswith(b"abcabc")
    writer.close()


async def test_methods_are_those_of_the_route(taking):
    """Where a body is taken, POST alone is accepted; elsewhere a body is not read."""
    status, headers, _ = await _get(taking, "/double")
    assert (status, headers["allow"]) == (405, "post")
    status, headers, _ = await _get(taking, "/livez", "POST")
    assert (status, headers["allow"]) == (405, "get, head")
