"""The data path by itself: each step in its order, what it asks the world for, and what it makes of the answers."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import pytest

from sidecar import pipeline
from sidecar.core.authn import NeedKey
from sidecar.core.authz import Condition, ScopeCondition
from sidecar.core.bindings import LimitBinding
from sidecar.core.decision import Decision, DenyReason
from sidecar.core.keys import KeySet, parse_jwks
from sidecar.core.limits import Limit, LimitOutcome, OnFailure, StoreFailure, Verdict
from sidecar.core.methods import NOTHING_FOUND
from sidecar.core.principal import Principal
from sidecar.core.rules import PrefixPath, RequestMatch, Rule
from sidecar.core.selectors import ClaimSelector
from sidecar.core.token_cache import TokenCache
from sidecar.edges.redis_parts import UnknownOutcome
from sidecar.envoy import ext_authz
from tests.support.deciding import KEY, OTHER_KEY, check_request, compiled, token
from tests.support.tokens import ISSUER, issuer_policy, jwks

if TYPE_CHECKING:
    from pathlib import Path

    from sidecar.core.issuer import IssuerPolicy
    from sidecar.core.methods import Findings
    from sidecar.core.policy import Policy

LIMITED = """
redis: {url: "redis://127.0.0.1:1/0"}
limits:
  deny: {rate: 1/day, key: {constant: x}, on_redis_failure: deny}
  error: {rate: 1/day, key: {constant: x}, on_redis_failure: error}
  local: {rate: 1/day, key: {constant: x}, on_redis_failure: local}
  allow: {rate: 1/day, key: {constant: x}, on_redis_failure: allow}
rules:
  - {name: all, match: {path: {prefix: /}}, anonymous: true, limits: [WISHES]}
