"""The pure parts: framing, timeouts, percent-encoding, and the deadline wheel."""

from __future__ import annotations

import asyncio
import itertools
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.transport import grpc_framing
from sidecar.transport.deadlines import TICK_S, YOUNG_MAX, YOUNG_S, DeadlineWheel
from sidecar.transport.grpc_framing import FramingError, MessageReader
from sidecar.transport.service import Refusal
from tests.support.http2_peer import eventually

UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


@given(st.integers(0, 99_999_999), st.sampled_from(sorted(UNITS)))
def test_every_timeout_of_the_grammar_is_read(count: int, unit: bytes) -> None:
    """One to eight digits and a unit."""
    assert grpc_framing.timeout_seconds(b"%d" % count + unit) == count * UNITS[unit]


@given(st.binary(max_size=12))
def test_nothing_else_is_a_timeout(value: bytes) -> None:
    """Arbitrary bytes are read as the grammar says or refused with ValueError."""
    good = value[-1:] in UNITS and 1 <= len(value) - 1 <= 8 and all(0x30 <= byte <= 0x39 for byte in value[:-1])
    if good:
        grpc_framing.timeout_seconds(value)
    else:
        with pytest.raises(ValueError, match="grpc-timeout"):
            grpc_framing.timeout_seconds(value)


def test_the_answer_leaves_a_margin_before_the_callers_deadline() -> None:
    """Ten percent, and no less than two milliseconds."""
    assert grpc_framing.answer_within_seconds(0.2) == pytest.approx(0.18)
    assert grpc_framing.answer_within_seconds(0.01) == pytest.approx(0.008)
    assert grpc_framing.answer_within_seconds(0.001) < 0


@given(st.text(max_size=40))
def test_percent_encoding_is_printable_and_reversible(message: str) -> None:
    """Any text becomes printable ASCII and comes back."""
    encoded = grpc_framing.percent_encode(message)
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    assert unquote(encoded.decode("ascii")) == message.encode("utf-8", "replace").decode("utf-8")


@given(st.lists(st.binary(max_size=30), max_size=6), st.lists(st.integers(1, 20), min_size=1, max_size=20))
def test_messages_come_out_as_they_went_in_wherever_the_bytes_are_cut(messages: list[bytes], cuts: list[int]) -> None:
    """The reader's result does not depend on how the stream was cut."""
    stream = b"".join(grpc_framing.frame(message) for message in messages)
    reader = MessageReader(b"", 30)
    found: list[bytes] = []
    sizes = itertools.cycle(cuts)
    while stream:
        size = next(sizes)
        found += reader.feed(stream[:size])
        stream = stream[size:]
    assert found == messages
    assert reader.fault is None
    assert reader.pending_bytes == 0


@given(st.binary(max_size=60))
def test_sole_message_agrees_with_the_reader(data: bytes) -> None:
    """Both readers accept the same bodies of one message."""
    try:
        sole = [grpc_framing.sole_message(data, b"", 20)]
    except FramingError:
        sole = []
    reader = MessageReader(b"", 20)
    read = reader.feed(data)
    whole = reader.fault is None and not reader.pending_bytes
    assert (read if whole and len(read) == 1 else []) == sole


def test_a_framing_error_names_its_refusal() -> None:
    """The largest size passes, one more does not."""
    grpc_framing.sole_message(grpc_framing.frame(b"x" * 20), b"", 20)
    with pytest.raises(FramingError) as fault:
        grpc_framing.sole_message(grpc_framing.frame(b"x" * 21), b"", 20)
    assert fault.value.refusal is Refusal.MESSAGE_TOO_LARGE


class _Item:
    def __init__(self, name: str, expired: list[str], deadline: float = 0.0) -> None:
        self.bucket: int | None = None
        self.deadline = deadline
        self.over = False
        self._name = name
        self._expired = expired

    def expire(self) -> None:
        self._expired.append(self._name)


async def test_deadlines_expire_in_order_and_discarded_ones_do_not() -> None:
    """Items added in any order expire by deadline; a discarded one never; all end outside of the wheel."""
    loop = asyncio.get_running_loop()
    expired: list[str] = []
    wheel = DeadlineWheel(loop)
    items = {name: _Item(name, expired) for name in ("late", "early", "dropped", "far")}
    now = loop.time()
    wheel.add(now + 20 * TICK_S, items["late"])
    wheel.add(now + 2 * TICK_S, items["early"])
    wheel.add(now + 10 * TICK_S, items["dropped"])
    wheel.add(now + 1000, items["far"])
    wheel.discard(items["dropped"])
    wheel.discard(items["dropped"])
    await eventually(lambda: len(expired) == 2)
    assert expired == ["early", "late"]
    assert [items[name].bucket for name in ("early", "late", "dropped")] == [None] * 3
    assert items["far"].bucket is not None
    wheel.close()


async def test_a_deadline_is_never_late_by_its_own_doing() -> None:
    """The bucket opens at or before the deadline, less than a tick early (a second, where it is far away)."""
    loop = asyncio.get_running_loop()
    wheel = DeadlineWheel(loop)
    for ahead, slack in ((0.01, TICK_S), (0.1, TICK_S), (60.0, 1.0), (360_000.0, 1.0)):
        item = _Item("", [])
        deadline = loop.time() + ahead
        wheel.add(deadline, item)
        assert item.bucket is not None
        assert 0 <= deadline - item.bucket * TICK_S < slack + 1e-6
    wheel.close()


async def test_what_is_watched_expires_unless_it_is_over() -> None:
    """Near deadlines have a bucket at once, far ones once they are looked through, passed ones expire at once."""
    loop = asyncio.get_running_loop()
    wheel = DeadlineWheel(loop)
    expired: list[str] = []
    now = loop.time()
    ahead = {"passed": 0.0, "near": YOUNG_S, "far": 2 * YOUNG_S, "over": 2 * YOUNG_S}
    items = {name: _Item(name, expired, now + ahead_s) for name, ahead_s in ahead.items()}
    wheel.watch(items.values(), now)
    assert expired == ["passed"]
    assert items["near"].bucket is not None
    assert wheel.young == 2
    items["over"].over = True
    await eventually(lambda: wheel.young == 0)
    assert items["over"].bucket is None
    await eventually(lambda: len(expired) == 3)
    assert expired == ["passed", "near", "far"]
    wheel.close()


async def test_what_is_young_is_bounded() -> None:
    """One more than `YOUNG_MAX` has all looked through at once: those that are over are let go."""
    loop = asyncio.get_running_loop()
    wheel = DeadlineWheel(loop)
    now = loop.time()
    items = [_Item("", [], now + 60) for _ in range(YOUNG_MAX + 1)]
    for item in items[1:]:
        item.over = True
    wheel.watch(items[:YOUNG_MAX], now)
    assert wheel.young == YOUNG_MAX
    wheel.watch(items[YOUNG_MAX:], now)
    assert wheel.young == 0
    assert [item for item in items if item.bucket is not None] == [items[0]]
    wheel.close()
