"""Denials from memory: never one that the store would not repeat, and told times that hold."""

from __future__ import annotations

import copy
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.deny_cache import (
    DENIALS_MAX,
    FREED_KEYS_MAX,
    LEASED_REMEMBERED_US_MAX,
    REMEMBERED_US_MAX,
    DenyCache,
    RememberedDenial,
)
from sidecar.core.limits import US_PER_S, Algorithm, Charge, Limit, LimitOutcome, Op, Source
from sidecar.edges.local_store import LocalStore

HOUR_US = 3_600 * US_PER_S
LIMIT = Limit(name="l", requests=5, window_us=HOUR_US)
COUNTING = Limit(name="l", requests=5, window_us=HOUR_US, algorithm=Algorithm.FIXED_WINDOW, count_denied=True)
EPOCH_US = 1_700_000_000 * US_PER_S


def denied(limit, retry_after_us=10 * US_PER_S, reset_after_us=HOUR_US, used=5):
    return LimitOutcome(limit, False, used, 0, retry_after_us, reset_after_us)


def remembering(limit=LIMIT, cost=1, key=b"k", **outcome):
    """A cache that was told of one denial, asked for at 1,000 us and heard of at 1,500 us."""
    cache = DenyCache()
    cache.remember([Charge(limit, key, cost)], [denied(limit, **outcome)], 1_000, 1_500)
    return cache


class Store:
    """A store with a clock that is told, and what it denied."""

    def __init__(self):
        self.now_us = 0
        self.local = LocalStore(now_us=lambda: EPOCH_US + self.now_us)

    def decide(self, *charges):
        answers = []
        self.local.charge(charges, 0, answers.append)
        return answers[0]

    def at(self, now_us):
        """The same store at another time; what is done to it is done to a copy."""
        other = Store()
        other.now_us = now_us
        other.local = copy.copy(self.local)
        for name in ("_open", "_exhausted"):
            setattr(other.local, name, copy.copy(getattr(self.local, name)))
        other.local._now_us = lambda: EPOCH_US + other.now_us
        return other


class History:
    """Random charges through a cache, with time passing everywhere, and others who charge the store as well."""

    def __init__(self, seed, limits):
        self.random = Random(seed)
        self.limits = limits
        self.store, self.cache = Store(), DenyCache(denials_max=8)
        self.from_memory = 0
        self.on_the_way = []
        self.taken: dict[bytes, int] = {}
        self.taken_when_denied: dict[tuple[bytes, int], int] = {}

    def charge(self):
        random = self.random
        limit = random.choice(self.limits)
        charge = Charge(
            limit,
            b"%b:%d" % (limit.name.encode(), random.randrange(3)),
            random.choice((0, 1, 1, 1, 2, 3, limit.requests + 1)),
        )
        known = self.cache.denial(charge, self.store.now_us)
        if known is not None:
            self.from_memory += 1
            self.check(charge, known)
            return
        asked_us = self.store.now_us
        self.pass_time(2_000)
        verdict = self.take(charge)
        self.pass_time(2_000)
        if not verdict.allowed:
            self.taken_when_denied[charge.storage_key, charge.cost] = self.taken.get(charge.storage_key, 0)
            self.on_the_way.append(([charge], verdict.outcomes, asked_us))
            if random.random() < 0.7:
                self.hear()

    def hear(self):
        """The answers arrive."""
        for charges, outcomes, asked_us in self.on_the_way:
            self.cache.remember(charges, outcomes, asked_us, self.store.now_us)
        self.on_the_way.clear()

    def refund(self):
        """Through this process, as the limiter does it; answers to what was asked before may arrive after it."""
        limit = self.random.choice(self.limits)
        refund = Charge(limit, b"%b:%d" % (limit.name.encode(), self.random.randrange(3)), 1, Op.REFUND)
        self.cache.forget([refund.storage_key], self.store.now_us)
        self.pass_time(2_000)
        self.store.decide(refund)
        if self.random.random() < 0.5:
            self.hear()
        self.pass_time(2_000)
        self.cache.forget([refund.storage_key], self.store.now_us)

    def check(self, charge, known):
        now_us = self.store.now_us
        assert not self.store.at(now_us).decide(charge).allowed
        if known.retry_after_us < 0:
            assert charge.cost > charge.limit.capacity
        elif charge.limit.algorithm is Algorithm.FIXED_WINDOW or not self.taken_since(charge):
            assert self.store.at(now_us + known.retry_after_us).decide(charge).allowed

    def taken_since(self, charge):
        """How much was taken of the key since the same cost was denied by the store."""
        return self.taken.get(charge.storage_key, 0) - self.taken_when_denied[charge.storage_key, charge.cost]

    def take(self, charge):
        verdict = self.store.decide(charge)
        if verdict.allowed or charge.limit.count_denied:
            self.taken[charge.storage_key] = self.taken.get(charge.storage_key, 0) + charge.cost
        return verdict

    def somebody_else(self):
        limit = self.random.choice(self.limits)
        self.take(Charge(limit, b"%b:%d" % (limit.name.encode(), self.random.randrange(2)), 1))

    def pass_time(self, most_us):
        self.store.now_us += self.random.choice((0, 1, self.random.randrange(most_us)))

    def run(self, steps):
        for _ in range(steps):
            self.random.choice((self.charge,) * 6 + (self.somebody_else,) * 2 + (self.hear, self.refund))()
            self.pass_time(200_000)
            if self.random.random() < 0.05:
                self.cache.expire(self.store.now_us)
        return self.from_memory


