"""Opaque tokens: what is refused before anybody is asked, what answers mean, and what is remembered of them."""

from __future__ import annotations

import json
import random
from base64 import b64encode
from hashlib import sha256
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import pytest

from sidecar.core.authn import Composition, compose
from sidecar.core.certificates import CertificateSource, CertificateTrust
from sidecar.core.claims import Rejected
from sidecar.core.confirmation import Binding
from sidecar.core.context import NO_REQUEST
from sidecar.core.credentials import HeaderPlace
from sidecar.core.decision import REASONS, Challenge, DenyReason
from sidecar.core.dpop import DpopPolicy, NeedFirstUse
from sidecar.core.introspection import (
    ANSWER_BYTES_MAX,
    Answer,
    AnswerCache,
    IntrospectionPolicy,
    NeedIntrospection,
    OpaqueTokens,
    PrivateKeyJwt,
    QuestionBudget,
    Unanswered,
    read_answer,
    token_key,
)
from sidecar.core.principal import Principal
from sidecar.core.revocation import NEVER_US, NO_REVOCATIONS, Kind, Revocation, Revocations
from sidecar.core.suspects import KNOWN_ALONE
from sidecar.core.token_cache import TokenCache
from tests.support.introspection import answer, introspection_policy
from tests.support.proofs import bound_request, jkt, proof
from tests.support.tokens import NOW_S, NOW_US, b64

if TYPE_CHECKING:
    from sidecar.core.context import RequestContext
    from sidecar.core.methods import Need

POLICY = introspection_policy()
SECOND_US = 1_000_000


def read(policy: IntrospectionPolicy = POLICY, now_us: int = NOW_US, **changes: Any) -> Answer | Unanswered:
    return read_answer(policy, json.dumps(answer(**changes)).encode(), now_us)


def proved(found: Answer | Unanswered) -> Principal | Rejected:
    assert isinstance(found, Answer), found
    return found.proved


def test_an_active_token_is_its_principal() -> None:
    """Subject, client, scopes and the token's name are the answer's; issuer is the policy's name for the endpoint."""
    principal = proved(read(rules={}))
    assert isinstance(principal, Principal)
    assert (principal.issuer, principal.method) == ("legacy", "opaque_token")
    assert (principal.subject, principal.client, principal.key_id) == ("alice", "web", "7f1c")
    assert principal.scopes == {"orders:read", "orders:write"}
    assert principal.claims["username"] == "alice@example.com"


