"""What lua/charge.lua is sent, and what it replies."""

from __future__ import annotations

from collections.abc import Sequence

from sidecar.core.limits import REQUESTS_MAX, Charge, LimitOutcome, Verdict

_COST_MAX = REQUESTS_MAX + 1
"""Larger costs are sent as this: it exceeds every limit already."""

_COST_ONE = (1).to_bytes(8, "big")


def pack_charges(command: bytes, charges: Sequence[Charge]) -> bytes:
    """A whole command as lua/charge.lua wants it; `command` is its name and script, packed.

    By formatting: 0.3 us for one charge and 4.5 us for ten, with hiredis.pack_command 1.6 and 7.0 us.
    """
    many = len(charges)
    if many == 1:
        charge = charges[0]
        key = charge.key + charge.limit.key_suffix
        return b"*6\r\n%b$1\r\n1\r\n$%d\r\n%b\r\n$0\r\n\r\n$22\r\n%b%b\r\n" % (
            command,
            len(key),
            key,
            charge.limit.packed,
            _COST_ONE if charge.cost == 1 else _packed_cost(charge),
        )
    keys, arguments = b"", b"$0\r\n\r\n"
    for charge in charges:
        key = charge.key + charge.limit.key_suffix
        cost = _COST_ONE if charge.cost == 1 else _packed_cost(charge)
        keys += b"$%d\r\n%b\r\n" % (len(key), key)
        arguments += b"$22\r\n%b%b\r\n" % (charge.limit.packed, cost)
    return b"*%d\r\n%b$%d\r\n%d\r\n%b%b" % (2 * many + 4, command, len(str(many)), many, keys, arguments)


def _packed_cost(charge: Charge) -> bytes:
    return min(charge.cost, _COST_MAX).to_bytes(8, "big")


def read_verdict(charges: Sequence[Charge], reply: list[list[int]]) -> Verdict:
    """What the script's reply says."""
    if len(charges) == 1:  # as below, in 0.4 instead of 0.9 us
        fits, used, remaining, retry_after_us, reset_after_us = reply[0]
        outcome = LimitOutcome(charges[0].limit, fits == 1, used, remaining, retry_after_us, reset_after_us)
        return Verdict(outcome.allowed, (outcome,))
    allowed = True
    outcomes = []
    for charge, (fits, used, remaining, retry_after_us, reset_after_us) in zip(charges, reply, strict=True):
        outcome = LimitOutcome(charge.limit, fits == 1, used, remaining, retry_after_us, reset_after_us)
        allowed = allowed and outcome.allowed
        outcomes.append(outcome)
    return Verdict(allowed, tuple(outcomes))
