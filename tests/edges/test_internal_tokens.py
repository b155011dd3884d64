"""Internal tokens as upstreams see them: signed, kept, renewed, rotated, published."""

from __future__ import annotations

import json

import pytest
from structlog.testing import capture_logs

from sidecar.core import base64url
from sidecar.core import token as tokens_read
from sidecar.core.internal_tokens import InternalTokenError
from sidecar.core.keys import parse_jwks
from sidecar.core.principal import Principal
from sidecar.edges.internal_tokens import (
    BYTES_MAX,
    ENTRIES_MAX,
    JWKS_MAX_AGE_S,
    PUBLISH_AHEAD_US,
    TOKEN_BYTES_MAX,
    InternalTokenSigner,
    jwks_route,
)
from tests.support.internal_keys import INTERNAL_ISSUER, internal_tokens, p256_pem, pem
from tests.support.tokens import NOW_S, NOW_US, issuer_policy

US = 1_000_000


def principal(subject="alice", **claims):
    return Principal("main", subject, "web", frozenset({"orders:read"}), frozenset({"admin"}), claims)


def key_set(signer, now_us=NOW_US):
    return parse_jwks(json.dumps(signer.jwks(now_us)).encode())


def verified(token, keys, now_us=NOW_US, **changes):
    """What a strict RFC 9068 resource server makes of a token: our own."""
    policy = issuer_policy(issuer=INTERNAL_ISSUER, audiences=frozenset({"upstreams"}), leeway_s=0, **changes)
    read = tokens_read.parse(token, 16 * 1024)
    assert isinstance(read, tokens_read.UnverifiedToken)
    return tokens_read.verify(read, policy, keys, now_us)


@pytest.mark.parametrize("text", [pem(), p256_pem()], ids=["ed25519", "p-256"])
def test_an_upstream_can_verify_who_vouched(text):
    """The token verifies under the published keys, as an access token (RFC 9068), and says who was proved."""
    signer = InternalTokenSigner(internal_tokens((text, NOW_S - 1)))
    found = verified(signer.sign(principal(), NOW_US), key_set(signer), token_types=frozenset({"at+jwt"}))
    assert isinstance(found, Principal)
    assert (found.subject, found.client, found.scopes) == ("alice", "web", {"orders:read"})
    assert found.claims["roles"] == ["admin"]


def test_a_caller_that_comes_again_costs_no_signature():
    """The same token is used until half of its lifetime is over, and not in the microsecond after."""
    signer, who = InternalTokenSigner(internal_tokens()), principal()
    first = signer.sign(who, NOW_US)
    assert signer.sign(who, NOW_US + 60 * US - 1) == first
    assert signer.signed == 1
    assert signer.sign(who, NOW_US + 60 * US) != first
    assert (signer.signed, signer.hits, len(signer)) == (2, 1, 1)


def test_every_token_has_half_of_its_life_before_it():
    """Whenever it is handed out it is valid, and for as long as was promised unless the credential ends."""
    signer, who = InternalTokenSigner(internal_tokens()), principal()
    for second in range(0, 400, 7):
        now_us = NOW_US + second * US
        found = verified(signer.sign(who, now_us), key_set(signer), now_us)
        assert isinstance(found, Principal)
        assert found.claims["exp"] - now_us // US >= 60


def test_a_token_that_ends_with_the_credential_is_used_to_its_end():
    """A new one would live no longer; after the end, within the leeway, one signature a second at most."""
    signer, who = InternalTokenSigner(internal_tokens()), principal(exp=NOW_S + 20)
    first = signer.sign(who, NOW_US)
    assert verified(first, key_set(signer)).claims["exp"] == NOW_S + 20
    assert signer.sign(who, NOW_US + 20 * US - 1) == first
    late = signer.sign(who, NOW_US + 25 * US)
    assert signer.sign(who, NOW_US + 26 * US - 1) == late
    assert verified(late, key_set(signer), NOW_US + 25 * US).reason.value == "token_expired"
    assert signer.signed == 2


def test_a_clock_that_was_set_back_makes_a_new_token():
    """A kept token would seem to come from the future."""
    signer, who = InternalTokenSigner(internal_tokens()), principal()
    first = signer.sign(who, NOW_US)
    assert signer.sign(who, NOW_US - US) != first


