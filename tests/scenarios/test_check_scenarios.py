"""Policy and request in; decision, answer, and the state that is left behind out: the service as a specification."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from sidecar.core.decision import DenyReason
from sidecar.core.limits import StoreFailure
from sidecar.edges.local_store import LocalStore
from sidecar.envoy import ext_authz
from sidecar.envoy.pb.ext_authz_pb2 import CheckRequest, CheckResponse
from sidecar.transport.service import Refusal
from tests.scenarios.test_credential_scenarios import CASES as CREDENTIALS
from tests.scenarios.test_proof_scenarios import CASES as PROOFS
from tests.support.asking import until
from tests.support.deciding import (
    KEY,
    KEYLESS_ISSUER,
    OTHER_KEY,
    POLICY,
    FailingStore,
    UnansweringStore,
    check_request,
    compiled,
    deciding,
    token,
)

if TYPE_CHECKING:
    from sidecar.core.policy import Policy

R = DenyReason


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return compiled(tmp_path_factory.mktemp("policy"))


class Denial(NamedTuple):
    """A request that must be denied.

    Attributes:
        message: Made when it is asked: tokens are dated.
        status: HTTP.
        cached: Whether the token was proved, and is remembered.
        counters: Counters that exist afterwards.
        earlier: Requests before it, each of which is allowed.
    """

    reason: DenyReason
    message: Callable[[], bytes]
    status: int
    cached: bool = False
    counters: int = 0
    earlier: int = 0


def orders(**changes: object) -> Callable[[], bytes]:
    return lambda: check_request("/orders/1", token(**changes))


def with_header(**changes: object) -> Callable[[], bytes]:
    return lambda: check_request("/orders/1", token(header=changes))


def authorization(*values: str) -> Callable[[], bytes]:
    return lambda: check_request("/orders/1", headers=[("authorization", value) for value in values])


def many_headers() -> bytes:
    return check_request(headers=[(f"x-{number}", "") for number in range(ext_authz.HEADERS_MAX + 1)])


def two_raw_credentials() -> bytes:
    request = CheckRequest.FromString(check_request("/orders/1"))
    for _ in range(2):
        request.attributes.request.http.header_map.headers.add(key="Authorization", raw_value=b"Bearer x")
    return request.SerializeToString()


def in_s(seconds: int) -> int:
    return int(time.time()) + seconds


DENIALS = {
    "not a CheckRequest": Denial(R.REQUEST_UNDECODABLE, lambda: b"\xff\xff", 400),
    "an empty message": Denial(R.REQUEST_UNDECODABLE, lambda: b"", 400),
    "no path": Denial(R.REQUEST_UNDECODABLE, lambda: check_request(""), 400),
    "too many headers": Denial(R.REQUEST_TOO_LARGE, many_headers, 413),
    "a host with user information": Denial(R.REQUEST_MALFORMED, lambda: check_request(host="u:p@h"), 400),
    "no host": Denial(R.REQUEST_MALFORMED, lambda: check_request(host=""), 400),
    "a method in small letters": Denial(R.REQUEST_MALFORMED, lambda: check_request(method="post"), 400),
    "a method in long s": Denial(R.REQUEST_MALFORMED, lambda: check_request(method="PO\u017fT"), 400),
    "a method with a line feed": Denial(R.REQUEST_MALFORMED, lambda: check_request(method="GET\n"), 400),
    "a path upwards": Denial(R.PATH_AMBIGUOUS, lambda: check_request("/public/../admin"), 400),
    "a path with an encoded slash": Denial(R.PATH_AMBIGUOUS, lambda: check_request("/public%2fx"), 400),
    "nothing matches": Denial(R.NO_RULE, lambda: check_request("/other"), 403),
    "no credential": Denial(R.CREDENTIAL_MISSING, lambda: check_request("/orders/1"), 401),
    "another scheme": Denial(R.CREDENTIAL_MISSING, authorization("Basic eDp5"), 401),
    "a tab after the scheme": Denial(R.CREDENTIAL_MISSING, authorization("Bearer\tx.y.z"), 401),
    "two merged credentials": Denial(R.CREDENTIAL_REPEATED, authorization("Bearer a,Bearer b"), 400),
    "two spellings of the header": Denial(
        R.CREDENTIAL_REPEATED,
        lambda: check_request("/orders/1", headers=[("authorization", "Bearer a"), ("Authorization", "Bearer b")]),
        400,
    ),
    "two raw credentials": Denial(R.CREDENTIAL_REPEATED, two_raw_credentials, 400),
    "a scheme alone": Denial(R.CREDENTIAL_MALFORMED, authorization("bearer"), 400),
    "two spaces": Denial(R.CREDENTIAL_MALFORMED, authorization("Bearer  x.y.z"), 400),
    "no token": Denial(R.TOKEN_MALFORMED, authorization("Bearer x"), 401),
    "a token and more": Denial(R.TOKEN_MALFORMED, lambda: check_request("/orders/1", token() + " x"), 401),
    "an extension that is critical": Denial(R.TOKEN_HEADER_REFUSED, with_header(crit=["exp"]), 401),
    "alg none": Denial(R.TOKEN_ALGORITHM_REFUSED, with_header(alg="none"), 401),
    "an algorithm that is not in the policy": Denial(R.TOKEN_ALGORITHM_REFUSED, with_header(alg="RS256"), 401),
    "a token of another type": Denial(R.TOKEN_TYPE_REFUSED, with_header(typ="logout+jwt"), 401),
    "an ID token": Denial(R.TOKEN_TYPE_REFUSED, orders(nonce="n"), 401),
    "a foreign issuer": Denial(R.TOKEN_ISSUER_UNKNOWN, orders(iss="https://other.example"), 401),
    "an issuer of another rule": Denial(R.TOKEN_ISSUER_UNKNOWN, orders(iss=KEYLESS_ISSUER), 401),
    "an unpublished key": Denial(R.TOKEN_KEY_UNKNOWN, with_header(kid="k2"), 401),
    "somebody else's signature": Denial(R.TOKEN_SIGNATURE_INVALID, orders(key=OTHER_KEY), 401),
    "no subject": Denial(R.TOKEN_CLAIM_INVALID, orders(sub=None), 401),
    "no expiry": Denial(R.TOKEN_CLAIM_INVALID, orders(exp=None), 401),
    "another audience": Denial(R.TOKEN_AUDIENCE_MISMATCH, orders(aud="billing-api"), 401),
    "expired": Denial(R.TOKEN_EXPIRED, lambda: check_request("/orders/1", token(exp=in_s(-31))), 401),
    "not yet valid": Denial(R.TOKEN_NOT_YET_VALID, lambda: check_request("/orders/1", token(nbf=in_s(60))), 401),
    "a token bound to a key": Denial(R.TOKEN_BINDING_UNSUPPORTED, orders(cnf={"jkt": "x"}), 401),
    "an issuer without keys": Denial(
        R.KEYS_UNAVAILABLE, lambda: check_request("/keyless", token(iss=KEYLESS_ISSUER)), 503
    ),
    "another scope": Denial(R.SCOPE_INSUFFICIENT, orders(scope="orders:reader orders:"), 403, cached=True),
    "no role": Denial(R.ROLE_MISSING, lambda: check_request("/admin", token(roles=["user"])), 403, cached=True),
    "a cost that is no number": Denial(
        R.COST_MALFORMED, lambda: check_request("/weighed", headers=[("x-cost", "-1")]), 400
    ),
    "no cost": Denial(R.COST_MALFORMED, lambda: check_request("/weighed"), 400),
    "one too many": Denial(
        R.LIMIT_EXCEEDED, lambda: check_request("/tight", token()), 429, cached=True, counters=1, earlier=2
    ),
}

REFUSALS = {
    Refusal.MESSAGE_TOO_LARGE: (R.REQUEST_TOO_LARGE, 413),
    Refusal.METADATA_TOO_LARGE: (R.REQUEST_TOO_LARGE, 413),
    Refusal.MESSAGE_MALFORMED: (R.REQUEST_UNDECODABLE, 400),
    Refusal.COMPRESSION_UNSUPPORTED: (R.REQUEST_UNDECODABLE, 400),
    Refusal.TIMEOUT_MALFORMED: (R.REQUEST_UNDECODABLE, 400),
    Refusal.DEADLINE_EXCEEDED: (R.DEADLINE_EXCEEDED, 503),
    Refusal.OVERLOADED: (R.OVERLOADED, 503),
    Refusal.SHUTTING_DOWN: (R.SHUTTING_DOWN, 503),
    Refusal.HANDLER_FAILED: (R.INTERNAL, 500),
}
"""What the transport refuses, the service denies."""

WITHOUT_STORE = {
    "/deny": (R.LIMITS_UNAVAILABLE, "denied_response"),
    "/error": (R.LIMITS_UNAVAILABLE, "error_response"),
    "/local": (None, "ok_response"),
    "/allow": (None, "ok_response"),
}
"""Rules whose limits wish several things; the strictest is granted."""


AMONG_PROOFS = {R.DPOP_PROOF_REPLAYED, R.DPOP_NONCE_REQUIRED, R.INTROSPECTION_UNAVAILABLE}
"""Take more than one request, or another policy: tests of their own beside the tables of credentials."""


def test_every_reason_is_covered() -> None:
    """There is a scenario for each reason, and for each of the transport's refusals."""
    by_request = {denial.reason for denial in DENIALS.values()}
    by_credential = {case.outcome for cases in (CREDENTIALS, PROOFS) for case in cases.values()}
    by_transport = {reason for reason, _ in REFUSALS.values()}
    without_store = {reason for reason, _ in WITHOUT_STORE.values()} - {None}
    covered = {outcome for outcome in by_credential if isinstance(outcome, DenyReason)} | AMONG_PROOFS
    assert covered | by_request | by_transport | without_store == set(DenyReason)
    assert set(REFUSALS) == set(Refusal)


