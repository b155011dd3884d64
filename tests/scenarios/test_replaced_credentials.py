"""What upstreams are sent in place of credentials: decided by the whole Check service, verified as by an upstream."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sidecar.check import CheckService
from sidecar.core import token as tokens
from sidecar.core.decision import Decision, DenyReason
from sidecar.core.internal_tokens import InternalTokenError
from sidecar.core.keys import parse_jwks
from sidecar.core.principal import Principal
from sidecar.core.rules import PrefixPath, RequestMatch, Rule
from sidecar.edges.internal_tokens import InternalTokenSigner
from sidecar.envoy import ext_authz
from sidecar.envoy.pb.ext_authz_pb2 import CheckResponse
from sidecar.explain import explain
from sidecar.policy.compile import load
from sidecar.policy.faults import PolicyError
from tests.support.deciding import KEY, Deciding, check_request, deciding, token
from tests.support.internal_keys import INTERNAL_ISSUER, write_keys
from tests.support.tokens import AUDIENCE, ISSUER, issuer_policy, jwks

POLICY = f"""
issuers:
  main: {{issuer: {ISSUER}, audiences: [{AUDIENCE}], algorithms: [ES256], keys: {{jwks_file: keys.json}}}}
internal_tokens: {{issuer: {INTERNAL_ISSUER}, audiences: [upstreams], keys: keys, header: HEADER}}
limits: {{many: {{rate: 100/day, key: {{claim: sub}}}}}}
redis: {{url: "redis://127.0.0.1:1/0"}}
upstream: {{credential: replace, headers: {{x-user-id: {{claim: sub}}}}}}
rules:
  - {{name: orders, match: {{path: {{prefix: /orders}}}}, authenticate: {{issuers: [main]}}, limits: [many]}}
  - name: stock
    match: {{path: {{prefix: /stock}}}}
    authenticate: {{issuers: [main]}}
    upstream: {{audiences: [stock]}}
  - name: kept
    match: {{path: {{prefix: /kept}}}}
    authenticate: {{issuers: [main]}}
    upstream: {{credential: forward}}
  - name: gone
    match: {{path: {{prefix: /gone}}}}
    authenticate: {{issuers: [main]}}
    upstream: {{credential: remove}}
  - {{name: open, match: {{path: {{prefix: /open}}}}, anonymous: true}}
"""


def policy_file(directory: Path, header: str) -> Path:
    write_keys(directory / "keys", "2026-01-01.pem")
    (directory / "keys.json").write_bytes(jwks(KEY))
    path = directory / "sidecar.yaml"
    path.write_text(POLICY.replace("HEADER", header))
    return path


class Served:
    """A Check service that signs, and what an upstream makes of its answers."""

    def __init__(self, service: Deciding, signer: InternalTokenSigner) -> None:
        self.service = service
        self.signer = signer

    async def sent(self, path: str, *headers: tuple[str, str], credential: str | None = None) -> Sent:
        """What Envoy is told to do to an allowed request's headers."""
        credential = token() if credential is None else credential
        answer = await self.service.ask(check_request(path, credential or None, headers=headers))
        assert answer.HasField("ok_response"), answer
        options = {option.header.key: option.header for option in answer.ok_response.headers}
        assert len(options) == len(answer.ok_response.headers)
        values = {name: header.value or header.raw_value.decode() for name, header in options.items()}
        return Sent(values, set(answer.ok_response.headers_to_remove))

    def proved(self, text: str, audience: str = "upstreams") -> Principal:
        """Whom an upstream takes for the caller, by the published keys."""
        now_us = time.time_ns() // 1000
        keys = parse_jwks(json.dumps(self.signer.jwks(now_us)).encode())
        policy = issuer_policy(issuer=INTERNAL_ISSUER, audiences=frozenset({audience}))
        read = tokens.parse(text, 16 * 1024)
        assert isinstance(read, tokens.UnverifiedToken)
        found: Any = tokens.verify(read, policy, keys, now_us)
        assert isinstance(found, Principal), found
        return found


class Sent(NamedTuple):
    """What happens to a request's headers on its way to the upstream."""

    values: dict[str, str]
    removed: set[str]


@pytest.fixture(params=["authorization", "X-Internal-Token"])
async def served(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Served]:
    policy = load(policy_file(tmp_path, request.param), 1).policy
    async with deciding(policy) as service:
        signer = InternalTokenSigner(policy.internal_tokens)
        service.service = CheckService(
            policy=lambda: service.policy,
            cache=service.cache,
            jwks=service.jwks,
            store=service.store,
            local=service.local,
            on_events=service.events.extend,
            on_bug=lambda bug, _method: service.bugs.append(bug),
            token_for=signer.token_for,
        )
        yield Served(service, signer)
        assert not service.bugs


def carried(sent: Sent) -> str:
    """The token, as the policy's header carries it."""
    if "x-internal-token" in sent.values:
        assert "authorization" in sent.removed
        return sent.values["x-internal-token"]
    assert "authorization" not in sent.removed
    scheme, _, text = sent.values["authorization"].partition(" ")
    assert scheme == "Bearer"
    return text


async def test_the_upstream_gets_a_token_that_it_can_verify(served: Served) -> None:
    """It says who was proved, beside the other headers; the caller's own credential is gone, with its twins."""
    text = token(sub="bob", scope="orders:read")
    sent = await served.sent("/orders/7", credential=text)
    principal = served.proved(carried(sent))
    assert (principal.subject, principal.scopes) == ("bob", {"orders:read"})
    assert principal.claims["origin"] == "main"
    assert sent.values["x-user-id"] == "bob"
    assert text not in sent.values.values()
    assert not sent.removed & sent.values.keys()


