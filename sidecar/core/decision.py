"""The outcome of a Check: allowed, or denied for exactly one reason out of a closed set.

`REASONS` is the one table that says what a reason means to the outside: HTTP status, gRPC code, challenge, public text.
The public texts are fixed: nothing of a token, a policy or an exception ever reaches a client.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from sidecar.core.limits import LimitOutcome
    from sidecar.core.principal import Principal
    from sidecar.core.rules import Rule

NO_PARAMETERS: Mapping[str, str] = MappingProxyType({})


class DenyReason(enum.Enum):
    """Why a request is denied; the value is its label in metrics, audit events and problem types."""

    # the request itself
    REQUEST_UNDECODABLE = "request_undecodable"
    REQUEST_TOO_LARGE = "request_too_large"
    REQUEST_MALFORMED = "request_malformed"
    PATH_AMBIGUOUS = "path_ambiguous"
    NO_RULE = "no_rule"
    # the credential
    CREDENTIAL_MISSING = "credential_missing"
    CREDENTIAL_REPEATED = "credential_repeated"
    CREDENTIAL_MALFORMED = "credential_malformed"
    # the token
    TOKEN_MALFORMED = "token_malformed"
    TOKEN_HEADER_REFUSED = "token_header_refused"
    TOKEN_ALGORITHM_REFUSED = "token_algorithm_refused"
    TOKEN_TYPE_REFUSED = "token_type_refused"
    TOKEN_ISSUER_UNKNOWN = "token_issuer_unknown"
    TOKEN_KEY_UNKNOWN = "token_key_unknown"
    TOKEN_SIGNATURE_INVALID = "token_signature_invalid"
    TOKEN_CLAIM_INVALID = "token_claim_invalid"
    TOKEN_AUDIENCE_MISMATCH = "token_audience_mismatch"
    TOKEN_EXPIRED = "token_expired"
    TOKEN_NOT_YET_VALID = "token_not_yet_valid"
    TOKEN_BINDING_UNSUPPORTED = "token_binding_unsupported"
    TOKEN_SCHEME_MISMATCH = "token_scheme_mismatch"
    TOKEN_UNBOUND = "token_unbound"
    TOKEN_INACTIVE = "token_inactive"
    TOKEN_REVOKED = "token_revoked"
    KEYS_UNAVAILABLE = "keys_unavailable"
    REVOCATIONS_UNKNOWN = "revocations_unknown"
    AUTHENTICATIONS_FAILED_TOO_OFTEN = "authentications_failed_too_often"
    INTROSPECTION_UNAVAILABLE = "introspection_unavailable"
    # the API key
    API_KEY_MALFORMED = "api_key_malformed"
    API_KEY_INVALID = "api_key_invalid"
    API_KEY_EXPIRED = "api_key_expired"
    API_KEY_NOT_YET_VALID = "api_key_not_yet_valid"
    API_KEY_REVOKED = "api_key_revoked"
    API_KEY_NOT_ALLOWED_HERE = "api_key_not_allowed_here"
    API_KEYS_UNAVAILABLE = "api_keys_unavailable"
    # who was proved, and how
    STEP_UP_REQUIRED = "step_up_required"
    TENANT_MISMATCH = "tenant_mismatch"
    # proofs of possession (RFC 9449)
    DPOP_PROOF_MISSING = "dpop_proof_missing"
    DPOP_PROOF_INVALID = "dpop_proof_invalid"
    DPOP_PROOF_REPLAYED = "dpop_proof_replayed"
    DPOP_KEY_MISMATCH = "dpop_key_mismatch"
    DPOP_NONCE_REQUIRED = "dpop_nonce_required"
    PROOFS_UNAVAILABLE = "proofs_unavailable"
    # client certificates (RFC 8705)
    CERTIFICATE_MISSING = "certificate_missing"
    CERTIFICATE_MALFORMED = "certificate_malformed"
    CERTIFICATE_EXPIRED = "certificate_expired"
    CERTIFICATE_UNTRUSTED = "certificate_untrusted"
    CERTIFICATE_MISMATCH = "certificate_mismatch"
    # authorization
    SCOPE_INSUFFICIENT = "scope_insufficient"
    ROLE_MISSING = "role_missing"
    # limits
    COST_MALFORMED = "cost_malformed"
    LIMIT_EXCEEDED = "limit_exceeded"
    LIMITS_UNAVAILABLE = "limits_unavailable"
    # ourselves
    DEADLINE_EXCEEDED = "deadline_exceeded"
    OVERLOADED = "overloaded"
    SHUTTING_DOWN = "shutting_down"
    INTERNAL = "internal"


class Challenge(enum.Enum):
    """What `WWW-Authenticate` says: the value is the `error` code, "" for a bare challenge.

    RFC 6750 section 3, and RFC 9449 section 7.1 for those of DPoP.
    """

    NONE = "none"
    BARE = ""
    INVALID_REQUEST = "invalid_request"
    INVALID_TOKEN = "invalid_token"
    INVALID_DPOP_PROOF = "invalid_dpop_proof"
    USE_DPOP_NONCE = "use_dpop_nonce"
    INSUFFICIENT_SCOPE = "insufficient_scope"
    STEP_UP = "insufficient_user_authentication"
    API_KEY = "api_key"
    """A challenge of the scheme `ApiKey`, which has no error codes."""


@dataclass(frozen=True, slots=True)
class ReasonRow:
    """What a reason means to a client."""

    http_status: int
    grpc_status: int
    challenge: Challenge
    title: str
    detail: str


def _rows() -> dict[DenyReason, ReasonRow]:
    r = DenyReason
    bare, bad_request, bad_token = Challenge.BARE, Challenge.INVALID_REQUEST, Challenge.INVALID_TOKEN
    none, scope = Challenge.NONE, Challenge.INSUFFICIENT_SCOPE

    def request(status: int, detail: str, grpc: int = 3) -> ReasonRow:
        title = {400: "Bad request", 403: "Forbidden", 413: "Request too large"}[status]
        return ReasonRow(status, grpc, none, title, detail)

    def token(detail: str) -> ReasonRow:
        return ReasonRow(401, 16, bad_token, "Invalid token", detail)

    def api_key(detail: str) -> ReasonRow:
        return ReasonRow(401, 16, Challenge.API_KEY, "Invalid API key", detail)

    def proof(detail: str, error: Challenge = Challenge.INVALID_DPOP_PROOF) -> ReasonRow:
        return ReasonRow(401, 16, error, "Invalid proof of possession", detail)

    def certificate(detail: str) -> ReasonRow:
        return ReasonRow(401, 16, bad_token, "Invalid client certificate", detail)

    def unavailable(detail: str) -> ReasonRow:
        return ReasonRow(503, 14, none, "Service unavailable", detail)

    return {
        r.REQUEST_UNDECODABLE: request(400, "The request could not be read."),
        r.REQUEST_TOO_LARGE: request(413, "The request is larger than is accepted.", 8),
        r.REQUEST_MALFORMED: request(400, "The request is not well-formed."),
        r.PATH_AMBIGUOUS: request(400, "The path can be read in more than one way."),
        r.NO_RULE: request(403, "Nothing here is open to this request.", 7),
        r.CREDENTIAL_MISSING: ReasonRow(401, 16, bare, "Authentication required", "A credential is required."),
        r.CREDENTIAL_REPEATED: ReasonRow(400, 3, bad_request, "Bad request", "More than one credential was sent."),
        r.CREDENTIAL_MALFORMED: ReasonRow(400, 3, bad_request, "Bad request", "The credential is not well-formed."),
        r.TOKEN_MALFORMED: token("The token is not well-formed."),
        r.TOKEN_HEADER_REFUSED: token("The token's header is not acceptable."),
        r.TOKEN_ALGORITHM_REFUSED: token("The token's algorithm is not acceptable."),
        r.TOKEN_TYPE_REFUSED: token("The token is of the wrong type."),
        r.TOKEN_ISSUER_UNKNOWN: token("The token's issuer is not accepted here."),
        r.TOKEN_KEY_UNKNOWN: token("The token's signing key is not known."),
        r.TOKEN_SIGNATURE_INVALID: token("The token's signature is not valid."),
        r.TOKEN_CLAIM_INVALID: token("A claim of the token is missing or not valid."),
        r.TOKEN_AUDIENCE_MISMATCH: token("The token is meant for another audience."),
        r.TOKEN_EXPIRED: token("The token has expired."),
        r.TOKEN_NOT_YET_VALID: token("The token is not valid yet."),
        r.TOKEN_BINDING_UNSUPPORTED: token("The token is bound in a way that cannot be proved here."),
        r.TOKEN_INACTIVE: token("The token is not active."),
        r.TOKEN_REVOKED: token("The token has been revoked."),
        r.REVOCATIONS_UNKNOWN: unavailable("The token cannot be verified at the moment."),
        r.AUTHENTICATIONS_FAILED_TOO_OFTEN: ReasonRow(
            429, 8, none, "Too many requests", "Too many credentials from this address were refused."
        ),
        r.KEYS_UNAVAILABLE: unavailable("The token cannot be verified at the moment."),
        r.INTROSPECTION_UNAVAILABLE: unavailable("The token cannot be verified at the moment."),
        r.API_KEY_MALFORMED: api_key("The API key is not well-formed."),
        r.API_KEY_INVALID: api_key("The API key is not valid."),
        r.API_KEY_EXPIRED: api_key("The API key has expired."),
        r.API_KEY_NOT_YET_VALID: api_key("The API key is not valid yet."),
        r.API_KEY_REVOKED: api_key("The API key was revoked."),
        r.API_KEY_NOT_ALLOWED_HERE: request(403, "The API key may not be used for this request.", 7),
        r.API_KEYS_UNAVAILABLE: unavailable("The API key cannot be verified at the moment."),
        r.STEP_UP_REQUIRED: ReasonRow(
            401, 16, Challenge.STEP_UP, "Authentication required", "A stronger or newer authentication is required."
        ),
        r.TENANT_MISMATCH: ReasonRow(403, 7, none, "Forbidden", "The caller is not of this tenant."),
        r.TOKEN_SCHEME_MISMATCH: token("The token was sent under the wrong authentication scheme."),
        r.TOKEN_UNBOUND: token("A token that is bound to a key is required."),
        r.DPOP_PROOF_MISSING: proof("A DPoP proof is required."),
        r.DPOP_PROOF_INVALID: proof("The DPoP proof is not valid."),
        r.DPOP_PROOF_REPLAYED: proof("The DPoP proof was used before."),
        r.DPOP_KEY_MISMATCH: ReasonRow(401, 16, bad_token, "Invalid token", "The token is bound to another key."),
        r.DPOP_NONCE_REQUIRED: proof("The DPoP proof lacks a current nonce.", Challenge.USE_DPOP_NONCE),
        r.PROOFS_UNAVAILABLE: unavailable("The DPoP proof cannot be verified at the moment."),
        r.CERTIFICATE_MISSING: certificate("A client certificate is required."),
        r.CERTIFICATE_MALFORMED: certificate("The client certificate cannot be read."),
        r.CERTIFICATE_EXPIRED: certificate("The client certificate is not valid at this time."),
        r.CERTIFICATE_UNTRUSTED: certificate("The client certificate is not accepted here."),
        r.CERTIFICATE_MISMATCH: certificate("The token is bound to another client certificate."),
        r.SCOPE_INSUFFICIENT: ReasonRow(403, 7, scope, "Forbidden", "The token lacks a required scope."),
        r.ROLE_MISSING: ReasonRow(403, 7, none, "Forbidden", "The caller lacks a required role."),
        r.COST_MALFORMED: request(400, "What the request costs is not stated as a number that is accepted."),
        r.LIMIT_EXCEEDED: ReasonRow(429, 8, none, "Too many requests", "A rate limit was exceeded."),
        r.LIMITS_UNAVAILABLE: unavailable("Rate limits cannot be checked at the moment."),
        r.DEADLINE_EXCEEDED: unavailable("The request could not be decided in time."),
        r.OVERLOADED: unavailable("Too many requests are being decided at the moment."),
        r.SHUTTING_DOWN: unavailable("The service is shutting down."),
        r.INTERNAL: ReasonRow(500, 13, none, "Internal error", "The request could not be decided."),
    }


REASONS: dict[DenyReason, ReasonRow] = _rows()


class Decision(Struct, eq=False, gc=False):
    """One answer, with all that the adapter, the metrics and the audit event need of it. Never changed once built.

    Attributes:
        reason: None when allowed: there is no way to build an allowed decision that carries a reason.
        as_error: Denied because a dependency failed, under a policy that says `error`: Envoy decides (error_response).
        rule: The rule that matched, None if none did.
        principal: Who was proved, None for anonymous rules and before authentication.
        limits: The limits that were charged, in the rule's order, each with its outcome.
        degraded: A limit was not enforced by Redis (policy `local` or `allow`).
        generation: The policy's generation that decided.
        parameters: What the rule's path parameters stand for.
        reservation: The name of what the decision holds until it is settled (reservations.py), "" for nothing.
        shadowed: Shadow limits that would have denied.
        warned: Limits above their soft threshold.
        retry_after_us: Of a denial that no limit of the rule explains: after which time to try again, 0 where unsaid.
    """

    reason: DenyReason | None
    rule: Rule | None
    principal: Principal | None
    limits: tuple[LimitOutcome, ...]
    generation: int
    parameters: Mapping[str, str] = NO_PARAMETERS
    as_error: bool = False
    degraded: bool = False
    reservation: str = ""
    shadowed: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()
    retry_after_us: int = 0
    detail: str = ""
    """For the operator's eyes (audit, explain): which claim, which scope. Never sent to a client, holds no secret."""

    @property
    def allowed(self) -> bool:
        """Whether the request may pass."""
        return self.reason is None
