"""The sketch of hot keys, against exact counts."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.hot_keys import GENERATION_US, HotKeys
from sidecar.core.limits import US_PER_S, Charge, Limit

LIMIT = Limit(name="per-user", requests=10, window_us=US_PER_S)


def charge(name: int) -> Charge:
    return Charge(LIMIT, b"%d" % name, subject=(f"user-{name}",))


@given(st.lists(st.integers(0, 40), max_size=400), st.integers(1, 8))
def test_every_frequent_key_is_found_and_its_count_short_by_a_bounded_part(names: list[int], capacity: int) -> None:
    """A key with more than its share of the charges is kept, and no key is shown hotter than it is."""
    sketch = HotKeys(0, capacity=capacity, sample_every=1)
    for name in names:
        sketch.add(charge(name), 0)
    shown = {hot.key: hot.per_second for hot in sketch.top(1000, 0)}
    exact = Counter(b"%d" % name for name in names)
    for key, count in exact.items():
        assert shown.get(key, 0) <= count
        assert shown.get(key, 0) >= count - len(names) / capacity


def test_memory_is_bounded() -> None:
    """Twice the capacity for each of two generations, however many keys come."""
    sketch = HotKeys(0, capacity=4, sample_every=1)
    for name in range(1000):
        sketch.add(charge(name), 0)
        assert len(sketch) <= 8
    for name in range(1000):
        sketch.add(charge(name), GENERATION_US)
        assert len(sketch) <= 16


def test_what_cooled_down_is_forgotten_after_two_generations() -> None:
    """What was hot yesterday does not hide what is hot now."""
    sketch = HotKeys(0, sample_every=1)
    for _ in range(100):
        sketch.add(charge(1), 0)
    sketch.add(charge(2), GENERATION_US)
    assert [hot.key for hot in sketch.top(5, GENERATION_US)] == [b"1", b"2"]
    sketch.add(charge(2), 2 * GENERATION_US)
    assert [hot.key for hot in sketch.top(5, 2 * GENERATION_US)] == [b"2"]
    assert sketch.top(5, 9 * GENERATION_US) == []


def test_the_hottest_come_first_with_their_rate() -> None:
    """Rates are estimated from the sample; names and subjects are shown."""
    sketch = HotKeys(0, sample_every=10)
    for name in (1, 1, 1, 2, 2, 3):
        sketch.add(charge(name), 0)
    first, second = sketch.top(2, 6 * US_PER_S)
    assert (first.limit, first.key, first.subject, first.per_second) == ("per-user", b"1", ("user-1",), 5.0)
    assert second.key == b"2"
