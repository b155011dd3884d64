"""Sources that guessed too often: who shares a budget, for how long, and how many are remembered."""

from __future__ import annotations

import pytest

from sidecar.core.claims import Rejected
from sidecar.core.decision import REASONS, DenyReason
from sidecar.core.suspects import FAILED, NO_SUSPECTS, TOO_OFTEN, Suspects, is_answered_as_usual, source_of


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("", ""),
        ("/run/envoy.sock", ""),
        ("192.0.2.1:80", ""),
    ],
)
def test_a_source_is_an_address_or_a_network(address: str, source: str) -> None:
    """A site has a /64; what is no address has no budget."""
    assert source_of(address) == source


def test_a_suspect_is_one_until_its_time_is_over() -> None:
    """Exactly until then, from each address of its network; never for less long than was said before."""
    suspects = Suspects()
    assert len(suspects) == 0
    suspects.add("2001:db8::/64", 100)
    suspects.add("2001:db8::/64", 50)
    assert suspects.active
    assert suspects.wait_us("2001:db8::5", 99) == 1
    assert suspects.wait_us("2001:db8::5", 100) == 0
    assert suspects.wait_us("2001:db8:0:1::5", 0) == 0
    assert suspects.wait_us("", 0) == 0
    suspects.expire(99)
    assert len(suspects) == 1
    suspects.expire(100)
    assert not suspects.active


def test_suspects_are_bounded() -> None:
    """One more pushes out the one that was added first."""
    suspects = Suspects(2)
    for number in (1, 2, 1, 3):
        suspects.add(f"192.0.2.{number}", 100)
    assert len(suspects) == 2
    assert suspects.evicted_total == 1
    assert suspects.wait_us("192.0.2.2", 0) == 0
    assert suspects.wait_us("192.0.2.1", 0) == 100
    assert not NO_SUSPECTS.active


def test_what_counts_is_a_fault_of_the_credential() -> None:
    """Nothing that a dependency is to blame for, and nothing that a client which works meets now and then."""
    assert all(REASONS[reason].http_status in (400, 401) for reason in FAILED)
    assert FAILED.isdisjoint(
        {
            DenyReason.CREDENTIAL_MISSING,
            DenyReason.TOKEN_EXPIRED,
            DenyReason.TOKEN_REVOKED,
            DenyReason.KEYS_UNAVAILABLE,
            TOO_OFTEN.reason,
        }
    )
    assert REASONS[TOO_OFTEN.reason].http_status == 429


def test_who_shows_nothing_is_told_so() -> None:
    """Also while suspected: there is nothing to guess by."""
    assert is_answered_as_usual(Rejected(DenyReason.CREDENTIAL_MISSING, ""))
    assert not is_answered_as_usual(Rejected(DenyReason.TOKEN_SIGNATURE_INVALID, ""))
