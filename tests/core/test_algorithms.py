"""The algorithms as the oracle states them: bounds against an exact log, exact retry times, clocks that step back."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.algorithms.decide import decide
from sidecar.core.limits import (
    HOLDS_MAX,
    LOG_ENTRIES_MAX,
    REQUESTS_MAX,
    WINDOW_US_MAX,
    Algorithm,
    Charge,
    Limit,
    LimitOutcome,
    Op,
)
from tests.support.limit_strategies import charges_of, limits

if TYPE_CHECKING:
    from sidecar.core.algorithms.account import State

W = 60_000_000
T0 = 1_800_000_000 * 1_000_000
SLIDING, FIXED = Algorithm.SLIDING_WINDOW, Algorithm.FIXED_WINDOW
GCRA, LOG, CONCURRENCY = Algorithm.GCRA, Algorithm.SLIDING_LOG, Algorithm.CONCURRENCY
HELD = (SLIDING, FIXED, GCRA, LOG)
"""What can reserve and settle, besides the one that is nothing else."""


class Counting:
    """Counters in a dict, and a clock that the test moves."""

    def __init__(self, now_us: int = T0) -> None:
        self.now_us = now_us
        self.states: dict[bytes, State] = {}

    def charge(self, *charges: Charge) -> tuple[LimitOutcome, ...]:
        decided = decide(charges, self.now_us, self.states.get)
        self.states.update((write.key, write.state) for write in decided.writes)
        return decided.outcomes

    def takes(self, limit: Limit, cost: int = 1, hold: int = 0) -> bool:
        return self.charge(Charge(limit, b"k", cost, Op.TAKE, hold))[0].allowed

    def does(self, op: Op, limit: Limit, cost: int = 1, hold: int = 0) -> LimitOutcome:
        outcome = self.charge(Charge(limit, b"k", cost, op, hold))[0]
        assert outcome.allowed
        return outcome

    def used(self, limit: Limit) -> int:
        return self.charge(Charge(limit, b"k", 0))[0].used


def limit_of(requests: int, window_us: int = W, algorithm: Algorithm = SLIDING, **settings: Any) -> Limit:
    return Limit(name="l", requests=requests, window_us=window_us, algorithm=algorithm, **settings)


def test_sliding_counts_by_hand() -> None:
    """The estimate is what is left of the last bucket, rounded up, plus the current one."""
    counting, limit = Counting(T0), limit_of(10)
    for _ in range(7):
        counting.takes(limit)
    counting.now_us = T0 + W + W // 3
    outcome = counting.charge(Charge(limit, b"k", 3))[0]
    assert (outcome.used, outcome.remaining) == (5 + 3, 2)  # ceil(7 * 2/3) = 5
    assert outcome.reset_after_us == 2 * W - W // 3


def test_fixed_counts_denied_when_told() -> None:
    """With count_denied the counter keeps growing, and stays denied until its window ends."""
    counting, limit = Counting(T0 + 5), limit_of(2, algorithm=FIXED, count_denied=True)
    used = [counting.charge(Charge(limit, b"k"))[0].used for _ in range(4)]
    assert used == [1, 2, 3, 4]
    outcome = counting.charge(Charge(limit, b"k"))[0]
    assert (outcome.remaining, outcome.retry_after_us, outcome.reset_after_us) == (0, W - 5, W - 5)
    counting.now_us = T0 + W
    assert counting.takes(limit)


def test_nothing_is_taken_when_one_limit_denies() -> None:
    """All or nothing: the limit that would have allowed is left as it was, the one that counts denials is not."""
    counting = Counting()
    roomy, full, counted = limit_of(5), limit_of(0), limit_of(5, algorithm=FIXED, count_denied=True)
    outcomes = counting.charge(Charge(roomy, b"a"), Charge(full, b"b"), Charge(counted, b"c"))
    assert [o.allowed for o in outcomes] == [True, False, True]
    assert [o.used for o in outcomes] == [0, 0, 1]
    assert outcomes[1].retry_after_us == -1


def test_same_key_is_summed() -> None:
    """Charges of one decision on the same key are judged and reported on top of each other."""
    counting, limit = Counting(), limit_of(3)
    outcomes = counting.charge(Charge(limit, b"k"), Charge(limit, b"k", 2))
    assert [(o.allowed, o.used, o.remaining) for o in outcomes] == [(True, 1, 2), (True, 3, 0)]
    counting = Counting()
    outcomes = counting.charge(Charge(limit, b"k", 2), Charge(limit, b"k", 2))
    assert [(o.allowed, o.used, o.retry_after_us) for o in outcomes] == [(True, 0, 0), (False, 0, -1)]


def test_cost_zero_looks_only() -> None:
    """A peek passes up to and including the full limit, changes nothing, and is judged by what was counted alone."""
    counting, limit = Counting(), limit_of(1)
    assert counting.takes(limit, 0)
    assert counting.states == {}
    assert counting.takes(limit)
    assert counting.takes(limit, 0)
    assert not counting.takes(limit)
    assert not counting.takes(limit_of(0), 0)
    assert Counting().takes(limit_of(0), 0)
    assert not Counting().takes(limit_of(0))


def test_largest_values_are_exact() -> None:
    """The largest limit over the longest window neither overflows nor rounds in the caller's favour."""
    counting, limit = Counting(WINDOW_US_MAX * 50), limit_of(REQUESTS_MAX, WINDOW_US_MAX)
    assert counting.takes(limit, REQUESTS_MAX)
    counting.now_us += WINDOW_US_MAX + 1
    outcome = counting.charge(Charge(limit, b"k", 0))[0]
    assert outcome.used == REQUESTS_MAX  # ceil(REQUESTS_MAX * (1 - 1 / WINDOW_US_MAX))


