"""The claims of internal tokens, and whose turn it is to sign."""

from __future__ import annotations

import pytest

from sidecar.core.authn import OTHER_CREDENTIALS, Composition, compose
from sidecar.core.context import NO_REQUEST
from sidecar.core.internal_tokens import SKEW_US, InternalTokenError, claims_of, expiry_s
from sidecar.core.principal import Principal
from sidecar.core.token_cache import TokenCache
from tests.support.internal_keys import INTERNAL_ISSUER, internal_tokens, p256_pem, pem
from tests.support.tokens import NOW_S


def principal(claims=None, **changes):
    known = {"issuer": "main", "subject": "alice", "client": "", "scopes": frozenset(), "roles": frozenset()}
    return Principal(**(known | changes), claims=claims or {})


def claims(who, audiences=(), **changes):
    tokens = internal_tokens(**changes)
    return claims_of(tokens, who, audiences, NOW_S, expiry_s(tokens, who, NOW_S), "id")


def test_what_is_known_is_said_and_nothing_else():
    """A principal of whom only the subject is known has no other claims than those that every token has."""
    assert claims(principal()) == {
        "iss": INTERNAL_ISSUER,
        "aud": "upstreams",
        "sub": "alice",
        "origin": "main",
        "method": "token",
        "iat": NOW_S,
        "exp": NOW_S + 120,
        "jti": "id",
    }


def test_all_that_is_known_of_a_principal_is_said():
    """Client, scopes, roles, tenant, tier and method; scopes and roles in one order whatever set they come from."""
    who = principal(
        client="web",
        scopes=frozenset({"b", "a"}),
        roles=frozenset({"y", "x"}),
        tier="gold",
        tenant="acme",
        method="api_key",
    )
    said = claims(who)
    expected = {"client_id": "web", "scope": "a b", "roles": ["x", "y"], "tier": "gold", "tenant": "acme"}
    assert {name: said.get(name) for name in expected} == expected
    assert said["method"] == "api_key"


def test_how_the_caller_was_authenticated_is_passed_on():
    """acr, amr, auth_time and act are copied, and what the policy names; a binding of the other token is not."""
    known = {"acr": "mfa", "amr": ["otp"], "auth_time": 1, "act": {"sub": "bot"}, "email": "a@b", "cnf": {"jkt": "x"}}
    said = claims(principal({**known, "name": "Alice"}), claims=("email", "phone"))
    assert {name: said[name] for name in ("acr", "amr", "auth_time", "act", "email")} == {
        name: known[name] for name in ("acr", "amr", "auth_time", "act", "email")
    }
    assert not {"cnf", "name", "phone"} & said.keys()


@pytest.mark.parametrize(("own", "expected"), [((), "upstreams"), (("orders",), "orders"), (("a", "b"), ["a", "b"])])
def test_a_rules_audiences_come_before_the_policys(own, expected):
    """One audience is a string, several are an array (RFC 7519 section 4.1.3)."""
    assert claims(principal(), own)["aud"] == expected


@pytest.mark.parametrize(
    ("expires", "expected"),
    [
        (None, NOW_S + 120),
        (NOW_S + 119, NOW_S + 119),
        (NOW_S + 119.9, NOW_S + 119),
        (NOW_S + 120, NOW_S + 120),
        (NOW_S + 121, NOW_S + 120),
        (NOW_S - 5, NOW_S - 5),
    ],
)
def test_no_token_outlives_the_credential(expires, expected):
    """`exp` is the earlier one of the lifetime's end and the credential's; also within the leeway after that."""
    assert claims(principal({"exp": expires} if expires is not None else {}))["exp"] == expected


def test_no_token_outlives_any_of_several_credentials():
    """Where a rule asks for all of several, the first to expire decides."""
    others = {"api_key": {"exp": NOW_S + 30}, "certificate": {"exp": NOW_S + 60}}
    assert claims(principal({"exp": NOW_S + 90, OTHER_CREDENTIALS: others}))["exp"] == NOW_S + 30


def test_no_token_outlives_a_second_credential_of_a_kind():
    """Of two API keys beside a token, none is overlooked."""
    shown = [Method("token", NOW_S + 90), Method("api_key", NOW_S + 60), Method("api_key", NOW_S + 30)]
    caller = compose(Composition(methods=tuple(shown), every=True), NO_REQUEST, {}, TokenCache(), None, NOW_S)
    assert claims(caller)["exp"] == NOW_S + 30


class Method:
    """Proves somebody until a time."""

    def __init__(self, kind: str, expires_s: int) -> None:
        self._principal = principal({"exp": expires_s}, method=kind)

    def shown(self, _request):
        """Always there."""
        return "shown"

    def prove(self, _shown, _request, _findings, _now_us):
        """Always who it is."""
        return self._principal


@pytest.mark.parametrize("expires", [True, "1", [1], {}])
def test_an_expiry_that_is_no_number_makes_no_token(expires):
    """It is an error rather than a token of full length."""
    with pytest.raises(InternalTokenError, match="exp"):
        claims(principal({"exp": expires}))


@pytest.mark.parametrize(
    ("at_s", "signs", "published"),
    [
        (0, 0, [0, 1, 2]),
        (1000, 0, [0, 1, 2]),
        (9999.999999, 0, [0, 1, 2]),
        (10_000, 1, [0, 1, 2]),
        (10_000 + 419.999999, 1, [0, 1, 2]),
        (10_000 + 420, 1, [1, 2]),
        (20_000, 2, [1, 2]),
        (20_000 + 420, 2, [2]),
        (90_000, 2, [2]),
    ],
)
def test_keys_take_turns_by_the_clock(at_s, signs, published):
    """Published as soon as held, signing from its time on, published while its tokens live, then retired.

    Before the time of every key the earliest one signs: there is no moment without a key.
    """
    tokens = internal_tokens((pem(), 1000), (p256_pem(), 10_000), (pem(), 20_000))
    assert SKEW_US == 300_000_000
    now_us = int(at_s * 1_000_000)
    assert tokens.signing(now_us) is tokens.keys[signs]
    assert tokens.published(now_us) == [tokens.keys[n] for n in published]


def test_whoever_signs_is_published():
    """At no time does a key sign that upstreams cannot know."""
    tokens = internal_tokens(*((pem(), 500 * n) for n in range(1, 9)), lifetime_s=1000)
    for at_s in range(0, 6000, 7):
        now_us = at_s * 1_000_000
        assert tokens.signing(now_us) in tokens.published(now_us)
