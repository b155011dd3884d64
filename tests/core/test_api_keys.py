"""Proving API keys: what is accepted, what is refused and why, what is asked for, and what is left in memory."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from sidecar.core import api_keys
from sidecar.core.api_key_cache import (
    POSTPONED_US,
    UNKNOWN_MAX,
    UNKNOWN_US,
    USE_NOTED_EVERY_US,
    USED_MAX,
    KnownKeys,
)
from sidecar.core.api_key_format import CHECKSUM_CHARS, checksum, foreign_key_id, key_digest
from sidecar.core.api_key_records import HeldKey, KeyRecord, Peppers, hash_under, hold
from sidecar.core.api_keys import NO_RECORD, Keyring, NeedApiKey, Result
from sidecar.core.claims import Rejected
from sidecar.core.decision import DenyReason
from sidecar.core.principal import Principal
from sidecar.core.suspects import KNOWN_ALONE, is_answered_as_usual
from tests.support.api_keys import (
    FAMILY,
    NOW,
    NOW_US,
    PEPPERS,
    id_of,
    keyring,
    method,
    new_key,
    record_of,
    request,
    some,
)

TTL_US = 10_000_000
STALE_US = 60_000_000
SECOND_US = 1_000_000


def known(entries_max: int = 100) -> KnownKeys:
    return KnownKeys(entries_max, TTL_US, STALE_US)


def held(key: str, **fields: Any) -> HeldKey:
    return hold(record_of(key, **fields), "partners")


def prove(ring: Keyring, key: str, found: Any = ..., now_us: int = NOW_US, **fields: Any) -> Any:
    """As the shell does: asks, and where something is needed asks again with what was found."""
    result = method(ring).prove(key, request(**fields), {}, now_us)
    if isinstance(result, NeedApiKey) and found is not ...:
        if isinstance(found, HeldKey):
            found = ring.known.put(found, now_us).held
        elif found is NO_RECORD:
            ring.known.put_unknown(result.key_id, now_us)
        result = method(ring).prove(key, request(**fields), {result.key: found}, now_us)
    return result


def reason(result: Any) -> DenyReason | None:
    assert isinstance(result, Rejected | Principal)
    return result.reason if isinstance(result, Rejected) else None


def other_secret(key: str) -> str:
    """The same id with another secret, and a checksum that fits."""
    body = key[: -CHECKSUM_CHARS - 4] + some(4)
    return body + checksum(body)


def test_a_key_proves_its_owner() -> None:
    """All that the record says is in the principal."""
    key, ring = new_key(), keyring(known())
    record = held(key, owner="ann", tenant="t1", tier="gold", scopes=("a", "b"), roles=("r",), metadata={"team": "x"})
    principal = prove(ring, key, record)
    assert isinstance(principal, Principal)
    assert (principal.method, principal.issuer, principal.subject) == ("api_key", "partners", "ann")
    assert (principal.tenant, principal.tier, principal.key_id) == ("t1", "gold", id_of(key))
    assert (principal.scopes, principal.roles) == ({"a", "b"}, {"r"})
    assert principal.claims["metadata"] == {"team": "x"}
    assert principal.claims["exp"] == NOW_US // SECOND_US + 90 * 86_400


def test_a_warm_key_is_the_same_principal() -> None:
    """Nothing is needed and nothing is made: what is kept by identity of the principal stays kept."""
    key, ring = new_key(), keyring(known())
    first = prove(ring, key, held(key))
    assert method(ring).prove(key, request(), {}, NOW_US) is first
    assert ring.known.accepted == 2


@pytest.mark.parametrize(
    "text",
    ["", "x", "acme_live", "Bearer x", "a" * 10_000, "é" * 70, "\ud800" * 70, "acme_live_" + "a" * 12 + "_" + "b" * 33],
)
def test_garbage_is_refused_without_a_look_up(text: str) -> None:
    """Whatever it is; nothing is left of it."""
    ring = keyring(known())
    assert reason(prove(ring, text)) is DenyReason.API_KEY_MALFORMED
    assert (len(ring.known), ring.known.unknown, len(ring.known.proofs)) == (0, 0, 0)


def test_a_key_of_another_family_is_refused_without_a_look_up() -> None:
    """Well-formed, but of no keyring that is accepted here."""
    assert reason(prove(keyring(known()), new_key("other"))) is DenyReason.API_KEY_INVALID


def test_unknown_and_wrong_cannot_be_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answer, and the same work: two HMACs, each compared, with and without a previous secret."""
    work: list[bytes] = []

    def counted(pepper: bytes, digest: bytes) -> bytes:
        work.append(digest)
        return hash_under(pepper, digest)

    monkeypatch.setattr(api_keys, "hash_under", counted)
    key = new_key()
    rotated = {"previous_hash": PEPPERS.hash(key_digest(new_key())), "previous_until": NOW + timedelta(days=1)}
    outcomes = []
    for shown, found in [
        (new_key(), NO_RECORD),
        (other_secret(key), held(key)),
        (other_secret(key), held(key, **rotated)),
        (other_secret(key), held(key, status="revoked")),
        (other_secret(key), held(key, expires_at=NOW)),
        (other_secret(key), held(key, networks=("198.51.100.0/24",))),
    ]:
        work.clear()
        result = prove(keyring(known()), shown, found)
        outcomes.append((result, len(work)))
    assert {result for result, _ in outcomes} == {
        Rejected(DenyReason.API_KEY_INVALID, "keyring 'partners' has no such key")
    }
    assert {each for _, each in outcomes} == {2}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"expires_at": NOW}, DenyReason.API_KEY_EXPIRED),
        ({"expires_at": NOW + timedelta(microseconds=1)}, None),
        ({"expires_at": None}, None),
        ({"not_before": NOW + timedelta(microseconds=1)}, DenyReason.API_KEY_NOT_YET_VALID),
        ({"not_before": NOW}, None),
        ({"status": "revoked"}, DenyReason.API_KEY_REVOKED),
        ({"status": "disabled"}, DenyReason.API_KEY_REVOKED),
        ({"networks": ("192.0.2.0/24",)}, None),
        ({"networks": ("198.51.100.0/24",)}, DenyReason.API_KEY_NOT_ALLOWED_HERE),
        ({"hosts": ("api.example.com",)}, None),
        ({"hosts": ("www.example.com",)}, DenyReason.API_KEY_NOT_ALLOWED_HERE),
        ({"methods": ("GET",)}, None),
        ({"methods": ("POST",)}, DenyReason.API_KEY_NOT_ALLOWED_HERE),
    ],
)
def test_what_a_record_says_holds(fields: dict[str, Any], expected: DenyReason | None) -> None:
    """At the exact moment, cold and warm alike; nothing is kept of a key that is refused for its state."""
    key, ring = new_key(), keyring(known())
    assert reason(prove(ring, key, held(key, **fields))) is expected
    assert reason(prove(ring, key)) is expected
    state = expected in {DenyReason.API_KEY_EXPIRED, DenyReason.API_KEY_NOT_YET_VALID, DenyReason.API_KEY_REVOKED}
    assert len(ring.known.proofs) == (0 if state else 1)


