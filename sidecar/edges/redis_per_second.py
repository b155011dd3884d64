"""Two stores: one for limits with a window of one second, and one for all others.

What counts seconds is asked most and worth least: it can have a server of its own, which need not keep or replicate
anything. A decision with charges of both kinds is split (redis_parts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sidecar.core.limits import US_PER_S, Charge, Done, OnDenied
from sidecar.edges.redis_cluster import ClusterStore
from sidecar.edges.redis_parts import Ask, charge_parts
from sidecar.edges.redis_store import RedisCounts

if TYPE_CHECKING:
    from sidecar.edges.redis_store import RedisStore

_SUFFIX_DIGITS = b"%d" % US_PER_S


class PerSecondStore:
    """A `LimitStore` on two others. Create it anywhere, `start` it in the event loop.

    Attributes:
        main: For all limits with another window than one second.
        per_second: For the others.
        counts: Refunds between the two; everything else is counted by each.
    """

    def __init__(self, main: RedisStore | ClusterStore, per_second: RedisStore | ClusterStore) -> None:
        self.main = main
        self.per_second = per_second
        self.counts = RedisCounts()
        self._refund: Ask = self.charge

    @property
    def nodes(self) -> tuple[RedisStore, ...]:
        """All servers of both."""
        return (*self.main.nodes, *self.per_second.nodes)

    @property
    def connected(self) -> bool:
        """Whether both can be asked."""
        return self.main.connected and self.per_second.connected

    def detail(self) -> dict[str, object]:
        """For /readyz; holds no secret."""
        return {**self.main.detail(), "per_second": self.per_second.detail()}

    @property
    def on_denied(self) -> OnDenied | None:
        """Told of each denial of either, before `done`."""
        return self.main.on_denied

    @on_denied.setter
    def on_denied(self, hook: OnDenied | None) -> None:
        self.main.on_denied = self.per_second.on_denied = hook

    @property
    def refund(self) -> Ask:
        """Makes the refunds; to be replaced by the `charge` of what remembers denials in front of this store."""
        return self._refund

    @refund.setter
    def refund(self, ask: Ask) -> None:
        self._refund = ask
        for store in (self.main, self.per_second):
            if isinstance(store, ClusterStore):
                store.refund = ask

    def start(self) -> None:
        """Begin to connect, in the background."""
        self.main.start()
        self.per_second.start()

    async def close(self) -> None:
        """Drop all connections; charges under way fail as unreachable."""
        await self.main.close()
        await self.per_second.close()

    def charge(self, charges: Sequence[Charge], deadline: float, done: Done) -> None:
        """Decide all charges together, then call `done`."""
        seconds = [place for place, charge in enumerate(charges) if charge.limit.window_us == US_PER_S]
        if not seconds:
            self.main.charge(charges, deadline, done)
        elif len(seconds) == len(charges):
            self.per_second.charge(charges, deadline, done)
        else:
            others = [place for place, charge in enumerate(charges) if charge.limit.window_us != US_PER_S]
            parts = [(self.main.charge, others), (self.per_second.charge, seconds)]
            charge_parts(parts, charges, deadline, done, refund=self._refund, counts=self.counts)

    def command(self, key: bytes, parts: tuple[bytes, ...], timeout_s: float, done: Callable[[Any], None]) -> None:
        """Send any command about a key to where it is; `done` takes what hiredis parsed, or a `StoreFailure`."""
        there = self.per_second if _counts_seconds(key) else self.main
        there.command(key, parts, timeout_s, done)


def _counts_seconds(key: bytes) -> bool:
    """Whether it is the storage key of a limit with a window of one second."""
    return key.rpartition(b"}")[2].lstrip(b":abcdefghijklmnopqrstuvwxyz") == _SUFFIX_DIGITS
