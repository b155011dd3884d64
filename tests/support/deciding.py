"""The whole Check service in one process: policy from a file, real keys, caches and counters, and calls that record."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidecar.check import CheckService
from sidecar.core.guard import NO_GUARD
from sidecar.core.token_cache import TokenCache
from sidecar.edges.jwks import JwksEngine
from sidecar.edges.local_store import LocalStore
from sidecar.envoy.pb.ext_authz_pb2 import CheckRequest, CheckResponse
from sidecar.policy.compile import load
from tests.support.tokens import AUDIENCE, ISSUER, SigningKey, jwks, make_key

if TYPE_CHECKING:
    from sidecar.check import Engine
    from sidecar.core.audit import DecisionEvent
    from sidecar.core.guard import Guard
    from sidecar.core.limits import Charge, Done, LimitStore, StoreFailure
    from sidecar.core.policy import Policy
    from sidecar.transport.service import Status

PATIENCE_S = 5.0
KEY = make_key("ES256")
OTHER_KEY = make_key("ES256", number=1)
KEYLESS_ISSUER = "https://keyless.example"

POLICY = f"""
redis: {{url: "redis://127.0.0.1:1/0"}}
issuers:
  main:
    issuer: {ISSUER}
    audiences: [{AUDIENCE}]
    algorithms: [ES256]
    keys: {{jwks_file: keys.json}}
    roles_claim: roles
  keyless:
    issuer: {KEYLESS_ISSUER}
    audiences: [{AUDIENCE}]
    algorithms: [ES256]
    keys: {{jwks_file: no-keys.json}}
    required: false
limits:
  tight: {{rate: 2/day, key: {{claim: sub}}}}
  deny: {{rate: 1/day, key: {{constant: deny}}, on_redis_failure: deny}}
  error: {{rate: 1/day, key: {{constant: error}}, on_redis_failure: error}}
  local: {{rate: 1/day, key: {{constant: local}}, on_redis_failure: local}}
  allow: {{rate: 1/day, key: {{constant: allow}}, on_redis_failure: allow}}
  weighed: {{rate: 5/day, key: {{constant: weighed}}, cost: {{header: x-cost}}}}
upstream:
  headers: {{x-user-id: {{claim: sub}}, x-user-scopes: {{claim: scope}}}}
rules:
  - {{name: public, match: {{path: {{prefix: /public}}}}, anonymous: true}}
  - {{name: public-writes, match: {{path: {{prefix: /public}}, methods: [POST]}}, authenticate: {{issuers: [main]}}}}
  - name: read-order
    match: {{path: {{template: "/orders/{{id}}"}}, methods: [GET, HEAD]}}
    authenticate: {{issuers: [main]}}
    authorize: {{scope: "orders:read"}}
    upstream: {{headers: {{x-order: {{path_parameter: id}}}}}}
  - name: admin
    match: {{path: {{prefix: /admin}}}}
    authenticate: {{issuers: [main]}}
    authorize: {{all_of: [{{scope: "orders:read"}}, {{role: admin}}]}}
  - {{name: tight, match: {{path: {{exact: /tight}}}}, authenticate: {{issuers: [main]}}, limits: [tight]}}
  - {{name: keyless, match: {{path: {{exact: /keyless}}}}, authenticate: {{issuers: [keyless]}}}}
  - {{name: deny, match: {{path: {{exact: /deny}}}}, anonymous: true, limits: [allow, local, error, deny]}}
  - {{name: error, match: {{path: {{exact: /error}}}}, anonymous: true, limits: [allow, local, error]}}
  - {{name: local, match: {{path: {{exact: /local}}}}, anonymous: true, limits: [allow, local]}}
  - {{name: weighed, match: {{path: {{exact: /weighed}}}}, anonymous: true, limits: [allow, weighed]}}
  - {{name: allow, match: {{path: {{exact: /allow}}}}, anonymous: true, limits: [allow]}}
