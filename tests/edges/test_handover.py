"""What was granted without Redis is counted there afterwards: real servers frozen, killed and started again."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from sidecar.core.limits import US_PER_S, Algorithm, Charge, Limit, Op, StoreFailure, Verdict
from sidecar.edges.handover import BATCH_MAX, Handover
from sidecar.edges.local_store import LocalStore
from sidecar.edges.redis_cluster import ClusterStore, slot_of
from sidecar.edges.redis_endpoint import Login
from tests.support.asking import ask, until
from tests.support.limiting import CountedStore, limiting, limiting_on
from tests.support.valkey import ValkeyProcess

HOUR_US = 3_600 * US_PER_S
SHORT_S = 0.1
"""How long a decision waits for Redis in these tests."""

LIMIT = Limit(name="l", requests=100, window_us=HOUR_US, deny_cache=False)


@pytest.fixture
def valkey_process(tmp_path):
    server = ValkeyProcess(tmp_path, ["--save", ""])
    server.start()
    try:
        yield server
    finally:
        server.kill()


async def used(sidecar, charge):
    """What Redis has counted."""
    look = Charge(charge.limit, charge.key, 0)
    while not isinstance(answer := await ask(sidecar.redis, look), Verdict):  # noqa: ASYNC110 - polls Redis
        await asyncio.sleep(0.01)
    return answer.outcomes[0].used


async def two_sidecars(stack, port, share):
    """Both decide alone for `share` while Redis does not answer."""
    return [await stack.enter_async_context(limiting(port=port, share=share, timeout_s=SHORT_S)) for _ in range(2)]


async def owes_nothing(*sidecars):
    """Nothing is owed, and what was has arrived: later commands of a connection are answered later."""
    await until(lambda: not any(sidecar.limiter.handover.owed for sidecar in sidecars))
    for sidecar in sidecars:
        await used(sidecar, Charge(LIMIT, b"another"))


async def test_no_second_helping_after_a_freeze(valkey_process):
    """Two sidecars, Redis frozen and thawed: the limit and both shares are admitted, not one request more."""
    charge = Charge(LIMIT, b"k")
    async with AsyncExitStack() as stack:
        sidecars = await two_sidecars(stack, valkey_process.port, 0.2)
        before = sum([await sidecar.admitted(10, charge) for sidecar in sidecars])
        valkey_process.freeze()
        frozen = [await sidecar.admitted(50, charge) for sidecar in sidecars]
        assert frozen == [20, 20]
        valkey_process.thaw()
        await owes_nothing(*sidecars)
        assert await used(sidecars[0], charge) >= before + sum(frozen)
        after = sum([await sidecar.admitted(150, charge) for sidecar in sidecars])
        assert before + sum(frozen) + after <= 100


async def test_counted_in_a_server_that_starts_again_empty(valkey_process):
    """In the background, whether or not somebody asks."""
    charge = Charge(LIMIT, b"k")
    async with AsyncExitStack() as stack:
        sidecars = await two_sidecars(stack, valkey_process.port, 0.3)
        valkey_process.kill()
        assert [await sidecar.admitted(50, charge) for sidecar in sidecars] == [30, 30]
        valkey_process.start()
        await until(lambda: [sidecar.limiter.handover.handed_total for sidecar in sidecars] == [30, 30])
        assert await used(sidecars[0], charge) == 60
        assert [await sidecar.admitted(150, charge) for sidecar in sidecars] == [40, 0]


async def test_counted_before_the_next_charge(valkey_process):
    """Whoever charges at once has its own share counted first; the other one's comes on top, and nothing else does."""
    charge = Charge(LIMIT, b"k")
    async with AsyncExitStack() as stack:
        sidecars = await two_sidecars(stack, valkey_process.port, 0.3)
        valkey_process.kill()
        assert [await sidecar.admitted(50, charge) for sidecar in sidecars] == [30, 30]
        valkey_process.start()
        for sidecar in sidecars:
            await used(sidecar, charge)  # until its circuit is closed
        after = [await sidecar.admitted(150, charge) for sidecar in sidecars]
        assert 40 <= sum(after) <= 40 + 30
        await owes_nothing(*sidecars)
        assert await used(sidecars[0], charge) == 60 + sum(after)


