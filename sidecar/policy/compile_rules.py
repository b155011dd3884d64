"""The `limits` and `rules` sections, compiled to a table of rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sidecar.core.authz import AllOf, AnyOf, Condition, RoleCondition, ScopeCondition, scopes_named
from sidecar.core.bindings import CostSource
from sidecar.core.credentials import CookiePlace, HeaderPlace, Place, QueryPlace, Removed, Shape
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
from sidecar.core.selectors import ClaimSelector, PathParameterSelector, PrincipalSelector, Selector
from sidecar.policy.compile_authenticate import BEARER, AuthenticateCompiler, Authentication, Provers
from sidecar.policy.compile_limits import compile_selector
from sidecar.policy.faults import did_you_mean
from sidecar.policy.fields import parse_header, parse_host, parse_path, parse_prefix, parse_template

if TYPE_CHECKING:
    from sidecar.core.bindings import LimitBinding
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
    provers: Provers
    limits: Mapping[str, LimitBinding]
    _defaults: dict[str, Selector] = field(init=False)
    _identity_headers: tuple[str, ...] = field(init=False)
    _authentications: Mapping[int, Authentication] = field(init=False)
    _places: frozenset[Place] = field(init=False)
    _token_header: str = field(init=False)
    _limit_answers: LimitAnswers = field(init=False)

    def __post_init__(self) -> None:
        self._compile_authentications()
        document = self.validated.document
        upstream = document.upstream
        self._defaults = self._headers(("upstream", "headers"), upstream, None, anonymous=False)
        self._limit_answers = _limit_answers(document.answers)
        sections = (upstream, *(rule.upstream for rule in document.rules))
        names = [name for section in sections for name in section.headers]
        if any(limit.warn_at is not None for limit in document.limits.values()):
            names.append(WARNING_HEADER)
        tokens = document.internal_tokens
        self._token_header = tokens.header.lower() if tokens is not None else ""
        if self._token_header in {name.lower() for name in names}:
            message = f"the header {self._token_header!r} is also one of upstream.headers"
            self.validated.fault(("internal_tokens", "header"), message, "a header of its own")
        if self._token_header not in ("", "authorization"):
            names.append(self._token_header)
        self._check_replaced(("upstream",), upstream, anonymous=False)
        self._identity_headers = identity_headers(names)

    def _compile_authentications(self) -> None:
        """How each rule authenticates; all places of credentials are known before the first rule is compiled."""
        compiler = AuthenticateCompiler(self.validated, self.provers)
        rules = zip(self.validated.rule_numbers, self.validated.document.rules, strict=True)
        self._authentications = {
            number: compiler.compile(("rules", number, "authenticate"), rule.authenticate, _parameters(rule))
            for number, rule in rules
        }
        self._places = frozenset(
            replace(place, shape=Shape.ANY) for each in self._authentications.values() for place in each.places
        )

    def table(self) -> RuleTable:
        """The table of all rules that are right; names are taken to be unique, and known (see `references`)."""
        rules: dict[str, Rule] = {}
        places: dict[str, int] = {}
        for number, section in zip(self.validated.rule_numbers, self.validated.document.rules, strict=True):
            rule = self._rule(("rules", number), section, self._authentications[number])
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

    def _rule(self, where: PathParts, section: written.RuleSection, authentication: Authentication) -> Rule | None:
        match = self._match(where, section.match)
        parameters = _parameters(section)
        anonymous = bool(section.anonymous)
        if anonymous and section.authorize is not None:
            message = "nobody is proved where the rule is anonymous, so nothing can be required"
            self.validated.fault((*where, "authorize"), message, "authenticate instead of anonymous")
        headers = self._headers((*where, "upstream", "headers"), section.upstream, parameters, anonymous=anonymous)
        limits = self._limits(where, section, parameters)
        authorize = compile_condition(section.authorize) if section.authorize is not None else None
        if anonymous == bool(authentication.issuers or authentication.composition):
            return None
        self._check_replaced((*where, "upstream"), section.upstream, anonymous=anonymous)
        defaults = self.validated.document.upstream
        use = section.upstream.credential or defaults.credential
        replaced = use == "replace" and not anonymous
        return Rule(
            name=section.name,
            match=match,
            anonymous=anonymous,
            issuers=authentication.issuers,
            composition=authentication.composition,
            authorize=authorize,
            limits=limits,
            upstream_headers=tuple({**self._defaults, **headers}.items()),
            identity_headers=self._identity_headers,
            removed=self._removed(authentication, forwarded=use == "forward"),
            token_header=self._token_header if replaced else "",
            token_audiences=tuple(section.upstream.audiences or defaults.audiences) if replaced else (),
            challenge=challenge(section.realm, section.resource_metadata),
            challenge_schemes=authentication.schemes,
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

    def _removed(self, authentication: Authentication, *, forwarded: bool) -> Removed:
        """The credentials that do not go to the upstream: all that any rule looks for, unless they are forwarded."""
        if not forwarded:
            kept: frozenset[Place] = frozenset()
        elif authentication.places:
            kept = frozenset(replace(place, shape=Shape.ANY) for place in authentication.places)
        else:
            return Removed(headers=())
        return removed(self._places | {BEARER}, kept)

    def _check_replaced(self, where: PathParts, section: written.UpstreamSection, *, anonymous: bool) -> None:
        """Whether there is something to replace a credential by, and somebody to say it of."""
        defaults = self.validated.document.upstream
        if section.credential == "replace" and anonymous:
            message = "nobody is proved where the rule is anonymous, so there is nothing to say in a token"
            self.validated.fault((*where, "credential"), message, "remove or forward, or authenticate")
        elif section.credential == "replace" and not self.validated.has("internal_tokens"):
            message = "the policy has no internal_tokens section to replace it by"
            self.validated.fault((*where, "credential"), message, "internal_tokens: {issuer, audiences, keys}")
        if section.audiences and (anonymous or (section.credential or defaults.credential) != "replace"):
            message = "the credential is not replaced by a token"
            self.validated.fault((*where, "audiences"), message, "credential: replace beside it")

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
        if isinstance(selector, (ClaimSelector, PrincipalSelector)) and anonymous:
            taken = "a claim" if isinstance(selector, ClaimSelector) else f"the {selector.fact.value}"
            message = f"{what} takes {taken}, and nobody is proved where the rule is anonymous"
            self.validated.fault(where, message, "header, metadata, client_address, path_parameter or constant")
        if isinstance(selector, PathParameterSelector) and parameters is None:
            message = f"{what} takes a path parameter, and the defaults are for rules with any path"
            self.validated.fault(where, message, "the header in the rules whose template has the parameter")
        elif isinstance(selector, PathParameterSelector) and selector.name not in (parameters or ()):
            accepted = did_you_mean(selector.name, parameters or (), "parameters of the rule's path template")
            message = f"{what} takes the path parameter {selector.name!r}, which the rule's path does not have"
            self.validated.fault(where, message, accepted)


def _parameters(section: written.RuleSection) -> tuple[str, ...]:
    template = section.match.path.template
    return parameter_names(template) if template is not None else ()


def removed(places: Iterable[Place], kept: Iterable[Place]) -> Removed:
    """What takes the credentials at these places off a request, but for those at the places that are kept."""
    kept_places = {(type(place), place.name) for place in kept}
    gone = [place for place in places if (type(place), place.name) not in kept_places]
    return Removed(
        headers=tuple(sorted({place.name for place in gone if isinstance(place, HeaderPlace)})),
        cookies=frozenset(place.name for place in gone if isinstance(place, CookiePlace)),
        parameters=frozenset(place.name for place in gone if isinstance(place, QueryPlace)),
    )


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
