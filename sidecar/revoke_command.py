"""`sidecar revoke`: what is not believed any more, on all sidecars, within a second.

All of it happens in the Redis that the policy names, with the policy's own credentials.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from sidecar.core.limits import US_PER_S
from sidecar.core.revocation import NEVER_US, Kind, Revocation
from sidecar.edges.limit_changes import ChangesError
from sidecar.edges.revocation_route import shown
from sidecar.edges.revocation_store import RevocationStore, Stored
from sidecar.policy.compile import load
from sidecar.policy.revocation_terms import TermError, Terms
from sidecar.redis_session import UsageError, answered, redis_session


@dataclass(frozen=True, slots=True)
class Session:
    """What may be named, and where it is kept."""

    terms: Terms
    store: RevocationStore


@dataclass(frozen=True, slots=True)
class Report:
    """What an action did: for programs, and for people."""

    value: Any
    text: str


Action: TypeAlias = Callable[[Session, argparse.Namespace], Awaitable[Report]]


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit status.

    Raises:
        PolicyError: The policy is refused.
        OSError: Redis does not answer.
    """
    try:
        report = asyncio.run(_with_session(_ACTIONS[arguments.action], arguments))
    except (UsageError, TermError) as error:
        print(f"sidecar revoke: {error}", file=sys.stderr)
        return 2
    except ChangesError as error:
        raise OSError(str(error)) from None
    print(json.dumps(report.value, indent=2) if arguments.output == "json" else report.text)
    return 0


async def _with_session(action: Action, arguments: argparse.Namespace) -> Report:
    document = load(arguments.config, 1)
    terms = Terms.of(document)
    redis = document.settings.redis
    async with redis_session(redis, "revocations are kept there") as store:
        revocations = RevocationStore(store, redis.key_prefix if redis is not None else "")
        await answered(revocations.revision)
        return await action(Session(terms, revocations), arguments)


async def _revoke(session: Session, arguments: argparse.Namespace) -> Report:
    before = getattr(arguments, "before", None)
    revocation = session.terms.revocation(arguments.action, arguments.issuer, arguments.name, before, arguments.lasting)
    is_new = await session.store.revoke(revocation, arguments.note)
    text = f"{_readable(revocation)}{'' if is_new else ' (was so already)'}"
    return Report({**shown(revocation, arguments.note), "new": is_new}, text)


async def _undo(session: Session, arguments: argparse.Namespace) -> Report:
    kind, issuer, name = session.terms.named(arguments.kind, arguments.issuer, arguments.name)
    undone = await session.store.undo(kind, issuer, name)
    text = f"{kind} {name} of {issuer}: {'not revoked any more' if undone else 'was not revoked'}"
    return Report({"undone": undone}, text)


async def _list(session: Session, _arguments: argparse.Namespace) -> Report:
    now_us = time.time_ns() // 1000
    found: list[Stored] = [each async for each in session.store.entries() if each.revocation.until_us > now_us]
    found.sort()
    lines = [_readable(each.revocation) + (f"  # {each.note}" if each.note else "") for each in found]
    return Report([shown(*each) for each in found], "\n".join(lines) or "nothing is revoked")


def _readable(revocation: Revocation) -> str:
    before = f" before {_time(revocation.before_us)}" if revocation.kind is Kind.SUBJECT else ""
    until = "it is undone" if revocation.until_us == NEVER_US else _time(revocation.until_us)
    return f"{revocation.kind} {revocation.name} of {revocation.issuer}: revoked{before} until {until}"


def _time(time_us: int) -> str:
    return time.strftime("%FT%TZ", time.gmtime(time_us // US_PER_S))


_ACTIONS: Final[dict[str, Action]] = {**dict.fromkeys(Kind, _revoke), "undo": _undo, "list": _list}
