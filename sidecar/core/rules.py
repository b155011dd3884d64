"""Which rule applies to a request: the most specific one that matches it, at a cost that does not grow with their number.

Specificity is compared in this order: host (exact, then `*.suffix` with the longer suffix first, then any), path (exact,
then templates and prefixes segment by segment: a literal segment beats a `{parameter}`, which beats a prefix's end),
methods (listed before any), number of header conditions (more before fewer). File order decides nothing: two rules that
would tie are refused when the policy is compiled, unless their header conditions differ, where the names' order decides.
A rule that fits less specifically still applies when the more specific one does not match the method or the headers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from sidecar.core.authz import Condition
    from sidecar.core.issuer import IssuerPolicy
    from sidecar.core.limits import Limit, OnFailure
    from sidecar.core.selectors import PathParameters, Selector

NO_PARAMETERS: Mapping[str, str] = {}

PATH_SEGMENTS_MAX = 64
"""Deeper paths match no rule: bounds the walk."""


@dataclass(frozen=True, slots=True)
class ExactPath:
    """The whole path, as one canonical string."""

    path: str


@dataclass(frozen=True, slots=True)
class PrefixPath:
    """The path itself and everything below it: `/a` covers `/a`, `/a/` and `/a/b`, never `/ab`. `/` covers all."""

    path: str


@dataclass(frozen=True, slots=True)
class TemplatePath:
    """Segments, each literal or a `{parameter}` that stands for exactly one non-empty segment."""

    template: str


PathPattern: TypeAlias = ExactPath | PrefixPath | TemplatePath


@dataclass(frozen=True, slots=True)
class HeaderMatch:
    """A header that must be present (`value` None) or equal to a value; the name in lower case."""

    name: str
    value: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMatch:
    """What a rule applies to. `host` None, `methods` empty: any."""

    path: PathPattern
    host: str | None = None
    methods: frozenset[str] = frozenset()
    headers: tuple[HeaderMatch, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LimitBinding:
    """A limit as one rule uses it: the same counters wherever the same limit is named."""

    limit: Limit
    key: tuple[Selector, ...]
    key_prefix: bytes
    on_failure: OnFailure
    cost: int = 1


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Rule:
    """What applies to a request, everything per-request precomputed.

    Attributes:
        issuers: Accepted issuers by their `iss`; empty exactly when `anonymous`.
        authorize: None: whoever was proved may.
        upstream_headers: What the upstream is told, by lower-case header name.
        identity_headers: Every header name any rule of the policy may set for the upstream, and each one's twin with
            underscores: those not set on this request are removed from it.
        forward_credential: Leave the Authorization header on the request to the upstream.
        challenge: The parts of `WWW-Authenticate: Bearer` after the scheme that never change (realm,
            resource_metadata: RFC 9728 section 5.1), already quoted.
        challenge_scope: The `scope` attribute's value for insufficient_scope, "" for none.
    """

    name: str
    match: RequestMatch
    anonymous: bool = False
    issuers: Mapping[str, IssuerPolicy] = field(default_factory=dict)
    authorize: Condition | None = None
    limits: tuple[LimitBinding, ...] = ()
    upstream_headers: tuple[tuple[str, Selector], ...] = ()
    identity_headers: tuple[str, ...] = ()
    forward_credential: bool = False
    challenge: str = ""
    challenge_scope: str = ""

    def __post_init__(self) -> None:
        if self.anonymous == bool(self.issuers):
            raise ValueError(f"rule {self.name!r} must name issuers or be anonymous, not both or neither")


class Matched(NamedTuple):
    """The rule that applies, and what its template's parameters stand for."""

    rule: Rule
    parameters: PathParameters
