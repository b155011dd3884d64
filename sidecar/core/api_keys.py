"""API keys as a method of authentication: from the key on the request to a `Principal`.

In this order, so that each step is paid for by the one before: the form and the checksum (nothing is looked up for
garbage); keys that were proved a moment ago; the record, by the key's id; the secret, in constant time; what the record
restricts. An id that no key has costs the same two HMACs as a wrong secret, and has the same answer: only who knows the
secret learns that a key has expired, was revoked, or may not be used here.
"""

from __future__ import annotations

import enum
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Final, TypeAlias

from sidecar.core.api_key_cache import Entry, KnownKeys
from sidecar.core.api_key_format import FOREIGN_CHARS_MAX, foreign_key_id, is_foreign_key, parse_key
from sidecar.core.api_key_records import HASH_BYTES, HeldKey, address_in, hash_under, host_in
from sidecar.core.claims import Rejected
from sidecar.core.decision import DenyReason

if TYPE_CHECKING:
    from sidecar.core.api_key_records import Peppers
    from sidecar.core.context import RequestContext
    from sidecar.core.credentials import Place
    from sidecar.core.methods import Findings
    from sidecar.core.principal import Principal

KeyName: TypeAlias = tuple[str, str, str]


class Result(enum.StrEnum):
    """What became of a key, for metrics."""

    ACCEPTED = "accepted"
    INVALID = "invalid"
    PEPPER_MISSING = "pepper_missing"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    REVOKED = "revoked"
    NOT_ALLOWED_HERE = "not_allowed_here"
    UNAVAILABLE = "unavailable"


class NoRecord(enum.Enum):
    """What is found where no key has an id."""

    NO_RECORD = "no record"


NO_RECORD: Final = NoRecord.NO_RECORD

_PADDING: Final = b"\0" * HASH_BYTES
"""Stands for the hash of a key that is not there; no HMAC that anybody finds equals it."""
_UNASKED: Final = object()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Keyring:
    """API keys of one kind, compiled from the policy.

    Attributes:
        name: The policy's name (`api_keys.<name>`); the principal's issuer.
        family: What its keys begin with; no other keyring's do.
        peppers: By which keys are hashed.
        records: All of them, of a file; None: they are in Redis.
        foreign: Keys that were made elsewhere, in whatever form, are looked for here.
        known: What was looked up; survives a reload.
    """

    name: str
    family: str
    peppers: Peppers
    records: Mapping[str, HeldKey] | None = None
    foreign: bool = False
    known: KnownKeys = field(default_factory=KnownKeys)

    def go_on(self, before: Keyring) -> None:
        """Take over what the keyring of this name knew under the policy before."""
        same_store = self.records is None and before.records is None
        self.known.adopt(before.known, records=same_store, proofs=self.peppers == before.peppers)


@dataclass(frozen=True, slots=True, eq=False)
class NeedApiKey:
    """The record of a key is to be looked up: a `HeldKey`, `NO_RECORD`, or None where nobody could be asked.

    Attributes:
        proved: This very key was proved against the record that is held: looking that up anew helps nobody guess.
    """

    keyring: Keyring
    key_id: str
    proved: bool = False

    @property
    def key(self) -> KeyName:
        """Names it in the request's findings."""
        return ("api_key", self.keyring.name, self.key_id)


class ApiKeyMethod:
    """Proves keys of some keyrings; a `Method`.

    Args:
        keyrings: With distinct families, at most one of them `foreign`.
        place: Where the key is on a request.
    """

    def __init__(self, keyrings: tuple[Keyring, ...], place: Place) -> None:
        self.keyrings = keyrings
        self.place = place
        self._by_family = {keyring.family: keyring for keyring in keyrings}
        self._foreign = next((keyring for keyring in keyrings if keyring.foreign), None)

    def shown(self, request: RequestContext) -> str | Rejected | None:
        """The key on the request."""
        return self.place.shown(request)

    def prove(
        self, shown: str, request: RequestContext, findings: Findings, now_us: int
    ) -> Principal | NeedApiKey | Rejected:
        """Who showed the key."""
        if len(shown) > FOREIGN_CHARS_MAX or not shown.isascii():
            return _MALFORMED
        digest = sha256(shown.encode()).digest()  # as key_digest has it
        for keyring in self.keyrings:
            known = keyring.known
            proof = known.proofs.get(digest)
            if proof is None:
                continue
            entry = proof.entry
            if now_us < entry.fresh_until_us and proof.begins_us <= now_us < proof.expires_us:
                if proof.plain and now_us < entry.note_use_us:  # most: 0.3 us less than by the call
                    known.accepted += 1
                    known.touch(entry.key_id)
                    return entry.held.principal
                return _admitted(known, entry, request, now_us, previous=proof.previous)
            return _look_up(keyring, entry.key_id, digest, request, findings, now_us, proved=True)
        parsed = parse_key(shown)
        if parsed is not None:
            family = self._by_family.get(parsed.family)
            if family is not None:
                return _look_up(family, parsed.key_id, digest, request, findings, now_us)
        if self._foreign is not None and is_foreign_key(shown):
            return _look_up(self._foreign, foreign_key_id(digest), digest, request, findings, now_us)
        return (
            _MALFORMED if parsed is None else Rejected(DenyReason.API_KEY_INVALID, "is of no keyring that is accepted")
        )


