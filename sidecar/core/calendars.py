"""Windows of the calendar: days, weeks, months and years that begin at midnight of a time zone.

Their boundaries are instants, each computed from a date of its own, never by adding a length: so a day of 23 or 25
hours is right. Where midnight does not exist (a zone may skip it) a day begins with its first instant; where it comes
twice, with the first of the two.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from datetime import tzinfo

_US_PER_S = 1_000_000
_DAY_US = 86_400 * _US_PER_S
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Period(enum.StrEnum):
    """A calendar window. Weeks begin on Monday."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"


PERIOD_US = {
    Period.DAY: _DAY_US,
    Period.WEEK: 7 * _DAY_US,
    Period.MONTH: 31 * _DAY_US,
    Period.YEAR: 366 * _DAY_US,
}
"""What is said to be a calendar window's length (`Limit.window_us`); but for an hour of summer time none is longer."""


class Boundaries(NamedTuple):
    """Where the windows around some instant begin: the one before it, its own, and the two after it."""

    starts: tuple[int, int, int, int]
    packed: bytes
    """The same for lua/charge.lua: 8 bytes each, big-endian."""


@dataclass(frozen=True, slots=True)
class Calendar:
    """Windows that begin at midnight of a time zone.

    Attributes:
        zone: The zone's IANA name: with the period it tells counters apart.
        tz: The same zone, loaded (the core reads no files).
    """

    period: Period
    zone: str
    tz: tzinfo = field(repr=False, compare=False)
    _last: list[Boundaries] = field(default_factory=list, init=False, repr=False, compare=False)

    def around(self, now_us: int) -> Boundaries:
        """The windows around an instant; the last answer is kept, and computed anew when its window has passed."""
        last = self._last
        if last and last[0].starts[1] <= now_us < last[0].starts[2]:
            return last[0]
        boundaries = self._compute(now_us)
        last[:] = [boundaries]
        return boundaries

    def _compute(self, now_us: int) -> Boundaries:
        day = (_EPOCH + timedelta(microseconds=now_us)).astimezone(self.tz).date()
        own = _first_day(self.period, day)
        days = [_first_day(self.period, own - timedelta(days=1)), own]
        while len(days) < 4:
            days.append(_next_first_day(self.period, days[-1]))
        before, start, end, later = (self._midnight_us(each) for each in days)
        starts = (before, start, end, later)
        return Boundaries(starts, struct.pack(">4Q", *starts))

    def _midnight_us(self, day: date) -> int:
        midnight = datetime(day.year, day.month, day.day, tzinfo=self.tz)
        return (midnight - _EPOCH) // timedelta(microseconds=1)


def _first_day(period: Period, day: date) -> date:
    """The first day of the period in which a day lies."""
    match period:
        case Period.DAY:
            return day
        case Period.WEEK:
            return day - timedelta(days=day.weekday())
        case Period.MONTH:
            return day.replace(day=1)
        case Period.YEAR:
            return day.replace(month=1, day=1)


def _next_first_day(period: Period, first_day: date) -> date:
    """The first day of the period after the one that begins with a day."""
    return _first_day(period, first_day + timedelta(days=PERIOD_US[period] // _DAY_US))
