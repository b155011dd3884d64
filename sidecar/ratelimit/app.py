"""`sidecar ratelimit`: the composition root of `sidecar serve`, less ext_authz, with the reference's ports in front."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import uvloop

from sidecar.app import App, embedded_redis
from sidecar.edges.admin import AdminServer, Answer
from sidecar.edges.embedded_valkey import EmbeddedValkeyError
from sidecar.edges.file_watch import signatures
from sidecar.edges.log import configure_log, get_log
from sidecar.edges.worker_scrape import load_exposition
from sidecar.envoy.ratelimit import SHOULD_RATE_LIMIT
from sidecar.ratelimit import debug, environment, variables
from sidecar.ratelimit.http_json import health_route, json_route, text_route

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.edges.admin import PostRoute, Route
    from sidecar.hang_up import EarlyHangUps
    from sidecar.policy.compile import CompiledDocument
    from sidecar.ratelimit.environment import Loaded, ReferenceSettings
    from sidecar.transport.service import Address, Service, UnaryMethod

HEALTH_NAME: Final = "ratelimit"
"""What the reference calls itself to the gRPC health service."""

_log = get_log("ratelimit")


def run(config: Path | None, hang_ups: EarlyHangUps, variables_set: Mapping[str, str] = os.environ) -> int:
    """Serve what the environment says until told to stop; returns the exit status.

    Args:
        config: A file in the policy's format with settings that have no variable.
        hang_ups: Notes a SIGHUP that comes before serving has begun.
        variables_set: The environment.

    Raises:
        PolicyError: A variable or a file is refused.
        OSError: An address cannot be bound, or a file cannot be used.
    """
    loaded = environment.load(variables_set, 1, config)
    configure_log(loaded.document.settings.log_level)
    for why, names in variables.ignored(variables_set).items():
        _log.warning("not_supported", variables=names, why=why)
    with ExitStack() as stack:
        try:
            redis_socket = embedded_redis(loaded.document.settings, stack)
        except EmbeddedValkeyError as error:
            _log.error("start_failed", reason=str(error))
            return 1
        uvloop.run(RateLimitApp(config, loaded, hang_ups, redis_socket, variables_set).serve())
    return 0


class RateLimitApp(App):
    """One serving process.

    Args:
        config: The file of `--config`.
        loaded: What the environment and that file said at start.
        hang_ups: Notes a SIGHUP that comes before this process handles it.
        redis_socket: Where the embedded Valkey listens, "" without one.
        variables_set: The environment, read again at each reload.
    """

    def __init__(
        self,
        config: Path | None,
        loaded: Loaded,
        hang_ups: EarlyHangUps,
        redis_socket: str,
        variables_set: Mapping[str, str],
    ) -> None:
        watched = [str(config)] if config is not None else []
        known = signatures(watched)
        document = loaded.document
        super().__init__(
            config or Path(variables.FILE), document, known, hang_ups, redis_socket, None, load_policy=self._load_again
        )
        self._reference: ReferenceSettings = loaded.reference
        self._config_file = config
        self._variables_set = variables_set
        self._configured = asyncio.Event()
        self._should_rate_limit: UnaryMethod

    def _load_again(self, generation: int) -> CompiledDocument:
        return environment.load(self._variables_set, generation, self._config_file, self.resources).document

    def _watched(self) -> list[str]:
        directory = self.holder.document.settings.ratelimit_directory
        return [str(path) for path in (self._config_file, directory) if path is not None]

    def _service(self) -> Service:
        methods = self._ratelimit_methods()
        self._should_rate_limit = cast("UnaryMethod", methods[SHOULD_RATE_LIMIT])
        return {**methods, **self.health.methods()}

    async def _before_serving(self, stack: AsyncExitStack, stop: asyncio.Event) -> None:
        json = json_route(self._should_rate_limit.handler, self.settings.check_timeout_s)
        await self._listen(stack, self._reference.http, {"/json": json, "/healthcheck": health_route(self._healthy)})
        if self._reference.prometheus is not None:
            address, path = self._reference.prometheus
            await self._listen(stack, address, {path: self._show_metrics})
        if self.xds is not None and not self._reference.force_start:
            stopped = asyncio.ensure_future(stop.wait())
            configured = asyncio.ensure_future(self._configured.wait())
            await asyncio.wait((stopped, configured), return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            configured.cancel()

    async def _listen(self, stack: AsyncExitStack, address: Address, routes: Mapping[str, Route | PostRoute]) -> None:
        server = AdminServer(routes)
        bound = await server.start(address)
        stack.push_async_callback(server.close)
        _log.info("listening", address=str(bound), paths=sorted(routes))

    async def _show_metrics(self, headers: Mapping[str, str]) -> Answer:
        exposition = await load_exposition()
        from sidecar.ratelimit import reference_metrics  # noqa: PLC0415 - it imports what exposition.py does

        samples, holder = self.metrics.samples(), self.holder
        more = reference_metrics.families(
            holder.policy.ratelimit, samples, loads=holder.accepted_total + 1, loads_refused=holder.refused_total
        )
        body, content_type = exposition.render(samples, headers.get("accept", ""), more)
        return Answer(200, body, content_type)

    def _admin_routes(self) -> dict[str, Route | PostRoute]:
        async def index() -> str:
            return debug.index()

        async def rlconfig() -> str:
            return debug.rlconfig(self.holder.policy.ratelimit)

        async def stats() -> str:
            return debug.stats(self.holder.policy.ratelimit, self.metrics)

        return {
            **super()._admin_routes(),
            "/metrics": self._show_metrics,
            "/": text_route(index),
            "/rlconfig": text_route(rlconfig),
            "/stats": text_route(stats),
        }

    def _healthy(self) -> bool:
        """As the reference: Redis was reached, a domain is configured where that is asked for, and no end is near."""
        reference = self._reference
        redis = self.counting.store.connected if reference.healthy_with_redis else self.counting.was_connected
        configured = bool(self.holder.policy.ratelimit.domains) or not reference.healthy_with_config
        return self._serving and redis and configured

    def _policy_replaced(self, document: CompiledDocument) -> None:
        super()._policy_replaced(document)
        self._configured.set()
        self._tell_health()

    def _tell_health(self) -> None:
        super()._tell_health()
        self.health.set(HEALTH_NAME, self._healthy())