FIXED = Limit(name="f", requests=3, window_us=US_PER_S, algorithm=Algorithm.FIXED_WINDOW)
MIXED = [
    Limit(name="s", requests=3, window_us=US_PER_S),
    FIXED,
    replace(FIXED, name="c", count_denied=True),
    Limit(name="n", requests=2, window_us=US_PER_S, count_denied=True),
    Limit(name="g", requests=3, window_us=US_PER_S, algorithm=Algorithm.GCRA, burst=2),
    Limit(name="l", requests=3, window_us=US_PER_S, algorithm=Algorithm.SLIDING_LOG),
]


@settings(deadline=None, max_examples=40)
@given(st.integers())
def test_never_denies_what_the_store_would_allow(seed):
    """Over random histories a denial from memory is one that the store would repeat, and who waits as told passes."""
    History(seed, MIXED).run(200)


def test_histories_are_answered_from_memory():
    """The histories above do exercise the memory."""
    assert History(1, MIXED).run(3_000) > 50


def test_from_memory_until_the_stated_time():
    """Denied up to the last microsecond before the key can pass, from before the store was asked; then asked."""
    cache = remembering()
    first = cache.denial(Charge(LIMIT, b"k"), 1_500)
    assert isinstance(first, RememberedDenial)
    assert (first.allowed, first.used, first.remaining, first.source) == (False, 5, 0, Source.REMEMBERED)
    assert first.retry_after_us == 10 * US_PER_S
    assert first.reset_after_us == HOUR_US
    last = cache.denial(Charge(LIMIT, b"k"), 1_000 + 10 * US_PER_S - 1)
    assert last.retry_after_us == 501
    assert cache.denial(Charge(LIMIT, b"k"), 1_000 + 10 * US_PER_S) is None
    assert cache.hits_total == 2


def test_other_keys_and_windows_are_not_concerned():
    """What is known of a counter says nothing of another."""
    cache = remembering()
    assert cache.denial(Charge(LIMIT, b"other"), 1_500) is None
    assert cache.denial(Charge(replace(LIMIT, window_us=US_PER_S), b"k"), 1_500) is None


def test_a_changed_limit_is_asked_for():
    """Another policy or an override may grant more; an equal limit of a reloaded policy is the same."""
    cache = remembering()
    assert cache.denial(Charge(replace(LIMIT, requests=6), b"k"), 1_500) is None
    assert cache.denial(Charge(replace(LIMIT), b"k"), 1_500) is not None


def test_less_is_asked_for_and_so_is_more():
    """A smaller cost may pass, a larger one passes at a time that only the store knows; in a fixed window all pass."""
    cache = remembering(cost=3)
    assert [cache.denial(Charge(LIMIT, b"k", cost), 1_500) is None for cost in (2, 3, 4)] == [True, False, True]
    fixed = replace(LIMIT, algorithm=Algorithm.FIXED_WINDOW)
    cache = remembering(fixed, cost=3)
    assert [cache.denial(Charge(fixed, b"k", cost), 1_500) is None for cost in (2, 3, 5, 6)] == [
        True,
        False,
        False,
        True,
    ]


def test_a_larger_cost_does_not_displace_a_smaller_one():
    """What covers more stays."""
    cache = remembering(cost=1)
    cache.remember([Charge(LIMIT, b"k", 4)], [denied(LIMIT)], 1_600, 1_700)
    assert cache.denial(Charge(LIMIT, b"k", 1), 1_800) is not None


