"""Records of API keys that were looked up, and keys that were proved: so that a warm key costs no look-up and no HMAC.

A record is *fresh* for `ttl_us` after it was looked up; what anyone changes before is heard of (`forget`), usually
within a second. After that it is looked up again; while nobody can be asked it is used on, until it is `stale_us` old.
Ids that no key has are remembered apart, for a short time: whoever invents them pushes out other inventions, no record.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sidecar.core.api_key_records import HeldKey

ENTRIES_MAX: Final = 10_000
"""Records unless the policy says otherwise; about 5 KiB each."""
UNKNOWN_MAX: Final = 10_000
UNKNOWN_US: Final = 5_000_000
"""How long an id that no key has is not looked up again."""
POSTPONED_US: Final = 1_000_000
"""How long a record that could not be looked up again is used before that is tried anew."""
USE_NOTED_EVERY_US: Final = 60_000_000
USED_MAX: Final = 10_000
"""Uses that wait to be written down; beyond them they are dropped, and counted."""

FOREVER_US: Final = 2**63


class Proof:
    """A key whose secret was verified, by the digest of the key.

    Attributes:
        entry: The record that it was verified against.
        begins_us, expires_us: Within these the secret is accepted.
        previous: It is the secret from before a rotation.
        plain: It is not, and may be used for every request.
    """

    __slots__ = ("begins_us", "entry", "expires_us", "plain", "previous")

    def __init__(self, entry: Entry, *, previous: bool) -> None:
        held = entry.held
        self.entry = entry
        self.begins_us = held.begins_us
        self.expires_us = min(held.expires_us, held.previous_until_us) if previous else held.expires_us
        self.previous = previous
        self.plain = not (previous or held.restricted)


class Entry:
    """A record that was looked up."""

    __slots__ = ("digests", "fresh_until_us", "held", "key_id", "loaded_us", "note_use_us")

    def __init__(self, held: HeldKey, loaded_us: int, fresh_until_us: int) -> None:
        self.held = held
        self.key_id = held.record.id
        self.loaded_us = loaded_us
        self.fresh_until_us = fresh_until_us
        self.note_use_us = 0
        self.digests: tuple[bytes, ...] = ()


class KnownKeys:
    """What one keyring knows, bounded.

    Args:
        entries_max: Records.
        ttl_us: How long one is fresh.
        stale_us: How old one may be used while nobody can be asked.
        notes_uses: Whether uses can be written down.

    Attributes:
        proofs: By `key_digest`: at most two a record, gone with it.
        counts: Uses by result; `accepted` counts the hot ones.
        previous_uses: Of secrets from before a rotation.
        stale_uses: Uses of records that could not be looked up again.
        used: When keys were used last, by id, in microseconds: to be written down.
        touch: Called with the id of a key that was used: others are pushed out first.
    """

    def __init__(
        self,
        entries_max: int = ENTRIES_MAX,
        ttl_us: int = 10_000_000,
        stale_us: int = 300_000_000,
        *,
        notes_uses: bool = True,
    ) -> None:
        self.proofs: dict[bytes, Proof] = {}
        self.counts: dict[str, int] = {}
        self.accepted = 0
        self.previous_uses = 0
        self.stale_uses = 0
        self.evictions = 0
        self.used: dict[str, int] = {}
        self.uses_dropped = 0
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self.touch = self._entries.move_to_end
        self._unknown: OrderedDict[str, int] = OrderedDict()
        self._entries_max = entries_max
        self._ttl_us = ttl_us
        self._stale_us = stale_us
        self._first_note_us = 0 if notes_uses else FOREVER_US

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def unknown(self) -> int:
        """How many ids are remembered that no key has."""
        return len(self._unknown)

    def get(self, key_id: str) -> Entry | None:
        """What is known of a key, fresh or not."""
        return self._entries.get(key_id)

    def put(self, held: HeldKey, now_us: int) -> Entry:
        """Remember what was looked up; proofs against the same record stay."""
        key_id = held.record.id
        entry = self._entries.get(key_id)
        self._unknown.pop(key_id, None)
        if entry is not None and entry.held.record == held.record:
            entry.loaded_us, entry.fresh_until_us = now_us, now_us + self._ttl_us
            self._entries.move_to_end(key_id)
            return entry
        new = Entry(held, now_us, now_us + self._ttl_us)
        new.note_use_us = self._first_note_us
        if entry is not None:
            new.note_use_us = entry.note_use_us
            self.forget(key_id)
        while self._entries and len(self._entries) >= self._entries_max:
            self._drop(next(iter(self._entries)))
            self.evictions += 1
        self._entries[key_id] = new
        return new

    def proved(self, digest: bytes, entry: Entry, *, previous: bool) -> None:
        """Remember that a key with this digest was verified against an entry that is held."""
        known = self.proofs.get(digest)
        if known is not None and known.entry is entry:
            return
        if len(entry.digests) <= 1 and self._entries.get(entry.key_id) is entry:
            entry.digests += (digest,)
            self.proofs[digest] = Proof(entry, previous=previous)

    def put_unknown(self, key_id: str, now_us: int) -> None:
        """Remember that no key has this id."""
        self.forget(key_id)
        self._unknown[key_id] = now_us + UNKNOWN_US
        if len(self._unknown) > UNKNOWN_MAX:
            self._unknown.popitem(last=False)

    def is_unknown(self, key_id: str, now_us: int) -> bool:
        """Whether no key has this id, as was found a moment ago."""
        until_us = self._unknown.get(key_id)
        if until_us is None:
            return False
        if now_us < until_us:
            return True
        del self._unknown[key_id]
        return False

    def use_stale(self, key_id: str, now_us: int) -> Entry | None:
        """The record to use since it could not be looked up; None where there is none, or it is too old."""
        entry = self._entries.get(key_id)
        if entry is None or now_us >= entry.loaded_us + self._stale_us:
            return None
        entry.fresh_until_us = min(now_us + POSTPONED_US, entry.loaded_us + self._stale_us)
        return entry

    def forget(self, key_id: str) -> None:
        """It has changed: nothing may be taken from memory."""
        self._unknown.pop(key_id, None)
        if key_id in self._entries:
            self._drop(key_id)

    def doubt(self) -> None:
        """Changes may have been missed: everything is looked up again before it is used, if somebody can be asked."""
        self._unknown.clear()
        for entry in self._entries.values():
            entry.fresh_until_us = 0

    def note_use(self, entry: Entry, now_us: int) -> None:
        """Write down, some time, that a key was used; called once in `USE_NOTED_EVERY_US` for a key."""
        entry.note_use_us = now_us + USE_NOTED_EVERY_US
        key_id = entry.key_id
        if len(self.used) < USED_MAX or key_id in self.used:
            self.used[key_id] = now_us
        else:
            self.uses_dropped += 1

    def count(self, result: str) -> None:
        """A use with this result; a closed set of names."""
        self.counts[result] = self.counts.get(result, 0) + 1

    def adopt(self, other: KnownKeys, *, records: bool, proofs: bool) -> None:
        """Go on with what the same keyring knew under the policy before.

        Args:
            other: Not used any more afterwards.
            records: Its records are those of the same store.
            proofs: Its peppers are the same.
        """
        self.counts, self.accepted = other.counts, other.accepted
        self.previous_uses, self.stale_uses = other.previous_uses, other.stale_uses
        self.evictions, self.uses_dropped = other.evictions, other.uses_dropped
        self.used = other.used
        if not records:
            return
        self._entries, self._unknown, self.touch = other._entries, other._unknown, other.touch
        while len(self._entries) > self._entries_max:
            other._drop(next(iter(self._entries)))
        if proofs:
            self.proofs = other.proofs
        else:
            for entry in self._entries.values():
                entry.digests = ()

    def soonest_expiry_us(self) -> int | None:
        """When the first of the records that are held expires, None where none does."""
        return min((e.held.expires_us for e in self._entries.values() if e.held.expires_us < FOREVER_US), default=None)

    def _drop(self, key_id: str) -> None:
        for digest in self._entries.pop(key_id).digests:
            self.proofs.pop(digest, None)