def test_a_warm_key_expires_and_begins_on_time() -> None:
    """Dates are looked at on each use."""
    key, ring = new_key(), keyring(known())
    record = held(key, not_before=NOW, expires_at=NOW + timedelta(seconds=2))
    assert reason(prove(ring, key, record)) is None
    assert reason(prove(ring, key, now_us=NOW_US - 1)) is DenyReason.API_KEY_NOT_YET_VALID
    assert reason(prove(ring, key, now_us=NOW_US + 2 * SECOND_US - 1)) is None
    assert reason(prove(ring, key, now_us=NOW_US + 2 * SECOND_US)) is DenyReason.API_KEY_EXPIRED


def test_a_warm_key_is_not_for_other_requests() -> None:
    """Networks, hosts and methods are looked at on each use; an address that is not known is in no network."""
    key, ring = new_key(), keyring(known())
    record = held(key, networks=("192.0.2.0/24",), hosts=("*.example.com",), methods=("GET", "HEAD"))
    assert reason(prove(ring, key, record)) is None
    for other in ({"source_address": "192.0.3.7"}, {"source_address": ""}, {"host": "example.com"}, {"method": "get"}):
        assert reason(prove(ring, key, **other)) is DenyReason.API_KEY_NOT_ALLOWED_HERE
    assert ring.known.counts[Result.NOT_ALLOWED_HERE] == 4


