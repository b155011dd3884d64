"""What proves who calls, put together: the issuers' keys, what answers for opaque tokens, API keys, and used proofs.

Built by app.py, of which this is a part. Nothing is fetched for what a policy does not use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.core.api_keys import NeedApiKey
from sidecar.core.dpop import NeedFirstUse
from sidecar.core.introspection import NeedIntrospection
from sidecar.core.token_cache import TokenCache
from sidecar.edges import metric_sources
from sidecar.edges.admin import Component
from sidecar.edges.api_key_engine import ApiKeyEngine
from sidecar.edges.introspection import IntrospectionEngine
from sidecar.edges.jwks import JwksEngine
from sidecar.edges.log import get_log
from sidecar.edges.replay_store import ReplayStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sidecar.check import Engine
    from sidecar.core.policy import Policy
    from sidecar.edges.metrics import Source
    from sidecar.edges.redis_topology import TopologyStore
    from sidecar.policy.settings import Settings

_log = get_log("app")


class Authenticating:
    """The engines behind the methods of authentication of one process. Create and `start` it in the event loop.

    Args:
        policy: What it needs at start.
        settings: Say whether there is a Redis.
        store: Redis.
        on_news: Called when keys of issuers have come, or cannot be had.

    Attributes:
        cache: Verified tokens.
        jwks: The issuers' keys.
        engines: Who finds out what a method needs, by the class of the need.
    """

    def __init__(self, policy: Policy, settings: Settings, store: TopologyStore, on_news: Callable[[], None]) -> None:
        redis = settings.redis
        prefix, timeout_s = (redis.key_prefix, redis.timeout_s) if redis is not None else ("", 0.0)
        self._on_news = on_news
        self.cache = TokenCache()
        self.jwks = JwksEngine(policy.issuers.values(), self._jwks_event)
        self._introspection = IntrospectionEngine(policy.introspection.values(), _introspection_event)
        self._replays = ReplayStore(store if redis is not None else None, prefix, timeout_s)
        self._api_keys = ApiKeyEngine(
            store,
            prefix,
            policy.keyrings.values(),
            in_redis=redis is not None,
            report=_report_api_keys,
            timeout_s=timeout_s,
        )
        self.engines: Mapping[type, Engine] = {
            NeedApiKey: self._api_keys.ensure,
            NeedIntrospection: self._introspection.ask,
            NeedFirstUse: self._replays.ensure,
        }

    def start(self) -> None:
        """Begin to fetch keys, and to follow the changes of API keys."""
        self._api_keys.start()
        self.jwks.start()

    async def close(self) -> None:
        """Stop."""
        await self._introspection.stop()
        await self.jwks.stop()
        await self._api_keys.close()

    def replace(self, policy: Policy) -> None:
        """Go on by another version of the policy."""
        self.jwks.replace(policy.issuers.values())
        self._introspection.replace(policy.introspection.values())
        self._api_keys.replace(policy.keyrings.values())

    def components(self, now: float) -> dict[str, Component]:
        """For /readyz; `now` is the loop's clock."""
        return {
            "issuers": Component(self.jwks.ready, self.jwks.detail(now)),
            # not part of readiness: on_failure says what happens
            "introspection": Component(True, self._introspection.detail(now)),
            # nor here: keys that are remembered work on, others are refused with 503
            "api_keys": Component(True, self._api_keys.detail()),
        }

    def sources(self) -> list[Source]:
        """For /metrics."""
        return [
            metric_sources.token_cache(self.cache),
            metric_sources.jwks(self.jwks),
            metric_sources.introspection(self._introspection),
            metric_sources.api_keys(self._api_keys),
            metric_sources.proofs(self._replays),
        ]

    def _jwks_event(self, name: str, fields: Mapping[str, object]) -> None:
        level = {"jwks_changed": _log.info, "jwks_key_exposed": _log.error}.get(name, _log.warning)
        level(name, **fields)
        self._on_news()


def _introspection_event(name: str, fields: Mapping[str, object]) -> None:
    (_log.info if name == "introspection_recovered" else _log.warning)(name, **fields)


def _report_api_keys(reason: str) -> None:
    if reason:
        _log.warning("api_key_changes_not_followed", reason=reason)
