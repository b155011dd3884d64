"""Opaque tokens as a serving process decides them: asked about once, remembered, refused, counted, never shown."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest_asyncio

from sidecar.check import CHECK
from sidecar.edges.admin_client import get
from sidecar.envoy.pb.ext_authz_pb2 import CheckResponse
from sidecar.explain import explain
from sidecar.transport.service import UnixAddress
from tests.support.deciding import check_request
from tests.support.introspection import Endpoint, answer, says

TOKEN = "ory_at_5ZdVYQxN-mWq.81hJ"
STRANGER = "ory_at_unknown-W2k9~xT4"
SECRET = "s3cr3t-of-the-sidecar"
TIMEOUT_S = 20.0


def document(directory: Path, endpoint: Endpoint) -> dict[str, Any]:
    common = {
        "client": {"basic": {"id": "sidecar", "secret_file": "secret"}},
        "audiences": ["orders-api"],
        "insecure_http": True,
        "cache_inactive": "1m",
    }
    return {
        "server": {"listen": f"unix:{directory}/grpc.sock", "check_timeout": "5s"},
        "admin": {"listen": f"unix:{directory}/admin.sock"},
        "audit": {"destination": {"file": str(directory / "audit.jsonl")}},
        "introspection": {
            "legacy": {"url": endpoint.url, **common},
            "down": {"url": "http://127.0.0.1:1/introspect", **common, "on_failure": "error"},
        },
        "issuers": {
            "main": {
                "issuer": "https://issuer.example",
                "audiences": ["orders-api"],
                "algorithms": ["RS256"],
                "keys": {"jwks_url": "https://127.0.0.1:1/jwks"},
                "required": False,
            }
        },
        "rules": [
            {
                "name": "orders",
                "match": {"path": {"prefix": "/orders"}},
                "authenticate": {"any_of": [{"opaque_token": {"introspection": "legacy"}}]},
                "authorize": {"scope": "orders:read"},
                "upstream": {"headers": {"x-user": {"claim": "sub"}}},
            },
            {
                "name": "write",
                "match": {"path": {"prefix": "/admin"}},
                "authenticate": {"any_of": [{"opaque_token": {"introspection": "legacy"}}]},
                "authorize": {"scope": "admin"},
            },
            {
                "name": "both",
                "match": {"path": {"prefix": "/both"}},
                "authenticate": {
                    "any_of": [{"token": {"issuers": ["main"]}}, {"opaque_token": {"introspection": "legacy"}}]
                },
            },
            {
                "name": "down",
                "match": {"path": {"prefix": "/down"}},
                "authenticate": {"any_of": [{"opaque_token": {"introspection": "down"}}]},
            },
        ],
    }


class Served:
    """A sidecar in a process of its own, beside a real endpoint."""

    def __init__(self, directory: Path, endpoint: Endpoint, channel: grpc.aio.Channel) -> None:
        self.directory = directory
        self.endpoint = endpoint
        self._check = channel.unary_unary(CHECK)

    async def ask(self, path: str, token: str | None) -> CheckResponse:
        return CheckResponse.FromString(await self._check(check_request(path, token), timeout=TIMEOUT_S))

    async def metrics(self) -> dict[str, float]:
        _, body = await get(UnixAddress(f"{self.directory}/admin.sock"), "/metrics")
        lines = [line.rpartition(" ") for line in body.decode().splitlines() if "introspection" in line]
        return {name: float(value) for name, _, value in lines if not name.startswith("#")}

    async def written(self) -> str:
        """All that the process shows to anybody: log, audit, metrics, readiness, policy."""
        admin = UnixAddress(f"{self.directory}/admin.sock")
        answers = [(await get(admin, path))[1].decode() for path in ("/metrics", "/readyz", "/policy")]
        return "\n".join([*answers, *((self.directory / name).read_text() for name in ("log", "audit.jsonl"))])


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    now_s = int(time.time())
    async with Endpoint(known={TOKEN: answer(exp=now_s + 600, iat=now_s)}) as endpoint:
        (tmp_path / "secret").write_text(SECRET)
        (tmp_path / "sidecar.yaml").write_text(json.dumps(document(tmp_path, endpoint)))
        command = ["-m", "sidecar", "serve", "--config", str(tmp_path / "sidecar.yaml")]
        with (tmp_path / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(sys.executable, *command, stderr=log)
        try:
            async with grpc.aio.insecure_channel(f"unix:{tmp_path}/grpc.sock") as channel:
                async with asyncio.timeout(TIMEOUT_S):
                    await channel.channel_ready()
                yield Served(tmp_path, endpoint, channel)
        finally:
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(TIMEOUT_S):
                assert await process.wait() == 0


async def test_an_opaque_token_is_decided_like_any_other(served: Served) -> None:
    """Asked about once by however many Checks; scopes and upstream headers are those of every principal."""
    answers = await asyncio.gather(*(served.ask("/orders/7", TOKEN) for _ in range(50)))
    assert [each.status.code for each in answers] == [0] * 50
    assert {(each.header.key, each.header.value) for each in answers[0].ok_response.headers} >= {("x-user", "alice")}
    assert "authorization" in answers[0].ok_response.headers_to_remove
    assert served.endpoint.asked == [TOKEN]
    lacking = await served.ask("/admin", TOKEN)
    assert lacking.denied_response.status.code == 403
    assert (await served.ask("/both", TOKEN)).status.code == 0
    assert served.endpoint.asked == [TOKEN]


async def test_what_is_no_token_of_the_endpoint_is_denied(served: Served) -> None:
    """Unknown: 401 after one question; malformed, missing or a JWT under a rule for both: without one."""
    for _ in range(3):
        unknown = await served.ask("/orders", STRANGER)
        assert unknown.denied_response.status.code == 401
    challenge = {h.header.key.lower(): h.header.value for h in unknown.denied_response.headers}["www-authenticate"]
    assert re.search(r'^Bearer .*error="invalid_token"', challenge)
    assert STRANGER not in unknown.denied_response.body
    for token, status in ((None, 401), ("a b", 401), ("a;b", 401), ("x" * 3000, 401), ("é", 401)):
        assert (await served.ask("/orders", token)).denied_response.status.code == status, token
    jwt = await served.ask("/both", "eyJhbGciOiJSUzI1NiJ9.e30.c2ln")
    assert jwt.denied_response.status.code == 401
    assert served.endpoint.asked == [STRANGER]


async def test_no_answer_is_503_and_only_an_outage_is_left_to_envoy(served: Served) -> None:
    """An unusable answer is denied; an endpoint that is not there is an error where the policy says so."""
    served.endpoint.behaviour = says(b'{"active": "true"}')
    unusable = await served.ask("/orders", TOKEN)
    assert unusable.denied_response.status.code == 503
    served.endpoint.behaviour = says(json.dumps(answer(cnf={"jkt": "x" * 43})).encode())
    bound = await served.ask("/orders", TOKEN)
    assert bound.denied_response.status.code == 401
    down = await served.ask("/down", TOKEN)
    assert down.WhichOneof("http_response") == "error_response"
    assert down.status.code != 0
    served.endpoint.behaviour = None
    assert (await served.ask("/orders", "another")).denied_response.status.code == 401


async def test_it_is_counted_and_never_shown(served: Served) -> None:
    """Questions and what was spared are metrics; neither token nor secret is in anything that is written."""
    await served.ask("/orders", TOKEN)
    await served.ask("/orders", TOKEN)
    await served.ask("/orders", STRANGER)
    await served.ask("/down", TOKEN)
    metrics = await served.metrics()
    assert metrics['sidecar_introspection_questions_total{introspection="legacy",result="active"}'] == 1
    assert metrics['sidecar_introspection_questions_total{introspection="legacy",result="inactive"}'] == 1
    assert metrics['sidecar_introspection_questions_total{introspection="down",result="failed"}'] == 1
    assert metrics["sidecar_introspection_cache_hits_total"] == 1
    served.endpoint.behaviour = says(b"", status=500)
    await served.ask("/orders", "fails")
    async with asyncio.timeout(TIMEOUT_S):
        while "token_inactive" not in (shown := await served.written()):  # noqa: ASYNC110 - the audit file is polled
            await asyncio.sleep(0.01)
    assert "introspection_failed" in shown
    assert not [secret for secret in (TOKEN, STRANGER, SECRET) if secret in shown]


async def test_explain_asks_as_serving_does(served: Served) -> None:
    """Who was proved, or why not; nothing of the token."""
    policy = served.directory / "sidecar.yaml"
    allowed = await asyncio.to_thread(explain, policy, check_request("/orders/7", TOKEN))
    assert allowed.record["decision"] == "allowed"
    denied = await asyncio.to_thread(explain, policy, check_request("/orders/7", STRANGER))
    assert denied.record["reason"] == "token_inactive"
    down = await asyncio.to_thread(explain, policy, check_request("/down", TOKEN))
    assert down.record["reason"] == "introspection_unavailable"
    assert not [token for token in (TOKEN, STRANGER, SECRET) if token in repr((allowed, denied, down))]
