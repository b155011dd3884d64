"""What the rate limit service's limits have counted, under the reference's names."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

NEAR_LIMIT_RATIO: Final = 0.8
"""From this share of a limit on, its hits count as `near_limit` (the reference's NEAR_LIMIT_RATIO)."""

NAMED_MAX: Final = 1000
"""Names for each domain that requests' values have a part in (`detailed_metric`, `value_to_metric`)."""

OVERRIDE: Final = "(override)"
"""Stands for all limits that requests brought along."""

OTHER: Final = "(other)"
"""Stands for all names of a domain beyond `NAMED_MAX`."""

_SINGLE: Final = struct.Struct("<f")


@dataclass(slots=True, eq=False)
class LimitStats:
    """What one limit has counted, in hits (not requests).

    `limit` is its path, `key_value.key_value`: made of the configuration alone, unless `detailed_metric` or
    `value_to_metric` ask for the values that a request has.
    """

    domain: str
    limit: str
    total_hits: int = 0
    within_limit: int = 0
    near_limit: int = 0
    over_limit: int = 0
    over_limit_with_local_cache: int = 0
    shadow_mode: int = 0
    total_negative_hits: int = 0

    def outcomes(self) -> dict[str, int]:
        """The figures by name. They overlap: near hits may be within, shadow hits are over, all are in the total."""
        return {name: getattr(self, name) for name in _OUTCOMES}


_OUTCOMES: Final = tuple(field.name for field in fields(LimitStats) if field.name not in {"domain", "limit"})


class NamedStats:
    """The statistics of one domain whose names hold values of requests; a bounded number.

    Args:
        domain: Its name.
        shared: All statistics, by domain and limit: what stands there is used, and what is made is added.
        seen: Names that were made before, by the configuration that this one follows.
    """

    __slots__ = ("_domain", "_shared", "seen")

    def __init__(
        self, domain: str, shared: dict[tuple[str, str], LimitStats], seen: Mapping[str, LimitStats] | None = None
    ) -> None:
        self._domain = domain
        self._shared = shared
        self.seen: dict[str, LimitStats] = dict(seen or {})
        for name, stats in self.seen.items():
            self.seen[name] = shared.setdefault((domain, name), stats)

    def get(self, name: str) -> LimitStats:
        """The statistics of this name, or the common ones once there are `NAMED_MAX` names."""
        found = self.seen.get(name)
        if found is not None:
            return found
        full = len(self.seen) >= NAMED_MAX
        label = self._domain, OTHER if full else name
        stats = self._shared.get(label)
        if stats is None:
            stats = self._shared[label] = LimitStats(*label)
        if not full:
            self.seen[name] = stats
        return stats


def near_threshold(requests: int, ratio: float = NEAR_LIMIT_RATIO) -> int:
    """Above this count a hit is near the limit: in single precision and rounded down, as the reference does."""
    single = _SINGLE.unpack(_SINGLE.pack(ratio))[0]
    product = _SINGLE.unpack(_SINGLE.pack(_SINGLE.unpack(_SINGLE.pack(requests))[0] * single))[0]
    return int(product)