_MALFORMED: Final = Rejected(DenyReason.API_KEY_MALFORMED, "has not the form of a key, or its checksum does not fit")


def _look_up(
    keyring: Keyring,
    key_id: str,
    digest: bytes,
    request: RequestContext,
    findings: Findings,
    now_us: int,
    *,
    proved: bool = False,
) -> Principal | NeedApiKey | Rejected:
    """Find the record, then verify the secret against it."""
    known = keyring.known
    entry = known.get(key_id)
    if keyring.records is not None:
        if entry is None and (held := keyring.records.get(key_id)) is not None:
            entry = known.put(held, now_us)
        return _verify(keyring, entry, digest, request, now_us)
    need = NeedApiKey(keyring, key_id, proved)
    found = findings.get(need.key, _UNASKED)
    if found is _UNASKED:
        if entry is None and known.is_unknown(key_id, now_us):
            return _verify(keyring, None, digest, request, now_us)
        return (
            need
            if entry is None or now_us >= entry.fresh_until_us
            else _verify(keyring, entry, digest, request, now_us)
        )
    if found is None:
        entry = known.use_stale(key_id, now_us)
        if entry is None:
            known.count(Result.UNAVAILABLE)
            return Rejected(DenyReason.API_KEYS_UNAVAILABLE, f"no usable record of key {key_id} could be had")
        known.stale_uses += 1
    elif isinstance(found, HeldKey):
        if entry is None or now_us >= entry.fresh_until_us:
            entry = Entry(found, now_us, now_us)  # for this request alone: the key may have changed while it waited
    else:
        entry = None
    return _verify(keyring, entry, digest, request, now_us)


def _verify(
    keyring: Keyring, entry: Entry | None, digest: bytes, request: RequestContext, now_us: int
) -> Principal | Rejected:
    known = keyring.known
    secret = _matching(keyring.peppers, entry.held if entry is not None else None, digest)
    if entry is None or secret is None:
        lost = entry is not None and any(version not in keyring.peppers.versions for version, _ in entry.held.hashes)
        known.count(Result.PEPPER_MISSING if lost else Result.INVALID)
        return Rejected(DenyReason.API_KEY_INVALID, f"keyring {keyring.name!r} has no such key")
    previous = secret == 1
    fault = _state_fault(entry.held, now_us, previous=previous)
    if fault is not None:
        result, rejected = fault
        known.count(result)
        return rejected
    known.proved(digest, entry, previous=previous)
    return _admitted(known, entry, request, now_us, previous=previous)


def _matching(peppers: Peppers, held: HeldKey | None, digest: bytes) -> int | None:
    """Which of a record's hashes is this key's, None for none: the same work whatever the record, or without one."""
    versions = peppers.versions
    newest = peppers.newest
    found: int | None = None
    for n in (1, 0):
        version, expected = held.hashes[n] if held is not None and n < len(held.hashes) else (newest, _PADDING)
        pepper = versions.get(version)
        same = hmac.compare_digest(hash_under(pepper or versions[newest], digest), expected)
        if same and pepper is not None:
            found = n
    return found


def _state_fault(held: HeldKey, now_us: int, *, previous: bool) -> tuple[Result, Rejected] | None:
    """Why a key whose secret was proved is not accepted, None where it is."""
    record = held.record
    if record.status != "active":
        return Result.REVOKED, Rejected(DenyReason.API_KEY_REVOKED, f"key {record.id} is {record.status}")
    if now_us < held.begins_us:
        return Result.NOT_YET_VALID, Rejected(DenyReason.API_KEY_NOT_YET_VALID, f"key {record.id} is not valid yet")
    if now_us >= held.expires_us:
        return Result.EXPIRED, Rejected(DenyReason.API_KEY_EXPIRED, f"key {record.id} has expired")
    if previous and now_us >= held.previous_until_us:
        detail = f"key {record.id} was rotated, and its previous secret has ended"
        return Result.EXPIRED, Rejected(DenyReason.API_KEY_EXPIRED, detail)
    return None


def _admitted(
    known: KnownKeys, entry: Entry, request: RequestContext, now_us: int, *, previous: bool
) -> Principal | Rejected:
    """The principal of a key that is good, where the request is one that it may be used for."""
    held = entry.held
    if held.restricted and (where := _not_allowed(held, request)):
        known.count(Result.NOT_ALLOWED_HERE)
        return Rejected(DenyReason.API_KEY_NOT_ALLOWED_HERE, f"key {held.record.id} is not for this {where}")
    known.accepted += 1
    if known.get(entry.key_id) is entry:
        known.touch(entry.key_id)
    if previous:
        known.previous_uses += 1
    if now_us >= entry.note_use_us:
        known.note_use(entry, now_us)
    return held.principal


def _not_allowed(held: HeldKey, request: RequestContext) -> str:
    """What of the request the key may not be used with; "" for nothing."""
    record = held.record
    if held.networks and not address_in(request.source_address, held.networks):
        return "address"
    if held.hosts and not host_in(request.host, held.hosts):
        return "host"
    if record.methods and request.method not in record.methods:
        return "method"
    return ""
