"""Where a value is taken from: a claim, a header, the client's address, a path parameter, or a constant.

Limits are keyed by selectors, and the upstream's headers are filled from them. A selector yields a string, or None
where the request has no such value; it never guesses.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, TypeAlias

from sidecar.core.principal import Json, Principal, claim_at

if TYPE_CHECKING:
    from sidecar.core.context import RequestContext

PathParameters: TypeAlias = Mapping[str, str]

EXACT_DOUBLE_MAX = 2**53
"""Whole numbers up to here have a double of their own."""


def claim_text(value: Json) -> str | None:
    """A claim as a header or key: strings as they are, booleans and numbers in JSON, strings of an array joined by ",".

    None for null, objects, and arrays that hold anything but strings without commas: they have no unambiguous text.
    """
    match value:
        case str():
            return value
        case bool() | int() | float():
            return json.dumps(value)
        case list():
            texts = [item for item in value if isinstance(item, str) and "," not in item]
            return ",".join(texts) if len(texts) == len(value) else None
        case _:
            return None


@dataclass(frozen=True, slots=True)
class ClaimSelector:
    """A claim of the principal, by path."""

    path: tuple[str, ...]

    def select(self, _request: RequestContext, principal: Principal | None, _parameters: PathParameters) -> str | None:
        """The claim's text; None without a principal, or without such a claim."""
        if principal is None:
            return None
        path = self.path
        value = principal.claims.get(path[0]) if len(path) == 1 else claim_at(principal.claims, path)
        return value if value.__class__ is str else claim_text(value)


class PrincipalFact(enum.Enum):
    """What is known of every caller, whatever proved it; the value is its name in the policy."""

    SUBJECT = "subject"
    ISSUER = "issuer"
    CLIENT = "client"
    METHOD = "method"
    TIER = "tier"
    TENANT = "tenant"
    KEY_ID = "key_id"


@dataclass(frozen=True, slots=True)
class PrincipalSelector:
    """What is known of the principal, whatever proved it."""

    fact: PrincipalFact

    def select(self, _request: RequestContext, principal: Principal | None, _parameters: PathParameters) -> str | None:
        """The text; None without a principal, or where it has none."""
        return getattr(principal, self.fact.value) or None if principal is not None else None


@dataclass(frozen=True, slots=True)
class HeaderSelector:
    """A request header, by its lower-case name: something the client chooses freely."""

    name: str

    def select(self, request: RequestContext, _principal: Principal | None, _parameters: PathParameters) -> str | None:
        """The header's value, repeated ones joined with ","."""
        return request.headers.get(self.name)


@dataclass(frozen=True, slots=True)
class AddressSelector:
    """The client's address as the gateway reported it; IPv6 is cut to its /`ipv6_prefix`, since a client owns that."""

    ipv6_prefix: int = 64

    def select(self, request: RequestContext, _principal: Principal | None, _parameters: PathParameters) -> str | None:
        """The address in canonical text; IPv4-mapped IPv6 as IPv4; None if the gateway sent none that can be read."""
        text = request.source_address
        if ":" not in text:
            return text or None
        try:
            address = ip_address(text.partition("%")[0])
        except ValueError:
            return None
        if not isinstance(address, IPv6Address):
            return str(address)
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        shift = 128 - self.ipv6_prefix
        return f"{IPv6Address(int(address) >> shift << shift)}/{self.ipv6_prefix}"


@dataclass(frozen=True, slots=True)
class PathParameterSelector:
    """A parameter of the rule's path template (`/users/{id}`)."""

    name: str

    def select(self, _request: RequestContext, _principal: Principal | None, parameters: PathParameters) -> str | None:
        """The path segment that stands for the parameter."""
        return parameters.get(self.name)


@dataclass(frozen=True, slots=True)
class ConstantSelector:
    """The same value for every request."""

    value: str

    def select(self, _request: RequestContext, _principal: Principal | None, _parameters: PathParameters) -> str:
        """The constant."""
        return self.value


@dataclass(frozen=True, slots=True)
class MetadataSelector:
    """A value of Envoy's dynamic metadata, which the filters before this one have set."""

    namespace: str
    path: tuple[str, ...]

    def select(self, request: RequestContext, _principal: Principal | None, _parameters: PathParameters) -> str | None:
        """The value's text, as a claim's; whole numbers without a fraction, though metadata has doubles only."""
        value = request.metadata(self.namespace, self.path) if request.metadata is not None else None
        if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT_DOUBLE_MAX:
            return str(int(value))
        return claim_text(value)


SELECTORS_OF_REQUEST = (HeaderSelector, MetadataSelector, AddressSelector, PathParameterSelector)
"""Those whose value is not settled by the principal alone."""

Selector: TypeAlias = (
    ClaimSelector
    | PrincipalSelector
    | HeaderSelector
    | MetadataSelector
    | AddressSelector
    | PathParameterSelector
    | ConstantSelector
)
