"""The Lua against its oracle: the same histories on an injected clock must give the same answers and the same state."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.core.algorithms.account import State
from sidecar.core.algorithms.decide import decide
from sidecar.core.limits import REQUESTS_MAX, WINDOW_US_MAX, Algorithm, Charge, Limit
from sidecar.edges.scripts import charge_script

T0 = 1_800_000_000 * 1_000_000
SETTINGS = settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])

counts = st.one_of(st.integers(0, 5), st.integers(0, 300), st.integers(0, REQUESTS_MAX), st.just(REQUESTS_MAX))
windows_us = st.one_of(
    st.sampled_from([1_000, 1_000_000, 60_000_000, 86_400_000_000, WINDOW_US_MAX]), st.integers(1_000, WINDOW_US_MAX)
)
limits = st.builds(
    Limit,
    name=st.just("l"),
    requests=counts,
    window_us=windows_us,
    algorithm=st.sampled_from(list(Algorithm)),
    count_denied=st.booleans(),
)


class Script:
    """lua/charge.lua on a real server, with the clock given."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._sha = client.script_load(charge_script())

    def charge(self, charges: list[Charge], now_us: int | None) -> list[int]:
        keys = [charge.storage_key for charge in charges]
        arguments = [charge.limit.packed + struct.pack(">Q", charge.cost) for charge in charges]
        clock = b"" if now_us is None else b"%d" % now_us
        reply: Any = self.client.evalsha(self._sha, len(keys), *keys, clock, *arguments)
        return [number for numbers in reply for number in numbers]

    def state(self, charge: Charge) -> State | None:
        raw: Any = self.client.get(charge.storage_key)
        if raw is None:
            return None
        if charge.limit.algorithm is Algorithm.SLIDING_WINDOW:
            return State(*struct.unpack(">QII", raw))
        start_us, current = struct.unpack(">QI", raw)
        return State(start_us, 0, current)


@pytest.fixture
def script(valkey: object, valkey_admin: redis.Redis) -> Script:
    del valkey
    return Script(valkey_admin)


@SETTINGS
@given(st.data(), st.lists(limits, min_size=1, max_size=3))
def test_script_agrees_with_oracle(script: Script, data: st.DataObject, some: list[Limit]) -> None:
    """Over random histories, clock steps back included, every number and every stored state is the same."""
    script.client.flushall()
    states: dict[bytes, State] = {}
    now_us = T0 + data.draw(st.integers(0, 2 * WINDOW_US_MAX))
    for _ in range(data.draw(st.integers(1, 12))):
        window_us = some[0].window_us
        jump = st.one_of(st.integers(0, window_us), st.integers(-window_us, 3 * window_us), st.integers(-(10**15), 0))
        now_us = max(now_us + data.draw(jump), 10**15)
        charge = st.builds(Charge, st.sampled_from(some), st.sampled_from([b"a", b"b"]), counts)
        charges = data.draw(st.lists(charge, min_size=1, max_size=4))
        decided = decide(charges, now_us, states.get)
        states.update((write.key, write.state) for write in decided.writes)
        expected = [
            number
            for o in decided.outcomes
            for number in (int(o.allowed), o.used, o.remaining, o.retry_after_us, o.reset_after_us)
        ]
        assert script.charge(charges, now_us) == expected
        assert [script.state(charge) for charge in charges] == [states.get(charge.storage_key) for charge in charges]


@SETTINGS
@given(st.data(), st.integers(1, REQUESTS_MAX), windows_us)
def test_waiting_exactly_as_told_passes(script: Script, data: st.DataObject, requests: int, window_us: int) -> None:
    """In Redis, too, a denied charge passes after exactly retry_after_us, and not one microsecond earlier."""
    script.client.flushall()
    limit = Limit(name="l", requests=requests, window_us=window_us)
    now_us = T0
    for _ in range(6):
        now_us += data.draw(st.integers(0, window_us))
        cost = data.draw(st.integers(1, requests))
        allowed, _, _, retry_after_us, _ = script.charge([Charge(limit, b"k", cost)], now_us)
        if not allowed:
            charge = [Charge(limit, b"k", cost)]
            assert script.charge(charge, now_us + retry_after_us - 1)[0] == 0
            assert script.charge(charge, now_us + retry_after_us)[0] == 1
            return


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_counters_expire_when_they_no_longer_matter(script: Script, algorithm: Algorithm) -> None:
    """A counter lives exactly as long as it matters, and at most two milliseconds more; a peek leaves nothing."""
    limit = Limit(name="l", requests=3, window_us=3_600_000_000, algorithm=algorithm)
    script.charge([Charge(limit, b"k", 0)], None)
    assert script.client.dbsize() == 0
    for _ in range(5):
        reset_after_us = script.charge([Charge(limit, b"k")], None)[4]
        lives_ms: Any = script.client.pttl(Charge(limit, b"k").storage_key)
        assert lives_ms <= reset_after_us / 1000 + 2
        seconds, microseconds = script.client.time()
        ends_us = seconds * 1_000_000 + microseconds + lives_ms * 1000
        windows = 2 if algorithm is Algorithm.SLIDING_WINDOW else 1
        assert ends_us >= (seconds * 1_000_000 // limit.window_us + windows) * limit.window_us - 1000


def test_long_lifetimes_are_understood(script: Script) -> None:
    """The longest window's lifetime (twelve digits and trailing zeros) is written as an integer."""
    limit = Limit(name="l", requests=3, window_us=WINDOW_US_MAX)
    assert script.charge([Charge(limit, b"k")], None)[0] == 1


def test_wrong_type_leaves_nothing_written(script: Script) -> None:
    """A key of another type fails the whole decision before anything is written."""
    limit = Limit(name="l", requests=3, window_us=60_000_000)
    good, bad = Charge(limit, b"good"), Charge(limit, b"bad")
    script.client.rpush(bad.storage_key, b"x")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        script.charge([good, bad], None)
    assert script.client.exists(good.storage_key) == 0


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_foreign_value_is_an_error(script: Script, algorithm: Algorithm) -> None:
    """A string that is no state of ours is refused, not misread."""
    charge = Charge(Limit(name="l", requests=3, window_us=60_000_000, algorithm=algorithm), b"k")
    for raw in (b"", b"12", b"x" * 100):
        script.client.set(charge.storage_key, raw)
        with pytest.raises(redis.ResponseError, match="something other than"):
            script.charge([charge], None)


def test_out_of_memory_takes_all_or_nothing(script: Script) -> None:
    """At maxmemory no charge of a decision is taken, and denials are still answered."""
    limit = Limit(name="l", requests=1, window_us=3_600_000_000)
    full, fresh = Charge(limit, b"full"), Charge(limit, b"fresh")
    assert script.charge([full], None)[0] == 1
    before: Any = script.client.config_get("maxmemory")["maxmemory"]
    script.client.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.ResponseError, match="maxmemory"):
            script.charge([fresh, Charge(limit, b"fresh2")], None)
        assert script.charge([full], None)[0] == 0
    finally:
        script.client.config_set("maxmemory", before)
    assert script.client.dbsize() == 1
