"""`sidecar limits`, against serving sidecars of two workers on a real Valkey."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest

from sidecar.check import CHECK
from sidecar.cli import main
from sidecar.demo.processes import free_port, wait_until
from sidecar.envoy.pb.ext_authz_pb2 import CheckResponse
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitRequest, RateLimitResponse
from sidecar.envoy.ratelimit import SHOULD_RATE_LIMIT
from tests.support.deciding import check_request
from tests.support.valkey import ValkeyProcess

POLICY = """
server: {{listen: "unix:{directory}/grpc.sock", workers: 2}}
admin: {{listen: "127.0.0.1:{admin}"}}
redis: {{url: "{redis}"}}
limits:
  per-user: {{rate: 3/hour, key: [{{constant: v1}}, {{header: x-user}}, {{header: x-team}}]}}
  burst: {{rate: {{requests: 100, window: 1h, burst: 5}}, algorithm: gcra, key: {{header: x-user}}}}
rules: [{{name: open, match: {{path: {{prefix: /}}}}, anonymous: true, limits: [per-user]}}]
ratelimit: {{directory: "{directory}"}}
audit: {{destination: none}}
"""
DOMAIN = """
domain: shop
descriptors:
  - {key: path, value: /a*, descriptors: [{key: user, rate_limit: {unit: day, requests_per_unit: 2}}]}
"""


@dataclass
class Served:
    """A sidecar that serves a policy, and what is asked of it."""

    policy: Path
    channel: grpc.Channel
    capture: pytest.CaptureFixture[str]

    def admits(self, user: str) -> bool:
        message = check_request("/a", headers=[("x-user", user)])
        ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(CHECK)
        return bool(CheckResponse.FromString(ask(message, timeout=5)).status.code == 0)

    def rate_limit(self, user: str) -> tuple[bool, int]:
        """Whether it passes, and the limit that is told."""
        request = RateLimitRequest(domain="shop")
        entries = request.descriptors.add().entries
        entries.add(key="path", value="/a/b")
        entries.add(key="user", value=user)
        ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(SHOULD_RATE_LIMIT)
        answer = RateLimitResponse.FromString(ask(request.SerializeToString(), timeout=5))
        return answer.overall_code == RateLimitResponse.OK, answer.statuses[0].current_limit.requests_per_unit

    def run(self, action: str, *arguments: str, status: int = 0) -> str:
        """What the command prints, to standard error where it fails."""
        assert main(["limits", action, "--config", str(self.policy), *arguments]) == status
        printed = self.capture.readouterr()
        return printed.err if status else printed.out

    def json(self, action: str, *arguments: str) -> Any:
        return json.loads(self.run(action, "--output", "json", *arguments))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Served by a process of its own."""
    directory = tmp_path_factory.mktemp("limits")
    valkey = ValkeyProcess(directory / "valkey")
    valkey.start()
    path = directory / "policy"
    (directory / "shop.yaml").write_text(DOMAIN)
    path.write_text(POLICY.format(directory=directory, admin=free_port(), redis=valkey.url))
    process = subprocess.Popen([sys.executable, "-m", "sidecar", "serve", "--config", str(path)])
    try:
        wait_until((directory / "grpc.sock").exists, "the sidecar listens")
        yield path
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        valkey.stop()


@pytest.fixture
def served(policy: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Served]:
    """The sidecar, asked over one connection."""
    with grpc.insecure_channel(f"unix:{policy.parent}/grpc.sock") as channel:
        found = Served(policy, channel, capsys)
        wait_until(lambda: found.admits(uuid4().hex), "Redis is connected")
        yield found


def test_a_counter_is_shown_and_reset(served: Served) -> None:
    """By the values of its key, without constants; the reset is a fresh start for the caller."""
    assert [served.admits("ann") for _ in range(4)] == [True, True, True, False]
    shown = served.json("show", "per-user", "ann", "@absent")
    assert shown["key"] == ["v1", "ann", None]
    [counted] = shown["counters"]
    assert (counted["used"], counted["remaining"], counted["requests"], counted["window"]) == (3, 0, 3, "1h")
    assert "used       3" in served.run("show", "per-user", "ann", "@absent")

    assert "emptied" in served.run("reset", "per-user", "ann", "@absent")
    assert "nothing was counted" in served.run("reset", "per-user", "ann", "@absent")
    wait_until(lambda: served.admits("ann"), "the denial from memory is forgotten")


