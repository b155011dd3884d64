"""`sidecar keys`: makes API keys, shows what is kept of them, rotates, revokes, imports and forgets them.

The keys are where the policy's keyring says: in its Redis, with the policy's own credentials, or in a file. A key is
shown once, on standard output, when it is made; after that nobody can read it anywhere.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import getpass
import itertools
import json
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import msgspec

from sidecar.core.api_key_format import ALPHABET, KEY_ID_CHARS, SECRET_CHARS, is_key_id, key_digest, write_key
from sidecar.core.api_key_records import KeyRecord, RecordError, hold
from sidecar.edges.api_key_file import FileKeyStore
from sidecar.edges.api_key_store import KeyStoreError, RedisKeyStore
from sidecar.edges.redis_topology import build_store
from sidecar.keys_import import LINE_BYTES_MAX, ImportFault, imported
from sidecar.policy.compile import load
from sidecar.policy.durations import parse as parse_duration
from sidecar.policy.faults import Wrong, did_you_mean

if TYPE_CHECKING:
    from sidecar.policy.api_key_section import CompiledKeyring
    from sidecar.policy.compile import CompiledDocument

NEVER: Final = "never"


class UsageError(Exception):
    """The command line asks for what cannot be; says what can."""


class KeyStore(Protocol):
    """Where the keys of a keyring are: a file or Redis. Every method may raise `KeyStoreError`."""

    async def get(self, key_id: str) -> KeyRecord | None:
        """A record, None where there is none."""

    async def create(self, records: Sequence[KeyRecord]) -> list[KeyRecord]:
        """Add keys; those whose id is taken are returned."""

    async def replace(self, old: KeyRecord, new: KeyRecord) -> None:
        """Change a key."""

    async def remove(self, key_ids: Sequence[str]) -> None:
        """Forget keys."""

    def all(self) -> AsyncIterator[KeyRecord]:
        """Every record."""

    async def last_used(self, key_ids: Iterable[str]) -> dict[str, int]:
        """When keys were used last, in seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Session:
    """A keyring, its store, and the time."""

    compiled: CompiledKeyring
    store: KeyStore
    now: datetime

    async def record(self, key_id: str) -> KeyRecord:
        """A record.

        Raises:
            UsageError: There is none.
        """
        if not is_key_id(key_id):
            raise UsageError(
                f"a key is named by its id, {KEY_ID_CHARS} letters and digits; never give a whole key here"
            )
        record = await self.store.get(key_id)
        if record is None:
            raise UsageError(f"keyring {self.compiled.keyring.name!r} has no key {key_id}")
        return record


@dataclass(frozen=True, slots=True)
class Report:
    """What an action did.

    Attributes:
        value: For programs.
        text: For people, on standard output.
        beside: For people, on standard error.
    """

    value: Any
    text: str
    beside: str = ""