"""


class Held:
    """Keys that are held, or not."""

    def __init__(self, keys: KeySet | None) -> None:
        self.held = keys

    def keys(self, issuer: IssuerPolicy) -> KeySet | None:
        del issuer
        return self.held


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return compiled(tmp_path_factory.mktemp("policy"))


def begin(
    policy: Policy, keys: KeySet | None, *arguments: Any, findings: Findings = NOTHING_FOUND, **request: Any
) -> pipeline.Step:
    context = ext_authz.decode(check_request(*arguments, **request))
    assert not isinstance(context, DenyReason)
    return pipeline.begin(policy, context, TokenCache(), Held(keys), time.time_ns() // 1000, findings)


def reason(step: object) -> DenyReason | None:
    assert isinstance(step, Decision)
    return step.reason


def test_steps_come_in_their_order(policy: Policy) -> None:
    """A request with every fault is denied for the first; mended one by one, for the next; in the end it is charged."""
    keys = parse_jwks(jwks(KEY))
    faulty: dict[str, Any] = {"host": "a b", "path": "//", "method": "get", "credential": None}
    mended = [
        ({}, DenyReason.REQUEST_MALFORMED),
        ({"host": "h"}, DenyReason.REQUEST_MALFORMED),
        ({"method": "GET"}, DenyReason.PATH_AMBIGUOUS),
        ({"path": "/other"}, DenyReason.NO_RULE),
        ({"path": "/admin"}, DenyReason.CREDENTIAL_MISSING),
        ({"credential": token(scope="x", roles=[])}, DenyReason.SCOPE_INSUFFICIENT),
        ({"credential": token(roles=[])}, DenyReason.ROLE_MISSING),
        ({"credential": token(roles=["admin"])}, None),
    ]
    for change, expected in mended:
        faulty |= change
        assert reason(begin(policy, keys, **faulty)) is expected
    charges = begin(policy, keys, "/tight", token())
    assert isinstance(charges, pipeline.Charges)
    assert [charge.limit.name for charge in charges.charges] == ["tight"]


@pytest.mark.parametrize(
    ("held", "then"),
    [(None, DenyReason.KEYS_UNAVAILABLE), (OTHER_KEY.renamed("k9"), DenyReason.TOKEN_KEY_UNKNOWN)],
)
def test_keys_are_asked_for_once(policy: Policy, held: Any, then: DenyReason) -> None:
    """A key that is not held is a wish; after the fetch it is a denial, or the request goes on."""
    keys = None if held is None else parse_jwks(jwks(held))
    credential = token()
    wish = begin(policy, keys, "/orders/1", credential)
    assert isinstance(wish, NeedKey)
    assert (wish.issuer.name, wish.kid) == ("main", KEY.kid)
    found = {wish.key: None}
    assert reason(begin(policy, keys, "/orders/1", credential, findings=found)) is then
    assert reason(begin(policy, parse_jwks(jwks(KEY)), "/orders/1", credential, findings=found)) is None


def test_an_anonymous_rule_looks_at_no_credential(policy: Policy) -> None:
    """Whatever is shown there, nobody is proved, and nothing is asked of an issuer."""
    for headers in ([], [("authorization", "Bearer x,Bearer y")], [("authorization", "Bearer " + token())]):
        decision = begin(policy, None, headers=headers)
        assert isinstance(decision, Decision)
        assert (decision.allowed, decision.principal) == (True, None)


@pytest.mark.parametrize(
    "wishes", [wishes for many in range(1, 5) for wishes in itertools.combinations(OnFailure, many)], ids=str
)
@pytest.mark.parametrize("failure", [StoreFailure.TIMEOUT, StoreFailure.ERROR_REPLY])
def test_the_strictest_wish_is_granted(tmp_path: Path, wishes: tuple[OnFailure, ...], failure: StoreFailure) -> None:
    """deny, then error, then local, then allow: whatever other wishes there are beside it."""
    policy = compiled(tmp_path, LIMITED.replace("WISHES", ", ".join(wishes)))
    pending = begin(policy, None)
    assert isinstance(pending, pipeline.Charges)
    step = pipeline.settle(pending, failure)
    strictest = min(wishes, key=list(OnFailure).index)
    if strictest is OnFailure.LOCAL:
        assert isinstance(step, pipeline.Charges)
        assert (step.local, [charge.limit.name for charge in step.charges]) == (True, ["local"])
        last = pipeline.settle(step, failure)
        assert reason(last) is DenyReason.LIMITS_UNAVAILABLE
        assert isinstance(last, Decision)
        assert not last.as_error
        return
    assert isinstance(step, Decision)
    assert (step.allowed, step.degraded) == ((True, True) if strictest is OnFailure.ALLOW else (False, False))
    assert step.as_error is (strictest is OnFailure.ERROR)


def test_one_exceeded_limit_denies(tmp_path: Path) -> None:
    """The verdict of all charges together is the decision's; the detail names the limits that denied."""
    policy = compiled(tmp_path, LIMITED.replace("WISHES", "deny, local"))
    pending = begin(policy, None)
    assert isinstance(pending, pipeline.Charges)
    first, second = (charge.limit for charge in pending.charges)
    for fits in itertools.product((True, False), repeat=2):
        outcomes = tuple(LimitOutcome(limit, fit, 1, 0, 0, 0) for limit, fit in zip((first, second), fits, strict=True))
        decision = pipeline.settle(pending, Verdict(all(fits), outcomes))
        assert isinstance(decision, Decision)
        assert decision.allowed is all(fits)
        assert [name in decision.detail for name in ("'deny'", "'local'")] == [not fit for fit in fits]


def test_nothing_is_said_of_limits_that_were_not_asked(tmp_path: Path) -> None:
    """Where another limit's denial has decided, a decision holds only what is known."""
    pending = begin(compiled(tmp_path, LIMITED.replace("WISHES", "deny, local")), None)
    assert isinstance(pending, pipeline.Charges)
    first, second = (charge.limit for charge in pending.charges)
    denied = LimitOutcome(second, False, 1, 0, 5, 5)
    decision = pipeline.settle(pending, Verdict(False, (UnknownOutcome(first, False, 0, 0, 0, 0), denied)))
    assert isinstance(decision, Decision)
    assert (decision.limits, decision.detail) == ((denied,), "limit 'local' is exceeded")


