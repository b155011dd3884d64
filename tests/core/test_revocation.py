"""What is not believed any more: every kind, its limits, and what the set costs."""

from __future__ import annotations

import tracemalloc

import pytest

from sidecar.core.decision import REASONS, Challenge, DenyReason
from sidecar.core.principal import Json, Principal
from sidecar.core.revocation import NEVER_US, NO_REVOCATIONS, REVOCATIONS_MAX, Kind, Revocation, Revocations

S = 1_000_000
NOW_US = 1_000 * S


def principal(issuer: str = "main", subject: str = "ann", key_id: str = "", kid: str = "", **claims: Json) -> Principal:
    nobody: frozenset[str] = frozenset()
    return Principal(issuer, subject, "", nobody, nobody, claims, key_id=key_id, signed_by=kid)


def entry(kind: Kind, name: str, before_us: int = 0, until_us: int = NEVER_US) -> Revocation:
    return Revocation(kind, "main", name, before_us, until_us)


def holding(*entries: Revocation) -> Revocations:
    revocations = Revocations()
    for each in entries:
        revocations.add(each)
    return revocations


def is_active(revocations: Revocations) -> bool:
    return revocations.active


HIT = {
    Kind.TOKEN: (entry(Kind.TOKEN, "x"), principal(jti="x")),
    Kind.SUBJECT: (entry(Kind.SUBJECT, "x", 100 * S), principal(subject="x", iat=99)),
    Kind.SESSION: (entry(Kind.SESSION, "x"), principal(sid="x")),
    Kind.KEY: (entry(Kind.KEY, "x"), principal(kid="x")),
    Kind.CREDENTIAL: (entry(Kind.CREDENTIAL, "x"), principal(key_id="x")),
}


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_is_refused_until_it_ends_or_is_removed(kind: Kind) -> None:
    """With the ordinary challenge; of this issuer alone, and by this name alone."""
    found, caller = HIT[kind]
    revocations = holding(found._replace(until_us=NOW_US + 1))
    assert is_active(revocations)
    fault = revocations.fault(caller, NOW_US)
    assert fault is not None
    assert fault.reason is DenyReason.TOKEN_REVOKED
    assert fault.detail == f"its {kind.value} is revoked"
    assert revocations.fault(caller, NOW_US + 1) is None
    assert holding(found._replace(issuer="other")).fault(caller, NOW_US) is None
    assert holding(found._replace(name="y")).fault(caller, NOW_US) is None
    assert revocations.refused_total == 1
    revocations.remove(kind, "main", "x")
    assert not is_active(revocations)
    assert revocations.fault(caller, NOW_US) is None


@pytest.mark.parametrize("kind", Kind)
def test_entries_of_one_kind_do_not_hit_another(kind: Kind) -> None:
    """A `jti` is no `sub`, and so on."""
    for other, (_, caller) in HIT.items():
        if other is not kind:
            assert holding(HIT[kind][0]).fault(caller, NOW_US) is None


@pytest.mark.parametrize(
    ("issued", "refused"),
    [(99, True), (99.5, True), (100, False), (101, False), (None, True), ("101", True), (True, True)],
)
def test_a_subject_is_revoked_before_a_time(issued: Json, refused: bool) -> None:
    """By `iat`; a token that does not say when it was issued is refused as well."""
    revocations = holding(entry(Kind.SUBJECT, "ann", 100 * S))
    caller = principal() if issued is None else principal(iat=issued)
    assert (revocations.fault(caller, NOW_US) is not None) is refused


def test_claims_of_other_types_name_nothing() -> None:
    """A list as `jti`, which cannot be looked up, is not revoked, and no error either."""
    revocations = holding(entry(Kind.TOKEN, "x"), entry(Kind.SESSION, "x"))
    assert revocations.fault(principal(jti=["x"], sid={"x": "x"}), NOW_US) is None


def test_what_is_unknown_refuses_everybody_until_it_is_known() -> None:
    """From the stated time on, with 503 and no challenge: the credential may be good."""
    revocations = Revocations()
    revocations.known_until_us = NOW_US
    assert is_active(revocations)
    assert revocations.fault(principal(), NOW_US - 1) is None
    fault = revocations.fault(principal(), NOW_US)
    assert fault is not None
    assert fault.reason is DenyReason.REVOCATIONS_UNKNOWN
    row = REASONS[fault.reason]
    assert (row.http_status, row.challenge) == (503, Challenge.NONE)
    revocations.known_until_us = None
    assert not is_active(revocations)


def test_entries_are_counted_expired_and_taken_over() -> None:
    """Each once, however often it is added; what has ended is dropped; another set's entries are these."""
    revocations = holding(*(found for found, _ in HIT.values()), HIT[Kind.TOKEN][0])
    assert len(revocations) == len(list(revocations)) == len(Kind)
    assert {each.kind for each in revocations} == set(Kind)
    for kind, (found, _) in HIT.items():
        assert revocations.get(kind, "main", "x") == found
        assert revocations.get(kind, "main", "y") is revocations.get(kind, "none", "x") is None
        revocations.add(found._replace(until_us=NOW_US))
    revocations.remove(Kind.TOKEN, "none", "x")
    revocations.remove(Kind.TOKEN, "main", "none")
    revocations.expire(NOW_US - 1)
    assert len(revocations) == len(Kind)
    revocations.expire(NOW_US)
    assert len(revocations) == 0
    assert not is_active(revocations)
    revocations.become(holding(HIT[Kind.KEY][0]))
    assert list(revocations) == [HIT[Kind.KEY][0]]
    assert is_active(revocations)
    assert not NO_REVOCATIONS.active


def test_as_many_as_there_may_be_fit_into_memory() -> None:
    """Under 30 MiB for the most entries, with names as long as UUIDs."""
    tracemalloc.start()
    try:
        revocations = Revocations()
        for number in range(REVOCATIONS_MAX):
            revocations.add(entry(Kind.TOKEN, f"00000000-0000-4000-8000-{number:012}", until_us=NOW_US + number))
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(revocations) == REVOCATIONS_MAX
    assert size < 30 * 1024 * 1024, f"{size / 2**20:.1f} MiB"
