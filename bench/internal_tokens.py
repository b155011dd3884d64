"""What an internal token costs: the bare signature, a token that is made, one that is kept, and the whole decision.

    python -m bench.internal_tokens

The last table is CPU time of this process from a Check's bytes to its answer's: warm token, one limit that is counted
in process. The baseline is the same rule with `credential: remove`.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.measure import Budget, Scale, alone
from bench.tokens import cost_us
from sidecar.check import CheckService
from sidecar.core.principal import Principal
from sidecar.core.token_cache import TokenCache
from sidecar.edges.internal_tokens import InternalTokenSigner
from sidecar.edges.jwks import JwksEngine
from sidecar.edges.local_store import LocalStore
from sidecar.envoy.pb.ext_authz_pb2 import CheckResponse
from sidecar.policy.compile import load
from tests.support.deciding import KEY, check_request, token
from tests.support.internal_keys import internal_tokens, p256_pem, pem, write_keys
from tests.support.tokens import AUDIENCE, ISSUER, NOW_S, NOW_US, jwks

if TYPE_CHECKING:
    from sidecar.transport.service import Status

POLICY = f"""
issuers:
  main: {{issuer: {ISSUER}, audiences: [{AUDIENCE}], algorithms: [ES256], keys: {{jwks_file: keys.json}}}}
internal_tokens: {{issuer: "https://sidecar.internal", audiences: [upstreams], keys: keys}}
redis: {{url: "redis://127.0.0.1:1/0"}}
limits: {{many: {{rate: 1000000000/day, key: {{claim: sub}}}}}}
upstream: {{headers: {{x-user-id: {{claim: sub}}}}}}
rules:
  - name: remove
    match: {{path: {{prefix: /remove}}}}
    authenticate: {{issuers: [main]}}
    limits: [many]
  - name: replace
    match: {{path: {{prefix: /replace}}}}
    authenticate: {{issuers: [main]}}
    limits: [many]
    upstream: {{credential: replace}}
"""


class Answered:
    """A call that keeps its answer."""

    def __init__(self) -> None:
        self.deadline = math.inf
        self.cancelled = False
        self.metadata: dict[str, str] = {}
        self.answer = b""

    def respond(self, message: bytes) -> None:
        """The answer."""
        self.answer = message

    def fail(self, status: Status, message: str) -> None:
        """A Check never ends in a gRPC error."""
        raise AssertionError(status, message)


def caller() -> Principal:
    """One that has not been seen."""
    scopes, roles = frozenset({"orders:read", "orders:write"}), frozenset({"orders-admin"})
    claims: dict[str, Any] = {"exp": NOW_S + 600}
    return Principal("main", "5f0c9a3e-0d5e-4a43-9a37-5ffb1f6f7f10", "web-application", scopes, roles, claims)


def signing(seconds: float) -> None:
    """Each algorithm: the bare signature of as many bytes, a token that is made, and a kept one."""
    print(f"{'':34}{'us':>8}{'bare us':>9}")
    for name, text in (("EdDSA", pem()), ("ES256", p256_pem())):
        tokens = internal_tokens((text, NOW_S - 1))
        signer, known = InternalTokenSigner(tokens), caller()
        content = signer.sign(known, NOW_US).rpartition(".")[0].encode()
        [key] = tokens.keys

        def bare(sign: Callable[[bytes], bytes] = key.sign, content: bytes = content) -> bytes:
            return sign(content)

        def make(signer: InternalTokenSigner = signer) -> str:
            return signer.sign(caller(), NOW_US)

        def keep(signer: InternalTokenSigner = signer, known: Principal = known) -> str:
            return signer.sign(known, NOW_US)

        bare_us, made_us = cost_us(bare, seconds), cost_us(make, seconds)
        keep()
        print(f"made, {name}".ljust(34) + f"{made_us:8.1f}{bare_us:9.1f}")
        print(f"kept, {name}".ljust(34) + f"{cost_us(keep, seconds):8.2f}")


async def deciding(seconds: float) -> None:
    """The whole decision of a warm token, with and without a token for the upstream."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "keys.json").write_bytes(jwks(KEY))
        write_keys(directory / "keys", "2026-01-01.pem")
        (directory / "sidecar.yaml").write_text(POLICY)
        policy = load(directory / "sidecar.yaml", 1).policy
        engine = JwksEngine(policy.issuers.values())
        engine.start()
        started = time.monotonic()
        while not engine.ready and time.monotonic() - started < 5:  # noqa: ASYNC110 - a file is read
            await asyncio.sleep(0.001)
    bugs: list[BaseException] = []
    store = LocalStore()
    service = CheckService(
        policy=lambda: policy,
        cache=TokenCache(),
        jwks=engine,
        store=store,
        local=store,
        on_events=lambda _events: None,
        on_bug=lambda bug, _method: bugs.append(bug),
        token_for=InternalTokenSigner(policy.internal_tokens).token_for,
    )
    shown = token()
    costs: dict[str, float] = {}
    for use in ("remove", "replace"):
        message = check_request(f"/{use}/x", shown)
        call = Answered()

        def decide(message: bytes = message, call: Answered = call) -> None:
            service.handle(message, call)

        costs[use] = cost_us(decide, seconds)
        answer = CheckResponse.FromString(call.answer)
        assert answer.HasField("ok_response"), answer
        assert ("authorization" in answer.ok_response.headers_to_remove) == (use == "remove")
        print(f"whole decision, credential: {use}".ljust(34) + f"{costs[use]:8.2f}")
    await engine.stop()
    assert not bugs


def main(scale: Scale) -> list[Budget]:
    """Print the tables."""
    seconds = scale.seconds / 16
    signing(seconds)
    asyncio.run(deciding(seconds))
    return []


if __name__ == "__main__":
    alone(main)