def test_an_override_is_in_force_until_it_is_cleared(served: Served) -> None:
    """For the one key, on a running sidecar, without a restart; what was counted stays counted."""
    assert [served.admits("bob") for _ in range(4)] == [True, True, True, False]
    assert "5 requests" in served.run("override", "--requests", "5", "per-user", "bob", "@absent")
    wait_until(lambda: served.admits("bob"), "the override is in force")
    assert served.json("show", "per-user", "bob", "@absent")["counters"][0]["overridden"] is True
    assert served.json("overrides") == [
        {"limit": "per-user", "key": ["v1", "bob", None], "requests": 5, "burst": 0, "until_us": None}
    ]
    assert "per-user of v1, bob, @absent: 5 requests" in served.run("overrides")

    assert "no override any more" in served.run("clear", "per-user", "bob", "@absent")
    assert "had no override" in served.run("clear", "per-user", "bob", "@absent")
    assert served.json("overrides") == []
    wait_until(lambda: not served.admits("bob"), "the override is not in force any more")


def test_a_descriptor_of_the_rate_limit_service_has_overrides_too(served: Served) -> None:
    """Named by its domain and entries; Envoy is told the figure that is in force."""
    assert [served.rate_limit("dan") for _ in range(3)] == [(True, 2), (True, 2), (False, 2)]
    descriptor = ("ratelimit:shop", "path=/a/b", "user=dan")
    served.run("override", "--requests", "100000", *descriptor)
    wait_until(lambda: served.rate_limit("dan") == (True, 100000), "the override is in force")
    assert served.json("show", *descriptor)["counters"][0]["requests"] == 100000
    served.run("reset", *descriptor)
    assert served.json("show", *descriptor)["counters"][0]["used"] == 0
    served.run("clear", *descriptor)


def test_an_override_may_end_by_itself(served: Served) -> None:
    """After the time that it was given for."""
    assert [served.admits("cid") for _ in range(4)] == [True, True, True, False]
    served.run("override", "--requests", "100000", "--for", "1s", "per-user", "cid", "@absent")
    assert served.json("overrides")[0]["until_us"] > 0
    wait_until(lambda: served.admits("cid"), "the override is in force")
    wait_until(lambda: not served.admits("cid"), "the override has ended")
    assert served.json("overrides") == []


def test_the_hottest_keys_of_all_workers(served: Served) -> None:
    """Estimated from a sample, by the limit and the values of the key."""

    def hot() -> Any:
        for _ in range(100):
            served.admits("hot")
        return [each for each in served.json("top", "--count", "5") if each["key"] == ["v1", "hot", None]]

    wait_until(hot, "the sample has the key")
    assert "per-user" in served.run("top")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "none", "x"), "the policy has no limit 'none'; it has burst, per-user"),
        (("show", "ratelimit:none", "x=y"), "has no such domain as 'ratelimit:none'; it has ratelimit:shop"),
        (("show", "ratelimit:shop", "x=y"), "no limit of ratelimit:shop counts the descriptor (x=y)"),
        (("show", "per-user", "x"), "takes the header x-user, the header x-team; 1 values are given"),
        (("override", "--requests", "-1", "burst", "x"), "--requests: -1 is not a number of requests"),
        (("override", "--requests", "1", "--burst", "2", "per-user", "x", "y"), "is not counted by gcra"),
        (("override", "--requests", "1", "--for", "soon", "burst", "x"), "--for: 'soon' is not a duration"),
    ],
)
def test_what_cannot_be_done_is_said(served: Served, arguments: tuple[str, ...], said: str) -> None:
    """With what there is instead; exit status 2."""
    assert said in served.run(*arguments, status=2)


def test_a_redis_that_does_not_answer_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 1, and no traceback."""
    path = tmp_path / "policy"
    (tmp_path / "shop.yaml").write_text(DOMAIN)
    path.write_text(POLICY.format(directory=tmp_path, admin=1, redis=f"redis://127.0.0.1:{free_port()}/0"))
    for action in (["overrides"], ["top"]):
        assert main(["limits", *action, "--config", str(path)]) == 1
        assert "answer" in capsys.readouterr().err


def test_an_embedded_server_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is another process's own."""
    path = tmp_path / "policy"
    (tmp_path / "shop.yaml").write_text(DOMAIN)
    path.write_text(POLICY.format(directory=tmp_path, admin=1, redis="embedded"))
    assert main(["limits", "overrides", "--config", str(path)]) == 2
    assert "embedded" in capsys.readouterr().err
