"""The `limits` and `rules` sections, compiled to a table of rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sidecar.core.authz import AllOf, AnyOf, Condition, RoleCondition, ScopeCondition, scopes_named
from sidecar.core.bindings import CostSource
from sidecar.core.rules import (
    WARNING_HEADER,
    ExactPath,
    HeaderMatch,
    LimitAnswers,
    PathPattern,
    PrefixPath,
    RequestMatch,
    Rule,
    RuleConflict,
    RuleTable,
    TemplatePath,
    parameter_names,
)
from sidecar.core.selectors import ClaimSelector, PathParameterSelector, Selector
from sidecar.policy.compile_limits import compile_selector
from sidecar.policy.faults import did_you_mean
from sidecar.policy.fields import parse_header, parse_host, parse_path, parse_prefix, parse_template

if TYPE_CHECKING:
    from sidecar.core.bindings import LimitBinding
    from sidecar.core.issuer import IssuerPolicy
    from sidecar.policy import document as written
    from sidecar.policy.limit_sections import AnswersSection
    from sidecar.policy.validate import Validated
    from sidecar.policy.yaml import PathParts

CONFLICTS_MAX = 32
"""Each one found costs a table of its own; a policy with more of them is wrong as a whole."""


def compile_condition(condition: written.Condition) -> Condition:
    """A condition, as deciding uses it."""
    kind, value = condition.chosen
    match kind:
        case "scope":
            return ScopeCondition(value)
        case "role":
            return RoleCondition(value)
        case "all_of":
            return AllOf(tuple(compile_condition(inner) for inner in value))
        case _:
            return AnyOf(tuple(compile_condition(inner) for inner in value))


@dataclass(slots=True, eq=False)
class RuleCompiler:
    """Compiles rules one after the other; what several rules have in common is built once."""

    validated: Validated
    issuers: Mapping[str, IssuerPolicy]
    limits: Mapping[str, LimitBinding]
    _defaults: dict[str, Selector] = field(init=False)
    _identity_headers: tuple[str, ...] = field(init=False)
    _issuer_sets: dict[tuple[str, ...], Mapping[str, IssuerPolicy]] = field(init=False, default_factory=dict)
    _forward_default: bool = field(init=False)
    _limit_answers: LimitAnswers = field(init=False)

    def __post_init__(self) -> None:
        document = self.validated.document
        upstream = document.upstream
        self._defaults = self._headers(("upstream", "headers"), upstream, None, anonymous=False)
        self._forward_default = bool(upstream.forward_credential)
        self._limit_answers = _limit_answers(document.answers)
        sections = (upstream, *(rule.upstream for rule in document.rules))
        names = [name for section in sections for name in section.headers]
        if any(limit.warn_at is not None for limit in document.limits.values()):
            names.append(WARNING_HEADER)
        if document.internal_tokens is not None and document.internal_tokens.header.lower() != "authorization":
            names.append(document.internal_tokens.header)
        self._identity_headers = identity_headers(names)

    def table(self) -> RuleTable:
        """The table of all rules that are right; names are taken to be unique, and known (see `references`)."""
        rules: dict[str, Rule] = {}
        places: dict[str, int] = {}
        for number, section in zip(self.validated.rule_numbers, self.validated.document.rules, strict=True):
            rule = self._rule(("rules", number), section)
            if rule is not None and section.name not in rules:
                rules[section.name] = rule
                places[section.name] = number
        return self._table(rules, places)

    def _table(self, rules: dict[str, Rule], places: Mapping[str, int]) -> RuleTable:
        """Build the table; of two rules in conflict the second is left out, so that further ones show."""
        for _ in range(CONFLICTS_MAX):
            try:
                return RuleTable(rules.values())
            except RuleConflict as conflict:
                line = self.validated.source.line_of(("rules", places[conflict.first], "match"))
                message = f"the rules {conflict.first!r} (line {line}) and {conflict.second!r} {conflict.why}"
                accepted = "rules that differ in host, path, methods or header conditions"
                self.validated.fault(("rules", places[conflict.second], "match"), message, accepted)
                del rules[conflict.second]
        return RuleTable(())

    def _rule(self, where: PathParts, section: written.RuleSection) -> Rule | None:
        match = self._match(where, section.match)
        template = section.match.path.template
        parameters = parameter_names(template) if template is not None else ()
        anonymous = bool(section.anonymous)
        issuers = self._accepted_issuers(section)
        if anonymous and section.authorize is not None:
            message = "nobody is proved where the rule is anonymous, so nothing can be required"
            self.validated.fault((*where, "authorize"), message, "authenticate instead of anonymous")
        headers = self._headers((*where, "upstream", "headers"), section.upstream, parameters, anonymous=anonymous)
        limits = self._limits(where, section, parameters)
        authorize = compile_condition(section.authorize) if section.authorize is not None else None
        forward = section.upstream.forward_credential
        if anonymous == bool(issuers):
            return None
        return Rule(
            name=section.name,
            match=match,
            anonymous=anonymous,
            issuers=issuers,
            authorize=authorize,
            limits=limits,
            upstream_headers=tuple({**self._defaults, **headers}.items()),
            identity_headers=self._identity_headers,
            forward_credential=self._forward_default if forward is None else forward,
            challenge=challenge(section.realm, section.resource_metadata),
            challenge_scope=" ".join(scopes_named(authorize)),
            limit_answers=self._limit_answers,
        )

    def _match(self, where: PathParts, match: written.Match) -> RequestMatch:
        headers: dict[str, HeaderMatch] = {}
        for name, value in match.headers.items():
            lower = parse_header(name)
            if lower in headers:
                at = (*where, "match", "headers", name)
                self.validated.fault(at, f"the header {lower!r} is repeated", "each header once, in whatever case")
            headers[lower] = HeaderMatch(lower, value if isinstance(value, str) else None)
        return RequestMatch(
            path=compile_path(match.path),
            host=parse_host(match.host) if match.host is not None else None,
            methods=frozenset(match.methods or ()),
            headers=tuple(headers.values()),
        )

    def _accepted_issuers(self, section: written.RuleSection) -> Mapping[str, IssuerPolicy]:
        if section.authenticate is None:
            return {}
        names = tuple(name for name in section.authenticate.issuers if name in self.issuers)
        if names not in self._issuer_sets:
            self._issuer_sets[names] = {self.issuers[name].issuer: self.issuers[name] for name in names}
        return self._issuer_sets[names]

    def _limits(
        self, where: PathParts, section: written.RuleSection, parameters: tuple[str, ...]
    ) -> tuple[LimitBinding, ...]:
        bindings = []
        for n, name in enumerate(section.limits):
            binding = self.limits.get(name)
            if binding is not None:
                bindings.append(binding)
                self._check_binding((*where, "limits", n), binding, parameters, bool(section.anonymous))
        return tuple(bindings)

    def _check_binding(
        self, where: PathParts, binding: LimitBinding, parameters: tuple[str, ...], anonymous: bool
    ) -> None:
        what = f"the limit {binding.limit.name!r}"
        for selector in binding.key:
            self._check_selector(where, what, selector, parameters, anonymous)
        if binding.plans is not None:  # where nobody is proved, nobody has a plan, and the limit's own rate applies
            self._check_selector(where, f"the plan of {what}", binding.plans.by, parameters, anonymous=False)
        if isinstance(binding.cost, CostSource):
            proved = not anonymous or binding.cost.default is not None
            self._check_selector(where, f"the cost of {what}", binding.cost.selector, parameters, not proved)

    def _headers(
        self, where: PathParts, section: written.UpstreamSection, parameters: tuple[str, ...] | None, *, anonymous: bool
    ) -> dict[str, Selector]:
        headers: dict[str, Selector] = {}
        for name, value in section.headers.items():
            selector = compile_selector(value)
            if name.lower() in headers:
                accepted = "each header once, in whatever case"
                self.validated.fault((*where, name), f"the header {name.lower()!r} is repeated", accepted)
            self._check_selector((*where, name), "the header", selector, parameters, anonymous)
            headers[name.lower()] = selector
        return headers

    def _check_selector(
        self, where: PathParts, what: str, selector: Selector, parameters: tuple[str, ...] | None, anonymous: bool
    ) -> None:
        if isinstance(selector, ClaimSelector) and anonymous:
            message = f"{what} takes a claim, and nobody is proved where the rule is anonymous"
            self.validated.fault(where, message, "header, metadata, client_address, path_parameter or constant")
        if isinstance(selector, PathParameterSelector) and parameters is None:
            message = f"{what} takes a path parameter, and the defaults are for rules with any path"
            self.validated.fault(where, message, "the header in the rules whose template has the parameter")
        elif isinstance(selector, PathParameterSelector) and selector.name not in (parameters or ()):
            accepted = did_you_mean(selector.name, parameters or (), "parameters of the rule's path template")
            message = f"{what} takes the path parameter {selector.name!r}, which the rule's path does not have"
            self.validated.fault(where, message, accepted)


def _limit_answers(answers: AnswersSection) -> LimitAnswers:
    shown = answers.limit_headers
    return LimitAnswers(
        ratelimit="ratelimit" in shown,
        x_ratelimit="x_ratelimit" in shown,
        reference="reference" in shown,
        shadow=answers.shadow_header,
    )


def compile_path(path: written.PathMatch) -> PathPattern:
    """A path pattern in its canonical spelling."""
    kind, text = path.chosen
    match kind:
        case "exact":
            return ExactPath(parse_path(text))
        case "prefix":
            return PrefixPath(parse_prefix(text))
        case _:
            return TemplatePath(parse_template(text))


def identity_headers(names: Iterable[str]) -> tuple[str, ...]:
    """The headers of these names, and their twins with underscores, that servers take for the same (CGI, WSGI)."""
    lower = dict.fromkeys(name.lower() for name in names)
    return tuple(dict.fromkeys(twin for name in lower for twin in (name, name.replace("-", "_"))))


def challenge(realm: str, resource_metadata: str | None) -> str:
    """The parameters of `WWW-Authenticate: Bearer` that never change, as quoted strings (RFC 9110 section 5.6.4)."""
    parameters = {"realm": realm, "resource_metadata": resource_metadata}
    return ", ".join(f"{name}={_quoted(value)}" for name, value in parameters.items() if value is not None)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
