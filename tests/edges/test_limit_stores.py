"""One behaviour suite for both stores."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.core.limits import REQUESTS_MAX, US_PER_S, Algorithm, Charge, Limit
from sidecar.edges.local_store import LocalStore
from sidecar.edges.redis_endpoint import RedisEndpoint
from tests.support.asking import ask, redis_store, verdict

HOUR_US = 3_600 * US_PER_S
ALGORITHMS = pytest.mark.parametrize("algorithm", list(Algorithm))


@pytest.fixture(params=["local", "redis"])
async def store(request, valkey):
    if request.param == "local":
        yield LocalStore()
    else:
        async with redis_store(RedisEndpoint(path=valkey.socket_path)) as started:
            yield started


def limit_of(requests, algorithm=Algorithm.SLIDING_WINDOW, window_us=HOUR_US, **settings):
    return Limit(name="l", requests=requests, window_us=window_us, algorithm=algorithm, **settings)


async def test_nothing_to_charge_is_allowed(store):
    """A decision without limits passes, without asking anyone."""
    answer = await verdict(store)
    assert answer.allowed
    assert answer.outcomes == ()


@ALGORITHMS
async def test_admits_exactly_the_limit(store, algorithm):
    """Of 2,000 charges at once exactly as many pass as the limit says."""
    charge = Charge(limit_of(777, algorithm), b"k")
    answers = await asyncio.gather(*(ask(store, charge) for _ in range(2_000)))
    assert sum(answer.allowed for answer in answers) == 777


@ALGORITHMS
async def test_says_what_is_left(store, algorithm):
    """Used and remaining follow the charges; a denied one takes nothing and says when to come back."""
    charge = Charge(limit_of(2, algorithm), b"k")
    outcomes = [(await verdict(store, charge)).outcomes[0] for _ in range(3)]
    assert [(o.allowed, o.used, o.remaining) for o in outcomes] == [(True, 1, 1), (True, 2, 0), (False, 2, 0)]
    assert outcomes[0].retry_after_us == 0
    assert 0 < outcomes[2].retry_after_us <= 2 * HOUR_US
    assert 0 < outcomes[2].reset_after_us <= 2 * HOUR_US
    assert outcomes[2].limit is charge.limit


async def test_all_or_nothing(store):
    """When one limit denies, no other one is charged, except one that counts denials."""
    roomy, counted = Charge(limit_of(5), b"a"), Charge(limit_of(5, Algorithm.FIXED_WINDOW, count_denied=True), b"c")
    answer = await verdict(store, roomy, Charge(limit_of(0), b"b"), counted)
    assert not answer.allowed
    assert [o.allowed for o in answer.outcomes] == [True, False, True]
    assert [o.used for o in answer.outcomes] == [0, 0, 1]


async def test_peek_takes_nothing(store):
    """A cost of 0 looks without taking."""
    limit = limit_of(1)
    for _ in range(3):
        assert (await verdict(store, Charge(limit, b"k", 0))).outcomes[0].used == 0


@pytest.mark.parametrize("cost", [2, REQUESTS_MAX, REQUESTS_MAX + 1, 2**64])
async def test_a_cost_above_the_limit_never_passes(store, cost):
    """However large, it is denied for good and takes nothing."""
    outcome = (await verdict(store, Charge(limit_of(1), b"k", cost))).outcomes[0]
    assert (outcome.allowed, outcome.used, outcome.retry_after_us) == (False, 0, -1)


async def test_the_largest_limit_takes_its_whole(store):
    """The largest limit can be taken at once, and then nothing more; one more than it never could."""
    limit = limit_of(REQUESTS_MAX)
    assert not (await verdict(store, Charge(limit, b"k", REQUESTS_MAX + 1))).allowed
    assert (await verdict(store, Charge(limit, b"k", REQUESTS_MAX))).allowed
    assert not (await verdict(store, Charge(limit, b"k"))).allowed


async def test_same_key_is_summed(store):
    """Charges of one decision on the same key are counted on top of each other."""
    limit = limit_of(3)
    assert not (await verdict(store, Charge(limit, b"k", 2), Charge(limit, b"k", 2))).allowed
    answer = await verdict(store, Charge(limit, b"k"), Charge(limit, b"k", 2))
    assert [(o.used, o.remaining) for o in answer.outcomes] == [(1, 2), (3, 0)]


async def test_waiting_as_told_passes(store):
    """A denied caller who waits as long as it was told passes."""
    charge = Charge(limit_of(1, window_us=50_000), b"k")
    while (answer := await verdict(store, charge)).allowed:
        pass
    woken = asyncio.Event()
    asyncio.get_running_loop().call_later(answer.outcomes[0].retry_after_us / US_PER_S + 0.001, woken.set)
    await woken.wait()
    assert (await verdict(store, charge)).allowed
