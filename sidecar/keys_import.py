"""What `sidecar keys import` reads: one JSON object a line, a key of which somebody has the text, a digest or the hash.

    {"key": "...", "owner": "..."}                      the key itself; it is not kept
    {"sha256": "<hexadecimal>", "owner": "..."}         the SHA-256 of the key's text; with "id" where the key holds one
    {"id": "...", "hash": "1:<hexadecimal>", ...}       a record of another Sidecar with the same pepper

Beside these, any field of a record (`KeyRecord`). Without `expires_at` a key gets the keyring's lifetime; null: never.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import UNSET, UnsetType

from sidecar.core.api_key_format import foreign_key_id, is_foreign_key, key_digest, parse_key
from sidecar.core.api_key_records import KeyRecord, Moment, RecordError, hold

if TYPE_CHECKING:
    from sidecar.policy.api_key_section import CompiledKeyring

LINES_MAX: Final = 200_000
"""Keys of one import; more are imported in several."""
LINE_BYTES_MAX: Final = 64 * 1024

_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")


class ImportFault(ValueError):  # noqa: N818 - it is a fault of a line, named as it is told
    """A line cannot be imported; says which and why, and quotes nothing of it."""


class _Line(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    owner: str
    key: str = ""
    sha256: str = ""
    hash: str = ""
    id: str = ""
    created_at: Moment | UnsetType = UNSET
    expires_at: Moment | UnsetType | None = UNSET
    not_before: Moment | None = None
    status: str = "active"
    tenant: str = ""
    tier: str = ""
    scopes: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    previous_hash: str = ""
    previous_until: Moment | None = None
    created_by: str = ""
    rotated_at: Moment | None = None
    revoked_at: Moment | None = None
    metadata: dict[str, str] = {}


def imported(lines: Iterable[bytes], into: CompiledKeyring, now: datetime, created_by: str) -> list[KeyRecord]:
    """The records of all lines; empty lines are passed over.

    Args:
        lines: Of the file.
        into: The keyring.
        now: When a key was made, where its line does not say so.
        created_by: Likewise.

    Raises:
        ImportFault: One cannot be imported: then none is.
    """
    records: dict[str, KeyRecord] = {}
    for number, line in enumerate(lines, 1):
        if number > LINES_MAX:
            raise ImportFault(f"there are more than {LINES_MAX} lines; import them in several files")
        if not line.strip():
            continue
        try:
            record = _record(line, into, now, created_by)
            hold(record, into.keyring.name)
        except (RecordError, ImportFault) as error:
            raise ImportFault(f"line {number}: {error}") from None
        if record.id in records:
            raise ImportFault(f"line {number}: key {record.id} was there before")
        records[record.id] = record
    return list(records.values())


def _record(raw: bytes, into: CompiledKeyring, now: datetime, created_by: str) -> KeyRecord:
    if len(raw) > LINE_BYTES_MAX:
        raise ImportFault(f"it is longer than {LINE_BYTES_MAX} bytes")
    try:
        line = msgspec.json.decode(raw, type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ImportFault(str(error)) from None
    if sum(map(bool, (line.key, line.sha256, line.hash))) != 1:
        raise ImportFault("exactly one of key, sha256 and hash is accepted")
    key_id, hashed = _recognised(line, into)
    lifetime = timedelta(microseconds=into.lifetime_us)
    fields = {name: getattr(line, name) for name in _Line.__struct_fields__ if name not in {"key", "sha256"}}
    fields |= {
        "id": key_id,
        "hash": hashed,
        "created_at": now if line.created_at is UNSET else line.created_at,
        "expires_at": now + lifetime if line.expires_at is UNSET else line.expires_at,
        "created_by": line.created_by or created_by,
    }
    try:
        return msgspec.convert(fields, KeyRecord)
    except msgspec.ValidationError as error:
        raise ImportFault(str(error)) from None


def _recognised(line: _Line, into: CompiledKeyring) -> tuple[str, str]:
    """The key's id, and its hash."""
    keyring = into.keyring
    if line.hash:
        version = line.hash.partition(":")[0]
        if version not in map(str, keyring.peppers.versions):
            raise ImportFault("its hash is under a pepper that pepper_file does not have")
        return line.id, line.hash
    if line.sha256:
        if _SHA256.fullmatch(line.sha256) is None:
            raise ImportFault("sha256: it is not 64 hexadecimal digits")
        digest = bytes.fromhex(line.sha256)
        if line.id:
            return line.id, keyring.peppers.hash(digest)
        _check_foreign(into)
        return foreign_key_id(digest), keyring.peppers.hash(digest)
    digest = key_digest(line.key)
    parsed = parse_key(line.key)
    if parsed is not None and parsed.family == keyring.family:
        if line.id not in {"", parsed.key_id}:
            raise ImportFault("id: the key holds another one")
        return parsed.key_id, keyring.peppers.hash(digest)
    _check_foreign(into)
    if not is_foreign_key(line.key) or parsed is not None:
        raise ImportFault("key: it is not 20 to 256 characters of visible ASCII, or it begins as another keyring's do")
    if line.id:
        raise ImportFault("id: the key holds none, so that it could not be found by it")
    return foreign_key_id(digest), keyring.peppers.hash(digest)


def _check_foreign(into: CompiledKeyring) -> None:
    if not into.keyring.foreign:
        raise ImportFault("it is not in this keyring's own form, which needs foreign_keys: true in the keyring")
