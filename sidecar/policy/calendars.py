"""Loads the time zones of calendar limits, once, when a policy is compiled."""

from __future__ import annotations

from sidecar.core.calendars import Calendar, Period


def load_calendar(period: Period, zone: str) -> Calendar:
    """The windows of a zone, by its IANA name.

    Raises:
        ValueError: There is no such zone on this system.
    """
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # noqa: PLC0415 - only policies with calendars pay for it

    try:
        return Calendar(period, zone, ZoneInfo(zone))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        accepted = "an IANA name such as Europe/Berlin or UTC, known to this system or to the package tzdata"
        raise ValueError(f"there is no time zone {zone!r}; accepted: {accepted}") from None
