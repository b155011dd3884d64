"""`/issuers`: what is known of each issuer's keys, for who asks why its tokens are refused. Holds no secret."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Final

from sidecar.core.issuer import JwksFile, JwksUrl
from sidecar.edges.admin import Route, json_route

if TYPE_CHECKING:
    from sidecar.core.issuer import KeySource
    from sidecar.edges.jwks import IssuerKeys, JwksEngine

ISSUERS_PATH: Final = "/issuers"


def issuers_route(engine: JwksEngine) -> Route:
    """The route of one process."""
    return json_route(lambda: described(engine, asyncio.get_running_loop().time()))


def described(engine: JwksEngine, now: float) -> dict[str, Any]:
    """By the policy's names of the issuers; `now` is the loop's clock. Times in seconds, counts since the start."""
    return {"issuers": {state.issuer.name: _described(state, now) for state in engine.states.values()}}


def _described(state: IssuerKeys, now: float) -> dict[str, Any]:
    issuer, current = state.issuer, state.current
    return {
        "issuer": issuer.issuer,
        "source": _source(issuer.keys),
        "profile": issuer.profile.name,
        "required": issuer.required,
        "ready": state.epoch > 0,
        "keys": [] if current is None else [{"kid": kid, "alg": alg} for kid, alg in current.listed],
        "dropped": [
            {"position": key.position, "kid": key.kid, "reason": key.reason, "exposed": key.exposed}
            for key in state.dropped
        ],
        "epoch": state.epoch,
        "age_s": _seconds(state.age_s(now)),
        "next_fetch_in_s": _seconds(state.next_fetch_at - now),
        "fetches": {
            "ok": state.fetches_ok,
            "unchanged": state.fetches_unchanged,
            "failed": state.fetches_failed,
            "refused": state.refused,
        },
        "unknown_kids": state.unknown_kids,
        "last_error": state.last_error,
        "persist_error": state.persist_error,
    }


def _seconds(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 1)


def _source(source: KeySource) -> str:
    """The kind alone: URLs may hold what is not for everyone."""
    if isinstance(source, JwksFile):
        return "symmetric_file" if source.symmetric else "jwks_file"
    return "jwks_url" if isinstance(source, JwksUrl) else "discovery"
