"""Holds: what was reserved, and counts until it is settled or lapses; and concurrency, which is nothing else.

A hold counts while `now < expires_us`. A clock that steps back lengthens holds by its step, up to one hold time; beyond
that no hold lasts longer than if it were made now.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from sidecar.core.algorithms.counter import COUNT_MAX

if TYPE_CHECKING:
    from sidecar.core.limits import Limit


class Hold(NamedTuple):
    """What one reservation holds."""

    name: int
    """0: it has none."""
    expires_us: int
    amount: int


class Holds:
    """The holds of one counter, those that lapse first in front."""

    __slots__ = ("dirty", "entries", "held", "now_us")

    def __init__(self, hold_us: int, now_us: int, entries: tuple[Hold, ...]) -> None:
        self.now_us = now_us
        self.dirty = False
        self.held = 0
        self.entries: list[Hold] = []
        if not entries:
            return
        self.entries = [each for each in entries if each.expires_us > now_us]
        if hold_us and self.entries and self.entries[-1].expires_us > now_us + 2 * hold_us:
            latest_us = now_us + hold_us
            self.entries = [each._replace(expires_us=min(each.expires_us, latest_us)) for each in self.entries]
            self.dirty = True
        self.held = sum(each.amount for each in self.entries)

    def put(self, name: int, amount: int, hold_us: int) -> None:
        """Hold an amount from now on."""
        hold = Hold(name, self.now_us + hold_us, min(amount, COUNT_MAX))
        self.entries.insert(bisect_right(self.entries, hold.expires_us, key=lambda each: each.expires_us), hold)
        self.held += hold.amount

    def put_on_last(self, amount: int, hold_us: int) -> None:
        """Hold an amount as part of the hold that lapses last, which then lapses no sooner than a new one."""
        last = self.entries.pop()
        expires_us = max(last.expires_us, self.now_us + hold_us)
        amount = min(last.amount + amount, COUNT_MAX)
        self.entries.append(Hold(last.name, expires_us, amount))
        self.held += amount - last.amount

    def end(self, name: int) -> bool:
        """End the first hold of a name, if there is one."""
        for index, each in enumerate(self.entries):
            if each.name == name:
                self.held -= self.entries.pop(index).amount
                return True
        return False

    def take_back(self, amount: int) -> None:
        """Give an amount back, from those that lapse first."""
        while amount > 0 and self.entries:
            first = self.entries[0]
            taken = min(first.amount, amount)
            amount -= taken
            self.held -= taken
            if taken == first.amount:
                del self.entries[0]
            else:
                self.entries[0] = first._replace(amount=first.amount - taken)

    def reset_after_us(self) -> int:
        """Until the last one has lapsed."""
        return self.entries[-1].expires_us - self.now_us if self.entries else 0


class Concurrency:
    """An algorithm that counts nothing by itself: all that is taken is held."""

    __slots__ = ()

    dirty = False
    state = None

    def __init__(self, limit: Limit, now_us: int, state: None) -> None:
        pass

    def used(self) -> int:
        """Nothing."""
        return 0

    def add(self, cost: int) -> None:
        """Count nothing."""

    def take_back(self, cost: int) -> None:
        """There is nothing to give back."""

    def wait_us(self, room: int) -> int:  # noqa: ARG002 - there is always room
        """No time."""
        return 0

    def reset_after_us(self) -> int:
        """No time."""
        return 0
