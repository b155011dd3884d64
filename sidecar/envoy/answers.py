"""CheckResponses, joined from fragments that are encoded once for each rule of a policy.

`ext_authz.py` says what an answer means; here is how it is put together.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

from sidecar.core.decision import REASONS, Decision, DenyReason
from sidecar.envoy import fields, wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.core.context import RequestContext
    from sidecar.core.limits import Limit, LimitOutcome
    from sidecar.core.principal import Principal
    from sidecar.core.rules import Rule

PROBLEM_BYTES_MAX = 1024
"""A denial's body: Envoy may be told to truncate bodies, and a truncated one is no JSON."""

_OK_STATUS = b"\x0a\x00"  # CheckResponse.status, present, with code 0
_STATUS, _DENIED, _OK, _METADATA, _ERROR = 0x0A, 0x12, 0x1A, 0x22, 0x2A  # fields of CheckResponse
_SET, _REMOVE, _ADD_TO_RESPONSE = 0x12, 0x2A, 0x32  # of OkHttpResponse; DeniedHttpResponse.headers is 0x12 as well
_HTTP_STATUS, _BODY = 0x0A, 0x1A  # of DeniedHttpResponse

_FORGEABLE = "x-envoy-auth-failure-mode-allowed"
"""Envoy sets it when it lets a request pass without us; a client may not."""

_RATELIMIT = wire.header_name("ratelimit")
_RATELIMIT_POLICY = wire.header_name("ratelimit-policy")
_RETRY_AFTER = wire.header_name("retry-after")
_CHALLENGE = wire.header_name("www-authenticate")
_NO_STORE = wire.header_option(_SET, wire.header_name("cache-control"), b"no-store")
_PROBLEM = wire.header_option(_SET, wire.header_name("content-type"), b"application/problem+json")

_SUBJECT, _ISSUER, _CLIENT, _SCOPE, _RULE, _REASON, _GENERATION, _LIMITS = map(
    wire.struct_key, ("subject", "issuer", "client", "scope", "rule", "reason", "generation", "limits")
)
_NAME, _REMAINING, _RESET, _ALLOWED = map(wire.struct_key, ("name", "remaining", "reset_seconds", "allowed"))


class Answers:
    """Builds CheckResponses; holds the fragments of one policy generation's rules, which bounds it."""

    __slots__ = ("_generation", "_rules")

    def __init__(self) -> None:
        self._generation = 0
        self._rules: dict[Rule, _RuleParts] = {}

    def encode(self, decision: Decision, request: RequestContext | None) -> bytes:
        """See `ext_authz.encode`."""
        rule = decision.rule
        parts = None
        if rule is not None:
            if decision.generation != self._generation:
                self._rules.clear()
                self._generation = decision.generation
            parts = self._rules.get(rule)
            if parts is None:
                parts = self._rules[rule] = _RuleParts(rule, decision.generation)
        reason = decision.reason
        if reason is None:
            if parts is not None and request is not None and (decision.principal is not None or parts.anonymous):
                return _allowed(decision, request, parts)
            reason = DenyReason.INTERNAL
        return _denied(reason, decision, request, parts)


class _LimitParts:
    """A limit in answers: its items of the two RateLimit fields, and `metadata(remaining, reset_seconds, allowed)`."""

    __slots__ = ("limit", "metadata", "name", "policy")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.name = fields.ratelimit_name(limit)
        self.policy = fields.ratelimit_policy(limit)
        self.metadata = _limit_metadata(limit.name)


def _limit_metadata(name: str) -> Callable[[int, int, bool], bytes]:
    """A writer of the limit's metadata: all but two doubles and a boolean is known, also the length."""
    remaining, reset, allowed = (
        wire.struct_number(_REMAINING, 0),
        wire.struct_number(_RESET, 0),
        wire.struct_bool(_ALLOWED, value=False),
    )
    element = wire.list_struct(wire.struct_string(_NAME, name.encode("utf-8", "replace")) + remaining + reset + allowed)
    allowed_at = len(element) - 1
    reset_at = len(element) - len(allowed) - 8
    remaining_at = reset_at - len(reset)
    head, middle, tail = (
        element[:remaining_at],
        element[remaining_at + 8 : reset_at],
        element[reset_at + 8 : allowed_at],
    )
    pack = struct.Struct(f"<{len(head)}sd{len(middle)}sd{len(tail)}s?").pack

    def metadata(remaining: int, reset_seconds: int, allowed: bool) -> bytes:
        return pack(head, remaining, middle, reset_seconds, tail, allowed)

    return metadata


