"""Which rule applies to a request: the most specific that matches it, at a cost that does not grow with their number.

Specificity is compared in this order: host (exact, then `*.suffix` with the longer suffix first, then any), path
(exact, then templates and prefixes segment by segment: a literal segment beats a `{parameter}`, which beats a prefix's
end), methods (listed before any), number of header conditions (more before fewer, then by name). File order decides
nothing: two rules that would tie are refused when the policy is compiled. A rule that fits less specifically still
applies where the more specific one does not match the method or the headers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, assert_never

from sidecar.core.credentials import BEARER_REMOVED, Removed
from sidecar.core.decision import NO_PARAMETERS
from sidecar.core.selectors import HeaderSelector

if TYPE_CHECKING:
    from sidecar.core.authn import Composition
    from sidecar.core.authz import Condition
    from sidecar.core.bindings import LimitBinding
    from sidecar.core.issuer import IssuerPolicy
    from sidecar.core.selectors import PathParameters, Selector

WARNING_HEADER = "x-ratelimit-warning"
"""Names the limits above their soft threshold, to the upstream and to the client."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitAnswers:
    """What answers say about limits in headers, besides `Retry-After` and the metadata.

    Attributes:
        ratelimit: `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers).
        x_ratelimit: `X-RateLimit-Limit`, `-Remaining` and `-Reset` of the tightest limit.
        reference: `RateLimit-Limit`, `-Remaining` and `-Reset`, as envoyproxy/ratelimit chooses and writes them.
        shadow: `X-RateLimit-Shadow`: the shadow limits that would have denied.
    """

    ratelimit: bool = True
    x_ratelimit: bool = False
    reference: bool = False
    shadow: bool = False

    @property
    def ratelimit_alone(self) -> bool:
        """Whether the headers are the default ones."""
        return self.ratelimit and not (self.x_ratelimit or self.reference)


class ChallengeScheme(NamedTuple):
    """A scheme that `WWW-Authenticate` offers, and parameters of its own, such as `algs="ES256"`; "" for none."""

    name: str
    parameters: str = ""


BEARER_ALONE: Final = (ChallengeScheme("Bearer"),)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Rule:
    """What applies to a request, everything per-request precomputed.

    Attributes:
        issuers: Whose bearer tokens are accepted, by their `iss`, where the rule asks for nothing else.
        composition: What the rule asks for instead; None where it has `issuers` or is anonymous.
        authorize: None: whoever was proved may.
        upstream_headers: What the upstream is told, by lower-case header name.
        identity_headers: Every header name any rule of the policy may set for the upstream, and each one's twin with
            underscores: those not set on this request are removed from it.
        removed: The credentials that do not go to the upstream.
        token_header: The upstream's header that has an internal token in place of the credential, "" for none.
        token_audiences: Of that token; the policy's where it is empty.
        challenge_schemes: Of `WWW-Authenticate`: one challenge for each kind of credential that is accepted.
        challenge: The parts of `WWW-Authenticate` after the scheme that never change (realm,
            resource_metadata: RFC 9728 section 5.1), already quoted.
        challenge_scope: The `scope` attribute's value for insufficient_scope, "" for none.
        token_bytes_max: The longest token that any of the issuers accepts.
        answer_headers: Request headers that an answer may need once the limits are charged.
        limit_answers: What answers say about limits besides metadata.
        charged_by_request: Whether a charge depends on the request, or is a hold with a name of its own.
        reserves: Whether any of the limits is held.
        shadows: Whether any of the limits is a shadow.
        warns: Whether any of the limits has a soft threshold.
    """

    name: str
    match: RequestMatch
    anonymous: bool = False
    issuers: Mapping[str, IssuerPolicy] = field(default_factory=dict)
    composition: Composition | None = None
    authorize: Condition | None = None
    limits: tuple[LimitBinding, ...] = ()
    upstream_headers: tuple[tuple[str, Selector], ...] = ()
    identity_headers: tuple[str, ...] = ()
    removed: Removed = BEARER_REMOVED
    token_header: str = ""
    token_audiences: tuple[str, ...] = ()
    challenge_schemes: tuple[ChallengeScheme, ...] = BEARER_ALONE
    challenge: str = ""
    challenge_scope: str = ""
    limit_answers: LimitAnswers = LimitAnswers()
    token_bytes_max: int = field(init=False)
    answer_headers: tuple[str, ...] = field(init=False)
    charged_by_request: bool = field(init=False)
    reserves: bool = field(init=False)
    shadows: bool = field(init=False)
    warns: bool = field(init=False)

    def __post_init__(self) -> None:
        longest = max((issuer.token_bytes_max for issuer in self.issuers.values()), default=0)
        object.__setattr__(self, "token_bytes_max", longest)
        sent_on = [selector.name for _, selector in self.upstream_headers if isinstance(selector, HeaderSelector)]
        cookie = ("cookie",) if self.removed.cookies else ()
        object.__setattr__(self, "answer_headers", tuple(dict.fromkeys(("content-type", *cookie, *sent_on))))
        reserves = any(binding.held for binding in self.limits)
        by_request = any(binding.by_request for binding in self.limits)
        object.__setattr__(self, "reserves", reserves)
        object.__setattr__(self, "charged_by_request", reserves or by_request)
        object.__setattr__(self, "shadows", any(binding.limit.shadow for binding in self.limits))
        warns = any(limit.warn_above is not None for binding in self.limits for limit in binding.limits)
        object.__setattr__(self, "warns", warns)
        if self.anonymous + bool(self.issuers) + (self.composition is not None) != 1:
            raise ValueError(f"rule {self.name!r} must name issuers, have a composition or be anonymous: one of them")


