"""Credentials in every place and composition: what is asked for, what is shown, and what is decided of it."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from sidecar.check import NEEDS_MAX
from sidecar.core.decision import DenyReason
from sidecar.core.introspection import NeedIntrospection, OpaqueTokens, read_answer
from tests.support.deciding import check_request, compiled, deciding, token
from tests.support.tokens import AUDIENCE, ISSUER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sidecar.core.policy import Policy
    from sidecar.envoy.pb.ext_authz_pb2 import CheckResponse
    from tests.support.deciding import Deciding

R = DenyReason
Headers = list[tuple[str, str]]

OTHER_ISSUER = "https://other.example"

POLICY = f"""
redis: {{url: "redis://127.0.0.1:1/0"}}
issuers:
  main:
    issuer: {ISSUER}
    audiences: [{AUDIENCE}]
    algorithms: [ES256]
    keys: {{jwks_file: keys.json}}
    tenant: acme
    tier_claim: plan
  other:
    issuer: {OTHER_ISSUER}
    audiences: [{AUDIENCE}]
    algorithms: [ES256]
    keys: {{jwks_file: keys.json}}
    tenant_claim: tid
introspection:
  legacy:
    url: https://legacy.example/introspect
    audiences: [{AUDIENCE}]
    client: {{basic: {{id: sidecar, secret_file: secret}}}}
limits:
  by-tier:
    rate: 1/day
    key: {{principal: subject}}
    plans: {{by: {{principal: tier}}, rates: {{gold: 3/day}}}}
upstream:
  headers: {{x-user-id: {{claim: sub}}, x-method: {{principal: method}}, x-tenant: {{principal: tenant}}}}
rules:
  - {{name: open, match: {{path: {{prefix: /open}}}}, anonymous: true}}
  - name: anywhere
    match: {{path: {{prefix: /anywhere}}}}
    authenticate:
      any_of:
        - token: {{issuers: [main]}}
        - opaque_token: {{introspection: legacy}}
        - token: {{issuers: [main], in: {{header: X-Token}}}}
        - token: {{issuers: [main], in: {{cookie: session}}}}
        - token: {{issuers: [other], in: {{query: access_token}}}}
  - name: scheme
    match: {{path: {{prefix: /scheme}}}}
    authenticate: {{any_of: [{{token: {{issuers: [main], in: {{header: authorization, scheme: Token}}}}}}]}}
  - name: both
    match: {{path: {{prefix: /both}}}}
    authenticate:
      all_of: [{{token: {{issuers: [main]}}}}, {{token: {{issuers: [other], in: {{header: x-app}}}}}}]
    upstream: {{headers: {{x-app-id: {{claim: other_credentials.token.sub}}}}}}
  - name: strong
    match: {{path: {{prefix: /strong}}}}
    authenticate: {{issuers: [main], step_up: {{acr: [phr, mfa], max_age: 5m}}}}
  - name: tenant-of-path
    match: {{path: {{template: "/tenants/{{tenant}}"}}}}
    authenticate: {{issuers: [main, other], tenant: {{path_parameter: tenant}}}}
  - name: tenant-of-host
    match: {{host: "*.api.example.com", path: {{prefix: /}}}}
    authenticate: {{issuers: [main, other], tenant: {{host_label: 0}}}}
  - name: one-tenant
    match: {{path: {{prefix: /acme}}}}
    authenticate: {{issuers: [main, other], tenant: {{constant: acme}}}}
  - {{name: tiered, match: {{path: {{prefix: /tiered}}}}, authenticate: {{issuers: [main]}}, limits: [by-tier]}}
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    directory = tmp_path_factory.mktemp("policy")
    (directory / "secret").write_text("swordfish")
    return compiled(directory, POLICY)


OPAQUE = {"opaque-alice": "alice", "v1.opaque.alice": "alice"}
"""Tokens that the endpoint knows."""