def test_two_secrets_overlap() -> None:
    """The one before is accepted until its end, and counted; then it has expired, also where it was warm."""
    old, ring = new_key(), keyring(known())
    new = new_key(key_id=id_of(old))
    record = held(new, previous_hash=PEPPERS.hash(key_digest(old)), previous_until=NOW + timedelta(seconds=5))
    assert reason(prove(ring, new, record)) is None
    assert ring.known.previous_uses == 0
    assert reason(prove(ring, old)) is None
    assert reason(prove(ring, old)) is None
    assert ring.known.previous_uses == 2
    assert reason(prove(ring, old, now_us=NOW_US + 5 * SECOND_US)) is DenyReason.API_KEY_EXPIRED
    assert reason(prove(ring, new, now_us=NOW_US + 5 * SECOND_US)) is None


def test_the_previous_secret_does_not_outlive_the_key() -> None:
    """Whatever its own end is."""
    old, ring = new_key(), keyring(known())
    new = new_key(key_id=id_of(old))
    ends = {"previous_until": NOW + timedelta(days=9), "expires_at": NOW + timedelta(seconds=1)}
    record = held(new, previous_hash=PEPPERS.hash(key_digest(old)), **ends)
    assert reason(prove(ring, old, record)) is None
    assert reason(prove(ring, old, now_us=NOW_US + SECOND_US)) is DenyReason.API_KEY_EXPIRED


def test_a_changed_record_ends_what_was_proved() -> None:
    """What is looked up anew counts: revoked, or with another secret."""
    key, ring = new_key(), keyring(known())
    prove(ring, key, held(key))
    ring.known.forget(id_of(key))
    assert not ring.known.proofs
    assert reason(prove(ring, key, held(key, status="revoked"))) is DenyReason.API_KEY_REVOKED
    prove(ring, key, held(key), now_us=NOW_US + 2 * TTL_US)
    rotated = held(new_key(key_id=id_of(key)))
    assert reason(prove(ring, key, rotated, now_us=NOW_US + 4 * TTL_US)) is DenyReason.API_KEY_INVALID


def test_a_record_is_looked_up_again_when_it_is_not_fresh() -> None:
    """At the end of `ttl_us` and not before; the same record leaves what was proved as it was."""
    key, ring = new_key(), keyring(known())
    first = prove(ring, key, held(key))
    assert prove(ring, key, now_us=NOW_US + TTL_US - 1) is first
    assert isinstance(prove(ring, key, now_us=NOW_US + TTL_US), NeedApiKey)
    assert prove(ring, key, held(key), now_us=NOW_US + TTL_US) is first
    assert prove(ring, key, now_us=NOW_US + 2 * TTL_US - 1) is first


def test_without_the_store_what_is_known_is_used_to_a_stated_age() -> None:
    """Then, and for keys that are not known, nobody is let in, and it is said to be our fault."""
    key, ring = new_key(), keyring(known())
    first = prove(ring, key, held(key))
    assert reason(prove(ring, new_key(), None)) is DenyReason.API_KEYS_UNAVAILABLE
    assert prove(ring, key, None, now_us=NOW_US + TTL_US) is first
    assert prove(ring, key, now_us=NOW_US + TTL_US + POSTPONED_US - 1) is first  # and nobody is asked again at once
    assert isinstance(prove(ring, key, now_us=NOW_US + TTL_US + POSTPONED_US), NeedApiKey)
    assert prove(ring, key, None, now_us=NOW_US + STALE_US - 1) is first
    assert reason(prove(ring, key, None, now_us=NOW_US + STALE_US)) is DenyReason.API_KEYS_UNAVAILABLE
    assert ring.known.stale_uses == 2
    assert ring.known.counts[Result.UNAVAILABLE] == 2


def test_doubt_makes_everything_be_looked_up_again() -> None:
    """And still be used where that fails."""
    key, ring = new_key(), keyring(known())
    first = prove(ring, key, held(key))
    ring.known.doubt()
    assert isinstance(prove(ring, key), NeedApiKey)
    assert prove(ring, key, None) is first


def test_an_unknown_id_is_not_looked_up_again_at_once() -> None:
    """For a short time; then it may have been made."""
    key, ring = new_key(), keyring(known())
    assert reason(prove(ring, key, NO_RECORD)) is DenyReason.API_KEY_INVALID
    assert reason(prove(ring, key, now_us=NOW_US + UNKNOWN_US - 1)) is DenyReason.API_KEY_INVALID
    assert isinstance(prove(ring, key, now_us=NOW_US + UNKNOWN_US), NeedApiKey)


