"""What an answer says about the limits that were charged: header fields, and dynamic metadata.

Fragments are encoded once for each combination of limits that a rule charges. Shadow limits are in the metadata alone:
they deny nothing, and a polite client would slow down for what a header says.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from sidecar.core.rules import WARNING_HEADER
from sidecar.envoy import fields, wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.core.decision import Decision
    from sidecar.core.limits import Limit, LimitOutcome
    from sidecar.core.rules import LimitAnswers

VARIANTS_MAX: Final = 256
"""Combinations of limits, such as of plans, whose fragments are kept for one rule; about 2 KiB each."""

ADD_TO_RESPONSE: Final = 0x32
"""OkHttpResponse.response_headers_to_add."""

RATELIMIT: Final = wire.header_name("ratelimit")
_RATELIMIT_POLICY = wire.header_name("ratelimit-policy")
_WARNING = wire.header_name(WARNING_HEADER)
_SHADOW = wire.header_name("x-ratelimit-shadow")
_X_RATELIMIT = tuple(wire.header_name(f"x-ratelimit-{name}") for name in ("limit", "remaining", "reset"))
_REFERENCE = tuple(wire.header_name(f"ratelimit-{name}") for name in ("limit", "remaining", "reset"))

_LIMITS, _SHADOW_DENIED, _WARNED = map(wire.struct_key, ("limits", "shadow_denied", "warned"))
_NAME, _REMAINING, _RESET, _ALLOWED, _IS_SHADOW = map(
    wire.struct_key, ("name", "remaining", "reset_seconds", "allowed", "shadow")
)


class _LimitParts:
    """A limit in answers: its items of the two RateLimit fields, and `metadata(remaining, reset_seconds, allowed)`."""

    __slots__ = ("limit", "metadata", "name", "policy")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.name = fields.ratelimit_name(limit.name).encode("ascii")
        self.policy = fields.ratelimit_policy(limit)
        self.metadata = _limit_metadata(limit)


class LimitsParts:
    """Limits that are charged together, in answers.

    Attributes:
        metadata_head: What stands before the limits' metadata.
        policy_added: The header option of `RateLimit-Policy` for the response.
        plain: None of them is a shadow, and the headers are `RateLimit` and `RateLimit-Policy` alone.
    """

    __slots__ = ("_policy_set", "answers", "limits", "metadata_head", "plain", "policy_added")

    def __init__(self, limits: Sequence[Limit], answers: LimitAnswers) -> None:
        self.limits = tuple(_LimitParts(limit) for limit in limits)
        self.answers = answers
        self.plain = answers.ratelimit_alone and not any(limit.shadow for limit in limits)
        policy = ", ".join(each.policy for each in self.limits if not each.limit.shadow).encode("ascii")
        shown = answers.ratelimit and policy
        self.policy_added = wire.header_option(ADD_TO_RESPONSE, _RATELIMIT_POLICY, policy) if shown else b""
        self._policy_set = wire.header_option(wire.SET, _RATELIMIT_POLICY, policy) if shown else b""
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

    def write(self, decision: Decision, tag: int) -> tuple[bytes, bytes]:
        """Header options under `tag` for the client, and fields of the metadata."""
        outcomes = decision.limits
        policy = self.policy_added if tag == ADD_TO_RESPONSE else self._policy_set
        if not self.plain:
            return self._write_all(decision, tag, policy)
        if len(outcomes) == 1:  # as below, in 1.0 instead of 1.3 us
            [limit], [outcome] = self.limits, outcomes
            remaining, reset = outcome.remaining, fields.reset_seconds(outcome)
            state = b"%b;r=%d;t=%d" % (limit.name, remaining, reset)
            metadata = self.metadata_head + limit.metadata(remaining, reset, outcome.allowed)
        else:
            state, metadata = self._state(outcomes)
        headers = policy + wire.header_option(tag, RATELIMIT, state)
        return (headers, metadata) if not decision.warned else self._warning(decision, tag, headers, metadata)

    def _state(self, outcomes: Sequence[LimitOutcome]) -> tuple[bytes, bytes]:
        """The value of `RateLimit`, and the metadata of the limits that were charged."""
        state = b""
        metadata = self.metadata_head
        for limit, outcome in zip(self.limits, outcomes):  # noqa: B905 - they fit; `strict=` costs 0.2 us
            remaining, reset = outcome.remaining, fields.reset_seconds(outcome)
            metadata += limit.metadata(remaining, reset, outcome.allowed)
            if outcome.limit.shadow:
                continue
            item = b"%b;r=%d;t=%d" % (limit.name, remaining, reset)
            state = b"%b, %b" % (state, item) if state else item
        return state, metadata

    def _write_all(self, decision: Decision, tag: int, policy: bytes) -> tuple[bytes, bytes]:
        answers = self.answers
        state, metadata = self._state(decision.limits)
        headers = policy
        if answers.ratelimit and state:
            headers += wire.header_option(tag, RATELIMIT, state)
        shown = [outcome for outcome in decision.limits if not outcome.limit.shadow]
        if shown and answers.x_ratelimit:
            headers += _figures(tag, _X_RATELIMIT, fields.tightest(shown))
        if shown and answers.reference:
            headers += _figures(tag, _REFERENCE, fields.as_reference_chooses(shown))
        if decision.shadowed:
            metadata += wire.struct_string(_SHADOW_DENIED, ",".join(decision.shadowed).encode())
            if answers.shadow:
                headers += wire.header_option(tag, _SHADOW, fields.names_list(decision.shadowed))
        return self._warning(decision, tag, headers, metadata)

    @staticmethod
    def _warning(decision: Decision, tag: int, headers: bytes, metadata: bytes) -> tuple[bytes, bytes]:
        if decision.warned:
            headers += wire.header_option(tag, _WARNING, fields.names_list(decision.warned))
            metadata += wire.struct_string(_WARNED, ",".join(decision.warned).encode())
        return headers, metadata


class RuleLimits:
    """The limits that a rule charges: with their `own` rates, and in the combinations that were met lately."""

    __slots__ = ("_answers", "_variants", "own")

    def __init__(self, limits: Sequence[Limit], answers: LimitAnswers) -> None:
        self._answers = answers
        self.own = LimitsParts(limits, answers)
        self._variants: dict[tuple[int, ...], LimitsParts] = {}

    def of(self, outcomes: Sequence[LimitOutcome]) -> LimitsParts:
        """The parts for these outcomes: of plans, overrides, or of some limits alone (in this process) as well."""
        own = self.own
        if own.fit(outcomes):
            return own
        ids = tuple([id(outcome.limit) for outcome in outcomes])  # of limits that the parts keep alive
        parts = self._variants.get(ids)
        if parts is None or not parts.fit(outcomes):
            if len(self._variants) >= VARIANTS_MAX:
                self._variants.clear()
            parts = LimitsParts([outcome.limit for outcome in outcomes], self._answers)
            self._variants[ids] = parts
        return parts


def warning_to_upstream(warned: Sequence[str]) -> bytes:
    """The upstream is warned as well: it may shed work before anything is denied."""
    return wire.header_option(wire.SET, _WARNING, fields.names_list(warned))


def _figures(tag: int, names: tuple[bytes, ...], outcome: LimitOutcome) -> bytes:
    values = outcome.limit.requests, outcome.remaining, fields.reset_seconds(outcome)
    return b"".join([wire.header_option(tag, name, b"%d" % value) for name, value in zip(names, values, strict=True)])


def _limit_metadata(limit: Limit) -> Callable[[int, int, bool], bytes]:
    """A writer of the limit's metadata: all but two doubles and a boolean is known, also the length."""
    remaining, reset, allowed = (
        wire.struct_number(_REMAINING, 0),
        wire.struct_number(_RESET, 0),
        wire.struct_bool(_ALLOWED, value=False),
    )
    known = wire.struct_string(_NAME, limit.name.encode("utf-8", "replace"))
    if limit.shadow:
        known += wire.struct_bool(_IS_SHADOW, value=True)
    element = wire.list_struct(known + remaining + reset + allowed)
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
