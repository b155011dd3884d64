"""A decision in parts: whose word counts, and what is given back, for every way in which its parts can end."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.core.limits import US_PER_S, Algorithm, Charge, Limit, LimitOutcome, Op, Source, StoreFailure, Verdict
from sidecar.edges.redis_cluster import ClusterStore
from sidecar.edges.redis_endpoint import Login
from sidecar.edges.redis_parts import REFUND_WITHIN_S, UnknownOutcome, charge_parts
from sidecar.edges.redis_slots import slot_of
from sidecar.edges.redis_store import RedisCounts
from tests.support.asking import PATIENCE_S, ask, running_store, until, verdict

HOUR_US = 3_600 * US_PER_S


def limit_of(name, requests=10, algorithm=Algorithm.FIXED_WINDOW, **settings):
    return Limit(name=name, requests=requests, window_us=HOUR_US, algorithm=algorithm, **settings)


def outcome(limit, allowed=True, used=3, reset_after_us=HOUR_US):
    return LimitOutcome(limit, allowed, used, 10 - used if allowed else 0, 0 if allowed else 5, reset_after_us)


def taken(*charges, **settings):
    return Verdict(True, tuple(outcome(charge.limit, **settings) for charge in charges))


def denied(*charges):
    return Verdict(False, tuple(outcome(charge.limit, allowed=False) for charge in charges))


async def decide(parts, refund_answer=None):
    """What is said of parts that are answered at once, what is given back, and what was counted."""
    charges = [charge for part, _ in parts for charge in part]
    counts, refunds, said = RedisCounts(), [], []
    places = iter(range(len(charges)))
    asks = [
        (lambda _charges, _deadline, done, answer=answer: done(answer), [next(places) for _ in part])
        for part, answer in parts
    ]

    def refund(given, _deadline, done):
        refunds.extend((charge.limit.name, charge.op, charge.cost, charge.hold) for charge in given)
        done(refund_answer or Verdict(True, ()))

    charge_parts(asks, charges, 0.0, said.append, refund=refund, counts=counts)
    (answer,) = said
    assert counts.refunds == len(refunds)
    return answer, refunds, counts


A, B = Charge(limit_of("a"), b"a", 2), Charge(limit_of("b"), b"b", 1)
LOST = StoreFailure.TIMEOUT


async def test_all_parts_allow():
    """The decision is allowed, and nothing is given back."""
    answer, refunds, _ = await decide([([A], taken(A)), ([B], taken(B))])
    assert answer.allowed
    assert [each.limit.name for each in answer.outcomes] == ["a", "b"]
    assert refunds == []


async def test_one_part_denies():
    """What the other took is given back, and its outcome says what is counted after that."""
    answer, refunds, _ = await decide([([A], taken(A)), ([B], denied(B))])
    assert not answer.allowed
    assert [(each.allowed, each.used, each.remaining) for each in answer.outcomes] == [(True, 1, 9), (False, 3, 0)]
    assert refunds == [("a", Op.REFUND, 2, 0)]


async def test_a_denial_beats_another_parts_failure():
    """The verdict is denied; of the part that failed nothing is known, which never reads as allowed."""
    answer, refunds, _ = await decide([([A], LOST), ([B], denied(B))])
    assert not answer.allowed
    unknown, known = answer.outcomes
    assert (unknown.allowed, unknown.used, unknown.remaining, unknown.source) == (False, 0, 0, Source.UNASKED)
    assert isinstance(unknown, UnknownOutcome)
    assert (known.allowed, known.source) == (False, Source.STORE)
    assert refunds == []


async def test_a_failure_without_a_denial_fails():
    """What the other part took is given back; the part whose fate is unknown is left alone."""
    answer, refunds, _ = await decide([([A], taken(A)), ([B], LOST)])
    assert answer is LOST
    assert refunds == [("a", Op.REFUND, 2, 0)]


async def test_several_failures_are_the_first():
    """One reason is reported."""
    answer, _, _ = await decide([([A], StoreFailure.CIRCUIT_OPEN), ([B], LOST)])
    assert answer is StoreFailure.CIRCUIT_OPEN


async def test_a_shadow_that_denies_is_no_denial():
    """It was not taken, so it is not given back either; and beside it a failure is a failure."""
    shadow = Charge(limit_of("s", shadow=True), b"s")
    passed = Verdict(True, (outcome(shadow.limit, allowed=False), outcome(A.limit)))
    answer, refunds, _ = await decide([([shadow, A], passed), ([B], LOST)])
    assert answer is LOST
    assert refunds == [("a", Op.REFUND, 2, 0)]


@pytest.mark.parametrize(
    "charge",
    [
        Charge(limit_of("c", count_denied=True), b"c"),
        Charge(limit_of("c"), b"c", 0),
        Charge(limit_of("c"), b"c", 1, Op.FORCE),
        Charge(limit_of("c"), b"c", 1, Op.REFUND),
        Charge(limit_of("c"), b"c", 1, Op.SETTLE, 7),
    ],
)
async def test_what_happens_anyway_stays(charge):
    """Counted denials, looks, and what is no TAKE are not given back."""
    _, refunds, _ = await decide([([charge], taken(charge)), ([B], denied(B))])
    assert refunds == []


async def test_a_hold_is_given_back_by_its_name():
    """However soon its window ends: it is ended, not counted against others."""
    held = Charge(limit_of("h", hold_us=HOUR_US), b"h", 4, Op.TAKE, 7)
    _, refunds, _ = await decide([([held], taken(held, reset_after_us=1)), ([B], denied(B))])
    assert refunds == [("h", Op.REFUND, 4, 7)]


@pytest.mark.parametrize(("algorithm", "longer_us"), [(Algorithm.FIXED_WINDOW, 0), (Algorithm.SLIDING_WINDOW, HOUR_US)])
@pytest.mark.parametrize(("left_us", "given_back"), [(0, 0), (1, 1)])
async def test_nothing_is_given_back_into_the_next_window(algorithm, longer_us, left_us, given_back):
    """A refund that may come after the window's end could take back what others took in the next one."""
    charge = Charge(limit_of("w", algorithm=algorithm), b"w")
    reset_after_us = round(REFUND_WITHIN_S * US_PER_S) + longer_us + left_us
    _, refunds, _ = await decide([([charge], taken(charge, reset_after_us=reset_after_us)), ([B], denied(B))])
    assert len(refunds) == given_back


