"""The rate limit service with 1, 2 and 10 descriptors, against a constant answer to the same messages.

Each descriptor has a limit and a counter of its own in Redis; all of a request are charged in one script call.
Budgets: 1 descriptor at most 3 times the CPU of the constant answer, 10 descriptors at most 3 times one; in an open
loop at half of capacity, p99 at most 5 times p50. `--peer` asks another service the same, in the same rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import yaml

from bench.measure import Budget, Peer, Scale, Subject, alone, at_half, head, in_turn, line
from bench.setting import SHOULD_RATE_LIMIT, Policy, Running, Setting
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitRequest, RateLimitResponse

COUNTS = (1, 2, 10)
USERS = 100
"""Distinct users, so that not all calls meet in one counter."""

DOMAIN = "orders"
LIMIT = {"unit": "hour", "requests_per_unit": 4_000_000_000}
"""Nobody ever meets it: denials are another question."""


def within(message: bytes) -> bool:
    """Whether a RateLimitResponse lets the request pass."""
    return RateLimitResponse.FromString(message).overall_code == RateLimitResponse.OK


def limited(message: bytes) -> bool:
    """Whether it does, and says that a limit was applied for each descriptor: that counters were asked."""
    answer = RateLimitResponse.FromString(message)
    applied = all(status.HasField("current_limit") for status in answer.statuses)
    return answer.overall_code == RateLimitResponse.OK and bool(answer.statuses) and applied


def request(descriptors: int, user: int, domain_name: str = DOMAIN) -> bytes:
    """A RateLimitRequest as Envoy sends it."""
    asked = RateLimitRequest(domain=domain_name)
    for number in range(descriptors):
        descriptor = asked.descriptors.add()
        descriptor.entries.add(key=f"limit-{number}", value="orders")
        descriptor.entries.add(key="user", value=f"user-{user}")
    return asked.SerializeToString()


def requests(descriptors: int, domain_name: str = DOMAIN) -> list[bytes]:
    """One for each user."""
    return [request(descriptors, user, domain_name) for user in range(USERS)]


def domain(name: str = DOMAIN, limit: Policy = LIMIT) -> Policy:
    """A limit for each user under each of ten descriptors."""
    return {
        "domain": name,
        "descriptors": [
            {"key": f"limit-{number}", "value": "orders", "descriptors": [{"key": "user", "rate_limit": limit}]}
            for number in range(max(COUNTS))
        ],
    }


def write_config(directory: Path) -> None:
    """Write what a peer must load."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{DOMAIN}.yaml").write_text(yaml.safe_dump(domain()))


def asked(server: Running | Peer, messages: Sequence[bytes]) -> Subject:
    """A service that must apply its limits to these messages."""
    return Subject(server=server, path=SHOULD_RATE_LIMIT, messages=messages, accept=limited)


def main(scale: Scale) -> list[Budget]:
    """Print the table."""
    with Setting() as setting, ExitStack() as servers:
        constant = servers.enter_context(setting.constant("http2"))
        service = servers.enter_context(setting.sidecar(setting.ratelimit_policy(domain())))
        subjects = {
            "constant answer": Subject(server=constant, path=SHOULD_RATE_LIMIT, messages=requests(1)),
        } | {f"descriptors: {count}": asked(service, requests(count)) for count in COUNTS}
        if scale.peer is not None:
            subjects |= {f"peer, descriptors: {count}": asked(scale.peer, requests(count)) for count in COUNTS}
        rows = in_turn(subjects, scale)
        baseline, one, ten = (rows[name] for name in ("constant answer", "descriptors: 1", "descriptors: 10"))
        print(head("closed loop, http2, server on one core"))
        for name, row in rows.items():
            print(line(name, row, baseline))
        counters, expected = setting.counters(), USERS * max(COUNTS)
        print(f"counters in Valkey: {counters} (expected: {expected}){'' if counters == expected else '  WRONG'}")
        shown = ("constant answer", "descriptors: 1")
        paced = at_half(one, {name: subjects[name] for name in shown}, scale)["descriptors: 1"]
    tail = paced.percentile(0.99) / paced.percentile(0.5)
    return [
        Budget(what="CPU, RLS of 1 descriptor / constant answer", figure=one.ratio(baseline), unit="x", at_most=3),
        Budget(what="CPU, RLS of 10 descriptors / of 1", figure=ten.ratio(one), unit="x", at_most=3),
        Budget(what="RLS at half of capacity, p99 / p50", figure=tail, unit="x", at_most=5),
    ]


if __name__ == "__main__":
    alone(main)
