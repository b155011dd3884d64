"""Client certificates and bound tokens through a real Envoy that ends mutual TLS."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Iterator
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sidecar.demo.envoy import Envoy, Listener, bootstrap
from tests.support.certificates import Issued, issue
from tests.support.gateway import Lab, binary
from tests.support.proofs import jkt, proof
from tests.support.tokens import b64, jwks, make_key

if TYPE_CHECKING:
    from pathlib import Path

    from sidecar.demo.httpd import HttpServer

ID = "spiffe://prod.example.com/ns/shop/sa/cart"
KEY = make_key("ES256", "bound")
ISSUER = "https://bound.example"
LOOPBACK = "127.0.0.1"


def open_bound(directory: Path) -> Any:
    """Rules for bound tokens and for certificates, from either place."""

    def change(document: dict[str, Any]) -> None:
        (directory / "bound.json").write_bytes(jwks(KEY))
        document["issuers"]["bound"] = {
            "issuer": ISSUER,
            "audiences": ["orders-api"],
            "algorithms": ["ES256"],
            "keys": {"jwks_file": str(directory / "bound.json")},
            "client_certificates": "peer",
        }
        document["dpop"] = {}
        document["certificates"] = {
            name: {"source": source, "trust_domains": ["prod.example.com"]}
            for name, source in (("peer", "peer_certificate"), ("header", "xfcc"), ("principal", "peer_principal"))
        }
        document["rules"] += [
            {"name": "bound", "match": {"path": {"exact": "/bound"}}, "authenticate": {"issuers": ["bound"]}},
            *(
                {
                    "name": name,
                    "match": {"path": {"exact": f"/{name}"}},
                    "authenticate": {"any_of": [{"certificate": {"trust": name}}]},
                }
                for name in document["certificates"]
            ),
        ]

    return change


def mutual(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The same configuration, behind mutual TLS, with the certificate passed on in every way."""
    [listener] = config["static_resources"]["listeners"]
    [chain] = listener["filter_chains"]
    manager = chain["filters"][0]["typed_config"]
    manager["forward_client_cert_details"] = "SANITIZE_SET"
    manager["set_current_client_cert_details"] = {"uri": True, "subject": True, "cert": True, "dns": True}
    manager["http_filters"][0]["typed_config"]["include_peer_certificate"] = True
    chain["transport_socket"] = {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": True,
            "common_tls_context": {
                "tls_certificates": [
                    {
                        "certificate_chain": {"filename": str(directory / "server.pem")},
                        "private_key": {"filename": str(directory / "server.key")},
                    }
                ],
                "validation_context": {"trusted_ca": {"filename": str(directory / "ca.pem")}},
            },
        },
    }
    return config


class MutualTls:
    """An Envoy that asks for certificates, and clients that have them."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port

    @property
    def origin(self) -> str:
        return f"https://{LOOPBACK}:{self.port}"

    def get(self, path: str, client: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
        context = ssl.create_default_context(cafile=str(self.directory / "ca.pem"))
        context.check_hostname = False
        context.load_cert_chain(self.directory / f"{client}.pem", self.directory / f"{client}.key")
        connection = http.client.HTTPSConnection(LOOPBACK, self.port, context=context, timeout=10)
        connection.request("GET", path, headers=headers or {})
        response = connection.getresponse()
        body = json.loads(response.read())
        connection.close()
        return response.status, body


CART = "cart"


@pytest.fixture
def clients(tmp_path: Path) -> dict[str, Issued]:
    """An authority, a server and three clients, as files."""
    authority = issue("authority")
    authority.write(tmp_path / "ca.pem")
    names = {
        "server": x509.DNSName("api.example.com"),
        CART: x509.UniformResourceIdentifier(ID),
        "foreign": x509.UniformResourceIdentifier("spiffe://test.example.com/ns/shop/sa/cart"),
        "sly": x509.UniformResourceIdentifier("spiffe://test.example.com/a,URI=" + ID),
    }
    issued = {name: issue(name, authority, [general]) for name, general in names.items()}
    for name, each in issued.items():
        each.write(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
    return issued


@pytest.fixture
def tls(
    lab: Lab, upstream: HttpServer, tmp_path: Path, clients: dict[str, Issued], envoy_version: str
) -> Iterator[MutualTls]:
    del clients
    sidecar = lab.sidecar(open_bound(tmp_path))
    config = bootstrap([Listener(name="tls")], sidecar.socket, upstream.port)
    envoy = Envoy(mutual(config, tmp_path), tmp_path / "tls-envoy", binary(envoy_version))
    yield MutualTls(tmp_path, envoy.ports["tls"])
    envoy.stop()


def token(**claims: Any) -> str:
    now_s = int(time.time())
    return KEY.token(iss=ISSUER, exp=now_s + 600, iat=now_s, **claims)


def test_certificates_as_envoy_passes_them_on(tls: MutualTls, clients: dict[str, Issued]) -> None:
    """By attribute, header and principal: the workload passes, others and forged headers do not; bound tokens hold."""
    forged = {"x-forwarded-client-cert": f"URI={ID}"}
    for path in ("/peer", "/header", "/principal"):
        status, seen = tls.get(path, CART, forged)
        assert (status, seen["headers"]["x-user-id"]) == (200, ID), path
        assert tls.get(path, "foreign", forged)[0] == 401, path
        assert tls.get(path, "sly", forged)[0] == 401, path
    digest = b64(sha256(clients[CART].certificate.public_bytes(Encoding.DER)).digest())
    bound = token(cnf={"x5t#S256": digest})
    assert tls.get("/bound", CART, {"authorization": f"Bearer {bound}"})[0] == 200
    assert tls.get("/bound", "foreign", {"authorization": f"Bearer {bound}"})[0] == 401
    keyed = token(cnf={"jkt": jkt(), "x5t#S256": digest})
    shown = proof(keyed, now_s=time.time(), url=f"{tls.origin}/bound")
    request = {"authorization": f"DPoP {keyed}", "dpop": shown}
    assert tls.get("/bound", "foreign", request)[0] == 401
    status, seen = tls.get("/bound", CART, request)
    assert status == 200
    assert not {"dpop", "authorization"} & seen["headers"].keys()
    assert tls.get("/bound", CART, request)[0] == 401
