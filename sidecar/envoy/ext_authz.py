"""Envoy's external authorization (envoy.service.auth.v3): a CheckRequest into what the core decides on, and back.

Nothing here ends in an exception or a gRPC error, since Envoy lets a request pass on those under
`failure_mode_allow: true`: what cannot be read is a `DenyReason`, and every answer is a whole CheckResponse.

What an answer carries:

* Allowed: the upstream's headers, each set with `append=false` *and* `OVERWRITE_IF_EXISTS_OR_ADD` (Envoy's default
  would append to what the client forged). Every identity header that this request does not get, in both spellings
  (`x-user-id`, `x_user_id`), is removed; so are the credential, unless it is forwarded, and
  `x-envoy-auth-failure-mode-allowed`, which only Envoy may say. Removals come last in Envoy: no name is in both lists.
* Denied: the reason's HTTP status, problem details (RFC 9457), and the challenge or `Retry-After` that belong to it.
  A gRPC caller gets plain text instead, which Envoy turns into `grpc-message`, and `grpc-status`.
* Both: `RateLimit` and `RateLimit-Policy`, and dynamic metadata for the filters that follow and for the access log.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from sidecar.core.context import RequestContext
from sidecar.core.decision import Decision, DenyReason
from sidecar.envoy.answers import Answers
from sidecar.envoy.pb import ext_authz_pb2
from sidecar.envoy.request_metadata import RequestMetadata
from sidecar.transport.service import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sidecar.envoy.pb import core_pb2

HEADERS_MAX = 1000
"""More headers than this are refused as too large: ten times what Envoy accepts by default, and a bound on the work."""

PARSED_BYTES_KEPT_MAX = 64 * 1024
"""The headers of a larger message are copied out of it: what waits for Redis, or for the audit log, does not keep a
request's body in memory."""

REQUEST_ID_CHARS_MAX = 128
"""A longer `x-request-id` is not echoed; Envoy's own stream id stands in."""

_is_request_id = re.compile(rf"[A-Za-z0-9._~:/+=@-]{{1,{REQUEST_ID_CHARS_MAX}}}").fullmatch
_NONE: frozenset[str] = frozenset()

_parse = ext_authz_pb2.CheckRequest.FromString


# --------------------------------------------------------------------------------------------------------------------
# CheckRequest -> RequestContext


def decode(message: bytes) -> RequestContext | DenyReason:
    """What a CheckRequest says about the request.

    REQUEST_UNDECODABLE: not a CheckRequest (also: text that is not UTF-8), or one without HTTP attributes.
    REQUEST_MALFORMED: both `headers` and `header_map` are filled. Envoy fills one; which one to believe is a guess.
    REQUEST_TOO_LARGE: more than `HEADERS_MAX` headers.
    PATH_AMBIGUOUS: the path is not what the raw headers say it is: bytes were lost on the way.

    Header names come out in lower case, and a repeated name's values are joined with "," ("; " for cookie) and noted in
    `repeated`. The parsed message's own map serves as it is where it can: copying it costs 2.7 us for 12 headers. A raw
    value that is not UTF-8 keeps its bytes as lone surrogates (`surrogateescape`): it equals no text of a policy, is no
    token, and is never sent on.
    """
    try:
        attributes = _parse(message).attributes
    except (DecodeError, ValueError):  # a UnicodeDecodeError, where protobuf runs without its C part
        return DenyReason.REQUEST_UNDECODABLE
    http = attributes.request.http
    method, raw_path = http.method, http.path
    if not method or not raw_path:
        return DenyReason.REQUEST_UNDECODABLE
    headers: Mapping[str, str] = http.headers
    repeated = _NONE
    if len(headers) > HEADERS_MAX:
        return DenyReason.REQUEST_TOO_LARGE
    if http.HasField("header_map") and http.header_map.headers:
        read = _raw_headers(http, raw_path)
        if isinstance(read, DenyReason):
            return read
        headers, repeated = read
        names = "".join(headers)
    else:
        names = "".join(headers)
        if names.lower() != names:  # islower() looks every character up: 0.5 us instead of 0.1
            headers, repeated = _joined(headers.items())
        elif len(message) > PARSED_BYTES_KEPT_MAX:
            headers = dict(headers)
    sent_id = headers.get("x-request-id")
    metadata = RequestMetadata(attributes.metadata_context) if attributes.HasField("metadata_context") else None
    source = attributes.source
    path, _, query = raw_path.partition("?")  # by hand: urlsplit reads `//admin/x` as a host, and drops tabs
    return RequestContext(
        sent_id if sent_id is not None and _is_request_id(sent_id) is not None else _stream_id(http.id),
        method,
        http.host,
        path,
        headers,
        repeated,
        tuple(name for name in headers if "_" in name) if "_" in names else (),
        source.address.socket_address.address,
        metadata,
        http.scheme,
        source.certificate,
        source.principal,
        query,
    )


