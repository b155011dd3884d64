"""What only HTTP/2 lets through an Envoy: methods in any spelling, and bytes of a path that are no text."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import ngh2
import pytest

if TYPE_CHECKING:
    from tests.support.gateway import Gateway, Lab

PATIENCE_S = 10.0


def status_over_http2(gateway: Gateway, listener: str, method: bytes, path: bytes) -> int:
    """The status of one request over HTTP/2 with prior knowledge."""
    connection = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration())
    connection.initiate_connection({})
    pseudo = [(b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", b"shop.example")]
    connection.send_request(pseudo, end_stream=True)
    with socket.create_connection(("127.0.0.1", gateway.envoy.ports[listener]), PATIENCE_S) as sock:
        while True:
            sock.sendall(connection.data_to_send())
            data = sock.recv(65536)
            assert data, "the connection was closed without a response"
            connection.receive_data(data)
            for event in connection.events():
                if isinstance(event, ngh2.ResponseReceived):
                    return int(dict(event.headers)[b":status"])


def open_below_closed(document: dict[str, Any]) -> None:
    """A path on which only some methods need a credential."""
    document["rules"] += [
        {"name": "any", "match": {"path": {"prefix": "/open"}}, "anonymous": True},
        {
            "name": "writes",
            "match": {"path": {"prefix": "/open"}, "methods": ["POST", "DELETE"]},
            "authenticate": {"issuers": ["demo"]},
        },
    ]


@pytest.mark.parametrize("listener", ["bare-open", "raw-open", "closed"])
def test_a_method_in_other_letters_reaches_no_weaker_rule(lab: Lab, listener: str) -> None:
    """`post` is no POST to the rules, but to frameworks that put methods into capitals: it is refused, not allowed."""
    gateway = lab.gateway(lab.sidecar(open_below_closed))
    asked = (b"GET", b"PURGE", b"POST", b"post", b"Delete")
    assert [status_over_http2(gateway, listener, method, b"/open") for method in asked] == [200, 200, 401, 400, 400]


@pytest.mark.parametrize("listener", ["raw-open", "closed"])
def test_a_path_with_bytes_that_are_no_text_is_refused(gateway: Gateway, listener: str) -> None:
    """Envoy shows each such byte as `!`, and the upstream would get the byte; a real `!` is a character like others."""
    assert status_over_http2(gateway, listener, b"GET", b"/public/\xc0\xae\xc0\xae/orders") == 400
    assert status_over_http2(gateway, listener, b"GET", b"/public/\xff") == 400
    assert status_over_http2(gateway, listener, b"GET", b"/public/wow!") == 200
