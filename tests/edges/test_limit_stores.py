"""One behaviour suite for every store: in process, one server, the master of Sentinels, a Cluster, and two stores."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.core.limits import REQUESTS_MAX, US_PER_S, Algorithm, Charge, Limit, Op
from sidecar.edges.local_store import LocalStore
from sidecar.edges.redis_cluster import ClusterStore
from sidecar.edges.redis_endpoint import Login, RedisEndpoint
from sidecar.edges.redis_per_second import PerSecondStore
from sidecar.edges.redis_sentinel import SentinelStore
from sidecar.edges.redis_store import RedisStore
from tests.support.asking import PATIENCE_S, ask, running_store, verdict

HOUR_US = 3_600 * US_PER_S
ALGORITHMS = pytest.mark.parametrize("algorithm", list(Algorithm))


@pytest.fixture(params=["local", "single", "sentinel", "cluster", "per_second"])
async def store(request):
    if request.param == "local":
        yield LocalStore()
        return
    valkey = request.getfixturevalue("valkey") if request.param in {"single", "per_second"} else None
    if request.param == "single":
        built = RedisStore(RedisEndpoint(path=valkey.socket_path), timeout_s=PATIENCE_S)
    elif request.param == "per_second":
        two = [RedisEndpoint(path=valkey.socket_path, database=n) for n in range(2)]
        built = PerSecondStore(*(RedisStore(each, timeout_s=PATIENCE_S) for each in two))
    elif request.param == "sentinel":
        deployment = request.getfixturevalue("sentinel")
        built = SentinelStore(deployment.name, deployment.addresses, Login(), Login(), timeout_s=PATIENCE_S)
    else:
        built = ClusterStore(request.getfixturevalue("cluster").addresses[:1], Login(), timeout_s=PATIENCE_S)
    async with running_store(built) as started:
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


def apart(many, requests, **settings):
    """Limits whose counters lie in several slots, and the last one's in the store for seconds, if there is one."""
    names = [b"{%d}" % n for n in range(many)]
    limits = [limit_of(requests, **settings) for _ in names]
    return [Charge(limit, name) for limit, name in zip(limits, names, strict=True)]


async def used(store, charge):
    """What is counted now."""
    return (await verdict(store, Charge(charge.limit, charge.key, 0))).outcomes[0].used


async def until_used(store, charge, expected):
    """Refunds come after the answer."""
    async with asyncio.timeout(PATIENCE_S):
        while await used(store, charge) != expected:  # noqa: ASYNC110 - polls Redis
            await asyncio.sleep(0.002)


