"""Limits of the policy as a serving process and a real Valkey count them: each algorithm, plans, costs, settlements."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import redis

from sidecar.check import CHECK
from sidecar.demo.processes import free_port, wait_until
from sidecar.envoy.pb.ext_authz_pb2 import CheckResponse
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitRequest, RateLimitResponse
from sidecar.envoy.ratelimit import SHOULD_RATE_LIMIT
from tests.support.deciding import check_request
from tests.support.valkey import ValkeyProcess

CALLERS = 200
GRANTED = 10

LIMITS = {
    "sliding-window": {"rate": "10/1h30m"},
    "fixed-window": {"rate": "10/366d", "algorithm": "fixed_window"},
    "gcra": {"rate": {"requests": 1, "window": "1d", "burst": 10}, "algorithm": "gcra"},
    "sliding-log": {"rate": "10/hour", "algorithm": "sliding_log"},
    "concurrency": {"rate": {"requests": 10}, "algorithm": "concurrency", "reserve": {"hold": "1h"}},
    "calendar": {"rate": {"requests": 10, "calendar": "year", "time_zone": "Pacific/Kiritimati"}},
    "held": {"rate": "10/hour", "reserve": {"hold": "1h"}},
    "leased": {"rate": "10/366d", "algorithm": "fixed_window", "lease": 5},
    "counted": {"rate": "10/day", "count_denied": True, "deny_cache": False},
}
MORE_LIMITS = {
    "weighed": {"rate": "10/hour", "cost": {"header": "x-cost", "default": 1}, "reserve": {"hold": "1h"}},
    "by-plan": {"rate": "1/day", "plans": {"by": {"header": "x-plan"}, "rates": {"gold": "3/day"}}},
    "ghost": {"rate": "1/day", "shadow": True, "warn_at": 1},
}


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    process = ValkeyProcess(tmp_path_factory.mktemp("valkey"))
    process.start()
    yield process
    process.stop()


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory, valkey: ValkeyProcess) -> Iterator[grpc.Channel]:
    """To a sidecar in a process of its own, with a rule under each limit."""
    directory = tmp_path_factory.mktemp("served")
    limits = {name: limit | {"key": {"header": "x-user"}} for name, limit in {**LIMITS, **MORE_LIMITS}.items()}
    rules = [
        {"name": name, "match": {"path": {"exact": f"/{name}"}}, "anonymous": True, "limits": [name]} for name in limits
    ]
    port = free_port()
    policy = {
        "server": {"listen": f"unix:{directory / 'grpc.sock'}", "check_timeout": "5s"},
        "admin": {"listen": f"127.0.0.1:{port}"},
        "redis": {"url": valkey.url, "timeout": "4s"},
        "limits": limits,
        "rules": rules,
        "audit": {"destination": "none"},
    }
    (directory / "policy.yaml").write_text(json.dumps(policy))
    process = subprocess.Popen([sys.executable, "-m", "sidecar", "serve", "--config", str(directory / "policy.yaml")])
    try:
        with grpc.insecure_channel(f"unix:{directory / 'grpc.sock'}") as channel:
            grpc.channel_ready_future(channel).result(timeout=20)
            wait_until(lambda: ask(channel, "/sliding-window", user="nobody").status.code == 0, "Redis is connected")
            yield channel
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def ask(channel: grpc.Channel, path: str, **named: str) -> CheckResponse:
    message = check_request(path, headers=[(f"x-{name}", value) for name, value in named.items()])
    return CheckResponse.FromString(channel.unary_unary(CHECK)(message, timeout=10))


def settle(channel: grpc.Channel, answer: CheckResponse, cost: int) -> None:
    """As Envoy does it when a stream is done."""
    request = RateLimitRequest(domain="sidecar")
    descriptor = request.descriptors.add()
    descriptor.entries.add(key="reservation", value=answer.dynamic_metadata["reservation"])
    descriptor.hits_addend.value = cost
    reply = channel.unary_unary(SHOULD_RATE_LIMIT)(request.SerializeToString(), timeout=10)
    assert RateLimitResponse.FromString(reply).overall_code == RateLimitResponse.OK


def remaining(answer: CheckResponse) -> float:
    [limit] = answer.dynamic_metadata["limits"]
    return float(limit["remaining"])


@pytest.mark.parametrize("name", LIMITS)
def test_exactly_so_many_of_parallel_callers_pass(channel: grpc.Channel, name: str) -> None:
    """Each algorithm, at once from 200 callers: ten pass, and the others are told a way to wait that is right."""
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: ask(channel, f"/{name}", user="crowd"), range(CALLERS)))
    denied = [answer for answer in answers if answer.status.code != 0]
    assert len(answers) - len(denied) == GRANTED
    assert {answer.denied_response.status.code for answer in denied} == {429}
    told = {option.header.key: option.header.value for option in denied[-1].denied_response.headers}
    assert int(told["retry-after"]) >= 1
    assert told["ratelimit"] == f'"{name}";r=0;t={told["retry-after"]}'


def test_a_settled_hold_counts_what_it_cost(channel: grpc.Channel) -> None:
    """Nine held and two used leave eight; nothing used leaves what was there."""
    first = ask(channel, "/weighed", user="ann", cost="9")
    assert remaining(first) == 1
    settle(channel, first, 2)
    second = ask(channel, "/weighed", user="ann", cost="8")
    assert remaining(second) == 0
    settle(channel, second, 0)
    assert remaining(ask(channel, "/weighed", user="ann")) == 7


def test_a_settled_request_is_under_way_no_more(channel: grpc.Channel) -> None:
    """Ten at a time; the eleventh passes once one has ended."""
    answers = [ask(channel, "/concurrency", user="ann") for _ in range(11)]
    assert [answer.status.code for answer in answers] == [0] * 10 + [8]
    settle(channel, answers[3], 1)
    assert ask(channel, "/concurrency", user="ann").status.code == 0
    assert ask(channel, "/concurrency", user="ann").status.code == 8


def test_a_plan_changes_the_rate_and_keeps_the_counter(channel: grpc.Channel) -> None:
    """What was counted under one plan counts under the next."""
    answers = [ask(channel, "/by-plan", user="ann", plan="gold") for _ in range(2)]
    assert [remaining(answer) for answer in answers] == [2, 1]
    assert ask(channel, "/by-plan", user="ann").denied_response.status.code == 429
    assert remaining(ask(channel, "/by-plan", user="ann", plan="gold")) == 0


def test_a_shadow_lets_pass_and_counts_only_what_fits(channel: grpc.Channel) -> None:
    """Its own denials show, and take nothing."""
    answers = [ask(channel, "/ghost", user="ann") for _ in range(3)]
    assert [answer.status.code for answer in answers] == [0, 0, 0]
    assert ["shadow_denied" in answer.dynamic_metadata for answer in answers] == [False, True, True]
    assert [answer.dynamic_metadata["warned"] for answer in answers] == ["ghost"] * 3


def test_nothing_is_left_without_an_end(channel: grpc.Channel, valkey: ValkeyProcess) -> None:
    """Every counter expires by itself."""
    ask(channel, "/held", user="ann")
    with redis.Redis(port=valkey.port) as client:
        counters = client.keys("sidecar:*{*}*")
        assert counters
        assert all(client.pttl(key) > 0 for key in counters)
