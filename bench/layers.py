"""What asking Redis less saves: denials that are remembered, and hits that are leased ahead for hot keys.

    counted         one limit, one script call for each request: the baseline of the others
    denied          the same, exhausted: each denial is Redis's
    remembered      exhausted, with `deny_cache`: a denial is this process's until the key can pass again
    leased          `lease`: a process takes hits ahead, and grants them by itself

The note is how many scripts Valkey ran for a call: 1 where it decides, next to 0 where a layer does.
"""

from __future__ import annotations

from contextlib import ExitStack

from bench.measure import Budget, Row, Scale, Subject, alone, head, line
from bench.ratelimit import domain, limited, requests
from bench.setting import SHOULD_RATE_LIMIT, Policy, Setting
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitResponse

SOON_EXHAUSTED = {"unit": "year", "requests_per_unit": 1}
HOT_USERS = 4
"""So few that each asks far more than the 160 times a second from which on a key is leased."""

EXHAUST_S = 0.2
"""Long enough for each user to ask twice."""

LEASE = 1_000
LEASED: dict[str, Policy] = {"leased": {"algorithm": "sliding_window", "lease": LEASE}}


def denied(message: bytes) -> bool:
    """Whether a RateLimitResponse refuses."""
    return RateLimitResponse.FromString(message).overall_code == RateLimitResponse.OVER_LIMIT


def main(scale: Scale) -> list[Budget]:
    """Print the table."""
    with Setting() as setting, ExitStack() as servers:
        constant = servers.enter_context(setting.constant("http2"))
        domains = [domain("counted"), domain("leased"), domain("denied", SOON_EXHAUSTED)]
        plain = servers.enter_context(setting.sidecar(setting.ratelimit_policy(*domains, algorithms=LEASED)))
        caching = servers.enter_context(
            setting.sidecar(setting.ratelimit_policy(domain("remembered", SOON_EXHAUSTED), deny_cache=True))
        )
        asked = {"counted": plain, "denied": plain, "remembered": caching, "leased": plain}
        subjects = {
            "constant answer": Subject(server=constant, path=SHOULD_RATE_LIMIT, messages=requests(1)[:HOT_USERS])
        } | {
            name: Subject(
                server=server,
                path=SHOULD_RATE_LIMIT,
                messages=requests(1, name)[:HOT_USERS],
                accept=limited if name in {"counted", "leased"} else denied,
            )
            for name, server in asked.items()
        }
        for name in ("denied", "remembered"):
            subjects[name].measured(EXHAUST_S, warm_up_s=0)
        rows, scripts = {name: Row() for name in subjects}, dict.fromkeys(subjects, 0)
        for _ in range(scale.rounds):
            for name, subject in subjects.items():
                before = setting.scripts_run()
                rows[name].results.append(subject.measured(scale.seconds, warm_up_s=0))
                scripts[name] += setting.scripts_run() - before
        print(head("one descriptor, by who decides"))
        for name, row in rows.items():
            calls = max(1, sum(result.calls for result in row.results))
            note = f"{scripts[name] / calls:.3f} scripts a call" if name in asked else ""
            print(line(name, row, rows["constant answer"], note))
    return []


if __name__ == "__main__":
    alone(main)