def test_tokens_are_kept_apart_by_caller_and_audience():
    """No one is handed another's token, nor one for another upstream."""
    signer = InternalTokenSigner(internal_tokens())
    alice, bob = principal(), principal("bob")
    made = {signer.sign(who, NOW_US, audiences) for who in (alice, bob) for audiences in ((), ("orders",))}
    assert len(made) == len(signer) == 4
    assert verified(signer.sign(bob, NOW_US), key_set(signer)).subject == "bob"
    mismatch = verified(signer.sign(bob, NOW_US, ("orders",)), key_set(signer))
    assert mismatch.reason.value == "token_audience_mismatch"


def test_kept_tokens_are_bounded_in_number():
    """N callers are kept; of N + 1, the one that was not seen for longest is forgotten."""
    signer = InternalTokenSigner(internal_tokens(), entries_max=3)
    callers = [principal(f"user-{n}") for n in range(4)]
    for who in callers[:3]:
        signer.sign(who, NOW_US)
    signer.sign(callers[0], NOW_US)
    assert (len(signer), signer.signed) == (3, 3)
    signer.sign(callers[3], NOW_US)
    signer.sign(callers[0], NOW_US)
    assert (len(signer), signer.signed) == (3, 4)
    signer.sign(callers[1], NOW_US)
    assert signer.signed == 5
    assert (ENTRIES_MAX, BYTES_MAX) == (10_000, 32 * 1024 * 1024)


def test_kept_tokens_are_bounded_in_bytes():
    """Two tokens of a size fit into twice that size, a third does not; what is counted is what is kept."""
    size = len(InternalTokenSigner(internal_tokens()).sign(principal("user-0"), NOW_US))
    signer = InternalTokenSigner(internal_tokens(), bytes_max=2 * size)
    for n in range(3):
        signer.sign(principal(f"user-{n}"), NOW_US)
        assert signer.size_bytes == len(signer) * size
    assert len(signer) == 2


def test_a_token_that_no_header_can_carry_is_not_made():
    """The bound is that of the whole token; nothing of the claim is quoted."""
    signer = InternalTokenSigner(internal_tokens(claims=("note",)))
    room = TOKEN_BYTES_MAX - len(signer.sign(principal(note=""), NOW_US))
    fits = room * 3 // 4
    assert len(signer.sign(principal(note="n" * (fits - 2)), NOW_US)) <= TOKEN_BYTES_MAX
    with pytest.raises(InternalTokenError, match=str(TOKEN_BYTES_MAX)) as caught:
        signer.sign(principal(note="n" * (fits + 4)), NOW_US)
    assert "nnnn" not in str(caught.value)
    assert len(signer) == 2


@pytest.mark.parametrize("claims", [{"exp": "soon"}, {"note": "\ud800"}, {"note": object()}])
def test_what_cannot_be_said_makes_no_token(claims):
    """An error for the caller to deny on, of one type; nothing is kept."""
    signer = InternalTokenSigner(internal_tokens(claims=("note",)))
    with pytest.raises(InternalTokenError):
        signer.sign(principal(**claims), NOW_US)
    assert len(signer) == 0


def test_without_the_section_nothing_is_signed():
    """A policy without internal tokens has no keys to show, and signing is an error."""
    signer = InternalTokenSigner(None)
    assert signer.jwks(NOW_US) is None
    assert signer.detail(NOW_US) == {"used": False}
    with pytest.raises(InternalTokenError):
        signer.sign(principal(), NOW_US)


def test_rotation_has_no_gap_for_upstreams_that_keep_the_keys():
    """Through two rotations, each token verifies to its end under keys fetched up to `max-age` before it was made."""
    turns = [(pem(), NOW_S - 5000), (p256_pem(), NOW_S + 1000), (pem(), NOW_S + 2000)]
    signer, who = InternalTokenSigner(internal_tokens(*turns)), principal()
    kids = set()
    for second in range(0, 3000, 13):
        now_us = NOW_US + second * US
        made = signer.sign(who, now_us)
        kids.add(json.loads(base64url.decode(made.partition(".")[0].encode()))["kid"])
        for keys_at_us in (now_us - JWKS_MAX_AGE_S * US, now_us, now_us + 59 * US):
            assert isinstance(verified(made, key_set(signer, keys_at_us), now_us), Principal)
    assert kids == {key.kid for key in internal_tokens(*turns).keys}


