"""What this process granted by itself while Redis could not be asked is counted there as soon as it can be again.

Else every outage would end in a second helping: Redis knows nothing of what was granted meanwhile. So each counter in
which something was granted is *owed* to Redis, until

- it is charged again: then it is counted there first. A look at the counter, which takes nothing and may be repeated,
  finds out whether Redis answers for this key; then the debt and the charge follow in one write, in this order.
- or its turn comes in the background, which does the same for counters that nobody charges any more.
- or it no longer matters: the window in which it was granted has passed.

Counting a debt is the one thing that must not be done twice. So a debt is sent once; only when it provably was not
counted (`_NOT_COUNTED`), it is owed again. When its fate is unknown, it is dropped: it was counted once or not at all.
The other way round, a request whose charge timed out and that was then granted here may have been counted twice: the
limit errs on its own side.

The counters in this process stay as they are: a second outage in the same window grants what is left of the share, not
the share again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final

from sidecar.core.limits import Algorithm, Charge, Done, LimitStore, Op, StoreFailure, Verdict

if TYPE_CHECKING:
    from sidecar.edges.local_store import LocalStore

OWED_MAX: Final = 65_536
"""Counters that may be owed: as many as the process keeps by default."""

BATCH_MAX: Final = 128
"""Debts in one turn of the background; it begins with one and doubles as long as Redis answers."""

BATCH_EVERY_S: Final = 0.02
PROBE_EVERY_S: Final = 0.25
"""Between two attempts while Redis does not answer."""

SEND_WITHIN_S: Final = 1.0
"""The longest that a debt may take to be counted; the store's own limit is shorter as a rule."""

_NOT_COUNTED: Final = (StoreFailure.CIRCUIT_OPEN, StoreFailure.OVERLOADED, StoreFailure.ERROR_REPLY)
"""Failures of a charge that did not happen. A single key is charged, so it happens as a whole or not at all."""


