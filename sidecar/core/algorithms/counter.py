"""What every algorithm can do."""

from __future__ import annotations

from typing import Any, Protocol

from sidecar.core.limits import REQUESTS_MAX, Limit

COUNT_MAX = REQUESTS_MAX
"""Counts saturate here. No limit is larger, so counting on would change no decision (and would overflow the state)."""


class Counter(Protocol):
    """One algorithm's counter while a decision is made. Between charges `used` never grows as time passes.

    Attributes:
        dirty: Whether reading it changed it, because the clock had stepped back.
    """

    dirty: bool

    def __init__(self, limit: Limit, now_us: int, state: Any) -> None:
        """The counter as it stands now; `state` is what an earlier one of the same class had, None if there is none."""

    @property
    def state(self) -> Any:
        """What is to be remembered: immutable."""

    def used(self) -> int:
        """How much of the limit is used up."""

    def add(self, cost: int) -> None:
        """Count a cost of 1 or more."""

    def take_back(self, cost: int) -> None:
        """Give a cost back, as far as that much is counted."""

    def wait_us(self, room: int) -> int:
        """The exact time until `used` is at most `room` (0 or more), if nobody takes anything; 0 if it is already."""

    def reset_after_us(self) -> int:
        """The time until what is counted no longer matters."""
