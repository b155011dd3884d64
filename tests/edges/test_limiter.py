"""What stands in front of Redis, together with a real one: when it is asked, and what is answered without."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from time import perf_counter

import pytest

from sidecar.core.limits import US_PER_S, Algorithm, Charge, Limit, Op, Source, StoreFailure
from sidecar.core.overrides import Override, Overrides
from sidecar.edges.limiter import Limiter
from sidecar.edges.local_store import LocalStore
from sidecar.edges.loop_watch import LATE_S_MIN, LOOK_EVERY_S
from sidecar.edges.redis_parts import charge_parts
from sidecar.edges.redis_store import RedisCounts
from tests.support.asking import ask, until
from tests.support.limiting import limiting

HOUR_US = 3_600 * US_PER_S
LIMIT = Limit(name="l", requests=1, window_us=HOUR_US)
COUNTING = Limit(name="c", requests=1, window_us=HOUR_US, algorithm=Algorithm.FIXED_WINDOW, count_denied=True)
ROOMY = Limit(name="r", requests=100, window_us=HOUR_US)


@pytest.fixture
async def sidecar(valkey):
    async with limiting(path=valkey.socket_path) as started:
        yield started


@pytest.fixture
async def other(valkey):
    async with limiting(path=valkey.socket_path) as started:
        yield started


def sources(verdict):
    return [outcome.source for outcome in verdict.outcomes]


async def exhausted(sidecar, *charges):
    """Charge until Redis has denied once."""
    for _ in range(20):
        if not (answer := await sidecar.verdict(*charges)).allowed:
            return answer
    raise AssertionError


async def test_a_remembered_denial_costs_no_round_trip(sidecar):
    """The second denial comes from memory, with the first one's time, and says so."""
    charge = Charge(LIMIT, b"k")
    first = await exhausted(sidecar, charge)
    trips = sidecar.trips
    second = await sidecar.verdict(charge)
    assert sidecar.trips == trips
    assert (second.allowed, second.local, sources(second)) == (False, False, [Source.REMEMBERED])
    assert second.outcomes[0].limit is charge.limit
    retry_after_us = first.outcomes[0].retry_after_us
    assert retry_after_us - US_PER_S < second.outcomes[0].retry_after_us <= retry_after_us + US_PER_S
    assert sidecar.limiter.denials.hits_total == 1


async def test_who_waits_as_told_passes(sidecar):
    """After the time that a denial from memory says, Redis lets the request pass."""
    charge = Charge(Limit(name="l", requests=1, window_us=100_000), b"k")
    while sources(answer := await sidecar.verdict(charge)) != [Source.REMEMBERED]:
        pass
    woken = asyncio.Event()
    asyncio.get_running_loop().call_later(answer.outcomes[0].retry_after_us / US_PER_S, woken.set)
    await woken.wait()
    assert (await sidecar.verdict(charge)).allowed


async def test_limits_that_say_so_are_always_asked_for(sidecar):
    """`deny_cache: false`."""
    charge = Charge(replace(LIMIT, deny_cache=False), b"k")
    await exhausted(sidecar, charge)
    assert sources(await sidecar.verdict(charge)) == [Source.STORE]


async def test_one_remembered_denial_decides_all_or_nothing(sidecar):
    """Nothing is asked or taken; of the other limits nothing is known."""
    await exhausted(sidecar, Charge(LIMIT, b"k"))
    trips = sidecar.trips
    answer = await sidecar.verdict(Charge(ROOMY, b"r"), Charge(LIMIT, b"k"))
    assert sidecar.trips == trips
    assert (answer.allowed, sources(answer)) == (False, [Source.UNASKED, Source.REMEMBERED])
    assert (answer.outcomes[0].allowed, answer.outcomes[0].used) == (True, 0)
    assert (await sidecar.verdict(Charge(ROOMY, b"r", 0))).outcomes[0].used == 0


