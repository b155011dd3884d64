"""The rate limit service with its counters in a Cluster of three masters with a replica each, against a single Valkey.

A request's descriptors have keys of their own, so in a Cluster they are spread over slots and masters: with 10 of them
a request becomes several script calls at the same time. All seven servers share one core here: read the
sidecar's CPU, not the rates.
"""

from __future__ import annotations

from contextlib import ExitStack

from bench.measure import Budget, Scale, alone, head, in_turn, line
from bench.ratelimit import COUNTS, asked, domain, requests
from bench.setting import Policy, Setting
from tests.support.valkey import ValkeyCluster, running


def main(scale: Scale) -> list[Budget]:
    """Print the table."""
    with Setting() as setting, ExitStack() as servers:
        cluster = servers.enter_context(running(ValkeyCluster(setting.directory / "cluster")))
        nodes = [f"{host}:{port}" for host, port in cluster.addresses]
        policy = setting.ratelimit_policy(domain())
        spread: Policy = policy | {"redis": {"cluster": {"nodes": nodes}, "timeout": "3s"}}
        services = {
            "single": servers.enter_context(setting.sidecar(policy)),
            "Cluster": servers.enter_context(setting.sidecar(spread)),
        }
        subjects = {
            f"{name}, descriptors: {count}": asked(service, requests(count))
            for count in COUNTS
            for name, service in services.items()
        }
        rows = in_turn(subjects, scale)
        print(head("by topology; ratio: to the single server"))
        for count in COUNTS:
            single, spread_out = (rows[f"{name}, descriptors: {count}"] for name in services)
            print(line(f"single, descriptors: {count}", single, single))
            print(line(f"Cluster, descriptors: {count}", spread_out, single))
    return []


if __name__ == "__main__":
    alone(main)
