"""Decides all charges of one decision together: the specification of lua/charge.lua."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sidecar.core.algorithms.account import Account, Asked, State
from sidecar.core.limits import Charge, LimitOutcome, Op

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class Write(NamedTuple):
    """A counter's new state, which matters for `lifetime_us`; 0: it is empty."""

    key: bytes
    state: State
    lifetime_us: int


class Decided(NamedTuple):
    """What came of all charges together, and what to remember."""

    allowed: bool
    outcomes: tuple[LimitOutcome, ...]
    writes: list[Write]


class _Judged(NamedTuple):
    """A charge that was looked at, but if it is a TAKE not taken yet."""

    charge: Charge
    key: bytes
    account: Account
    asked: Asked


_ALWAYS = Asked(True, 0, 0)


def decide(charges: Sequence[Charge], now_us: int, load: Callable[[bytes], State | None]) -> Decided:
    """Decide all charges together.

    Every TAKE is judged, on top of what the charges before it do to the same key or ask of it. If all fit, save those
    of `shadow` limits, those that fit are taken; otherwise none is. The others happen whatever comes of the TAKEs, in
    their order, before any TAKE is taken. TAKEs of a limit that counts denials are taken always.

    Args:
        charges: Each with a cost of 0 or more.
        now_us: Microseconds since the epoch.
        load: The state of a storage key (`Charge.storage_key`), None if there is none.
    """
    accounts: dict[bytes, Account] = {}
    judged = [_judge(charge, now_us, accounts, load) for charge in charges]
    allowed = all(each.asked.fits or each.charge.limit.shadow for each in judged)
    outcomes = [_take(each, allowed) for each in judged]
    for each, outcome in zip(judged, outcomes, strict=True):
        account = each.account
        outcome.reset_after_us = account.reset_after_us()
        if not each.asked.fits:
            outcome.retry_after_us = account.retry_after_us(each.charge.limit, each.asked)
    return Decided(allowed, tuple(outcomes), _writes(judged))


def _judge(
    charge: Charge, now_us: int, accounts: dict[bytes, Account], load: Callable[[bytes], State | None]
) -> _Judged:
    key = charge.storage_key
    account = accounts.get(key)
    if account is None:
        account = accounts[key] = Account(charge.limit, now_us, load(key))
    if charge.op is Op.TAKE:
        return _Judged(charge, key, account, account.ask(charge))
    account.apply(charge)
    return _Judged(charge, key, account, _ALWAYS)


def _take(judged: _Judged, allowed: bool) -> LimitOutcome:
    charge, account = judged.charge, judged.account
    limit = charge.limit
    if charge.op is Op.TAKE and charge.cost > 0 and ((allowed and judged.asked.fits) or limit.count_denied):
        account.take(charge)
    used = account.used()
    remaining = max(limit.capacity - used, 0) if judged.asked.fits else 0
    return LimitOutcome(limit, judged.asked.fits, used, remaining, 0, 0)


def _writes(judged: Iterable[_Judged]) -> list[Write]:
    writes = {
        each.key: Write(each.key, each.account.state, each.account.reset_after_us())
        for each in judged
        if each.account.dirty
    }
    return list(writes.values())