async def test_what_happens_all_the_same_is_asked_for(sidecar):
    """Limits that count denials are counted for their own sake, in one trip, without those that are over."""
    over, within = Charge(COUNTING, b"over"), Charge(replace(COUNTING, requests=50), b"within")
    await exhausted(sidecar, over)
    trips = sidecar.trips
    for used in (1, 2):
        answer = await sidecar.verdict(within, over, Charge(ROOMY, b"r"))
        assert sources(answer) == [Source.STORE, Source.REMEMBERED, Source.UNASKED]
        assert [outcome.allowed for outcome in answer.outcomes] == [True, False, True]
        assert answer.outcomes[0].used == used
        assert not answer.allowed
    assert [len(asked) for asked in sidecar.store.asked[trips:]] == [1, 1]


async def test_a_known_denial_beats_a_failure(sidecar):
    """Redis cannot be asked for the other limit: the decision is a denial all the same."""
    over, within = Charge(COUNTING, b"over"), Charge(replace(COUNTING, requests=50), b"within")
    await exhausted(sidecar, over)
    sidecar.store.failure = StoreFailure.TIMEOUT
    answer = await sidecar.verdict(within, over)
    assert (answer.allowed, sources(answer)) == (False, [Source.UNASKED, Source.REMEMBERED])


@pytest.mark.parametrize("op", [Op.REFUND, Op.SETTLE])
async def test_giving_back_is_seen_at_once(sidecar, op):
    """After a refund or a settlement by this process, Redis decides."""
    charge = Charge(LIMIT, b"k")
    await exhausted(sidecar, charge)
    await sidecar.verdict(Charge(LIMIT, b"k", 1, op))
    answer = await sidecar.verdict(charge)
    assert sources(answer) == [Source.STORE]
    assert answer.allowed is (op is Op.REFUND)


async def test_a_denial_that_crosses_a_refund_is_not_remembered(sidecar):
    """Asked before the refund and answered together with it: it says nothing of what is left now."""
    charge = Charge(LIMIT, b"k")
    await sidecar.verdict(charge)
    refund = Charge(LIMIT, b"k", 1, Op.REFUND)
    denied, _ = await asyncio.gather(ask(sidecar.limiter, charge), ask(sidecar.limiter, refund))
    assert not denied.allowed
    assert (await sidecar.verdict(charge)).allowed


async def test_others_are_told_of_refunds(valkey):
    """Who gives back says so, once Redis has it, and whoever is told forgets."""
    freed = []
    async with (
        limiting(path=valkey.socket_path, on_freed=freed.append) as giver,
        limiting(path=valkey.socket_path) as denier,
    ):
        charge = Charge(LIMIT, b"k")
        await exhausted(denier, charge)
        await giver.verdict(Charge(LIMIT, b"k", 1, Op.REFUND))
        assert freed == [[charge.storage_key]]
        assert not (await denier.verdict(charge)).allowed
        denier.limiter.forget(freed[0])
        assert (await denier.verdict(charge)).allowed


async def test_overrides_apply_everywhere(valkey):
    """To what Redis decides, to what is remembered, and to what this process decides alone."""
    overrides = Overrides()
    async with limiting(path=valkey.socket_path, overrides=overrides) as sidecar:
        charge = Charge(LIMIT, b"k")
        await exhausted(sidecar, charge)
        overrides.replace({b"k": Override(3)})
        assert [(await sidecar.verdict(charge)).allowed for _ in range(3)] == [True, True, False]
        assert sources(await sidecar.verdict(charge)) == [Source.REMEMBERED]
        overrides.replace({})
        assert sources(await sidecar.verdict(charge)) == [Source.STORE]
        sidecar.store.failure = StoreFailure.UNREACHABLE
        sidecar.limiter.forget(None)
        overrides.replace({b"k": Override(3)})
        assert [await sidecar.admits(charge) for _ in range(4)] == [True, True, True, False]


