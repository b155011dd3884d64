"""Random limits of every algorithm, and random charges of them, for property tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from sidecar.core.calendars import Calendar, Period
from sidecar.core.limits import REQUESTS_MAX, REQUESTS_MAX_OF, WINDOW_US_MAX, Algorithm, Charge, Limit, Op

T0_US = 1_800_000_000 * 1_000_000

counts = st.one_of(st.integers(0, 5), st.integers(0, 300), st.integers(0, REQUESTS_MAX), st.just(REQUESTS_MAX))
windows_us = st.one_of(
    st.sampled_from([1_000, 1_000_000, 60_000_000, 86_400_000_000, WINDOW_US_MAX]), st.integers(1_000, WINDOW_US_MAX)
)
calendars = st.builds(
    lambda period, zone: Calendar(period, zone, ZoneInfo(zone)),
    st.sampled_from(Period),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Africa/Cairo", "Pacific/Apia"]),
)


@st.composite
def limits(
    draw: Callable[..., object],
    algorithms: Sequence[Algorithm] = tuple(Algorithm),
    requests: st.SearchStrategy[int] = counts,
    windows: st.SearchStrategy[int] = windows_us,
) -> Limit:
    """Any limit that can be built."""
    algorithm = draw(st.sampled_from(algorithms))
    rate, window_us = min(draw(requests), REQUESTS_MAX_OF[algorithm]), draw(windows)
    burst, calendar = 0, None
    if algorithm is Algorithm.GCRA:
        burst = draw(st.integers(0, min(rate * WINDOW_US_MAX // window_us, REQUESTS_MAX)))
        burst = draw(st.sampled_from([0, burst, min(burst, 20)]))
    if algorithm is Algorithm.FIXED_WINDOW:
        calendar = draw(st.none() | calendars)
    hold_us = draw(st.sampled_from([0, 1, window_us, window_us // 3, 5_000_000]))
    held = hold_us > 0 or algorithm is Algorithm.CONCURRENCY
    return Limit(
        name="l",
        requests=rate,
        window_us=window_us,
        algorithm=algorithm,
        count_denied=not held and draw(st.booleans()),
        shadow=draw(st.booleans()),
        burst=burst,
        calendar=calendar,
        hold_us=hold_us,
    )


def charges_of(some: Sequence[Limit], costs: st.SearchStrategy[int] = counts) -> st.SearchStrategy[Charge]:
    """Charges of some limits: every operation, few keys, few names of holds."""
    ops = st.sampled_from([Op.TAKE, Op.TAKE, Op.TAKE, *Op])
    names = st.sampled_from([0, 1, 2, 2**64 - 1])
    return st.builds(Charge, st.sampled_from(some), st.sampled_from([b"a", b"b"]), costs, ops, names)
