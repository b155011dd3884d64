"""Good tokens of every algorithm are believed, hostile ones refused for their fault, and nothing is ever raised."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core import token as tokens
from sidecar.core.decision import DenyReason
from sidecar.core.issuer import ALGORITHMS, TOKEN_BYTES_MAX, IssuerPolicy
from sidecar.core.keys import KID_CHARS_MAX, KeySet, parse_jwks
from sidecar.core.principal import Principal
from sidecar.core.strict_json import DEPTH_MAX, INTEGER_DIGITS_MAX, VALUES_MAX
from sidecar.core.token import HEADER_BYTES_MAX, NeedKey, Rejected, UnverifiedToken
from tests.support.hostile_tokens import (
    GOOD,
    HIGH_S,
    HOSTILE,
    KEY,
    LEEWAY_S,
    RSA,
    SIGNATURE_R,
    claims_text,
    es256,
    header,
    header_of,
    nested,
    padded_to,
    with_claims,
    with_header,
)
from tests.support.tokens import AUDIENCE, ISSUER, NOW_S, NOW_US, good_claims, issuer_policy, jwks, make_key

R = DenyReason
POLICY = issuer_policy()
KEYS = parse_jwks(jwks(KEY, RSA))

Outcome = Principal | NeedKey | Rejected


def judge(text: str, policy: IssuerPolicy = POLICY, keys: KeySet = KEYS, now_us: int = NOW_US) -> Outcome:
    parsed = tokens.parse(text, policy.token_bytes_max)
    return parsed if isinstance(parsed, Rejected) else tokens.verify(parsed, policy, keys, now_us)


@pytest.mark.parametrize(("text", "reason"), HOSTILE)
def test_hostile_tokens_are_refused_for_their_fault(text: str, reason: DenyReason) -> None:
    """Each breaks one rule, and is refused for that one."""
    outcome = judge(text)
    assert isinstance(outcome, Rejected)
    assert outcome.reason is reason, outcome
    assert outcome.detail


@pytest.mark.parametrize("alg", sorted(ALGORITHMS))
def test_good_tokens_of_every_algorithm(alg: str) -> None:
    """Each algorithm verifies what its key signed, and nothing that another key of its kind signed."""
    key, other = make_key(alg), make_key(alg, number=1)
    policy, keys = issuer_policy(algorithms=frozenset({alg})), parse_jwks(jwks(key))
    principal = judge(key.token(), policy, keys)
    assert isinstance(principal, Principal)
    assert (principal.issuer, principal.subject, principal.client) == ("main", "alice", "web")
    assert principal.scopes == {"orders:read", "orders:write"}
    assert principal.claims["exp"] == NOW_S + 600
    assert principal.claims["jti"] == "7f1c"
    forged = judge(other.token(), policy, keys)
    assert isinstance(forged, Rejected)
    assert forged.reason is R.TOKEN_SIGNATURE_INVALID


@pytest.mark.parametrize("alg", sorted(ALGORITHMS))
def test_an_algorithm_that_the_policy_does_not_list_is_refused(alg: str) -> None:
    """The key fits and the signature is good: the allow-list decides (CVE-2026-48523)."""
    key = make_key(alg)
    outcome = judge(key.token(), issuer_policy(algorithms=ALGORITHMS - {alg}), parse_jwks(jwks(key)))
    assert isinstance(outcome, Rejected)
    assert outcome.reason is R.TOKEN_ALGORITHM_REFUSED


ACCEPTED: dict[str, str] = {
    "no typ": with_header(typ=...),
    "typ in any case": with_header(typ="jWt"),
    "typ at+jwt": with_header(typ="AT+JWT"),
    "typ application/at+jwt": with_header(typ="Application/AT+JWT"),
    "x5t, as some issuers send": with_header(x5t="abc"),
    "x5c is not looked at": with_header(x5c=["MII"]),
    "cty other": with_header(cty="example"),
    "aud list": with_claims(aud=["other", AUDIENCE]),
    "exp a fraction": with_claims(exp=NOW_S + 0.5),
    "exp within the leeway": with_claims(exp=NOW_S - LEEWAY_S + 1),
    "nbf at the end of the leeway": with_claims(nbf=NOW_S + LEEWAY_S),
    "iat at the end of the leeway": with_claims(iat=NOW_S + LEEWAY_S),
    "iat absent": with_claims(iat=...),
    "nonce in a typed access token": KEY.token(good_claims(nonce="n"), header(typ="at+jwt")),
    "escaped surrogate pair": claims_text("alice", "\\ud83d\\ude00"),
    "name beyond ASCII": with_claims(sub="žofie"),
    "brackets in strings do not nest": with_claims(x='[{"\\' * 50),
    "nested as deep as allowed": KEY.token(good_claims(x=nested(DEPTH_MAX - 1))),
    "integer as long as allowed": claims_text('"jti"', f'"n": {"9" * INTEGER_DIGITS_MAX}, "jti"'),
    "as many values as allowed": KEY.token(good_claims(x=[1] * (VALUES_MAX - 9))),
    "white space in JSON": KEY.token(json.dumps(good_claims(), indent=2).encode()),
    "high s: RFC 7518 does not forbid it": es256(SIGNATURE_R, HIGH_S),
    "as long as allowed": padded_to(TOKEN_BYTES_MAX),
    "header as long as allowed": header_of(HEADER_BYTES_MAX),
}


@pytest.mark.parametrize("text", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_what_the_standards_allow_is_accepted(text: str) -> None:
    """Strict is not the same as picky."""
    assert isinstance(judge(text), Principal)


def test_the_longest_kid_is_a_kid() -> None:
    """N characters are looked up."""
    kid = "k" * KID_CHARS_MAX
    assert judge(with_header(kid=kid)) == NeedKey(kid)


@pytest.mark.parametrize("kid", ["K1", "k1 ", "../../dev/null", "' OR 1=1 --", "https://evil.example/jwks"])
def test_kid_is_a_name_and_nothing_else(kid: str) -> None:
    """Unknown names are asked for, exactly as they are (RFC 8725 section 3.10)."""
    assert judge(with_header(kid=kid)) == NeedKey(kid)


def test_a_token_without_kid() -> None:
    """One key that fits is used; two that fit are never tried in turn; the policy can insist on a kid."""
    text = KEY.token(header=header(kid=...))
    assert isinstance(judge(text), Principal)
    twice = parse_jwks(jwks(KEY, make_key("ES256", kid="k2", number=1)))
    outcome = judge(text, keys=twice)
    assert isinstance(outcome, Rejected)
    assert outcome.reason is R.TOKEN_KEY_UNKNOWN
    outcome = judge(text, issuer_policy(allow_missing_kid=False))
    assert isinstance(outcome, Rejected)
    assert outcome.reason is R.TOKEN_HEADER_REFUSED


POLICIES: dict[str, tuple[dict[str, Any], str, DenyReason | None]] = {
    "audience not required, absent": ({"require_audience": False}, with_claims(aud=...), None),
    "audience not required, wrong": ({"require_audience": False}, with_claims(aud="x"), R.TOKEN_AUDIENCE_MISMATCH),
    "audience present, none configured": (
        {"require_audience": False, "audiences": frozenset()},
        with_claims(),
        R.TOKEN_AUDIENCE_MISMATCH,
    ),
    "expiry not required, absent": ({"require_expiry": False}, with_claims(exp=...), None),
    "expiry not required, expired": ({"require_expiry": False}, with_claims(exp=1), R.TOKEN_EXPIRED),
    "no leeway, now": ({"leeway_s": 0}, with_claims(exp=NOW_S), R.TOKEN_EXPIRED),
    "no leeway, one second left": ({"leeway_s": 0}, with_claims(exp=NOW_S + 1), None),
    "lifetime as long as allowed": ({"max_lifetime_s": 600}, with_claims(iat=NOW_S, exp=NOW_S + 600), None),
    "lifetime too long": ({"max_lifetime_s": 599}, with_claims(iat=NOW_S, exp=NOW_S + 600), R.TOKEN_CLAIM_INVALID),
    "lifetime unknown": ({"max_lifetime_s": 600}, with_claims(iat=...), R.TOKEN_CLAIM_INVALID),
    "lifetime without end": (
        {"max_lifetime_s": 600, "require_expiry": False},
        with_claims(exp=...),
        R.TOKEN_CLAIM_INVALID,
    ),
    "typed only: JWT": ({"token_types": frozenset({"at+jwt"})}, with_claims(), R.TOKEN_TYPE_REFUSED),
    "typed only: complete": ({"token_types": frozenset({"at+jwt"})}, with_header(typ="at+jwt"), None),
    **{
        f"typed only: no {name} (RFC 9068)": (
            {"token_types": frozenset({"at+jwt"})},
            KEY.token(good_claims(**{name: None}), header(typ="at+jwt")),
            R.TOKEN_CLAIM_INVALID,
        )
        for name in ("iss", "exp", "aud", "sub", "client_id", "iat", "jti")
    },
    "no algorithms: nothing is accepted": ({"algorithms": frozenset()}, with_claims(), R.TOKEN_ALGORITHM_REFUSED),
    "shorter tokens only": ({"token_bytes_max": len(GOOD) - 1}, GOOD, R.TOKEN_MALFORMED),
    "tokens of exactly this length": ({"token_bytes_max": len(GOOD)}, GOOD, None),
}


@pytest.mark.parametrize(("changes", "text", "reason"), POLICIES.values(), ids=POLICIES.keys())
def test_what_the_issuers_policy_changes(changes: dict[str, Any], text: str, reason: DenyReason | None) -> None:
    """Each setting, on both sides of its edge."""
    outcome = judge(text, issuer_policy(**changes))
    assert (outcome.reason if isinstance(outcome, Rejected) else None) is reason, outcome


SCOPES: list[tuple[dict[str, Any], set[str]]] = [
    ({"scope": "a b"}, {"a", "b"}),
    ({"scope": " a  b "}, {"a", "b"}),
    ({"scope": "a\tb"}, {"a\tb"}),
    ({"scope": "a\u00a0b"}, {"a\u00a0b"}),
    ({"scope": "a,b"}, {"a,b"}),
    ({"scope": ""}, set()),
    ({"scope": ["a", "b c"]}, {"a", "b c"}),
    ({"scope": None}, set()),
]


@pytest.mark.parametrize(("changes", "scopes"), SCOPES)
def test_scopes_are_split_on_single_spaces_alone(changes: dict[str, Any], scopes: set[str]) -> None:
    """RFC 6749 section 3.3; an array's items are whole names."""
    principal = judge(KEY.token(good_claims(**changes)))
    assert isinstance(principal, Principal)
    assert principal.scopes == scopes


