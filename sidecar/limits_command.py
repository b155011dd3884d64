"""`sidecar limits`: looks at the counters of running sidecars, empties them, and overrides the limits of single keys.

All of it happens in the Redis that the policy names, with the policy's own credentials; only `top` asks a running
sidecar, at its admin address.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from sidecar.core.bindings import limit_key
from sidecar.core.limits import REQUESTS_MAX, US_PER_S, Algorithm, Charge, Limit, LimitOutcome, StoreFailure, Verdict
from sidecar.core.overrides import Override, Overrides
from sidecar.core.selectors import (
    ClaimSelector,
    ConstantSelector,
    HeaderSelector,
    MetadataSelector,
    PathParameterSelector,
    PrincipalSelector,
    Selector,
)
from sidecar.edges.admin_client import AdminSilentError, get_json
from sidecar.edges.hot_keys_route import TOP_PATH
from sidecar.edges.limit_changes import ChangesError, LimitChanges, StoredOverride
from sidecar.policy.compile import load
from sidecar.policy.durations import parse as parse_duration
from sidecar.policy.durations import render as render_duration
from sidecar.policy.faults import Wrong
from sidecar.redis_session import UsageError, answered, redis_session

if TYPE_CHECKING:
    from sidecar.core.bindings import LimitBinding
    from sidecar.edges.redis_topology import TopologyStore
    from sidecar.policy.compile import CompiledDocument

RATELIMIT: Final = "ratelimit:"
"""In front of a domain of the rate limit service, where a limit's name is expected."""

ABSENT: Final = "@absent"
"""Stands for a part of the key that requests do not have."""

CHARGE_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Counter:
    """One counter key, and the limits that may count there: a limit's own rate, and those of its plans."""

    name: str
    subject: tuple[str | None, ...]
    key: bytes
    limits: tuple[Limit, ...]

    @property
    def distinct(self) -> list[Limit]:
        """One limit for each counter that there may be: plans with the same window share one."""
        return list({Charge(limit, self.key).storage_key: limit for limit in self.limits}.values())


@dataclass(frozen=True, slots=True)
class Session:
    """A policy, and a connection to its Redis."""

    document: CompiledDocument
    store: TopologyStore
    changes: LimitChanges


@dataclass(frozen=True, slots=True)
class Report:
    """What an action found: for programs, and for people."""

    value: Any
    text: str