def rule_of(authorize: Condition | None) -> Rule:
    issuers = {} if authorize is None else {ISSUER: issuer_policy()}
    limit = Limit(name="per-user", requests=5, window_us=1_000_000)
    key = (ClaimSelector(("sub",)),)
    binding = LimitBinding(limit=limit, key=key, key_prefix=b"x:", on_failure=OnFailure.DENY)
    match = RequestMatch(path=PrefixPath("/"))
    return Rule(name="r", match=match, anonymous=not issuers, issuers=issuers, authorize=authorize, limits=(binding,))


def caller(subject: str, *scopes: str) -> Principal:
    return Principal("main", subject, "", frozenset(scopes), frozenset(), {"sub": subject})


def test_what_is_kept_of_one_caller_serves_no_other() -> None:
    """Asked in any order and again, each is judged by its own scopes and charged under its own key."""
    rule = rule_of(ScopeCondition("read"))
    may, may_not, other = caller("alice", "read"), caller("alice"), caller("bob", "read")
    for _ in range(2):
        verdicts = [pipeline._admit(rule, who) for who in (may, may_not, other, None)]
        assert [unmet is None for unmet, _ in verdicts] == [True, False, True, False]
        keys = [charges[0].key for _, charges in verdicts if charges is not None]
        assert len(keys) == 2
        assert keys[0] != keys[1]


def test_what_is_kept_of_an_old_rule_serves_no_new_one() -> None:
    """A reload that asks for more is obeyed by a caller who was admitted before."""
    who = caller("alice", "read")
    assert pipeline._admit(rule_of(ScopeCondition("read")), who)[0] is None
    assert pipeline._admit(rule_of(ScopeCondition("write")), who)[0] is not None


def test_admissions_are_bounded() -> None:
    """N are kept, and N+1 as well only by forgetting one."""
    pipeline._admit.cache_clear()
    rule = rule_of(None)
    for number in range(pipeline.ADMISSIONS_MAX + 1):
        pipeline._admit(rule, caller(str(number)))
        if number >= pipeline.ADMISSIONS_MAX - 1:
            assert pipeline._admit.cache_info().currsize == pipeline.ADMISSIONS_MAX
    pipeline._admit.cache_clear()


REPEATED = """
redis: {url: "redis://127.0.0.1:1/0"}
limits:
  own: {rate: 3/day, plans: {by: {constant: gold}, rates: {gold: 5/day}}, cost: 2, key: {constant: x}}
  plan: {rate: 1/day, plans: {by: {header: x-plan}, rates: {gold: 5/day}}, key: {constant: x}}
  cost: {rate: 9/day, cost: {header: x-cost, default: 1}, key: {constant: x}}
  held: {rate: 9/day, reserve: {hold: 1s}, key: {constant: x}}
rules: [{name: all, match: {path: {prefix: /}}, anonymous: true, limits: [NAME]}]
"""


@pytest.mark.parametrize(("name", "shared"), [("own", True), ("plan", False), ("cost", False), ("held", False)])
def test_charges_are_kept_unless_the_request_decides_them(tmp_path: Path, name: str, shared: bool) -> None:
    """A plan or a cost from the request, and a hold, which has a name of its own, are each request's."""
    policy = compiled(tmp_path, REPEATED.replace("NAME", name))
    first, second = begin(policy, None), begin(policy, None)
    assert isinstance(first, pipeline.Charges)
    assert isinstance(second, pipeline.Charges)
    assert (first.charges[0] is second.charges[0]) is shared
    if name == "held":
        first.reserve(7)
        assert [charge.hold for charge in (*first.charges, *second.charges)] == [7, 0]
