"""What Envoy's client gets while something that Sidecar needs, or Sidecar itself, hangs, is down, or comes back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from sidecar.demo.httpd import HttpServer, Request, Response
from sidecar.demo.processes import wait_until
from tests.support.gateway import BOTH_MODES, OLDEST
from tests.support.load import Load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.demo.issuer import DemoIssuer
    from sidecar.demo.stack import Sidecar
    from tests.support.gateway import Change, Lab

LIMITED = "/search"
SEARCHES_MAX = 3


def on_redis_failure(what: str) -> Change:
    def change(document: dict[str, Any]) -> None:
        document["on_redis_failure"] = what
        document["redis"]["timeout"] = "50ms"

    return change


def redis_answers(sidecar: Sidecar) -> bool:
    reply = sidecar.admin("/readyz")
    return reply is not None and reply.json()["components"]["redis"]["breaker"] == "closed"


@pytest.fixture
def hanging_keys() -> Iterator[HttpServer]:
    """A key endpoint that takes requests and never answers."""

    async def hang(_request: Request) -> Response:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    server = HttpServer(hang).start()
    yield server
    server.stop()


def test_hanging_keys_are_denied_in_time(
    lab: Lab, envoy_version: str, issuer: DemoIssuer, hanging_keys: HttpServer
) -> None:
    """While the issuer's keys hang, a token is denied before Envoy gives up: also where giving up means to allow."""

    def change(document: dict[str, Any]) -> None:
        document["issuers"]["demo"]["keys"] = {"jwks_url": f"http://127.0.0.1:{hanging_keys.port}/keys"}
        document["issuers"]["demo"]["required"] = False

    gateway = lab.gateway(lab.sidecar(change), envoy_version)
    for listener in BOTH_MODES:
        reply = gateway.get(listener, "/orders/1", issuer.token())
        assert (reply.status, reply.header("content-type")) == (503, "application/problem+json")
        assert gateway.get(listener, "/public/x").status == 200


def test_frozen_redis_is_denied_in_time_and_recovers(lab: Lab, envoy_version: str, issuer: DemoIssuer) -> None:
    """With `deny`, a Redis that is frozen denies before Envoy gives up; once it answers again, all is as before."""
    gateway = lab.gateway(lab.sidecar(on_redis_failure("deny")), envoy_version)
    assert gateway.get("closed", LIMITED, issuer.token()).status == 200
    lab.valkey.freeze()
    for listener in BOTH_MODES * 4:
        reply = gateway.get(listener, LIMITED, issuer.token())
        assert (reply.status, reply.header("content-type")) == (503, "application/problem+json")
    lab.valkey.thaw()
    wait_until(lambda: gateway.get("open", LIMITED, issuer.token({"sub": "bob"})).status in {200, 429}, "recovery")


def test_frozen_redis_lets_nothing_pass_under_load(lab: Lab, issuer: DemoIssuer) -> None:
    """With `deny` and many callers at once, no answer is late enough for Envoy to allow what was never decided."""
    gateway = lab.gateway(lab.sidecar(on_redis_failure("deny")))
    headers = [("authorization", f"Bearer {issuer.token()}")]
    clients = [lab.stack.enter_context(gateway.client("open")) for _ in range(8)]

    def send(number: int) -> int:
        return clients[number].request("GET", "/orders/1", headers).status

    with Load(send, threads=len(clients)) as load:
        load.wait_for(200, 50)
        lab.valkey.freeze()
        load.wait_for(503, 50)  # by now each caller's last request from before the freeze is answered
        load.forget()
        load.wait_more(300)
    assert set(load.results) == {503}


def test_ratelimit_filter_is_answered_while_redis_is_frozen(lab: Lab, issuer: DemoIssuer) -> None:
    """With `deny` for the rate limit service, Envoy's filter refuses at once; it does not wait for its own timeout."""

    def change(document: dict[str, Any]) -> None:
        document["ratelimit"]["on_redis_failure"] = "deny"

    gateway = lab.gateway(lab.sidecar(change))
    lab.valkey.freeze()
    token = issuer.token()
    assert [gateway.get("closed", "/reports/q1", token).status for _ in range(4)] == [429] * 4