def assert_denied(response: CheckResponse, reason: DenyReason, status: int) -> None:
    assert response.status.code != 0
    assert not response.HasField("ok_response")
    assert response.denied_response.status.code == status
    assert response.dynamic_metadata["reason"] == reason.value


@pytest.mark.parametrize("denial", DENIALS.values(), ids=DENIALS)
async def test_a_request_is_denied_for_its_one_reason(policy: Policy, denial: Denial) -> None:
    """The answer is a denial with the reason's status, and nothing but what was proved or taken is left behind."""
    store = LocalStore()
    async with deciding(policy, store) as it:
        message = denial.message()
        for _ in range(denial.earlier):
            assert (await it.ask(message)).status.code == 0
        assert_denied(await it.ask(message), denial.reason, denial.status)
        assert [event.decision.reason for event in it.events] == [None] * denial.earlier + [denial.reason]
        assert it.events[-1].decision.generation == policy.generation
        assert len(it.cache) == denial.cached
        assert store.keys == denial.counters
        assert it.local.keys == 0
        assert it.bugs == []


@pytest.mark.parametrize("refusal", Refusal)
async def test_a_refused_call_is_a_denial(policy: Policy, refusal: Refusal) -> None:
    """What the transport refuses is a CheckResponse that denies, with one event."""
    async with deciding(policy) as it:
        assert_denied(CheckResponse.FromString(it.service.refuse(refusal)), *REFUSALS[refusal])
        (event,) = it.events
        assert (event.decision.reason, event.request) == (REFUSALS[refusal][0], None)