Action: TypeAlias = Callable[[Session, argparse.Namespace], Awaitable[Report]]


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit status.

    Raises:
        PolicyError: The policy is refused.
        OSError: The keys cannot be had.
    """
    try:
        report = asyncio.run(_with_session(_ACTIONS[arguments.action], arguments))
    except (UsageError, ImportFault) as error:
        print(f"sidecar keys: {error}", file=sys.stderr)
        return 2
    except KeyStoreError as error:
        raise OSError(str(error)) from None
    if arguments.output == "json":
        print(json.dumps(report.value, indent=2))
        return 0
    print(report.text)
    if report.beside:
        print(report.beside, file=sys.stderr)
    return 0


async def _with_session(action: Action, arguments: argparse.Namespace) -> Report:
    document = load(arguments.config, 1)
    compiled = document.keyrings.get(arguments.keyring)
    if compiled is None:
        accepted = did_you_mean(arguments.keyring, document.keyrings, "keyrings")
        raise UsageError(f"the policy has no keyring {arguments.keyring!r}; {accepted}")
    async with _opened(document, compiled) as store:
        return await action(Session(compiled, store, datetime.now(UTC).replace(microsecond=0)), arguments)


@contextlib.asynccontextmanager
async def _opened(document: CompiledDocument, compiled: CompiledKeyring) -> AsyncIterator[KeyStore]:
    name = compiled.keyring.name
    if compiled.file is not None:
        yield FileKeyStore(compiled.file, name)
        return
    redis = document.settings.redis
    if redis is None or redis.embedded:
        raise UsageError("an embedded Valkey belongs to the sidecar that started it; name a server in redis.url")
    connection = build_store(redis, "")
    connection.start()
    try:
        store = RedisKeyStore(connection, redis.key_prefix, name)
        await store.connected()
        yield store
    finally:
        await connection.close()


async def _create(session: Session, arguments: argparse.Namespace) -> Report:
    compiled = session.compiled
    key, key_id = _new_key(compiled.keyring.family)
    record = KeyRecord(
        id=key_id,
        owner=arguments.owner,
        hash=compiled.keyring.peppers.hash(key_digest(key)),
        created_at=session.now,
        expires_at=_expiry(session, arguments.expires),
        not_before=_moment(session.now, "--not-before", arguments.not_before),
        tenant=arguments.tenant,
        tier=arguments.tier,
        scopes=_listed(arguments.scopes),
        roles=_listed(arguments.roles),
        networks=_listed(arguments.networks),
        hosts=_listed(arguments.hosts),
        methods=_listed(arguments.methods),
        created_by=arguments.created_by or _who(),
        metadata=_metadata(arguments.metadata),
    )
    _check(record, compiled)
    if await session.store.create([record]):
        raise KeyStoreError(f"the key id {key_id} is taken; try again")
    return _with_key(session, key, record)


def _with_key(session: Session, key: str, record: KeyRecord) -> Report:
    """The one report that holds a key."""
    shown = _as_json(record, session.now)
    value = {"key": key, "record": shown}
    beside = f"{_as_text(shown)}\nThe key is on standard output, and is not shown again."
    return Report(value, key, beside)


def _new_key(family: str, key_id: str = "") -> tuple[str, str]:
    key_id = key_id or _random(KEY_ID_CHARS)
    return write_key(family, key_id, _random(SECRET_CHARS)), key_id


def _random(chars: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(chars))


def _check(record: KeyRecord, compiled: CompiledKeyring) -> None:
    try:
        hold(record, compiled.keyring.name)
    except RecordError as error:
        raise UsageError(str(error)) from None
    if record.expires_at is not None and record.not_before is not None and record.expires_at <= record.not_before:
        raise UsageError("--expires: it is not after --not-before")


async def _list(session: Session, arguments: argparse.Namespace) -> Report:
    records: list[KeyRecord] = []
    more = 0
    async for record in session.store.all():
        if arguments.owner and record.owner != arguments.owner:
            continue
        if len(records) < arguments.count:
            records.append(record)
        else:
            more += 1
    used = await session.store.last_used([record.id for record in records])
    records.sort(key=lambda record: (record.owner, record.created_at, record.id))
    shown = [_as_json(record, session.now, used.get(record.id)) for record in records]
    columns = ["id", "state", "owner", "tier", "expires_at", "last_used"]
    rows = [columns, *([str(each.get(name) or "-") for name in columns] for each in shown)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(columns))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    beside = f"{more} more keys; --count shows them, --owner chooses" if more else ""
    return Report(shown, "\n".join(lines) if shown else "no keys", beside)


async def _show(session: Session, arguments: argparse.Namespace) -> Report:
    record = await session.record(arguments.key_id)
    used = await session.store.last_used([record.id])
    value = _as_json(record, session.now, used.get(record.id))
    return Report(value, _as_text(value))


async def _rotate(session: Session, arguments: argparse.Namespace) -> Report:
    old = await session.record(arguments.key_id)
    state = _state(old, session.now)
    if state not in {"active", "not yet valid"}:
        raise UsageError(f"key {old.id} is {state}; make a new one")
    key, _ = _new_key(session.compiled.keyring.family, old.id)
    overlap_us = _duration_us("--overlap", arguments.overlap)
    new = msgspec.structs.replace(
        old,
        hash=session.compiled.keyring.peppers.hash(key_digest(key)),
        previous_hash=old.hash if overlap_us else "",
        previous_until=session.now + timedelta(microseconds=overlap_us) if overlap_us else None,
        rotated_at=session.now,
        expires_at=old.expires_at if arguments.expires is None else _expiry(session, arguments.expires),
    )
    _check(new, session.compiled)
    await session.store.replace(old, new)
    return _with_key(session, key, new)


async def _revoke(session: Session, arguments: argparse.Namespace) -> Report:
    old = await session.record(arguments.key_id)
    if old.status != "revoked":
        await session.store.replace(old, msgspec.structs.replace(old, status="revoked", revoked_at=session.now))
        text = f"key {old.id} of {old.owner}: revoked"
    else:
        text = f"key {old.id} of {old.owner}: was revoked before"
    return Report({"id": old.id, "revoked": True}, text)


async def _import(session: Session, arguments: argparse.Namespace) -> Report:
    who = arguments.created_by or _who()
    records = imported(_lines(arguments.file), session.compiled, session.now, who)
    taken = [record.id for record in await session.store.create(records)]
    text = f"{len(records) - len(taken)} keys imported"
    beside = f"{len(taken)} were there already, and are as they were: {', '.join(taken[:20])}" if taken else ""
    return Report({"imported": len(records) - len(taken), "taken": taken}, text, beside)


def _lines(name: str) -> Iterable[bytes]:
    """The lines of a file, `-` for standard input; one that is too long is cut, and will be refused."""
    with contextlib.nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb") as stream:
        while line := stream.readline(LINE_BYTES_MAX + 1):
            yield line


async def _prune(session: Session, arguments: argparse.Namespace) -> Report:
    before = session.now - timedelta(microseconds=_duration_us("--older-than", arguments.older_than))
    dead: list[str] = []
    async for record in session.store.all():
        ends = [moment for moment in (record.expires_at, record.revoked_at) if moment is not None]
        if ends and min(ends) <= before:
            dead.append(record.id)
    await session.store.remove(dead)
    return Report({"pruned": sorted(dead)}, f"{len(dead)} keys pruned")


def _as_json(record: KeyRecord, now: datetime, used_s: int | None = None) -> dict[str, Any]:
    """A record without its hashes."""
    value: dict[str, Any] = msgspec.to_builtins(record)
    value["pepper"] = int(value.pop("hash").partition(":")[0])
    if value.pop("previous_hash", None):
        value["previous_secret_until"] = value.pop("previous_until")
    value["state"] = _state(record, now)
    if used_s is not None:
        value["last_used"] = datetime.fromtimestamp(used_s, UTC).strftime("%FT%TZ")
    return value


def _as_text(value: dict[str, Any]) -> str:
    names = ["id", "state", *(name for name in value if name not in {"id", "state", "status"})]
    return "\n".join(f"{name:22} {_shown(value[name])}" for name in names)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={each}" for name, each in value.items())
    return ", ".join(value) if isinstance(value, (list, tuple)) else str(value)


def _state(record: KeyRecord, now: datetime) -> str:
    if record.status != "active":
        return record.status
    if record.expires_at is not None and record.expires_at <= now:
        return "expired"
    return "not yet valid" if record.not_before is not None and now < record.not_before else "active"


def _expiry(session: Session, text: str | None) -> datetime | None:
    """When a new key expires."""
    if text == NEVER:
        return None
    if text is None:
        return session.now + timedelta(microseconds=session.compiled.lifetime_us)
    moment = _moment(session.now, "--expires", text)
    if moment is None or moment <= session.now:
        raise UsageError(f"--expires: {text!r} is not in the future")
    return moment


def _moment(now: datetime, option: str, text: str | None) -> datetime | None:
    """A duration from now on, or a date."""
    if text is None:
        return None
    with contextlib.suppress(Wrong, OverflowError):
        return now + timedelta(microseconds=parse_duration(text))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        accepted = "a duration such as 90d, a date such as 2030-01-31 or 2030-01-31T12:00:00Z"
        raise UsageError(f"{option}: {text!r} is neither; {accepted}") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _duration_us(option: str, text: str) -> int:
    try:
        return parse_duration(text)
    except Wrong as wrong:
        raise UsageError(f"{option}: {wrong}") from None


def _listed(texts: Sequence[str]) -> tuple[str, ...]:
    """Each once, also where several are in one text with commas between them."""
    return tuple(dict.fromkeys(itertools.chain.from_iterable(filter(None, text.split(",")) for text in texts)))


def _metadata(texts: Sequence[str]) -> dict[str, str]:
    for text in texts:
        if "=" not in text:
            raise UsageError(f"--metadata: {text!r} is not NAME=VALUE")
    return dict(text.partition("=")[::2] for text in texts)


def _who() -> str:
    """Who runs the command, "" where the system does not know."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


_ACTIONS: Final[dict[str, Action]] = {
    "create": _create,
    "list": _list,
    "show": _show,
    "rotate": _rotate,
    "revoke": _revoke,
    "import": _import,
    "prune": _prune,
}
