"""What each profile demands beyond the rules of all, and what an issuer's policy adds: claim by claim, both sides."""

from __future__ import annotations

import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core import token as tokens
from sidecar.core.claims import NAME_CHARS_MAX, valid_within_us
from sidecar.core.decision import DenyReason
from sidecar.core.issuer import COMPAT, PROFILES, RFC9068, STRICT, IssuerPolicy, Profile
from sidecar.core.keys import KeySet, parse_jwks
from sidecar.core.principal import Principal
from sidecar.core.token import NeedKey, Rejected
from tests.support.tokens import AUDIENCE, NOW_S, NOW_US, b64, good_claims, issuer_policy, jwks, make_key

R = DenyReason
KEY = make_key("ES256")
KEYS = parse_jwks(jwks(KEY))


def header(**changes: Any) -> dict[str, Any]:
    merged = {"alg": "ES256", "typ": "JWT", "kid": "k1"} | changes
    return {name: value for name, value in merged.items() if value is not ...}


def judge(text: str, policy: IssuerPolicy, keys: KeySet = KEYS, now_us: int = NOW_US) -> Principal | NeedKey | Rejected:
    parsed = tokens.parse(text)
    return parsed if isinstance(parsed, Rejected) else tokens.verify(parsed, policy, keys, now_us)


def verdict(text: str, policy: IssuerPolicy, **others: Any) -> DenyReason | None:
    outcome = judge(text, policy, **others)
    assert isinstance(outcome, Principal | Rejected)
    return outcome.reason if isinstance(outcome, Rejected) else None


def in_profile(profile: Profile, **changes: Any) -> IssuerPolicy:
    return issuer_policy(**({"profile": profile, "token_types": profile.token_types} | changes))


AT = {"typ": "at+jwt"}
MALFORMED, HEADER, TYPE = R.TOKEN_MALFORMED, R.TOKEN_HEADER_REFUSED, R.TOKEN_TYPE_REFUSED
CLAIM, AUDIENCE_OTHER, ALGORITHM = R.TOKEN_CLAIM_INVALID, R.TOKEN_AUDIENCE_MISMATCH, R.TOKEN_ALGORITHM_REFUSED

ROWS: dict[str, tuple[str, DenyReason | None, DenyReason | None, DenyReason | None]] = {
    # what they disagree about                                          strict  rfc9068  compat
    "typ at+jwt": (KEY.token(header=header(**AT)), None, None, None),
    "typ application/AT+JWT": (KEY.token(header=header(typ="application/AT+JWT")), None, None, None),
    "typ JWT": (KEY.token(), None, TYPE, None),
    "no typ": (KEY.token(header=header(typ=...)), None, TYPE, None),
    "typ logout+jwt": (KEY.token(header=header(typ="logout+jwt")), TYPE, TYPE, TYPE),
    "typ dpop+jwt": (KEY.token(header=header(typ="dpop+jwt")), TYPE, TYPE, TYPE),
    "ID token: nonce": (KEY.token(nonce="n"), TYPE, TYPE, None),
    "ID token: at_hash": (KEY.token(at_hash="h"), TYPE, TYPE, None),
    "ID token: c_hash, no typ": (KEY.token(good_claims(c_hash="h"), header(typ=...)), TYPE, TYPE, None),
    "nonce in an access token": (KEY.token(good_claims(nonce="n"), header(**AT)), None, None, None),
    "header jku": (KEY.token(header=header(jku="https://evil.example", **AT)), HEADER, HEADER, None),
    "header x5u": (KEY.token(header=header(x5u="https://evil.example", **AT)), HEADER, HEADER, None),
    "header jwk": (KEY.token(header=header(jwk=KEY.jwk, **AT)), HEADER, HEADER, None),
    **{
        f"no {name}": (KEY.token(good_claims(**{name: None}), header(**AT)), None, CLAIM, None)
        for name in ("client_id", "iat", "jti")
    },
    "client_id a number": (KEY.token(good_claims(client_id=7), header(**AT)), CLAIM, CLAIM, CLAIM),
    "client_id empty": (KEY.token(good_claims(client_id=""), header(**AT)), None, CLAIM, None),
    # what no profile relaxes
    "header crit": (KEY.token(header=header(crit=["x"], x=1, **AT)), HEADER, HEADER, HEADER),
    "header b64": (KEY.token(header=header(b64=False, **AT)), HEADER, HEADER, HEADER),
    "header enc": (KEY.token(header=header(enc="A128GCM", **AT)), HEADER, HEADER, HEADER),
    "header zip": (KEY.token(header=header(zip="DEF", **AT)), HEADER, HEADER, HEADER),
    "header cty JWT": (KEY.token(header=header(cty="JWT", **AT)), HEADER, HEADER, HEADER),
    "header kid a number": (KEY.token(header=header(kid=1, **AT)), HEADER, HEADER, HEADER),
    "padding": (KEY.token(header=header(**AT)) + "=", MALFORMED, MALFORMED, MALFORMED),
    "a claim twice": (KEY.token(b'{"iss":"x","iss":"y"}', header(**AT)), MALFORMED, MALFORMED, MALFORMED),
    **{
        f"no {name} in any": (KEY.token(good_claims(**{name: None}), header(**AT)), CLAIM, CLAIM, CLAIM)
        for name in ("iss", "aud", "sub", "exp")
    },
    "exp a string": (KEY.token(good_claims(exp=str(NOW_S + 60)), header(**AT)), CLAIM, CLAIM, CLAIM),
    "aud another": (KEY.token(good_claims(aud="other"), header(**AT)), AUDIENCE_OTHER, AUDIENCE_OTHER, AUDIENCE_OTHER),
    "aud with a scheme": (
        KEY.token(good_claims(aud=f"https://{AUDIENCE}/"), header(**AT)),
        AUDIENCE_OTHER,
        AUDIENCE_OTHER,
        AUDIENCE_OTHER,
    ),
    "alg none": (
        ".".join([b64(json.dumps({"alg": "none"}).encode()), b64(json.dumps(good_claims()).encode()), "AA"]),
        ALGORITHM,
        ALGORITHM,
        ALGORITHM,
    ),
}