class Endpoint:
    """Stands for the engine that asks the endpoint: answers at once, and counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask(self, need: NeedIntrospection, deadline: float, done: Callable[[Any], None]) -> None:
        assert deadline > 0
        self.asked.append(need.token)
        subject = OPAQUE.get(need.token)
        said = b'{"active":false}'
        if subject is not None:
            said = json.dumps({"active": True, "sub": subject, "aud": AUDIENCE, "exp": in_s(60)}).encode()
        done(read_answer(need.policy, said, time.time_ns() // 1000))


@pytest.fixture
async def it(policy: Policy) -> AsyncIterator[Deciding]:
    async with deciding(policy, engines={NeedIntrospection: Endpoint().ask}) as service:
        yield service
        assert service.bugs == []


def other(**changes: Any) -> str:
    claims: dict[str, Any] = {"sub": "app", **changes}
    return token(iss=OTHER_ISSUER, **claims)


def in_s(seconds: int) -> int:
    return int(time.time()) + seconds


class Case(NamedTuple):
    """A request, and what is decided of it: a reason, or who is told to the upstream."""

    path: str
    headers: Callable[[], Headers]
    outcome: DenyReason | str
    host: str = "api.example.com"


def bearer(make: Callable[[], str]) -> Callable[[], Headers]:
    return lambda: [("authorization", f"Bearer {make()}")]


def strong(**changes: Any) -> Callable[[], Headers]:
    def make() -> str:
        claims: dict[str, Any] = {"acr": "mfa", "auth_time": in_s(-10), **changes}
        return token(**claims)

    return bearer(make)


CASES = {
    "nothing": Case("/anywhere", list, R.CREDENTIAL_MISSING),
    "a bearer token": Case("/anywhere", bearer(token), "alice"),
    "an opaque token": Case("/anywhere", bearer(lambda: "opaque-alice"), "alice"),
    "an opaque token with dots": Case("/anywhere", bearer(lambda: "v1.opaque.alice"), "alice"),
    "an opaque token that is not active": Case("/anywhere", bearer(lambda: "opaque-bob"), R.TOKEN_INACTIVE),
    "what looks like a token goes to no endpoint": Case("/anywhere", bearer(lambda: "eyJ.a.b"), R.TOKEN_MALFORMED),
    "a header of its own": Case("/anywhere", lambda: [("x-token", token())], "alice"),
    "a header with a scheme too many": Case(
        "/anywhere", lambda: [("x-token", f"Bearer {token()}")], R.CREDENTIAL_MALFORMED
    ),
    "an empty header": Case("/anywhere", lambda: [("x-token", "")], R.CREDENTIAL_MALFORMED),
    "two values of a header": Case("/anywhere", lambda: [("x-token", f"{token()},x")], R.CREDENTIAL_REPEATED),
    "a cookie": Case("/anywhere", lambda: [("cookie", f"a=1; session={token()}")], "alice"),
    "another cookie": Case("/anywhere", lambda: [("cookie", f"Session={token()}")], R.CREDENTIAL_MISSING),
    "a cookie twice": Case("/anywhere", lambda: [("cookie", "session=a; session=b")], R.CREDENTIAL_REPEATED),
    "a cookie in quotes": Case("/anywhere", lambda: [("cookie", f'session="{token()}"')], R.CREDENTIAL_MALFORMED),
    "an empty cookie": Case("/anywhere", lambda: [("cookie", "session=")], R.CREDENTIAL_MALFORMED),
    "an opaque token in the cookie of tokens": Case(
        "/anywhere", lambda: [("cookie", "session=opaque-alice")], R.TOKEN_MALFORMED
    ),
    "two places": Case(
        "/anywhere", lambda: [("x-token", token()), ("cookie", f"session={token()}")], R.CREDENTIAL_REPEATED
    ),
    "two kinds": Case(
        "/anywhere", lambda: [("x-token", token()), ("authorization", "Bearer opaque-alice")], R.CREDENTIAL_REPEATED
    ),
    "two bad ones": Case("/anywhere", lambda: [("x-token", "x"), ("cookie", "session=y")], R.CREDENTIAL_REPEATED),
    "an issuer of another place": Case("/anywhere", lambda: [("x-token", other())], R.TOKEN_ISSUER_UNKNOWN),
    "a parameter without a value": Case("/anywhere?access_token", list, R.CREDENTIAL_MALFORMED),
    "a parameter twice": Case("/anywhere?access_token=a&access_token=a", list, R.CREDENTIAL_REPEATED),
    "a parameter and a header": Case("/anywhere?access_token=a", bearer(token), R.CREDENTIAL_REPEATED),
    "a parameter with a plus": Case("/anywhere?access_token=a+b", list, R.CREDENTIAL_MALFORMED),
    "a parameter after a semicolon": Case("/anywhere?a;access_token=b", list, R.CREDENTIAL_MALFORMED),
    "a scheme of its own": Case("/scheme", lambda: [("authorization", f"TOKEN {token()}")], "alice"),
    "the usual scheme where another is asked for": Case("/scheme", bearer(token), R.CREDENTIAL_MISSING),
    "both": Case("/both", lambda: [*bearer(token)(), ("x-app", other())], "alice"),
    "the first alone": Case("/both", bearer(token), R.CREDENTIAL_MISSING),
    "the second alone": Case("/both", lambda: [("x-app", other())], R.CREDENTIAL_MISSING),
    "the second is not good": Case("/both", lambda: [*bearer(token)(), ("x-app", token())], R.TOKEN_ISSUER_UNKNOWN),
    "the first is not good": Case("/both", lambda: [*bearer(other)(), ("x-app", other())], R.TOKEN_ISSUER_UNKNOWN),
    "a strong authentication": Case("/strong", strong(), "alice"),
    "the best authentication": Case("/strong", strong(acr="phr"), "alice"),
    "a weak authentication": Case("/strong", strong(acr="pwd"), R.STEP_UP_REQUIRED),
    "an unknown authentication": Case("/strong", strong(acr=None), R.STEP_UP_REQUIRED),
    "a list of authentications": Case("/strong", strong(acr=["mfa"]), R.STEP_UP_REQUIRED),
    "an old authentication": Case("/strong", strong(auth_time=in_s(-301)), R.STEP_UP_REQUIRED),
    "an authentication at no time": Case("/strong", strong(auth_time=None), R.STEP_UP_REQUIRED),
    "an authentication at a strange time": Case("/strong", strong(auth_time="now"), R.STEP_UP_REQUIRED),
    "no token is no weak one": Case("/strong", list, R.CREDENTIAL_MISSING),
    "the tenant of the path": Case("/tenants/acme", bearer(token), "alice"),
    "another tenant's path": Case("/tenants/globex", bearer(token), R.TENANT_MISMATCH),
    "a tenant in another case": Case("/tenants/Acme", bearer(token), R.TENANT_MISMATCH),
    "the tenant that the token names": Case("/tenants/globex", bearer(lambda: other(tid="globex")), "app"),
    "a token that names another tenant": Case("/tenants/acme", bearer(lambda: other(tid="globex")), R.TENANT_MISMATCH),
    "a token that names no tenant": Case("/tenants/acme", bearer(other), R.TENANT_MISMATCH),
    "a tenant that is not its to name": Case("/tenants/globex", bearer(lambda: token(tid="globex")), R.TENANT_MISMATCH),
    "the tenant of the host": Case("/", bearer(token), "alice", "acme.api.example.com"),
    "the tenant of the host in capitals": Case("/", bearer(token), "alice", "ACME.api.example.com:8443"),
    "another tenant's host": Case("/", bearer(token), R.TENANT_MISMATCH, "globex.api.example.com"),
    "the one tenant": Case("/acme", bearer(token), "alice"),
    "not the one tenant": Case("/acme", bearer(lambda: other(tid="globex")), R.TENANT_MISMATCH),
}


def told(response: CheckResponse) -> dict[str, str]:
    return {option.header.key: option.header.value for option in response.ok_response.headers}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_what_is_shown_decides(it: Deciding, case: Case) -> None:
    """A caller, or a denial for its one reason; the second time as the first."""
    for _ in range(2):
        response = await it.ask(check_request(case.path, headers=case.headers(), host=case.host))
        reason = it.events[-1].decision.reason
        if isinstance(case.outcome, str):
            assert (reason, told(response)["x-user-id"]) == (None, case.outcome)
        else:
            assert reason is case.outcome
            assert not response.HasField("ok_response")


async def test_a_token_in_the_query(it: Deciding) -> None:
    """It is proved, and the path goes on without it."""
    response = await it.ask(check_request(f"/anywhere?a=1&access_token={other()}"))
    assert told(response) == {"x-user-id": "app", "x-method": "token", ":path": "/anywhere?a=1"}


async def test_known_credentials_are_taken_off_whatever_the_rule(it: Deciding) -> None:
    """An anonymous rule looks at none of them, and hands none of them on."""
    headers = [("cookie", "session=x; a=1"), ("x_token", "y")]
    response = await it.ask(check_request("/open?access_token=z", headers=headers))
    assert told(response) == {"cookie": "a=1", ":path": "/open"}
    assert {"authorization", "x-token", "x_token", "x-app", "x_app"} <= {*response.ok_response.headers_to_remove}


async def test_the_first_of_all_is_the_caller(it: Deciding) -> None:
    """What the others prove is found in the claim `other_credentials`, also where the first claims to know better."""
    lying = token(other_credentials={"token": {"sub": "root"}})
    for credential in (token(), lying):
        headers = [("authorization", f"Bearer {credential}"), ("x-app", other())]
        response = await it.ask(check_request("/both", headers=headers))
        assert {"x-user-id": "alice", "x-app-id": "app"}.items() <= told(response).items()


async def test_a_step_up_is_asked_for_by_name(it: Deciding) -> None:
    """RFC 9470 section 3: which authentications would do, and how recent."""
    response = await it.ask(check_request("/strong", token()))
    assert response.denied_response.status.code == 401
    headers = {option.header.key: option.header.value for option in response.denied_response.headers}
    assert headers["www-authenticate"] == (
        'Bearer realm="sidecar", error="insufficient_user_authentication", '
        'error_description="A stronger or newer authentication is required.", acr_values="phr mfa", max_age="300"'
    )


async def test_the_tier_decides_on_the_plan(it: Deciding) -> None:
    """A plan is found by what is known of every caller, whatever proved it."""
    for plan, allowed in (("gold", 3), (None, 1)):
        credential = token(plan=plan, sub=f"of {plan}")
        headers = [("authorization", f"Bearer {credential}"), ("cookie", "a=1; session=x")]
        answers = [await it.ask(check_request("/tiered?access_token=x&b=1", headers=headers)) for _ in range(4)]
        assert [answer.status.code == 0 for answer in answers].count(True) == allowed
        assert answers[0].dynamic_metadata["tenant"] == "acme"
        assert {"cookie": "a=1", ":path": "/tiered?b=1"}.items() <= told(answers[0]).items()  # also after it waited


async def test_a_need_that_comes_twice_is_a_fault_of_ours(policy: Policy) -> None:
    """A method that forgets what was found ends in INTERNAL, once, and never in a loop."""

    class Endless:
        """Needs that are never the same, or always."""

        def __init__(self, key: object) -> None:
            self.key = key

    asked: list[object] = []

    def ask(need: object, deadline: float, done: Callable[[Any], None]) -> None:
        asked.append((need, deadline))
        done(None)

    for make_key, most in ((object, NEEDS_MAX), (lambda: "same", 1)):
        async with deciding(policy, engines={Endless: ask}) as service:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(OpaqueTokens, "prove", lambda *_, make_key=make_key: Endless(make_key()))
                await service.ask(check_request("/anywhere", "opaque-alice"))
            assert len(asked) == most
            assert service.events[-1].decision.reason is R.INTERNAL
            assert [type(bug) for bug in service.bugs] == [RuntimeError]
        asked.clear()


async def test_an_engine_that_answers_twice_or_late_is_heard_once(policy: Policy) -> None:
    """The first answer counts; after the transport has refused the call, none does."""
    waiting: list[Callable[[Any], None]] = []
    async with deciding(policy, engines={NeedIntrospection: lambda *asked: waiting.append(asked[2])}) as service:
        call, late = [service.begin(check_request("/anywhere", "opaque-alice")) for _ in range(2)]
        assert call.answers == []
        late.cancelled = True
        for done in (waiting[0], waiting[0], waiting[1]):
            done(None)
        assert service.events[-1].decision.reason is R.INTROSPECTION_UNAVAILABLE
        assert (len(call.answers), late.answers, len(service.events)) == (1, [], 1)


async def test_a_kind_of_need_without_an_engine_denies(policy: Policy) -> None:
    """What nobody fetches is a fault of ours."""
    async with deciding(policy) as service:
        await service.ask(check_request("/anywhere", "opaque-alice"))
        assert service.events[-1].decision.reason is R.INTERNAL
        assert [type(bug) for bug in service.bugs] == [KeyError]
