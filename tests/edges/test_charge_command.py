"""What is sent to the script, read back as Redis reads it."""

from __future__ import annotations

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.limits import REQUESTS_MAX, Algorithm, Charge, Limit, LimitOutcome, Op
from sidecar.edges.charge_command import pack_charge, pack_charges, read_verdict
from tests.support.limit_strategies import T0_US, charges_of, limits

COMMAND = b"$7\r\nEVALSHA\r\n$3\r\nsha\r\n"


def parsed(packed: bytes) -> object:
    reader = hiredis.Reader()
    reader.feed(packed)
    command = reader.gets()
    assert not reader.has_data()
    return command


@given(
    st.lists(limits(), min_size=1, max_size=3).flatmap(lambda some: st.lists(charges_of(some), min_size=1, max_size=12))
)
def test_the_command_is_what_redis_expects(charges: list[Charge]) -> None:
    """A name, a script, the number of keys, the keys, an empty clock, and one argument for each charge."""
    keys = [charge.storage_key for charge in charges]
    arguments = [pack_charge(charge, lambda: T0_US) for charge in charges]
    expected = [b"EVALSHA", b"sha", b"%d" % len(charges), *keys, b"", *arguments]
    assert parsed(pack_charges(COMMAND, charges, lambda: T0_US)) == expected


@pytest.mark.parametrize(
    ("settings", "charge", "length"),
    [
        ({}, {}, 22),
        ({}, {"cost": 2**70}, 22),
        ({}, {"hold": 7}, 22),
        ({}, {"op": Op.REFUND}, 43),
        ({"hold_us": 5}, {}, 43),
        ({"algorithm": Algorithm.GCRA}, {}, 22),
        ({"algorithm": Algorithm.GCRA, "burst": 2}, {}, 43),
        ({"algorithm": Algorithm.CONCURRENCY}, {}, 43),
    ],
)
def test_a_plain_take_is_short(settings: dict[str, object], charge: dict[str, object], length: int) -> None:
    """Only what needs more is sent more."""
    limit = Limit(name="l", requests=1, window_us=1_000, **settings)  # type: ignore[arg-type]
    argument = pack_charge(Charge(limit, b"k", **charge))  # type: ignore[arg-type]
    assert len(argument) == length
    assert int.from_bytes(argument[14:22]) <= REQUESTS_MAX + 1


@pytest.mark.parametrize("many", [1, 2])
def test_a_shadow_denies_nothing(many: int) -> None:
    """The verdict passes over a shadow's denial, but not over another's."""
    shadow, real = (Limit(name="l", requests=1, window_us=1_000, shadow=shadow) for shadow in (True, False))
    denied = [[0, 1, 0, 5, 5]] * many
    verdict = read_verdict([Charge(shadow, b"k")] * many, denied)
    assert verdict.allowed
    assert not any(outcome.allowed for outcome in verdict.outcomes)
    assert isinstance(verdict.outcomes[0], LimitOutcome)
    assert not read_verdict([Charge(shadow, b"k")] * (many - 1) + [Charge(real, b"k")], denied).allowed
