"""Names of reservations: each has one, and nothing else is read as one."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.reservations import (
    HELD_MAX,
    HOLD_MAX,
    KEY_BYTES_MAX,
    LIMIT_ID_BYTES_MAX,
    NAME_CHARS_MAX,
    Held,
    Reservation,
    ReservationError,
    encode,
    parse,
)

HELD = st.builds(Held, st.text(min_size=1, max_size=20), st.binary(min_size=1, max_size=80))
RESERVATIONS = st.builds(
    Reservation,
    st.integers(1, HOLD_MAX),
    st.lists(HELD, min_size=1, max_size=HELD_MAX, unique=True).map(tuple),
)
ONE = Reservation(7, (Held("tokens", b"sidecar:tokens:{8d2d3f0c5f6bb1f2a9f2b9b2a8a9e7c1}"),))


@given(RESERVATIONS)
def test_a_name_is_read_back_as_what_it_names(reservation):
    """Encode and parse are each other's inverse, and a name needs no quoting anywhere."""
    name = encode(reservation)
    assert parse(name) == reservation
    assert name.replace("-", "").replace("_", "").isalnum()
    assert name.isascii()


@given(st.text(st.sampled_from("ABCDabcd0129-_="), max_size=80) | st.text(max_size=40))
def test_other_text_is_refused_or_is_the_one_name_of_what_it_names(text):
    """Whatever parses is spelled exactly as encode spells it."""
    try:
        found = parse(text)
    except ReservationError:
        return
    assert encode(found) == text


@given(RESERVATIONS, st.data())
def test_a_damaged_name_never_reads_as_the_same_reservation(reservation, data):
    """One character changed, dropped or added: refused, or another reservation."""
    name = encode(reservation)
    at = data.draw(st.integers(0, len(name) - 1))
    new = data.draw(st.sampled_from(["", "A", "_", name[at] * 2, "=", " "]))
    damaged = name[:at] + new + name[at + 1 :]
    if damaged == name:
        return
    with suppress(ReservationError):
        assert parse(damaged) != reservation


@pytest.mark.parametrize("cut", range(1, len(encode(ONE))))
def test_a_name_cut_short_is_refused(cut):
    """No prefix of a name is a name."""
    with pytest.raises(ReservationError):
        parse(encode(ONE)[:cut])


def test_bounds_at_n_and_beyond():
    """HELD_MAX counters, HOLD_MAX, the longest id and key are named; one more is not."""
    held = tuple(Held(f"{n}", b"k") for n in range(HELD_MAX))
    longest = Held("l" * LIMIT_ID_BYTES_MAX, b"k" * KEY_BYTES_MAX)
    for good in (Reservation(HOLD_MAX, held), Reservation(1, (longest,))):
        assert parse(encode(good)) == good
    for hold, bad in (
        (1, (*held, Held("more", b"k"))),
        (1, ()),
        (0, held),
        (HOLD_MAX + 1, held),
        (1, (Held("a", b"k"), Held("a", b"k"))),
        (1, (Held("l" * (LIMIT_ID_BYTES_MAX + 1), b"k"),)),
        (1, (Held("l", b"k" * (KEY_BYTES_MAX + 1)),)),
        (1, (Held("", b"k"),)),
        (1, (Held("l", b""),)),
    ):
        with pytest.raises(ReservationError):
            Reservation(hold, bad)


def test_the_largest_reservation_has_a_name_that_is_read():
    """NAME_CHARS_MAX admits every reservation; longer text is refused unread."""
    held = tuple(Held(f"{n:0{LIMIT_ID_BYTES_MAX}}", b"k" * KEY_BYTES_MAX) for n in range(HELD_MAX))
    largest = Reservation(HOLD_MAX, held)
    assert parse(encode(largest)) == largest
    with pytest.raises(ReservationError, match="too long"):
        parse("A" * (NAME_CHARS_MAX + 1))
