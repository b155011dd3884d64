"""A hot decision against a constant answer, on both transports, in one run.

Hot: warm token, scope rule, one exact sliding-window limit in Redis, identity headers, metrics, audit to a file.
Budgets: at most 4 times the CPU of the constant answer (aim: 3), at most an eighth of the same service on grpcio.
"""

from __future__ import annotations

from bench.load import Plan, Result, closed_loop, open_loop, run
from bench.setting import CHECK, Running, Setting
from sidecar.envoy.pb.ext_authz_pb2 import CheckResponse

SECONDS = 3.0


def allowed(message: bytes) -> bool:
    """Whether a CheckResponse lets the request pass."""
    return CheckResponse.FromString(message).HasField("ok_response")


def measured(server: Running, message: bytes, seconds: float = SECONDS) -> Result:
    """Closed loop, 4 connections with 32 calls each."""
    plan = Plan(address=server.address, path=CHECK, messages=[message])
    return run(closed_loop(plan, seconds, server_pid=server.pid))


def cpu_us(result: Result) -> float:
    """Server CPU per call."""
    assert result.server_cpu_s is not None
    return result.server_cpu_s / result.calls * 1e6


def row(name: str, result: Result, baseline_us: float | None = None) -> str:
    """One line of the table."""
    ratio = "" if baseline_us is None else f"{cpu_us(result) / baseline_us:6.2f}x"
    wrong = f"  WRONG: {dict(result.statuses)}" if set(result.statuses) != {"0"} else ""
    return f"{name:44}{result.calls / result.seconds:10,.0f}{cpu_us(result):10.1f}{ratio:>9}{wrong}"


def main() -> None:
    """Print both tables."""
    with Setting() as setting:
        message = setting.check()
        print(f"{'closed loop, server on one core':44}{'calls/s':>10}{'CPU us':>10}{'ratio':>9}")
        with setting.constant("http2") as server:
            constant = measured(server, message)
        print(row("constant answer, http2", constant, cpu_us(constant)))
        with setting.sidecar(setting.policy()) as server:
            hot = measured(server, message)
            print(row("hot decision, http2", hot, cpu_us(constant)))
            half = hot.calls / hot.seconds / 2
            plan = Plan(address=server.address, path=CHECK, messages=[message], streams=256, accept=allowed)
            paced = run(open_loop(plan, half, SECONDS, server_pid=server.pid))
        with setting.constant("grpcio") as server:
            print(row("constant answer, grpcio", measured(server, message), cpu_us(constant)))
        with setting.sidecar(setting.policy("grpcio")) as server:
            slow = measured(server, message)
            print(row("hot decision, grpcio", slow, cpu_us(constant)))
        print(f"grpcio / http2, CPU of the hot decision: {cpu_us(slow) / cpu_us(hot):.1f}x (budget: at least 8x)")
        print(f"\nopen loop at half of capacity ({half:,.0f}/s), from the intended send time")
        shares = "  ".join(f"p{share * 100:g} {paced.percentile(share) * 1e3:.2f} ms" for share in (0.5, 0.99, 0.999))
        print(f"hot decision, http2: {shares}; not allowed: {paced.wrong}")


if __name__ == "__main__":
    main()
