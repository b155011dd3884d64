"""What each kind of credential is refused for, through the whole service: keys, certificates, proofs, revocations."""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from sidecar.core.api_key_records import hold
from sidecar.core.api_keys import NO_RECORD, NeedApiKey
from sidecar.core.decision import DenyReason
from sidecar.core.dpop import NeedFirstUse
from sidecar.core.guard import Guard
from sidecar.core.revocation import Kind, Revocation, Revocations
from sidecar.core.suspects import Suspects
from tests.support.api_keys import PEPPERS, id_of, new_key, record_of
from tests.support.certificates import issue
from tests.support.deciding import check_request, compiled, deciding, token
from tests.support.proofs import jkt, proof
from tests.support.tokens import AUDIENCE, ISSUER, b64, make_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sidecar.core.policy import Policy
    from tests.support.deciding import Deciding

R = DenyReason
Headers = list[tuple[str, str]]

ORIGIN = "https://api.example.com"
MESH = sha256(b"a certificate").hexdigest()

POLICY = f"""
redis: {{url: "redis://127.0.0.1:1/0"}}
issuers:
  main:
    issuer: {ISSUER}
    audiences: [{AUDIENCE}]
    algorithms: [ES256]
    keys: {{jwks_file: keys.json}}
    client_certificates: mesh
api_keys:
  partners: {{prefix: acme, environment: live, pepper_file: pepper}}
certificates:
  mesh: {{source: xfcc, trust_domains: [mesh.example]}}
dpop: {{origin: "{ORIGIN}"}}
limits:
  by-key:
    rate: 1/day
    key: {{principal: key_id}}
    plans: {{by: {{principal: tier}}, rates: {{gold: 3/day}}}}
upstream: {{headers: {{x-user-id: {{claim: sub}}}}}}
rules:
  - {{name: token, match: {{path: {{prefix: /token}}}}, authenticate: {{issuers: [main]}}}}
  - name: dpop
    match: {{path: {{prefix: /dpop}}}}
    authenticate: {{any_of: [{{token: {{issuers: [main], in: {{header: authorization, scheme: DPoP}}}}}}]}}
  - {{name: key, match: {{path: {{prefix: /key}}}}, authenticate: {{any_of: [{{api_key: {{keyrings: [partners]}}}}]}}}}
  - name: tiered
    match: {{path: {{prefix: /tiered}}}}
    authenticate: {{any_of: [{{api_key: {{keyrings: [partners]}}}}]}}
    authorize: {{scope: "orders:read"}}
    limits: [by-key]
  - {{name: mesh, match: {{path: {{prefix: /mesh}}}}, authenticate: {{any_of: [{{certificate: {{trust: mesh}}}}]}}}}
  - name: mixed
    match: {{path: {{prefix: /mixed}}}}
    authenticate:
      any_of: [{{certificate: {{trust: mesh}}}}, {{api_key: {{keyrings: [partners]}}}}, {{token: {{issuers: [main]}}}}]
  - name: both
    match: {{path: {{prefix: /both}}}}
    authenticate: {{all_of: [{{token: {{issuers: [main]}}}}, {{certificate: {{trust: mesh}}}}]}}
    upstream: {{headers: {{x-peer: {{claim: other_credentials.certificate.sub}}}}}}
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    directory = tmp_path_factory.mktemp("policy")
    (directory / "pepper").write_text(
        "".join(f"{n}: {base64.b64encode(pepper).decode()}\n" for n, pepper in PEPPERS.versions.items())
    )
    return compiled(directory, POLICY)


NOW = datetime.now(UTC)
GOOD, LATER, OVER, GONE, ELSEWHERE, AWAY, UNKNOWN, GOLD, PLAIN = (new_key() for _ in range(9))
RECORDS = {
    record.id: record
    for record in (
        record_of(GOOD, created_at=NOW, expires_at=None),
        record_of(GOLD, created_at=NOW, expires_at=None, tier="gold", tenant="acme", scopes=("orders:read",)),
        record_of(PLAIN, created_at=NOW, expires_at=None, scopes=("orders:read",)),
        record_of(LATER, created_at=NOW, not_before=NOW + timedelta(hours=1)),
        record_of(OVER, created_at=NOW - timedelta(days=2), expires_at=NOW - timedelta(hours=1)),
        record_of(GONE, created_at=NOW, status="revoked", revoked_at=NOW),
        record_of(ELSEWHERE, created_at=NOW, networks=("198.51.100.0/24",)),
    )
}


def look_up(need: NeedApiKey, _deadline: float, done: Callable[[Any], None]) -> None:
    """Stands for the engine that asks Redis."""
    if need.key_id in AWAY:
        done(None)
    else:
        record = RECORDS.get(need.key_id)
        done(NO_RECORD if record is None else hold(record, need.keyring.name))


class Replays:
    """Stands for the store of used proofs."""

    def __init__(self) -> None:
        self.used: set[bytes] = set()
        self.away = False

    def ensure(self, need: NeedFirstUse, _deadline: float, done: Callable[[Any], None]) -> None:
        first = need.digest not in self.used
        self.used.add(need.digest)
        done(None if self.away else first)


class World:
    """A service, and what stands for the world around it."""

    def __init__(self, service: Deciding, replays: Replays, revocations: Revocations, suspects: Suspects) -> None:
        self.service = service
        self.replays = replays
        self.revocations = revocations
        self.suspects = suspects

    def revoke(self, kind: Kind, name: str) -> None:
        """As an operator would."""
        self.revocations.add(Revocation(kind, "main", name, 0, 2**62))


@pytest.fixture
async def world(policy: Policy) -> AsyncIterator[World]:
    replays, revocations, suspects = Replays(), Revocations(), Suspects()
    engines = {NeedApiKey: look_up, NeedFirstUse: replays.ensure}
    async with deciding(policy, engines=engines, guard=Guard(revocations, suspects)) as service:
        yield World(service, replays, revocations, suspects)
        assert service.bugs == []


def bearer(**claims: Any) -> Headers:
    return [("authorization", f"Bearer {token(**claims)}")]


def bound(path: str = "/token", *, key: Any = None, scheme: str = "DPoP", **changes: Any) -> Headers:
    """A token that is bound to the key of proofs, and a proof."""
    credential = token(cnf={"jkt": jkt()})
    usual: dict[str, Any] = {"url": ORIGIN + path, "now_s": time.time(), **changes}
    shown = proof(credential, key, **usual) if key is not None else proof(credential, **usual)
    return [("authorization", f"{scheme} {credential}"), ("dpop", shown)]


def slipped(key: str) -> str:
    """The key with another last character."""
    return key[:-1] + ("0" if key[-1] != "0" else "1")


def api_key(key: str) -> Headers:
    return [("x-api-key", key)]


def xfcc(uri: str = "spiffe://mesh.example/shop", digest: str = MESH) -> Headers:
    return [("x-forwarded-client-cert", f"Hash={digest};URI={uri}")]


def certified() -> str:
    """A token that is bound to the certificate of `MESH`."""
    return token(cnf={"x5t#S256": b64(bytes.fromhex(MESH))})


def expired_certificate() -> Headers:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier("spiffe://mesh.example/shop")]
    issued = issue("shop", issue("authority"), names, days_ago=2)
    pem = issued.certificate.public_bytes(serialization.Encoding.PEM).decode()
    return [("x-forwarded-client-cert", f'Cert="{quote(pem, safe="")}"')]


class Case(NamedTuple):
    """A request, and what is decided of it: a reason, or who is told to the upstream."""

    path: str
    headers: Callable[[], Headers]
    outcome: DenyReason | str
    before: Callable[[World], None] = lambda _: None


CASES = {
    "a key": Case("/key", lambda: api_key(GOOD), "ann"),
    "no key": Case("/key", list, R.CREDENTIAL_MISSING),
    "no key at all": Case("/key", lambda: api_key("x"), R.API_KEY_MALFORMED),
    "a key with a slip": Case("/key", lambda: api_key(slipped(GOOD)), R.API_KEY_MALFORMED),
    "a key that nobody has": Case("/key", lambda: api_key(UNKNOWN), R.API_KEY_INVALID),
    "a key of tomorrow": Case("/key", lambda: api_key(LATER), R.API_KEY_NOT_YET_VALID),
    "a key of yesterday": Case("/key", lambda: api_key(OVER), R.API_KEY_EXPIRED),
    "a revoked key": Case("/key", lambda: api_key(GONE), R.API_KEY_REVOKED),
    "a key from elsewhere": Case("/key", lambda: api_key(ELSEWHERE), R.API_KEY_NOT_ALLOWED_HERE),
    "a key while nobody can be asked": Case("/key", lambda: api_key(AWAY), R.API_KEYS_UNAVAILABLE),
    "a token where a key is asked for": Case("/key", bearer, R.CREDENTIAL_MISSING),
    "a proof": Case("/token", bound, "alice"),
    "a proof where only they are accepted": Case("/dpop", lambda: bound("/dpop"), "alice"),
    "a bound token as a bearer's": Case("/token", lambda: bound(scheme="Bearer"), R.TOKEN_SCHEME_MISMATCH),
    "a bearer's token as a bound one": Case(
        "/token", lambda: [("authorization", f"DPoP {token()}")], R.TOKEN_SCHEME_MISMATCH
    ),
    "a token that must be bound": Case("/dpop", lambda: [("authorization", f"DPoP {token()}")], R.TOKEN_UNBOUND),
    "no proof": Case("/token", lambda: bound()[:1], R.DPOP_PROOF_MISSING),
    "a proof for another path": Case("/token/x", bound, R.DPOP_PROOF_INVALID),
    "a proof of another key": Case("/token", lambda: bound(key=make_key("ES256", None, 8)), R.DPOP_KEY_MISMATCH),
    "a proof while nobody can be asked": Case(
        "/token", bound, R.PROOFS_UNAVAILABLE, lambda world: setattr(world.replays, "away", True)
    ),
    "a certificate": Case("/mesh", xfcc, "spiffe://mesh.example/shop"),
    "no certificate": Case("/mesh", list, R.CREDENTIAL_MISSING),
    "a certificate of another domain": Case(
        "/mesh", lambda: xfcc("spiffe://other.example/shop"), R.CERTIFICATE_UNTRUSTED
    ),
    "a certificate that cannot be read": Case(
        "/mesh", lambda: [("x-forwarded-client-cert", 'Hash="')], R.CERTIFICATE_MALFORMED
    ),
    "a certificate of yesterday": Case("/mesh", expired_certificate, R.CERTIFICATE_EXPIRED),
    "a token with its certificate": Case(
        "/token", lambda: [("authorization", f"Bearer {certified()}"), *xfcc()], "alice"
    ),
    "a token without its certificate": Case(
        "/token", lambda: [("authorization", f"Bearer {certified()}")], R.CERTIFICATE_MISSING
    ),
    "a token with another certificate": Case(
        "/token",
        lambda: [("authorization", f"Bearer {certified()}"), *xfcc(digest=sha256(b"").hexdigest())],
        R.CERTIFICATE_MISMATCH,
    ),
    "a certificate alone of several kinds": Case("/mixed", xfcc, "spiffe://mesh.example/shop"),
    "a certificate beside a token": Case("/mixed", lambda: [*bearer(), *xfcc()], "alice"),
    "a certificate beside a key that is none": Case("/mixed", lambda: [*api_key("x"), *xfcc()], R.API_KEY_MALFORMED),
    "a key beside a token": Case("/mixed", lambda: [*api_key(GOOD), *bearer()], R.CREDENTIAL_REPEATED),
    "a token and a certificate": Case("/both", lambda: [*bearer(), *xfcc()], "alice"),
    "a token without a certificate": Case("/both", bearer, R.CREDENTIAL_MISSING),
    "a certificate without a token": Case("/both", xfcc, R.CREDENTIAL_MISSING),
    "a token beside a strange certificate": Case(
        "/both", lambda: [*bearer(), *xfcc("spiffe://other.example/shop")], R.CERTIFICATE_UNTRUSTED
    ),
    "a revoked token": Case("/token", lambda: bearer(jti="7"), R.TOKEN_REVOKED, lambda it: it.revoke(Kind.TOKEN, "7")),
    "a revoked token beside another credential": Case(
        "/both", lambda: [*bearer(jti="7"), *xfcc()], R.TOKEN_REVOKED, lambda it: it.revoke(Kind.TOKEN, "7")
    ),
    "unknown revocations": Case(
        "/token", bearer, R.REVOCATIONS_UNKNOWN, lambda it: setattr(it.revocations, "known_until_us", 0)
    ),
    "too many failures": Case(
        "/token",
        bearer,
        R.AUTHENTICATIONS_FAILED_TOO_OFTEN,
        lambda it: it.suspects.add("192.0.2.7", time.time_ns() // 1000 + 60_000_000),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_what_is_shown_decides(world: World, case: Case) -> None:
    """A caller, or a denial for its one reason."""
    case.before(world)
    response = await world.service.ask(check_request(case.path, headers=case.headers()))
    decision = world.service.events[-1].decision
    if isinstance(case.outcome, str):
        told = {option.header.key: option.header.value for option in response.ok_response.headers}
        assert (decision.reason, told["x-user-id"]) == (None, case.outcome)
    else:
        assert (decision.reason, decision.detail) == (case.outcome, decision.detail)
        assert not response.HasField("ok_response")


async def test_a_proof_is_used_once(world: World) -> None:
    """The second time it is refused, whatever is remembered of its token."""
    message = check_request("/token", headers=bound())
    assert (await world.service.ask(message)).status.code == 0
    await world.service.ask(message)
    assert world.service.events[-1].decision.reason is R.DPOP_PROOF_REPLAYED


async def test_limits_and_scopes_come_from_the_key(world: World) -> None:
    """A key's tier is its plan, and its scopes are what it may; the upstream and Envoy are told of it."""
    for key, allowed in ((GOLD, 3), (PLAIN, 1), (GOOD, 0)):
        answers = [await world.service.ask(check_request("/tiered", headers=api_key(key))) for _ in range(4)]
        assert [answer.status.code == 0 for answer in answers].count(True) == allowed
        reason = R.LIMIT_EXCEEDED if allowed else R.SCOPE_INSUFFICIENT
        assert world.service.events[-1].decision.reason is reason
        metadata = answers[0].dynamic_metadata
        assert (metadata["method"], metadata["key_id"]) == ("api_key", id_of(key))
        assert ("tier" in metadata, "tenant" in metadata) == (key == GOLD, key == GOLD)


async def test_challenges_are_those_of_what_is_accepted(world: World) -> None:
    """One for each kind; errors only in the schemes that have them."""
    algorithms = world.service.policy.issuers[ISSUER].binding.dpop.algorithms  # type: ignore[union-attr]
    dpop = f'DPoP realm="sidecar"{{}}, algs="{" ".join(sorted(algorithms))}"'
    error = ', error="invalid_token", error_description="The token is not well-formed."'
    for path, headers, expected in (
        ("/token", [], ['Bearer realm="sidecar"', dpop.format("")]),
        ("/token", [("authorization", "Bearer x")], [f'Bearer realm="sidecar"{error}', dpop.format(error)]),
        ("/dpop", [], [dpop.format("")]),
        ("/key", [], ['ApiKey realm="sidecar"']),
        ("/key", api_key("x"), ['ApiKey realm="sidecar"']),
        ("/mesh", [], ['ClientCertificate realm="sidecar"']),
    ):
        response = await world.service.ask(check_request(path, headers=headers))
        options = response.denied_response.headers
        assert [each.header.value for each in options if each.header.key == "www-authenticate"] == expected