Matched: TypeAlias = "tuple[Rule, PathParameters]"
"""The rule that applies, and what its template's parameters stand for."""


MATCHES_KEPT_MAX = 4096
PATH_CHARS_KEPT_MAX = 256
"""The rule for a host, path and method, all as sent, is kept while no rule looks at headers: 0.15 us instead of 2. When
there are too many all are forgotten; longer paths, of which there are endlessly many, are not kept."""


class RuleConflict(ValueError):  # noqa: N818 - it is a fault in a policy, named as its users know it
    """Two rules that would apply to the same requests with equal right, by name."""

    def __init__(self, first: str, second: str, why: str) -> None:
        super().__init__(f"rules {first!r} and {second!r} {why}")
        self.first = first
        self.second = second
        self.why = why


HEADER_VARIANTS_MAX = 32
"""Rules on one host, path and method that only their header conditions tell apart: tried one by one."""


class _Variant(NamedTuple):
    """A rule at the end of its path; `parameter_names` in the order of the template."""

    rule: Rule
    headers: tuple[HeaderMatch, ...]
    parameter_names: tuple[str, ...]


class _Terminal:
    """The rules on one host and path: by method first, then those for any method."""

    __slots__ = ("any_method", "by_method")

    def __init__(self) -> None:
        self.by_method: dict[str, list[_Variant]] = {}
        self.any_method: list[_Variant] = []

    def add(self, rule: Rule, parameter_names: tuple[str, ...]) -> None:
        variant = _Variant(rule, rule.match.headers, parameter_names)
        groups = [self.by_method.setdefault(method, []) for method in rule.match.methods] or [self.any_method]
        for group in groups:
            for other in group:
                if frozenset(other.headers) == frozenset(variant.headers):
                    raise RuleConflict(other.rule.name, rule.name, "match the same requests")
            if len(group) == HEADER_VARIANTS_MAX:
                why = f"are among more than {HEADER_VARIANTS_MAX} rules that only headers tell apart"
                raise RuleConflict(group[0].rule.name, rule.name, why)
            group.append(variant)
            group.sort(key=_header_specificity)

    def find(self, method: str, headers: Mapping[str, str], segments: list[str]) -> Matched | None:
        for group in (self.by_method.get(method), self.any_method):
            for variant in group or ():
                if not variant.headers or _headers_hold(variant.headers, headers):
                    names = variant.parameter_names
                    return variant.rule, dict(zip(names, segments, strict=True)) if names else NO_PARAMETERS
        return None


def _header_specificity(variant: _Variant) -> tuple[int, int, list[tuple[str, str]]]:
    with_value = sum(header.value is not None for header in variant.headers)
    names = sorted((header.name, header.value or "") for header in variant.headers)
    return -len(variant.headers), -with_value, names


def _headers_hold(conditions: tuple[HeaderMatch, ...], headers: Mapping[str, str]) -> bool:
    for condition in conditions:
        value = headers.get(condition.name)
        if value is None or (condition.value is not None and value != condition.value):
            return False
    return True


class _Node:
    """One path segment's place: what may follow it, and the rules that end here."""

    __slots__ = ("here", "literals", "parameter", "prefix")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.parameter: _Node | None = None
        self.here: _Terminal | None = None
        self.prefix: _Terminal | None = None