@pytest.mark.parametrize("number", range(3), ids=PROFILES.keys())
@pytest.mark.parametrize("name", ROWS.keys())
def test_profiles_rule_by_rule(name: str, number: int) -> None:
    """The table of docs/tokens.md: what a profile relaxes or adds, and what none of them does."""
    text, *expected = ROWS[name]
    assert verdict(text, in_profile([STRICT, RFC9068, COMPAT][number])) is expected[number]


_ANY = st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.lists(st.text(max_size=4), max_size=2)
_CHANGES = st.dictionaries(
    st.sampled_from(["iss", "aud", "sub", "exp", "iat", "nbf", "jti", "client_id", "azp", "nonce", "at_hash", "scope"]),
    _ANY,
    max_size=3,
)
_HEADERS = st.dictionaries(st.sampled_from(["kid", "cty", "jku", "jwk", "x5u", "x5c", "crit", "b64"]), _ANY, max_size=2)
_TYPES = st.sampled_from([..., "JWT", "at+jwt", "application/at+jwt", "dpop+jwt", ""])


@settings(max_examples=300, deadline=None)
@given(_CHANGES, _HEADERS, _TYPES)
def test_a_stricter_profile_accepts_nothing_more(claims: dict[str, Any], others: dict[str, Any], typ: Any) -> None:
    """Whatever is signed: what rfc9068 believes strict believes, and what strict believes compat believes, alike."""
    text = KEY.token(good_claims() | claims, header(typ=typ, **others))
    outcomes = [judge(text, in_profile(profile)) for profile in (RFC9068, STRICT, COMPAT)]
    believed = [each.subject if isinstance(each, Principal) else None for each in outcomes]
    assert all(isinstance(each, Principal | Rejected | NeedKey) for each in outcomes)
    assert believed[0] in {None, believed[1]}
    assert believed[1] in {None, believed[2]}


def test_the_default_is_strict() -> None:
    """Who names no profile has not asked for less."""
    assert issuer_policy().profile is STRICT
    assert list(PROFILES) == ["strict", "rfc9068", "compat"]


