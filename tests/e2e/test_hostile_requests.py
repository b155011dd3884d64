"""What a client may try, through Envoys that filter nothing and let requests pass on every error of ours."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import grpc
import ngh2
import pytest

if TYPE_CHECKING:
    from sidecar.demo.issuer import DemoIssuer
    from tests.support.gateway import Gateway

BARE = ("bare-closed", "bare-open", "raw-open")
OVER_MESSAGE_LIMIT_BYTES = 5 * 1024 * 1024
"""More than `server.limits.message_bytes_max` (4 MiB)."""


@pytest.mark.parametrize("listener", BARE)
def test_two_credentials_are_refused(gateway: Gateway, issuer: DemoIssuer, listener: str) -> None:
    """Two Authorization headers, merged by Envoy or raw, are one request too ambiguous to allow: even two good ones."""
    good = f"Bearer {issuer.token()}"
    for first, second in ((good, good), (good, "Bearer x"), ("Basic eDp5", good)):
        reply = gateway.get(listener, "/orders/1", headers=[("authorization", first), ("authorization", second)])
        assert reply.status == 400
        assert reply.header("content-type") == "application/problem+json"


@pytest.mark.parametrize("listener", BARE)
def test_forged_identity_never_reaches_the_upstream(gateway: Gateway, issuer: DemoIssuer, listener: str) -> None:
    """Identity headers, however spelled and repeated, are the sidecar's or nobody's."""
    forged = [
        ("x-user-id", "admin"),
        ("X-User-Id", "root"),
        ("x_user_id", "admin"),
        ("x-user_id", "admin"),
        ("X_USER_SCOPES", "everything"),
        ("x-user-scopes", ""),
        ("x-envoy-auth-failure-mode-allowed", "true"),
    ]
    for target, token, expected in (
        ("/orders/1", issuer.token(), {"x-user-id": "alice", "x-user-scopes": "orders:read"}),
        ("/orders/1", issuer.token({"scope": "orders:read", "sub": "bob"}), {"x-user-id": "bob"}),
        ("/reports/no-scope", issuer.token({"sub": f"{listener}{gateway.version}", "scope": None}), {}),
        ("/public/page", "", {}),
    ):
        reply = gateway.get(listener, target, token, forged)
        assert reply.status == 200
        seen = reply.json()["headers"]
        told = {name: value for name, value in seen.items() if name.replace("_", "-").startswith("x-user")}
        assert "admin" not in str(told)
        assert "root" not in str(told)
        assert "everything" not in str(told)
        assert expected.items() <= told.items()
        assert "x-envoy-auth-failure-mode-allowed" not in seen
        assert "authorization" not in seen


@pytest.mark.parametrize("listener", BARE)
@pytest.mark.parametrize(
    "target",
    [
        "//orders/1",
        "/public/../orders/1",
        "/public/./x",
        "/public/%2e%2e/orders/1",
        "/public/..%2forders/1",
        "/public/..%5corders/1",
        "/public/..%252forders/1",
        "/public/..;/orders/1",
        "/public\\..\\orders",
        "/public/a%0ab",
    ],
)
def test_ambiguous_paths_are_refused(gateway: Gateway, listener: str, target: str) -> None:
    """A path that an upstream may read otherwise is a 400, also below a prefix that is open to everybody."""
    assert gateway.get(listener, target).status == 400


@pytest.mark.parametrize("listener", BARE)
def test_bytes_that_are_not_text(gateway: Gateway, issuer: DemoIssuer, listener: str) -> None:
    """Bytes that are no UTF-8 decide nothing where they do not matter, and are refused in a credential."""
    junk = b"\xff\xfe\x80"
    reply = gateway.get(listener, "/orders/1", issuer.token(), [("x-note", junk)])
    assert reply.status == 200
    assert reply.json()["headers"]["x-user-id"] == "alice"
    for credential in (b"Bearer " + junk, junk, b"Bearer " + issuer.token().encode() + junk):
        assert gateway.get(listener, "/orders/1", headers=[("authorization", credential)]).status in {400, 401}


def http2_status(port: int, path: bytes) -> int:
    """The status of a GET over HTTP/2, whose paths may hold any byte."""
    client = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration())
    client.initiate_connection({})
    client.send_request(
        [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"test"), (b":path", path)], end_stream=True
    )
    with socket.create_connection(("127.0.0.1", port), 10.0) as connection:
        while True:
            connection.sendall(client.data_to_send())
            data = connection.recv(65536)
            assert data, "the connection was lost"
            client.receive_data(data)
            for event in client.events():
                if isinstance(event, ngh2.ResponseReceived):
                    return int(dict(event.headers)[b":status"])


@pytest.mark.parametrize("listener", ["closed", "open", "raw-open"])
def test_a_path_that_is_not_text(gateway: Gateway, listener: str) -> None:
    """A path with bytes that are no UTF-8, which Envoy shows as "!", is refused where the sidecar can know of it."""
    port = gateway.envoy.ports[listener]
    assert http2_status(port, b"/public/page") == 200
    for path in (b"/public/\xff", b"/public/\xc3\x28", b"/public/a!\xfe"):
        assert http2_status(port, path) == 400


@pytest.mark.parametrize("listener", ["body-open", "text-body-open"])
def test_a_check_that_is_too_large_is_denied(gateway: Gateway, issuer: DemoIssuer, listener: str) -> None:
    """Over the message limit the answer is a denial, since Envoy would let the request pass on RESOURCE_EXHAUSTED."""
    headers = [("authorization", f"Bearer {issuer.token()}")]
    with gateway.client(listener) as client:
        assert client.request("POST", "/upload", headers, b"x" * 100_000).status == 200
        reply = client.request("POST", "/upload", headers, b"x" * OVER_MESSAGE_LIMIT_BYTES)
    assert reply.status == 413
    assert reply.json()["type"].endswith("request_too_large")


@pytest.mark.parametrize("listener", ["body-open", "text-body-open"])
def test_a_body_that_is_not_text_opens_nothing(gateway: Gateway, issuer: DemoIssuer, listener: str) -> None:
    """Bytes in the Check's body, also as text that is no UTF-8, neither break the decision nor turn into an allow."""
    body = b"\xff\xfe\x00\x80" * 64
    with gateway.client(listener) as client:
        assert client.request("POST", "/upload", (), body).status in {400, 401}
        denied = client.request("POST", "/upload", [("authorization", "Bearer x.y.z")], body)
        assert denied.status in {400, 401}