def test_scopes_and_roles_come_from_where_the_policy_says() -> None:
    """Paths of claim names; a single string is one role, spaces and all."""
    policy = issuer_policy(scope_claim=("scp",), roles_claim=("realm_access", "roles"))
    claims = good_claims(scp=["x"], realm_access={"roles": ["admin", "ops"]}, roles=["never"])
    principal = judge(KEY.token(claims), policy)
    assert isinstance(principal, Principal)
    assert (principal.scopes, principal.roles) == ({"x"}, {"admin", "ops"})
    principal = judge(KEY.token(good_claims(roles="site admin")))
    assert isinstance(principal, Principal)
    assert principal.roles == {"site admin"}


@pytest.mark.parametrize(
    ("claims", "client"),
    [({"azp": "x"}, "web"), ({"client_id": None, "azp": "x"}, "x"), ({"client_id": None}, ""), ({"client_id": ""}, "")],
)
def test_the_client_is_named_by_one_of_two_claims(claims: dict[str, Any], client: str) -> None:
    """`client_id`, else `azp`, else nobody."""
    principal = judge(KEY.token(good_claims(**claims)))
    assert isinstance(principal, Principal)
    assert principal.client == client


@pytest.mark.parametrize("claims", [{"client_id": 1}, {"client_id": ["web"]}, {"client_id": None, "azp": {"x": 1}}])
def test_a_client_of_another_type_is_refused(claims: dict[str, Any]) -> None:
    """It is not taken for no client."""
    outcome = judge(KEY.token(good_claims(**claims)))
    assert isinstance(outcome, Rejected)
    assert outcome.reason is R.TOKEN_CLAIM_INVALID