def test_a_pointed_to_key_is_never_used() -> None:
    """CVE-2026-27962: where compat overlooks `jwk`, the issuer's own key still decides."""
    mallory = make_key("ES256", number=7)
    forged = mallory.token(header=header(jwk=mallory.jwk))
    assert verdict(forged, in_profile(COMPAT)) is R.TOKEN_SIGNATURE_INVALID
    unnamed = mallory.renamed("m").token(header=header(kid="m", jwk=mallory.renamed("m").jwk))
    assert judge(unnamed, in_profile(COMPAT)) == NeedKey("m")


LOOSE = in_profile(COMPAT, loose_audience=True, audiences=frozenset({"https://api.example/", "orders"}))
AUDIENCES: dict[str, tuple[Any, bool]] = {
    "as written": ("https://api.example/", True),
    "without the slash": ("https://api.example", True),
    "without the scheme": ("api.example", True),
    "another scheme": ("http://api.example", True),
    "in a list": (["x", "api.example/"], True),
    "a scheme in front of a name": ("https://orders", True),
    "two slashes": ("https://api.example//", False),
    "a path": ("https://api.example/v1", False),
    "a host that ends so": ("https://evil-api.example", False),
    "a host that begins so": ("https://api.example.evil", False),
    "upper case": ("HTTPS://API.EXAMPLE", False),
    "another scheme altogether": ("ftp://api.example", False),
    "two schemes": ("https://https://api.example", False),
    "user info": ("https://x@api.example", False),
    "empty": ("", False),
    "a slash alone": ("/", False),
}


@pytest.mark.parametrize(("audience", "matches"), AUDIENCES.values(), ids=AUDIENCES.keys())
def test_loose_audiences(audience: Any, matches: bool) -> None:
    """One scheme and one slash, on both sides, and nothing more; without the option every one but the first fails."""
    text = KEY.token(good_claims(aud=audience))
    assert (verdict(text, LOOSE) is None) is matches
    exact = in_profile(COMPAT, audiences=LOOSE.audiences)
    assert (verdict(text, exact) is None) is (audience == "https://api.example/")


# ---------------------------------------------------------------------------------------------- age


@pytest.mark.parametrize(
    ("now_s", "reason"),
    [
        (NOW_S + 99 + 30, None),
        (NOW_S + 100 + 30, R.TOKEN_EXPIRED),
        (NOW_S - 30, None),
        (NOW_S - 31, R.TOKEN_NOT_YET_VALID),
    ],
)
def test_the_maximum_age_counts_from_iat(now_s: int, reason: DenyReason | None) -> None:
    """Whatever exp says; the leeway is granted, and at its end the token is too old."""
    policy = issuer_policy(max_age_s=100)
    text = KEY.token(iat=NOW_S, exp=NOW_S + 100_000)
    assert verdict(text, policy, now_us=now_s * 1_000_000) is reason


def test_a_maximum_age_needs_iat() -> None:
    """Without it nobody knows how old the token is."""
    assert verdict(KEY.token(iat=None), issuer_policy(max_age_s=100)) is CLAIM
    assert verdict(KEY.token(iat=None), issuer_policy()) is None


@pytest.mark.parametrize(("expires_s", "until_s"), [(50, 50), (500, 100), (None, 100)])
def test_a_cached_token_grows_old_too(expires_s: int | None, until_s: int) -> None:
    """What the cache compares is the sooner of exp and the maximum age, and agrees with the check itself."""
    policy = issuer_policy(max_age_s=100, require_expiry=False, leeway_s=0)
    principal = judge(KEY.token(iat=NOW_S, exp=None if expires_s is None else NOW_S + expires_s), policy)
    assert isinstance(principal, Principal)
    end_us = (NOW_S + until_s) * 1_000_000
    assert valid_within_us(principal, policy)[1] == end_us
    assert tokens.still_valid(principal, policy, end_us - 1) is None
    too_late = tokens.still_valid(principal, policy, end_us)
    assert too_late is not None
    assert too_late.reason is R.TOKEN_EXPIRED


# ---------------------------------------------------------------------------------------------- claims

