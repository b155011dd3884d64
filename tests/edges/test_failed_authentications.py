"""Refused credentials are counted by their source over all sidecars, on a real Valkey, and with none."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from sidecar.core.audit import DecisionEvent
from sidecar.core.context import RequestContext
from sidecar.core.decision import Decision, DenyReason
from sidecar.core.limits import US_PER_S, Limit
from sidecar.core.suspects import Suspects
from sidecar.edges import failed_authentications
from sidecar.edges.failed_authentications import FailedAuthentications
from sidecar.edges.local_store import LocalStore
from sidecar.edges.redis_endpoint import RedisEndpoint
from sidecar.edges.redis_store import RedisStore
from tests.support.asking import redis_store, until
from tests.support.limiting import CountedStore

if TYPE_CHECKING:
    from sidecar.core.limits import LimitStore
    from sidecar.edges.embedded_valkey import EmbeddedValkey

LIMIT = Limit(name="failed-authentications", requests=5, window_us=60 * US_PER_S)
SOURCE = "192.0.2.1"


def event(source: str = SOURCE, reason: DenyReason | None = DenyReason.TOKEN_SIGNATURE_INVALID) -> DecisionEvent:
    request = RequestContext(request_id="", method="GET", host="h", path="/", source_address=source)
    return DecisionEvent(0, 0, request, Decision(reason, None, None, (), 1))


class Sidecar:
    """The part of one that counts failures."""

    def __init__(self, store: LimitStore, local: LimitStore | None = None) -> None:
        self.suspects = Suspects()
        local = local or LocalStore()
        self.failures = FailedAuthentications(LIMIT, "sidecar", self.suspects, store, local, _now_us)

    def fail(self, count: int, source: str = SOURCE) -> None:
        self.failures.observe([event(source)] * count)

    def suspects_it(self, source: str = SOURCE) -> bool:
        return self.suspects.wait_us(source, _now_us()) > 0


def _now_us() -> int:
    return time.time_ns() // 1000


async def test_failures_are_counted_over_all_sidecars(valkey: EmbeddedValkey) -> None:
    """Up to the budget nothing happens; the next failure, at whichever sidecar, makes a suspect there."""
    endpoint = RedisEndpoint(path=valkey.socket_path)
    async with redis_store(endpoint) as store, redis_store(endpoint) as another:
        one, two = Sidecar(store), Sidecar(another)
        one.fail(3)
        two.fail(2)
        await until(lambda: one.failures.counted_total == 3 and two.failures.counted_total == 2)
        two.fail(1, "2001:db8::1")
        two.fail(1, "2001:db8::2")
        await until(lambda: two.failures.counted_total == 4)
        assert not one.suspects_it()
        assert not two.suspects_it()
        two.fail(1)
        await until(two.suspects_it)
        assert not one.suspects_it()
        one.fail(1)
        await until(one.suspects_it)
        assert not two.suspects_it("2001:db8::3")
        two.fail(4, "2001:db8::3")
        await until(lambda: two.suspects_it("2001:db8::4"))
        for sidecar in (one, two):
            sidecar.failures.close()


async def test_a_burst_makes_a_suspect_at_once(valkey: EmbeddedValkey) -> None:
    """Before the store has answered, and for a whole window after it has."""
    async with redis_store(RedisEndpoint(path=valkey.socket_path)) as store:
        one = Sidecar(store)
        one.fail(5)
        assert not one.suspects_it()
        one.fail(1)
        assert one.suspects_it()
        await until(lambda: one.suspects.wait_us(SOURCE, _now_us()) > 50 * US_PER_S)
        one.failures.close()


async def test_without_redis_each_sidecar_counts_for_itself() -> None:
    """A store that does not answer opens no way to guess faster."""
    one = Sidecar(RedisStore(RedisEndpoint(path="/nowhere")))
    one.fail(5)
    await until(lambda: one.failures.counted_total == 5)
    assert not one.suspects_it()
    one.fail(1)
    await until(one.suspects_it)
    one.failures.close()


async def test_failures_of_one_source_are_one_charge() -> None:
    """However many come between two flushes."""
    store = CountedStore(LocalStore())
    one = Sidecar(store)
    one.fail(4)
    one.fail(1)
    await until(lambda: one.failures.counted_total == 5)
    assert len(store.asked) == 1
    one.failures.close()


async def test_sources_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than may wait is dropped and counted as such; those that wait are charged for in turn."""
    monkeypatch.setattr(failed_authentications, "WAITING_MAX", 3)
    monkeypatch.setattr(failed_authentications, "FLUSHED_MAX", 2)
    one = Sidecar(LocalStore())
    for number in range(4):
        one.fail(1, f"192.0.2.{number}")
    one.fail(1, "192.0.2.0")
    assert one.failures.dropped_total == 1
    await until(lambda: one.failures.counted_total == 4)
    one.failures.close()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (SOURCE, None),
        (SOURCE, DenyReason.TOKEN_EXPIRED),
        (SOURCE, DenyReason.LIMIT_EXCEEDED),
        (SOURCE, DenyReason.AUTHENTICATIONS_FAILED_TOO_OFTEN),
        ("", DenyReason.TOKEN_SIGNATURE_INVALID),
        ("not an address", DenyReason.TOKEN_SIGNATURE_INVALID),
    ],
)
async def test_what_is_no_failure_of_a_known_source_is_not_counted(source: str, reason: DenyReason | None) -> None:
    """Not an answer to a suspect either: its time would never end."""
    one = Sidecar(LocalStore())
    one.failures.observe([event(source, reason)] * 100)
    one.fail(1, "192.0.2.9")
    await until(lambda: one.failures.counted_total == 1)
    assert len(one.suspects) == 0
    one.failures.close()