def test_gcra_counts_by_hand() -> None:
    """A full bucket leaks at its rate: 10 a minute are one each 6 s, whatever the burst."""
    counting, limit = Counting(), limit_of(10, algorithm=GCRA, burst=3)
    outcomes = [counting.charge(Charge(limit, b"k"))[0] for _ in range(4)]
    assert [(o.allowed, o.used, o.remaining) for o in outcomes] == [
        (True, 1, 2),
        (True, 2, 1),
        (True, 3, 0),
        (False, 3, 0),
    ]
    assert (outcomes[3].retry_after_us, outcomes[3].reset_after_us) == (W // 10, 3 * W // 10)
    counting.now_us += W // 10
    assert counting.takes(limit)
    assert counting.charge(Charge(limit, b"k", 4))[0].retry_after_us == -1


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 50), st.integers(1_000, 5_000), st.integers(2, 50))
def test_gcra_never_drifts(requests: int, window_us: int, burst: int) -> None:
    """Who always comes as soon as possible gets the burst and then the rate, exactly, however odd the rate is.

    (A burst of 1 loses what comes back within the microsecond in which the bucket is already empty.)
    """
    counting, limit = Counting(), limit_of(requests, window_us, GCRA, burst=burst)
    taken = 0
    while counting.now_us <= T0 + 4 * window_us:
        outcome = counting.charge(Charge(limit, b"k"))[0]
        taken += outcome.allowed
        counting.now_us += outcome.retry_after_us
    assert taken == burst + 4 * requests


def test_gcra_keeps_at_most_366_days_of_debt() -> None:
    """However much is forced onto it, a bucket is empty after 366 days."""
    counting, limit = Counting(), limit_of(1, 1_000_000, GCRA)
    counting.does(Op.FORCE, limit, REQUESTS_MAX)
    assert counting.does(Op.FORCE, limit, 1).reset_after_us == WINDOW_US_MAX
    counting.now_us += WINDOW_US_MAX
    assert counting.used(limit) == 0


def test_log_counts_by_hand() -> None:
    """Each entry counts for exactly one window; what is taken at one time is one entry."""
    counting, limit = Counting(), limit_of(3, algorithm=LOG)
    assert counting.takes(limit)
    assert counting.takes(limit)
    counting.now_us += 10
    assert counting.takes(limit)
    assert counting.states[Charge(limit, b"k").storage_key].parts == 2
    outcome = counting.charge(Charge(limit, b"k", 3))[0]
    assert (outcome.allowed, outcome.retry_after_us, outcome.reset_after_us) == (False, W, W)
    counting.now_us += W - 10
    assert counting.used(limit) == 1


def test_log_has_at_most_so_many_entries() -> None:
    """A full log takes more only as part of its newest entry, which then counts from now on."""
    counting, limit = Counting(), limit_of(LOG_ENTRIES_MAX, algorithm=LOG)
    key = Charge(limit, b"k").storage_key
    for _ in range(LOG_ENTRIES_MAX):
        counting.now_us += 1
        counting.does(Op.FORCE, limit)
    assert counting.states[key].parts == LOG_ENTRIES_MAX
    counting.now_us += 1
    counting.does(Op.FORCE, limit)
    assert counting.states[key].parts == LOG_ENTRIES_MAX
    assert counting.used(limit) == LOG_ENTRIES_MAX + 1
    counting.now_us += W - 1
    assert counting.used(limit) == 2


