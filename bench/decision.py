"""A hot decision against a constant answer, on both transports, in one run.

Hot: warm token, scope rule, one exact sliding-window limit in Redis, identity headers, metrics, audit to a file.
The rows between the constant answer and the hot decision add its parts one by one.
Budgets: at most 4 times the CPU of the constant answer (aim: 3), at most an eighth of the same service on grpcio.
"""

from __future__ import annotations

from contextlib import ExitStack

from bench.measure import Budget, Scale, Subject, alone, at_half, head, in_turn, line
from bench.setting import CHECK, Policy, Setting
from sidecar.envoy.pb.ext_authz_pb2 import CheckResponse

CONSTANT = "constant answer, http2"
HOT = "  + audit: hot decision, http2"


def allowed(message: bytes) -> bool:
    """Whether a CheckResponse lets the request pass."""
    return CheckResponse.FromString(message).HasField("ok_response")


def in_parts(setting: Setting) -> dict[str, Policy]:
    """Policies from the least that can allow to the whole hot decision."""
    hot = setting.policy()
    [rule] = hot["rules"]
    anonymous = {"name": rule["name"], "match": rule["match"], "anonymous": True}
    authorized = {key: value for key, value in rule.items() if key != "limits"}
    silent = hot | {"audit": {"destination": "none"}}
    return {
        "match an anonymous rule, http2": silent | {"rules": [anonymous], "upstream": {}},
        "  + token, scope, identity headers": silent | {"rules": [authorized]},
        "  + limit in Redis": silent,
        HOT: hot,
    }


def main(scale: Scale) -> list[Budget]:
    """Print both tables."""
    with Setting() as setting, ExitStack() as servers:
        messages = [setting.check()]
        constant = servers.enter_context(setting.constant("http2"))
        policies = in_parts(setting) | {"hot decision, grpcio": setting.policy("grpcio")}
        subjects = {CONSTANT: Subject(server=constant, path=CHECK, messages=messages)}
        for name, policy in policies.items():
            server = servers.enter_context(setting.sidecar(policy))
            subjects[name] = Subject(server=server, path=CHECK, messages=messages, accept=allowed)
        rows = in_turn(subjects, scale)
        baseline, *_, ours, other = rows.values()
        print(head("closed loop, server on one core"))
        for name, row in rows.items():
            print(line(name, row, baseline))
        with setting.constant("grpcio") as server:
            subject = Subject(server=server, path=CHECK, messages=messages)
            single = in_turn({"": subject}, scale, scale.slow_seconds)[""]
        print(line("constant answer, grpcio", single, baseline))
        at_half(ours, {name: subjects[name] for name in (CONSTANT, HOT)}, scale)
    return [
        Budget(what="CPU, hot decision / constant answer (aim 3x)", figure=ours.ratio(baseline), unit="x", at_most=4),
        Budget(what="CPU, hot decision on grpcio / on http2", figure=other.ratio(ours), unit="x", at_least=8),
    ]


if __name__ == "__main__":
    alone(main)
