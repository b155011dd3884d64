"""A rule's `authenticate`, compiled: the short way for bearer tokens alone, a composition for everything else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.core.api_keys import ApiKeyMethod
from sidecar.core.authn import Composition, HostLabel, OneTenant, PathTenant, StepUp, TenantSource, TokenMethod
from sidecar.core.certificates import CertificateMethod
from sidecar.core.confirmation import NO_BINDING
from sidecar.core.credentials import CookiePlace, HeaderPlace, Place, QueryPlace, Shape
from sidecar.core.introspection import OpaqueTokens
from sidecar.core.limits import US_PER_S
from sidecar.core.rules import BEARER_ALONE, ChallengeScheme
from sidecar.policy import durations
from sidecar.policy.faults import did_you_mean
from sidecar.policy.fields import parse_header

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.core.api_keys import Keyring
    from sidecar.core.certificates import CertificateTrust
    from sidecar.core.introspection import IntrospectionPolicy
    from sidecar.core.issuer import IssuerPolicy
    from sidecar.core.methods import Method
    from sidecar.policy import authenticate_section as written
    from sidecar.policy.validate import Validated
    from sidecar.policy.yaml import PathParts

BEARER: Final = HeaderPlace("authorization", ("bearer", "dpop"))
"""Where a token is, unless the policy says otherwise; one that is bound to a key comes as `DPoP` (RFC 9449)."""


API_KEY: Final = (ChallengeScheme("ApiKey"),)
CERTIFICATE: Final = (ChallengeScheme("ClientCertificate"),)
"""TLS has no scheme of HTTP's, and a 401 must name one (RFC 9110 section 15.5.2)."""


class Authentication(NamedTuple):
    """How a rule authenticates: `issuers` or `composition`, or neither where something about it is wrong.

    Attributes:
        places: Where its credentials are.
        schemes: Of the challenge, in order.
    """

    issuers: Mapping[str, IssuerPolicy]
    composition: Composition | None
    places: tuple[Place, ...]
    schemes: tuple[ChallengeScheme, ...]


NOBODY: Final = Authentication({}, None, (), ())


class _Part(NamedTuple):
    """One credential of a composition."""

    method: TokenMethod | Method
    place: Place | None
    schemes: tuple[ChallengeScheme, ...]


class Provers(NamedTuple):
    """What rules may name to prove somebody, each by its name."""

    issuers: Mapping[str, IssuerPolicy]
    keyrings: Mapping[str, Keyring]
    introspection: Mapping[str, IntrospectionPolicy]
    trusts: Mapping[str, CertificateTrust]


@dataclass(slots=True, eq=False)
class AuthenticateCompiler:
    """Compiles `authenticate` sections; what several have in common is built once."""

    validated: Validated
    provers: Provers
    _issuer_sets: dict[tuple[str, ...], Mapping[str, IssuerPolicy]] = field(init=False, default_factory=dict)

    def compile(
        self, where: PathParts, section: written.Authenticate | None, parameters: Sequence[str]
    ) -> Authentication:
        """How the rule at `where` authenticates; `parameters` are those of its path template."""
        if section is None:
            return NOBODY
        step_up = _step_up(section.step_up)
        tenant = self._tenant((*where, "tenant"), section.tenant, parameters)
        if section.issuers is not None:
            issuers = self._accepted(section.issuers)
            if not issuers or (step_up is None and tenant is None):
                return Authentication(issuers, None, (BEARER,), _token_schemes(issuers.values()))
            parts = [_Part(TokenMethod(issuers, BEARER), BEARER, _token_schemes(issuers.values()))]
            return self._composed(parts, every=False, step_up=step_up, tenant=tenant)
        every = section.all_of is not None
        key, credentials = ("all_of", section.all_of) if every else ("any_of", section.any_of)
        known = len(self.validated.faults)
        shapes = self._check_places((*where, key), credentials or [], every=every)
        built = [self._part(each, shape) for each, shape in zip(credentials or [], shapes, strict=True)]
        parts = [part for part in built if part is not None]
        asked = (credentials or [])[: 1 if every else None]
        if step_up is not None and not any(each.chosen[0] in _SHAPES for each in asked):
            message = "none of the credentials says how the caller was authenticated"
            self.validated.fault((*where, "step_up"), message, "token or opaque_token; in all_of as the first")
        if len(self.validated.faults) != known or len(parts) != len(built):
            return NOBODY
        return self._composed(parts, every=every, step_up=step_up, tenant=tenant)

    def _composed(
        self, parts: Sequence[_Part], *, every: bool, step_up: StepUp | None, tenant: TenantSource | None
    ) -> Authentication:
        places = tuple(part.place for part in parts if part.place is not None)
        schemes = tuple(dict.fromkeys(scheme for part in parts for scheme in part.schemes))
        [first, *others] = parts
        plain = not others and step_up is None and tenant is None
        if plain and isinstance(first.method, TokenMethod) and first.place == BEARER:
            return Authentication(first.method.issuers, None, places, schemes)
        ambient = [part.method for part in parts if not every and part.place is None]
        composition = Composition(
            methods=tuple(part.method for part in parts if every or part.place is not None),
            ambient=tuple(each for each in ambient if not isinstance(each, TokenMethod)),
            every=every,
            step_up=step_up,
            tenant=tenant,
        )
        return Authentication({}, composition, places, schemes)

    # -- one credential

    def _part(self, credential: written.Credential, shape: Shape) -> _Part | None:
        """The credential as a method; None where something that it names is not there, which is reported elsewhere."""
        kind, section = credential.chosen
        if kind == "certificate":
            trust = self.provers.trusts.get(section.trust)
            return _Part(CertificateMethod(trust), None, CERTIFICATE) if trust is not None else None
        place = compile_place(kind, section.place, shape)
        bound = isinstance(place, HeaderPlace) and place.schemes == ("dpop",)
        match kind:
            case "token":
                issuers = self._accepted(section.issuers)
                if not issuers:
                    return None
                method = TokenMethod(issuers, place, require_dpop=bound)
                return _Part(method, place, _token_schemes(issuers.values(), bound=bound))
            case "api_key":
                known = self.provers.keyrings
                keyrings = tuple(known[name] for name in dict.fromkeys(section.keyrings) if name in known)
                return _Part(ApiKeyMethod(keyrings, place), place, API_KEY) if keyrings else None
            case _:
                endpoint = self.provers.introspection.get(section.introspection)
                if endpoint is None:
                    return None
                opaque = OpaqueTokens(endpoint, place, require_dpop=bound)
                return _Part(opaque, place, _token_schemes([endpoint.rules], bound=bound))

    def _accepted(self, written_names: Sequence[str]) -> Mapping[str, IssuerPolicy]:
        issuers = self.provers.issuers
        names = tuple(name for name in written_names if name in issuers)
        if names not in self._issuer_sets:
            self._issuer_sets[names] = {issuers[name].issuer: issuers[name] for name in names}
        return self._issuer_sets[names]

    def _check_places(self, where: PathParts, credentials: Sequence[written.Credential], *, every: bool) -> list[Shape]:
        """The shape that each may have: a token and an opaque token may share a place, others may not."""
        shapes = [Shape.ANY] * len(credentials)
        placed: list[tuple[int, str, Place]] = []
        for n, credential in enumerate(credentials):
            kind, section = credential.chosen
            if kind not in _DEFAULT_PLACES:
                continue
            place = compile_place(kind, section.place, Shape.ANY)
            for other, other_kind, other_place in placed:
                if not _overlap(place, other_place, every=every):
                    continue
                if not every and {kind, other_kind} == set(_SHAPES) and shapes[other] is shapes[n]:
                    shapes[n], shapes[other] = _SHAPES[kind], _SHAPES[other_kind]
                    continue
                line = self.validated.source.line_of((*where, other))
                message = f"it is looked for where the one on line {line} is"
                accepted = "a place of its own (in); a token and an opaque_token may share one in any_of"
                self.validated.fault((*where, n, kind), message, accepted)
            placed.append((n, kind, place))
        return shapes

    def _tenant(
        self, where: PathParts, section: written.TenantSection | None, parameters: Sequence[str]
    ) -> TenantSource | None:
        if section is None:
            return None
        kind, value = section.chosen
        match kind:
            case "host_label":
                return HostLabel(value)
            case "path_parameter":
                if value not in parameters:
                    accepted = did_you_mean(value, parameters, "parameters of the rule's path template")
                    self.validated.fault(where, f"the rule's path has no parameter {value!r}", accepted)
                return PathTenant(value)
            case _:
                return OneTenant(value)


