"""What the caller showed: exactly one bearer token in the Authorization header, or a reason why not (RFC 6750)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.core.decision import DenyReason

if TYPE_CHECKING:
    from sidecar.core.context import RequestContext


def bearer_token(request: RequestContext) -> str | DenyReason:
    """The token of `Authorization: Bearer <token>`; the scheme in any case, one space (RFC 6750 section 2.1).

    Another scheme counts as no credential. Two headers, also when merged with "," on their way, are refused: nobody
    can say which of them the upstream will believe.
    """
    value = request.headers.get("authorization")
    if value is None:
        return DenyReason.CREDENTIAL_MISSING
    if "authorization" in request.repeated or "," in value:
        return DenyReason.CREDENTIAL_REPEATED
    if value[:7] != "Bearer " and value[:7].lower() != "bearer ":
        return DenyReason.CREDENTIAL_MALFORMED if value.lower() == "bearer" else DenyReason.CREDENTIAL_MISSING
    token = value[7:]
    if not token or token[0] == " ":
        return DenyReason.CREDENTIAL_MALFORMED
    return token
