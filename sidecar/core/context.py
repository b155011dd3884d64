"""What is known about one request before anything is decided: values only, as the gateway reported them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_NONE: frozenset[str] = frozenset()
_EMPTY: Mapping[str, str] = {}


@dataclass(slots=True, eq=False, kw_only=True)
class RequestContext:
    """One request, as a gateway described it. Never changed after it was built (not `frozen`: that costs 1.5 us).

    Attributes:
        method: As on the wire; case-sensitive.
        host: `:authority`, as sent.
        path: `:path` up to the first `?`, undecoded, not yet judged (see `paths.canonical`).
        query: What follows the first `?`, undecoded; None where there is no `?`.
        headers: By lower-case name; values of a repeated header are joined with ",". Pseudo headers are not included.
        repeated: Names of headers known to have been sent more than once (only a raw `header_map` tells).
        underscored: Names of headers with an underscore. Servers that know headers as CGI or WSGI variables take each
            of `x-user_id`, `x_user-id` and `x_user_id` for `x-user-id`.
        source_address: The client's IP address as Envoy sees it (after its XFF processing), "" if unknown.
        source_principal: The peer certificate's identity as verified by Envoy's mTLS, "" without one.
        size_bytes: Content-Length, -1 if unknown.
        extensions: Static values from the gateway's own route configuration: the only fields no client can influence.
    """

    request_id: str
    method: str
    host: str
    path: str
    query: str | None = None
    scheme: str = ""
    protocol: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    repeated: frozenset[str] = _NONE
    underscored: tuple[str, ...] = ()
    source_address: str = ""
    source_port: int = 0
    source_principal: str = ""
    size_bytes: int = -1
    extensions: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
