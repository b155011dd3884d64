"""Latency of the rate limit service at a fixed pace, 20,000 calls a second, from each call's intended send time.

One descriptor, one counter in Redis for each of 100 users. The constant answer at the same pace is what the machine,
the generator and the transport make of it alone. A service that does not keep up shows it: its latencies grow with the
time that it is asked, and calls that were never sent are counted. `--peer` asks another service the same.
"""

from __future__ import annotations

from contextlib import ExitStack

from bench.measure import Budget, Scale, Subject, alone, paced
from bench.ratelimit import asked, domain, requests
from bench.setting import SHOULD_RATE_LIMIT, Setting


def main(scale: Scale) -> list[Budget]:
    """Print the percentiles; there is no budget, since they are the machine's as much as the service's."""
    with Setting() as setting, ExitStack() as servers:
        constant = servers.enter_context(setting.constant("http2"))
        service = servers.enter_context(setting.sidecar(setting.ratelimit_policy(domain())))
        subjects = {
            "constant answer": Subject(server=constant, path=SHOULD_RATE_LIMIT, messages=requests(1)),
            "descriptors: 1": asked(service, requests(1)),
        }
        if scale.peer is not None:
            subjects["peer, descriptors: 1"] = asked(scale.peer, requests(1))
        paced(scale.pace, f"{scale.pace:,}/s", subjects, scale)
    return []


if __name__ == "__main__":
    alone(main)