class _RuleParts:
    """A rule in answers."""

    __slots__ = ("anonymous", "challenges", "limits", "metadata", "policy", "removals", "upstream")

    def __init__(self, rule: Rule, generation: int) -> None:
        names = {name for name, _ in rule.upstream_headers}
        remove = [*rule.identity_headers, *(name.replace("-", "_") for name in sorted(names)), _FORGEABLE]
        if not rule.forward_credential:
            remove.append("authorization")
        self.anonymous = rule.anonymous
        self.removals = b"".join(_removal(name) for name in dict.fromkeys(remove) if name not in names)
        self.upstream = tuple(
            (selector.select, wire.header_name(name), _removal(name)) for name, selector in rule.upstream_headers
        )
        self.limits = tuple(_LimitParts(binding.limit) for binding in rule.limits)
        self.policy = ", ".join(limit.policy for limit in self.limits).encode("ascii")
        self.metadata = wire.struct_string(_RULE, rule.name.encode("utf-8", "replace")) + wire.struct_number(
            _GENERATION, generation
        )
        self.challenges: dict[DenyReason, bytes] = {}


def _removal(name: str) -> bytes:
    return wire.delimited(_REMOVE, name.encode("ascii"))


def _allowed(decision: Decision, request: RequestContext, parts: _RuleParts) -> bytes:
    principal, parameters = decision.principal, decision.parameters
    ok = parts.removals
    for select, name, removal in parts.upstream:
        text = select(request, principal, parameters)
        value = fields.upstream_value(text) if text is not None else None
        ok += removal if value is None else wire.header_option(_SET, name, value)
    metadata = parts.metadata if principal is None else _principal_metadata(principal) + parts.metadata
    if decision.limits:
        headers, limits = _limits(_ADD_TO_RESPONSE, decision.limits, parts)
        ok += headers
        metadata += limits
    return _OK_STATUS + wire.delimited(_OK, ok) + wire.delimited(_METADATA, metadata)


def _principal_metadata(principal: Principal) -> bytes:
    """Who was proved. Text that UTF-8 cannot carry (lone surrogates) is left out rather than altered."""
    texts = [(_SUBJECT, principal.subject), (_ISSUER, principal.issuer)]
    if principal.client:
        texts.append((_CLIENT, principal.client))
    if principal.scopes:
        texts.append((_SCOPE, " ".join(sorted(principal.scopes))))
    encoded = b""
    for key, text in texts:
        try:
            encoded += wire.struct_string(key, text.encode())
        except UnicodeEncodeError:
            continue
    return encoded


def _limits(tag: int, outcomes: Sequence[LimitOutcome], parts: _RuleParts | None) -> tuple[bytes, bytes]:
    """The RateLimit header options and the metadata of all limits that were charged."""
    known = parts.limits if parts is not None else ()
    if len(known) == len(outcomes) and all(map(_is_for, known, outcomes)):
        policy = parts.policy if parts is not None else b""
    else:  # in this process alone, only some of the rule's limits are charged
        known = tuple(_LimitParts(outcome.limit) for outcome in outcomes)
        policy = ", ".join(limit.policy for limit in known).encode("ascii")
    states = []
    elements = b""
    for limit, outcome in zip(known, outcomes, strict=True):
        reset_seconds = fields.reset_seconds(outcome)
        states.append(f"{limit.name};r={outcome.remaining};t={reset_seconds}")
        elements += limit.metadata(outcome.remaining, reset_seconds, outcome.allowed)
    state = ", ".join(states).encode("ascii")
    headers = wire.header_option(tag, _RATELIMIT_POLICY, policy) + wire.header_option(tag, _RATELIMIT, state)
    return headers, wire.struct_list(_LIMITS, elements)


