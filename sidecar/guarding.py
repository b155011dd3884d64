"""What guards authentication, put together: revocations that are followed, and failures that are counted.

Built by app.py, of which this is a part: what a policy does not ask for is not there, and costs nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sidecar.core.guard import Guard
from sidecar.core.revocation import NO_REVOCATIONS, Revocations
from sidecar.core.suspects import NO_SUSPECTS, Suspects
from sidecar.edges.admin import Component
from sidecar.edges.failed_authentications import FailedAuthentications
from sidecar.edges.log import get_log
from sidecar.edges.metrics import Sample
from sidecar.edges.revocation_paths import PATH
from sidecar.edges.revocation_route import revocation_route
from sidecar.edges.revocation_store import RevocationStore
from sidecar.edges.revocations import RevocationEngine
from sidecar.policy.revocation_terms import Terms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.core.audit import DecisionEvent
    from sidecar.core.limits import LimitStore
    from sidecar.edges.admin import PostRoute
    from sidecar.edges.redis_topology import TopologyStore
    from sidecar.policy.compile import CompiledDocument
    from sidecar.policy.settings import Settings

_log = get_log("guard")


class Guarding:
    """The guard of one process.

    Args:
        settings: Say what there is.
        store: Redis; started.
        limiter: Counts failures for all sidecars.
        local: Counts them for this one.
        on_news: Called when revocations are followed, and when they cannot be any more.

    Attributes:
        guard: For deciding.
        engine: Follows the revocations; None where the policy has no such section.
        failures: Counts failed authentications; None where they have no budget.
    """

    def __init__(
        self,
        settings: Settings,
        store: TopologyStore,
        limiter: LimitStore,
        local: LimitStore,
        on_news: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._on_news = on_news
        self.engine: RevocationEngine | None = None
        self.failures: FailedAuthentications | None = None
        revocation, limit = settings.revocation, settings.failed_authentications
        prefix = settings.redis.key_prefix if settings.redis is not None else "sidecar"
        self.guard = Guard(
            NO_REVOCATIONS if revocation is None else Revocations(), NO_SUSPECTS if limit is None else Suspects()
        )
        if revocation is not None:
            self.engine = RevocationEngine(
                store,
                RevocationStore(store, prefix),
                self.guard.revocations,
                stale_after_s=revocation.stale_after_s,
                deny_unknown=revocation.deny_unknown,
                report=self._report,
                now_us=_now_us,
            )
        if limit is not None:
            self.failures = FailedAuthentications(limit, prefix, self.guard.suspects, limiter, local, _now_us)

    @property
    def ready(self) -> bool:
        """Whether what is revoked is known, as far as the policy demands it."""
        return self.engine is None or self.engine.ready

    def start(self) -> None:
        """Begin to follow."""
        if self.engine is not None:
            self.engine.start()

    async def loaded(self) -> None:
        """Wait, for a bounded time, until it is known what is revoked."""
        if self.engine is not None and not await self.engine.loaded():
            _log.warning("revocations_not_loaded", deny=self.guard.revocations.known_until_us is not None)

    async def close(self) -> None:
        """Stop."""
        if self.failures is not None:
            self.failures.close()
        if self.engine is not None:
            await self.engine.close()

    def observe(self, events: Sequence[DecisionEvent]) -> None:
        """Take decisions that were answered."""
        if self.failures is not None:
            self.failures.observe(events)

    def _report(self, reason: str) -> None:
        if reason:
            _log.warning("revocations_not_followed", reason=reason)
        else:
            _log.info("revocations_followed")
        self._on_news()

    def routes(self, document: Callable[[], CompiledDocument]) -> dict[str, PostRoute]:
        """What operators may do at the admin listener, where the policy names their secret."""
        revocation = self._settings.revocation
        if self.engine is None or revocation is None or revocation.admin_secret is None:
            return {}
        return {PATH: revocation_route(revocation.admin_secret, self.engine.commands, lambda: Terms.of(document()))}

    def components(self) -> dict[str, Component]:
        """For /readyz."""
        return {} if self.engine is None else {"revocations": Component(self.engine.ready, self.engine.detail())}

    def samples(self) -> list[Sample]:
        """For /metrics."""
        return [*self._revocation_samples(), *self._failure_samples()]

    def _revocation_samples(self) -> list[Sample]:
        engine, revocations = self.engine, self.guard.revocations
        if engine is None:
            return []
        age_s = engine.age_s
        return [
            Sample("sidecar_revocations", (), len(revocations)),
            Sample("sidecar_revocations_refused_total", (), revocations.refused_total),
            Sample("sidecar_revocations_subscribed", (), int(engine.subscribed)),
            Sample("sidecar_revocation_changes_total", ("push",), engine.pushed_total),
            Sample("sidecar_revocation_changes_total", ("poll",), engine.polled_total),
            Sample("sidecar_revocation_loads_total", (), engine.loads_total),
            Sample("sidecar_revocations_restored_total", (), engine.restored_total),
            Sample("sidecar_revocation_subscriptions_silent_total", (), engine.silent_total),
            *([] if age_s is None else [Sample("sidecar_revocations_age_seconds", (), age_s)]),
        ]

    def _failure_samples(self) -> list[Sample]:
        failures, suspects = self.failures, self.guard.suspects
        if failures is None:
            return []
        return [
            Sample("sidecar_failed_authentications_total", ("counted",), failures.counted_total),
            Sample("sidecar_failed_authentications_total", ("dropped",), failures.dropped_total),
            Sample("sidecar_suspects", (), len(suspects)),
            Sample("sidecar_suspects_evicted_total", (), suspects.evicted_total),
        ]


def _now_us() -> int:
    return time.time_ns() // 1000
