"""Turns to verify: as many as a turn of the loop has room for, the rest in order, bounded, and none for nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sidecar.core.authn import NeedTurn
from sidecar.core.token import UnverifiedToken, parse
from sidecar.edges.turns import TURN_MAX, WAITING_MAX, VerificationTurns
from tests.support.deciding import token

if TYPE_CHECKING:
    from collections.abc import Callable


class Loop:
    """A loop whose turns are counted, and a clock that is set."""

    def __init__(self) -> None:
        self.now = 0.0
        self._next: list[Callable[[], None]] = []
        self.turns = VerificationTurns(self._next.append, lambda: self.now)
        self.found: list[tuple[int, UnverifiedToken | None]] = []

    def turn(self) -> bool:
        """Whether anything was to be done."""
        steps = self._next[:]
        del self._next[:]
        for step in steps:
            step()
        return bool(steps)

    def ask(self, number: int, deadline: float = 1.0) -> None:
        self.turns.ask(NEED, deadline, lambda found: self.found.append((number, found)))

    @property
    def served(self) -> list[int]:
        return [number for number, found in self.found if found is NEED.token]


def _parsed() -> UnverifiedToken:
    parsed = parse(token())
    assert isinstance(parsed, UnverifiedToken)
    return parsed


NEED = NeedTurn(_parsed())


def test_one_turn_has_room_for_so_many_and_the_next_for_as_many_again() -> None:
    """N at once, N + 1 not; after the turn of the loop N again, and then the loop is left alone."""
    loop = Loop()
    for _ in range(2):
        assert [loop.turns.take() for _ in range(TURN_MAX + 1)] == [True] * TURN_MAX + [False]
        assert loop.turn()
    assert not loop.turn()


def test_whoever_waits_is_served_in_order_a_slice_a_turn_before_whoever_comes() -> None:
    """First come, first served; nobody overtakes; afterwards it is at once again."""
    loop = Loop()
    while loop.turns.take():
        pass
    for number in range(2 * TURN_MAX + 1):
        loop.ask(number)
    for turn in (1, 2):
        loop.turn()
        assert loop.served == list(range(turn * TURN_MAX))
        assert not loop.turns.take()
    loop.turn()
    assert loop.served == list(range(2 * TURN_MAX + 1))
    assert loop.turns.take()
    while loop.turn():
        pass
    assert len(loop.turns) == 0
    assert (loop.turns.deferred, loop.turns.refused, loop.turns.late) == (2 * TURN_MAX + 1, 0, 0)


def test_so_many_wait_and_not_one_more() -> None:
    """N wait; the next is told at once that it does not, and those before it keep their places."""
    loop = Loop()
    for number in range(WAITING_MAX):
        loop.ask(number)
    assert (len(loop.turns), loop.found) == (WAITING_MAX, [])
    loop.ask(WAITING_MAX)
    assert loop.found == [(WAITING_MAX, None)]
    assert (len(loop.turns), loop.turns.refused) == (WAITING_MAX, 1)
    while loop.turn():
        pass
    assert loop.served == list(range(WAITING_MAX))


def test_whose_time_is_over_gets_no_turn() -> None:
    """At its deadline a token is not verified any more; just before, it is."""
    loop = Loop()
    loop.ask(0, deadline=1.0)
    loop.ask(1, deadline=1.001)
    loop.now = 1.0
    loop.turn()
    assert loop.found == [(0, None), (1, NEED.token)]
    assert loop.turns.late == 1


def test_one_who_fails_takes_nobodys_turn() -> None:
    """Whatever a Check does with its turn, those behind it get theirs, and those who come later."""
    loop = Loop()

    def fail(_found: UnverifiedToken | None) -> None:
        raise RuntimeError("out of order")

    loop.turns.ask(NEED, 1.0, fail)
    loop.ask(1)
    with pytest.raises(RuntimeError, match="out of order"):
        loop.turn()
    while loop.turn():
        pass
    assert loop.served == [1]
    assert loop.turns.take()
