"""Holds the policy in use, and replaces it as a whole or not at all.

A reload reads and compiles in a thread while the old policy goes on deciding, then swaps one reference on the loop. A
policy that is refused changes nothing: the old one stays, and the faults are kept for `/readyz`, the log and a metric.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sidecar.edges.log import get_log
from sidecar.policy.compile import CompiledDocument, load
from sidecar.policy.faults import Fault, PolicyError

if TYPE_CHECKING:
    from pathlib import Path

    from sidecar.core.policy import Policy
    from sidecar.policy.settings import Settings

RELOADABLE_SETTINGS: Final = frozenset({"log_level", "ratelimit_directory"})
"""What a new file may change without a restart, besides everything that decides."""

FAULTS_SHOWN_MAX: Final = 20

RELOAD_SWITCH_INTERVAL_S: Final = 0.0005
"""How long loading may keep the interpreter while the loop wants it; with the default of 5 ms, a loop beside the
loading of 12,000 rules answered a fifth as many calls."""

_log = get_log("policy")


class PolicyHolder:
    """The current policy. `policy` is one attribute read; a request reads it once.

    Args:
        path: The policy file.
        document: What was loaded from it at start, of generation 1.
        load_policy: Loads it, given the next generation; reads `path` without it.
        now_s: Seconds since the epoch.

    Attributes:
        policy: The policy in use.
        document: What it was compiled from, and the settings beside it.
        accepted_total, refused_total: Reloads since the start, by what came of them.
        accepted_s: When the policy in use was accepted, in seconds since the epoch.
        refused_s: When a reload was last refused, None if none was since the last accepted one.
        faults: Why the last reload was refused; empty once one is accepted.
        restart_needed: Settings that the file changes and that only a restart applies.
    """

    def __init__(
        self,
        path: Path,
        document: CompiledDocument,
        *,
        load_policy: Callable[[int], CompiledDocument] | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self.policy: Policy = document.policy
        self.document = document
        self.accepted_total = 0
        self.refused_total = 0
        self.accepted_s = now_s()
        self.refused_s: float | None = None
        self.faults: tuple[str, ...] = ()
        self.restart_needed: tuple[str, ...] = ()
        self._started_with = document.settings
        self._path = path
        self._load = load_policy or (lambda generation: load(path, generation))
        self._now_s = now_s
        self._subscribers: list[Callable[[CompiledDocument], None]] = []
        self._reloading = asyncio.Lock()

    def subscribe(self, subscriber: Callable[[CompiledDocument], None]) -> None:
        """Call this, on the loop, after each replacement. What it raises is logged, and undoes nothing."""
        self._subscribers.append(subscriber)

    async def reload(self) -> bool:
        """Load the policy again; True when it was accepted. Reloads that overlap follow one another."""
        async with self._reloading:
            try:
                document = await asyncio.to_thread(_load_politely, self._load, self.policy.generation + 1)
                self._refuse_nothing(document)
            except PolicyError as error:
                self._refuse(tuple(map(str, error.faults)))
                return False
            except Exception as error:  # noqa: BLE001 - a fault of ours while loading must not cost the old policy
                _log.exception("policy_load_failed")
                self._refuse((f"the policy could not be loaded: {type(error).__name__}",))
                return False
            self._replace(document)
            return True

    def detail(self) -> dict[str, object]:
        """What an operator wants to know, for `/readyz`."""
        detail: dict[str, object] = {"generation": self.policy.generation, "accepted_s": self.accepted_s}
        if self.faults:
            shown = self.faults[:FAULTS_SHOWN_MAX]
            detail["last_reload"] = {"refused_s": self.refused_s, "faults": shown, "faults_total": len(self.faults)}
        if self.restart_needed:
            detail["restart_needed_for"] = self.restart_needed
        return detail

    def _refuse_nothing(self, new: CompiledDocument) -> None:
        """A policy without rules, or a directory of rate limits that lost all its files, is a mishap, not a wish.

        Raises:
            PolicyError: Something would be replaced by nothing.
        """
        old, directory = self.policy, new.settings.ratelimit_directory
        if old.rules.rules and not new.policy.rules.rules:
            raise PolicyError([Fault(str(self._path), 0, "rules", "none is left", "at least one rule")])
        if directory is not None and old.ratelimit.domains and not new.policy.ratelimit.domains:
            raise PolicyError([Fault(directory, 0, "", "no domain is left", "at least one, or no ratelimit.directory")])

    def _replace(self, document: CompiledDocument) -> None:
        document.policy.ratelimit.continue_from(self.policy.ratelimit)
        self.document = document
        self.policy = document.policy
        self.accepted_total += 1
        self.accepted_s, self.refused_s, self.faults = self._now_s(), None, ()
        self.restart_needed = _changed_settings(self._started_with, document.settings)
        _log.info("policy_replaced", generation=self.policy.generation)
        if self.restart_needed:
            _log.warning("restart_needed", settings=self.restart_needed)
        for subscriber in self._subscribers:
            try:
                subscriber(document)
            except Exception:  # noqa: BLE001 - the others are told too
                _log.exception("policy_subscriber_failed")

    def _refuse(self, faults: tuple[str, ...]) -> None:
        self.refused_total += 1
        self.refused_s, self.faults = self._now_s(), faults
        _log.error(
            "policy_refused",
            generation_kept=self.policy.generation,
            faults=faults[:FAULTS_SHOWN_MAX],
            faults_total=len(faults),
        )


def _load_politely(load_policy: Callable[[int], CompiledDocument], generation: int) -> CompiledDocument:
    """Load, and let the loop's thread have the interpreter whenever it asks."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(RELOAD_SWITCH_INTERVAL_S)
    try:
        return load_policy(generation)
    finally:
        sys.setswitchinterval(interval_s)


def _changed_settings(old: Settings, new: Settings) -> tuple[str, ...]:
    return tuple(
        field.name
        for field in dataclasses.fields(old)
        if field.name not in RELOADABLE_SETTINGS and getattr(old, field.name) != getattr(new, field.name)
    )
