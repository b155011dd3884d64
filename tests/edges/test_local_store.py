"""What only the store in this process has: a share of each limit, and a bound on what it remembers."""

from __future__ import annotations

import pytest

from sidecar.core.limits import US_PER_S, Charge, Limit
from sidecar.edges.local_store import LocalStore

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
