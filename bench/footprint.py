"""Start-up time to serving, and resident memory at start and after load; one worker.

Serving: `/readyz` answers 200, which is after the gRPC listener accepts; asked every 10 ms. Redis is reachable, refuses
connections, or accepts and never answers: none of these may delay the start. CPU is what the process used until then.
Budgets: serving within 1 s in each case, 64 MiB resident at start.
"""

from __future__ import annotations

import socket
from statistics import median

from bench.decision import allowed
from bench.growth import touch_each
from bench.measure import Budget, Scale, Subject, alone
from bench.setting import CHECK, Setting, free_ports

START_S_MAX = 1.0
RESIDENT_MIB_MAX = 64


def starts(setting: Setting, scale: Scale) -> list[Budget]:
    """Start in turn with each kind of Redis."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        urls = {
            "reachable": setting.redis(),
            "refusing": {"url": f"redis://127.0.0.1:{free_ports(1)[0]}/0"},
            "silent": {"url": f"redis://127.0.0.1:{silent.getsockname()[1]}/0"},
        }
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in urls}
        for _ in range(scale.starts):
            for name, redis in urls.items():
                with setting.sidecar(setting.policy(redis=redis)) as server:
                    found[name].append((server.ready_after_s, server.cpu_s(), server.resident_mib()))
    print(f"{'start, median of ' + str(scale.starts):46}{'serving s':>10}{'CPU s':>9}{'MiB':>9}")
    budgets = []
    for name, figures in found.items():
        ready_s, cpu_s, mib = (median(column) for column in zip(*figures, strict=True))
        print(f"{'Redis ' + name:46}{ready_s:10.2f}{cpu_s:9.2f}{mib:9.1f}")
        budgets.append(
            Budget(what=f"start to serving, Redis {name}", figure=ready_s, unit=" s", at_most=START_S_MAX),
        )
    resident = median(mib for _, _, mib in found["reachable"])
    return [*budgets, Budget(what="resident at start", figure=resident, unit=" MiB", at_most=RESIDENT_MIB_MAX)]


def after_load(setting: Setting, scale: Scale) -> None:
    """Resident memory after one token's calls, many tokens, and many calls at once."""
    warm = [setting.check()]
    many = [setting.check(token=setting.token("ES256", jti=f"{number:08}")) for number in range(scale.tokens)]
    with setting.sidecar(setting.policy()) as server:
        print(f"\n{'resident after':46}{'MiB':>9}")
        print(f"{'start':46}{server.resident_mib():9.1f}")
        subject = Subject(server=server, path=CHECK, messages=warm, accept=allowed)
        calls = subject.measured(scale.seconds).calls
        print(f"{f'{calls:,} calls with one token':46}{server.resident_mib():9.1f}")
        touch_each(Subject(server=server, path=CHECK, messages=many, accept=allowed))
        print(f"{f'{len(many):,} distinct tokens, all cached':46}{server.resident_mib():9.1f}")
        calls = (
            Subject(server=server, path=CHECK, messages=warm, accept=allowed, streams=512).measured(scale.seconds).calls
        )
        print(f"{f'{calls:,} calls, 2,048 in flight':46}{server.resident_mib():9.1f}")


def main(scale: Scale) -> list[Budget]:
    """Print both tables."""
    with Setting() as setting:
        budgets = starts(setting, scale)
        after_load(setting, scale)
    return budgets


if __name__ == "__main__":
    alone(main)
