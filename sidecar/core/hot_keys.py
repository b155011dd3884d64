"""Which counters are charged most: a sketch of bounded size, fed with a sample of the charges. Pure.

It keeps Misra-Gries counts: with `capacity` counters kept and N charges sampled, a key that was sampled more than
N / capacity times is in it, and its count is short by at most that. Two generations are kept, the current minute's and
the one before, so that what was hot yesterday does not hide what is hot now.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sidecar.core.limits import US_PER_S, Charge

CAPACITY: Final = 256
"""Keys of one generation that survive a clean-up; up to twice as many are kept between two of them."""

GENERATION_US: Final = 60 * US_PER_S

SAMPLE_EVERY: Final = 61
"""One charge of so many is looked at; a prime, so that no regular pattern of callers hides behind it."""


@dataclass(frozen=True, slots=True)
class HotKey:
    """A counter that is charged often.

    Attributes:
        limit: The limit's name.
        key: `Charge.key`.
        subject: What the key was made of, where that is known.
        per_second: Charges in a second, estimated.
    """

    limit: str
    key: bytes
    subject: object
    per_second: float


@dataclass(slots=True, eq=False)
class _Count:
    charge: Charge
    sampled: int


class _Generation:
    """Counts since one moment."""

    __slots__ = ("counts", "since_us")

    def __init__(self, since_us: int) -> None:
        self.since_us = since_us
        self.counts: dict[bytes, _Count] = {}

    def add(self, charge: Charge, capacity: int) -> None:
        count = self.counts.get(charge.key)
        if count is not None:
            count.sampled += 1
            return
        if len(self.counts) >= 2 * capacity:
            self._clean_up(capacity)
        self.counts[charge.key] = _Count(charge, 1)

    def _clean_up(self, capacity: int) -> None:
        """Take from every count the largest one beyond the capacity.

        More than `capacity` counts lose it together, which bounds what any one of them can be short of.
        """
        floor = heapq.nlargest(capacity + 1, (count.sampled for count in self.counts.values()))[-1]
        for key, count in list(self.counts.items()):
            count.sampled -= floor
            if count.sampled <= 0:
                del self.counts[key]


class HotKeys:
    """The sketch.

    Args:
        now_us: The time now, microseconds.
        capacity: Keys that are kept.
        sample_every: How many charges stand behind each that `add` is told of.
    """

    def __init__(self, now_us: int, *, capacity: int = CAPACITY, sample_every: int = SAMPLE_EVERY) -> None:
        self._capacity = capacity
        self._sample_every = sample_every
        self._current = _Generation(now_us)
        self._previous = _Generation(now_us)

    def __len__(self) -> int:
        return len(self._current.counts) + len(self._previous.counts)

    def add(self, charge: Charge, now_us: int) -> None:
        """Count one sampled charge."""
        if now_us - self._current.since_us >= GENERATION_US:
            self._turn(now_us)
        self._current.add(charge, self._capacity)

    def top(self, count: int, now_us: int) -> Sequence[HotKey]:
        """The hottest keys, the hottest first."""
        if now_us - self._current.since_us >= GENERATION_US:
            self._turn(now_us)
        seconds = max(now_us - self._previous.since_us, US_PER_S) / US_PER_S
        together: dict[bytes, _Count] = {}
        for generation in (self._previous, self._current):
            for key, each in generation.counts.items():
                before = together[key].sampled if key in together else 0
                together[key] = _Count(each.charge, before + each.sampled)
        hottest = heapq.nlargest(count, together.items(), key=lambda item: (item[1].sampled, item[0]))
        return [
            HotKey(each.charge.limit.name, key, each.charge.subject, each.sampled * self._sample_every / seconds)
            for key, each in hottest
        ]

    def _turn(self, now_us: int) -> None:
        stale = now_us - self._current.since_us >= 2 * GENERATION_US
        self._previous = _Generation(now_us - GENERATION_US) if stale else self._current
        self._current = _Generation(now_us)