algorithms = st.sampled_from(Algorithm)
windows_us = st.sampled_from([1_000, 1_000_000, W, 7 * 86_400_000_000 + 1, WINDOW_US_MAX])


@settings(deadline=None, max_examples=200)
@given(st.data(), limits(requests=st.integers(1, 20), windows=windows_us))
def test_waiting_exactly_as_told_passes(data: st.DataObject, limit: Limit) -> None:
    """A denied charge passes after exactly retry_after_us, and not one microsecond earlier: whatever came before."""
    counting = Counting()
    lengths = st.one_of(st.integers(0, 9), st.integers(0, limit.window_us // 2), st.integers(-limit.window_us, 0))
    charges = charges_of([limit], st.integers(0, limit.capacity))
    for length, charge in data.draw(st.lists(st.tuples(lengths, charges), max_size=20)):
        counting.now_us += length
        outcome = counting.charge(charge)[0]
        if not outcome.allowed:
            assert outcome.retry_after_us > 0
            passes_us = counting.now_us + outcome.retry_after_us
            assert not decide([charge], passes_us - 1, counting.states.get).outcomes[0].allowed
            assert decide([charge], passes_us, counting.states.get).outcomes[0].allowed


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 3)), max_size=120), st.integers(1, 12))
def test_sliding_window_keeps_its_bounds(steps: list[tuple[int, int]], requests: int) -> None:
    """Against an exact log: any span d <= W admits at most L * (1 + d/W), hence any span of W less than 2L."""
    log = admitted(limit_of(requests, 1_000), steps)
    for first, begins in enumerate(log):
        for last in range(first, len(log)):
            span = log[last] - begins
            if span > 1_000:
                break
            assert (last - first + 1) * 1_000 <= requests * (1_000 + span)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 3)), max_size=120), st.integers(1, 12))
def test_fixed_window_keeps_its_bound(steps: list[tuple[int, int]], requests: int) -> None:
    """No window of the epoch's grid admits more than the limit."""
    grids = [at_us // 1_000 for at_us in admitted(limit_of(requests, 1_000, FIXED), steps)]
    assert max((grids.count(grid) for grid in grids), default=0) <= requests


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 3)), max_size=120), st.integers(1, 12), st.integers(1, 30)
)
def test_gcra_keeps_its_bound(steps: list[tuple[int, int]], requests: int, burst: int) -> None:
    """Against an exact log: any span d admits at most the burst and what comes back meanwhile, burst + L * d/W."""
    log = admitted(limit_of(requests, 1_000, GCRA, burst=burst), steps)
    for first, begins in enumerate(log):
        for last in range(first, len(log)):
            assert (last - first + 1 - burst) * 1_000 <= requests * (log[last] - begins)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 3)), max_size=120), st.integers(1, 12))
def test_sliding_log_is_exact(steps: list[tuple[int, int]], requests: int) -> None:
    """No window's span, wherever it begins, admits more than the limit; and no charge is denied that would have fit."""
    counting, limit, log = Counting(), limit_of(requests, 1_000, LOG), []
    for step, cost in steps:
        counting.now_us += step
        counted = len(log) - bisect_right(log, counting.now_us - 1_000)
        assert counting.takes(limit, cost) == (counted + cost <= requests)
        log += [counting.now_us] * (cost if counted + cost <= requests else 0)


def admitted(limit: Limit, steps: list[tuple[int, int]]) -> list[int]:
    """When what was admitted, one entry for each unit of cost."""
    counting, log = Counting(), []
    for step, cost in steps:
        counting.now_us += step
        log += [counting.now_us] * (cost if counting.takes(limit, cost) else 0)
    return log


@settings(deadline=None, max_examples=150)
@given(algorithms, st.integers(1, 10), st.integers(0, 1_999), st.lists(st.integers(1, 10**9), min_size=1, max_size=20))
def test_clock_stepping_back_admits_nothing(algorithm: Algorithm, requests: int, at: int, steps: list[int]) -> None:
    """However far the clock steps back, an exhausted counter admits nothing until time has moved forward again."""
    counting, limit = Counting(T0 + at), limit_of(requests, 1_000, algorithm)
    while counting.takes(limit):
        pass
    for step in steps:
        counting.now_us -= step
        assert not counting.takes(limit)


