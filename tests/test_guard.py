"""What is proved is not yet believed: revocations and suspects, on the data path, for every kind of principal."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from sidecar import pipeline
from sidecar.core.authn import Composition
from sidecar.core.decision import Decision, DenyReason
from sidecar.core.dpop import NeedFirstUse
from sidecar.core.guard import Guard
from sidecar.core.keys import KeySet, parse_jwks
from sidecar.core.methods import NOTHING_FOUND
from sidecar.core.policy import Policy
from sidecar.core.principal import Principal
from sidecar.core.revocation import NEVER_US, Kind, Revocation, Revocations
from sidecar.core.rules import PrefixPath, RequestMatch, Rule, RuleTable
from sidecar.core.suspects import Suspects
from sidecar.core.token_cache import TokenCache
from sidecar.envoy import ext_authz
from sidecar.envoy.pb.ext_authz_pb2 import CheckResponse
from tests.support.deciding import KEY, OTHER_KEY, check_request, compiled, token
from tests.support.tokens import jwks

if TYPE_CHECKING:
    from collections.abc import Hashable
    from pathlib import Path

    from sidecar.core.claims import Rejected
    from sidecar.core.context import RequestContext
    from sidecar.core.issuer import IssuerPolicy
    from sidecar.core.methods import Findings, Need

SOURCE = "192.0.2.7"
PATH = "/orders/1"


class Held:
    """Keys that are held."""

    def __init__(self, keys: KeySet) -> None:
        self.held = keys
        self.asked = 0

    def keys(self, issuer: IssuerPolicy) -> KeySet:
        del issuer
        self.asked += 1
        return self.held


@dataclass
class Deciding:
    """The data path, with a guard."""

    policy: Policy
    guard: Guard = field(default_factory=lambda: Guard(Revocations(), Suspects()))
    cache: TokenCache = field(default_factory=TokenCache)
    keys: Held = field(default_factory=lambda: Held(parse_jwks(jwks(KEY))))
    findings: Findings = field(default_factory=lambda: NOTHING_FOUND)

    def step(self, credential: str | None, path: str = PATH, source: str = SOURCE) -> pipeline.Step:
        context = ext_authz.decode(check_request(path, credential, source=source))
        assert not isinstance(context, DenyReason)
        now_us = time.time_ns() // 1000
        return pipeline.begin(self.policy, context, self.cache, self.keys, now_us, self.findings, self.guard)

    def decide(self, credential: str | None, path: str = PATH, source: str = SOURCE) -> Decision:
        step = self.step(credential, path, source)
        assert isinstance(step, Decision)
        return step

    def suspect(self, source: str = SOURCE) -> None:
        self.guard.suspects.add(source, time.time_ns() // 1000 + 5_500_000)

    def revoke(self, kind: Kind, name: str, issuer: str = "main", before_us: int = 0) -> None:
        self.guard.revocations.add(Revocation(kind, issuer, name, before_us, NEVER_US))


@pytest.fixture
def deciding(tmp_path: Path) -> Deciding:
    return Deciding(compiled(tmp_path))


@pytest.mark.parametrize(
    ("kind", "name"),
    [(Kind.TOKEN, "j1"), (Kind.SUBJECT, "ann"), (Kind.SESSION, "s1"), (Kind.KEY, str(KEY.kid))],
)
def test_a_cached_token_obeys_at_once(deciding: Deciding, kind: Kind, name: str) -> None:
    """The hit is refused, stays in the cache, and is believed again once the revocation is undone."""
    text = token(sub="ann", jti="j1", sid="s1")
    assert deciding.decide(text).reason is None
    deciding.revoke(kind, name, before_us=NEVER_US if kind is Kind.SUBJECT else 0)
    denied = deciding.decide(text)
    assert denied.reason is DenyReason.TOKEN_REVOKED
    assert (deciding.cache.hits, len(deciding.cache)) == (1, 1)
    answer = CheckResponse.FromString(ext_authz.encode(denied, None))
    assert answer.denied_response.status.code == 401
    deciding.guard.revocations.remove(kind, "main", name)
    assert deciding.decide(text).reason is None


def test_a_token_without_kid_is_revoked_by_the_key_that_signed_it(deciding: Deciding) -> None:
    """The key is what counts, not what the token calls it."""
    text = token(header={"alg": "ES256", "typ": "at+jwt"})
    assert deciding.decide(text).reason is None
    deciding.revoke(Kind.KEY, str(KEY.kid))
    assert deciding.decide(text).reason is DenyReason.TOKEN_REVOKED
    deciding.cache.drop(text)
    assert deciding.decide(text).reason is DenyReason.TOKEN_REVOKED


def test_nobody_is_believed_while_it_is_not_known_what_is_revoked(deciding: Deciding) -> None:
    """Where the policy says so; anonymous rules go on."""
    text = token()
    assert deciding.decide(text).reason is None
    deciding.guard.revocations.known_until_us = 0
    assert deciding.decide(text).reason is DenyReason.REVOCATIONS_UNKNOWN
    assert deciding.decide(None, "/public/page").reason is None


def _principal(issuer: str, method: str, key_id: str = "", **claims: Any) -> Principal:
    return Principal(issuer, "ann", "", frozenset(), frozenset(), claims, method=method, key_id=key_id)


@dataclass(eq=False)
class Method:
    """Proves whom it is told to; or needs something first."""

    proved: Principal | Need

    def shown(self, request: RequestContext) -> str | Rejected | None:
        del request
        return "shown"

    def prove(
        self, shown: str, request: RequestContext, findings: Findings, now_us: int
    ) -> Principal | Need | Rejected:
        del shown, request, now_us
        need = self.proved
        if not isinstance(need, Principal) and need.key in findings:
            found: Principal = findings[need.key]
            return found
        return need


@dataclass(frozen=True)
class Lookup:
    """What the method needs."""

    @property
    def key(self) -> Hashable:
        return "lookup"


def composed(deciding: Deciding, *methods: Method, every: bool = False) -> Deciding:
    composition = Composition(methods=methods, every=every)
    rule = Rule(name="all", match=RequestMatch(path=PrefixPath("/")), composition=composition)
    policy = Policy(generation=1, rules=RuleTable([rule]), issuers={}, ratelimit=deciding.policy.ratelimit)
    return Deciding(policy, deciding.guard)


@pytest.mark.parametrize(
    ("found", "kind", "name"),
    [
        (_principal("legacy", "opaque_token", jti="j1"), Kind.TOKEN, "j1"),
        (_principal("legacy", "opaque_token", iat=5), Kind.SUBJECT, "ann"),
        (_principal("partners", "api_key", "k1"), Kind.CREDENTIAL, "k1"),
        (_principal("mesh", "certificate", "digest"), Kind.CREDENTIAL, "digest"),
    ],
)
def test_whatever_proved_a_caller_can_be_revoked(deciding: Deciding, found: Principal, kind: Kind, name: str) -> None:
    """Opaque tokens, API keys and certificates, alone and beside others of which all must be proved."""
    other = _principal("mesh", "certificate", "other")
    one = composed(deciding, Method(found))
    beside = composed(deciding, Method(other), Method(found), every=True)
    assert one.decide(None).reason is beside.decide(None).reason is None
    deciding.revoke(kind, name, found.issuer, before_us=6_000_000)
    assert one.decide(None).reason is beside.decide(None).reason is DenyReason.TOKEN_REVOKED


def test_a_suspect_is_believed_by_what_is_known_alone(deciding: Deciding) -> None:
    """429 and Retry-After for all else, before a key is looked at; others are not concerned."""
    known, new = token(jti="known"), token(jti="new")
    assert deciding.decide(known).reason is None
    deciding.suspect()
    asked = deciding.keys.asked
    for text in (new, token(key=OTHER_KEY), "x.y", "x" * 9000):
        denied = deciding.decide(text)
        assert denied.reason is DenyReason.AUTHENTICATIONS_FAILED_TOO_OFTEN
        response = CheckResponse.FromString(ext_authz.encode(denied, None)).denied_response
        assert response.status.code == 429
        headers = {each.header.key: each.header.value or each.header.raw_value.decode() for each in response.headers}
        assert headers["retry-after"] in {"5", "6"}
    assert deciding.keys.asked == asked
    assert len(deciding.cache) == 1
    assert deciding.decide(known).reason is None
    assert deciding.decide(None).reason is DenyReason.CREDENTIAL_MISSING
    assert deciding.decide(None, "/public/page").reason is None
    assert deciding.decide(new, source="192.0.2.8").reason is None


def test_nothing_is_asked_for_a_suspect(deciding: Deciding) -> None:
    """Unless it was asked for before its source became one: what has come of it counts."""
    asking = composed(deciding, Method(Lookup()))
    assert isinstance(asking.step(None), Lookup)
    asking.suspect()
    assert asking.decide(None).reason is DenyReason.AUTHENTICATIONS_FAILED_TOO_OFTEN
    asking.findings = {"lookup": _principal("partners", "api_key", "k1")}
    assert isinstance(asking.decide(None).principal, Principal)


def test_a_suspects_bound_token_is_known_too(deciding: Deciding) -> None:
    """The proof is new with each request: its first use is noted, and then the caller is believed."""
    need = NeedFirstUse("proof", b"digest", 1_000, True)
    bound = composed(deciding, Method(need))
    bound.suspect()
    assert bound.step(None) is need
    bound.findings = {"proof": _principal("main", "token")}
    assert isinstance(bound.decide(None).principal, Principal)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": 1}, DenyReason.TOKEN_EXPIRED),
        ({"aud": "another"}, DenyReason.TOKEN_AUDIENCE_MISMATCH),
        ({"sub": None}, DenyReason.TOKEN_CLAIM_INVALID),
    ],
)
def test_what_its_claims_rule_out_costs_a_token_nothing(
    deciding: Deciding, changes: dict[str, Any], reason: DenyReason
) -> None:
    """Neither the check of its signature, which is another's, nor a fetch for its key, which nobody publishes."""
    assert deciding.decide(token(OTHER_KEY, **changes)).reason is reason
    header = {"alg": "ES256", "typ": "at+jwt", "kid": "nobody's"}
    assert deciding.decide(token(header=header, **changes)).reason is reason
