"""The composition root: builds every part from the policy, starts them in order, and stops them in reverse.

The only module that knows all others. Nothing is decided here.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from sidecar.authenticating import Authenticating
from sidecar.check import CHECK, CheckService
from sidecar.core.limits import US_PER_S
from sidecar.counting import Counting
from sidecar.edges import metric_sources
from sidecar.edges.admin import AdminServer, Component, PostRoute, Route, json_route, live_route, ready_route
from sidecar.edges.audit_sink import AuditSink
from sidecar.edges.embedded_valkey import EmbeddedValkey, EmbeddedValkeyError
from sidecar.edges.file_watch import FileWatcher, Signature, signatures
from sidecar.edges.hot_keys_route import TOP_PATH, hot_keys_route
from sidecar.edges.internal_tokens import JWKS_PATH, InternalTokenSigner, jwks_route
from sidecar.edges.issuers_route import ISSUERS_PATH, issuers_route
from sidecar.edges.limiter import monotonic_us
from sidecar.edges.log import configure_log, get_log
from sidecar.edges.metrics import Metrics, Sample
from sidecar.edges.worker_scrape import SAMPLES_PATH, metrics_route, samples_route
from sidecar.envoy.ratelimit import SHOULD_RATE_LIMIT, RateLimitEvent, RateLimitService
from sidecar.guarding import Guarding
from sidecar.policy.compile import CompiledDocument, load, masked
from sidecar.policy.faults import PolicyError
from sidecar.policy.holder import FAULTS_SHOWN_MAX, PolicyHolder
from sidecar.transport.health import HealthService
from sidecar.transport.service import Server, Service, UnaryMethod
from sidecar.workers import Supervisor, WorkerRole, end_with_parent, role_from_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.any_pb2 import Any as AnyMessage

    from sidecar.core.audit import DecisionEvent
    from sidecar.edges.ads import AdsClient
    from sidecar.hang_up import EarlyHangUps
    from sidecar.policy.settings import Settings
    from sidecar.policy.yaml import Source
    from sidecar.transport.grpcio import GrpcioServer
    from sidecar.transport.http2 import Http2Server

AUDIT_CLOSE_TIMEOUT_S = 2.0

RELOADS_MAX = 2
"""One under way, and one that reads what has changed since: a third would read nothing that the second does not."""

HEALTH_NAMES = ("", "envoy.service.auth.v3.Authorization", "envoy.service.ratelimit.v3.RateLimitService", "ratelimit")
"""What the gRPC health service knows: the server, both services, and the name the reference rate limiter uses."""

_log = get_log("app")


def run(config: Path, hang_ups: EarlyHangUps) -> int:
    """Serve a policy until told to stop; returns the exit status.

    Args:
        config: The policy file.
        hang_ups: Notes a SIGHUP that comes before serving has begun.

    Raises:
        PolicyError: The policy is refused.
        OSError: An address cannot be bound, or a file cannot be used.
    """
    role = role_from_environment()
    if role is not None:
        end_with_parent(role)
    known = signatures([str(config)])
    document = load(config, 1)
    settings = document.settings
    configure_log(settings.log_level, worker=role.index if role is not None else None)
    with ExitStack() as stack:
        try:
            redis_socket = role.redis_socket if role is not None else embedded_redis(settings, stack)
        except EmbeddedValkeyError as error:
            _log.error("start_failed", reason=str(error))
            return 1
        if settings.workers > 1 and role is None:
            return uvloop.run(_supervise(config, settings, redis_socket))
        uvloop.run(App(config, document, known, hang_ups, redis_socket, role).serve())
    return 0


async def _supervise(config: Path, settings: Settings, redis_socket: str) -> int:
    supervisor = Supervisor(
        [sys.executable, "-m", "sidecar", "serve", "--config", str(config)],
        settings.workers,
        listen=settings.listen,
        admin=settings.admin,
        grace_s=settings.drain_grace_s,
        engine=settings.engine,
        redis_socket=redis_socket,
    )
    return await supervisor.run()


def embedded_redis(settings: Settings, stack: ExitStack) -> str:
    """Start the embedded Valkey where the policy asks for it; its socket's path, "" without one.

    Raises:
        EmbeddedValkeyError: It cannot be started.
    """
    if settings.redis is None or not settings.redis.embedded:
        return ""
    embedded = EmbeddedValkey()
    embedded.start()
    stack.callback(embedded.stop)
    return embedded.socket_path


class App:
    """One serving process.

    Args:
        config: The policy file, read again at each reload.
        document: What it held at start.
        known: The file's signature from before it was read.
        hang_ups: Notes a SIGHUP that comes before this process handles it.
        redis_socket: Where the embedded Valkey listens, "" without one.
        role: What this process is to its supervisor; None: it is the only one.
        load_policy: Loads the policy anew, given the next generation; reads `config` without it.
    """

    def __init__(
        self,
        config: Path,
        document: CompiledDocument,
        known: Mapping[str, Signature],
        hang_ups: EarlyHangUps,
        redis_socket: str,
        role: WorkerRole | None,
        load_policy: Callable[[int], CompiledDocument] | None = None,
    ) -> None:
        self.settings = document.settings
        self.resources: tuple[Source, ...] | None = None
        self.holder = PolicyHolder(config, document, load_policy=load_policy or self._load)
        self.xds: AdsClient | None = None
        self.internal_tokens = InternalTokenSigner(document.policy.internal_tokens)
        self.health = HealthService()
        self.metrics = Metrics(self.settings.engine)
        self.audit: AuditSink | None = None
        self.counting: Counting
        self.authenticating: Authenticating
        self.guarding: Guarding
        self.server: Server
        self._config = config
        self._known = known
        self._hang_ups = hang_ups
        self._reloads = set[asyncio.Task[bool]]()
        self._redis_socket = redis_socket
        self._role = role
        self._serving = False

    async def serve(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain.

        Raises:
            OSError: An address cannot be bound, or a file cannot be used.
        """
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with AsyncExitStack() as stack:
            await self._start(stack, loop, stop)
            await stop.wait()
            _log.info("draining", grace_s=self.settings.drain_grace_s, calls_in_flight=self.server.calls_in_flight)
            self._serving = False
            self.health.shut_down()
            await self.server.drain(self.settings.drain_grace_s)

    async def _start(self, stack: AsyncExitStack, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
        settings = self.settings
        watcher = FileWatcher(self._watched, lambda _paths: self.holder.reload(), known=self._known)
        if settings.audit != "none":
            path = None if settings.audit == "stdout" else settings.audit
            lock_path = self._role.output_lock if self._role is not None else None
            self.audit = AuditSink(loop, path, claims=self.holder.policy.audit_claims, lock_path=lock_path)
            stack.push_async_callback(self.audit.close, AUDIT_CLOSE_TIMEOUT_S)
        self._start_parts(stack)
        self.holder.subscribe(self._policy_replaced)
        _warn(self.holder.policy.ratelimit.warnings)

        self.server = self._build_server()
        self._start_xds(stack)
        await self._before_serving(stack, stop)
        await self.guarding.loaded()
        addresses = await self.server.start()
        stack.push_async_callback(self.server.drain, 0)
        self._add_metric_sources()
        admin = AdminServer(self._admin_routes())
        admin_address = await admin.start(self._role.admin_address if self._role is not None else settings.admin)
        stack.push_async_callback(admin.close)
        watcher.start()
        stack.push_async_callback(watcher.close)
        self._watch_certificate(stack)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        if self._hang_ups.seen:
            self._hang_up()
        self._serving = True
        self._tell_health()
        gc.collect()
        gc.freeze()  # modules and policy stay: walking them stalls the loop by 34 ms a full collection
        _log.info("serving", addresses=[str(a) for a in addresses], admin=str(admin_address), engine=settings.engine)

    def _start_parts(self, stack: AsyncExitStack) -> None:
        """What counts, what authenticates, and what guards that; all there before any of it starts."""
        settings = self.settings
        self.counting = counting = Counting(settings, self._redis_socket, self._tell_health)
        self.authenticating = Authenticating(self.holder.policy, settings, counting.store, self._tell_health)
        self.guarding = Guarding(settings, counting.store, counting.limiter, counting.local, self._tell_health)
        for part in (self.counting, self.authenticating, self.guarding):
            part.start()
            stack.push_async_callback(part.close)

    def _load(self, generation: int) -> CompiledDocument:
        return load(self._config, generation, self.resources)

    def _start_xds(self, stack: AsyncExitStack) -> None:
        """Ask the xDS server, where there is one; who has none does not pay for the imports."""
        if self.settings.xds is None:
            return
        from sidecar.edges.ads import AdsClient  # noqa: PLC0415
        from sidecar.policy.ratelimit_resources import TYPE_URL  # noqa: PLC0415

        self.xds = AdsClient(self.settings.xds, TYPE_URL, self._apply_resources)
        self.xds.start()
        stack.push_async_callback(self.xds.close)

    async def _apply_resources(self, resources: Sequence[AnyMessage]) -> str:
        """Use what the xDS server sent; returns why it is refused, "" if it is in use."""
        from sidecar.policy.ratelimit_resources import read_resources  # noqa: PLC0415 - as in _start_xds

        before = self.resources
        try:
            self.resources = read_resources(resources)
        except PolicyError as error:
            return "; ".join(map(str, error.faults[:FAULTS_SHOWN_MAX]))
        if await self.holder.reload():
            return ""
        self.resources = before
        return "; ".join(self.holder.faults[:FAULTS_SHOWN_MAX])

    def _watch_certificate(self, stack: AsyncExitStack) -> None:
        """Serve with a renewed certificate once its files have changed; grpcio's server reads them at its start."""
        tls, renew = self.settings.tls, getattr(self.server, "renew_certificate", None)
        if tls is None or renew is None:
            return

        async def changed(paths: list[str]) -> None:
            try:
                renew()
            except OSError as error:
                _log.error("certificate_refused", paths=paths, reason=str(error))
            else:
                _log.info("certificate_renewed", paths=paths)

        watcher = FileWatcher(lambda: (tls.certificate, tls.key), changed)
        watcher.start()
        stack.push_async_callback(watcher.close)

    async def _before_serving(self, stack: AsyncExitStack, stop: asyncio.Event) -> None:
        """What must be there before gRPC is served; `stop` ends the wait for it."""

    def _service(self) -> Service:
        """The methods that are served."""
        settings = self.settings
        check = CheckService(
            policy=lambda: self.holder.policy,
            cache=self.authenticating.cache,
            jwks=self.authenticating.jwks,
            store=self.counting.limiter,
            local=self.counting.local,
            on_events=self._decided,
            on_bug=_report_bug,
            soon=asyncio.get_running_loop().call_soon,
            guard=self.guarding.guard,
            token_for=self.internal_tokens.token_for,
            engines=self.authenticating.engines,
        )
        self.metrics.add(metric_sources.turns(check.turns))
        return {CHECK: check.method(settings.check_timeout_s), **self._ratelimit_methods(), **self.health.methods()}

    def _ratelimit_methods(self) -> Service:
        settings = self.settings
        prefix = settings.redis.key_prefix if settings.redis else "sidecar"
        ratelimit = RateLimitService(
            lambda: self.holder.policy, self.counting.limiter, self.counting.local, prefix, self._ratelimit_answered
        )
        return {SHOULD_RATE_LIMIT: UnaryMethod(handler=ratelimit.handle, answer_within_s=settings.check_timeout_s)}

    def _build_server(self) -> Server:
        settings, role = self.settings, self._role
        return _engine(settings)(
            self._service(),
            role.listen(settings.listen) if role is not None else settings.listen,
            settings.limits,
            tls=settings.tls,
            on_error=_report_bug,
            reuse_port=role is not None,
            unix_fds=role.unix_fds if role is not None else {},
        )

    def _admin_routes(self) -> dict[str, Route | PostRoute]:
        return {
            "/livez": live_route(),
            "/readyz": ready_route(self._components),
            "/metrics": metrics_route(self._samples),
            SAMPLES_PATH: samples_route(self.metrics),
            "/policy": json_route(lambda: masked(self.holder.document)),
            TOP_PATH: hot_keys_route(lambda: self.counting.limiter.hot_keys, monotonic_us),
            **self.guarding.routes(lambda: self.holder.document),
            ISSUERS_PATH: issuers_route(self.authenticating.jwks),
            JWKS_PATH: jwks_route(self.internal_tokens, _now_us),
        }

    async def _samples(self) -> Sequence[Sample]:
        return self.metrics.samples()

    def _components(self) -> dict[str, Component]:
        return {
            "server": Component(self._serving, {"connections": self.server.connections}),
            "policy": Component(True, self.holder.detail()),
            **self.authenticating.components(asyncio.get_running_loop().time()),
            **({"xds": Component(self.resources is not None, self.xds.detail())} if self.xds is not None else {}),
            # not part of readiness: the policy says what happens while Redis is down
            "redis": Component(True, self.counting.detail()),
            **self.guarding.components(),
            "internal_tokens": Component(True, self.internal_tokens.detail(_now_us())),
        }

    def _watched(self) -> list[str]:
        directory = self.holder.document.settings.ratelimit_directory
        internal_tokens = self.holder.policy.internal_tokens
        keys = internal_tokens.directory if internal_tokens is not None else None
        keyrings = [path for each in self.holder.document.keyrings.values() for path in each.watched]
        return [str(self._config), *(each for each in (directory, keys, *keyrings) if each)]

    def _hang_up(self) -> None:
        """SIGHUP: the policy may have changed, and the audit file may have been rotated."""
        if self.audit is not None:
            self.audit.reopen()
        if len(self._reloads) < RELOADS_MAX:
            reload = asyncio.get_running_loop().create_task(self.holder.reload())
            self._reloads.add(reload)
            reload.add_done_callback(self._reloaded)

    def _reloaded(self, reload: asyncio.Task[bool]) -> None:
        self._reloads.discard(reload)
        if not reload.cancelled() and (bug := reload.exception()) is not None:
            _log.error("reload_failed", exc_info=bug)

    def _policy_replaced(self, document: CompiledDocument) -> None:
        self.authenticating.replace(document.policy)
        self.internal_tokens.replace(document.policy.internal_tokens, _now_us())
        rules = document.policy.rules.rules
        self.metrics.decisions.keep_rules([rule.name for rule in rules])
        self.metrics.decisions.keep_limits({binding.limit.name for rule in rules for binding in rule.limits})
        self.metrics.ratelimit.keep_domains(document.policy.ratelimit.domains)
        _warn(document.policy.ratelimit.warnings)
        configure_log(document.settings.log_level, worker=self._role.index if self._role is not None else None)
        if self.audit is not None:
            self.audit.claims = document.policy.audit_claims

    def _tell_health(self) -> None:
        for name in HEALTH_NAMES:
            self.health.set(name, self._serving and self.authenticating.jwks.ready and self.guarding.ready)

    def _decided(self, events: Sequence[DecisionEvent]) -> None:
        self.metrics.decisions.observe(*events)
        self.guarding.observe(events)
        if self.audit is not None:
            self.audit.put(*events)

    def _ratelimit_answered(self, event: RateLimitEvent) -> None:
        self.metrics.ratelimit.observe(event.domain, event.answer, int(event.latency_s * US_PER_S))

    def _add_metric_sources(self) -> None:
        sources = [
            *self.counting.sources(),
            *self.authenticating.sources(),
            metric_sources.internal_tokens(self.internal_tokens, _now_us),
            metric_sources.ratelimit(lambda: self.holder.policy),
            metric_sources.server(self.server),
            metric_sources.policy(self.holder),
            self.guarding.samples,
        ]
        if self.audit is not None:
            sources.append(metric_sources.audit(self.audit))
        if self.xds is not None:
            sources.append(metric_sources.xds(self.xds.status))
        for source in sources:
            self.metrics.add(source)


def _engine(settings: Settings) -> type[Http2Server | GrpcioServer]:
    """The server's class; imported when it is chosen: grpcio costs 20 MiB, and ngh2 is not built for every platform."""
    if settings.engine == "grpcio":
        from sidecar.transport.grpcio import GrpcioServer  # noqa: PLC0415

        return GrpcioServer
    from sidecar.transport.http2 import Http2Server  # noqa: PLC0415

    return Http2Server


def _now_us() -> int:
    return time.time_ns() // 1000


def _report_bug(bug: BaseException, method: str) -> None:
    _log.error("handler_failed", method=method, exc_info=bug)


def _warn(warnings: Sequence[str]) -> None:
    """Tell of what was loaded and surely not meant so."""
    for warning in warnings:
        _log.warning("ratelimit_key_ignored", where=warning)
