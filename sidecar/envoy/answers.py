"""CheckResponses, joined from fragments that are encoded once for each rule of a policy.

`ext_authz.py` says what an answer means; here is how it is put together.
"""

from __future__ import annotations

import json
import struct
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, NamedTuple

from sidecar.core.context import NO_REQUEST, RequestContext
from sidecar.core.decision import NO_PARAMETERS, REASONS, Decision, DenyReason
from sidecar.core.selectors import SELECTORS_OF_REQUEST
from sidecar.envoy import fields, wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.core.limits import Limit, LimitOutcome
    from sidecar.core.principal import Principal
    from sidecar.core.rules import Rule
    from sidecar.core.selectors import Selector

PROBLEM_BYTES_MAX = 1024
"""A denial's body: Envoy may be told to truncate bodies, and a truncated one is no JSON."""

PRINCIPALS_MAX = 10_000
"""How many pairs of a rule and a principal have their part of an answer kept; about 1 KiB each and the principal."""

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
        self.name = fields.ratelimit_name(limit).encode("ascii")
        self.policy = fields.ratelimit_policy(limit)
        self.metadata = _limit_metadata(limit.name)


class _LimitsParts:
    """Limits that are charged together, in answers."""

    __slots__ = ("limits", "metadata_head", "policy_added", "policy_set")

    def __init__(self, limits: Sequence[Limit]) -> None:
        self.limits = tuple(_LimitParts(limit) for limit in limits)
        policy = ", ".join(limit.policy for limit in self.limits).encode("ascii")
        self.policy_added = wire.header_option(_ADD_TO_RESPONSE, _RATELIMIT_POLICY, policy)
        self.policy_set = wire.header_option(_SET, _RATELIMIT_POLICY, policy)
        elements = b"".join(limit.metadata(0, 0, False) for limit in self.limits)
        self.metadata_head = wire.struct_list(_LIMITS, elements).removesuffix(elements)

    def fit(self, outcomes: Sequence[LimitOutcome]) -> bool:
        """Whether the outcomes are of these limits, in their order."""
        limits = self.limits
        if len(outcomes) != len(limits):
            return False
        if len(limits) == 1:  # as below, in 0.1 instead of 0.5 us
            return limits[0].limit is outcomes[0].limit
        for limit, outcome in zip(limits, outcomes, strict=True):  # noqa: SIM110 - all() over a generator: +0.4 us
            if limit.limit is not outcome.limit:
                return False
        return True


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
    """A rule in answers. Header values that only the principal decides are kept apart from those of the request."""

    __slots__ = ("anonymous", "challenges", "identity", "limits", "metadata", "of_principal", "of_request", "removals")

    def __init__(self, rule: Rule, generation: int) -> None:
        names = {name for name, _ in rule.upstream_headers}
        remove = [*rule.identity_headers, *(name.replace("-", "_") for name in sorted(names)), _FORGEABLE]
        if not rule.forward_credential:
            remove.append("authorization")
        self.anonymous = rule.anonymous
        self.identity = names.union(rule.identity_headers)
        self.removals = b"".join(_removal(name) for name in dict.fromkeys(remove) if name not in names)
        upstream = [_UpstreamHeader(wire.header_name(name), _removal(name), it) for name, it in rule.upstream_headers]
        self.of_principal = tuple(it for it in upstream if not isinstance(it.selector, SELECTORS_OF_REQUEST))
        self.of_request = tuple(it for it in upstream if isinstance(it.selector, SELECTORS_OF_REQUEST))
        self.limits = _LimitsParts([binding.limit for binding in rule.limits])
        name = wire.struct_string(_RULE, rule.name.encode("utf-8", "replace"))
        self.metadata = name + wire.struct_number(_GENERATION, generation)
        self.challenges: dict[DenyReason, bytes] = {}


class _UpstreamHeader(NamedTuple):
    """A header for the upstream, and what takes it off the request where there is no value for it."""

    name: bytes
    removal: bytes
    selector: Selector


def _removal(name: str) -> bytes:
    return wire.delimited(_REMOVE, name.encode("ascii"))


def _allowed(decision: Decision, request: RequestContext, parts: _RuleParts) -> bytes:
    principal = decision.principal
    ok, metadata = _of_principal(parts, principal)
    for header in parts.of_request:
        ok += _upstream_option(header, header.selector.select(request, principal, decision.parameters))
    for name in request.underscored:  # also spellings that mix both, such as x-user_id
        if name.replace("_", "-") in parts.identity:
            ok += _removal(name)
    if decision.limits:
        limits = _limits_parts(parts, decision.limits)
        state, limits_metadata = _limits(limits, decision.limits)
        ok += limits.policy_added + wire.header_option(_ADD_TO_RESPONSE, _RATELIMIT, state)
        metadata += limits_metadata
    return b"%b%b%b" % (_OK_STATUS, wire.delimited(_OK, ok), wire.delimited(_METADATA, metadata))


@lru_cache(maxsize=PRINCIPALS_MAX)
def _of_principal(parts: _RuleParts, principal: Principal | None) -> tuple[bytes, bytes]:
    """What a rule and a principal alone decide of an allowed answer: OkHttpResponse's and the metadata's fields.

    Kept for callers that come again: 0.1 us instead of 4.
    """
    ok = parts.removals
    metadata = parts.metadata if principal is None else _principal_metadata(principal) + parts.metadata
    for header in parts.of_principal:
        ok += _upstream_option(header, header.selector.select(NO_REQUEST, principal, NO_PARAMETERS))
    return ok, metadata


def _upstream_option(header: _UpstreamHeader, text: str | None) -> bytes:
    value = fields.upstream_value(text) if text is not None else None
    return header.removal if value is None else wire.header_option(_SET, header.name, value)


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