async def test_ended_denials_leave_the_hot_path(sidecar):
    """When nothing is remembered any more, decisions go straight to Redis again."""
    charge = Charge(Limit(name="l", requests=1, window_us=20_000), b"k")
    await exhausted(sidecar, charge)
    await until(lambda: not len(sidecar.limiter.denials) and not sidecar.limiter.engaged)


class TwoServers:
    """Two in memory, as a Cluster has them: what begins with `b` is on the second, which answers when it is told to."""

    def __init__(self):
        self.servers = LocalStore(), LocalStore()
        self.late = []
        self.refund = self.charge
        self.on_denied = None

    def charge(self, charges, deadline, done):
        places = [[], []]
        for place, charge in enumerate(charges):
            places[charge.key[:1] == b"b"].append(place)
        asked = [(self._asking(server), each) for server, each in enumerate(places) if each]
        charge_parts(asked, charges, deadline, done, refund=self.refund, counts=RedisCounts())

    def _asking(self, server):
        def ask_one(charges, deadline, done):
            def answered(answer):
                if not answer.allowed:
                    self.on_denied(charges, answer, perf_counter())
                done(answer)

            ask_it = partial(self.servers[server].charge, charges, deadline, answered)
            self.late.append(ask_it) if server else ask_it()

        return ask_one


async def test_what_is_given_back_over_several_servers_is_seen():
    """A denial by what another decision took for a moment, in a Cluster, is not remembered beyond that."""
    store = TwoServers()
    limiter = Limiter(store, LocalStore())
    store.on_denied, store.refund = limiter.denied, limiter.charge
    alone = Charge(LIMIT, b"a")
    both = ask(limiter, alone, Charge(replace(LIMIT, requests=0), b"b"))
    assert not (await ask(limiter, alone)).allowed
    assert sources(await ask(limiter, alone)) == [Source.REMEMBERED]
    store.late.pop()()
    assert not (await both).allowed
    assert (await ask(limiter, alone)).allowed
    await limiter.close()


def busy_for(seconds):
    """Keep the event loop from doing anything else."""
    until_s = perf_counter() + seconds
    while perf_counter() < until_s:
        pass


async def stalled(limiter):
    """Let the event loop fall behind, until it is noticed."""
    for _ in range(10):
        busy_for(LATE_S_MIN + LOOK_EVERY_S + 0.01)
        await asyncio.sleep(0)
        if limiter.watch.late:
            return
    raise AssertionError


async def test_sheds_while_the_loop_is_late(sidecar):
    """Whoever would have to wait for Redis is told at once; what is known is answered, what is given back is sent."""
    over, within = Charge(LIMIT, b"over"), Charge(ROOMY, b"within")
    await exhausted(sidecar, over)
    await stalled(sidecar.limiter)
    trips = sidecar.trips
    assert ask(sidecar.limiter, within).result() is StoreFailure.OVERLOADED
    assert sources(ask(sidecar.limiter, over).result()) == [Source.REMEMBERED]
    assert (sidecar.trips, sidecar.limiter.shed_total) == (trips, 1)
    refund = ask(sidecar.limiter, Charge(ROOMY, b"within", 1, Op.REFUND))
    assert (await refund).allowed
    await until(lambda: not sidecar.limiter.watch.late)
    assert (await sidecar.verdict(within)).outcomes[0].used == 1


async def test_one_long_turn_sheds_nothing(sidecar):
    """A single stall passes; the lag is shown."""
    await until(lambda: not sidecar.limiter.watch.late)
    busy_for(LATE_S_MIN + LOOK_EVERY_S + 0.01)
    for _ in range(2):  # timers come after what is ready already
        await asyncio.sleep(0)
    assert sidecar.limiter.watch.lag_s > LATE_S_MIN
    assert not sidecar.limiter.watch.late
    assert (await sidecar.verdict(Charge(ROOMY, b"r"))).allowed


async def test_nothing_to_charge(sidecar):
    """A decision without limits passes."""
    assert (await sidecar.verdict()).allowed
