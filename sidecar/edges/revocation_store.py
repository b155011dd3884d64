"""What is revoked, as it is kept in Redis, and how it changes there.

All under one hash tag, so that one script changes it together:

    <prefix>:{revocations}:entries    hash: [kind, issuer, name] as JSON -> "<before_us> <until_us> <note>"
    <prefix>:{revocations}:ends       sorted set of the same fields by until_us; what has ended is dropped at a change
    <prefix>:{revocations}:revision   "<number>-<incarnation>-<random>": another one after each change
    <prefix>:{revocations}:log        stream of the last LOG_KEPT_MAX changes; an id is the change's number
    <prefix>:{revocations}            channel that each change is published on

A change names the revision before it and its own, so whoever knows the one may apply it, and whoever does not knows
that something was missed. The incarnation is drawn anew whenever Redis has forgotten the revision; another incarnation,
or an older number, means that Redis has lost something.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from sidecar.core.revocation import NAME_CHARS_MAX, REVOCATIONS_MAX, Kind, Revocation
from sidecar.edges.limit_changes import ChangesError, ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sidecar.edges.limit_changes import Commands

LOG_KEPT_MAX: Final = 10_000
LOG_READ_MAX: Final = 1_000
"""Changes read at a time."""
SCAN_COUNT: Final = 1_000
"""Entries read at a time, about: one reply of some 100 KiB, 2 ms to read."""
DROPPED_MAX: Final = 1_000
"""Ended entries that one change drops."""
NOTE_CHARS_MAX: Final = 200

_ADVANCE: Final = """
local function advance(op, before, ends, field)
  local previous = redis.call('GET', KEYS[3]) or ''
  local number, incarnation = string.match(previous, '^(%d+)%-(%x+)%-')
  if not number then
    number, incarnation = '0', ARGV[2]
    redis.call('DEL', KEYS[4])
  end
  number = string.format('%d', tonumber(number) + 1)
  local revision = number .. '-' .. incarnation .. '-' .. ARGV[2]
  local change = table.concat({previous, revision, op, before, ends, field}, '\\n')
  redis.call('SET', KEYS[3], revision)
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[3], number .. '-0', 'change', change)
  redis.pcall('PUBLISH', ARGV[1], change) -- whoever may not publish is heard of with the next poll
end
"""
_REVOKE: Final = f"""{_ADVANCE}
local field, before, ends, note = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local now = redis.call('TIME')[1] .. '000000'
for _, ended in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, {DROPPED_MAX})) do
  redis.call('HDEL', KEYS[1], ended)
  redis.call('ZREM', KEYS[2], ended)
end
local known = redis.call('HGET', KEYS[1], field)
if known then
  local known_before, known_ends = string.match(known, '^(%d+) (%d+) ')
  if known_before then -- a revocation is never made weaker: that takes an undo
    if tonumber(known_before) > tonumber(before) then before = known_before end
    if tonumber(known_ends) > tonumber(ends) then ends = known_ends end
    if known_before == before and known_ends == ends then return 2 end
  end
elseif redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[8]) then
  return 0