PRESENCE: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "required, there": ({"required_claims": (("org",),)}, {"org": "x"}, True),
    "required, false": ({"required_claims": (("org",),)}, {"org": False}, True),
    "required, zero": ({"required_claims": (("org",),)}, {"org": 0}, True),
    "required, absent": ({"required_claims": (("org",),)}, {}, False),
    "required, null": ({"required_claims": (("org",),)}, {"org": json.loads("null")}, False),
    "required inside, there": ({"required_claims": (("org", "id"),)}, {"org": {"id": 1}}, True),
    "required inside, absent": ({"required_claims": (("org", "id"),)}, {"org": {}}, False),
    "required inside a string": ({"required_claims": (("org", "id"),)}, {"org": "id"}, False),
    "required inside a list": ({"required_claims": (("org", "id"),)}, {"org": ["id"]}, False),
    "required, one of two": ({"required_claims": (("org",), ("act",))}, {"org": "x"}, False),
    "forbidden, absent": ({"forbidden_claims": (("act",),)}, {}, True),
    "forbidden, there": ({"forbidden_claims": (("act",),)}, {"act": {"sub": "m"}}, False),
    "forbidden, false": ({"forbidden_claims": (("act",),)}, {"act": False}, False),
    "forbidden inside": ({"forbidden_claims": (("org", "guest"),)}, {"org": {"guest": True}}, False),
    "forbidden inside, absent": ({"forbidden_claims": (("org", "guest"),)}, {"org": {}}, True),
}


@pytest.mark.parametrize(("settings", "claims", "accepted"), PRESENCE.values(), ids=PRESENCE.keys())
def test_claims_that_must_and_must_not_be_there(settings: Any, claims: Any, accepted: bool) -> None:
    """By path; null is not there."""
    assert verdict(KEY.token(good_claims() | claims), issuer_policy(**settings)) is (None if accepted else CLAIM)


NAMES: list[tuple[Any, str | None]] = [
    (None, ""),
    ("gold", "gold"),
    ("x" * NAME_CHARS_MAX, "x" * NAME_CHARS_MAX),
    ("x" * (NAME_CHARS_MAX + 1), None),
    ("", None),
    (7, None),
    (True, None),
    (["gold"], None),
    ({"a": 1}, None),
]


@pytest.mark.parametrize("field", ["key_id", "tier", "tenant"])
@pytest.mark.parametrize(("value", "expected"), NAMES)
def test_names_are_strings_of_bounded_length(field: str, value: Any, expected: str | None) -> None:
    """jti, tier and tenant: absent, or a string of 1 to N characters; anything else is refused, never made to fit."""
    policy = issuer_policy(tier_claim=("org", "tier"), tenant_claim=("org", "tenant"))
    org = {"tier": "t", "tenant": "u"} | ({field: value} if field != "key_id" else {})
    outcome = judge(KEY.token(good_claims(org=org, **({"jti": value} if field == "key_id" else {}))), policy)
    if expected is None:
        assert isinstance(outcome, Rejected)
        assert outcome.reason is CLAIM
    else:
        assert isinstance(outcome, Principal)
        assert getattr(outcome, field) == expected


def test_tier_and_tenant_are_nobodys_unless_the_policy_says() -> None:
    """A claim of that name is no tier where no claim is named."""
    outcome = judge(KEY.token(tier="gold", tenant="acme"), issuer_policy())
    assert isinstance(outcome, Principal)
    assert (outcome.tier, outcome.tenant) == ("", "")


LISTS: list[tuple[str, Any, set[str] | None, set[str] | None]] = [
    # written                 as scopes      as roles
    ("absent", None, set(), set()),
    ("text", "admin", {"admin"}, {"admin"}),
    ("text with a space", "site admin", {"site", "admin"}, {"site admin"}),
    ("a list", ["a", "b"], {"a", "b"}, {"a", "b"}),
    ("a list of one with a space", ["a b"], {"a b"}, {"a b"}),
    ("an empty list", [], set(), set()),
    ("empty text", "", set(), set()),
    ("a number", 1, None, None),
    ("true", True, None, None),
    ("an object", {"admin": True}, None, None),
    ("a list with a number", ["admin", 1], None, None),
    ("a list with null", ["admin", None], None, None),
    ("a list in a list", [["admin"]], None, None),
    ("part of a name", "administrator", {"administrator"}, {"administrator"}),
]


