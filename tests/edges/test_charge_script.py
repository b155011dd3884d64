"""The Lua against its oracle: the same histories on an injected clock must give the same answers and the same state."""

from __future__ import annotations

import struct
import time
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.core.algorithms.account import State
from sidecar.core.algorithms.decide import Decided, decide
from sidecar.core.algorithms.gcra import GcraState
from sidecar.core.algorithms.holds import Hold
from sidecar.core.algorithms.sliding_log import LogState
from sidecar.core.algorithms.windows import FixedState, SlidingState
from sidecar.core.calendars import Calendar, Period
from sidecar.core.limits import WINDOW_US_MAX, Algorithm, Charge, Limit, Op
from sidecar.edges.charge_command import pack_charge
from sidecar.edges.scripts import charge_script
from tests.support.limit_strategies import T0_US, charges_of, limits

SETTINGS = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Script:
    """lua/charge.lua on a real server, with the clock given."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._sha = client.script_load(charge_script())

    def charge(self, charges: list[Charge], now_us: int | None) -> list[int]:
        if now_us is None:
            return self.call(charges, [pack_charge(charge) for charge in charges], b"")
        return self.call(charges, [pack_charge(charge, lambda: now_us) for charge in charges], b"%d" % now_us)

    def call(self, charges: list[Charge], arguments: list[bytes], clock: bytes) -> list[int]:
        keys = [charge.storage_key for charge in charges]
        reply: Any = self.client.evalsha(self._sha, len(keys), *keys, clock, *arguments)
        return [number for numbers in reply for number in numbers]

    def state(self, charge: Charge) -> State | None:
        """What is stored, as the oracle has it."""
        raw: Any = self.client.get(charge.storage_key)
        return None if raw is None else State(*_read(charge.limit.algorithm, raw))


def _numbers(decided: Decided) -> list[int]:
    """What the oracle says, as the script does."""
    return [
        number
        for o in decided.outcomes
        for number in (int(o.allowed), o.used, o.remaining, o.retry_after_us, o.reset_after_us)
    ]


def _read(algorithm: Algorithm, raw: bytes) -> tuple[Any, tuple[Hold, ...]]:
    match algorithm:
        case Algorithm.SLIDING_WINDOW:
            return SlidingState(*struct.unpack(">QII", raw[:16])), _read_holds(raw[16:])
        case Algorithm.FIXED_WINDOW:
            return FixedState(*struct.unpack(">QI", raw[:12])), _read_holds(raw[12:])
        case Algorithm.GCRA:
            return GcraState(*struct.unpack(">QIQ", raw[:20])), _read_holds(raw[20:])
        case Algorithm.SLIDING_LOG:
            count, base = struct.unpack(">II", raw[:8])
            entries = list(struct.iter_unpack(">QI", raw[8 : 8 + 12 * count]))
            log = [(time_us, (total - base) % 2**32) for time_us, total in entries]
            return log, _read_holds(raw[8 + 12 * count :])
        case Algorithm.CONCURRENCY:
            assert raw
            return None, _read_holds(raw)


def _read_holds(raw: bytes) -> tuple[Hold, ...]:
    if not raw:
        return ()
    holds = tuple(Hold(*each) for each in struct.iter_unpack(">QQI", raw[:-12]))
    assert struct.unpack(">IQ", raw[-12:]) == (len(holds), sum(hold.amount for hold in holds))
    return holds


def _comparable(state: State | None) -> State | None:
    """A log without the running total before it, which is whatever it is."""
    if state is None or not isinstance(state.counted, LogState):
        return state
    base, times_us, totals = state.counted
    return State([(at_us, total - base) for at_us, total in zip(times_us, totals, strict=True)], state.holds)


@pytest.fixture
def script(valkey: object, valkey_admin: redis.Redis) -> Script:
    del valkey
    return Script(valkey_admin)


class BothSides:
    """The script and its oracle, asked the same."""

    def __init__(self, script: Script, now_us: int) -> None:
        script.client.flushall()
        self.script = script
        self.now_us = now_us
        self.states: dict[bytes, State] = {}

    def charge(self, charges: list[Charge]) -> None:
        decided = decide(charges, self.now_us, self.states.get)
        self.states.update((write.key, write.state) for write in decided.writes)
        assert self.script.charge(charges, self.now_us) == _numbers(decided)
        for charge in charges:
            assert self.script.state(charge) == _comparable(self.states.get(charge.storage_key))


@SETTINGS
@given(st.data(), st.lists(limits(), min_size=1, max_size=3))
def test_script_agrees_with_oracle(script: Script, data: st.DataObject, some: list[Limit]) -> None:
    """Over random histories, clock steps back included, every number and every stored state is the same."""
    both = BothSides(script, T0_US + data.draw(st.integers(0, 2 * WINDOW_US_MAX)))
    window_us, hold_us = some[0].window_us, some[0].hold_time_us
    jumps = st.one_of(
        st.integers(0, window_us),
        st.integers(-window_us, 3 * window_us),
        st.integers(0, 3 * hold_us),
        st.integers(-(10**15), 0),
    )
    for _ in range(data.draw(st.integers(1, 12))):
        both.now_us = max(both.now_us + data.draw(jumps), 10**15)
        both.charge(data.draw(st.lists(charges_of(some), min_size=1, max_size=4)))


@SETTINGS
@given(
    st.data(),
    limits(requests=st.integers(0, 12), windows=st.integers(1_000, 3_000)),
    st.lists(st.tuples(st.integers(0, 400) | st.integers(-50, 0), st.integers(0, 4)), min_size=20, max_size=40),
)
def test_script_agrees_with_oracle_step_by_step(
    script: Script, data: st.DataObject, limit: Limit, steps: list[tuple[int, int]]
) -> None:
    """The same over longer histories of small charges of one limit, with many entries and holds."""
    both = BothSides(script, T0_US)
    for step, cost in steps:
        both.now_us += step
        op = data.draw(st.sampled_from([Op.TAKE] * 8 + list(Op)))
        both.charge([Charge(limit, b"k", cost, op, data.draw(st.integers(0, 6)))])


PROBE = Charge(Limit(name="p", requests=0, window_us=WINDOW_US_MAX, algorithm=Algorithm.FIXED_WINDOW), b"p", 0)
"""Its reset tells what time it is on the server, to the microsecond."""


@SETTINGS
@given(
    st.data(),
    st.lists(limits(requests=st.integers(0, 9), windows=st.integers(1_000, 5_000)), min_size=1, max_size=2),
    st.integers(20, 40),
)
def test_script_agrees_with_oracle_on_the_servers_time(
    script: Script, data: st.DataObject, some: list[Limit], decisions: int
) -> None:
    """What comes of charges is the same on Redis's own clock, while windows and holds pass and counters expire."""
    script.client.flushall()
    states: dict[bytes, State] = {}
    charges = charges_of(some, st.integers(0, 3))
    for _ in range(decisions):
        some_charges = [PROBE, *data.draw(st.lists(charges, min_size=1, max_size=2))]
        seconds, _ = script.client.time()
        reply = script.charge(some_charges, None)
        ends_us = (seconds * 1_000_000 // WINDOW_US_MAX + 1) * WINDOW_US_MAX
        decided = decide(some_charges, ends_us - reply[4], states.get)
        states.update((write.key, write.state) for write in decided.writes)
        assert reply == _numbers(decided)


@SETTINGS
@given(st.data(), limits(requests=st.integers(1, 20)))
def test_waiting_exactly_as_told_passes(script: Script, data: st.DataObject, limit: Limit) -> None:
    """In Redis, too, a denied charge passes after exactly retry_after_us, and not one microsecond earlier."""
    script.client.flushall()
    now_us = T0_US
    steps = st.tuples(st.integers(0, limit.window_us), charges_of([limit], st.integers(0, limit.capacity)))
    for step, charge in data.draw(st.lists(steps, max_size=12)):
        now_us += step
        allowed, _, _, retry_after_us, _ = script.charge([charge], now_us)
        if not allowed and not limit.count_denied:
            now_us += retry_after_us
            assert script.charge([charge], now_us - 1)[0] == 0
            assert script.charge([charge], now_us)[0] == 1


@pytest.mark.parametrize("algorithm", list(Algorithm))
@pytest.mark.parametrize("hold_us", [0, 9_000_000_000])
def test_counters_expire_when_they_no_longer_matter(script: Script, algorithm: Algorithm, hold_us: int) -> None:
    """A counter lives as long as it and its holds matter, and at most two milliseconds more; a peek leaves nothing."""
    limit = Limit(name="l", requests=30, window_us=3_600_000_000, algorithm=algorithm, hold_us=hold_us)
    script.charge([Charge(limit, b"k", 0)], None)
    assert script.client.dbsize() == 0
    for op in (Op.TAKE, Op.TAKE, Op.FORCE, Op.REFUND, Op.SETTLE):
        hold = 1 if hold_us and op in (Op.TAKE, Op.SETTLE) else 0
        before_us = _server_us(script.client)
        reset_after_us = script.charge([Charge(limit, b"k", 1, op, hold)], None)[4]
        after_us = _server_us(script.client)
        expires_ms: Any = script.client.pexpiretime(Charge(limit, b"k").storage_key)
        assert before_us + reset_after_us <= expires_ms * 1_000 <= after_us + reset_after_us + 2_000
        assert reset_after_us <= max(hold_us, 2 * limit.window_us)


def _server_us(client: redis.Redis) -> int:
    seconds, microseconds = client.time()
    return int(seconds) * 1_000_000 + int(microseconds)


def test_nothing_is_left_behind(script: Script) -> None:
    """Once all windows and holds have passed no key is left, whatever was done to it."""
    for number, algorithm in enumerate(Algorithm):
        limit = Limit(name="l", requests=5, window_us=5_000, algorithm=algorithm, hold_us=7_000)
        for op in Op:
            for hold in (0, 1):
                script.charge([Charge(limit, b"%d-%d-%d" % (number, op, hold), 2, op, hold)], None)
    deadline = time.monotonic() + 10
    while script.client.dbsize() and time.monotonic() < deadline:
        pass
    assert script.client.dbsize() == 0


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_a_refund_of_nothing_writes_nothing(script: Script, algorithm: Algorithm) -> None:
    """Giving back what was never taken leaves no key; nor does ending a hold that is not there."""
    limit = Limit(name="l", requests=3, window_us=3_600_000_000, algorithm=algorithm, hold_us=1_000_000)
    for hold in (0, 1):
        assert script.charge([Charge(limit, b"k", 2, Op.REFUND, hold)], None)[:2] == [1, 0]
    assert script.client.dbsize() == 0


def test_a_clock_outside_of_the_calendar_is_an_error(script: Script) -> None:
    """Where the server's clock lies outside of the windows sent the decision fails, and nothing is written."""
    calendar = Calendar(Period.DAY, "Europe/Berlin", ZoneInfo("Europe/Berlin"))
    limit = Limit(name="l", requests=3, window_us=86_400_000_000, algorithm=Algorithm.FIXED_WINDOW, calendar=calendar)
    before, _, _, later = calendar.around(T0_US).starts
    charges = [Charge(Limit(name="l", requests=3, window_us=60_000_000), b"other"), Charge(limit, b"k")]
    arguments = [pack_charge(charge, lambda: T0_US) for charge in charges]
    for server_us, works in ((before - 1, False), (before, True), (later - 1, True), (later, False)):
        if works:
            assert script.call(charges, arguments, b"%d" % server_us)[5] == 1
        else:
            with pytest.raises(redis.ResponseError, match="disagree by more than a calendar window"):
                script.call(charges, arguments, b"%d" % server_us)
            assert script.client.dbsize() == 0 or server_us == later


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