"""


def compiled(directory: Path, text: str = POLICY, generation: int = 1, keys: Sequence[SigningKey] = (KEY,)) -> Policy:
    """The policy, from files as in serving."""
    (directory / "keys.json").write_bytes(jwks(*keys))
    (directory / "no-keys.json").write_bytes(b'{"keys": []}')
    path = directory / "policy.yaml"
    path.write_text(text)
    return load(path, generation).policy


def token(key: SigningKey = KEY, *, header: dict[str, Any] | None = None, **changes: Any) -> str:
    """A good token as of now, with changes; None removes a claim."""
    now_s = int(time.time())
    dates = {"exp": now_s + 3600, "iat": now_s - 10}
    whole = {"alg": key.alg, "typ": "JWT", "kid": key.kid} | (header or {})
    return key.token(header=whole, **(dates | changes))


def check_request(
    path: str = "/public/page",
    credential: str | None = None,
    *,
    method: str = "GET",
    host: str = "api.example.com",
    headers: Iterable[tuple[str, str]] = (),
    source: str = "192.0.2.7",
) -> bytes:
    """The CheckRequest that Envoy sends; `credential` is a bearer token."""
    request = CheckRequest()
    http = request.attributes.request.http
    http.id, http.method, http.host, http.path = "17", method, host, path
    request.attributes.source.address.socket_address.address = source
    if credential is not None:
        http.headers["authorization"] = f"Bearer {credential}"
    for name, value in headers:
        http.headers[name] = value
    return request.SerializeToString()


class RecordedCall:
    """A `Call` that keeps what it is answered; a second answer is dropped by transports, and an error here."""

    def __init__(self, deadline: float = math.inf) -> None:
        self.deadline = deadline
        self.cancelled = False
        self.metadata: dict[str, str] = {}
        self.answers: list[bytes] = []

    def respond(self, message: bytes) -> None:
        assert not self.cancelled, "answered after it was over"
        assert not self.answers, "answered twice"
        self.answers.append(message)

    def fail(self, status: Status, message: str) -> None:
        raise AssertionError(f"a Check ended in the gRPC error {status!r}: {message}")

    @property
    def response(self) -> CheckResponse:
        (answer,) = self.answers
        return CheckResponse.FromString(answer)


class UnansweringStore:
    """A `LimitStore` that keeps its callers' `done`, for tests to call when they want."""

    def __init__(self) -> None:
        self.asked: list[tuple[Sequence[Charge], Done]] = []

    def charge(self, charges: Sequence[Charge], deadline: float, done: Done) -> None:
        del deadline
        self.asked.append((charges, done))


class FailingStore:
    """A `LimitStore` that cannot answer."""

    def __init__(self, failure: StoreFailure) -> None:
        self.failure = failure

    def charge(self, charges: Sequence[Charge], deadline: float, done: Done) -> None:
        del charges, deadline
        done(self.failure)


@dataclass
class Deciding:
    """A Check service and all that it leaves traces in; `policy` may be replaced between two Checks."""

    policy: Policy
    store: LimitStore
    jwks: JwksEngine
    cache: TokenCache = field(default_factory=TokenCache)
    local: LocalStore = field(default_factory=LocalStore)
    events: list[DecisionEvent] = field(default_factory=list)
    bugs: list[BaseException] = field(default_factory=list)
    sink_fault: Exception | None = None
    soon: Callable[[Callable[[], None]], object] = lambda step: step()
    engines: Mapping[type, Engine] = field(default_factory=dict)
    guard: Guard = NO_GUARD

    def __post_init__(self) -> None:
        self.service = CheckService(
            policy=lambda: self.policy,
            cache=self.cache,
            jwks=self.jwks,
            store=self.store,
            local=self.local,
            on_events=self._take,
            on_bug=lambda bug, _method: self.bugs.append(bug),
            soon=self._soon,
            engines=self.engines,
            guard=self.guard,
        )

    def _soon(self, step: Callable[[], None]) -> None:
        self.soon(step)

    def _take(self, events: Sequence[DecisionEvent]) -> None:
        self.events.extend(events)
        if self.sink_fault is not None:
            raise self.sink_fault

    def begin(self, message: bytes) -> RecordedCall:
        """Begin a Check; it may be answered already."""
        call = RecordedCall(asyncio.get_running_loop().time() + PATIENCE_S)
        answer = self.service.handle(message, call)
        assert answer is None
        return call

    async def ask(self, message: bytes) -> CheckResponse:
        """A Check and its answer."""
        call = self.begin(message)
        async with asyncio.timeout(PATIENCE_S):
            while not call.answers:  # noqa: ASYNC110 - the recorded call sets no event
                await asyncio.sleep(0.001)
        return call.response


@asynccontextmanager
async def deciding(
    policy: Policy,
    store: LimitStore | None = None,
    engines: Mapping[type, Engine] | None = None,
    guard: Guard = NO_GUARD,
) -> AsyncIterator[Deciding]:
    """A service whose issuers' keys are loaded."""
    jwks_engine = JwksEngine(policy.issuers.values())
    jwks_engine.start()
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not jwks_engine.ready:  # noqa: ASYNC110 - the engine's event is the service's own
                await asyncio.sleep(0.001)
        counting = store if store is not None else LocalStore()
        yield Deciding(policy, counting, jwks_engine, engines=engines or {}, guard=guard)
    finally:
        await jwks_engine.stop()
