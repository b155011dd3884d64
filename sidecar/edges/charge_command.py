"""What lua/charge.lua is sent, and what it replies."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from sidecar.core.limits import REQUESTS_MAX, Charge, LimitOutcome, Op, Verdict

_COST_MAX = REQUESTS_MAX + 1
"""Larger costs are sent as this: it exceeds every limit already."""

_COST_ONE = (1).to_bytes(8, "big")
_TAKE = Op.TAKE
_NO_HOLD = bytes(8)


def _now_us() -> int:
    return time.time_ns() // 1_000


def pack_charges(command: bytes, charges: Sequence[Charge], now_us: Callable[[], int] = _now_us) -> bytes:
    """A whole command as lua/charge.lua wants it; `command` is its name and script, packed.

    The clock only chooses which boundaries of a calendar are sent: it may be wrong by the length of a window.

    By formatting: 0.3 us for one charge and 4.5 us for ten, with hiredis.pack_command 1.6 and 7.0 us.
    """
    many = len(charges)
    if many == 1:
        charge = charges[0]
        limit = charge.limit
        key = charge.key + limit.key_suffix
        if limit.packed_take is not None and charge.op is _TAKE:
            return b"*6\r\n%b$1\r\n1\r\n$%d\r\n%b\r\n$0\r\n\r\n%b%b\r\n" % (
                command,
                len(key),
                key,
                limit.packed_take,
                _COST_ONE if charge.cost == 1 else _packed_cost(charge),
            )
    keys, arguments = b"", b"$0\r\n\r\n"
    for charge in charges:
        limit = charge.limit
        key = charge.key + limit.key_suffix
        keys += b"$%d\r\n%b\r\n" % (len(key), key)
        if limit.packed_take is not None and charge.op is _TAKE:
            cost = _COST_ONE if charge.cost == 1 else _packed_cost(charge)
            arguments += b"%b%b\r\n" % (limit.packed_take, cost)
        else:
            argument = pack_charge(charge, now_us)
            arguments += b"$%d\r\n%b\r\n" % (len(argument), argument)
    return b"*%d\r\n%b$%d\r\n%d\r\n%b%b" % (2 * many + 4, command, len(str(many)), many, keys, arguments)


def pack_charge(charge: Charge, now_us: Callable[[], int] = _now_us) -> bytes:
    """One argument of lua/charge.lua."""
    limit = charge.limit
    if limit.packed_take is not None and charge.op is _TAKE:
        return limit.packed + _packed_cost(charge)
    return b"%b%b%b%c%b%b" % (
        limit.packed,
        _packed_cost(charge),
        limit.packed_more,
        charge.op,
        charge.hold.to_bytes(8, "big") if charge.hold else _NO_HOLD,
        b"" if limit.calendar is None else limit.calendar.around(now_us()).packed,
    )


def _packed_cost(charge: Charge) -> bytes:
    return min(charge.cost, _COST_MAX).to_bytes(8, "big")


def read_verdict(charges: Sequence[Charge], reply: list[list[int]]) -> Verdict:
    """What the script's reply says."""
    if len(charges) == 1:  # as below, in 0.4 instead of 0.9 us
        limit = charges[0].limit
        fits, used, remaining, retry_after_us, reset_after_us = reply[0]
        outcome = LimitOutcome(limit, fits == 1, used, remaining, retry_after_us, reset_after_us)
        return Verdict(outcome.allowed or limit.shadow, (outcome,))
    allowed = True
    outcomes = []
    for charge, (fits, used, remaining, retry_after_us, reset_after_us) in zip(charges, reply, strict=True):
        outcome = LimitOutcome(charge.limit, fits == 1, used, remaining, retry_after_us, reset_after_us)
        allowed = allowed and (outcome.allowed or charge.limit.shadow)
        outcomes.append(outcome)
    return Verdict(allowed, tuple(outcomes))
