"""Good callers beside floods of bad credentials, on one core: their latency before and during, and what floods cost.

Good callers show warm tokens at a steady pace, from addresses of their own, under a limit in Redis. Each flood comes at
a steady pace too. It is let loose twice: on a policy without a budget of failed authentications, and on one with 20 a
minute for each source, where all but the first few of a source are answered 429 before they are looked at.

The CPU time of a refusal, and of a good decision, is measured in a closed loop of its own.

Budgets: a refused malformed token costs less than a good decision, and behind a budget a forged one as well.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import uvloop

from bench.load import Result, open_loop
from bench.measure import OPEN_LOOP_STREAMS, Budget, Scale, Subject, alone, cpu_us, wrong
from bench.setting import CHECK, Setting
from sidecar.envoy.pb.ext_authz_pb2 import CheckRequest, CheckResponse

GOOD_PER_SECOND = 1_000
FLOOD_PER_SECOND = 3_000
MESSAGES = 500
BUDGET = {"failed_authentications": {"rate": "20/minute"}}

GUARDED, UNGUARDED = "20/minute a source", "without a budget"
FORGED, MALFORMED = "forged signature", "malformed"


@dataclass(frozen=True)
class Beside:
    """Good callers while something else comes, or nothing."""

    good: Result
    flood: Result | None = None


def from_source(message: bytes, source: str) -> bytes:
    """The same CheckRequest from another address."""
    request = CheckRequest.FromString(message)
    request.attributes.source.address.socket_address.address = source
    return request.SerializeToString()


def forged(token: str) -> str:
    """The token under a signature that is none of its key's."""
    head, _, signature = token.rpartition(".")
    size = len(base64.urlsafe_b64decode(signature + "=="))
    return f"{head}.{base64.urlsafe_b64encode(secrets.token_bytes(size)).rstrip(b'=').decode()}"


def renamed(token: str) -> str:
    """The token under a key that nobody publishes."""
    _, payload, signature = token.split(".")
    head = json.dumps({"alg": "RS256", "kid": secrets.token_hex(8)}).encode()
    return f"{base64.urlsafe_b64encode(head).rstrip(b'=').decode()}.{payload}.{signature}"


def floods(setting: Setting) -> dict[str, list[bytes]]:
    """Messages of each flood, by its name."""
    base, expired = setting.token(), int(time.time()) - 3600

    def of(make: Callable[[], str], sources: int = 1, count: int = MESSAGES) -> list[bytes]:
        return [
            from_source(setting.check(token=make()), f"198.51.{100 + number % sources // 256}.{number % sources % 256}")
            for number in range(count)
        ]

    return {
        MALFORMED: of(lambda: secrets.token_urlsafe(500)),
        "oversized, 9 KB": of(lambda: secrets.token_urlsafe(6800)),
        "unknown issuer": of(lambda: setting.token(iss=f"https://{secrets.token_hex(4)}.example"), count=50),
        "unknown kid": of(lambda: renamed(base)),
        FORGED: of(lambda: forged(base)),
        "forged signature, 500 sources": of(lambda: forged(base), sources=MESSAGES),
        "expired, of the issuer": of(lambda: setting.token(exp=expired, jti=secrets.token_hex(4)), count=50),
    }


def good(setting: Setting) -> list[bytes]:
    """Warm callers, each from an address of its own."""
    return [
        from_source(setting.check(token=setting.token(sub=f"user-{number}")), f"192.0.2.{number}")
        for number in range(100)
    ]


def is_allowed(message: bytes) -> bool:
    """Whether a CheckResponse lets the request pass."""
    return CheckResponse.FromString(message).HasField("ok_response")


def is_denied(message: bytes) -> bool:
    """Whether it does not."""
    return CheckResponse.FromString(message).HasField("denied_response")


def beside(callers: Subject, flood: Subject | None, scale: Scale) -> Beside:
    """Good callers alone, or beside a flood."""

    async def both() -> Beside:
        loops = [(callers, GOOD_PER_SECOND), *([] if flood is None else [(flood, FLOOD_PER_SECOND)])]
        asked = [
            open_loop(subject.plan(OPEN_LOOP_STREAMS), pace, scale.seconds, warm_up_s=scale.warm_up_s)
            for subject, pace in loops
        ]
        return Beside(*await asyncio.gather(*asked))

    found: Beside = uvloop.run(both())
    return found


def told(name: str, found: Beside, cpu: float) -> str:
    """One line of the table."""
    good = found.good
    asked = found.flood or good
    faults = {**wrong(good), **(wrong(found.flood) if found.flood else {})}
    shouted = f"  WRONG: {faults}" if faults else ""
    times = f"{good.percentile(0.5) * 1e3:9.2f}{good.percentile(0.99) * 1e3:9.2f}"
    return f"{name:46}{asked.calls / good.seconds:10,.0f}{cpu:9.1f}{times}{shouted}"


def main(scale: Scale) -> list[Budget]:
    """Print a table for each policy."""
    ratios: dict[tuple[str, str], float] = {}
    with Setting() as setting, ExitStack() as servers:
        messages, kinds = good(setting), floods(setting)
        guarded = {**setting.policy(), "abuse": BUDGET}
        for title, policy in ((UNGUARDED, setting.policy()), (GUARDED, guarded)):
            server = servers.enter_context(setting.sidecar(policy))
            callers = Subject(server=server, path=CHECK, messages=messages, accept=is_allowed)
            print(f"{title:46}{'calls/s':>10}{'CPU us':>9}{'p50 ms':>9}{'p99 ms':>9}   of the good callers")
            hot_us = cpu_us(callers.measured(scale.seconds, scale.warm_up_s))
            print(told(f"good callers alone, {GOOD_PER_SECOND:,}/s", beside(callers, None, scale), hot_us))
            for name, made in kinds.items():
                flood = Subject(server=server, path=CHECK, messages=made, accept=is_denied)
                found = beside(callers, flood, scale)
                refused_us = cpu_us(flood.measured(scale.seconds, 0))
                ratios[title, name] = refused_us / hot_us
                print(told(f"  beside: {name}", found, refused_us))
            print()
    return [
        Budget(what="CPU, refused malformed token / good decision", figure=ratios[UNGUARDED, MALFORMED],
               unit="x", at_most=1),
        Budget(what="CPU, forged token of a suspect / good decision", figure=ratios[GUARDED, FORGED],
               unit="x", at_most=1),
    ]  # fmt: skip


if __name__ == "__main__":
    alone(main)