def test_error_hands_the_choice_to_envoy(lab: Lab, envoy_version: str, issuer: DemoIssuer) -> None:
    """With `error`, Envoy's failure_mode_allow decides; an Envoy that does not know error_response denies."""
    gateway = lab.gateway(lab.sidecar(on_redis_failure("error")), envoy_version)
    lab.valkey.freeze()
    assert gateway.get("closed", LIMITED, issuer.token()).status in {403, 503}
    assert gateway.get("open", LIMITED, issuer.token()).status == (403 if envoy_version == OLDEST else 200)
    assert gateway.get("open", LIMITED).status == 401


def test_local_keeps_limiting_while_redis_is_down(lab: Lab, issuer: DemoIssuer) -> None:
    """With `local`, one instance counts by itself: the limit's requests pass, the next one does not."""
    gateway = lab.gateway(lab.sidecar(on_redis_failure("local")))
    lab.valkey.kill()
    statuses = [gateway.get("closed", LIMITED, issuer.token()).status for _ in range(SEARCHES_MAX + 2)]
    assert statuses == [200] * SEARCHES_MAX + [429] * 2


def test_allow_lets_pass_what_would_be_limited(lab: Lab, issuer: DemoIssuer) -> None:
    """With `allow`, only the limit is given up: a caller without a token is still refused."""
    gateway = lab.gateway(lab.sidecar(on_redis_failure("allow")))
    lab.valkey.kill()
    statuses = [gateway.get("closed", LIMITED, issuer.token()).status for _ in range(SEARCHES_MAX + 2)]
    assert statuses == [200] * (SEARCHES_MAX + 2)
    assert gateway.get("closed", LIMITED).status == 401


@pytest.mark.parametrize(
    ("what", "permitted_while_down"), [("deny", {503}), ("local", {200, 429}), ("error", {200, 403, 503})]
)
def test_redis_killed_and_restarted_under_load(
    lab: Lab, issuer: DemoIssuer, what: str, permitted_while_down: set[int]
) -> None:
    """Under load each answer is one that the policy permits, and limits are Redis's again without a restart."""
    sidecar = lab.sidecar(on_redis_failure(what))
    gateway = lab.gateway(sidecar)
    tokens = [issuer.token({"sub": f"user-{number}"}) for number in range(4)]
    clients = [lab.stack.enter_context(gateway.client("open")) for _ in tokens]

    def send(number: int) -> int:
        headers = [("authorization", f"Bearer {tokens[number]}")]
        return clients[number].request("GET", "/orders/1", headers).status

    with Load(send, threads=len(tokens)) as load:
        load.wait_for(200, 100)
        lab.valkey.kill()
        load.wait_more(100)
        during = set(load.results.copy())
        lab.valkey.start()
        wait_until(lambda: redis_answers(sidecar), "Redis is asked again")
        load.wait_for(200, 50)
    assert during <= {200} | permitted_while_down
    assert set(load.results) <= {200, 429} | permitted_while_down
    statuses = [gateway.get("closed", LIMITED, issuer.token()).status for _ in range(SEARCHES_MAX + 1)]
    assert statuses == [200] * SEARCHES_MAX + [429]


def test_without_sidecar_envoy_decides(lab: Lab, envoy_version: str, issuer: DemoIssuer) -> None:
    """Nobody to ask: failure_mode_allow false refuses all, true lets all pass. It comes back by itself."""
    sidecar = lab.sidecar()
    gateway = lab.gateway(sidecar, envoy_version)
    sidecar.child.kill()
    assert gateway.get("closed", "/public/x").status == 403
    assert gateway.get("open", "/orders/1").status == 200
    sidecar.start()
    wait_until(lambda: gateway.get("open", "/orders/1").status == 401, "Envoy asks the new Sidecar")
    assert gateway.get("closed", "/orders/1", issuer.token()).status == 200