async def test_costs_on_one_key_are_given_back_together():
    """Its outcomes say what is counted without all of them."""
    twice = [Charge(A.limit, b"a", 2), Charge(A.limit, b"a", 1)]
    said = Verdict(True, (outcome(A.limit, used=5), outcome(A.limit, used=6)))
    answer, refunds, _ = await decide([(twice, said), ([B], denied(B))])
    assert [each.used for each in answer.outcomes] == [3, 3, 3]
    assert refunds == [("a", Op.REFUND, 2, 0), ("a", Op.REFUND, 1, 0)]


async def test_refunds_that_are_not_confirmed_are_counted():
    """They may stay counted: an operator can see how many."""
    _, _, counts = await decide([([A], taken(A)), ([B], denied(B))], refund_answer=LOST)
    assert (counts.refunds, counts.refunds_failed) == (1, 1)


async def test_a_frozen_master_fails_its_own_counters_only(cluster):
    """Others are served, a denial elsewhere decides, what was taken beside a failure is given back; it recovers."""
    frozen = cluster.masters[0]
    async with running_store(ClusterStore(cluster.addresses, Login(), timeout_s=0.2)) as store:
        charges = {}
        for n in range(100):
            key = b"{%d}" % n
            charges.setdefault(cluster.master_of(slot_of(key)).port, Charge(limit_of("f", 5), key))
            if len(charges) == len(cluster.masters):
                break
        there = charges.pop(frozen.port)
        here, other = charges.values()
        frozen.freeze()
        try:
            assert await ask(store, here, there) is StoreFailure.TIMEOUT
            await until(lambda: store.counts.refunds == 1)
            assert (await verdict(store, Charge(here.limit, here.key, 0))).outcomes[0].used == 0
            answer = await verdict(store, here, there, Charge(limit_of("none", 0), other.key))
            assert [type(each) is UnknownOutcome for each in answer.outcomes] == [False, True, False]
            assert not answer.allowed
        finally:
            frozen.thaw()
        async with asyncio.timeout(PATIENCE_S):
            while not isinstance(await ask(store, there), Verdict):  # noqa: ASYNC110 - polls Redis
                await asyncio.sleep(0.01)
