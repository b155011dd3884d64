"""What the kinds of authentication share: how one proves, what it needs from the world, and what was found.

A *method* proves one kind of credential: a token of an issuer, an API key, an opaque token, a client certificate. It is
pure: it gets what the request shows and what is known, and returns who was proved, why not, or what it needs. The
shell (check.py) fetches what is needed, notes it in the request's `Findings` and asks again.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from sidecar.core.claims import Rejected
    from sidecar.core.context import RequestContext
    from sidecar.core.principal import Principal


class Need(Protocol):
    """Something that only the world knows, such as an issuer's key or what an introspection endpoint says."""

    @property
    def key(self) -> Hashable:
        """Names it in the request's findings; equal for equal needs."""


Findings: TypeAlias = Mapping[Hashable, Any]
"""What was fetched for one request, by `Need.key`; a value of None: it was asked for, and could not be had."""

NOTHING_FOUND: Findings = MappingProxyType({})


class Method(Protocol):
    """Proves one kind of credential; compiled from the policy, immutable."""

    def shown(self, request: RequestContext) -> str | Rejected | None:
        """The credential of this kind on the request; None where there is none, `Rejected` where it is not clear."""

    def prove(
        self, shown: str, request: RequestContext, findings: Findings, now_us: int
    ) -> Principal | Need | Rejected:
        """Who showed it. Called again with the same arguments and more findings after a `Need`."""
