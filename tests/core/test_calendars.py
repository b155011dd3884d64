"""Calendar windows: their boundaries in zones with and without summer time, and counting in them."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.algorithms.windows import FixedState, FixedWindow
from sidecar.core.calendars import PERIOD_US, Calendar, Period
from sidecar.core.limits import Algorithm, Limit
from tests.support.limit_strategies import calendars

HOUR_US = 3_600_000_000


def calendar_of(period: Period, zone: str) -> Calendar:
    return Calendar(period, zone, ZoneInfo(zone))


def us(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * 1_000_000


def starts(period: Period, zone: str, at: str) -> list[str]:
    tz = ZoneInfo(zone)
    boundaries = calendar_of(period, zone).around(us(at))
    return [datetime.fromtimestamp(start // 1_000_000, tz).isoformat() for start in boundaries.starts]


@pytest.mark.parametrize(
    ("period", "zone", "at", "expected"),
    [
        (Period.DAY, "UTC", "2026-02-28T23:59:59+00:00", ["02-27", "02-28", "03-01", "03-02"]),
        (Period.WEEK, "UTC", "2026-11-22T12:00:00+00:00", ["11-09", "11-16", "11-23", "11-30"]),
        (Period.MONTH, "UTC", "2026-11-30T23:00:00+00:00", ["10-01", "11-01", "12-01", "01-01"]),
        (Period.MONTH, "Europe/Berlin", "2026-11-30T23:00:00+00:00", ["11-01", "12-01", "01-01", "02-01"]),
        (Period.YEAR, "Europe/Berlin", "2026-12-31T22:59:59+00:00", ["01-01", "01-01", "01-01", "01-01"]),
        (Period.DAY, "America/New_York", "2026-11-01T12:00:00+00:00", ["10-31", "11-01", "11-02", "11-03"]),
    ],
)
def test_windows_begin_at_local_midnight(period: Period, zone: str, at: str, expected: list[str]) -> None:
    """The window before, its own, and the two after it begin at midnight of the zone; weeks on Monday."""
    got = starts(period, zone, at)
    assert [each[5:10] for each in got] == expected
    assert all(each[11:19] == "00:00:00" for each in got)


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-28", 24), ("2026-03-29", 23), ("2026-10-24", 24), ("2026-10-25", 25)]
)
def test_days_with_a_change_of_the_clocks(day: str, hours: int) -> None:
    """A day in Berlin is as long as it is: 23 hours in March, 25 in October."""
    _, start, end, _ = calendar_of(Period.DAY, "Europe/Berlin").around(us(f"{day}T12:00:00+00:00")).starts
    assert end - start == hours * HOUR_US


def test_a_midnight_that_is_skipped() -> None:
    """Where the clocks skip midnight the day begins with its first instant, which is one o'clock."""
    assert starts(Period.DAY, "Africa/Cairo", "2024-04-26T12:00:00+00:00")[1] == "2024-04-26T01:00:00+03:00"


def test_a_midnight_that_comes_twice() -> None:
    """Where it comes twice the day begins with the first, so that it has 25 hours."""
    _, start, end, _ = calendar_of(Period.DAY, "America/Havana").around(us("2026-11-01T12:00:00+00:00")).starts
    assert datetime.fromtimestamp(start // 1_000_000, UTC).isoformat() == "2026-11-01T04:00:00+00:00"
    assert end - start == 25 * HOUR_US


@settings(deadline=None)
@given(calendars, st.integers(10**14, 2**52))
def test_every_instant_lies_in_its_window(calendar: Calendar, now_us: int) -> None:
    """Boundaries ascend, enclose the instant, and no window is longer than said, but for a change of the clocks."""
    before, start, end, later = calendar.around(now_us).starts
    assert before <= start <= now_us < end <= later
    assert end - start <= PERIOD_US[calendar.period] + 25 * HOUR_US


def test_boundaries_are_computed_once_for_a_window() -> None:
    """They are the same object within a window, on its first and last microsecond, and another in the next."""
    calendar = calendar_of(Period.DAY, "Europe/Berlin")
    first = calendar.around(us("2026-11-22T12:00:00+01:00"))
    assert calendar.around(first.starts[1]) is first
    assert calendar.around(first.starts[2] - 1) is first
    assert calendar.around(first.starts[2]).starts[0] == first.starts[1]


def monthly(now_us: int, state: FixedState | None) -> FixedWindow:
    calendar = calendar_of(Period.MONTH, "UTC")
    limit = Limit(
        name="l", requests=5, window_us=PERIOD_US[Period.MONTH], algorithm=Algorithm.FIXED_WINDOW, calendar=calendar
    )
    return FixedWindow(limit, now_us, state)


def test_counts_until_the_month_ends() -> None:
    """What is counted in a month is forgotten when it ends, and only then."""
    november, december = us("2026-11-01T00:00:00+00:00"), us("2026-12-01T00:00:00+00:00")
    counter = monthly(december - 1, FixedState(november, 3))
    assert (counter.used(), counter.wait_us(2), counter.reset_after_us()) == (3, 1, 1)
    assert monthly(december, FixedState(november, 3)).used() == 0


def test_a_clock_that_stepped_back_finds_its_month() -> None:
    """In the month before, time stands still; in an earlier one, what was counted counts there."""
    december = FixedState(us("2026-12-01T00:00:00+00:00"), 3)
    soon = monthly(us("2026-11-30T00:00:00+00:00"), december)
    assert (soon.used(), soon.start_us, soon.dirty) == (3, december.start_us, False)
    early = monthly(us("2026-05-05T00:00:00+00:00"), december)
    assert (early.used(), early.start_us, early.dirty) == (3, us("2026-05-01T00:00:00+00:00"), True)


def test_windows_of_other_rules_of_the_zone_are_not_forgotten() -> None:
    """A window that began between our boundaries (another version of the zone's rules) counts on."""
    odd = monthly(us("2026-11-05T00:00:00+00:00"), FixedState(us("2026-10-31T23:00:00+00:00"), 3))
    assert (odd.used(), odd.start_us, odd.dirty) == (3, us("2026-11-01T00:00:00+00:00"), True)