@pytest.mark.parametrize("failure", StoreFailure)
@pytest.mark.parametrize("path", WITHOUT_STORE)
async def test_the_policy_says_what_happens_without_the_store(policy: Policy, path: str, failure: StoreFailure) -> None:
    """The strictest wish of the rule's limits is granted; only `local` counts, and only in this process."""
    reason, kind = WITHOUT_STORE[path]
    async with deciding(policy, FailingStore(failure)) as it:
        response = await it.ask(check_request(path))
        assert response.WhichOneof("http_response") == kind
        assert (response.status.code == 0) is (reason is None)
        (event,) = it.events
        assert event.decision.reason is reason
        assert event.decision.degraded is (reason is None)
        assert it.local.keys == (path == "/local")


async def test_a_local_limit_is_a_limit(policy: Policy) -> None:
    """While the store is away, this process denies what exceeds the limit by its own count."""
    async with deciding(policy, FailingStore(StoreFailure.UNREACHABLE)) as it:
        assert (await it.ask(check_request("/local"))).status.code == 0
        assert_denied(await it.ask(check_request("/local")), R.LIMIT_EXCEEDED, 429)


async def test_a_proved_token_is_proved_once_and_checked_each_time(policy: Policy) -> None:
    """The second Check finds the token in the cache; another rule's scope is asked for all the same."""
    async with deciding(policy) as it:
        credential = token(scope="orders:read")
        assert (await it.ask(check_request("/orders/1", credential))).status.code == 0
        assert (await it.ask(check_request("/orders/1", credential))).status.code == 0
        assert (it.cache.hits, len(it.cache)) == (1, 1)
        assert_denied(await it.ask(check_request("/admin", credential)), R.ROLE_MISSING, 403)