R = DenyReason
REFUSED: dict[str, tuple[dict[str, Any], DenyReason]] = {
    "inactive": ({"active": False}, R.TOKEN_INACTIVE),
    "exp missing": ({"exp": None}, R.TOKEN_CLAIM_INVALID),
    "exp past": ({"exp": NOW_S - 31}, R.TOKEN_EXPIRED),
    "exp now, beyond the leeway": ({"exp": NOW_S - 30}, R.TOKEN_EXPIRED),
    "exp text": ({"exp": str(NOW_S + 600)}, R.TOKEN_CLAIM_INVALID),
    "exp true": ({"exp": True}, R.TOKEN_CLAIM_INVALID),
    "exp list": ({"exp": [NOW_S + 600]}, R.TOKEN_CLAIM_INVALID),
    "exp beyond 2^53": ({"exp": 2**53 + 1}, R.TOKEN_CLAIM_INVALID),
    "exp negative": ({"exp": -1}, R.TOKEN_CLAIM_INVALID),
    "nbf in the future": ({"nbf": NOW_S + 31}, R.TOKEN_NOT_YET_VALID),
    "nbf object": ({"nbf": {}}, R.TOKEN_CLAIM_INVALID),
    "iat in the future": ({"iat": NOW_S + 31}, R.TOKEN_NOT_YET_VALID),
    "sub missing": ({"sub": None}, R.TOKEN_CLAIM_INVALID),
    "sub empty": ({"sub": ""}, R.TOKEN_CLAIM_INVALID),
    "sub number": ({"sub": 7}, R.TOKEN_CLAIM_INVALID),
    "aud missing": ({"aud": None}, R.TOKEN_CLAIM_INVALID),
    "aud empty": ({"aud": []}, R.TOKEN_CLAIM_INVALID),
    "aud another": ({"aud": "other"}, R.TOKEN_AUDIENCE_MISMATCH),
    "aud substring": ({"aud": "orders-api-2"}, R.TOKEN_AUDIENCE_MISMATCH),
    "aud numbers": ({"aud": [1]}, R.TOKEN_CLAIM_INVALID),
    "aud object": ({"aud": {"orders-api": 1}}, R.TOKEN_CLAIM_INVALID),
    "iss number": ({"iss": 1}, R.TOKEN_CLAIM_INVALID),
    "iss list": ({"iss": ["https://issuer.example"]}, R.TOKEN_CLAIM_INVALID),
    "client_id list": ({"client_id": ["web"]}, R.TOKEN_CLAIM_INVALID),
    "username object": ({"username": {}}, R.TOKEN_CLAIM_INVALID),
    "jti number": ({"jti": 1}, R.TOKEN_CLAIM_INVALID),
    "scope list": ({"scope": ["orders:read"]}, R.TOKEN_CLAIM_INVALID),
    "scope number": ({"scope": 1}, R.TOKEN_CLAIM_INVALID),
    "roles numbers": ({"roles": [1]}, R.TOKEN_CLAIM_INVALID),
    "token_type refresh_token": ({"token_type": "refresh_token"}, R.TOKEN_TYPE_REFUSED),
    "token_type mac": ({"token_type": "mac"}, R.TOKEN_TYPE_REFUSED),
    "token_type list": ({"token_type": ["Bearer"]}, R.TOKEN_CLAIM_INVALID),
    "token_use refresh_token": ({"token_use": "refresh_token"}, R.TOKEN_TYPE_REFUSED),
    "token_use id": ({"token_use": "id"}, R.TOKEN_TYPE_REFUSED),
    "DPoP without cnf": ({"token_type": "DPoP"}, R.TOKEN_BINDING_UNSUPPORTED),
}


