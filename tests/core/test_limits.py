"""Limits that cannot be built, and the keys of counters."""

from __future__ import annotations

from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.calendars import Calendar, Period
from sidecar.core.limits import (
    HOLDS_MAX,
    LOG_ENTRIES_MAX,
    REQUESTS_MAX,
    REQUESTS_MAX_OF,
    WINDOW_US_MAX,
    WINDOW_US_MIN,
    Algorithm,
    Charge,
    Limit,
    counter_key,
)

W = 60_000_000
BERLIN = Calendar(Period.DAY, "Europe/Berlin", ZoneInfo("Europe/Berlin"))


def limit_of(requests: int = 1, window_us: int = W, **settings: object) -> Limit:
    return Limit(name="l", requests=requests, window_us=window_us, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_each_algorithm_has_a_largest_limit(algorithm: Algorithm) -> None:
    """The largest can be built, one more cannot."""
    largest = REQUESTS_MAX_OF[algorithm]
    assert limit_of(largest, algorithm=algorithm).requests == largest
    with pytest.raises(ValueError, match=rf"requests of {algorithm} must be 0 to {largest}, not {largest + 1}"):
        limit_of(largest + 1, algorithm=algorithm)


def test_what_is_bounded_by_memory() -> None:
    """A log is as long as its limit is large, and a hold is an entry."""
    assert REQUESTS_MAX_OF[Algorithm.SLIDING_LOG] == LOG_ENTRIES_MAX == 10_000
    assert REQUESTS_MAX_OF[Algorithm.CONCURRENCY] == HOLDS_MAX == 1_000


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"requests": -1}, "requests of sliding_window must be 0 to"),
        ({"window_us": WINDOW_US_MIN - 1}, "window_us must be"),
        ({"window_us": WINDOW_US_MAX + 1}, "window_us must be"),
        ({"hold_us": -1}, "hold_us must be"),
        ({"hold_us": WINDOW_US_MAX + 1}, "hold_us must be"),
        ({"hold_us": 1, "count_denied": True}, "count_denied cannot go with holds"),
        ({"algorithm": Algorithm.CONCURRENCY, "count_denied": True}, "count_denied cannot go with holds"),
        ({"calendar": BERLIN}, "a calendar is for fixed_window, not for sliding_window"),
        ({"burst": 2}, "burst is for gcra, not for sliding_window"),
        ({"burst": -1, "algorithm": Algorithm.GCRA}, "burst must be"),
        ({"burst": REQUESTS_MAX + 1, "algorithm": Algorithm.GCRA}, "burst must be"),
        ({"burst": 1, "requests": 0, "algorithm": Algorithm.GCRA}, "more than 366 days"),
        ({"burst": 3, "requests": 1, "window_us": WINDOW_US_MAX // 2, "algorithm": Algorithm.GCRA}, "366 days"),
    ],
)
def test_what_makes_no_sense_cannot_be_built(settings: dict[str, object], says: str) -> None:
    """Each is refused with its reason."""
    with pytest.raises(ValueError, match=says):
        limit_of(**settings)  # type: ignore[arg-type]


def test_largest_burst() -> None:
    """A burst may need 366 days to come back."""
    limit = limit_of(1, WINDOW_US_MAX // 2, algorithm=Algorithm.GCRA, burst=2)
    assert (limit.capacity, limit_of(7, algorithm=Algorithm.GCRA).capacity) == (2, 7)


def test_concurrency_holds_for_its_window_unless_told() -> None:
    """`window_us` is how long a hold lasts, unless `hold_us` says so; other algorithms hold only when told."""
    assert limit_of(algorithm=Algorithm.CONCURRENCY).hold_time_us == W
    assert limit_of(algorithm=Algorithm.CONCURRENCY, hold_us=5).hold_time_us == 5
    assert limit_of().hold_time_us == 0


def test_counters_are_never_misread() -> None:
    """A counter of another algorithm, window, period or zone has another storage key; one of another rate has not."""
    months = Calendar(Period.MONTH, "Europe/Berlin", ZoneInfo("Europe/Berlin"))
    utc = Calendar(Period.DAY, "UTC", ZoneInfo("UTC"))
    limits = [limit_of(algorithm=algorithm) for algorithm in Algorithm]
    limits += [limit_of(window_us=W + 1, algorithm=each) for each in Algorithm if each is not Algorithm.CONCURRENCY]
    limits += [limit_of(algorithm=Algorithm.FIXED_WINDOW, calendar=calendar) for calendar in (BERLIN, months, utc)]
    assert len({Charge(limit, b"k").storage_key for limit in limits}) == len(limits)
    for limit in limits:
        more = limit_of(2, limit.window_us, algorithm=limit.algorithm, calendar=limit.calendar, hold_us=7)
        assert Charge(more, b"k").storage_key == Charge(limit, b"k").storage_key
    assert Charge(limits[-3], b"k").storage_key == b"k:fday@Europe/Berlin"


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