end
redis.call('HSET', KEYS[1], field, before .. ' ' .. ends .. ' ' .. note)
redis.call('ZADD', KEYS[2], ends, field)
advance('revoke', before, ends, field)
return 1
"""
_UNDO: Final = f"""{_ADVANCE}
if redis.call('HDEL', KEYS[1], ARGV[4]) == 0 then return 0 end
redis.call('ZREM', KEYS[2], ARGV[4])
advance('undo', '0', '0', ARGV[4])
return 1
"""


class Change(NamedTuple):
    """One change, as it is published and kept in the log.

    Attributes:
        previous: The revision that it was made on; b"" for the first one.
        operation: `revoke` or `undo`.
        kind: Of the entry; text, since another version may have others.
    """

    previous: bytes
    revision: bytes
    operation: str
    kind: str
    issuer: str
    name: str
    before_us: int
    until_us: int


class Stored(NamedTuple):
    """An entry with what a person needs to recognise it."""

    revocation: Revocation
    note: str


@dataclass(frozen=True, slots=True)
class RevocationKeys:
    """Where it is kept."""

    entries: bytes
    ends: bytes
    revision: bytes
    log: bytes
    channel: bytes

    @classmethod
    def of(cls, prefix: str) -> RevocationKeys:
        """Below a `redis.key_prefix`."""
        base = f"{prefix}:{{revocations}}".encode()
        return cls(base + b":entries", base + b":ends", base + b":revision", base + b":log", base)


class RevocationStore:
    """Reads and changes what is revoked.

    Args:
        commands: Of the store.
        prefix: `redis.key_prefix`.
        entries_max: Entries that may be in force at a time.
    """

    def __init__(self, commands: Commands, prefix: str, *, entries_max: int = REVOCATIONS_MAX) -> None:
        self._commands = commands
        self._entries_max = entries_max
        self.keys = RevocationKeys.of(prefix)

    async def revision(self) -> bytes:
        """Another one than before: something has changed. b"" where nothing ever did.

        Raises:
            ChangesError: Redis did not answer.
        """
        return bytes(await self._ask(b"GET", self.keys.revision) or b"")

    async def revoke(self, revocation: Revocation, note: str = "") -> bool:
        """Put an entry in force on all sidecars; False where one that is as strong was there already.

        Raises:
            ChangesError: Redis did not answer, or too many entries are in force.
        """
        times = (b"%d" % revocation.before_us, b"%d" % revocation.until_us)
        field = _field(revocation.kind, revocation.issuer, revocation.name)
        found = await self._eval(_REVOKE, field, *times, note[:NOTE_CHARS_MAX].encode(), b"%d" % self._entries_max)
        if not found:
            raise ChangesError(
                f"{self._entries_max} revocations are in force, which is the most: undo some, or wait until they end"
            )
        return bool(found == 1)

    async def undo(self, kind: Kind, issuer: str, name: str) -> bool:
        """End an entry on all sidecars; False where there was none.

        Raises:
            ChangesError: Redis did not answer.
        """
        return bool(await self._eval(_UNDO, _field(kind, issuer, name)))

    async def changes(self, after: bytes) -> list[Change] | None:
        """The changes made after a revision, at most `LOG_READ_MAX`; None where the log does not tell.

        Raises:
            ChangesError: Redis did not answer.
        """
        start = b"%d-0" % (number_of(after) + 1)
        read = await self._ask(b"XRANGE", self.keys.log, start, b"+", b"COUNT", b"%d" % LOG_READ_MAX)
        found = [read_change(fields[1]) for _, fields in read]
        previous = after
        for change in found:
            if change is None or change.previous != previous:
                return None
            previous = change.revision
        return [change for change in found if change is not None]

    async def has_forgotten(self, revision: bytes) -> bool:
        """Whether the log tells another change in the place of this one: Redis has lost it, and has gone on since.

        Raises:
            ChangesError: Redis did not answer.
        """
        place = b"%d-0" % number_of(revision)
        read = await self._ask(b"XRANGE", self.keys.log, place, place)
        found = [read_change(fields[1]) for _, fields in read]
        return any(change is not None and change.revision != revision for change in found)

    async def entries(self) -> AsyncIterator[Stored]:
        """All entries, one page after another; what cannot be read is passed over.

        Entries that are added or removed meanwhile may or may not be among them: read the changes afterwards.

        Raises:
            ChangesError: Redis did not answer.
        """
        cursor = b"0"
        while True:
            cursor, page = await self._ask(b"HSCAN", self.keys.entries, cursor, b"COUNT", b"%d" % SCAN_COUNT)
            for field, value in zip(page[::2], page[1::2], strict=True):
                stored = _read_stored(field, value)
                if stored is not None:
                    yield stored
            if cursor == b"0":
                return

    async def _ask(self, *parts: bytes) -> Any:
        return await ask(self._commands, *parts, key=parts[1])

    async def _eval(self, script: str, field: bytes, *arguments: bytes) -> Any:
        keys = self.keys
        names = (keys.entries, keys.ends, keys.revision, keys.log)
        ours = (keys.channel, secrets.token_hex(8).encode(), b"%d" % LOG_KEPT_MAX, field)
        return await ask(self._commands, b"EVAL", script.encode(), b"4", *names, *ours, *arguments, key=keys.entries)


def number_of(revision: bytes) -> int:
    """How many changes led to a revision."""
    digits = revision.partition(b"-")[0]
    return int(digits) if digits.isdigit() and len(digits) < 20 else 0


def incarnation_of(revision: bytes) -> bytes:
    """Whose numbers they are."""
    return revision.split(b"-")[1] if revision.count(b"-") > 1 else b""


def read_change(text: bytes) -> Change | None:
    """A change as published; None if it is none."""
    parts = bytes(text).split(b"\n")
    if len(parts) != len(("previous", "revision", "operation", "before", "until", "field")):
        return None
    previous, revision, operation, before, until, field = parts
    named = _read_field(field)
    if named is None or not (before.isdigit() and until.isdigit()):
        return None
    return Change(previous, revision, operation.decode("ascii", "replace"), *named, int(before), int(until))


def _field(kind: Kind, issuer: str, name: str) -> bytes:
    return msgspec.json.encode((kind.value, issuer, name))


def _read_field(field: bytes) -> tuple[str, str, str] | None:
    try:
        return msgspec.json.decode(field, type=tuple[str, str, str])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _read_stored(field: bytes, value: bytes) -> Stored | None:
    named, (before, until, note) = _read_field(field), (*value.split(b" ", 2), b"", b"", b"")[:3]
    if named is None or named[0] not in _KINDS or not (before.isdigit() and until.isdigit()):
        return None
    kind, issuer, name = named
    if not 0 < len(name) <= NAME_CHARS_MAX:
        return None
    return Stored(Revocation(Kind(kind), issuer, name, int(before), int(until)), note.decode("utf-8", "replace"))


_KINDS: Final = frozenset(kind.value for kind in Kind)