@given(algorithms, st.integers(2_001, 10**14))
def test_clock_stepping_back_locks_no_longer_than_two_windows(algorithm: Algorithm, step: int) -> None:
    """After a step back of any size the wait that is told is true, and at most two windows long."""
    counting, limit = Counting(), limit_of(3, 1_000, algorithm)
    while counting.takes(limit):
        pass
    counting.now_us -= step
    outcome = counting.charge(Charge(limit, b"k"))[0]
    assert 0 < outcome.retry_after_us <= 2_000
    counting.now_us += outcome.retry_after_us
    assert counting.takes(limit)


@settings(deadline=None, max_examples=100)
@given(st.data(), limits(requests=st.integers(1, 20), windows=st.just(1_000)))
def test_a_refund_never_mints_credit(data: st.DataObject, limit: Limit) -> None:
    """A refund gives back at most its cost, down to an empty counter, from which only the capacity can be taken."""
    counting = Counting()
    charges = charges_of([limit], st.integers(0, 5))
    refunds = st.tuples(st.sampled_from([b"a", b"b"]), st.integers(0, 30))
    for step, charge, (key, cost) in data.draw(
        st.lists(st.tuples(st.integers(-100, 600), charges, refunds), max_size=12)
    ):
        counting.now_us += step
        counting.charge(charge)
        before = counting.charge(Charge(limit, key, 0))[0].used
        after = counting.charge(Charge(limit, key, cost, Op.REFUND))[0].used
        assert max(before - cost, 0) <= after <= before
    left = counting.charge(Charge(limit, b"a", REQUESTS_MAX, Op.REFUND))[0].remaining
    assert counting.charge(Charge(limit, b"a", left))[0].remaining == 0
    assert not counting.charge(Charge(limit, b"a"))[0].allowed


@pytest.mark.parametrize(("algorithm", "left"), [(SLIDING, 3), (FIXED, 0), (GCRA, 2), (LOG, 3), (CONCURRENCY, 3)])
def test_what_a_refund_gives_back(algorithm: Algorithm, left: int) -> None:
    """The newest first: of a sliding window from the current bucket, then the last. Of leases the oldest."""
    counting, limit = Counting(), limit_of(10, algorithm=algorithm, hold_us=2 * W if algorithm is CONCURRENCY else 0)
    counting.does(Op.FORCE, limit, 6)
    counting.now_us += {GCRA: W // 10, LOG: W - 1}.get(algorithm, W)
    counting.does(Op.FORCE, limit, 2)
    counting.does(Op.REFUND, limit, 5)
    assert counting.used(limit) == left


def test_force_counts_beyond_the_limit() -> None:
    """What was granted elsewhere counts whatever the limit says, also beside a TAKE that is denied."""
    for algorithm in Algorithm:
        counting, limit = Counting(), limit_of(3, algorithm=algorithm)
        outcomes = counting.charge(Charge(limit, b"k", 5, Op.FORCE), Charge(limit, b"k"))
        assert [(o.allowed, o.used, o.remaining) for o in outcomes] == [(True, 5, 0), (False, 5, 0)]


def test_a_shadow_denies_nothing() -> None:
    """A shadow is judged and says so, but the decision passes over it; what does not fit is not counted."""
    counting, shadow, real = Counting(), limit_of(1, shadow=True), limit_of(9)
    charges = [Charge(shadow, b"s"), Charge(real, b"r")]
    counting.charge(*charges)
    decided = decide(charges, T0, counting.states.get)
    assert decided.allowed
    assert [(o.allowed, o.used) for o in decided.outcomes] == [(False, 1), (True, 2)]
    assert decided.outcomes[0].retry_after_us > 0


def test_a_shadow_takes_part_in_what_others_deny() -> None:
    """What fits a shadow is not counted when another limit denies the decision."""
    counting, shadow = Counting(), limit_of(5, shadow=True)
    outcomes = counting.charge(Charge(shadow, b"s"), Charge(limit_of(0), b"z"))
    assert [(o.allowed, o.used) for o in outcomes] == [(True, 0), (False, 0)]


@pytest.mark.parametrize("algorithm", HELD)
def test_reserve_and_settle(algorithm: Algorithm) -> None:
    """A hold counts until it is settled, for what it turned out to cost; one that lapsed counts all the same."""
    counting, limit = Counting(), limit_of(10, algorithm=algorithm, hold_us=1_000)
    assert counting.takes(limit, 6, hold=1)
    assert not counting.takes(limit, 5, hold=2)
    assert counting.does(Op.SETTLE, limit, 2, hold=1).used == 2
    assert counting.takes(limit, 8, hold=3)
    counting.now_us += 1_000
    assert counting.used(limit) <= 2
    counting.does(Op.SETTLE, limit, 4, hold=3)
    assert 5 <= counting.used(limit) <= 6
    assert counting.takes(limit, 4, hold=4)
    counting.does(Op.REFUND, limit, 4, hold=4)
    counting.does(Op.REFUND, limit, 4, hold=4)
    assert 5 <= counting.used(limit) <= 6


@settings(deadline=None, max_examples=150)
@given(st.data(), st.sampled_from(HELD), st.integers(1, 20))
def test_reservations_never_exceed_the_limit(data: st.DataObject, algorithm: Algorithm, requests: int) -> None:
    """Where nobody settles more than was reserved, what is held and what is counted never exceed the limit together."""
    counting, limit = Counting(), limit_of(requests, 1_000, algorithm, hold_us=data.draw(st.integers(1, 3_000)))
    held: dict[int, tuple[int, int]] = {}
    for hold in range(1, data.draw(st.integers(2, 40))):
        counting.now_us += data.draw(st.integers(0, 300))
        held = {name: (until, cost) for name, (until, cost) in held.items() if until > counting.now_us}
        if held and data.draw(st.booleans()):
            name = data.draw(st.sampled_from(sorted(held)))
            counting.does(Op.SETTLE, limit, data.draw(st.integers(0, held.pop(name)[1])), name)
        cost = data.draw(st.integers(1, requests))
        if counting.takes(limit, cost, hold):
            held[hold] = (counting.now_us + limit.hold_us, cost)
        assert sum(cost for _, cost in held.values()) <= counting.used(limit) <= requests


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 3)), max_size=80), st.integers(1, 6))
def test_concurrency_keeps_its_bound(steps: list[tuple[int, int]], requests: int) -> None:
    """At no time more is held than the limit, and nothing is denied that would have fit."""
    counting, limit, held = Counting(), limit_of(requests, 1_000, CONCURRENCY), []
    for step, cost in steps:
        counting.now_us += step
        held = [until for until in held if until > counting.now_us]
        assert counting.takes(limit, cost) == (len(held) + cost <= requests)
        held += [counting.now_us + 1_000] * (cost if len(held) + cost <= requests else 0)


