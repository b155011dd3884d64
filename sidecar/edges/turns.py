"""Who verifies when: signatures of tokens that are not known yield to whatever else has arrived.

A verification holds the event loop for 40 to 90 us, and whoever sends forged tokens chooses how many there are. So a
turn of the loop has room for `TURN_MAX` of them. While fewer come, each is made where its Check is decided, at once;
more wait here, and each turn of the loop takes the next ones, before and after which it reads, decides and answers what
needs no verification.

First come, first served: what waits is bounded by what can be verified before Checks time out, so that whoever waits
is answered in time. Taking the newest first would answer no more Checks, only others; turns for each source would, of
floods that are worth it, which come from many addresses, hardly change the order.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sidecar.core.authn import NeedTurn
    from sidecar.core.token import UnverifiedToken

TURN_MAX: Final = 8
"""Verifications in one turn of the event loop, about half a millisecond.

With half as many the turns themselves cost a fifth of what can be verified under load.
"""

WAITING_MAX: Final = 1_024
"""Tokens that wait: about 0.1 s of verifications, of the 0.15 s that a Check has (`server.check_timeout`).

They are kept as parsed: 3 MiB with tokens of 1 KB, some 50 MiB with the longest and most claims (8 KiB).
"""

Done = Callable[["UnverifiedToken | None"], None]
Soon = Callable[[Callable[[], None]], object]


class VerificationTurns:
    """Gives out turns to verify a signature.

    Args:
        soon: Calls a function in the event loop's next turn: its `call_soon`.
        clock: Seconds of the loop's clock.

    Attributes:
        deferred: Tokens that had to wait.
        refused: Tokens that were not let wait, as too many did.
        late: Tokens whose Check could no longer be answered in time when their turn came.
    """

    def __init__(self, soon: Soon, clock: Callable[[], float] = time.monotonic) -> None:
        self._soon = soon
        self._clock = clock
        self._waiting: deque[tuple[NeedTurn, float, Done]] = deque()
        self._left = TURN_MAX
        self.deferred = 0
        self.refused = 0
        self.late = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> bool:
        """See `authn.Turns`."""
        if self._waiting or not self._left:
            return False
        self._left -= 1
        if self._left == TURN_MAX - 1:
            self._soon(self._turn)
        return True

    def ask(self, need: NeedTurn, deadline: float, done: Done) -> None:
        """Call `done` with the token when it is its turn, or with None: too many wait, or it is too late.

        Args:
            need: Names the token.
            deadline: In seconds of the loop's clock.
            done: Called once; must not raise.
        """
        if len(self._waiting) >= WAITING_MAX:
            self.refused += 1
            done(None)
            return
        self.deferred += 1
        self._waiting.append((need, deadline, done))
        if self._left == TURN_MAX:
            self._left = 0  # a turn is coming
            self._soon(self._turn)

    def _turn(self) -> None:
        """A turn of the loop has begun."""
        waiting = self._waiting
        self._left = TURN_MAX
        try:
            while waiting and self._left:
                need, deadline, done = waiting.popleft()
                self._left -= 1
                if deadline <= self._clock():
                    self.late += 1
                    done(None)
                else:
                    done(need.token)
        finally:  # without the next turn nobody would ever get one
            if self._left < TURN_MAX:
                self._soon(self._turn)
