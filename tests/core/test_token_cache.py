"""The cache of verified tokens: its bounds, its order, and what makes an entry no longer hold."""

from __future__ import annotations

import tracemalloc

import pytest

from sidecar.core import token as tokens
from sidecar.core.issuer import TOKEN_BYTES_MAX
from sidecar.core.keys import parse_jwks
from sidecar.core.principal import Principal
from sidecar.core.token_cache import CLAIM_BYTES_PER_TOKEN_BYTE, ENTRY_BYTES, TokenCache
from tests.support.tokens import NOW_US, good_claims, issuer_policy, jwks, make_key

KEY = make_key("EdDSA")
POLICY = issuer_policy()
KEYS = parse_jwks(jwks(KEY))


def put(cache: TokenCache, text: str) -> None:
    parsed = tokens.parse(text, 1 << 20)
    assert isinstance(parsed, tokens.UnverifiedToken)
    principal = tokens.verify(parsed, POLICY, KEYS, NOW_US)
    assert isinstance(principal, Principal)
    cache.put(parsed, POLICY, KEYS, principal)


def minted(number: int) -> str:
    return KEY.token(sub=f"user-{number:04}")


def held(cache: TokenCache, count: int) -> list[int]:
    return [number for number in range(count) if cache.get(minted(number)) is not None]


COST = ENTRY_BYTES + CLAIM_BYTES_PER_TOKEN_BYTE * len(minted(0))


@pytest.mark.parametrize(
    "cache", [TokenCache(entries_max=3), TokenCache(bytes_max=3 * COST)], ids=["by entries", "by bytes"]
)
def test_bounds(cache: TokenCache) -> None:
    """At N all are held; at N + 1 the one that was not used for longest is gone."""
    for number in range(3):
        put(cache, minted(number))
    assert (len(cache), cache.evictions, cache.size_bytes) == (3, 0, 3 * COST)
    assert cache.get(minted(0)) is not None
    put(cache, minted(3))
    assert (len(cache), cache.evictions, cache.size_bytes) == (3, 1, 3 * COST)
    assert held(cache, 4) == [0, 2, 3]


def test_an_entry_larger_than_the_cache_is_not_held() -> None:
    """And evicts nothing."""
    cache = TokenCache(bytes_max=COST)
    put(cache, minted(0))
    put(cache, KEY.token(good_claims(f="x" * 100)))
    assert held(cache, 1) == [0]
    assert cache.evictions == 0


def test_a_cache_of_no_entries_holds_nothing() -> None:
    """Zero switches it off."""
    cache = TokenCache(entries_max=0)
    put(cache, minted(0))
    assert len(cache) == 0


@pytest.mark.parametrize("more", [0, 1])
def test_the_longest_tokens_are_not_held(more: int) -> None:
    """Looking one up would cost whatever its sender likes."""
    text = next(
        text
        for filler in range(5500, 6200)
        if len(text := KEY.token(good_claims(f="x" * filler))) >= TOKEN_BYTES_MAX + more
    )
    assert len(text) == TOKEN_BYTES_MAX + more
    cache = TokenCache()
    put(cache, text)
    assert (cache.get(text) is None) is bool(more)


def test_counts() -> None:
    """Hits, misses and entries; putting a token twice keeps one entry."""
    cache = TokenCache()
    assert cache.get(minted(0)) is None
    put(cache, minted(0))
    put(cache, minted(0))
    assert cache.get(minted(0)) is not None
    assert (cache.hits, cache.misses, len(cache), cache.size_bytes) == (1, 1, 1, COST)
    cache.drop(minted(0))
    cache.drop(minted(0))
    assert (len(cache), cache.size_bytes) == (0, 0)


@pytest.mark.parametrize("text", ["", "\ud800", "é", "x" * 100_000])
def test_any_text_can_be_looked_up(text: str) -> None:
    """It is not found, and nothing is raised."""
    assert TokenCache().get(text) is None


def test_an_entry_holds_while_policy_and_key_do() -> None:
    """Equal policies and sets that still publish the key are as good as the same ones; anything else is not."""
    cache = TokenCache()
    put(cache, minted(0))
    entry = cache.get(minted(0))
    assert entry is not None
    assert entry.holds(POLICY, KEYS)
    assert entry.holds(issuer_policy(), KEYS)
    both = parse_jwks(jwks(KEY, make_key("EdDSA", kid="k2", number=1)))
    assert entry.holds(issuer_policy(), both)
    assert not entry.holds(issuer_policy(audiences=frozenset({"other"})), both)
    assert not entry.holds(issuer_policy(name="renamed"), both)
    assert not entry.holds(POLICY, None)
    assert not entry.holds(POLICY, parse_jwks(jwks(make_key("EdDSA", kid="k2", number=1))))
    assert not entry.holds(POLICY, parse_jwks(jwks(make_key("EdDSA", number=1))))


def test_estimated_size_covers_the_real_one() -> None:
    """What the bound counts is at least what a thousand usual entries take."""
    cache = TokenCache()
    texts = [
        KEY.token(good_claims(sub=f"user-{number:04}", realm_access={"roles": ["a", "b"]}, email="alice@example.com"))
        for number in range(1000)
    ]
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for text in texts:
        put(cache, text)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.3 * cache.size_bytes < after - before < cache.size_bytes