class _PathTree:
    """The rules of one host pattern."""

    __slots__ = ("exact", "root")

    def __init__(self) -> None:
        self.exact: dict[str, _Terminal] = {}
        self.root = _Node()

    def add(self, rule: Rule) -> None:
        pattern = rule.match.path
        match pattern:
            case ExactPath(path):
                self.exact.setdefault(path, _Terminal()).add(rule, ())
            case PrefixPath(path):
                node = self._descend(path.rstrip("/").split("/")[1:])
                node.prefix = node.prefix or _Terminal()
                node.prefix.add(rule, ())
            case TemplatePath(template):
                names = parameter_names(template)
                if not names:
                    self.exact.setdefault(template, _Terminal()).add(rule, ())
                    return
                node = self._descend(template.split("/")[1:])
                node.here = node.here or _Terminal()
                node.here.add(rule, names)
            case _:
                assert_never(pattern)

    def _descend(self, segments: list[str]) -> _Node:
        node = self.root
        for segment in segments:
            if is_parameter(segment):
                node.parameter = node.parameter or _Node()
                node = node.parameter
            else:
                node = node.literals.setdefault(segment, _Node())
        return node

    def find(self, path: str, method: str, headers: Mapping[str, str]) -> Matched | None:
        if path in self.exact:
            found = self.exact[path].find(method, headers, [])
            if found is not None:
                return found
        segments = path.split("/")
        if len(segments) > PATH_SEGMENTS_MAX + 1:
            return None
        return _walk(self.root, segments, 1, method, headers, [])


def _walk(  # the segments bound the recursion
    node: _Node, segments: list[str], at: int, method: str, headers: Mapping[str, str], taken: list[str]
) -> Matched | None:
    if at < len(segments):
        segment = segments[at]
        child = node.literals.get(segment)
        if child is not None:
            found = _walk(child, segments, at + 1, method, headers, taken)
            if found is not None:
                return found
        if node.parameter is not None and segment:
            found = _walk(node.parameter, segments, at + 1, method, headers, [*taken, segment])
            if found is not None:
                return found
    elif node.here is not None:
        found = node.here.find(method, headers, taken)
        if found is not None:
            return found
    return node.prefix.find(method, headers, []) if node.prefix is not None else None


def is_parameter(segment: str) -> bool:
    """Whether a template's segment is a `{parameter}`."""
    return segment.startswith("{") and segment.endswith("}")


def parameter_names(template: str) -> tuple[str, ...]:
    """The parameters of a path template, in order."""
    return tuple(segment[1:-1] for segment in template.split("/") if is_parameter(segment))


class RuleTable:
    """All rules, indexed for `match`.

    Attributes:
        kept: What was matched before, by host, path and method as sent: see `keep`.

    Raises:
        RuleConflict: Two rules match the same requests with equal right.
    """

    __slots__ = ("_any_host", "_headers_matter", "_hosts", "_suffixes", "kept", "rules")

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self._hosts: dict[str, _PathTree] = {}
        self._suffixes: dict[str, _PathTree] = {}
        self._any_host = _PathTree()
        self._headers_matter = any(rule.match.headers for rule in self.rules)
        self.kept: dict[tuple[str, str, str], Matched] = {}
        for rule in self.rules:
            self._tree(rule.match.host).add(rule)

    def _tree(self, host: str | None) -> _PathTree:
        if host is None:
            return self._any_host
        if host.startswith("*."):
            return self._suffixes.setdefault(host[2:], _PathTree())
        return self._hosts.setdefault(host, _PathTree())

    def keep(self, sent: tuple[str, str, str], matched: Matched) -> None:
        """Remember what these host, path and method led to, which the caller found well-formed."""
        if self._headers_matter or len(sent[1]) > PATH_CHARS_KEPT_MAX:
            return
        if len(self.kept) >= MATCHES_KEPT_MAX:
            self.kept.clear()
        self.kept[sent] = matched

    def match(self, host: str, path: str, method: str, headers: Mapping[str, str]) -> Matched | None:
        """The rule for a request, None when there is none.

        Args:
            host: Canonical: lower case, without port (`paths.canonical_host`).
            path: Canonical (`paths.canonical`), without the query.
            method: As on the wire.
            headers: By lower-case name.
        """
        tree = self._hosts.get(host)
        if tree is not None:
            found = tree.find(path, method, headers)
            if found is not None:
                return found
        if self._suffixes:
            dot = host.find(".")
            while dot != -1:
                tree = self._suffixes.get(host[dot + 1 :])
                if tree is not None:
                    found = tree.find(path, method, headers)
                    if found is not None:
                        return found
                dot = host.find(".", dot + 1)
        return self._any_host.find(path, method, headers)
