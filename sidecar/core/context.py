"""What is known about one request before anything is decided: values only, as the gateway reported them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct, field

if TYPE_CHECKING:
    from sidecar.core.principal import Json

_NONE: frozenset[str] = frozenset()

Metadata: TypeAlias = "Callable[[str, tuple[str, ...]], Json]"


class RequestContext(Struct, eq=False, gc=False):
    """One request, as a gateway described it; `keep_headers` changes it, and `dpop_nonce` is set.

    Attributes:
        request_id: What names the request in answers, logs and audit.
        method: As on the wire; case-sensitive.
        host: `:authority`, as sent.
        path: `:path` up to the first `?`, undecoded, not yet judged (see `paths.canonical`).
        headers: By lower-case name; values of a repeated header are joined with ",". Read with `get`: what stands
            behind it may answer `[]` with "" for a name that is not there. Pseudo headers may be among them; a policy
            cannot name one.
        repeated: Names of headers known to have been sent more than once (only a raw `header_map` tells).
        underscored: Names of headers with an underscore. Servers that know headers as CGI or WSGI variables take each
            of `x-user_id`, `x_user-id` and `x_user_id` for `x-user-id`.
        source_address: The client's IP address as Envoy sees it (after its XFF processing), "" if unknown.
        metadata: Looks up a value of the gateway's own metadata by namespace and path; None where it sent none.
        query: What follows the first `?` of `:path`, as sent.
        scheme: `:scheme` as Envoy reports it, "" if unknown.
        peer_certificate: The client's certificate in URL-encoded PEM, as the gateway itself verified it; "" without.
        peer_principal: Its identity as the gateway reads it: URI SAN, else DNS SAN, else subject; "" without.
        dpop_nonce: Set while deciding: the nonce that the answer offers the client (RFC 9449 section 8), "" for none.
    """

    request_id: str
    method: str
    host: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    repeated: frozenset[str] = _NONE
    underscored: tuple[str, ...] = ()
    source_address: str = ""
    metadata: Metadata | None = None
    scheme: str = ""
    peer_certificate: str = ""
    peer_principal: str = ""
    query: str = ""
    dpop_nonce: str = ""

    def __repr__(self) -> str:
        return "RequestContext(***)"  # headers, query and certificates are credentials, or hold some

    def keep_headers(self, names: tuple[str, ...]) -> None:
        """Let go of all headers but these, and with them of the message that they stand in.

        Who waits for a store does so with others, and their messages would push each other out of the processor's
        caches: 1.5 us a decision.
        """
        headers = self.headers
        kept = {}
        for name in names:
            value = headers.get(name)
            if value is not None:
                kept[name] = value
        self.headers = kept


NO_REQUEST = RequestContext(request_id="", method="", host="", path="")
"""Stands where a request is taken and not looked at."""
