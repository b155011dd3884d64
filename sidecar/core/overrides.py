"""Overrides of single keys: one caller's limit, changed while everything runs. Pure.

An override replaces how much a limit grants to one counter key; what is counted there stays. It never changes the
window or the algorithm, which would be another counter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from sidecar.core.limits import REQUESTS_MAX_OF, WINDOW_US_MAX, Algorithm

if TYPE_CHECKING:
    from sidecar.core.limits import Charge, Limit

OVERRIDES_MAX: Final = 10_000
"""Overrides in force at a time."""


@dataclass(frozen=True, slots=True)
class Override:
    """What one key is granted instead of its limit's own figures.

    Attributes:
        requests: Per window.
        burst: Of a limit by GCRA; 0 means `requests`.
        until_us: When it ends, microseconds since the epoch; None: it stays.
    """

    requests: int
    burst: int = 0
    until_us: int | None = None


class Overrides:
    """The overrides in force, by `Charge.key`. Empty, it costs its callers one look at `active`.

    Attributes:
        active: Whether there is any.
    """

    __slots__ = ("_by_key", "_limits", "active")

    def __init__(self) -> None:
        self._by_key: dict[bytes, Override] = {}
        self._limits: dict[tuple[Limit, int, int], Limit] = {}
        self.active = False

    def __len__(self) -> int:
        return len(self._by_key)

    def replace(self, by_key: Mapping[bytes, Override]) -> set[bytes]:
        """Put other overrides in force; returns the keys whose limit changes by that."""
        previous, self._by_key = self._by_key, dict(by_key)
        self._limits.clear()
        self.active = bool(self._by_key)
        return {key for key in previous.keys() | self._by_key.keys() if previous.get(key) != self._by_key.get(key)}

    def expire(self, now_us: int) -> set[bytes]:
        """Drop those that have ended; returns their keys."""
        ended = {key for key, each in self._by_key.items() if each.until_us is not None and each.until_us <= now_us}
        for key in ended:
            del self._by_key[key]
        self.active = bool(self._by_key)
        return ended

    def applied(self, charges: Sequence[Charge]) -> Sequence[Charge]:
        """The charges as the overrides have them; the same object where none is concerned."""
        by_key = self._by_key
        if not any(charge.key in by_key for charge in charges):
            return charges
        return [
            charge
            if (override := by_key.get(charge.key)) is None
            else replace(charge, limit=self._limit(charge.limit, override))
            for charge in charges
        ]

    def _limit(self, limit: Limit, override: Override) -> Limit:
        given = limit, override.requests, override.burst
        overridden = self._limits.get(given)
        if overridden is None:
            requests, burst = _figures(limit, override)
            overridden = replace(limit, requests=requests, burst=burst, warn_above=None)
            if limit.warn_above is not None:  # the same share of what the key is granted now
                warn_above = limit.warn_above * overridden.capacity // max(limit.capacity, 1)
                overridden = replace(overridden, warn_above=warn_above)
            if len(self._limits) >= OVERRIDES_MAX:
                self._limits.clear()
            self._limits[given] = overridden
        return overridden


def _figures(limit: Limit, override: Override) -> tuple[int, int]:
    """What of an override the limit can have: a policy may have given it another algorithm since."""
    requests = min(override.requests, REQUESTS_MAX_OF[limit.algorithm])
    if limit.algorithm is not Algorithm.GCRA:
        return requests, 0
    return requests, min(override.burst, requests * WINDOW_US_MAX // limit.window_us)
