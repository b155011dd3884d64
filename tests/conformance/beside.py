"""Two rate limit services beside each other: random configurations and requests, which both must answer the same.

    python -m tests.conformance.beside --write-config DIR          what both must load
    python -m tests.conformance.beside HOST:PORT HOST:PORT         the reference, and who is compared with it

Both with response headers and dynamic metadata. The known defects of envoyproxy/ratelimit are not to be found again:
names have no `_`, which it joins them with; metadata stands where it keeps it; and no request brings a limit for a
value that reads as a pattern, with whose shared counter it confuses it.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path
from random import Random
from typing import Any

import yaml
from google.protobuf.json_format import MessageToDict

from sidecar.conformance.grpc_target import GrpcTarget
from sidecar.conformance.judge import METADATA_KEYS, Answer, Fault
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitRequest

DOMAINS = 100
REQUESTS = 60
"""Of each domain."""

KEYS = ["a", "b", "c"]
VALUES = ["", "x", "y", "xy", "xx", "yx", "*", "x*", "*x", "x*y", "xy*", "*y*", "yxxy"]
ASKED_VALUES = ["", "x", "y", "xy", "xx", "yx", "xyx", "yxxy", "xzzy", "q", "*", "x*"]
NAMES = ["m", "n", "o", "p"]
UNITS = ["day", "week", "month", "year"]
"""Windows that hardly end while this runs."""

DEPTH = 3


def configuration(number: int) -> dict[str, Any]:
    """A domain. Every other one has names of metrics, and patterns in keys, instead of metadata."""
    random = Random(number)
    return {
        "domain": domain(number),
        "descriptors": [{"key": "run", "descriptors": _level(random, 1, of_metrics=number % 2 == 1)}],
    }


def domain(number: int) -> str:
    return f"beside.{number}"


def _level(random: Random, depth: int, *, of_metrics: bool) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for _ in range(random.randint(1, 6)):
        key = "a*" if of_metrics and random.random() < 0.1 else random.choice(KEYS)
        value = random.choice(VALUES)
        rule: dict[str, Any] = {"key": key} | ({"value": value} if value else {})
        if random.random() < 0.75:
            rule["rate_limit"] = _rate_limit(random)
        likely = {"shadow_mode": 0.1, "quota_mode": 0.2, "share_threshold": 0.4 if "*" in key + value else 0}
        if of_metrics:
            likely |= {"detailed_metric": 0.2, "value_to_metric": 0.2}
        elif random.random() < 0.3:
            rule["metadata"] = {random.choice("uv"): random.choice([1, "text", [1, 2]])}
        rule |= {name: True for name, share in likely.items() if random.random() < share}
        if depth < DEPTH and random.random() < 0.5:
            rule["descriptors"] = _level(random, depth + 1, of_metrics=of_metrics)
        found.setdefault((key, value), rule)
    return list(found.values())


def _rate_limit(random: Random) -> dict[str, Any]:
    limit: dict[str, Any] = {"unit": random.choice(UNITS), "requests_per_unit": random.choice([0, 1, 3, 5, 20, 100])}
    if random.random() < 0.1:
        limit = {"unlimited": True}
    if random.random() < 0.7:
        limit["name"] = random.choice(NAMES)
    if random.random() < 0.3:
        others = [name for name in NAMES if name != limit.get("name")]
        limit["replaces"] = [{"name": name} for name in random.sample(others, random.randint(1, 2))]
    return limit


def request(random: Random, number: int, run: str) -> RateLimitRequest:
    """A request of a domain; `run` makes its counters fresh."""
    asked = RateLimitRequest(domain=domain(number))
    if random.random() < 0.3:
        asked.hits_addend = random.choice([1, 2, 3, 50])
    for _ in range(random.choice([1, 1, 2, 3, 4])):
        descriptor = asked.descriptors.add()
        descriptor.entries.add(key="run", value=run)
        for _ in range(random.choice([0, 1, 1, 1, 2, 2, 3])):
            descriptor.entries.add(key=random.choice(KEYS), value=random.choice(ASKED_VALUES))
        if random.random() < 0.15:
            descriptor.hits_addend.value = random.choice([0, 0, 1, 4])
        if random.random() < 0.08 and not any("*" in entry.value for entry in descriptor.entries):
            descriptor.limit.requests_per_unit = random.choice([0, 2, 9])
            descriptor.limit.unit = random.choice(["DAY", "MONTH", "YEAR"])
    return asked


def comparable(answer: Answer) -> Any:
    """An answer without what is a service's own affair: the exact time, how a limit is written, further metadata."""
    if isinstance(answer, Fault):
        return answer.details
    told = MessageToDict(answer)
    for status in told.get("statuses", []):
        if "durationUntilReset" in status:
            status["durationUntilReset"] = "set"
    headers = {header["key"].lower(): header["value"] for header in told.get("responseHeadersToAdd", [])}
    if "ratelimit-reset" in headers:
        headers["ratelimit-reset"] = "set"
    metadata = {key: value for key, value in told.get("dynamicMetadata", {}).items() if key in METADATA_KEYS}
    for descriptor in metadata.get("descriptors", []):
        if "limit" in descriptor:
            descriptor["limit"] = "set"
    return {**told, "responseHeadersToAdd": headers, "dynamicMetadata": metadata}


def differences(reference: Any, target: Any, seed: int, domains: int = DOMAINS, requests: int = REQUESTS) -> list[str]:
    """The first request of each domain that is not answered the same, with both answers."""
    found = []
    for number in range(domains):
        random, run = Random(f"{seed}/{number}"), secrets.token_hex(8)
        for _ in range(requests):
            asked = request(random, number, run)
            one, other = (comparable(service.ask([asked])[0]) for service in (reference, target))
            if one != other:
                found.append(f"{asked}\nreference: {one}\ntarget:    {other}")
                break
    return found


def write(directory: Path, domains: int = DOMAINS) -> None:
    """Write what both must load."""
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(domains):
        (directory / f"{domain(number)}.yaml").write_text(yaml.safe_dump(configuration(number)))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.beside", description="Compare two services.")
    parser.add_argument("services", nargs="*", metavar="HOST:PORT", help="the reference, and the other one")
    parser.add_argument("--write-config", type=Path, metavar="DIR", help="write what both must load")
    parser.add_argument("--seed", type=int, default=0, help="of the requests; %(default)s without it")
    chosen = parser.parse_args()
    if chosen.write_config is not None:
        write(chosen.write_config)
        return 0
    if len(chosen.services) != 2:
        parser.error("two services are compared")
    with GrpcTarget(chosen.services[0]) as reference, GrpcTarget(chosen.services[1]) as target:
        found = differences(reference, target, chosen.seed)
    sys.stdout.write("\n\n".join([*found, f"{len(found)} of {DOMAINS} domains are answered differently\n"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
