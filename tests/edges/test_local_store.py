"""What only the store in this process has: a share of each limit, and a bound on what it remembers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.algorithms.decide import decide
from sidecar.core.limits import US_PER_S, WINDOW_US_MAX, Algorithm, Charge, Limit, Op
from sidecar.edges.local_store import LocalStore
from tests.support.limit_strategies import T0_US, charges_of, limits

HOUR_US = 3_600 * US_PER_S


class Clock:
    now_us = 1_800_000_000 * US_PER_S

    def __call__(self):
        return self.now_us


def take(store, key, requests=1, cost=1):
    got = []
    limit = Limit(name="l", requests=requests, window_us=HOUR_US)
    store.charge([Charge(limit, key, cost)], 0.0, got.append)
    return got[0]


@pytest.mark.parametrize(("share", "requests", "granted"), [(0.5, 5, 2), (0.1, 5, 1), (1.0, 5, 5), (0.5, 0, 0)])
def test_grants_its_share(share, requests, granted):
    """A share is rounded down, but a limit that is not 0 grants at least 1."""
    store = LocalStore(share=share, now_us=Clock())
    assert sum(take(store, b"k", requests).allowed for _ in range(20)) == granted


@pytest.mark.parametrize("share", [0, -1, 1.01])
def test_a_share_must_make_sense(share):
    """Nothing, or more than everything, is refused."""
    with pytest.raises(ValueError, match="share"):
        LocalStore(share=share)


def test_verdicts_say_that_they_are_local():
    """Decisions of one process alone are marked, counted, and name the limit as it was written."""
    store = LocalStore(share=0.5, now_us=Clock())
    answer = take(store, b"k", 10)
    assert answer.local
    assert answer.outcomes[0].limit.requests == 10
    assert store.decisions_total == 1


def test_keeps_at_most_so_many_counters():
    """At the bound all are kept; one more displaces the least recently used one that has room."""
    store = LocalStore(keys_max=3, now_us=Clock())
    for key in (b"a", b"b", b"c"):
        take(store, key, 10)
    assert store.keys == 3
    take(store, b"a", 10)
    take(store, b"d", 10)
    assert store.keys == 3
    assert take(store, b"a", 10).outcomes[0].used == 3
    assert take(store, b"b", 10).outcomes[0].used == 1


def test_an_exhausted_counter_is_kept_while_others_have_room():
    """A caller over its limit cannot get free by making the store forget it."""
    store = LocalStore(keys_max=3, now_us=Clock())
    take(store, b"over")
    for index in range(100):
        take(store, b"%d" % index, 10)
    assert not take(store, b"over").allowed
    assert store.forgotten_total == 0


def test_forgets_exhausted_counters_only_when_all_are():
    """Where every counter is exhausted the least recently used one goes, and that is counted."""
    store = LocalStore(keys_max=3, now_us=Clock())
    for index in range(4):
        take(store, b"%d" % index)
    assert store.keys == 3
    assert store.forgotten_total == 1
    assert not take(store, b"3").allowed


def test_expired_counters_make_room():
    """What no longer matters goes first, and memory shrinks as new keys come."""
    clock = Clock()
    store = LocalStore(keys_max=100, now_us=clock)
    for index in range(50):
        take(store, b"%d" % index)
    clock.now_us += 2 * HOUR_US
    for index in range(50, 60):
        take(store, b"%d" % index)
    assert store.keys == 50
    assert store.forgotten_total == 0


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_grants_its_share_of_every_algorithm(algorithm):
    """Half of a limit, however it counts; operations and holds go through."""
    store = LocalStore(share=0.5, now_us=Clock())
    limit = Limit(name="l", requests=10, window_us=HOUR_US, algorithm=algorithm, hold_us=HOUR_US)
    assert [charge(store, limit, hold=hold).allowed for hold in (1, 2, 3, 4, 5, 6)] == [True] * 5 + [False]
    assert charge(store, limit, 0, Op.SETTLE, 5).outcomes[0].used == 4
    assert charge(store, limit).outcomes[0].used == 5
    assert charge(store, limit, 3, Op.FORCE).outcomes[0].used == 8
    assert charge(store, limit, 3, Op.REFUND).outcomes[0].used == 5


def charge(store, limit, cost=1, op=Op.TAKE, hold=0):
    got = []
    store.charge([Charge(limit, b"k", cost, op, hold)], 0.0, got.append)
    return got[0]


@pytest.mark.parametrize(
    ("requests", "burst", "share", "granted"), [(10, 40, 0.5, 20), (10, 0, 0.5, 5), (1, 9, 0.1, 1), (19, 100, 0.1, 5)]
)
def test_grants_its_share_of_a_burst(requests, burst, share, granted):
    """Of the burst too, and no more than comes back in the time in which the whole one does."""
    store = LocalStore(share=share, now_us=Clock())
    limit = Limit(name="l", requests=requests, window_us=HOUR_US, algorithm=Algorithm.GCRA, burst=burst)
    assert sum(charge(store, limit).allowed for _ in range(100)) == granted


def test_a_share_of_the_slowest_burst_can_be_built():
    """Rounding the rate down never makes a burst that takes longer than 366 days to come back."""
    for requests in range(1, 30):
        limit = Limit(
            name="l", requests=requests, window_us=WINDOW_US_MAX // 7, algorithm=Algorithm.GCRA, burst=7 * requests
        )
        for share in (0.05, 0.3, 0.51, 0.99):
            assert charge(LocalStore(share=share, now_us=Clock()), limit).allowed


def test_a_shadow_denies_nothing():
    """The decision passes over a shadow, which says itself that it would have denied."""
    verdict = charge(LocalStore(now_us=Clock()), Limit(name="l", requests=0, window_us=HOUR_US, shadow=True))
    assert verdict.allowed
    assert not verdict.outcomes[0].allowed


@settings(deadline=None, max_examples=100)
@given(
    st.data(), st.lists(limits(requests=st.integers(0, 20), windows=st.integers(1_000, 9_000)), min_size=1, max_size=3)
)
def test_is_the_oracle_behind_a_door(data, some):
    """Everything is as the specification says, though what has expired or is empty is dropped."""
    clock, states = Clock(), {}
    clock.now_us = T0_US
    store = LocalStore(now_us=clock)
    steps = st.tuples(st.integers(0, 9_000), st.lists(charges_of(some, st.integers(0, 4)), min_size=1, max_size=3))
    for step, charges in data.draw(st.lists(steps, max_size=15)):
        clock.now_us += step
        got = []
        store.charge(charges, 0.0, got.append)
        decided = decide(charges, clock.now_us, states.get)
        states.update((write.key, write.state) for write in decided.writes)
        assert got[0].allowed == decided.allowed
        assert [numbers(each) for each in got[0].outcomes] == [numbers(each) for each in decided.outcomes]


def numbers(outcome):
    return outcome.allowed, outcome.used, outcome.remaining, outcome.retry_after_us, outcome.reset_after_us


def test_keeps_at_most_so_many_parts():
    """Entries of logs and holds are bounded over all counters; one more displaces the least recently used counter."""
    clock = Clock()
    store = LocalStore(parts_max=6, now_us=clock)
    log = Limit(name="l", requests=100, window_us=HOUR_US, algorithm=Algorithm.SLIDING_LOG)
    leases = Limit(name="c", requests=100, window_us=HOUR_US, algorithm=Algorithm.CONCURRENCY)
    for _ in range(3):
        clock.now_us += 1
        store.charge([Charge(log, b"k"), Charge(leases, b"k")], 0.0, lambda _verdict: None)
    assert (store.keys, store.parts) == (2, 6)
    assert charge(store, leases).outcomes[0].used == 4
    assert (store.keys, store.parts) == (1, 4)
    clock.now_us += 2 * HOUR_US
    charge(store, log)
    assert (store.keys, store.parts) == (1, 1)


def test_an_empty_counter_is_not_kept():
    """What was given back in full leaves nothing."""
    store = LocalStore(now_us=Clock())
    leases = Limit(name="c", requests=1, window_us=HOUR_US, algorithm=Algorithm.CONCURRENCY)
    charge(store, leases, hold=1)
    charge(store, leases, 1, Op.SETTLE, 1)
    assert (store.keys, store.parts) == (0, 0)
