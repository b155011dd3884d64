"""The hostile table against a whole service over HTTP/2: decision, challenge, RPC status, and what is left behind."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
import pytest_asyncio

from sidecar import check
from sidecar.check import CHECK
from sidecar.core.decision import REASONS, Challenge
from sidecar.edges.jwks import JwksTimings
from sidecar.edges.local_store import LocalStore
from sidecar.envoy.pb.ext_authz_pb2 import CheckRequest, CheckResponse
from sidecar.transport.http2 import Http2Server
from sidecar.transport.service import TcpAddress
from tests.support.deciding import Deciding, check_request, compiled, deciding
from tests.support.hostile_table import CVES, PUBLISHED, TABLE, Hostile
from tests.support.hostile_tokens import GOOD
from tests.support.issuer import Issuer
from tests.support.tokens import AUDIENCE, ISSUER, NOW_US

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_scope="module")

CASES_MIN = 250
LINES = {f"3.1.{line}" for line in range(1, 23)}
FETCHES_MAX = 1 + JwksTimings().ration_burst
"""The first one, and as many for unknown keys as are allowed at once: the next would be due after 10 s."""

POLICY = """
redis: {{url: "redis://127.0.0.1:1/0"}}
issuers:
  main:
    issuer: {issuer}
    audiences: [{audience}]
    algorithms: [RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA]
    keys: {{jwks_url: "{url}/jwks"}}
    insecure_http: true
limits:
  each: {{rate: 1000000/day, key: {{claim: sub}}}}
rules:
  - {{name: orders, match: {{path: {{exact: /orders}}}}, authenticate: {{issuers: [main]}}, limits: [each]}}
"""


class Clock:
    """The service's clock stands at the moment for which the table's tokens are dated."""

    def time_ns(self) -> int:
        return NOW_US * 1000

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


class Served:
    """A service under way, its issuer, and what it holds."""

    def __init__(self, it: Deciding, issuer: Issuer, call: grpc.aio.UnaryUnaryMultiCallable) -> None:
        self.it = it
        self.issuer = issuer
        self.call = call

    @property
    def left(self) -> dict[str, object]:
        """What a refused credential must not change."""
        it = self.it
        return {
            "tokens": len(it.cache),
            "token bytes": it.cache.size_bytes,
            "evictions": it.cache.evictions,
            "counters": it.store.keys if isinstance(it.store, LocalStore) else None,
            "local counters": it.local.keys,
            "keys": it.jwks.states[ISSUER].current,
        }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """It knows one good token, and has counted it."""
    directory: Path = tmp_path_factory.mktemp("hostile")
    faults: list[Exception] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "time", Clock())
        async with Issuer(*PUBLISHED) as issuer:
            policy = compiled(directory, POLICY.format(issuer=ISSUER, audience=AUDIENCE, url=issuer.url))
            async with deciding(policy) as it:
                methods = {CHECK: it.service.method(5.0)}
                server = Http2Server(
                    methods, [TcpAddress("127.0.0.1", 0)], on_error=lambda fault, _: faults.append(fault)
                )
                (address,) = await server.start()
                try:
                    async with grpc.aio.insecure_channel(str(address)) as channel:
                        call = channel.unary_unary(CHECK, response_deserializer=CheckResponse.FromString)
                        answer = await call(check_request("/orders", GOOD))
                        assert answer.status.code == 0
                        yield Served(it, issuer, call)
                finally:
                    await server.drain(1.0)
    assert faults == []


def asks(*authorization: str) -> bytes:
    """The CheckRequest with these Authorization headers, in raw bytes as Envoy sends what is not text."""
    request = CheckRequest.FromString(check_request("/orders"))
    headers = request.attributes.request.http.header_map.headers
    headers.add(key=":path", raw_value=b"/orders")
    for value in authorization:
        headers.add(key="authorization", raw_value=value.encode("utf-8", "surrogatepass"))
    return request.SerializeToString()


def challenge_of(response: CheckResponse) -> str:
    values = [
        option.header.value or option.header.raw_value.decode()
        for option in response.denied_response.headers
        if option.header.key == "www-authenticate"
    ]
    assert len(values) <= 1
    return values[0] if values else ""


@pytest.mark.parametrize("hostile", TABLE, ids=[hostile.name for hostile in TABLE])
async def test_hostile_credentials_are_denied_and_leave_nothing(served: Served, hostile: Hostile) -> None:
    """Asked twice: the same denial, gRPC OK, the reason's challenge, no traces, no fetch beyond the budget."""
    before, fetches = served.left, served.issuer.fetches
    for _ in range(2):
        response = await served.call(asks(*hostile.authorization))  # raises on any gRPC status but OK
        row = REASONS[hostile.reason]
        assert response.dynamic_metadata["reason"] == hostile.reason.value
        assert response.WhichOneof("http_response") == "denied_response"
        assert response.status.code == row.grpc_status
        assert response.denied_response.status.code == row.http_status
        challenge = challenge_of(response)
        if row.challenge is Challenge.NONE:
            assert challenge == ""
        elif row.challenge is Challenge.BARE:
            assert challenge == 'Bearer realm="sidecar"'
        else:
            error = f'error="{row.challenge.value}", error_description="{row.detail}"'
            assert challenge == f'Bearer realm="sidecar", {error}'
    assert served.left == before
    assert served.issuer.fetches <= (FETCHES_MAX if hostile.asks_for_key else fetches)
    assert served.it.bugs == []
    assert served.it.events[-1].decision.reason is hostile.reason


async def test_the_good_token_is_still_good(served: Served) -> None:
    """After all of them: believed from the cache, without a fetch."""
    hits = served.it.cache.hits
    response = await served.call(asks(f"Bearer {GOOD}"))
    assert response.status.code == 0
    assert served.it.cache.hits == hits + 1
    assert served.issuer.fetches <= FETCHES_MAX


async def test_every_rule_has_its_cases() -> None:
    """Lines 1 to 22 of section 3.1 and the CVEs that a credential can bring; each case has a rule and a name."""
    assert len(TABLE) >= CASES_MIN
    counted = Counter(rule for hostile in TABLE for rule in hostile.rules)
    assert set(counted) >= LINES | CVES
    assert [hostile.name for hostile in TABLE if not hostile.rules] == []
    assert len({hostile.name for hostile in TABLE}) == len(TABLE)