def told(response: CheckResponse) -> dict[str, str]:
    return {option.header.key: option.header.value for option in response.ok_response.headers}


async def test_callers_never_get_one_anothers_headers(policy: Policy) -> None:
    """Two callers in turn, on two rules, are each told of as themselves, and what is not set is removed."""
    async with deciding(policy) as it:
        alice, bob = token(sub="alice"), token(sub="bob", scope="orders:read")
        for _ in range(3):
            for credential, subject in ((alice, "alice"), (bob, "bob")):
                response = await it.ask(check_request(f"/orders/{subject}", credential))
                assert told(response)["x-user-id"] == subject
                assert told(response)["x-order"] == subject
                response = await it.ask(check_request("/public/x", credential, method="POST"))
                assert told(response)["x-user-id"] == subject
                assert "x-order" in response.ok_response.headers_to_remove
        response = await it.ask(check_request("/public/x", alice))
        assert told(response) == {}
        assert {"x-user-id", "x_user_id", "x-order", "authorization"} <= {*response.ok_response.headers_to_remove}


async def test_a_header_more_reaches_no_weaker_rule(policy: Policy) -> None:
    """Whatever headers a caller adds, a method that needs a credential needs it still."""
    async with deciding(policy) as it:
        for name in ("x-http-method-override", "x-forwarded-host", "x-original-url", ":path", ":method", ":authority"):
            response = await it.ask(check_request("/public/x", method="POST", headers=[(name, "/public/page")]))
            assert_denied(response, R.CREDENTIAL_MISSING, 401)


async def test_a_check_sees_one_policy_from_beginning_to_end(policy: Policy, tmp_path: Path) -> None:
    """A policy that is replaced while a Check waits changes nothing about it, and everything about the next."""
    store = UnansweringStore()
    async with deciding(policy, store) as it:
        call = it.begin(check_request("/tight", token()))
        it.policy = compiled(tmp_path, POLICY.replace("path: {exact: /tight}", "path: {exact: /gone}"), generation=2)
        it.jwks.replace(it.policy.issuers.values())
        ((charges, done),) = store.asked
        LocalStore().charge(charges, 0.0, done)
        assert call.response.status.code == 0
        assert it.events[-1].decision.generation == 1
        assert_denied(await it.ask(check_request("/tight", token())), R.NO_RULE, 403)
        assert it.events[-1].decision.generation == 2


@pytest.mark.parametrize(
    ("written", "instead", "reason"),
    [
        ("audiences: [orders-api]", "audiences: [billing-api]", R.TOKEN_AUDIENCE_MISMATCH),
        ("algorithms: [ES256]", "algorithms: [ES384]", R.TOKEN_ALGORITHM_REFUSED),
        ("issuer: https://issuer.example", "issuer: https://issuer.example/", R.TOKEN_ISSUER_UNKNOWN),
        ("    roles_claim: roles\n", "    token_types: [at+jwt]\n", R.TOKEN_TYPE_REFUSED),
    ],
)
async def test_a_stricter_policy_believes_no_cached_token(
    policy: Policy, tmp_path: Path, written: str, instead: str, reason: DenyReason
) -> None:
    """A token that was proved under the old policy is proved anew under the new one, and refused."""
    async with deciding(policy) as it:
        message = check_request("/orders/1", token())
        assert (await it.ask(message)).status.code == 0
        assert written in POLICY
        it.policy = compiled(tmp_path, POLICY.replace(written, instead, 1), generation=2)
        it.jwks.replace(it.policy.issuers.values())
        await until(lambda: it.jwks.ready)
        assert_denied(await it.ask(message), reason, 401)


