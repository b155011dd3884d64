"""What is kept about one decision: the event that metrics and audit are both fed from, and the record written of it.

A record says who asked, for what, which rule decided and why. It holds no token, no header, no query string and no
claim that the policy does not name; of host and path no user information and nothing that looks like a credential.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypedDict

from sidecar.core.context import NO_REQUEST, RequestContext
from sidecar.core.limits import US_PER_S
from sidecar.core.principal import Principal
from sidecar.core.redaction import shown_host, shown_path
from sidecar.core.selectors import claim_text

if TYPE_CHECKING:
    from sidecar.core.decision import Decision

TEXT_CHARACTERS_MAX = 1024
"""Longer texts are cut: a client chooses path, host, method and request id, and may choose them long."""

NO_RULE = "-"
"""Stands for "no rule matched" in records and metric labels; not a name that a policy can give to a rule."""

_NOBODY: Final = Principal("", "", "", frozenset(), frozenset(), {}, 0)
_NO_CLAIMS: Final[Mapping[str, str | None]] = {}


@dataclass(slots=True, eq=False)
class DecisionEvent:
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


class LimitRecord(TypedDict):
    """One limit that was charged."""

    name: str
    allowed: bool
    remaining: int


class AuditRecord(TypedDict):
    """One line of the audit log; every field is always present, "" and None standing for what is not known."""

    event: str
    time: datetime
    request_id: str
    decision: str
    reason: str
    detail: str
    rule: str
    issuer: str
    subject: str
    client: str
    method: str
    host: str
    path: str
    source_address: str
    limits: Sequence[LimitRecord]
    degraded: bool
    latency_us: int
    generation: int
    claims: Mapping[str, str | None]


def outcome_label(decision: Decision) -> str:
    """`allowed`, `denied`, or `error` where Envoy was left to decide."""
    if decision.reason is None:
        return "allowed"
    return "error" if decision.as_error else "denied"


def audit_record(event: DecisionEvent, claim_names: Sequence[str] = ()) -> AuditRecord:
    """The record of one decision, with the claims that the policy names for it."""
    decision = event.decision
    request = event.request or NO_REQUEST
    principal = decision.principal or _NOBODY
    rule, reason = decision.rule, decision.reason
    return {
        "event": "decision",
        "time": datetime.fromtimestamp(event.time_us / US_PER_S, UTC),
        "request_id": request.request_id[:TEXT_CHARACTERS_MAX],
        "decision": outcome_label(decision),
        "reason": reason.value if reason else "allowed",
        "detail": decision.detail[:TEXT_CHARACTERS_MAX],
        "rule": rule.name if rule else NO_RULE,
        "issuer": principal.issuer,
        "subject": principal.subject[:TEXT_CHARACTERS_MAX],
        "client": principal.client[:TEXT_CHARACTERS_MAX],
        "method": request.method[:TEXT_CHARACTERS_MAX],
        "host": shown_host(request.host, TEXT_CHARACTERS_MAX),
        "path": shown_path(request.path, TEXT_CHARACTERS_MAX),
        "source_address": request.source_address[:TEXT_CHARACTERS_MAX],
        "limits": [
            {"name": outcome.limit.name, "allowed": outcome.allowed, "remaining": outcome.remaining}
            for outcome in decision.limits
        ],
        "degraded": decision.degraded,
        "latency_us": event.latency_us,
        "generation": decision.generation,
        "claims": _claims(principal, claim_names) if claim_names else _NO_CLAIMS,
    }


def _claims(principal: Principal, names: Sequence[str]) -> dict[str, str | None]:
    texts = {name: claim_text(principal.claims.get(name)) for name in names}
    return {name: text[:TEXT_CHARACTERS_MAX] if text else text for name, text in texts.items()}
