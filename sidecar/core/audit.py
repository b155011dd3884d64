"""What is kept about one decision: the event that metrics and audit are both fed from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from sidecar.core.context import RequestContext
    from sidecar.core.decision import Decision

NO_RULE = "-"
"""Stands for "no rule matched" in records and metric labels; not a name that a policy can give to a rule."""


class DecisionEvent(Struct, eq=False, gc=False):
    """One answered Check, handed on after the answer has left.

    Attributes:
        time_us: When the request arrived, in microseconds since the epoch.
        latency_us: From its arrival to its answer.
        request: None where the request could not be read.
    """

    time_us: int
    latency_us: int
    request: RequestContext | None
    decision: Decision


def outcome_label(decision: Decision) -> str:
    """`allowed`, `denied`, or `error` where Envoy was left to decide."""
    if decision.reason is None:
        return "allowed"
    return "error" if decision.as_error else "denied"
