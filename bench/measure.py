"""How the benchmarks measure: a server's CPU per call, in interleaved rounds, against a baseline and a budget.

A machine is never quiet. CPU time per call moves far less than calls per second do; a baseline that is measured in turn
with what it is compared to moves with it; and the median of the rounds' ratios forgives one bad round.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING

from bench.load import Plan, Result, closed_loop, open_loop, run

if TYPE_CHECKING:
    from bench.setting import Running

OPEN_LOOP_STREAMS = 256
"""On each connection: more than are ever in flight at half of capacity."""

SHARES = (0.5, 0.9, 0.99, 0.999)
"""Of the calls, whose latency is printed."""

Accept = Callable[[bytes], bool]


@dataclass(frozen=True)
class Peer:
    """Another rate limit service that somebody started; its CPU time is read where its process id is known."""

    address: str
    pid: int | None = None


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How long and how much: `FULL` for figures, `QUICK` to see that everything works."""

    seconds: float
    rounds: int
    warm_up_s: float
    counters: int
    rules: int
    tokens: int
    starts: int
    slow_seconds: float
    """For what is slow enough to need no long look, such as the grpcio engine."""
    limits: int
    pace: int
    """Calls a second of the open loop at a fixed rate."""
    peer: Peer | None = None


FULL = Scale(
    seconds=2.0,
    rounds=3,
    warm_up_s=0.5,
    counters=1_000_000,
    rules=10_000,
    tokens=5_000,
    starts=5,
    slow_seconds=2.0,
    limits=10_000,
    pace=20_000,
)
QUICK = Scale(
    seconds=0.2,
    rounds=1,
    warm_up_s=0.1,
    counters=2_000,
    rules=200,
    tokens=100,
    starts=1,
    slow_seconds=0.2,
    limits=200,
    pace=1_000,
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a figure must not exceed (`at_most`), or must reach (`at_least`)."""

    what: str
    figure: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def held(self) -> bool:
        return (self.at_most is None or self.figure <= self.at_most) and (
            self.at_least is None or self.figure >= self.at_least
        )

    def __str__(self) -> str:
        bound = f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least:g}"
        return f"{'held  ' if self.held else 'MISSED'}  {self.what}: {self.figure:.2f}{self.unit} ({bound}{self.unit})"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A server and what it is asked. `accept` is applied to every answer."""

    server: Running | Peer
    path: str
    messages: Sequence[bytes]
    accept: Accept | None = None
    streams: int = 32

    def plan(self, streams: int | None = None) -> Plan:
        return Plan(
            address=self.server.address,
            path=self.path,
            messages=self.messages,
            streams=streams or self.streams,
            accept=self.accept,
        )

    def measured(self, seconds: float, warm_up_s: float = 0.5) -> Result:
        """Closed loop, 4 connections with 32 calls each."""
        return run(closed_loop(self.plan(), seconds, warm_up_s=warm_up_s, server_pid=self.server.pid))


@dataclass
class Row:
    """The rounds of one subject."""

    results: list[Result] = field(default_factory=list)

    @property
    def cpu_us(self) -> float:
        """Server CPU per call, median of the rounds."""
        return median(cpu_us(result) for result in self.results)

    @property
    def per_second(self) -> float:
        return median(result.calls / result.seconds for result in self.results)

    @property
    def wrong(self) -> dict[str, int]:
        """Answers that were not accepted, and calls without one, over all rounds."""
        total: dict[str, int] = {}
        for result in self.results:
            for name, count in wrong(result).items():
                total[name] = total.get(name, 0) + count
        return total

    def ratio(self, baseline: Row) -> float:
        """CPU per call against the baseline's of the same round, median of the rounds."""
        pairs = zip(self.results, baseline.results, strict=True)
        return median(cpu_us(mine) / cpu_us(other) for mine, other in pairs)


def cpu_us(result: Result) -> float:
    """Server CPU per call."""
    return (result.server_cpu_s or 0.0) / max(1, result.calls) * 1e6


def wrong(result: Result) -> dict[str, int]:
    """What came back other than an accepted answer, by kind; empty where all is right."""
    found = {f"status {name}": count for name, count in result.statuses.items() if name != "0" and count}
    return found | ({"not accepted": result.wrong} if result.wrong else {}) | ({} if result.calls else {"no answer": 1})


def in_turn(subjects: Mapping[str, Subject], scale: Scale, seconds: float | None = None) -> dict[str, Row]:
    """Measure each subject once a round."""
    rows = {name: Row() for name in subjects}
    for _ in range(scale.rounds):
        for name, subject in subjects.items():
            rows[name].results.append(subject.measured(seconds or scale.seconds, scale.warm_up_s))
    return rows


def head(title: str) -> str:
    """The line above `line`s."""
    return f"{title:46}{'calls/s':>10}{'CPU us':>9}{'ratio':>9}"


def line(name: str, row: Row, baseline: Row | None = None, note: str = "") -> str:
    """One line of a table; without CPU time where it could not be read."""
    known = all(result.server_cpu_s is not None for result in row.results)
    cpu = f"{row.cpu_us:.1f}" if known else "?"
    ratio = f"{row.ratio(baseline):.2f}x" if known and baseline is not None else ""
    shouted = f"  WRONG: {row.wrong}" if row.wrong else ""
    return f"{name:46}{row.per_second:10,.0f}{cpu:>9}{ratio:>9}{f'  {note}' if note else ''}{shouted}"


def at_half(row: Row, subjects: Mapping[str, Subject], scale: Scale) -> dict[str, Result]:
    """An open loop at half of a row's capacity, over each subject, printed."""
    pace = row.per_second / 2
    return paced(pace, f"half of capacity ({pace:,.0f}/s)", subjects, scale)


def paced(pace: float, told: str, subjects: Mapping[str, Subject], scale: Scale) -> dict[str, Result]:
    """An open loop at so many calls a second, over each subject, printed."""
    print(f"\nopen loop at {told}, from the intended send time")
    results = {}
    for name, subject in subjects.items():
        plan = subject.plan(OPEN_LOOP_STREAMS)
        results[name] = run(open_loop(plan, pace, scale.seconds, warm_up_s=scale.warm_up_s))
        print(f"{name.strip(' +'):46}{_percentiles(results[name])}")
    return results


def _percentiles(result: Result) -> str:
    """Latencies, and what went wrong."""
    shares = "  ".join(f"p{share * 100:g} {result.percentile(share) * 1e3:.2f} ms" for share in SHARES)
    shouted = f"  WRONG: {wrong(result)}" if wrong(result) else ""
    return f"{shares}{shouted}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every benchmark has."""
    parser.add_argument("--quick", action="store_true", help="very short: to see that it works, not for figures")
    parser.add_argument(
        "--peer", metavar="HOST:PORT", help="measure this rate limit service beside ours, with the same load"
    )
    parser.add_argument("--peer-pid", type=int, metavar="PID", help="its process id, so that its CPU time is read")


def chosen_scale(chosen: argparse.Namespace) -> Scale:
    """What the options say."""
    scale = QUICK if chosen.quick else FULL
    return replace(scale, peer=Peer(chosen.peer, chosen.peer_pid)) if chosen.peer else scale


def alone(benchmark: Callable[[Scale], Sequence[Budget]]) -> None:
    """Run one benchmark as a program."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    for budget in benchmark(chosen_scale(parser.parse_args())):
        print(budget)