@pytest.mark.parametrize(
    ("now_us", "reason"),
    [
        ((NOW_S - LEEWAY_S) * 1_000_000 - 1, R.TOKEN_NOT_YET_VALID),
        ((NOW_S - LEEWAY_S) * 1_000_000, None),
        ((NOW_S + 60 + LEEWAY_S) * 1_000_000 - 1, None),
        ((NOW_S + 60 + LEEWAY_S) * 1_000_000, R.TOKEN_EXPIRED),
    ],
)
def test_time_is_checked_again_to_the_microsecond(now_us: int, reason: DenyReason | None) -> None:
    """A believed token is usable from nbf less the leeway until just before exp plus the leeway."""
    principal = judge(KEY.token(nbf=NOW_S, exp=NOW_S + 60))
    assert isinstance(principal, Principal)
    outcome = tokens.still_valid(principal, POLICY, now_us)
    assert (outcome.reason if outcome is not None else None) is reason


def test_a_token_without_dates_stays_valid() -> None:
    """Where the policy does not require an expiry."""
    principal = judge(KEY.token(exp=None), issuer_policy(require_expiry=False))
    assert isinstance(principal, Principal)
    assert tokens.still_valid(principal, POLICY, 2**60) is None


def test_keys_of_another_issuer_do_not_vouch() -> None:
    """RFC 8725 section 3.8: a token that names A, signed by B, fails under A's keys."""
    mallory = make_key("ES256", number=7)
    assert judge(mallory.token(iss="https://mallory.example")) == Rejected(
        R.TOKEN_ISSUER_UNKNOWN, "iss is another issuer"
    )
    outcome = judge(mallory.token())
    assert isinstance(outcome, Rejected)
    assert outcome.reason is R.TOKEN_SIGNATURE_INVALID


