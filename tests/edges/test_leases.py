"""Hot keys charged ahead: fewer trips, and never more than stated beyond the limit."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.limits import US_PER_S, Algorithm, Charge, Limit, Op, Source, StoreFailure
from sidecar.edges.leases import HOT_CHARGES, HOT_SPAN_US, LEASE_US, LEASES_MAX, WATCHED_MAX, Leases
from sidecar.edges.local_store import LocalStore
from tests.support.asking import until
from tests.support.limiting import CountedStore, limiting

HOUR_US = 3_600 * US_PER_S
LIMIT = Limit(name="l", requests=1_000_000, window_us=HOUR_US, lease=50)
CHARGE = Charge(LIMIT, b"k")
LEASABLE = [Algorithm.SLIDING_WINDOW, Algorithm.FIXED_WINDOW, Algorithm.GCRA]


class Fleet:
    """Processes with leases of one store, all on one clock that is told; requests are decided at once.

    Attributes:
        admitted: When.
    """

    def __init__(self, processes, **settings):
        self.now_us = 1_700_000_000 * US_PER_S
        self.redis = LocalStore(now_us=lambda: self.now_us)
        self.store = CountedStore(self.redis)
        self.processes = [Leases(self.store, lambda: self.now_us, **settings) for _ in range(processes)]
        self.admitted = []

    @property
    def leases(self):
        return self.processes[0]

    def charge(self, *charges, process=0):
        """As the limiter does it."""
        leases, answers = self.processes[process], []
        granted = leases.grant(charges)
        if granted is not None:
            answers.append(granted)
        elif leases.is_hot(charges):
            leases.take(charges, 0, answers.append)
        else:
            self.store.charge(charges, 0, answers.append)
        [answer] = answers
        if not isinstance(answer, StoreFailure) and answer.allowed:
            self.admitted.append(self.now_us)
        return answer

    def heat(self, *charges, process=0):
        """Charge until a lease is held."""
        for _ in range(HOT_CHARGES + 1):
            self.charge(*charges, process=process)
        assert self.processes[process].held

    def used(self, charge):
        return self.redis.used(charge)


@pytest.fixture
async def fleet():
    return Fleet(1)


async def test_a_key_is_hot_beyond_the_stated_rate(fleet):
    """So many charges in one span are made one by one; one more takes ahead. Spread over two spans, none does."""
    for _ in range(HOT_CHARGES):
        fleet.charge(CHARGE)
    assert fleet.leases.held == 0
    fleet.now_us += HOT_SPAN_US
    for _ in range(HOT_CHARGES):
        fleet.charge(CHARGE)
    assert fleet.leases.held == 0
    fleet.charge(CHARGE)
    assert fleet.leases.held == fleet.leases.taken_total == 50


async def test_granted_without_asking(fleet):
    """What was taken ahead is granted without a trip, and the numbers go on as if it were counted one by one."""
    fleet.heat(CHARGE)
    trips = len(fleet.store.asked)
    for n in range(1, 51):
        verdict = fleet.charge(CHARGE)
        [outcome] = verdict.outcomes
        assert (verdict.allowed, outcome.source, outcome.limit) == (True, Source.LEASE, LIMIT)
        assert outcome.used == HOT_CHARGES + 1 + n
        assert outcome.remaining == LIMIT.requests - outcome.used
    assert len(fleet.store.asked) == trips
    assert (fleet.leases.held, fleet.leases.granted_total) == (0, 50)
    fleet.charge(CHARGE)
    assert [charge.cost for charge in fleet.store.asked[trips]] == [1, 50]
    assert fleet.used(CHARGE) == HOT_CHARGES + 1 + 50 + 1 + 50


@pytest.mark.parametrize("algorithm", LEASABLE)
async def test_the_rest_is_given_back(fleet, algorithm):
    """When its time has passed, what was not granted is in the counter no more."""
    charge = Charge(replace(LIMIT, algorithm=algorithm, requests=1_000), b"k")
    fleet.heat(charge)
    fleet.charge(charge)
    fleet.now_us += LEASE_US + 1
    before = len(fleet.store.asked)
    fleet.leases.end_leases()
    assert [(c.op, c.cost) for c in fleet.store.asked[before]] == [(Op.REFUND, 49)]
    assert fleet.leases.held == 0
    assert fleet.leases.returned_total == 49
    assert fleet.used(charge) == HOT_CHARGES + 2


async def test_nothing_is_granted_after_its_time(fleet):
    """Late requests are decided by the store."""
    fleet.heat(CHARGE)
    fleet.now_us += LEASE_US + 1
    assert fleet.charge(CHARGE).outcomes[0].source is Source.STORE


async def test_a_fixed_window_takes_its_leases_with_it(fleet):
    """Nothing counted in one window is granted in the next, nor given back there."""
    fixed = Charge(replace(LIMIT, algorithm=Algorithm.FIXED_WINDOW, window_us=US_PER_S), b"k")
    fleet.now_us += US_PER_S - fleet.now_us % US_PER_S - 1
    fleet.heat(fixed)
    fleet.now_us += 1
    assert fleet.charge(fixed).outcomes[0].source is Source.STORE
    fleet.leases.end_leases()
    assert fleet.used(fixed) == 1 + 50  # and what it took ahead in the new one
    assert fleet.leases.returned_total == 0


async def test_what_does_not_fit_is_not_taken_ahead(fleet):
    """Near the limit requests are decided exactly, one by one."""
    charge = Charge(replace(LIMIT, requests=HOT_CHARGES + 20), b"k")
    verdicts = [fleet.charge(charge) for _ in range(HOT_CHARGES + 40)]
    assert [verdict.allowed for verdict in verdicts] == [True] * (HOT_CHARGES + 20) + [False] * 20
    assert {len(verdict.outcomes) for verdict in verdicts} == {1}
    assert fleet.leases.taken_total == 0


async def test_several_limits_of_a_decision(fleet):
    """From leases only where all of its limits have one; what one of them denies, no other takes ahead."""
    other = Charge(replace(LIMIT, lease=20), b"other")
    fleet.heat(CHARGE, other)
    assert fleet.leases.held == 70
    assert {outcome.source for outcome in fleet.charge(CHARGE, other).outcomes} == {Source.LEASE}
    exact = Charge(replace(LIMIT, lease=0), b"exact")
    assert {outcome.source for outcome in fleet.charge(CHARGE, exact).outcomes} == {Source.STORE}
    exhausted = Charge(replace(LIMIT, requests=0), b"none")
    for _ in range(HOT_CHARGES + 2):
        assert not fleet.charge(Charge(LIMIT, b"new"), exhausted).allowed
    assert fleet.used(Charge(LIMIT, b"new")) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"lease": 0},
        {"count_denied": True},
        {"shadow": True},
        {"hold_us": US_PER_S},
        {"algorithm": Algorithm.SLIDING_LOG, "requests": 1_000},
        {"algorithm": Algorithm.CONCURRENCY, "requests": 1_000},
    ],
    ids=str,
)
async def test_what_is_never_leased(fleet, changes):
    """Limits without leases, and those that must be asked for each request."""
    charge = Charge(replace(LIMIT, **changes), b"k")
    for _ in range(2 * HOT_CHARGES):
        fleet.charge(charge)
    assert fleet.leases.taken_total == 0


async def test_looks_and_other_operations_are_asked_for(fleet):
    """Only what takes is granted."""
    fleet.heat(CHARGE)
    for charge in (Charge(LIMIT, b"k", 0), Charge(LIMIT, b"k", 1, Op.REFUND), Charge(LIMIT, b"k", 51)):
        assert fleet.charge(charge).outcomes[0].source is Source.STORE


async def test_a_failed_take_holds_nothing(fleet):
    """Its fate is unknown, so nothing is granted from it; the caller is told."""
    for _ in range(HOT_CHARGES):
        fleet.charge(CHARGE)
    fleet.store.failure = StoreFailure.TIMEOUT
    assert fleet.charge(CHARGE) is StoreFailure.TIMEOUT
    assert fleet.leases.held == 0


async def test_leases_are_bounded():
    """As many keys as stated; one more is charged one by one."""
    fleet = Fleet(1, leases_max=3)
    for n in range(3):
        fleet.heat(Charge(LIMIT, b"%d" % n))
    for _ in range(2 * HOT_CHARGES):
        fleet.charge(Charge(LIMIT, b"one more"))
    assert fleet.leases.held == 3 * 50
    assert LEASES_MAX > 3


async def test_watched_keys_are_bounded(fleet):
    """Those that came first in a span are counted; one more is not found hot in it."""
    for n in range(WATCHED_MAX):
        fleet.leases.is_hot([Charge(LIMIT, b"%d" % n)])
    assert not any(fleet.leases.is_hot([Charge(LIMIT, b"one more")]) for _ in range(2 * HOT_CHARGES))
    assert any(fleet.leases.is_hot([Charge(LIMIT, b"0")]) for _ in range(2 * HOT_CHARGES))


def most_in_any_span(times, span_us):
    """The most that happened in any span of this length."""
    most = first = 0
    for last, at in enumerate(times):
        while times[first] <= at - span_us:
            first += 1
        most = max(most, last - first + 1)
    return most


async def hammered(algorithm, seed):
    """Three processes under random load over several windows."""
    random = Random(seed)
    lease = random.choice((1, 5, 20))
    window_us = random.choice((US_PER_S // 10, US_PER_S, 3 * US_PER_S))
    limit = Limit(name="l", requests=random.choice((300, 600)), window_us=window_us, algorithm=algorithm, lease=lease)
    fleet = Fleet(3)
    for _ in range(300):
        process = random.randrange(3)
        for _ in range(random.choice((1, 1, 30))):
            fleet.charge(Charge(limit, b"k"), process=process)
        fleet.now_us += random.choice((1, 500, random.randrange(window_us // 20)))
        if random.random() < 0.2:
            fleet.processes[process].end_leases()
    return fleet, limit


@settings(deadline=None, max_examples=12)
@given(st.integers(), st.sampled_from([0.1, 0.5, 1.0]), st.sampled_from(LEASABLE))
def test_never_more_than_stated_beyond_the_limit(seed, part, algorithm):
    """In no span of up to a window are more than `processes x lease` admitted beyond the limit's own bound."""
    fleet, limit = asyncio.run(hammered(algorithm, seed))
    span_us = int(limit.window_us * part)
    own = {
        Algorithm.SLIDING_WINDOW: limit.requests * (1 + part),
        Algorithm.FIXED_WINDOW: limit.requests * 2,
        Algorithm.GCRA: limit.requests * (1 + part) + 1,
    }[algorithm]
    extra = 0 if algorithm is Algorithm.FIXED_WINDOW else 3 * limit.lease
    assert most_in_any_span(fleet.admitted, span_us) <= own + extra
    if algorithm is Algorithm.FIXED_WINDOW:
        windows = Counter(at // limit.window_us for at in fleet.admitted)
        assert max(windows.values()) <= limit.requests


async def test_histories_grant_from_leases():
    """The histories above do exercise the leases."""
    for algorithm in LEASABLE:
        fleet, _ = await hammered(algorithm, 1)
        assert sum(each.granted_total for each in fleet.processes) > 100


async def test_exact_in_one_window_over_several_processes(valkey):
    """Three sidecars on one Redis, 3,000 requests: exactly the limit is admitted, in far fewer trips."""
    charge = Charge(Limit(name="l", requests=2_000, window_us=HOUR_US, lease=40, deny_cache=False), b"k")
    async with AsyncExitStack() as stack:
        sidecars = [await stack.enter_async_context(limiting(path=valkey.socket_path)) for _ in range(3)]
        admitted = 0
        for _ in range(50):
            admitted += sum(await asyncio.gather(*(sidecar.admitted(20, charge) for sidecar in sidecars)))
        held = sum(sidecar.limiter.leases.held for sidecar in sidecars)
        assert 2_000 - held <= admitted <= 2_000
        assert sum(sidecar.limiter.leases.granted_total for sidecar in sidecars) > 1_000
        assert sum(sidecar.trips for sidecar in sidecars) < 2_000
        while not all([await sidecar.admitted(1, charge) == 0 for sidecar in sidecars]):
            admitted += 1
        await until(lambda: not any(sidecar.limiter.leases.held for sidecar in sidecars))
        assert admitted <= 2_000


async def test_closing_gives_back(valkey, valkey_admin):
    """What is held when a process stops is in the counter no more."""
    del valkey_admin
    async with limiting(path=valkey.socket_path) as looking:
        async with limiting(path=valkey.socket_path) as sidecar:
            while not sidecar.limiter.leases.held:
                await sidecar.admitted(HOT_CHARGES, CHARGE)
            made = HOT_CHARGES * (sidecar.limiter.leases.granted_total + sidecar.trips) // HOT_CHARGES
        verdict = await looking.verdict(Charge(LIMIT, b"k", 0))
        assert verdict.outcomes[0].used <= made
        assert sidecar.limiter.leases.returned_total == 50