async def test_a_caller_that_comes_again_brings_the_same_token(served: Served) -> None:
    """The signature is made once for a caller whose credential is known; another caller has another."""
    alice, bob = token(), token(sub="bob")
    made = [carried(await served.sent("/orders/7", credential=each)) for each in (alice, alice, bob, alice)]
    assert made[0] == made[1] == made[3] != made[2]
    assert served.signer.signed == 2


async def test_a_rule_has_an_audience_of_its_own(served: Served) -> None:
    """What is sent to one upstream does not open another."""
    assert served.proved(carried(await served.sent("/stock/7")), "stock").subject == "alice"
    with pytest.raises(AssertionError, match="token_audience_mismatch"):
        served.proved(carried(await served.sent("/stock/7")), "upstreams")


async def test_other_rules_sign_nothing(served: Served) -> None:
    """A rule that forwards leaves the credential, one that removes or proves nobody has no token."""
    kept = await served.sent("/kept/7")
    assert "authorization" not in kept.values.keys() | kept.removed
    for path in ("/gone/7", "/open/7"):
        sent = await served.sent(path)
        assert "authorization" in sent.removed
        assert not {"authorization", "x-internal-token"} & sent.values.keys()
    assert served.signer.signed == 0


@pytest.mark.parametrize("path", ["/orders/7", "/kept/7", "/gone/7", "/open/7"])
async def test_no_client_brings_an_internal_token(served: Served, path: str) -> None:
    """The token's own header is set or taken off by every rule, under each name that a server might take for it."""
    headers = ("x-internal-token", "forged"), ("x_internal_token", "forged")
    sent = await served.sent(path, *headers)
    assert "forged" not in sent.values.values()
    own = "x-internal-token" in sent.values or served.service.policy.rules.rules[0].token_header == "authorization"
    assert own or {"x-internal-token", "x_internal_token"} <= sent.removed


async def test_without_a_token_nothing_passes(served: Served) -> None:
    """Where none can be made the request is denied: it never goes on without one, or with the caller's own."""
    served.signer.replace(None, 0)
    answer = await served.service.ask(check_request("/orders/7", token()))
    assert answer.HasField("denied_response")
    assert answer.denied_response.status.code == 500
    [bug] = served.service.bugs
    assert isinstance(bug, InternalTokenError)
    served.service.bugs.clear()


def test_a_token_that_was_forgotten_is_a_denial() -> None:
    """The adapter itself lets no allowed decision of such a rule pass without its token."""
    rule = Rule(
        name="r",
        match=RequestMatch(path=PrefixPath("/")),
        issuers={ISSUER: issuer_policy()},
        token_header="authorization",
    )
    principal = Principal("main", "alice", "", frozenset(), frozenset(), {})
    request = ext_authz.decode(check_request("/"))
    assert not isinstance(request, DenyReason)
    decision = Decision(None, rule, principal, (), 1)
    assert CheckResponse.FromString(ext_authz.encode(decision, request)).HasField("denied_response")
    assert CheckResponse.FromString(ext_authz.encode(decision, request, "t")).HasField("ok_response")


def test_explain_shows_that_a_token_is_sent_and_not_which(tmp_path: Path) -> None:
    """The answer names the header, and masks what is in it."""
    path = policy_file(tmp_path, "authorization")
    shown = json.dumps(explain(path, check_request("/stock/7", token())).as_json())
    assert "authorization" in shown
    assert "eyJ" not in shown


def test_explain_says_that_a_token_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As serving does, which denies: no traceback, and no allow."""
    monkeypatch.setattr("sidecar.edges.internal_tokens.TOKEN_BYTES_MAX", 10)
    told = explain(policy_file(tmp_path, "authorization"), check_request("/stock/7", token()))
    assert told.record["reason"] == DenyReason.INTERNAL.value
    assert "more than 10 bytes" in told.record["detail"]
    assert "denied_response" in told.answer


FAULTS = [
    ("upstream: {credential: replace}", "", "the policy has no internal_tokens section to replace it by"),
    ("", "upstream: {credential: replace}, anonymous: true", "nobody is proved where the rule is anonymous"),
    ("", "upstream: {audiences: [a]}, authenticate: {issuers: [main]}", "the credential is not replaced by a token"),
]


@pytest.mark.parametrize(("section", "rule", "message"), FAULTS, ids=["no section", "anonymous", "audiences"])
def test_what_makes_no_sense_is_a_fault(tmp_path: Path, section: str, rule: str, message: str) -> None:
    """There must be keys to sign by, somebody to speak of, and a token for an audience to be in."""
    (tmp_path / "keys.json").write_bytes(jwks(KEY))
    write_keys(tmp_path / "keys", "2026-01-01.pem")
    issuers = (
        f"issuers: {{main: {{issuer: {ISSUER}, audiences: [a], algorithms: [ES256], keys: {{jwks_file: keys.json}}}}}}"
    )
    signs = f"internal_tokens: {{issuer: {INTERNAL_ISSUER}, audiences: [a], keys: keys}}"
    written = [
        issuers,
        section or signs,
        f"rules: [{{name: r, match: {{path: {{prefix: /}}}}, {rule or 'anonymous: true'}}}]",
    ]
    (tmp_path / "sidecar.yaml").write_text("\n".join(written))
    with pytest.raises(PolicyError) as caught:
        load(tmp_path / "sidecar.yaml", 1)
    [fault] = caught.value.faults
    assert fault.message.startswith(message)
    assert fault.accepted


def test_the_tokens_header_is_nothing_elses(tmp_path: Path) -> None:
    """A header that carries the token cannot be set from a claim as well."""
    path = policy_file(tmp_path, "X-User-Id")
    with pytest.raises(PolicyError, match=r"the header 'x-user-id' is also one of upstream\.headers"):
        load(path, 1)