@pytest.mark.parametrize(("changes", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_an_answer_says_may_refuse_the_token(changes: dict[str, Any], reason: DenyReason) -> None:
    """Each is an answer about the token, which is kept for a short while; the challenge is invalid_token, 401."""
    found = read(**changes)
    rejected = proved(found)
    assert isinstance(rejected, Rejected)
    assert rejected.reason is reason
    assert (REASONS[reason].http_status, REASONS[reason].challenge) == (401, Challenge.INVALID_TOKEN)
    assert isinstance(found, Answer)
    assert found.until_us == NOW_US + 10 * SECOND_US


ACCEPTED: dict[str, dict[str, Any]] = {
    "exp in its leeway": {"exp": NOW_S - 29},
    "aud list": {"aud": ["other", "orders-api"]},
    "no iss": {"iss": None},
    "no client_id": {"client_id": None},
    "no scope": {"scope": None},
    "no token_type": {"token_type": None},
    "token_type in capitals": {"token_type": "BEARER"},
    "token_type access_token": {"token_type": "access_token"},
    "token_use access_token": {"token_use": "access_token"},
    "members nobody knows": {"x": {"y": [1, None]}},
    "nonce: the endpoint knows what it is": {"nonce": "n"},
}


@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_what_an_answer_may_say(changes: dict[str, Any]) -> None:
    """None of these refuses the token."""
    assert isinstance(proved(read(**changes)), Principal)


UNUSABLE: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"<html>",
    "list": b"[]",
    "null": b"null",
    "true": b"true",
    "no active": b"{}",
    "active text": b'{"active": "true"}',
    "active one": b'{"active": 1}',
    "active null": b'{"active": null}',
    "active list": b'{"active": [true]}',
    "active twice": b'{"active": false, "active": true}',
    "sub twice": b'{"active": true, "sub": "a", "sub": "b"}',
    "active in capitals": b'{"Active": true}',
    "NaN": b'{"active": true, "exp": NaN}',
    "number beyond a double": b'{"active": true, "exp": 1e400}',
    "lone surrogate": b'{"active": true, "sub": "\\ud800"}',
    "UTF-16": '{"active": true}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + b'{"active": true}',
    "not UTF-8": b'{"active": true, "sub": "\xff"}',
    "deep": b'{"active": true, "x": ' + b"[" * 1000 + b"]" * 1000 + b"}",
    "many values": b'{"active": true, "x": [' + b"0," * 1000 + b"0]}",
    "long integer": b'{"active": true, "exp": ' + b"1" * 5000 + b"}",
    "two objects": b'{"active": true}{"active": true}',
    "a signed answer (RFC 9701)": b"eyJhbGciOiJSUzI1NiJ9.eyJ0b2tlbl9pbnRyb3NwZWN0aW9uIjp7fX0.c2ln",
    "too large": b'{"active": true, "x": "' + b"x" * ANSWER_BYTES_MAX + b'"}',
}


@pytest.mark.parametrize("body", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_what_is_no_answer(body: bytes) -> None:
    """Nothing is known of the token then: denied with 503, and never left to Envoy, since the token may be why."""
    found = read_answer(POLICY, body, NOW_US)
    assert isinstance(found, Unanswered)
    assert not found.outage


def test_an_answer_of_the_longest_size_is_read() -> None:
    """N bytes are read, N+1 are not."""
    body = json.dumps(answer(x="")).encode()
    padded = body.replace(b'"x": ""', b'"x": "' + b"x" * (ANSWER_BYTES_MAX - len(body)) + b'"')
    assert len(padded) == ANSWER_BYTES_MAX
    assert isinstance(proved(read_answer(POLICY, padded, NOW_US)), Principal)
    assert isinstance(read_answer(POLICY, padded + b" ", NOW_US), Unanswered)


def test_the_policy_says_which_issuer_and_audience() -> None:
    """`iss` must be there and equal exactly; without a required audience one may be missing or empty, not another."""
    strict = introspection_policy(rules={"issuer": "https://issuer.example"})
    assert isinstance(proved(read(strict)), Principal)
    for wrong in ("https://issuer.example/", "https://issuer", None, ""):
        rejected = proved(read(strict, iss=wrong))
        assert isinstance(rejected, Rejected)
        assert rejected.reason is R.TOKEN_ISSUER_UNKNOWN
    open_audience = introspection_policy(rules={"audiences": frozenset(), "require_audience": False})
    assert isinstance(proved(read(open_audience, aud=None)), Principal)
    assert isinstance(proved(read(open_audience, aud=[])), Principal)
    assert isinstance(proved(read(open_audience, aud="other")), Rejected)


@pytest.mark.parametrize(("claim", "subject"), [("username", "alice@example.com"), ("client_id", "web")])
def test_the_policy_says_what_the_subject_is(claim: str, subject: str) -> None:
    """One member and no other: a caller cannot choose by leaving it out."""
    policy = introspection_policy(subject_claim=claim)
    principal = proved(read(policy, sub="somebody else"))
    assert isinstance(principal, Principal)
    assert principal.subject == principal.claims["sub"] == subject
    assert isinstance(proved(read(policy, **{claim: None})), Rejected)


def test_an_answer_ends_with_the_token_or_the_cap() -> None:
    """min(exp and leeway, cap)."""
    soon, late = read(exp=NOW_S + 5), read()
    assert isinstance(soon, Answer)
    assert isinstance(late, Answer)
    assert soon.until_us == NOW_US + 35 * SECOND_US
    assert late.until_us == NOW_US + 60 * SECOND_US


# -- the method


def ask(token: str, policy: IntrospectionPolicy = POLICY) -> Principal | NeedIntrospection | Rejected:
    return OpaqueTokens(policy).prove(token, NO_REQUEST, {}, NOW_US)


@pytest.mark.parametrize("token", ["a", "A-z0.9_~+/", "abc=", "a==", "x" * 2048])
def test_what_may_be_a_token_is_asked_about(token: str) -> None:
    """b64token (RFC 6750 section 2.1)."""
    need = ask(token)
    assert isinstance(need, NeedIntrospection)
    assert need.token == token
    assert token not in repr(need) or len(token) == 1


@pytest.mark.parametrize(
    "token", ["", "=", "a=b", " a", "a ", "a b", "a\n", "é", "a\x00", "a,b", "a%20", "a&token=b", "\ud800", "x" * 2049]
)
def test_garbage_costs_nobody_a_question(token: str) -> None:
    """Refused from the text alone, and quoted nowhere."""
    rejected = ask(token)
    assert isinstance(rejected, Rejected)
    assert rejected.reason is R.TOKEN_MALFORMED


def test_what_is_remembered_needs_no_question() -> None:
    """Once serving has begun with a policy; what was found for this request goes first, also a failure."""
    policy = introspection_policy()
    method, cache = OpaqueTokens(policy), AnswerCache()
    remember(cache, "abc", policy)
    assert isinstance(method.prove("abc", NO_REQUEST, {}, NOW_US), NeedIntrospection)
    policy.remembered.answers = cache
    assert isinstance(method.prove("abc", NO_REQUEST, {}, NOW_US), Principal)
    assert isinstance(method.prove("abd", NO_REQUEST, {}, NOW_US), NeedIntrospection)
    assert isinstance(method.prove("abc", NO_REQUEST, {}, NOW_US + 60 * SECOND_US), NeedIntrospection)
    failed = method.prove("abc", NO_REQUEST, {token_key(policy, "abc"): Unanswered("down")}, NOW_US)
    assert isinstance(failed, Rejected)


def test_a_finding_is_used_until_the_tokens_end() -> None:
    """What was found for this request is used however old the answer may get; the token's dates are looked at."""
    need = ask("abc")
    assert isinstance(need, NeedIntrospection)
    method, findings = OpaqueTokens(POLICY), {need.key: read()}
    assert isinstance(method.prove("abc", NO_REQUEST, findings, NOW_US), Principal)
    late = method.prove("abc", NO_REQUEST, findings, NOW_US + 630 * SECOND_US)
    assert isinstance(late, Rejected)
    assert late.reason is R.TOKEN_EXPIRED


@pytest.mark.parametrize("on_failure_error", [False, True])
@pytest.mark.parametrize("found", [None, Unanswered("down", outage=True), Unanswered("too many")])
def test_no_answer_is_a_refusal(found: Unanswered | None, on_failure_error: bool) -> None:
    """503; left to Envoy only where the endpoint itself fails and the policy says so."""
    policy = introspection_policy(on_failure_error=on_failure_error)
    rejected = OpaqueTokens(policy).prove("abc", NO_REQUEST, {token_key(policy, "abc"): found}, NOW_US)
    assert isinstance(rejected, Rejected)
    assert rejected.reason is R.INTROSPECTION_UNAVAILABLE
    assert rejected.as_error == (on_failure_error and found is not None and found.outage)


def test_two_endpoints_never_share_an_answer() -> None:
    """CVE-2026-33496: the same token at another URL, under another name or asked about as another client is another."""
    others = [
        POLICY,
        introspection_policy(url="https://issuer.example/introspect2"),
        introspection_policy(name="other"),
        introspection_policy(token_type_hint=False),
        introspection_policy(client=PrivateKeyJwt("sidecar", "/k", None, "a")),
        introspection_policy(client=PrivateKeyJwt("sidecar2", "/k", None, "a")),
    ]
    keys = {token_key(policy, "abc") for policy in others}
    assert len(keys) == len(others)
    assert token_key(POLICY, "abc") != token_key(POLICY, "abcd")


def test_the_place_is_the_rules() -> None:
    """The method looks where it is told."""
    place = HeaderPlace("x-token")
    assert OpaqueTokens(POLICY, place).shown(NO_REQUEST) is None
    assert OpaqueTokens(POLICY).shown(NO_REQUEST) is None


# -- together with what else is asked of callers

CERTIFICATE = b"\x30\x03\x02\x01\x07"
MESH = CertificateTrust(name="mesh", source=CertificateSource.CLIENT_CERT, proxies=(ip_network("10.0.0.0/8"),))
BOTH = Binding(dpop=DpopPolicy(algorithms=frozenset({"ES256"})), certificates=MESH)


class NoKeys:
    def keys(self, _issuer: object) -> None:
        return None


def composed(
    method: OpaqueTokens, request: RequestContext, findings: Any, revocations: Revocations = NO_REVOCATIONS
) -> Principal | Need | Rejected:
    composition = Composition(methods=(method,))
    return compose(composition, request, {}, TokenCache(), NoKeys(), NOW_US, findings, revocations)


def showing(authorization: str, **headers: str) -> RequestContext:
    return bound_request("", None, headers={"authorization": authorization} | headers, source_address="10.1.2.3")


def test_a_token_of_a_certificate_needs_it_on_every_request() -> None:
    """RFC 8705 section 3.2: however often the answer is remembered, and refused where the policy trusts none."""
    cnf = {"x5t#S256": b64(sha256(CERTIFICATE).digest())}
    policy = introspection_policy(rules={"binding": BOTH})
    policy.remembered.answers = cache = AnswerCache()
    remember(cache, "abc", policy, cnf=cnf)
    method = OpaqueTokens(policy)
    for _ in range(2):
        shown = showing("Bearer abc", **{"client-cert": f":{b64encode(CERTIFICATE).decode()}:"})
        assert isinstance(composed(method, shown, {}), Principal)
        other = showing("Bearer abc", **{"client-cert": f":{b64encode(CERTIFICATE + b'x').decode()}:"})
        for request in (showing("Bearer abc"), other):
            assert isinstance(composed(method, request, {}), Rejected)
    assert isinstance(proved(read(cnf=cnf)), Rejected)


def test_a_token_of_a_key_needs_a_proof_on_every_request() -> None:
    """RFC 9449: a proof for this very token, under the scheme DPoP; and it is still to be seen whether it is fresh."""
    policy = introspection_policy(rules={"binding": BOTH})
    method = OpaqueTokens(policy, HeaderPlace("authorization", ("bearer", "dpop")))
    findings = {token_key(policy, "abc"): read(policy, cnf={"jkt": jkt()}, token_type="DPoP")}
    good = composed(method, bound_request("abc", proof("abc")), findings)
    assert isinstance(good, NeedFirstUse)
    refused = [bound_request("abc", None), bound_request("abc", proof("other")), showing("Bearer abc")]
    for request in refused:
        assert isinstance(composed(method, request, findings), Rejected)
    unbound = {token_key(policy, "abc"): read(policy)}
    assert isinstance(composed(method, bound_request("abc", proof("abc")), unbound), Rejected)
    demanding = OpaqueTokens(policy, method.place, require_dpop=True)
    assert isinstance(composed(demanding, showing("Bearer abc"), unbound), Rejected)


def test_a_revoked_token_is_refused_though_it_is_remembered() -> None:
    """By its `jti`, under the policy's name for the endpoint: at once, on every request."""
    policy = introspection_policy()
    policy.remembered.answers = cache = AnswerCache()
    remember(cache, "abc", policy)
    revocations = Revocations()
    request = showing("Bearer abc")
    assert isinstance(composed(OpaqueTokens(policy), request, {}, revocations), Principal)
    revocations.add(Revocation(Kind.TOKEN, "legacy", "7f1c", 0, NEVER_US))
    refused = composed(OpaqueTokens(policy), request, {}, revocations)
    assert isinstance(refused, Rejected)
    assert refused.reason is R.TOKEN_REVOKED
    revocations.remove(Kind.TOKEN, "legacy", "7f1c")
    assert isinstance(composed(OpaqueTokens(policy), request, {}, revocations), Principal)


def test_a_good_caller_beside_a_suspect_is_known() -> None:
    """Where nothing may be asked for a source any more, a remembered token still counts; an unknown one would ask."""
    policy = introspection_policy()
    policy.remembered.answers = cache = AnswerCache()
    remember(cache, "abc", policy)
    assert isinstance(composed(OpaqueTokens(policy), showing("Bearer abc"), KNOWN_ALONE), Principal)
    assert not isinstance(composed(OpaqueTokens(policy), showing("Bearer abd"), KNOWN_ALONE), Principal)


# -- the cache


def find(cache: AnswerCache, token: str, policy: IntrospectionPolicy = POLICY, *, at_us: int = NOW_US) -> Answer | None:
    return cache.find(policy, token_key(policy, token), at_us)


def remember(cache: AnswerCache, token: str, policy: IntrospectionPolicy = POLICY, **changes: Any) -> None:
    found = read(policy, **changes)
    assert isinstance(found, Answer)
    cache.put(token_key(policy, token), found)


def test_answers_are_found_until_their_end() -> None:
    """To the microsecond; and not by a clock that was set back."""
    cache = AnswerCache()
    remember(cache, "abc")
    remember(cache, "bad", active=False)
    for token, seconds in (("abc", 60), ("bad", 10)):
        assert find(cache, token) is not None
        assert find(cache, token, at_us=NOW_US + seconds * SECOND_US - 1) is not None
        assert find(cache, token, at_us=NOW_US + seconds * SECOND_US) is None
        assert find(cache, token, at_us=NOW_US - 2 * SECOND_US) is None
    assert cache.hits == 4


def test_another_policy_ends_an_answer() -> None:
    """What was believed by other rules is asked for again; an equal policy keeps it."""
    cache = AnswerCache()
    remember(cache, "abc")
    assert find(cache, "abc", introspection_policy()) is not None
    changed = introspection_policy(rules={"audiences": frozenset({"other"})})
    assert token_key(changed, "abc") == token_key(POLICY, "abc")
    assert find(cache, "abc", changed) is None
    cache.keep({"legacy": POLICY})
    assert cache.sizes == (1, 0)
    cache.keep({"legacy": changed})
    assert cache.sizes == (0, 0)
    assert cache.size_bytes == 0


def test_refused_tokens_push_out_no_active_ones() -> None:
    """Each kind has a bound of its own, at N and N+1; the one used longest ago goes first."""
    cache = AnswerCache(active_entries_max=2, refused_entries_max=3)
    for token in ("a", "b"):
        remember(cache, token)
    for n in range(10):
        remember(cache, f"bad{n}", active=False)
    assert cache.sizes == (2, 3)
    assert cache.evictions == 7
    assert find(cache, "a") is not None
    remember(cache, "c")
    assert find(cache, "b") is None
    assert find(cache, "a") is not None
    assert cache.sizes == (2, 3)


def test_memory_is_bounded() -> None:
    """By bytes, too: answers may be long."""
    sample = read(x="y" * 1000)
    assert isinstance(sample, Answer)
    cache = AnswerCache(active_bytes_max=2 * sample.cost_bytes)
    for token in ("a", "b", "c"):
        remember(cache, token, x="y" * 1000)
    assert cache.sizes == (2, 0)
    assert cache.size_bytes == 2 * sample.cost_bytes
    remember(cache, "huge", x="y" * 5000)
    assert find(cache, "huge") is None


def test_a_token_that_becomes_inactive_is_no_longer_active() -> None:
    """The later answer counts, and nothing of the earlier one is left."""
    cache = AnswerCache()
    remember(cache, "abc")
    assert cache.was_active(token_key(POLICY, "abc"))
    remember(cache, "abc", active=False)
    assert not cache.was_active(token_key(POLICY, "abc"))
    assert cache.sizes == (0, 1)
    remember(cache, "abc")
    assert cache.sizes == (1, 0)


@pytest.mark.parametrize("active", [True, False])
def test_without_a_cache_nothing_is_kept(active: bool) -> None:
    """`0s`: asked each time."""
    policy = introspection_policy(active_s=0.0, inactive_s=0.0)
    cache = AnswerCache()
    remember(cache, "abc", policy, active=active)
    assert cache.sizes == (0, 0)


# -- the budget


def test_the_budget_is_the_rate_and_keeps_a_quarter_for_known_tokens() -> None:
    """Strangers get three quarters of it at once, known tokens all of it; then each what comes in with time."""
    policy = introspection_policy(rate_count=8, rate_us=8 * SECOND_US)
    budget = QuestionBudget(policy, 0)
    assert [budget.take(0, was_active=False) for _ in range(7)] == [True] * 6 + [False]
    assert [budget.take(0, was_active=True) for _ in range(3)] == [True, True, False]
    assert not budget.take(SECOND_US, was_active=False)
    assert budget.take(SECOND_US, was_active=True)
    assert not budget.take(2 * SECOND_US - 1, was_active=True)
    assert [budget.take(100 * SECOND_US, was_active=False) for _ in range(7)] == [True] * 6 + [False]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_small_budget_is_not_nothing(count: int) -> None:
    """With so few there is no quarter to keep."""
    budget = QuestionBudget(introspection_policy(rate_count=count), 0)
    assert [budget.take(0, was_active=False) for _ in range(count + 1)] == [True] * count + [False]
    assert budget.take(SECOND_US, was_active=False)


def test_a_clock_that_goes_back_gives_nothing() -> None:
    """Nor takes anything."""
    budget = QuestionBudget(introspection_policy(rate_count=1), 10 * SECOND_US)
    assert budget.take(10 * SECOND_US, was_active=True)
    assert not budget.take(0, was_active=True)


# -- fuzz


def test_whatever_an_answer_is_it_is_one_of_three_things() -> None:
    """Permitted: a principal whose answer says `active: true` and names it, a refusal, or no answer. No exception."""
    rng = random.Random(7662)
    good = json.dumps(answer()).encode()
    pieces = [
        b"true",
        b"false",
        b"null",
        b"[]",
        b"{}",
        b'"',
        b"\\ud800",
        b"1e999",
        b"-1",
        b"NaN",
        b"\xff",
        b",",
        b"cnf",
    ]
    counts = {Principal: 0, Rejected: 0, Unanswered: 0}
    for _ in range(4000):
        raw = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(raw))
            end = min(len(raw), at + rng.randint(0, 6))
            raw[at:end] = rng.choice([rng.choice(pieces), rng.randbytes(rng.randint(0, 3)), bytes(raw[at:end]) * 2])
        found = read_answer(POLICY, bytes(raw), NOW_US)
        outcome = found if isinstance(found, Unanswered) else found.at(NOW_US)
        counts[type(outcome)] += 1
        if isinstance(outcome, Principal):
            members = json.loads(bytes(raw))
            assert members["active"] is True
            assert members["sub"] == outcome.subject
            assert "cnf" not in members
    assert all(counts.values()), counts


def test_whatever_values_members_have() -> None:
    """The same over well-formed answers with any value in any place."""
    rng = random.Random(7663)
    values: list[Any] = [True, False, None, 0, -1, 1.5, 2**60, "", "x", "Bearer", [], ["x"], [None], {}, {"jkt": "x"}]
    names = [*answer(), "nbf", "cnf", "roles", "token_use", "azp"]
    for _ in range(4000):
        members = answer() | {rng.choice(names): rng.choice(values) for _ in range(rng.randint(1, 4))}
        found = read_answer(POLICY, json.dumps(members).encode(), NOW_US)
        if isinstance(found, Answer) and found.active:
            assert members["active"] is True
            assert "cnf" not in members
