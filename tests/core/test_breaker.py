"""The circuit breaker, by scenario."""

from __future__ import annotations

from sidecar.core.breaker import Breaker, BreakerState


def tripped(**settings: int) -> Breaker:
    breaker = Breaker(failures_max=3, open_us=100, open_us_max=400, **settings)
    for _ in range(3):
        assert breaker.admit(0)
        breaker.fail(0)
    return breaker


def test_opens_at_the_bound() -> None:
    """One failure less than the bound leaves it closed, and a success starts the count again."""
    breaker = Breaker(failures_max=3)
    for _ in range(2):
        breaker.fail(0)
    assert not breaker.untroubled
    breaker.succeed()
    assert breaker.untroubled
    for _ in range(2):
        breaker.fail(0)
    assert breaker.state is BreakerState.CLOSED
    breaker.fail(0)
    assert breaker.state is BreakerState.OPEN
    assert breaker.opened_total == 1


def test_open_refuses_until_its_time() -> None:
    """Open, it refuses; then it lets one probe through at a time."""
    breaker = tripped()
    assert not breaker.admit(99)
    assert breaker.admit(100)
    assert breaker.state is BreakerState.HALF_OPEN
    assert not breaker.admit(100)


def test_a_successful_probe_closes() -> None:
    """One answer is enough, and everything is as at the start."""
    breaker = tripped()
    breaker.admit(100)
    breaker.succeed()
    assert breaker.untroubled
    assert breaker.admit(100)


def test_failed_probes_wait_longer_each_time() -> None:
    """Each failed probe doubles the open time, up to its bound."""
    breaker, now = tripped(), 0
    for wait in (100, 200, 400, 400):
        assert not breaker.admit(now + wait - 1)
        now += wait
        assert breaker.admit(now)
        breaker.fail(now)


def test_late_answers_do_not_close_an_open_breaker() -> None:
    """The answer to a call made before it opened proves nothing about now."""
    breaker = tripped()
    breaker.succeed()
    assert not breaker.admit(50)


def test_a_released_probe_can_be_used_again() -> None:
    """A probe that was not made after all does not block the next."""
    breaker = tripped()
    assert breaker.admit(100)
    breaker.release()
    assert breaker.admit(100)


def test_news_allow_a_probe_at_once() -> None:
    """half_open shortens the wait of an open breaker and leaves a closed one alone."""
    breaker = tripped()
    breaker.half_open()
    assert breaker.admit(1)
    closed = Breaker()
    closed.half_open()
    assert closed.state is BreakerState.CLOSED
