"""What each algorithm costs, through the rate limit service: the sidecar's CPU and Valkey's, and what a counter takes.

One descriptor; one sidecar whose domains differ in their algorithm alone. The limit is 1,000 in a second, so that the
exact log has some entries and nobody is denied. Baseline: a constant answer to the same messages.
"""

from __future__ import annotations

from contextlib import ExitStack

from bench.load import process_cpu_s
from bench.measure import Budget, Row, Scale, Subject, alone, head, line
from bench.ratelimit import asked, domain, requests
from bench.setting import SHOULD_RATE_LIMIT, Policy, Setting

ALGORITHMS: dict[str, str | Policy] = {
    "fixed_window": "fixed_window",
    "sliding_window": "sliding_window",
    "gcra": "gcra",
    "sliding_log": "sliding_log",
    # in-flight requests that last so long, as nobody ends them here: some for each user at any time
    "concurrency": {"algorithm": "concurrency", "hold": "50ms"},
}
LIMIT = {"unit": "second", "requests_per_unit": 1_000}


def main(scale: Scale) -> list[Budget]:
    """Print the table."""
    with Setting() as setting, ExitStack() as servers:
        constant = servers.enter_context(setting.constant("http2"))
        domains = [domain(name, LIMIT) for name in ALGORITHMS]
        service = servers.enter_context(setting.sidecar(setting.ratelimit_policy(*domains, algorithms=ALGORITHMS)))
        subjects = {"constant answer": Subject(server=constant, path=SHOULD_RATE_LIMIT, messages=requests(1))}
        subjects |= {name: asked(service, requests(1, name)) for name in ALGORITHMS}
        rows, valkey_s = {name: Row() for name in subjects}, dict.fromkeys(subjects, 0.0)
        for _ in range(scale.rounds):
            for name, subject in subjects.items():
                before = process_cpu_s(setting.valkey.pid)
                rows[name].results.append(subject.measured(scale.seconds, warm_up_s=0))
                valkey_s[name] += process_cpu_s(setting.valkey.pid) - before
        print(head("one descriptor, by algorithm"))
        for name, row in rows.items():
            calls = sum(result.calls for result in row.results)
            note = f"Valkey: {valkey_s[name] / max(1, calls) * 1e6:.1f} CPU us" if name in ALGORITHMS else ""
            print(line(name, row, rows["constant answer"], note))
    return []


if __name__ == "__main__":
    alone(main)