def _limits_parts(parts: _RuleParts | None, outcomes: Sequence[LimitOutcome]) -> _LimitsParts:
    if parts is not None and parts.limits.fit(outcomes):
        return parts.limits
    return _LimitsParts([outcome.limit for outcome in outcomes])  # in this process alone, some of them are charged


def _limits(parts: _LimitsParts, outcomes: Sequence[LimitOutcome]) -> tuple[bytes, bytes]:
    """The value of `RateLimit`, and the metadata of the limits that were charged."""
    if len(outcomes) == 1:  # as below, in 1.0 instead of 1.3 us
        [limit], [outcome] = parts.limits, outcomes
        remaining, reset = outcome.remaining, fields.reset_seconds(outcome)
        metadata = parts.metadata_head + limit.metadata(remaining, reset, outcome.allowed)
        return b"%b;r=%d;t=%d" % (limit.name, remaining, reset), metadata
    state = b""
    metadata = parts.metadata_head
    for limit, outcome in zip(parts.limits, outcomes):  # noqa: B905 - they fit; `strict=` costs 0.2 us
        remaining, reset = outcome.remaining, fields.reset_seconds(outcome)
        item = b"%b;r=%d;t=%d" % (limit.name, remaining, reset)
        state = b"%b, %b" % (state, item) if state else item
        metadata += limit.metadata(remaining, reset, outcome.allowed)
    return state, metadata


# --------------------------------------------------------------------------------------------------------------------
# Denials


class _DenialParts:
    """A reason in answers: as a denial, or as an error (`error_response`, always 503).

    `to_grpc` is for gRPC callers. Envoy (measured on 1.36.2 and 1.40.0) answers them with HTTP 200, makes the body
    `grpc-message`, and prefers a `grpc-status` of ours to its own reading of the HTTP status, in which 429 is
    UNAVAILABLE and 400 is INTERNAL.
    """

    __slots__ = ("field", "http", "metadata", "problem", "status", "to_grpc")

    def __init__(self, reason: DenyReason, *, as_error: bool) -> None:
        row = REASONS[reason]
        http_status = 503 if as_error else row.http_status
        self.field = _ERROR if as_error else _DENIED
        self.status = wire.delimited(_STATUS, b"\x08" + wire.varint(row.grpc_status))
        self.http = wire.delimited(_HTTP_STATUS, b"\x08" + wire.varint(http_status)) + _NO_STORE
        self.metadata = wire.struct_string(_REASON, reason.value.encode("ascii"))
        grpc_status = wire.header_option(_SET, wire.header_name("grpc-status"), b"%d" % row.grpc_status)
        self.to_grpc = grpc_status + wire.delimited(_BODY, row.detail.encode("ascii"))
        self.problem = _problem_head(reason, http_status)


def _problem_head(reason: DenyReason, http_status: int) -> bytes:
    row = REASONS[reason]
    kind = f"urn:sidecar:problem:{reason.value}"
    if reason is DenyReason.LIMIT_EXCEEDED:
        kind = "https://iana.org/assignments/http-problem-types#quota-exceeded"
    problem = {"type": kind, "title": row.title, "status": http_status, "detail": row.detail}
    return json.dumps(problem, separators=(",", ":")).encode("ascii").removesuffix(b"}")


_DENIALS = {reason: _DenialParts(reason, as_error=False) for reason in REASONS}
_ERRORS = {reason: _DenialParts(reason, as_error=True) for reason in REASONS}


def _denied(reason: DenyReason, decision: Decision, request: RequestContext | None, parts: _RuleParts | None) -> bytes:
    denial = (_ERRORS if decision.as_error else _DENIALS)[reason]
    outcomes = decision.limits
    http = denial.http + _challenge(reason, decision.rule, parts)
    metadata = denial.metadata
    if parts is not None:
        metadata += parts.metadata if decision.principal is None else _of_principal(parts, decision.principal)[1]
    if outcomes:
        limits = _limits_parts(parts, outcomes)
        state, limits_metadata = _limits(limits, outcomes)
        http += limits.policy_set + wire.header_option(_SET, _RATELIMIT, state)
        metadata += limits_metadata
        wait = fields.retry_after(outcomes) if reason is DenyReason.LIMIT_EXCEEDED else None
        if wait is not None:
            http += wire.header_option(_SET, _RETRY_AFTER, str(wait).encode("ascii"))
    if request is None:
        http += _PROBLEM + wire.delimited(_BODY, _problem(denial, reason, outcomes, ""))
    elif _is_grpc(request):
        http += denial.to_grpc
    elif request.method == "HEAD":
        http += _PROBLEM
    else:
        http += _PROBLEM + wire.delimited(_BODY, _problem(denial, reason, outcomes, request.request_id))
    return denial.status + wire.delimited(denial.field, http) + wire.delimited(_METADATA, metadata)


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


def _problem(denial: _DenialParts, reason: DenyReason, outcomes: Sequence[LimitOutcome], request_id: str) -> bytes:
    """Problem details (RFC 9457); `violated-policies` as draft-ietf-httpapi-ratelimit-headers names them."""
    body = denial.problem
    members = []
    if request_id:
        members.append(f',"request_id":{encode_basestring_ascii(request_id)}')
    if reason is DenyReason.LIMIT_EXCEEDED:
        violated = [encode_basestring_ascii(outcome.limit.name) for outcome in outcomes if not outcome.allowed]
        members.append(f',"violated-policies":[{",".join(violated)}]')
    for member in members:
        if len(body) + len(member) < PROBLEM_BYTES_MAX:
            body += member.encode("ascii")
    return body + b"}"