def test_a_window_that_counts_denials_is_over_for_every_cost():
    """Counting on would change nothing until it ends, so not even a look needs the store."""
    cache = remembering(COUNTING, cost=3, used=7, retry_after_us=60, reset_after_us=60)
    cache = remembering(COUNTING, cost=3, used=7, retry_after_us=10_000, reset_after_us=10_000)
    assert [cache.denial(Charge(COUNTING, b"k", cost), 1_500) is None for cost in (0, 1, 5)] == [False] * 3
    assert cache.denial(Charge(COUNTING, b"k"), 11_000) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"deny_cache": False},
        {"shadow": True},
        {"hold_us": US_PER_S},
        {"algorithm": Algorithm.CONCURRENCY},
        {"count_denied": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_is_never_remembered(changes):
    """Limits that say so, deny nothing, hold, or count what is denied."""
    assert len(remembering(replace(LIMIT, **changes))) == 0


def test_only_what_was_denied_is_remembered():
    """Of a decision's charges those that were denied, each with what was asked of its key up to it."""
    cache = DenyCache()
    charges = [Charge(LIMIT, b"a"), Charge(LIMIT, b"b", 2), Charge(LIMIT, b"b"), Charge(LIMIT, b"c", 1, Op.REFUND)]
    allowed = LimitOutcome(LIMIT, True, 1, 4, 0, HOUR_US)
    cache.remember(charges, [allowed, allowed, denied(LIMIT), allowed], 0, 1)
    assert len(cache) == 1
    assert cache.denial(Charge(LIMIT, b"b", 1), 10) is None
    assert cache.denial(Charge(LIMIT, b"b", 3), 10) is not None


def test_memory_is_short():
    """Whatever the store said, it is asked again after a minute; with leases, much sooner."""
    charge = Charge(LIMIT, b"k")
    for outcome in ({"retry_after_us": HOUR_US}, {"retry_after_us": -1}):
        cache = remembering(**outcome)
        assert cache.denial(charge, 1_000 + REMEMBERED_US_MAX - 1) is not None
        assert cache.denial(charge, 1_000 + REMEMBERED_US_MAX) is None
    leased = replace(LIMIT, lease=2)
    assert remembering(leased).denial(Charge(leased, b"k"), 1_000 + LEASED_REMEMBERED_US_MAX) is None


def test_what_never_passes_says_so():
    """A cost above the limit has no time to come back at."""
    assert remembering(retry_after_us=-1, cost=9).denial(Charge(LIMIT, b"k", 9), 2_000).retry_after_us == -1


def test_forgotten_at_once():
    """A counter that was given something back is asked for, the others are not."""
    cache = remembering()
    cache.remember([Charge(LIMIT, b"other")], [denied(LIMIT)], 1_000, 1_500)
    cache.forget([Charge(LIMIT, b"k").storage_key], 2_000)
    assert cache.denial(Charge(LIMIT, b"k"), 2_000) is None
    assert cache.denial(Charge(LIMIT, b"other"), 2_000) is not None
    cache.forget(None, 2_000)
    assert len(cache) == 0


@pytest.mark.parametrize("what", ["key", "everything"])
def test_a_denial_on_its_way_is_forgotten_too(what):
    """What was asked before something was given back may have been decided before; what is asked later was not."""
    cache, charge = DenyCache(), Charge(LIMIT, b"k")
    cache.forget([charge.storage_key] if what == "key" else None, 2_000)
    cache.remember([charge], [denied(LIMIT)], 2_000, 2_500)
    assert len(cache) == 0
    cache.remember([charge], [denied(LIMIT)], 2_001, 2_500)
    assert len(cache) == 1


def test_times_of_giving_back_are_bounded():
    """Beyond the bound, the latest of the times that were dropped counts for every counter."""
    cache = DenyCache()
    for n in range(FREED_KEYS_MAX):
        cache.forget([b"%d" % n], 1_000 + n)
    charge = Charge(LIMIT, b"k")
    cache.remember([charge], [denied(LIMIT)], 1_000, 1_500)
    assert len(cache) == 1
    cache.forget([b"one more"], 1_000_000)
    cache.remember([Charge(LIMIT, b"early")], [denied(LIMIT)], 1_000, 1_500)
    assert len(cache) == 1
    cache.remember([Charge(LIMIT, b"late")], [denied(LIMIT)], 1_001, 1_500)
    assert len(cache) == 2


def test_bounded():
    """As many as stated; one more pushes out the one that ends soonest."""
    cache = DenyCache()
    for n in range(DENIALS_MAX):
        cache.remember([Charge(LIMIT, b"%d" % n)], [denied(LIMIT, US_PER_S + n)], 0, 1)
    assert (len(cache), cache.evicted_total) == (DENIALS_MAX, 0)
    cache.remember([Charge(LIMIT, b"one more")], [denied(LIMIT)], 0, 1)
    assert (len(cache), cache.evicted_total) == (DENIALS_MAX, 1)
    assert cache.denial(Charge(LIMIT, b"0"), 1) is None
    assert cache.denial(Charge(LIMIT, b"1"), 1) is not None


def test_the_queue_of_ends_is_bounded():
    """The same keys denied again and again do not make it grow."""
    cache = DenyCache(denials_max=10)
    for n in range(1_000):
        cache.remember([Charge(LIMIT, b"%d" % (n % 5))], [denied(LIMIT)], n, n + 1)
        assert len(cache._ends) <= 41
    cache.expire(20 * US_PER_S)
    assert len(cache) == 0


def test_what_has_ended_is_dropped():
    """Expiry leaves what still holds."""
    cache = remembering()
    cache.remember([Charge(LIMIT, b"later")], [denied(LIMIT, 20 * US_PER_S)], 1_000, 1_500)
    cache.expire(1_000 + 10 * US_PER_S)
    assert len(cache) == 1
    assert cache.denial(Charge(LIMIT, b"later"), 1_000 + 10 * US_PER_S) is not None
