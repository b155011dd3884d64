"""One decision whose counters cannot be asked in one call: they lie in several slots of a Cluster, or in two stores.

Each part is decided by its own EVALSHA, all at the same time. Where one denies or fails, what the others took is given
back by REFUND charges afterwards; the answer does not wait for that. So no limit is ever exceeded, and in between a
counter may stand higher than it should, never lower:

* Charges of limits that count denials, and everything but a TAKE, are made whatever the other parts say, and stay.
* Nothing is given back of a part whose fate is unknown (no reply), since it may have taken nothing.
* Nothing is given back either where a refund could come too late: in the last `REFUND_WITHIN_S` of a window it might
  be counted against what others take in the next one. What was taken is forgotten by itself then.

A part that denies decides, even where another one failed: the verdict is denied, and the failed part's outcomes hold
nothing but their limits. Without a denial one part's failure is the decision's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from sidecar.core.limits import US_PER_S, Algorithm, Charge, Done, LimitOutcome, Op, Source, StoreFailure, Verdict

if TYPE_CHECKING:
    from sidecar.edges.redis_store import RedisCounts

REFUND_WITHIN_S = 0.1
"""How long a refund may be under way; the window must last longer than that."""

CONFIRM_WITHIN_S = 60.0
"""No caller waits for a refund, so its deadline is the store's own timeout, which is shorter."""

Ask = Callable[[Sequence[Charge], float, Done], None]
"""The `charge` of a store."""


class UnknownOutcome(LimitOutcome):
    """Of a charge whose part failed while another part denied the decision. It counts as denied."""

    source: ClassVar[Source] = Source.UNASKED


def charge_parts(
    parts: Sequence[tuple[Ask, list[int]]],
    charges: Sequence[Charge],
    deadline: float,
    done: Done,
    *,
    refund: Ask,
    counts: RedisCounts,
) -> None:
    """Decide all charges together, part by part.

    Args:
        parts: What to ask for each part, and the places of its charges among all.
        charges: All of them.
        deadline: Loop time by which every part answers.
        done: Called once, when all parts have answered.
        counts: Where refunds are counted.
        refund: Makes refunds of one part's counters, wherever these may have gone by then.
    """
    decision = _Decision(charges, done, refund, counts)
    decision.parts = [_Part(decision, places, [charges[place] for place in places]) for _, places in parts]
    decision.waiting = len(parts)
    for part, (ask, _) in zip(decision.parts, parts, strict=True):
        ask(part.charges, deadline, part.done)


class _Part:
    """What is asked in one call."""

    __slots__ = ("_decision", "answer", "charges", "places")

    def __init__(self, decision: _Decision, places: list[int], charges: list[Charge]) -> None:
        self._decision = decision
        self.places = places
        self.charges = charges
        self.answer: Verdict | StoreFailure = StoreFailure.UNREACHABLE

    def done(self, answer: Verdict | StoreFailure) -> None:
        self.answer = answer
        decision = self._decision
        decision.waiting -= 1
        if not decision.waiting:
            decision.finish()


class _Decision:
    """All parts, until the last one is answered."""

    __slots__ = ("_charges", "_counts", "_done", "_refund", "parts", "waiting")

    def __init__(self, charges: Sequence[Charge], done: Done, refund: Ask, counts: RedisCounts) -> None:
        self._charges = charges
        self._done = done
        self._refund = refund
        self._counts = counts
        self.parts: list[_Part] = []
        self.waiting = 0

    def finish(self) -> None:
        allowed = True
        failure: StoreFailure | None = None
        for part in self.parts:
            answer = part.answer
            if isinstance(answer, StoreFailure):
                failure = failure or answer
            elif not answer.allowed:
                allowed = False
        if failure is None and allowed:
            self._done(Verdict(True, self._outcomes()))
            return
        for part in self.parts:
            if isinstance(part.answer, Verdict) and part.answer.allowed:
                self._give_back(part.charges, part.answer)
        if failure is not None and allowed:
            self._done(failure)
        else:
            self._done(Verdict(False, self._outcomes()))

    def _outcomes(self) -> tuple[LimitOutcome, ...]:
        outcomes: dict[int, LimitOutcome] = {}
        for part in self.parts:
            if isinstance(part.answer, Verdict):
                outcomes.update(zip(part.places, part.answer.outcomes, strict=True))
            else:
                for place in part.places:
                    outcomes[place] = UnknownOutcome(self._charges[place].limit, False, 0, 0, 0, 0)
        return tuple([outcomes[place] for place in range(len(self._charges))])

    def _give_back(self, charges: Sequence[Charge], verdict: Verdict) -> None:
        """Undo the TAKEs of a part that were made, in Redis and in what is said of them."""
        refunds = []
        taken: dict[bytes, int] = {}
        for charge, outcome in zip(charges, verdict.outcomes, strict=True):
            limit = charge.limit
            if charge.op is not Op.TAKE or not charge.cost or limit.count_denied or not outcome.allowed:
                continue
            key = charge.key + limit.key_suffix
            taken[key] = taken.get(key, 0) + charge.cost
            outcome.used = max(outcome.used - taken[key], 0)
            outcome.remaining = min(outcome.remaining + taken[key], limit.capacity)
            if _lasts(charge, outcome):
                refunds.append(Charge(limit, charge.key, charge.cost, Op.REFUND, charge.hold))
        if refunds:
            self._counts.refunds += len(refunds)
            deadline = asyncio.get_running_loop().time() + CONFIRM_WITHIN_S
            self._refund(refunds, deadline, _Refunded(self._counts, len(refunds)))


def _lasts(charge: Charge, outcome: LimitOutcome) -> bool:
    """Whether what was taken is sure to be found in the same window still."""
    left_us = outcome.reset_after_us
    if charge.limit.algorithm is Algorithm.SLIDING_WINDOW:
        left_us -= charge.limit.window_us  # until its bucket ends; it is whole again a window later
    return left_us > REFUND_WITHIN_S * US_PER_S or bool(charge.hold)


class _Refunded:
    """Notes what came of refunds."""

    __slots__ = ("_counts", "_many")

    def __init__(self, counts: RedisCounts, many: int) -> None:
        self._counts = counts
        self._many = many

    def __call__(self, answer: Verdict | StoreFailure) -> None:
        if not isinstance(answer, Verdict):
            self._counts.refunds_failed += self._many