async def test_the_share_is_granted_once_in_a_window(valkey_process):
    """A second outage in the same window grants what is left of the share, and hands over that alone."""
    charge = Charge(LIMIT, b"k")
    async with limiting(port=valkey_process.port, share=0.3, timeout_s=SHORT_S) as sidecar:
        for granted in (10, 20):
            valkey_process.freeze()
            assert await sidecar.admitted(granted, charge) == granted
            valkey_process.thaw()
            await owes_nothing(sidecar)
        assert sidecar.limiter.handover.handed_total == 30
        valkey_process.freeze()
        assert await sidecar.admitted(10, charge) == 0
        valkey_process.thaw()


async def test_many_counters_that_nobody_asks_for_again(valkey_process):
    """In the background, all of them, in batches."""
    charges = [Charge(LIMIT, b"%d" % n) for n in range(3 * BATCH_MAX)]
    async with limiting(port=valkey_process.port, timeout_s=SHORT_S) as sidecar:
        valkey_process.freeze()
        for charge in charges:
            assert await ask(sidecar.limiter.local, charge)
        assert sidecar.limiter.handover.owed == len(charges)
        valkey_process.thaw()
        await owes_nothing(sidecar)
        assert [await used(sidecar, charge) for charge in charges[:: BATCH_MAX // 2]] == [1] * 6
        assert sidecar.limiter.handover.handed_total == len(charges)
        assert not sidecar.limiter.handover.active


async def test_one_frozen_master_of_a_cluster(cluster):
    """Its counters are counted alone and handed over; the others are Redis's all the time."""
    keys = [b"{%d}" % n for n in range(20)]
    frozen = cluster.master_of(slot_of(keys[0]))
    other = next(key for key in keys if cluster.master_of(slot_of(key)) is not frozen)
    gone, there = Charge(LIMIT, keys[0]), Charge(LIMIT, other)
    async with AsyncExitStack() as stack:
        sidecars = []
        for _ in range(2):
            store = ClusterStore(cluster.addresses, Login(), timeout_s=SHORT_S)
            on_store = limiting_on(store, lambda store=store: store.connected, share=0.3)
            sidecars.append(await stack.enter_async_context(on_store))
        frozen.freeze()
        try:
            alone = [await sidecar.admitted(50, gone) for sidecar in sidecars]
            both = [await sidecar.admitted(10, gone, there) for sidecar in sidecars]
            rest = sum([await sidecar.admitted(150, there) for sidecar in sidecars])
        finally:
            frozen.thaw()
            cluster.repair()
        assert (alone, both, rest) == ([30, 30], [0, 0], 100)
        await until(lambda: all(sidecar.limiter.handover.handed_total == 30 for sidecar in sidecars))
        assert await used(sidecars[0], gone) >= 60
        assert sum([await sidecar.admitted(100, gone) for sidecar in sidecars]) <= 40


# --- one at a time, with a store that answers as told ----------------------------------------------------------------


class Paired:
    """A handover between this process and another store in memory, which stands for Redis."""

    def __init__(self, **settings):
        self.now_us = 1_700_000_000 * US_PER_S
        self.redis = LocalStore(now_us=lambda: self.now_us)
        self.store = CountedStore(self.redis)
        self.local = LocalStore(now_us=lambda: self.now_us)
        self.handover = Handover(self.store, self.local, **settings)

    async def grant(self, charge):
        answer = await ask(self.handover, charge)
        return answer.allowed

    async def settle(self, charge):
        """The next charge of the same key."""
        answers = []
        self.handover.settle_first([charge], asyncio.get_running_loop().time() + 5, answers.append)
        return answers[0]

    def counted(self, charge):
        return self.redis.used(charge)


@pytest.fixture
async def paired():
    pair = Paired()
    yield pair
    pair.handover.close()


CHARGE = Charge(LIMIT, b"k")


async def test_the_next_charge_comes_after_the_debt(paired):
    """It is decided on top of what is owed, and reported as if it were alone."""
    for _ in range(3):
        assert await paired.grant(CHARGE)
    assert paired.handover.owes([CHARGE])
    verdict = await paired.settle(CHARGE)
    assert [outcome.used for outcome in verdict.outcomes] == [4]
    assert [[(c.op, c.cost) for c in asked] for asked in paired.store.asked] == [
        [(Op.TAKE, 0)],
        [(Op.FORCE, 3)],
        [(Op.TAKE, 1)],
    ]
    assert not paired.handover.owes([CHARGE])
    assert not paired.handover.active


@pytest.mark.parametrize("failure", StoreFailure)
async def test_while_redis_does_not_answer_the_debt_stays(paired, failure):
    """The look fails, so nothing else is sent, and the caller is told."""
    await paired.grant(CHARGE)
    paired.store.failure = failure
    assert await paired.settle(CHARGE) is failure
    assert paired.handover.owes([CHARGE])
    assert all(asked[0].cost == 0 for asked in paired.store.asked)


class FailsDebts(LocalStore):
    """Answers looks, and fails everything else."""

    def __init__(self, failure):
        super().__init__()
        self.failure = failure

    def charge(self, charges, deadline, done):
        if charges[0].cost:
            done(self.failure)
        else:
            super().charge(charges, deadline, done)


@pytest.mark.parametrize(
    ("failure", "owed", "lost"),
    [
        (StoreFailure.TIMEOUT, 0, 1),
        (StoreFailure.UNREACHABLE, 0, 1),
        (StoreFailure.CIRCUIT_OPEN, 1, 0),
        (StoreFailure.OVERLOADED, 1, 0),
        (StoreFailure.ERROR_REPLY, 1, 0),
    ],
)
async def test_a_debt_of_unknown_fate_is_not_sent_again(paired, failure, owed, lost):
    """It was counted once or not at all; one that provably was not counted is owed again."""
    await paired.grant(CHARGE)
    paired.handover._store = FailsDebts(failure)
    assert await paired.settle(CHARGE) is failure
    assert (paired.handover.owed, paired.handover.lost_total) == (owed, lost)


async def test_what_has_passed_is_not_counted(paired):
    """A window that ended in the meantime concerns nobody."""
    fixed = Charge(Limit(name="f", requests=9, window_us=US_PER_S, algorithm=Algorithm.FIXED_WINDOW), b"k")
    await paired.grant(fixed)
    paired.now_us += US_PER_S
    await paired.settle(fixed)
    assert paired.counted(fixed) == 1
    assert paired.handover.handed_total == 0


async def test_what_has_faded_is_not_counted(paired):
    """Of a sliding window what this process still counts."""
    sliding = Charge(Limit(name="s", requests=99, window_us=HOUR_US), b"k", 40)
    paired.now_us -= paired.now_us % HOUR_US
    await paired.grant(sliding)
    paired.now_us += HOUR_US + HOUR_US // 2
    await paired.settle(Charge(sliding.limit, b"k", 0))
    assert paired.counted(sliding) == 20


async def test_news_of_redis_is_used_at_once(paired):
    """A fresh connection ends the wait for the next attempt; without debts it is no news."""
    paired.handover.hurry()
    await paired.grant(CHARGE)
    paired.handover.hurry()
    assert paired.counted(CHARGE) == 1
    assert (paired.handover.owed, paired.handover.handed_total) == (0, 1)


async def test_only_what_was_taken_is_owed(paired):
    """Not denials, unless the limit counts them; not holds; less what was given back."""
    await paired.grant(Charge(Limit(name="none", requests=0, window_us=HOUR_US), b"denied"))
    held = Limit(name="h", requests=5, window_us=HOUR_US, hold_us=HOUR_US)
    await paired.grant(Charge(held, b"held", 3, hold=7))
    await paired.grant(Charge(Limit(name="n", requests=5, window_us=HOUR_US, algorithm=Algorithm.CONCURRENCY), b"in"))
    await paired.grant(Charge(LIMIT, b"refunded", 2))
    await paired.grant(Charge(LIMIT, b"refunded", 2, Op.REFUND))
    assert paired.handover.owed == 0
    counting = Limit(name="c", requests=1, window_us=HOUR_US, algorithm=Algorithm.FIXED_WINDOW, count_denied=True)
    for _ in range(3):
        await paired.grant(Charge(counting, b"counting"))
    await paired.grant(Charge(held, b"held", 2, Op.SETTLE, hold=7))
    for charge, amount in ((Charge(counting, b"counting", 0), 3), (Charge(held, b"held", 0), 2)):
        await paired.settle(charge)
        assert paired.counted(charge) == amount


async def test_debts_are_bounded():
    """As many counters as stated; of one more nothing is handed over, and a metric says so."""
    paired = Paired(owed_max=2)
    for n in range(3):
        assert await paired.grant(Charge(LIMIT, b"%d" % n))
    assert (paired.handover.owed, paired.handover.lost_total) == (2, 1)
    paired.handover.close()
    assert (paired.handover.owed, paired.handover.lost_total) == (0, 3)
