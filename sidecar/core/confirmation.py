"""Confirmation (`cnf`, RFC 7800): a token that is bound to a key or a certificate is no bearer token.

    claims, request -> confirm -> None, a refusal, or `NeedFirstUse`

What a token is bound to is proved on every request, whatever a rule asks for and however often the token was verified
before. `jkt` needs a DPoP proof (RFC 9449 section 6), `x5t#S256` the client certificate (RFC 8705 section 3.1), both
need both; any other member is one that we cannot prove, and refuses the token.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from sidecar.core import base64url, dpop
from sidecar.core.certificates import certificate_digest
from sidecar.core.claims import Rejected
from sidecar.core.decision import DenyReason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.core.certificates import CertificateTrust
    from sidecar.core.context import RequestContext
    from sidecar.core.dpop import DpopPolicy, ProofResult
    from sidecar.core.methods import Findings
    from sidecar.core.principal import Json

DIGESTS_KEPT_MAX = 4096
"""Decoded digests of tokens that were verified; 0.3 KiB each, or what a token's claim takes."""

_DIGEST_BYTES = 32
_UNSUPPORTED = DenyReason.TOKEN_BINDING_UNSUPPORTED


class Confirmation(NamedTuple):
    """What a token is bound to; at least one of the two.

    Attributes:
        thumbprint: SHA-256 of a public key (RFC 7638), b"" where it is bound to none.
        certificate: SHA-256 of a client certificate's DER, b"" where it is bound to none.
    """

    thumbprint: bytes
    certificate: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """How the bindings of an issuer's tokens are proved.

    Attributes:
        dpop: How proofs are judged; None: tokens bound to a key are refused.
        certificates: Where client certificates are found; None: tokens bound to one are refused.
        require_dpop: Tokens that are not bound to a key are refused.
    """

    dpop: DpopPolicy | None = None
    certificates: CertificateTrust | None = None
    require_dpop: bool = False


NO_BINDING = Binding()
"""Bound tokens are refused."""


def confirmation_of(claims: Mapping[str, Json]) -> Confirmation | Rejected | None:
    """What verified claims bind their token to; None: nothing."""
    if "cnf" not in claims:
        return None
    cnf = claims["cnf"]
    if not isinstance(cnf, dict) or not cnf:
        return Rejected(_UNSUPPORTED, "cnf is not an object with members")
    if cnf.keys() - {"jkt", "x5t#S256"}:
        return Rejected(_UNSUPPORTED, "cnf has a member other than jkt and x5t#S256")
    digests = {name: _digest(value) for name, value in cnf.items()}
    for name, digest in digests.items():
        if digest is None:
            return Rejected(_UNSUPPORTED, f"cnf.{name} is not the base64url of a SHA-256 digest")
    return Confirmation(digests.get("jkt") or b"", digests.get("x5t#S256") or b"")


def _digest(value: Json) -> bytes | None:
    return _decoded(value) if isinstance(value, str) and value.isascii() else None


@lru_cache(maxsize=DIGESTS_KEPT_MAX)
def _decoded(value: str) -> bytes | None:
    try:
        digest = base64url.decode(value.encode("ascii"))
    except base64url.Base64UrlError:
        return None
    return digest if len(digest) == _DIGEST_BYTES else None


def is_bound(claims: Mapping[str, Json], binding: Binding | None) -> bool:
    """Whether `confirm` has to be asked for these claims on every request, under whatever scheme they come."""
    return "cnf" in claims or (binding is not None and binding.require_dpop)


def dpop_token(request: RequestContext) -> str | None:
    """The token of `Authorization: DPoP <token>` (RFC 9449 section 7.1), the scheme in any case; None without one."""
    value = request.headers.get("authorization") or ""
    if value[:5].lower() != "dpop " or "," in value or "authorization" in request.repeated:
        return None
    token = value[5:]
    return token if token and token[0] != " " else None


def shown_as_dpop(token: str, request: RequestContext) -> bool:
    """Whether this token came under the scheme `DPoP`."""
    return dpop_token(request) == token


def confirm(
    claims: Mapping[str, Json],
    token: str,
    binding: Binding | None,
    request: RequestContext,
    findings: Findings,
    now_us: int,
    *,
    require_dpop: bool = False,
) -> ProofResult:
    """Whether the request proves what the token is bound to; None: it does, or the token is bound to nothing.

    To be asked on every request whose token `is_bound`, or came under the scheme `DPoP`, or where the rule requires
    DPoP; for any other the answer is None.

    Args:
        claims: Verified.
        token: As sent.
        binding: Of the token's issuer; None: bound tokens are refused.
        request: Carries token, proof and certificate; `dpop_nonce` may be set on it.
        findings: What was fetched for this request.
        now_us: Microseconds since the epoch.
        require_dpop: The rule, too, refuses tokens that are not bound to a key.
    """
    bound = confirmation_of(claims)
    if isinstance(bound, Rejected):
        return bound
    binding = binding or NO_BINDING
    thumbprint = bound.thumbprint if bound is not None else b""
    if not thumbprint and (require_dpop or binding.require_dpop):
        return Rejected(DenyReason.TOKEN_UNBOUND, "the token is not bound to a key, and DPoP is required")
    if shown_as_dpop(token, request) != bool(thumbprint):
        if thumbprint:
            return Rejected(DenyReason.TOKEN_SCHEME_MISMATCH, "the token is bound to a key, and not sent as DPoP")
        return Rejected(DenyReason.TOKEN_SCHEME_MISMATCH, "the token is sent as DPoP, and not bound to a key")
    if bound is None:
        return None
    fault = _certificate_fault(bound.certificate, binding, request) if bound.certificate else None
    if fault is not None or not thumbprint:
        return fault
    if binding.dpop is None:
        return Rejected(_UNSUPPORTED, "the token is bound to a key, and the policy has no dpop section")
    return dpop.prove(token, thumbprint, binding.dpop, request, findings, now_us)


def _certificate_fault(digest: bytes, binding: Binding, request: RequestContext) -> Rejected | None:
    """RFC 8705 section 3: the token is bound to a certificate; which one the client showed is the gateway's word."""
    if binding.certificates is None:
        return Rejected(_UNSUPPORTED, "the token is bound to a certificate, and its issuer's policy trusts none")
    shown = certificate_digest(request, binding.certificates)
    if isinstance(shown, Rejected):
        return shown
    if not hmac.compare_digest(shown, digest):
        return Rejected(DenyReason.CERTIFICATE_MISMATCH, "the token is bound to another certificate")
    return None