class Handover:
    """Counts in this process, as a `LimitStore`, and hands over to Redis what was counted.

    Args:
        store: Redis.
        local: Counts in this process; it answers before its `charge` returns.
        on_active: Called when `active` becomes true.
        owed_max: Counters that may be owed; what is granted in further ones is never handed over (`lost_total`).

    Attributes:
        active: Whether anything is owed.
        keys: The storage keys of the counters that are owed.
        handed_total: Cost that was counted in Redis afterwards.
        lost_total: Cost that was not, or maybe not: its fate is unknown, or there was no room for it.
    """

    def __init__(
        self,
        store: LimitStore,
        local: LocalStore,
        *,
        on_active: Callable[[], None] = lambda: None,
        owed_max: int = OWED_MAX,
    ) -> None:
        self._store = store
        self._local = local
        self._on_active = on_active
        self._owed_max = owed_max
        self._owed: dict[bytes, Charge] = {}
        self.keys = self._owed.keys()
        self._width = 1
        self._looking = 0
        self._failed = False
        self._timer: asyncio.TimerHandle | None = None
        self.active = False
        self.handed_total = 0
        self.lost_total = 0

    @property
    def owed(self) -> int:
        """Counters that are owed."""
        return len(self._owed)

    def close(self) -> None:
        """Stop; what is still owed is lost."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.lost_total += sum(debt.cost for debt in self._owed.values())
        self._owed.clear()
        self.active = False

    def hurry(self) -> None:
        """There is news of Redis, such as a fresh connection: look now."""
        if self._timer is not None:
            self._timer.cancel()
            self._turn()

    def charge(self, charges: Sequence[Charge], deadline: float, done: Done) -> None:
        """Decide all charges in this process, note what Redis has to count, then call `done`."""
        answers: list[Verdict | StoreFailure] = []
        self._local.charge(charges, deadline, answers.append)
        [verdict] = answers
        if isinstance(verdict, Verdict):
            for charge, outcome in zip(charges, verdict.outcomes, strict=True):
                counted = _counted(charge, (verdict.allowed and outcome.allowed) or charge.limit.count_denied)
                if counted:
                    self._owe(charge.storage_key, charge, counted)
        done(verdict)

    def owes(self, charges: Sequence[Charge]) -> bool:
        """Whether something is owed on one of the keys: then `settle_first`."""
        owed = self._owed
        return any(charge.key + charge.limit.key_suffix in owed for charge in charges)

    def settle_first(self, charges: Sequence[Charge], deadline: float, done: Done) -> None:
        """Charge in Redis, and count there before what is owed on these keys."""
        debts = [key for key in {charge.storage_key for charge in charges} if key in self._owed]
        looks = [_look(self._owed[key]) for key in debts]

        def looked(answer: Verdict | StoreFailure) -> None:
            if isinstance(answer, StoreFailure):
                done(answer)
                return
            for key in debts:
                self._hand_over(key)
            self._store.charge(charges, deadline, done)

        self._store.charge(looks, deadline, looked)

    def _owe(self, key: bytes, charge: Charge, counted: int) -> None:
        debt = self._owed.get(key)
        if debt is not None:
            debt.limit = charge.limit
            debt.cost += counted
            if debt.cost <= 0:
                del self._owed[key]  # given back in this process too; more than that was counted in Redis, and stays
        elif counted > 0 and len(self._owed) >= self._owed_max:
            self.lost_total += counted
        elif counted > 0:
            self._owed[key] = Charge(charge.limit, charge.key, counted, Op.FORCE)
        if self._owed and self._timer is None and not self._looking:
            self._wait(PROBE_EVERY_S)
        if not self.active and self._owed:
            self.active = True
            self._on_active()

    def _wait(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._turn)

    def _turn(self) -> None:
        """Look at the next counters; those for which Redis answers are handed over."""
        self._timer = None
        due = [(key, self._owed[key]) for key in list(islice(self._owed, self._width))]
        self._looking = len(due)
        deadline = asyncio.get_running_loop().time() + SEND_WITHIN_S
        for key, debt in due:
            self._owed[key] = self._owed.pop(key)  # to the end: the next turn begins with others
            self._store.charge([_look(debt)], deadline, _Look(self, key).done)
        if not due:
            self._turned()

    def looked(self, key: bytes, answer: Verdict | StoreFailure) -> None:
        """A counter was looked at in the background, or could not be."""
        if isinstance(answer, StoreFailure):
            self._failed = True
        else:
            self._hand_over(key)
        self._looking -= 1
        if not self._looking:
            self._turned()

    def _turned(self) -> None:
        failed, self._failed = self._failed, False
        if failed:
            self._drop_passed()
        self._note_activity()
        self._width = 1 if failed or not self._owed else min(2 * self._width, BATCH_MAX)
        if self._owed:
            self._wait(PROBE_EVERY_S if failed else BATCH_EVERY_S)

    def _drop_passed(self) -> None:
        """Forget debts of windows that have passed, some at a time, so that a long outage does not fill the room."""
        for key in list(islice(self._owed, BATCH_MAX)):
            debt = self._owed.pop(key)
            if self._local.used(debt):
                self._owed[key] = debt

    def _note_activity(self) -> None:
        self.active = bool(self._owed)

    def _hand_over(self, key: bytes) -> None:
        """Have Redis count a debt; a charge of the same key that follows is decided on top of it."""
        debt = self._owed.pop(key, None)
        if debt is None:
            return  # somebody else was faster
        debt.cost = min(debt.cost, self._local.used(debt))  # what has faded since, or passed, is not counted
        self._note_activity()
        if not debt.cost:
            return
        deadline = asyncio.get_running_loop().time() + SEND_WITHIN_S
        self._store.charge([debt], deadline, lambda answer: self._handed_over(key, debt, answer))

    def _handed_over(self, key: bytes, debt: Charge, answer: Verdict | StoreFailure) -> None:
        if isinstance(answer, Verdict):
            self.handed_total += debt.cost
        elif answer in _NOT_COUNTED:
            self._failed = True
            self._owe(key, debt, debt.cost)
        else:
            self.lost_total += debt.cost


class _Look:
    """One look at a counter, in the background."""

    __slots__ = ("_handover", "_key")

    def __init__(self, handover: Handover, key: bytes) -> None:
        self._handover = handover
        self._key = key

    def done(self, answer: Verdict | StoreFailure) -> None:
        """The store has answered."""
        self._handover.looked(self._key, answer)


def _look(debt: Charge) -> Charge:
    return Charge(debt.limit, debt.key, 0)


def _counted(charge: Charge, taken: bool) -> int:
    """By how much a charge has moved its counter in this process, holds aside: they lapse, or settling counts them."""
    if charge.limit.algorithm is Algorithm.CONCURRENCY:
        return 0
    if charge.op is Op.REFUND:
        return 0 if charge.hold else -charge.cost
    if charge.op is Op.SETTLE:
        return charge.cost
    return charge.cost if not charge.hold and (taken or charge.op is Op.FORCE) else 0