async def test_a_withdrawn_key_vouches_for_nobody(policy: Policy, tmp_path: Path) -> None:
    """A cached token dies with the key that proved it, also where the same kid is given to another key."""
    async with deciding(policy) as it:
        message = check_request("/orders/1", token())
        assert (await it.ask(message)).status.code == 0
        it.policy = compiled(tmp_path, generation=2, keys=[OTHER_KEY.renamed(KEY.kid)])
        it.jwks.replace(it.policy.issuers.values())
        await until(lambda: it.jwks.ready)
        assert_denied(await it.ask(message), R.TOKEN_SIGNATURE_INVALID, 401)


async def test_a_late_verdict_is_nobodys_answer(policy: Policy) -> None:
    """After the transport has refused a call, whatever the store still says is dropped, and counted as nothing."""
    store = UnansweringStore()
    async with deciding(policy, store) as it:
        call = it.begin(check_request("/allow"))
        call.cancelled = True
        for verdict in (StoreFailure.TIMEOUT, StoreFailure.UNREACHABLE):
            store.asked[0][1](verdict)
        assert call.answers == []
        assert it.events == []


async def test_a_fault_of_ours_is_a_denial(policy: Policy) -> None:
    """A verdict that nobody can read ends in INTERNAL, and is reported."""
    store = UnansweringStore()
    async with deciding(policy, store) as it:
        call = it.begin(check_request("/allow"))
        store.asked[0][1](object())  # type: ignore[arg-type]
        assert_denied(call.response, R.INTERNAL, 500)
        assert [type(bug) for bug in it.bugs] == [AttributeError]
        assert [event.decision.reason for event in it.events] == [R.INTERNAL]


@pytest.mark.parametrize("path", ["/public/page", "/orders/1", "/allow", "/deny", "//"])
async def test_who_counts_and_records_never_decides(policy: Policy, path: str) -> None:
    """A sink that fails changes no answer, neither of a decision nor of a refusal; the fault is reported."""
    async with deciding(policy) as it, deciding(policy) as sound:
        it.sink_fault = RuntimeError("no space left")
        message = check_request(path)
        assert (await it.ask(message)).SerializeToString() == (await sound.ask(message)).SerializeToString()
        assert it.service.refuse(Refusal.OVERLOADED) == sound.service.refuse(Refusal.OVERLOADED)
        assert it.bugs == [it.sink_fault] * 2


async def test_a_clock_that_is_set_back_counts_no_negative_time(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A latency is never below zero."""
    async with deciding(policy) as it:
        times = iter((2 * 10**18, 10**18))
        monkeypatch.setattr(time, "time_ns", lambda: next(times))
        it.begin(check_request())
        assert it.events[0].latency_us == 0


async def test_what_waits_holds_no_body(policy: Policy) -> None:
    """Headers of a large request are kept apart from it, with the values that they had."""
    async with deciding(policy) as it:
        headers = [("x-filler", "f" * ext_authz.PARSED_BYTES_KEPT_MAX), ("x-small", "1")]
        await it.ask(check_request(headers=headers))
        request = it.events[0].request
        assert request is not None
        assert type(request.headers) is dict
        assert request.headers == dict(headers)


@pytest.mark.parametrize("other", ["x-note", "X-Note", "1", "\U0001d400"])
def test_a_repeated_raw_header_stays_noted(other: str) -> None:
    """Whatever other names there are: two credentials are two, however their values are joined."""
    request = CheckRequest.FromString(two_raw_credentials())
    request.attributes.request.http.header_map.headers.add(key=other, raw_value=b"1")
    context = ext_authz.decode(request.SerializeToString())
    assert not isinstance(context, DenyReason)
    assert context.repeated == {"authorization"}
