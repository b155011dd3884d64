"""Which DPoP proofs were used before (RFC 9449 section 11.1): noted in Redis, where every sidecar looks.

One `SET key "" NX PX lifetime` both asks and notes, so that of two uses at the same time one is the first. Redis is
given as long as a decision waits for it; whatever else it answers, or if it answers nothing, the proof is not believed.

A policy may have each process note proofs for itself while Redis cannot be asked (`dpop.replay: local`). Then a proof
can be used once with every process, and with none that has noted it before.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sidecar.core.dpop import NeedFirstUse
    from sidecar.edges.limit_changes import Commands

LOCAL_PROOFS_MAX: Final = 100_000
"""Proofs that one process notes for itself, about 150 bytes each; with as many unexpired ones, further are refused."""

Done = Callable[[bool | None], None]


class LocalProofs:
    """Proofs that one process has seen.

    Args:
        entries_max: How many.
    """

    def __init__(self, entries_max: int = LOCAL_PROOFS_MAX) -> None:
        self._ends: OrderedDict[bytes, float] = OrderedDict()
        self._entries_max = entries_max

    def __len__(self) -> int:
        return len(self._ends)

    def first_use(self, digest: bytes, lifetime_s: float, now: float) -> bool | None:
        """Note a proof: True, it was not noted before; False, it was; None, there is no room."""
        ends = self._ends
        while ends and next(iter(ends.values())) <= now:
            ends.popitem(last=False)
        known = ends.get(digest)
        if known is not None and known > now:
            return False
        if len(ends) >= self._entries_max:
            return None
        ends[digest] = now + lifetime_s
        ends.move_to_end(digest)
        return True


class ReplayStore:
    """Notes proofs.

    Args:
        commands: Sends commands to Redis; None: the policy names none, and only `local` proofs can be noted.
        prefix: `redis.key_prefix`.
        timeout_s: The longest that a decision waits for Redis.

    Attributes:
        first, replayed, unavailable: Proofs by what was answered.
        noted_locally: Proofs of `first` that this process alone has noted.
    """

    def __init__(self, commands: Commands | None, prefix: str, timeout_s: float) -> None:
        self._commands = commands
        self._prefix = f"{prefix}:dpop:".encode()
        self._timeout_s = timeout_s
        self._local = LocalProofs()
        self.first = 0
        self.replayed = 0
        self.unavailable = 0
        self.noted_locally = 0

    def ensure(self, need: NeedFirstUse, deadline: float, done: Done) -> None:
        """Note a proof, and call `done` with whether it is used for the first time; None: it cannot be said.

        Args:
            need: Which proof.
            deadline: In seconds of the loop's clock; what has not been answered by then cannot be said.
            done: Called once.
        """
        timeout_s = min(self._timeout_s, deadline - time.monotonic())
        if self._commands is None or timeout_s <= 0:
            self._answered(need, None, done)
            return
        key = self._prefix + need.digest.hex().encode()
        parts = (b"SET", key, b"", b"NX", b"PX", str(need.lifetime_ms).encode())
        self._commands.command(key, parts, timeout_s, lambda reply: self._answered(need, _first(reply), done))

    def _answered(self, need: NeedFirstUse, first: bool | None, done: Done) -> None:
        if need.local and first is not False:
            noted = self._local.first_use(need.digest, need.lifetime_ms / 1000, time.monotonic())
            if first is None and noted:
                self.noted_locally += 1
            first = noted if first is None or noted is False else first
        if first is None:
            self.unavailable += 1
        elif first:
            self.first += 1
        else:
            self.replayed += 1
        done(first)


def _first(reply: Any) -> bool | None:
    """What the reply says: OK, it was noted now; nil, it was there; whatever else, nothing is known."""
    if reply is None:
        return False
    return True if reply in (b"OK", "OK") else None