def test_unknown_ids_are_bounded_and_push_out_no_record() -> None:
    """As many as the limit, and with one more the oldest goes."""
    key, ring = new_key(), keyring(known(1))
    prove(ring, key, held(key))
    ids = [f"{n:012}" for n in range(UNKNOWN_MAX + 1)]
    for each in ids[:-1]:
        ring.known.put_unknown(each, NOW_US)
    assert ring.known.is_unknown(ids[0], NOW_US)
    ring.known.put_unknown(ids[-1], NOW_US)
    assert ring.known.unknown == UNKNOWN_MAX
    assert not ring.known.is_unknown(ids[0], NOW_US)
    assert ring.known.get(id_of(key)) is not None


def test_records_are_bounded_and_the_least_used_goes() -> None:
    """With its proofs."""
    ring = keyring(known(2))
    first, second, third = new_key(), new_key(), new_key()
    for key in (first, second):
        prove(ring, key, held(key))
    prove(ring, first)
    assert (len(ring.known), ring.known.evictions) == (2, 0)
    prove(ring, third, held(third))
    assert (len(ring.known), ring.known.evictions, len(ring.known.proofs)) == (2, 1, 2)
    assert isinstance(prove(ring, second), NeedApiKey)
    assert reason(prove(ring, first)) is None


def test_proofs_are_at_most_two_a_record() -> None:
    """However often and with whatever a key is shown."""
    key, ring = new_key(), keyring(known())
    for n in range(5):
        prove(ring, key, held(key), now_us=NOW_US + n * TTL_US)
        prove(ring, other_secret(key), held(key), now_us=NOW_US + n * TTL_US)
    assert len(ring.known.proofs) == 1


def test_uses_are_noted_coarsely_and_within_bounds() -> None:
    """Once a minute a key; what does not fit is dropped and counted."""
    key, ring = new_key(), keyring(known())
    prove(ring, key, held(key))
    assert ring.known.used == {id_of(key): NOW_US}
    ring.known.used.clear()
    prove(ring, key, held(key), now_us=NOW_US + USE_NOTED_EVERY_US - 1)
    assert ring.known.used == {}
    ring.known.used = {str(n): 0 for n in range(USED_MAX - 1)}
    prove(ring, key, held(key), now_us=NOW_US + USE_NOTED_EVERY_US)
    assert (len(ring.known.used), ring.known.uses_dropped) == (USED_MAX, 0)
    another = new_key()
    prove(ring, another, held(another))
    assert (len(ring.known.used), ring.known.uses_dropped) == (USED_MAX, 1)


def test_a_pepper_that_is_gone_proves_nothing() -> None:
    """The caller is told nothing more; the operator is."""
    key, old = new_key(), Peppers({1: b"o" * 32})
    ring = keyring(known(), peppers=PEPPERS)
    record = hold(record_of(key, old, hash="9" + old.hash(key_digest(key))[1:]), "partners")
    assert reason(prove(ring, key, record)) is DenyReason.API_KEY_INVALID
    assert ring.known.counts == {Result.PEPPER_MISSING: 1}


def test_every_pepper_that_is_there_is_accepted() -> None:
    """The newest hashes, the others still prove."""
    key, first = new_key(), Peppers({1: PEPPERS.versions[1]})
    assert reason(prove(keyring(known()), key, hold(record_of(key, first), "partners"))) is None


def test_a_reload_goes_on_with_what_was_known() -> None:
    """With what was proved where the peppers are the same, without it where they are not."""
    key, ring = new_key(), keyring(known())
    first = prove(ring, key, held(key))
    same = keyring(known())
    same.go_on(ring)
    assert prove(same, key) is first
    assert same.known.accepted == 2
    without = keyring(known(), peppers=Peppers({2: b"x" * 32, 1: PEPPERS.versions[1]}))
    without.go_on(same)
    assert reason(prove(without, key)) is DenyReason.API_KEY_INVALID


def test_a_reload_with_less_room_forgets() -> None:
    """Down to the new bound."""
    ring = keyring(known())
    keys = [new_key() for _ in range(3)]
    for key in keys:
        prove(ring, key, held(key))
    smaller = keyring(known(1))
    smaller.go_on(ring)
    assert (len(smaller.known), len(smaller.known.proofs)) == (1, 1)
    assert reason(prove(smaller, keys[-1])) is None