@ALGORITHMS
async def test_several_counters_admit_exactly_the_limit(store, algorithm):
    """Of 2,000 decisions at once over counters in several places, as many pass as the strictest limit says."""
    many = 200 if algorithm is Algorithm.CONCURRENCY else 2_000  # each of its charges looks at all holds
    charges = [*apart(3, many, algorithm=algorithm), Charge(limit_of(many // 6, algorithm), b"{strict}")]
    answers = await asyncio.gather(*(ask(store, *charges) for _ in range(many)))
    assert sum(answer.allowed for answer in answers) == many // 6
    for charge in charges:
        await until_used(store, charge, many // 6)


@ALGORITHMS
async def test_what_a_denied_decision_took_is_given_back(store, algorithm):
    """Wherever its counters lie, a denied decision leaves none of its costs behind, and its outcomes say so."""
    roomy = apart(4, 10, algorithm=algorithm)
    for charge in roomy:
        charge.cost = 3
    answer = await verdict(store, *roomy, Charge(limit_of(0, algorithm), b"{none}"))
    assert not answer.allowed
    assert [(o.allowed, o.used, o.remaining) for o in answer.outcomes] == [(True, 0, 10)] * 4 + [(False, 0, 0)]
    for charge in roomy:
        await until_used(store, charge, 0)


async def test_counters_that_count_denials_keep_them(store):
    """Nothing is given back where denied requests count, wherever the counters lie."""
    counted = apart(4, 10, count_denied=True, algorithm=Algorithm.FIXED_WINDOW)
    assert not (await verdict(store, *counted, Charge(limit_of(0), b"{none}"))).allowed
    assert [await used(store, charge) for charge in counted] == [1] * 4


async def test_a_shadow_limit_denies_nothing(store):
    """It is judged and said, and the decision is allowed, wherever the counters lie."""
    shadow = Charge(limit_of(0, shadow=True), b"{shadow}")
    answer = await verdict(store, shadow, *apart(3, 10))
    assert answer.allowed
    assert [outcome.allowed for outcome in answer.outcomes] == [False, True, True, True]


async def test_outcomes_keep_the_order_of_the_charges(store):
    """However a decision is split, each outcome stands where its charge does."""
    charges = apart(12, 100)
    for n, charge in enumerate(charges):
        charge.cost = n
    outcomes = (await verdict(store, *charges)).outcomes
    assert [outcome.used for outcome in outcomes] == list(range(12))
    assert [outcome.limit for outcome in outcomes] == [charge.limit for charge in charges]


async def test_what_is_no_take_always_happens(store):
    """FORCE counts beyond the limit and REFUND gives back, also beside a TAKE that is denied."""
    limit = limit_of(2)
    force = Charge(limit, b"{a}", 5, Op.FORCE)
    denied = Charge(limit_of(0), b"{b}")
    assert not (await verdict(store, force, denied)).allowed
    assert await used(store, force) == 5
    assert not (await verdict(store, Charge(limit, b"{a}", 4, Op.REFUND), denied)).allowed
    assert await used(store, force) == 1


async def test_a_settled_reservation_counts_what_was_needed(store):
    """A hold counts until it is settled; then the actual cost does."""
    limit = limit_of(100, hold_us=HOUR_US)
    assert (await verdict(store, Charge(limit, b"{a}", 60, hold=7), *apart(2, 10))).allowed
    assert not (await verdict(store, Charge(limit, b"{a}", 60, hold=8))).allowed
    assert (await verdict(store, Charge(limit, b"{a}", 15, Op.SETTLE, hold=7))).allowed
    assert await used(store, Charge(limit, b"{a}")) == 15


async def test_a_denied_decisions_hold_is_ended(store):
    """A reservation that was made while another counter denied is given back by its name."""
    limit = limit_of(100, hold_us=HOUR_US)
    assert not (await verdict(store, Charge(limit, b"{a}", 60, hold=7), Charge(limit_of(0), b"{none}"))).allowed
    await until_used(store, Charge(limit, b"{a}"), 0)


async def test_a_second_is_counted_beside_a_longer_window(store):
    """A decision over both kinds is all or nothing: the store for seconds is no exception."""
    second = Charge(limit_of(10, window_us=US_PER_S), b"{a}")
    assert (await verdict(store, second, Charge(limit_of(1), b"{a}"))).allowed
    assert not (await verdict(store, second, Charge(limit_of(1), b"{a}"))).allowed


@ALGORITHMS
async def test_reservations_at_once_never_exceed_the_limit(store, algorithm):
    """Of 300 reservations at once exactly as many hold as fit; what was not needed is free once they are settled."""
    limit = limit_of(777, algorithm, hold_us=HOUR_US)
    answers = await asyncio.gather(*(ask(store, Charge(limit, b"{a}", 7, hold=n)) for n in range(1, 301)))
    granted = [n for n, answer in enumerate(answers, 1) if answer.allowed]
    assert len(granted) == 777 // 7
    assert await used(store, Charge(limit, b"{a}")) == 777
    await asyncio.gather(*(ask(store, Charge(limit, b"{a}", 2, Op.SETTLE, hold=n)) for n in granted))
    left = 0 if algorithm is Algorithm.CONCURRENCY else 2 * len(granted)
    assert left - 1 <= await used(store, Charge(limit, b"{a}")) <= left
