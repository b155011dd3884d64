"""What handlers are told of time."""

from __future__ import annotations

import math
from time import monotonic

import pytest

from sidecar.transport.service import ANSWER_MARGIN_S, wait_until


@pytest.mark.parametrize("left_s", [10.0, 0.15, 2 * ANSWER_MARGIN_S])
def test_a_handler_stops_waiting_some_time_before_its_deadline(left_s: float) -> None:
    """There is always time left to answer in."""
    deadline = monotonic() + left_s
    assert wait_until(deadline) == pytest.approx(deadline - ANSWER_MARGIN_S, abs=1e-3)


def test_short_patience_is_shared_with_what_is_waited_for() -> None:
    """Half of it at least; nothing of a deadline that has passed, and all of an infinite one."""
    now = monotonic()
    assert now < wait_until(now + ANSWER_MARGIN_S) < now + ANSWER_MARGIN_S
    assert wait_until(now - 1) == now - 1
    assert wait_until(math.inf) == math.inf