def test_many_and_large_headers_are_decided(gateway: Gateway, issuer: DemoIssuer) -> None:
    """As many headers and bytes as Envoy itself accepts (100, 60 KiB) are decided like any others."""
    headers = [(f"x-padding-{number}", "p" * 600) for number in range(80)]
    assert gateway.get("open", "/orders/1", issuer.token(), headers).status == 200
    assert gateway.get("open", "/orders/1", "", headers).status == 401


@pytest.mark.parametrize("listener", ["closed", "open"])
def test_grpc_callers_get_a_grpc_status(gateway: Gateway, issuer: DemoIssuer, listener: str) -> None:
    """A denied gRPC call ends with a gRPC status that tells why, not with an HTTP status in a gRPC client's face."""
    cases = (
        ("/orders.v1.Orders/Get", "", grpc.StatusCode.UNAUTHENTICATED),
        ("/orders.v1.Orders/Get", issuer.token(expires_in_s=-300), grpc.StatusCode.UNAUTHENTICATED),
        ("/orders.v1.Orders/Drop", issuer.token(), grpc.StatusCode.PERMISSION_DENIED),
    )
    with grpc.insecure_channel(f"127.0.0.1:{gateway.envoy.ports[listener]}") as channel:
        for path, token, expected in cases:
            call = channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
            metadata = [("authorization", f"Bearer {token}")] if token else []
            with pytest.raises(grpc.RpcError) as raised:
                call(b"", metadata=metadata, timeout=10)
            assert raised.value.code() is expected
            assert "{" not in raised.value.details()