def test_a_file_needs_no_look_up() -> None:
    """All of its keys are there, and stay fresh."""
    key = new_key()
    ring = keyring(KnownKeys(10, 2**63, 0, notes_uses=False), records={id_of(key): held(key)})
    assert reason(prove(ring, key)) is None
    assert reason(prove(ring, key, now_us=NOW_US + 80 * 86_400 * SECOND_US)) is None
    assert reason(prove(ring, new_key())) is DenyReason.API_KEY_INVALID
    assert ring.known.used == {}


def test_foreign_keys_are_found_by_their_digest() -> None:
    """Where the keyring takes them; elsewhere they are malformed and nothing is looked up."""
    text = "legacy-key-of-somebody-else"
    digest = key_digest(text)
    record = KeyRecord(id=foreign_key_id(digest), owner="old", hash=PEPPERS.hash(digest), created_at=NOW)
    ring = keyring(known(), foreign=True)
    assert reason(prove(ring, text, hold(record, "partners"))) is None
    assert reason(prove(ring, text + "!", NO_RECORD)) is DenyReason.API_KEY_INVALID
    assert reason(prove(ring, "short")) is DenyReason.API_KEY_MALFORMED
    assert reason(prove(keyring(known()), text)) is DenyReason.API_KEY_MALFORMED


def test_a_key_belongs_to_the_keyring_of_its_family() -> None:
    """With several, each looks for its own."""
    first, second = keyring(known()), keyring(known(), name="staff", family="staff")
    key = new_key("staff")
    need = method(first, second).prove(key, request(), {}, NOW_US)
    assert isinstance(need, NeedApiKey)
    assert need.keyring is second
    assert need.key == ("api_key", "staff", id_of(key))
    assert first.family == FAMILY


def test_nothing_shows_a_key() -> None:
    """Not what is needed, not what is refused, not what is kept."""
    key, ring = new_key(), keyring(known())
    secret = key.rsplit("_", 1)[1]
    need = prove(ring, key)
    refused = prove(ring, key, NO_RECORD)
    seen = repr((need, need.key, refused, ring, held(key), ring.known.__class__))
    assert secret not in seen


def test_a_suspected_source_goes_on_with_a_key_that_was_proved() -> None:
    """Its record is looked up anew when that is due, as for anybody; a key that was not proved does not go on."""
    key, ring = new_key(), keyring(known())
    first = prove(ring, key, held(key))
    assert method(ring).prove(key, request(), KNOWN_ALONE, NOW_US + TTL_US - 1) is first
    for text, as_usual in ((key, True), (other_secret(key), False), (new_key(), False)):
        need = method(ring).prove(text, request(), KNOWN_ALONE, NOW_US + TTL_US)
        assert isinstance(need, NeedApiKey)
        assert is_answered_as_usual(need) is as_usual


def test_a_suspected_source_keeps_no_changed_key_alive() -> None:
    """A change whose news were lost counts when the record is due, also if only suspects use the key meanwhile."""
    key, ring = new_key(), keyring(known())
    first = prove(ring, key, held(key))
    ring.known.doubt()
    need = method(ring).prove(key, request(), KNOWN_ALONE, NOW_US + 1)
    assert isinstance(need, NeedApiKey)
    revoked = held(key, status="revoked")
    assert isinstance(method(ring).prove(key, request(), {need.key: revoked}, NOW_US + 1), Rejected)
    assert method(ring).prove(key, request(), {}, NOW_US + 1) is not first


def test_a_request_that_waited_brings_no_older_record_back() -> None:
    """A key that changed after a request looked it up: what is held since then counts, and nothing older is kept."""
    key, ring = new_key(), keyring(known())
    need = prove(ring, key)
    found = ring.known.put(held(key), NOW_US).held
    ring.known.forget(need.key_id)
    assert isinstance(method(ring).prove(key, request(), {need.key: found}, NOW_US + 1), Principal)
    assert isinstance(prove(ring, key, now_us=NOW_US + 2), NeedApiKey)
    ring.known.put(held(key, status="revoked"), NOW_US + 3)
    for findings in ({need.key: found}, {}):
        assert reason(method(ring).prove(key, request(), findings, NOW_US + 4)) is DenyReason.API_KEY_REVOKED