@pytest.mark.parametrize("algorithm", HELD)
def test_a_counter_has_at_most_so_many_holds(algorithm: Algorithm) -> None:
    """At the bound a hold is denied until one lapses, and what is forced counts at once; other takes still pass."""
    counting, limit = Counting(), limit_of(5_000, algorithm=algorithm, hold_us=1_000)
    for hold in range(1, HOLDS_MAX + 1):
        assert counting.takes(limit, 1, hold)
    denied = counting.charge(Charge(limit, b"k", 1, Op.TAKE, 9_999))[0]
    assert (denied.allowed, denied.retry_after_us) == (False, 1_000)
    assert counting.takes(limit, 1)
    counting.does(Op.FORCE, limit, 1, 9_999)
    assert counting.used(limit) == HOLDS_MAX + 2
    counting.now_us += 1_000
    assert counting.used(limit) == 2
    assert counting.takes(limit, 1, 9_999)


def test_concurrency_forced_beyond_its_holds() -> None:
    """What is forced onto as many holds as there can be lapses with the last of them, and no sooner."""
    counting, limit = Counting(), limit_of(HOLDS_MAX, 1_000, CONCURRENCY)
    for hold in range(1, HOLDS_MAX + 1):
        assert counting.takes(limit, 1, hold)
    counting.now_us += 10
    counting.does(Op.FORCE, limit, 3, 9_999)
    assert counting.used(limit) == HOLDS_MAX + 3
    counting.now_us += 990
    assert counting.used(limit) == 4
    counting.now_us += 10
    assert counting.used(limit) == 0


def test_concurrency_ends_by_name_or_the_first_to_lapse() -> None:
    """A lease ends by its name; without one, the cost is given back by those that lapse first."""
    counting, limit = Counting(), limit_of(5, 1_000, CONCURRENCY)
    for hold in (1, 2, 3):
        assert counting.takes(limit, 1, hold)
        counting.now_us += 10
    assert counting.does(Op.SETTLE, limit, 1, 3).used == 2
    assert counting.does(Op.SETTLE, limit, 1, 3).used == 2
    assert counting.does(Op.REFUND, limit, 1).used == 1
    assert counting.does(Op.REFUND, limit, 1, 2).used == 0