def test_two_sidecars_agree_without_talking():
    """With the same files and clocks that differ by five minutes, each one's tokens verify under the other's keys."""
    turns = [(pem(), NOW_S - 5000), (p256_pem(), NOW_S)]
    one, other = InternalTokenSigner(internal_tokens(*turns)), InternalTokenSigner(internal_tokens(*turns))
    for second in range(-400, 900, 50):
        now_us = NOW_US + second * US
        made = one.sign(principal(), now_us - 299 * US)
        assert isinstance(verified(made, key_set(other, now_us), now_us - 299 * US), Principal)


def test_a_reload_that_changes_nothing_keeps_the_tokens():
    """Any change of what a token says, or of the keys, makes all of them anew."""
    text = pem()
    signer, who = InternalTokenSigner(internal_tokens((text, NOW_S - 1))), principal()
    first = signer.sign(who, NOW_US)
    signer.replace(internal_tokens((text, NOW_S - 1)), NOW_US)
    assert signer.sign(who, NOW_US) == first
    for changes in (
        {"issuer": "x"},
        {"audiences": ("x",)},
        {"lifetime_s": 60},
        {"token_type": "JWT"},
        {"claims": ("x",)},
    ):
        before = signer.sign(who, NOW_US)
        signer.replace(internal_tokens((text, NOW_S - 1), **changes), NOW_US)
        assert signer.sign(who, NOW_US) != before, changes
    signer.replace(None, NOW_US)
    assert (len(signer), signer.size_bytes) == (0, 0)


def test_a_removed_key_takes_its_tokens_along():
    """Whoever removes a key that leaked has no token left that it signed."""
    leaked, next_one = (pem(), NOW_S - 10), (pem(), NOW_S + 10)
    signer, who = InternalTokenSigner(internal_tokens(leaked, next_one)), principal()
    before = signer.sign(who, NOW_US)
    signer.replace(internal_tokens(next_one), NOW_US)
    after = signer.sign(who, NOW_US)
    assert after != before
    assert isinstance(verified(after, key_set(signer)), Principal)
    assert len(signer.jwks(NOW_US)["keys"]) == 1


@pytest.mark.parametrize(("ahead_us", "warnings"), [(PUBLISH_AHEAD_US - 1, 1), (PUBLISH_AHEAD_US, 0)])
def test_a_key_that_is_published_too_late_is_warned_of(ahead_us, warnings):
    """An upstream that fetched the keys just before may not know it when it begins to sign."""
    first, second = (pem(), NOW_S - 5000), (pem(), NOW_S + 1000)
    signer = InternalTokenSigner(internal_tokens(first))
    with capture_logs() as told:
        signer.replace(internal_tokens(first, second), second[1] * US - ahead_us)
    assert [each["event"] for each in told] == ["internal_key_published_late"] * warnings


async def test_the_keys_are_published_for_keeping():
    """As a JWK set, public members alone, with the time for which it may be kept."""
    signer = InternalTokenSigner(internal_tokens())
    answer = await jwks_route(signer, lambda: NOW_US)({})
    assert (answer.status, answer.content_type) == (200, "application/jwk-set+json")
    assert answer.cache_control == f"public, max-age={JWKS_MAX_AGE_S}"
    [key] = json.loads(answer.body)["keys"]
    assert set(key) == {"kty", "crv", "x", "kid", "use", "alg"}
    absent = await jwks_route(InternalTokenSigner(None), lambda: NOW_US)({})
    assert (absent.status, absent.cache_control) == (404, "no-store")


def test_what_operators_see_is_no_secret():
    """Key ids, and for how long the one that signs has been signing."""
    signer = InternalTokenSigner(internal_tokens((pem(), NOW_S - 30), (pem(), NOW_S + 30)))
    published = [key["kid"] for key in signer.jwks(NOW_US)["keys"]]
    detail = signer.detail(NOW_US)
    assert detail == {"signing": published[0], "signing_for_s": 30, "published": published}
