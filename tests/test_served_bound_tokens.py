"""Bound tokens and client certificates, as two serving sidecars on one Valkey decide about them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sidecar.envoy.pb.ext_authz_pb2 import CheckRequest, CheckResponse
from tests.support.certificates import Issued, issue
from tests.support.confiding import Confidant
from tests.support.deciding import KEY, token
from tests.support.proofs import jkt, proof
from tests.support.tokens import AUDIENCE, ISSUER, b64, jwks
from tests.support.valkey import ValkeyProcess, running

if TYPE_CHECKING:
    from pathlib import Path

PUBLIC = "https://public.example"
ID = "spiffe://prod.example.com/ns/shop/sa/cart"


def policy(directory: Path, valkey: ValkeyProcess) -> dict[str, Any]:
    directory.mkdir()
    (directory / "keys.json").write_bytes(jwks(KEY))
    (directory / "nonce").write_text("n" * 43)

    def rule(path: str, **authenticate: Any) -> dict[str, Any]:
        return {"name": path.strip("/"), "match": {"path": {"exact": path}}, "authenticate": authenticate}

    bound = {"token": {"issuers": ["main"], "in": {"header": "authorization", "scheme": "DPoP"}}}
    return {
        "redis": {"url": valkey.url},
        "issuers": {
            "main": {
                "issuer": ISSUER,
                "audiences": [AUDIENCE],
                "algorithms": ["ES256"],
                "keys": {"jwks_file": "keys.json"},
                "client_certificates": "mesh",
            }
        },
        "dpop": {"origin": PUBLIC, "nonce": {"key_files": ["nonce"]}},
        "certificates": {"mesh": {"source": "peer_certificate", "trust_domains": ["prod.example.com"]}},
        "upstream": {"headers": {"x-user": {"claim": "sub"}}},
        "rules": [
            rule("/orders", issuers=["main"]),
            rule("/bound", any_of=[bound]),
            rule("/workload", any_of=[{"certificate": {"trust": "mesh"}}]),
            rule("/both", all_of=[{"token": {"issuers": ["main"]}}, {"certificate": {"trust": "mesh"}}]),
        ],
    }


@dataclass
class World:
    """Two sidecars, and the store that they share."""

    first: Confidant
    second: Confidant
    valkey: ValkeyProcess


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("bound")
    with ExitStack() as stack:
        valkey = stack.enter_context(running(ValkeyProcess(directory / "valkey")))
        both = [Confidant(directory / name, policy(directory / name, valkey)) for name in ("one", "two")]
        yield World(*[stack.enter_context(each) for each in both], valkey)


@pytest.fixture(scope="module")
def workload() -> Issued:
    return issue("cart", issue("authority"), [x509.UniformResourceIdentifier(ID)])


def pem(issued: Issued) -> str:
    return quote(issued.certificate.public_bytes(Encoding.PEM).decode(), safe="")


def digest(issued: Issued) -> str:
    return b64(sha256(issued.certificate.public_bytes(Encoding.DER)).digest())


def check(path: str, authorization: str = "", dpop: str = "", certificate: str = "") -> bytes:
    request = CheckRequest()
    http = request.attributes.request.http
    http.id, http.method, http.host, http.path, http.scheme = "17", "GET", "10.0.0.7:8080", path, "http"
    request.attributes.source.address.socket_address.address = "192.0.2.7"
    request.attributes.source.certificate = certificate
    for name, value in (("authorization", authorization), ("dpop", dpop)):
        if value:
            http.headers[name] = value
    return request.SerializeToString()


def said(response: CheckResponse) -> str:
    """The reason; the empty text where it allows."""
    return "" if response.status.code == 0 else response.dynamic_metadata["reason"]


def headers(response: CheckResponse) -> dict[str, str]:
    allowed = response.status.code == 0
    options = response.ok_response.response_headers_to_add if allowed else response.denied_response.headers
    return {option.header.key: option.header.value or option.header.raw_value.decode() for option in options}


def proved(credential: str, path: str = "/orders", **changes: Any) -> str:
    return proof(credential, now_s=time.time(), url=PUBLIC + path, **changes)


def nonce_of(sidecar: Confidant) -> str:
    """Asked for as clients do."""
    credential = token(cnf={"jkt": jkt()})
    response = sidecar.ask(check("/orders", f"DPoP {credential}", proved(credential)))
    assert said(response) == "dpop_nonce_required"
    return headers(response)["dpop-nonce"]


def test_a_client_is_told_the_nonce_and_succeeds_with_it(world: World) -> None:
    """The challenge names the error and the algorithms; a nonce of one sidecar is good at the other."""
    credential = token(cnf={"jkt": jkt()})
    response = world.first.ask(check("/orders", f"DPoP {credential}", proved(credential)))
    challenge = next(
        option.header.value or option.header.raw_value.decode()
        for option in response.denied_response.headers
        if option.header.key == "www-authenticate" and "DPoP" in (option.header.value + str(option.header.raw_value))
    )
    assert 'error="use_dpop_nonce"' in challenge
    assert 'algs="' in challenge
    nonce = headers(response)["dpop-nonce"]
    passed = world.second.ask(check("/orders", f"DPoP {credential}", proved(credential, nonce=nonce)))
    assert said(passed) == ""
    assert "dpop-nonce" not in headers(passed)
    assert {"authorization", "dpop"} <= set(passed.ok_response.headers_to_remove)


def test_a_proof_is_good_once_on_all_sidecars(world: World) -> None:
    """Of forty uses of one proof at the same time, at two sidecars, exactly one passes; later ones do not."""
    credential, nonce = token(cnf={"jkt": jkt()}), nonce_of(world.first)
    message = check("/orders", f"DPoP {credential}", proved(credential, nonce=nonce))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: said((world.first, world.second)[n % 2].ask(message)), range(40)))
    assert sorted(answers) == ["", *["dpop_proof_replayed"] * 39]
    assert said(world.second.ask(message)) == "dpop_proof_replayed"


def test_what_is_kept_in_redis_ends_by_itself(world: World) -> None:
    """Each used proof is one key of a digest, which lives no longer than a proof can be accepted."""
    keys = world.valkey.ask("KEYS", "sidecar:dpop:*")
    assert keys
    for key in keys:
        assert 0 < world.valkey.ask("PTTL", key) <= 70_000
        assert len(key) == len("sidecar:dpop:") + 64


def test_a_bound_token_is_no_bearer_token(world: World) -> None:
    """Under the other scheme, without a proof, with one for another URL, method or token, or by another key."""
    credential, nonce = token(cnf={"jkt": jkt()}), nonce_of(world.first)
    free = token()

    def asked(authorization: str, dpop: str = "", path: str = "/orders") -> str:
        return said(world.first.ask(check(path, authorization, dpop)))

    assert asked(f"Bearer {credential}", proved(credential, nonce=nonce)) == "token_scheme_mismatch"
    assert asked(f"DPoP {free}", proved(free, nonce=nonce)) == "token_scheme_mismatch"
    assert asked(f"DPoP {credential}") == "dpop_proof_missing"
    assert asked(f"DPoP {credential}", proved(credential, "/bound", nonce=nonce)) == "dpop_proof_invalid"
    assert asked(f"DPoP {credential}", proved(credential, htm="POST", nonce=nonce)) == "dpop_proof_invalid"
    assert asked(f"DPoP {credential}", proved(free, nonce=nonce)) == "dpop_proof_invalid"
    assert asked(f"Bearer {free}") == ""
    assert asked(f"Bearer {free}", path="/bound") == "credential_missing"
    assert asked(f"DPoP {free}", proved(free, "/bound", nonce=nonce), "/bound") == "token_unbound"
    assert asked(f"DPoP {credential}", proved(credential, "/bound", nonce=nonce), "/bound") == ""


def test_a_token_bound_to_a_certificate_needs_it(world: World, workload: Issued) -> None:
    """The certificate of the connection, as Envoy passes it on (RFC 8705)."""
    credential = token(cnf={"x5t#S256": digest(workload)})
    other = issue("other", issue("authority"), [x509.DNSName("other.example")])

    def asked(certificate: str) -> str:
        return said(world.first.ask(check("/orders", f"Bearer {credential}", certificate=certificate)))

    assert asked(pem(workload)) == ""
    assert asked(pem(other)) == "certificate_mismatch"
    assert asked("") == "certificate_missing"
    assert asked("nonsense") == "certificate_malformed"
    assert asked(pem(workload) + pem(other)) == "certificate_malformed"


def test_a_certificate_proves_a_workload(world: World, workload: Issued) -> None:
    """The upstream is told its SPIFFE id; other trust domains, authorities and no certificate are refused."""
    response = world.first.ask(check("/workload", certificate=pem(workload)))
    assert said(response) == ""
    told = {
        option.header.key: option.header.value or option.header.raw_value.decode()
        for option in response.ok_response.headers
    }
    assert told["x-user"] == ID
    foreign = issue("x", issue("authority"), [x509.UniformResourceIdentifier("spiffe://test.example.com/a")])
    reasons = [said(world.first.ask(check("/workload", certificate=text))) for text in (pem(foreign), "", "%00")]
    assert reasons == ["certificate_untrusted", "credential_missing", "certificate_malformed"]


def test_all_of_needs_token_and_certificate(world: World, workload: Issued) -> None:
    """Each must be proved, and the token stays bound to what it is bound to."""
    free, bound = token(), token(cnf={"x5t#S256": digest(workload)})
    other = issue("y", issue("authority"), [x509.UniformResourceIdentifier(ID)])
    assert said(world.first.ask(check("/both", f"Bearer {free}", certificate=pem(workload)))) == ""
    assert said(world.first.ask(check("/both", f"Bearer {bound}", certificate=pem(workload)))) == ""
    assert said(world.first.ask(check("/both", f"Bearer {bound}", certificate=pem(other)))) == "certificate_mismatch"
    assert said(world.first.ask(check("/both", f"Bearer {free}"))) == "credential_missing"


def test_without_redis_no_proof_is_believed(world: World) -> None:
    """A frozen and a dead Redis deny good proofs with 503; other tokens pass; afterwards all is well again."""
    credential, nonce = token(cnf={"jkt": jkt()}), nonce_of(world.first)

    def asked() -> CheckResponse:
        return world.first.ask(check("/orders", f"DPoP {credential}", proved(credential, nonce=nonce)))

    world.valkey.freeze()
    try:
        frozen = asked()
        assert said(world.first.ask(check("/orders", f"Bearer {token()}"))) == ""
    finally:
        world.valkey.thaw()
    assert said(frozen) == "proofs_unavailable"
    assert frozen.denied_response.status.code == 503
    world.valkey.kill()
    assert said(asked()) == "proofs_unavailable"
    world.valkey.start()
    deadline = time.monotonic() + 20
    while said(asked()) != "":
        assert time.monotonic() < deadline
    metrics = world.first.admin("/metrics").decode()
    assert 'sidecar_dpop_proofs_total{outcome="unavailable"}' in metrics