_DEFAULT_PLACES: Final[Mapping[str, Place]] = {
    "token": BEARER,
    "opaque_token": BEARER,
    "api_key": HeaderPlace("x-api-key"),
}


_AUTHORIZATION_SCHEMES: Final[Mapping[str, tuple[str, ...]]] = {
    "token": BEARER.schemes,
    "opaque_token": BEARER.schemes,
    "api_key": ("apikey",),
}

_SHAPES: Final[Mapping[str, Shape]] = {"token": Shape.TOKEN, "opaque_token": Shape.OPAQUE}
"""Of the kinds that may share a place, and that say how the caller was authenticated."""


def compile_place(kind: str, section: written.CredentialPlace | None, shape: Shape) -> Place:
    """Where a kind of credential is looked for."""
    if section is None:
        return replace(_DEFAULT_PLACES[kind], shape=shape)
    if section.cookie is not None:
        return CookiePlace(section.cookie, shape)
    if section.query is not None:
        return QueryPlace(section.query, shape)
    header = parse_header(section.header or "")
    if section.scheme is not None:
        return HeaderPlace(header, (section.scheme.lower(),), shape)
    return HeaderPlace(header, _AUTHORIZATION_SCHEMES[kind] if header == "authorization" else (), shape)


def _token_schemes(issuers: Iterable[IssuerPolicy], *, bound: bool = False) -> tuple[ChallengeScheme, ...]:
    """What is offered for tokens of these issuers; `bound`: for bound ones alone."""
    bindings = [issuer.binding or NO_BINDING for issuer in issuers]
    algorithms = sorted({name for each in bindings if each.dpop is not None for name in each.dpop.algorithms})
    if not algorithms:
        return BEARER_ALONE
    dpop = ChallengeScheme("DPoP", f'algs="{" ".join(algorithms)}"')
    return (dpop,) if bound or all(each.require_dpop for each in bindings) else (*BEARER_ALONE, dpop)


def _overlap(place: Place, other: Place, *, every: bool) -> bool:
    """Whether one text could be both credentials; with `every`, whether they are in one header, which comes once."""
    if type(place) is not type(other) or place.name != other.name:
        return False
    if every or not isinstance(place, HeaderPlace) or not isinstance(other, HeaderPlace):
        return True
    return not place.schemes or not other.schemes or not set(place.schemes).isdisjoint(other.schemes)


def _step_up(section: written.StepUpSection | None) -> StepUp | None:
    if section is None:
        return None
    max_age_s = durations.parse(section.max_age) // US_PER_S if section.max_age is not None else None
    return StepUp(tuple(section.acr or ()), max_age_s)
