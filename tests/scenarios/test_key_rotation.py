"""Rotation and outage as tables: what is served, what time does, whose token comes, what it gets, what is held then.

The issuer is a real HTTP server, the rest is what serves: engine, cache, pipeline. Nothing is fetched in the
background but at a step that says so, so that each table reads as what happened.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.decision import DenyReason
from sidecar.edges.jwks import IssuerKeys, JwksEngine, JwksTimings
from sidecar.edges.local_store import LocalStore
from sidecar.policy.compile import load
from tests.support.deciding import Deciding, check_request, token
from tests.support.issuer import Behaviour, Issuer, response, sends
from tests.support.tokens import AUDIENCE, ISSUER, SigningKey, make_key

R = DenyReason
RARE = JwksTimings(refresh_s_min=3600, retry_s_min=3600, retry_s_max=3600)

OLD, NEW = make_key(kid="old", number=1), make_key(kid="new", number=2)
OLD_ANEW = make_key(kid="old", number=3)
OLD_RSA = make_key("RS256", kid="old")
EXPOSED = OLD.jwk | {"d": "c2VjcmV0"}
BARE = {name: value for name, value in OLD.jwk.items() if name not in {"alg", "use"}}
SECRET = {"kty": "oct", "k": "A" * 43, "alg": "HS256", "kid": "old"}

DOWN = sends(response(500))
GARBAGE = sends(response(200, b"<html>"))
GONE = sends(response(404))
MOVED = sends(response(302, b"", "location: https://evil.example/jwks"))
CUT = sends(b'HTTP/1.1 200 X\r\ncontent-length: 999\r\n\r\n{"keys":[')

Served = list[SigningKey | dict[str, Any]] | Behaviour


@dataclass(frozen=True)
class Step:
    """One moment of a scenario.

    Attributes:
        serves: What the issuer serves from now on; None: as before.
        then: `refresh`: the time for a fetch in the background comes; `stale`: the keys become too old.
        shows: Whose token comes, signed anew if it is `fresh`, else the one of that key that came first.
        gets: Why it is denied, None if it is allowed.
        held: The kids of the keys that are held afterwards.
        fetches: How often the issuer has been asked by then.
    """

    serves: Served | None
    then: str
    shows: SigningKey
    gets: DenyReason | None
    held: str
    fetches: int
    fresh: bool = False


def unknown(number: int) -> SigningKey:
    return make_key(kid=f"invented-{number}", number=4)


SCENARIOS: dict[str, list[Step]] = {
    "rotation with overlap": [
        #    serves       then       token     gets                   held       fetches
        Step([OLD], "", OLD, None, "old", 1),
        Step([OLD, NEW], "refresh", OLD, None, "new old", 2),
        Step(None, "", NEW, None, "new old", 2),
        Step([NEW], "refresh", OLD, R.TOKEN_KEY_UNKNOWN, "new", 4),
        Step(None, "", NEW, None, "new", 4),
    ],
    "the new key signs before it was seen": [
        Step([OLD], "", OLD, None, "old", 1),
        Step([OLD, NEW], "", NEW, None, "new old", 2),
        Step(None, "", OLD, None, "new old", 2),
        Step(None, "", NEW, None, "new old", 2, fresh=True),
    ],
    "the old key is removed at once": [
        Step([OLD], "", OLD, None, "old", 1),
        Step([NEW], "", OLD, None, "old", 1),
        Step(None, "", NEW, None, "new", 2),
        Step(None, "", OLD, R.TOKEN_KEY_UNKNOWN, "new", 3),
        Step(None, "", OLD, R.TOKEN_KEY_UNKNOWN, "new", 3, fresh=True),
    ],
    "a removed key comes back": [
        Step([OLD], "", OLD, None, "old", 1),
        Step([NEW], "refresh", NEW, None, "new", 2),
        Step([OLD, NEW], "refresh", OLD, None, "new old", 3),
    ],
    "another key under the same kid": [
        Step([OLD], "", OLD, None, "old", 1),
        Step([OLD_ANEW], "", OLD_ANEW, R.TOKEN_SIGNATURE_INVALID, "old", 1),
        Step(None, "refresh", OLD, R.TOKEN_SIGNATURE_INVALID, "old", 2),
        Step(None, "", OLD_ANEW, None, "old", 2),
    ],
    "another kind of key under the same kid": [
        Step([OLD], "", OLD, None, "old", 1),
        Step([OLD_RSA], "refresh", OLD, R.TOKEN_ALGORITHM_REFUSED, "old", 2),
        Step(None, "", OLD_RSA, None, "old", 2),
    ],
    "two kinds of key under one kid": [
        Step([OLD, OLD_RSA], "", OLD, None, "old", 1),
        Step(None, "", OLD_RSA, None, "old", 1),
    ],
    "the same key, described with less": [
        Step([OLD], "", OLD, None, "old", 1),
        Step([BARE], "refresh", OLD, None, "old", 2),
    ],
    "the issuer is down": [
        Step([OLD], "", OLD, None, "old", 1),
        Step(DOWN, "refresh", OLD, None, "old", 2),
        Step(None, "", OLD, None, "old", 2, fresh=True),
        Step(None, "", NEW, R.TOKEN_KEY_UNKNOWN, "old", 3),
        Step([OLD, NEW], "", NEW, None, "new old", 4),
    ],
    "the issuer is down until the keys are too old": [
        Step([OLD], "", OLD, None, "old", 1),
        Step(DOWN, "refresh", OLD, None, "old", 2),
        Step(None, "stale", OLD, R.KEYS_UNAVAILABLE, "", 3),
        Step(None, "", OLD, R.KEYS_UNAVAILABLE, "", 4),
        Step(None, "", OLD, R.KEYS_UNAVAILABLE, "", 4, fresh=True),
        Step([OLD], "refresh", OLD, None, "old", 5),
    ],
    "the issuer is down at the start": [
        Step(DOWN, "", OLD, R.KEYS_UNAVAILABLE, "", 2),
        Step([OLD], "", OLD, None, "old", 3),
    ],
    "an empty set (CVE-2026-48524)": [
        Step([OLD], "", OLD, None, "old", 1),
        Step([], "refresh", OLD, None, "old", 2),
        Step([OLD, NEW], "refresh", NEW, None, "new old", 3),
    ],
    "no set at all": [
        Step([OLD], "", OLD, None, "old", 1),
        Step(GARBAGE, "refresh", OLD, None, "old", 2),
        Step(CUT, "refresh", OLD, None, "old", 3),
        Step(GONE, "refresh", OLD, None, "old", 4),
    ],
    "keys that have moved": [
        Step([OLD], "", OLD, None, "old", 1),
        Step(MOVED, "refresh", OLD, None, "old", 2),
        Step(None, "", NEW, R.TOKEN_KEY_UNKNOWN, "old", 3),
    ],
    "the only key is exposed": [
        Step([OLD], "", OLD, None, "old", 1),
        Step([EXPOSED], "refresh", OLD, None, "old", 2),
    ],
    "one of two keys is exposed": [
        Step([OLD, NEW], "", OLD, None, "new old", 1),
        Step([EXPOSED, NEW], "refresh", OLD, R.TOKEN_KEY_UNKNOWN, "new", 3),
        Step(None, "", NEW, None, "new", 3),
    ],
    "a kid twice": [
        Step([OLD, NEW], "", OLD, None, "new old", 1),
        Step([OLD, OLD_ANEW, NEW], "refresh", OLD, R.TOKEN_KEY_UNKNOWN, "new", 3),
        Step(None, "", OLD_ANEW, R.TOKEN_KEY_UNKNOWN, "new", 3),
        Step(None, "", NEW, None, "new", 3),
    ],
    "a secret beside public keys (CVE-2026-48526)": [
        Step([NEW, SECRET], "", NEW, None, "new", 1),
        Step(None, "", OLD, R.TOKEN_KEY_UNKNOWN, "new", 2),
    ],
    "invented kids use the ration up": [
        Step([OLD], "", unknown(1), R.TOKEN_KEY_UNKNOWN, "old", 2),
        Step(None, "", unknown(2), R.TOKEN_KEY_UNKNOWN, "old", 3),
        Step(None, "", unknown(3), R.TOKEN_KEY_UNKNOWN, "old", 3),
        Step([OLD, NEW], "", NEW, R.TOKEN_KEY_UNKNOWN, "old", 3),
        Step(None, "", OLD, None, "old", 3),
        Step(None, "refresh", NEW, None, "new old", 4),
    ],
    "a kid that was not found is not asked for again": [
        Step([OLD], "", NEW, R.TOKEN_KEY_UNKNOWN, "old", 2),
        Step([OLD, NEW], "", NEW, R.TOKEN_KEY_UNKNOWN, "old", 2),
        Step(None, "refresh", NEW, None, "new old", 3),
    ],
}


def policy_text(server: Issuer) -> str:
    main = {
        "issuer": ISSUER,
        "audiences": [AUDIENCE],
        "algorithms": ["ES256", "RS256"],
        "keys": {"jwks_url": f"{server.url}/jwks"},
        "insecure_http": True,
        "refresh": "1d",
    }
    rule = {"name": "orders", "match": {"path": {"prefix": "/orders"}}, "authenticate": {"issuers": ["main"]}}
    return json.dumps({"issuers": {"main": main}, "rules": [rule]})


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


async def happens(then: str, state: IssuerKeys) -> None:
    """What time brings; the timers themselves are tested with the engine."""
    if then == "refresh":
        done = state.fetches_ok + state.fetches_failed
        state._wake.set()
        await until(lambda: state.fetches_ok + state.fetches_failed > done)
        await until(lambda: not math.isnan(state.next_fetch_at))
    elif then == "stale":
        state._expire()


def serve(issuer: Issuer, served: Served | None) -> None:
    if isinstance(served, list):
        issuer.behaviour, issuer.keys = None, list(served)
    elif served is not None:
        issuer.behaviour = served


@pytest.mark.parametrize("steps", SCENARIOS.values(), ids=SCENARIOS.keys())
async def test_rotation_and_outage(tmp_path: Path, steps: list[Step]) -> None:
    """Each step: the decision, the keys that are held afterwards, and how often the issuer was asked."""
    async with Issuer() as issuer:
        serve(issuer, steps[0].serves)
        (tmp_path / "policy.yaml").write_text(policy_text(issuer))
        policy = load(tmp_path / "policy.yaml", 1).policy
        engine = JwksEngine(policy.issuers.values(), timings=RARE)
        engine.start()
        try:
            state = engine.states[ISSUER]
            await until(lambda: not math.isnan(state.next_fetch_at))
            it = Deciding(policy, LocalStore(), engine)
            shown: dict[SigningKey, str] = {}
            for number, step in enumerate(steps):
                serve(issuer, step.serves)
                await happens(step.then, state)
                text = token(step.shows, jti=f"step-{number}")
                if not step.fresh:
                    text = shown.setdefault(step.shows, text)
                await it.ask(check_request("/orders/1", text))
                held = " ".join(sorted(() if state.current is None else state.current.kids))
                assert (number, it.events[-1].decision.reason, held, issuer.fetches) == (
                    number,
                    step.gets,
                    step.held,
                    step.fetches,
                )
            assert it.bugs == []
        finally:
            await engine.stop()