def _raw_headers(
    http: ext_authz_pb2.AttributeContext.HttpRequest, path: str
) -> tuple[dict[str, str], frozenset[str]] | DenyReason:
    """The same of a `header_map`, which is not empty."""
    raw_headers = http.header_map.headers
    if len(raw_headers) > HEADERS_MAX:
        return DenyReason.REQUEST_TOO_LARGE
    if http.headers:
        return DenyReason.REQUEST_MALFORMED
    if "!" in path and not _is_path_of(raw_headers, path):
        return DenyReason.PATH_AMBIGUOUS
    return _joined([(header.key, _raw_text(header)) for header in raw_headers])


def _is_path_of(raw_headers: Iterable[core_pb2.HeaderValue], path: str) -> bool:
    """Whether the bytes of `:path` spell this path: where they are not UTF-8, Envoy puts a `!` for each of them."""
    encoded = path.encode()
    return all(header.raw_value == encoded for header in raw_headers if header.key == ":path" and header.raw_value)


def _joined(headers: Iterable[tuple[str, str]]) -> tuple[dict[str, str], frozenset[str]]:
    """Headers by lower-case name, and the names that came more than once."""
    joined: dict[str, str] = {}
    repeated: dict[str, list[str]] = {}
    for name, value in headers:
        lower = name.lower()
        if lower in joined:
            repeated.setdefault(lower, [joined[lower]]).append(value)
        else:
            joined[lower] = value
    for name, values in repeated.items():
        joined[name] = ("; " if name == "cookie" else ",").join(values)
    return joined, frozenset(repeated)


def _raw_text(header: core_pb2.HeaderValue) -> str:
    raw = header.raw_value
    return raw.decode("utf-8", "surrogateescape") if raw else header.value


def _stream_id(stream_id: str) -> str:
    """Envoy's own id names the request where the client's cannot: never more than a short plain word."""
    return stream_id if _is_request_id(stream_id) is not None else ""


# --------------------------------------------------------------------------------------------------------------------
# Decision -> CheckResponse

_answers = Answers()


def encode(decision: Decision, request: RequestContext | None = None, token: str = "") -> bytes:
    """The CheckResponse that says what was decided; see the module's head for what it carries.

    An allowed decision that lacks what allowing needs (its request, a rule, the principal of a rule that is not
    anonymous, the token of a rule that replaces credentials) is answered as INTERNAL: a fault of ours denies.

    Args:
        decision: What was decided.
        request: What it was decided about; None where that could not be decoded.
        token: What replaces the caller's credential, where the rule says so.
    """
    return _answers.encode(decision, request, token)


_REFUSALS = {
    Refusal.MESSAGE_TOO_LARGE: DenyReason.REQUEST_TOO_LARGE,
    Refusal.METADATA_TOO_LARGE: DenyReason.REQUEST_TOO_LARGE,
    Refusal.MESSAGE_MALFORMED: DenyReason.REQUEST_UNDECODABLE,
    Refusal.COMPRESSION_UNSUPPORTED: DenyReason.REQUEST_UNDECODABLE,
    Refusal.TIMEOUT_MALFORMED: DenyReason.REQUEST_UNDECODABLE,
    Refusal.DEADLINE_EXCEEDED: DenyReason.DEADLINE_EXCEEDED,
    Refusal.OVERLOADED: DenyReason.OVERLOADED,
    Refusal.SHUTTING_DOWN: DenyReason.SHUTTING_DOWN,
    Refusal.HANDLER_FAILED: DenyReason.INTERNAL,
}
_REFUSED = {refused: encode(Decision(_REFUSALS[refused], None, None, (), 0)) for refused in Refusal}


def refusal(refused: Refusal) -> bytes:
    """The CheckResponse that stands in for a call which the transport refuses: a denial, never a gRPC error."""
    return _REFUSED[refused]


def refusal_reason(refused: Refusal) -> DenyReason:
    """What a refusal counts as in metrics and audit events."""
    return _REFUSALS[refused]
