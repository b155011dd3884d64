"""The algorithms as the oracle states them: bounds against an exact log, exact retry times, clocks that step back."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.algorithms.account import State
from sidecar.core.algorithms.decide import decide
from sidecar.core.limits import REQUESTS_MAX, WINDOW_US_MAX, Algorithm, Charge, Limit, LimitOutcome, counter_key

W = 60_000_000
T0 = 1_800_000_000 * 1_000_000
SLIDING, FIXED = Algorithm.SLIDING_WINDOW, Algorithm.FIXED_WINDOW


class Counting:
    """Counters in a dict, and a clock that the test moves."""

    def __init__(self, now_us: int = T0) -> None:
        self.now_us = now_us
        self.states: dict[bytes, State] = {}

    def charge(self, *charges: Charge) -> tuple[LimitOutcome, ...]:
        decided = decide(charges, self.now_us, self.states.get)
        self.states.update((write.key, write.state) for write in decided.writes)
        return decided.outcomes

    def takes(self, limit: Limit, cost: int = 1) -> bool:
        return self.charge(Charge(limit, b"k", cost))[0].allowed


def limit_of(requests: int, window_us: int = W, algorithm: Algorithm = SLIDING, *, count_denied: bool = False) -> Limit:
    return Limit(name="l", requests=requests, window_us=window_us, algorithm=algorithm, count_denied=count_denied)


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


def test_changed_window_or_algorithm_counts_afresh() -> None:
    """A counter of another window or algorithm is never misread: it has another storage key."""
    keys = {
        Charge(limit, b"k").storage_key
        for limit in (limit_of(1), limit_of(1, W + 1), limit_of(1, algorithm=FIXED), limit_of(1, W + 1, FIXED))
    }
    assert len(keys) == 4
    assert Charge(limit_of(1), b"k").storage_key == Charge(limit_of(9), b"k").storage_key


def test_largest_values_are_exact() -> None:
    """The largest limit over the longest window neither overflows nor rounds in the caller's favour."""
    counting, limit = Counting(WINDOW_US_MAX * 50), limit_of(REQUESTS_MAX, WINDOW_US_MAX)
    assert counting.takes(limit, REQUESTS_MAX)
    counting.now_us += WINDOW_US_MAX + 1
    outcome = counting.charge(Charge(limit, b"k", 0))[0]
    assert outcome.used == REQUESTS_MAX  # ceil(REQUESTS_MAX * (1 - 1 / WINDOW_US_MAX))


algorithms = st.sampled_from([SLIDING, FIXED])
windows_us = st.sampled_from([1_000, 1_000_000, W, 7 * 86_400_000_000 + 1, WINDOW_US_MAX])


@settings(deadline=None, max_examples=150)
@given(st.data(), algorithms, windows_us, st.integers(1, 20))
def test_waiting_exactly_as_told_passes(
    data: st.DataObject, algorithm: Algorithm, window_us: int, requests: int
) -> None:
    """A denied charge passes after exactly retry_after_us, and not one microsecond earlier."""
    counting, limit = Counting(), limit_of(requests, window_us, algorithm)
    for _ in range(data.draw(st.integers(1, 40))):
        counting.now_us += data.draw(st.integers(0, window_us // 2))
        cost = data.draw(st.integers(1, requests))
        outcome = counting.charge(Charge(limit, b"k", cost))[0]
        if not outcome.allowed:
            denied_at = counting.now_us
            assert outcome.retry_after_us > 0
            counting.now_us = denied_at + outcome.retry_after_us - 1
            assert not counting.takes(limit, cost)
            counting.now_us += 1
            assert counting.takes(limit, cost)
            return


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 3)), max_size=120), st.integers(1, 12))
def test_sliding_window_keeps_its_bounds(steps: list[tuple[int, int]], requests: int) -> None:
    """Against an exact log: any span d <= W admits at most L * (1 + d/W), hence any span of W less than 2L."""
    counting, limit, log = Counting(), limit_of(requests, 1_000), []
    for step, cost in steps:
        counting.now_us += step
        log += [counting.now_us] * (cost if counting.takes(limit, cost) else 0)
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
    counting, limit = Counting(), limit_of(requests, 1_000, FIXED)
    admitted: dict[int, int] = {}
    for step, cost in steps:
        counting.now_us += step
        if counting.takes(limit, cost):
            grid = counting.now_us // 1_000
            admitted[grid] = admitted.get(grid, 0) + cost
    assert max(admitted.values(), default=0) <= requests


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


@given(algorithms, st.integers(1_001, 10**14))
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


@given(st.lists(st.lists(st.none() | st.text(max_size=4), max_size=4), min_size=2, max_size=6))
def test_counter_keys_are_injective(many: list[list[str | None]]) -> None:
    """Different parts make different keys, wherever the separators of other schemes would fall."""
    unique = {tuple(parts) for parts in many}
    assert len({counter_key(b"p:", parts) for parts in unique}) == len(unique)


def test_counter_keys_by_hand() -> None:
    """Absent, empty, and moved boundaries all differ."""
    keys = [
        counter_key(b"p:", parts)
        for parts in (
            [],
            [None],
            [""],
            ["", ""],
            ["a", "b_c"],
            ["a_b", "c"],
            ["ab"],
            ["a", "b"],
            ["\udcff"],
            [None, ""],
        )
    ]
    assert len(set(keys)) == len(keys)
    assert all(one != two for one, two in pairwise(sorted(keys)))