def _is_for(parts: _LimitParts, outcome: LimitOutcome) -> bool:
    return parts.limit is outcome.limit


# --------------------------------------------------------------------------------------------------------------------
# Denials


def _denied(reason: DenyReason, decision: Decision, request: RequestContext | None, parts: _RuleParts | None) -> bytes:
    row = REASONS[reason]
    principal, outcomes = decision.principal, decision.limits
    is_grpc = request is not None and _is_grpc(request)
    http = _http_status(503 if decision.as_error else row.http_status) + _NO_STORE
    metadata = wire.struct_string(_REASON, reason.value.encode("ascii"))
    if parts is not None:
        metadata += parts.metadata
    if principal is not None:
        metadata += _principal_metadata(principal)
    http += _challenge(reason, decision.rule, parts)
    if outcomes:
        headers, limits = _limits(_SET, outcomes, parts)
        http += headers
        metadata += limits
        if reason is DenyReason.LIMIT_EXCEEDED:
            wait = fields.retry_after(outcomes)
            http += b"" if wait is None else wire.header_option(_SET, _RETRY_AFTER, str(wait).encode("ascii"))
    if is_grpc:
        http += wire.delimited(_BODY, row.detail.encode("ascii"))
    elif request is not None and request.method == "HEAD":
        http += _PROBLEM
    else:
        request_id = "" if request is None else request.request_id
        http += _PROBLEM + wire.delimited(_BODY, _problem(reason, decision.as_error, outcomes, request_id))
    status = wire.delimited(_STATUS, b"\x08" + wire.varint(row.grpc_status))
    field = _ERROR if decision.as_error else _DENIED
    return status + wire.delimited(field, http) + wire.delimited(_METADATA, metadata)


def _http_status(code: int) -> bytes:
    return wire.delimited(_HTTP_STATUS, b"\x08" + wire.varint(code))


def _is_grpc(request: RequestContext) -> bool:
    return (request.headers.get("content-type") or "").lower().startswith("application/grpc")


def _challenge(reason: DenyReason, rule: Rule | None, parts: _RuleParts | None) -> bytes:
    """The WWW-Authenticate option, kept with the rule; empty where the reason has no challenge."""
    option = parts.challenges.get(reason) if parts is not None else None
    if option is None:
        text = fields.challenge(reason, rule)
        option = b"" if text is None else wire.header_option(_SET, _CHALLENGE, text.encode("ascii", "replace"))
        if parts is not None:
            parts.challenges[reason] = option
    return option


def _problem_head(reason: DenyReason, status: int) -> bytes:
    row = REASONS[reason]
    kind = (
        "https://iana.org/assignments/http-problem-types#quota-exceeded"
        if reason is DenyReason.LIMIT_EXCEEDED
        else f"urn:sidecar:problem:{reason.value}"
    )
    problem = {"type": kind, "title": row.title, "status": status, "detail": row.detail}
    return json.dumps(problem, separators=(",", ":")).encode("ascii")[:-1]


_PROBLEM_HEADS = {reason: _problem_head(reason, row.http_status) for reason, row in REASONS.items()}
_ERROR_HEADS = {reason: _problem_head(reason, 503) for reason in REASONS}


def _problem(reason: DenyReason, as_error: bool, outcomes: Sequence[LimitOutcome], request_id: str) -> bytes:
    """Problem details (RFC 9457); `violated-policies` as draft-ietf-httpapi-ratelimit-headers names them."""
    body = (_ERROR_HEADS if as_error else _PROBLEM_HEADS)[reason]
    members: dict[str, str | list[str]] = {"request_id": request_id} if request_id else {}
    if reason is DenyReason.LIMIT_EXCEEDED:
        members["violated-policies"] = [outcome.limit.name for outcome in outcomes if not outcome.allowed]
    for name, value in members.items():
        member = f',"{name}":{json.dumps(value)}'.encode("ascii")
        if len(body) + len(member) < PROBLEM_BYTES_MAX:
            body += member
    return body + b"}"