@pytest.mark.parametrize(("written", "scopes", "roles"), [row[1:] for row in LISTS], ids=[row[0] for row in LISTS])
@pytest.mark.parametrize("claim", ["scp", "scopes", "groups", "roles"])
def test_lists_of_names_have_their_types_checked(
    claim: str, written: Any, scopes: set[str] | None, roles: set[str] | None
) -> None:
    """RFC 6749 section 3.3: text or a list of text; whole names, no part of one; anything else refuses the token."""
    claims = good_claims(scope=None) | ({} if written is None else {"x": {claim: written}})
    for field, expected in (("scope_claim", scopes), ("roles_claim", roles)):
        outcome = judge(KEY.token(claims), issuer_policy(**{field: ("x", claim)}))
        if expected is None:
            assert isinstance(outcome, Rejected)
            assert outcome.reason is CLAIM
        else:
            assert isinstance(outcome, Principal)
            assert (outcome.scopes if field == "scope_claim" else outcome.roles) == expected


# ---------------------------------------------------------------------------------------------- declared secrets

SECRET = bytes(range(64))


def hmac_token(alg: str, secret: bytes = SECRET, kid: str = "s") -> str:
    head = b64(json.dumps({"alg": alg, "kid": kid}).encode())
    signing_input = f"{head}.{b64(json.dumps(good_claims()).encode())}"
    return f"{signing_input}.{b64(hmac.digest(secret, signing_input.encode(), f'sha{alg[2:]}'))}"


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_a_declared_secret_verifies_its_own_algorithm(alg: str) -> None:
    """With the one algorithm that the key and the policy name; not with its sisters, not with another secret."""
    secret = {"kty": "oct", "k": b64(SECRET), "alg": alg, "kid": "s"}
    keys = parse_jwks(jwks(secret), symmetric=True)
    policy = issuer_policy(algorithms=frozenset({alg}))
    assert verdict(hmac_token(alg), policy, keys=keys) is None
    assert verdict(hmac_token(alg, bytes(64)), policy, keys=keys) is R.TOKEN_SIGNATURE_INVALID
    for other in {"HS256", "HS384", "HS512"} - {alg}:
        assert verdict(hmac_token(other), policy, keys=keys) is R.TOKEN_ALGORITHM_REFUSED
        every = issuer_policy(algorithms=frozenset({"HS256", "HS384", "HS512"}))
        assert verdict(hmac_token(other), every, keys=keys) is R.TOKEN_ALGORITHM_REFUSED


def test_public_keys_are_no_secrets_even_where_the_policy_lists_hs256() -> None:
    """CVE-2017-11424 and its kin: a policy that should not exist still finds no key to confuse."""
    public = parse_jwks(jwks(KEY.renamed("s"), make_key("RS256", kid="r")))
    careless = issuer_policy(algorithms=frozenset({"HS256", "ES256", "RS256"}))
    for kid in ("s", "r"):
        for secret in (json.dumps(KEY.jwk).encode(), b"", KEY.jwk["x"].encode()):
            assert verdict(hmac_token("HS256", secret, kid), careless, keys=public) is R.TOKEN_ALGORITHM_REFUSED


DOCS = Path(__file__).parents[2] / "docs" / "tokens.md"


def test_the_profiles_table_is_documented() -> None:
    """docs/tokens.md says of each profile what the code does."""
    rows = {cells[0]: cells[1:] for line in DOCS.read_text().splitlines() if (cells := _cells(line))}
    yes = {True: "refused", False: "accepted"}
    each = (STRICT, RFC9068, COMPAT)
    types = [", ".join(f"`{name}`" if name else "none" for name in sorted(p.token_types)) for p in each]
    assert rows["`typ`, unless `token_types` says otherwise"] == types
    assert rows["`jku`, `jwk` or `x5u` in the header"] == [
        yes[True] if p.refuses_key_pointers else "ignored" for p in each
    ]
    assert rows["an ID token: `nonce`, `at_hash` or `c_hash`, and `typ` is not `at+jwt`"] == [
        yes[p.refuses_id_tokens] for p in each
    ]
    assert rows["`client_id`, `iat`, `jti` missing (RFC 9068)"] == [yes[p.requires_access_token_claims] for p in each]
    assert rows["`loose_audience`"] == ["may be switched on" if p.may_loosen_audience else "no" for p in each]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