def test_nothing_of_a_token_is_shown() -> None:
    """Neither a refusal's detail nor a representation quotes header, claims or signature."""
    secret = "correct-horse-battery-staple"
    for text in (
        with_claims(sub=[secret]),
        with_claims(aud=secret),
        with_claims(iss=secret),
        with_header(alg=secret),
        with_header(typ=secret),
        with_claims(scope={secret: 1}),
        KEY.token(secret.encode()),
    ):
        outcome = judge(text)
        assert isinstance(outcome, Rejected)
        assert secret not in outcome.detail
    parsed = tokens.parse(GOOD)
    assert repr(parsed) == str(parsed) == "UnverifiedToken(***)"


PERMITTED = {R.TOKEN_MALFORMED, R.TOKEN_HEADER_REFUSED, R.TOKEN_ALGORITHM_REFUSED, R.TOKEN_CLAIM_INVALID}


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.from_regex(r"[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}")))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """Permitted: a token, or one of four reasons. Nothing is raised."""
    outcome = tokens.parse(text)
    assert isinstance(outcome, UnverifiedToken) or outcome.reason in PERMITTED


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_NAMES = ["iss", "aud", "sub", "exp", "nbf", "iat", "jti", "scope", "roles", "cnf", "client_id", "nonce"]


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(_NAMES), _JSON, max_size=4))
def test_any_signed_claims_are_believed_or_refused(changes: dict[str, Any]) -> None:
    """Whatever an issuer signs: a principal with a subject, or a refusal. Nothing is raised."""
    outcome = judge(KEY.token(good_claims() | changes))
    assert isinstance(outcome, Principal | Rejected)
    if isinstance(outcome, Principal):
        assert outcome.subject
        assert outcome.claims["iss"] == ISSUER


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["alg", "kid", "typ", "cty", "crit", "b64", "jwk", "x5c", "enc"]), _JSON, max_size=4
    )
)
def test_any_signed_header_is_believed_or_refused(changes: dict[str, Any]) -> None:
    """Whatever stands in a header: a principal, a refusal, or a question for a key."""
    assert isinstance(judge(KEY.token(header=header(**changes))), Principal | Rejected | NeedKey)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.characters(min_codepoint=1, max_codepoint=255))
def test_a_changed_token_is_not_believed(position: int, character: str) -> None:
    """Replacing any one character of a good token by any other leaves nothing that is believed."""
    changed = GOOD[:position] + character + GOOD[position + 1 :]
    assert changed == GOOD or not isinstance(judge(changed), Principal)


def test_the_tables_are_long_enough() -> None:
    """The hostile table does not shrink unnoticed."""
    assert len(HOSTILE) >= 200