Action: TypeAlias = Callable[[Session, argparse.Namespace], Awaitable[Report]]


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit status.

    Raises:
        PolicyError: The policy is refused.
        OSError: Redis, or the sidecar, does not answer.
    """
    if arguments.action == "top":
        return _top(arguments)
    try:
        return _print(asyncio.run(_with_session(_ACTIONS[arguments.action], arguments)), arguments)
    except UsageError as error:
        print(f"sidecar limits: {error}", file=sys.stderr)
        return 2
    except ChangesError as error:
        raise OSError(str(error)) from None


def _print(report: Report, arguments: argparse.Namespace) -> int:
    print(json.dumps(report.value, indent=2) if arguments.output == "json" else report.text)
    return 0


async def _with_session(action: Action, arguments: argparse.Namespace) -> Report:
    document = load(arguments.config, 1)
    redis = document.settings.redis
    async with redis_session(redis, "nothing is counted") as store:
        changes = LimitChanges(store, redis.key_prefix if redis is not None else "")
        await answered(changes.revision)
        return await action(Session(document, store, changes), arguments)


def counter(document: CompiledDocument, name: str, values: Sequence[str]) -> Counter:
    """The counter of a policy's limit for the values of its key, or of a descriptor (`ratelimit:<domain>`).

    Raises:
        UsageError: There is no such limit, or its key has other parts.
    """
    prefix = document.settings.redis.key_prefix if document.settings.redis else "sidecar"
    if name.startswith(RATELIMIT):
        return _descriptor_counter(document, prefix, name, values)
    binding = document.limits.get(name)
    if binding is None:
        raise UsageError(f"the policy has no limit {name!r}; it has {', '.join(sorted(document.limits)) or 'none'}")
    subject = _subject(binding, values)
    return Counter(name, subject, limit_key(prefix, name, subject), binding.limits)


class _Entry(NamedTuple):
    key: str
    value: str


def _descriptor_counter(document: CompiledDocument, prefix: str, name: str, values: Sequence[str]) -> Counter:
    domains = document.policy.ratelimit.domains
    domain = domains.get(name.removeprefix(RATELIMIT))
    if domain is None:
        there = ", ".join(f"{RATELIMIT}{each}" for each in sorted(domains)) or "none"
        raise UsageError(f"the rate limit service has no such domain as {name!r}; it has {there}")
    entries = [_Entry(*value.partition("=")[::2]) for value in values]
    found = domain.find(entries)
    if found is None or found.limit is None:
        raise UsageError(f"no limit of {name} counts the descriptor ({', '.join(values)}); its entries are KEY=VALUE")
    key = domain.counter_key(f"{prefix}:".encode(), found, entries)
    return Counter(name, tuple(values), key, (found.limit,))


def _subject(binding: LimitBinding, values: Sequence[str]) -> tuple[str | None, ...]:
    wanted = [selector for selector in binding.key if not isinstance(selector, ConstantSelector)]
    if len(values) != len(wanted):
        names = ", ".join(_described(selector) for selector in wanted) or "no value: its key is constant"
        raise UsageError(f"limit {binding.limit.name!r} takes {names}; {len(values)} values are given")
    given = (None if value == ABSENT else value for value in values)
    return tuple(selector.value if isinstance(selector, ConstantSelector) else next(given) for selector in binding.key)


def _described(selector: Selector) -> str:
    match selector:
        case ClaimSelector(path=path):
            return f"the claim {'.'.join(path)}"
        case PrincipalSelector(fact=fact):
            return f"the principal's {fact.value}"
        case HeaderSelector(name=name):
            return f"the header {name}"
        case PathParameterSelector(name=name):
            return f"the path parameter {name}"
        case MetadataSelector(namespace=namespace, path=path):
            return f"the metadata {namespace} {'.'.join(path)}"
        case _:
            return "the client's address"


async def _show(session: Session, arguments: argparse.Namespace) -> Report:
    found = counter(session.document, arguments.limit, arguments.values)
    stored = (await session.changes.overrides()).get(found.key)
    overrides = Overrides()
    if stored is not None and not _has_ended(stored):
        overrides.replace({found.key: stored.override()})
    outcomes = []
    for limit in found.distinct:
        [charge] = overrides.applied([Charge(limit, found.key, 0)])
        outcomes.append(await answered(functools.partial(_outcome, session.store, charge)))
    shown = [_as_json(outcome, overridden=overrides.active) for outcome in outcomes]
    text = "\n".join(_as_text(found, each) for each in shown)
    return Report({"limit": found.name, "key": list(found.subject), "counters": shown}, text)


async def _outcome(store: TopologyStore, charge: Charge) -> LimitOutcome:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Verdict | StoreFailure] = loop.create_future()
    store.charge([charge], loop.time() + CHARGE_TIMEOUT_S, answer.set_result)
    verdict = await answer
    if isinstance(verdict, StoreFailure):
        raise ChangesError(f"Redis did not count: {verdict.value}")
    return verdict.outcomes[0]


def _as_json(outcome: LimitOutcome, *, overridden: bool) -> dict[str, Any]:
    limit = outcome.limit
    return {
        "requests": limit.requests,
        "window": render_duration(limit.window_us),
        "algorithm": limit.algorithm.value,
        "used": outcome.used,
        "remaining": max(limit.capacity - outcome.used, 0),
        "whole_again_in_s": outcome.reset_after_us / US_PER_S,
        "overridden": overridden,
    }


def _as_text(found: Counter, shown: dict[str, Any]) -> str:
    rate = f"{shown['requests']}"
    if shown["algorithm"] != Algorithm.CONCURRENCY:
        rate += f" in {shown['window']}"
    return "\n".join(
        [
            f"{found.name} of {_readable(found.subject)}",
            f"  limit      {rate}, {shown['algorithm']}{' (overridden)' if shown['overridden'] else ''}",
            f"  used       {shown['used']}",
            f"  remaining  {shown['remaining']}",
            f"  whole in   {shown['whole_again_in_s']:.3f} s",
        ]
    )


def _readable(subject: Sequence[str | None]) -> str:
    return ", ".join(ABSENT if part is None else part for part in subject) or "everybody"


async def _reset(session: Session, arguments: argparse.Namespace) -> Report:
    found = counter(session.document, arguments.limit, arguments.values)
    keys = [Charge(limit, found.key).storage_key for limit in found.distinct]
    emptied = [key for key in keys if await session.changes.reset(key)]
    text = f"{found.name} of {_readable(found.subject)}: {'emptied' if emptied else 'nothing was counted'}"
    return Report({"emptied": len(emptied)}, text)


async def _override(session: Session, arguments: argparse.Namespace) -> Report:
    found = counter(session.document, arguments.limit, arguments.values)
    until_us = _until_us(arguments.lasting)
    override = Override(arguments.requests, arguments.burst, until_us)
    _check_override(found, override)
    await session.changes.set_override(
        found.key, StoredOverride(found.name, list(found.subject), override.requests, override.burst, until_us)
    )
    lasts = f" for {arguments.lasting}" if arguments.lasting else ""
    text = f"{found.name} of {_readable(found.subject)}: {override.requests} requests{lasts}"
    return Report({"requests": override.requests, "burst": override.burst, "until_us": until_us}, text)


def _until_us(lasting: str | None) -> int | None:
    if lasting is None:
        return None
    try:
        return time.time_ns() // 1000 + parse_duration(lasting)
    except Wrong as wrong:
        raise UsageError(f"--for: {wrong}") from None


def _check_override(found: Counter, override: Override) -> None:
    """Raises UsageError where the limit could not count by it."""
    for figure, option in ((override.requests, "--requests"), (override.burst, "--burst")):
        if not 0 <= figure <= REQUESTS_MAX:
            raise UsageError(f"{option}: {figure} is not a number of requests; 0 to {REQUESTS_MAX} is")
    if override.burst and any(limit.algorithm is not Algorithm.GCRA for limit in found.limits):
        raise UsageError(f"--burst: limit {found.name!r} is not counted by gcra")
    try:
        for limit in found.limits:
            replace(limit, requests=override.requests, burst=override.burst)
    except ValueError as error:
        raise UsageError(f"limit {found.name!r} cannot be so: {error}") from None


async def _clear(session: Session, arguments: argparse.Namespace) -> Report:
    found = counter(session.document, arguments.limit, arguments.values)
    cleared = await session.changes.clear_override(found.key)
    text = f"{found.name} of {_readable(found.subject)}: {'no override any more' if cleared else 'had no override'}"
    return Report({"cleared": cleared}, text)


async def _overrides(session: Session, _arguments: argparse.Namespace) -> Report:
    stored = sorted((await session.changes.overrides()).values(), key=lambda each: (each.limit, repr(each.subject)))
    in_force = [each for each in stored if not _has_ended(each)]
    value = [
        {"limit": each.limit, "key": each.subject, "requests": each.requests, "burst": each.burst,
         "until_us": each.until_us}
        for each in in_force
    ]  # fmt: skip
    lines = [
        f"{each.limit} of {_readable(each.subject)}: {each.requests} requests"
        + (f" until {time.strftime('%FT%TZ', time.gmtime(each.until_us // US_PER_S))}" if each.until_us else "")
        for each in in_force
    ]
    return Report(value, "\n".join(lines) or "no overrides")


def _has_ended(stored: StoredOverride) -> bool:
    return stored.until_us is not None and stored.until_us <= time.time_ns() // 1000


def _top(arguments: argparse.Namespace) -> int:
    document = load(arguments.config, 1)
    try:
        found = asyncio.run(get_json(document.settings.admin, TOP_PATH))
    except AdminSilentError as error:
        raise OSError(f"the sidecar at {document.settings.admin} does not answer: {error}") from None
    keys = found["keys"][: max(arguments.count, 0)]
    lines = [f"{each['per_second']:10.1f}/s  {each['limit']}  {_readable(each['key'])}" for each in keys]
    return _print(Report(keys, "\n".join(lines) or "nothing was charged lately"), arguments)


_ACTIONS: Final[dict[str, Action]] = {
    "show": _show,
    "reset": _reset,
    "override": _override,
    "clear": _clear,
    "overrides": _overrides,
}
