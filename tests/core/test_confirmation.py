"""What tokens are bound to (`cnf`) is enforced wherever it is present, on every request."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import pytest

from sidecar.core.authn import by_bearer
from sidecar.core.certificates import CertificateSource, CertificateTrust
from sidecar.core.claims import Rejected
from sidecar.core.confirmation import Binding, Confirmation, confirm, confirmation_of
from sidecar.core.decision import DenyReason
from sidecar.core.dpop import DpopPolicy, NeedFirstUse
from sidecar.core.keys import parse_jwks
from sidecar.core.principal import Principal
from sidecar.core.token_cache import TokenCache
from tests.support.proofs import PROOF_KEY, bound_request, jkt, proof
from tests.support.tokens import NOW_US, b64, good_claims, issuer_policy, jwks, make_key

if TYPE_CHECKING:
    from sidecar.core.context import RequestContext

DER = b"\x30\x03\x02\x01\x07"
CERTIFICATE = f":{b64encode(DER).decode()}:"
DIGEST = b64(sha256(DER).digest())
TRUST = CertificateTrust(
    name="mesh",
    source=CertificateSource.CLIENT_CERT,
    proxies=(ip_network("10.0.0.0/8"),),
)
DPOP = DpopPolicy(algorithms=frozenset({"ES256"}))
BOTH = Binding(dpop=DPOP, certificates=TRUST)
KEY = make_key()
KEYS = parse_jwks(jwks(KEY))


class Keys:
    def keys(self, _issuer: object) -> Any:
        return KEYS


class Accepting:
    """A rule that accepts tokens of one issuer."""

    def __init__(self, binding: Binding | None) -> None:
        policy = issuer_policy(binding=binding)
        self.issuers = {policy.issuer: policy}
        self.token_bytes_max = policy.token_bytes_max


def request_with(authorization: str, **headers: str) -> RequestContext:
    return bound_request("", None, headers={"authorization": authorization} | headers, source_address="10.1.2.3")


def asked(
    binding: Binding | None, request: RequestContext, cache: TokenCache | None = None, findings: Any = None
) -> Any:
    kept = TokenCache() if cache is None else cache
    return by_bearer(Accepting(binding), request, kept, Keys(), NOW_US, findings or {})


@pytest.mark.parametrize(
    "cnf",
    [
        None,
        "x",
        [],
        {},
        {"jwk": {"kty": "EC"}},
        {"kid": "k1"},
        {"jku": "https://issuer.example/keys"},
        {"x5t": DIGEST},
        {"jkt": jkt(), "osc": {}},
        {"jkt": None},
        {"jkt": 7},
        {"jkt": ""},
        {"jkt": jkt() + "="},
        {"jkt": jkt()[:-1]},
        {"jkt": jkt() + "AAAA"},
        {"jkt": jkt()[:-1] + "B"},
        {"jkt": "é" * 43},
        {"x5t#S256": [DIGEST]},
        {"x5t#S256": "0" * 64},
        {"jkt": jkt(), "x5t#S256": "x"},
        {"JKT": jkt()},
    ],
)
def test_what_cannot_be_proved_is_refused(cnf: Any) -> None:
    """Unknown methods and malformed values refuse the token, with and without a proof, and whatever else is right."""
    claims = {"cnf": cnf}
    assert isinstance(confirmation_of(claims), Rejected)
    token = KEY.token(good_claims() | claims)
    for binding in (BOTH, None):
        for request in (
            request_with(f"Bearer {token}"),
            request_with(f"DPoP {token}", dpop=proof(token), **{"client-cert": CERTIFICATE}),
        ):
            result = asked(binding, request)
            assert isinstance(result, Rejected)
            assert result.reason is DenyReason.TOKEN_BINDING_UNSUPPORTED


def test_confirmations_are_read() -> None:
    """Either, or both; nothing where there is no `cnf`."""
    assert confirmation_of({}) is None
    both = confirmation_of({"cnf": {"jkt": jkt(), "x5t#S256": DIGEST}})
    assert isinstance(both, Confirmation)
    assert b64(both.thumbprint) == jkt()
    assert both.certificate == sha256(DER).digest()


def test_a_policy_without_binding_refuses_bound_tokens() -> None:
    """Where the policy does not say how it is proved, a bound token is no bearer token either."""
    for cnf in ({"jkt": jkt()}, {"x5t#S256": DIGEST}):
        token = KEY.token(cnf=cnf)
        for binding in (None, Binding()):
            for scheme in ("Bearer", "DPoP"):
                result = asked(binding, request_with(f"{scheme} {token}", dpop=proof(token)))
                assert isinstance(result, Rejected)
                assert result.reason in {DenyReason.TOKEN_BINDING_UNSUPPORTED, DenyReason.TOKEN_SCHEME_MISMATCH}


def test_the_scheme_tells_bound_tokens_from_others() -> None:
    """A token that is bound to a key must come as DPoP, and no other may (RFC 9449 sections 7.1 and 7.2)."""
    bound, free = KEY.token(cnf={"jkt": jkt()}), KEY.token()
    wrong = [
        request_with(f"Bearer {bound}", dpop=proof(bound)),
        request_with(f"bearer {bound}", dpop=proof(bound)),
        request_with(f"DPoP {free}", dpop=proof(free)),
        request_with(f"dpop {free}"),
    ]
    cache = TokenCache()
    for request in wrong * 2:  # the second time from the cache
        result = asked(BOTH, request, cache)
        assert isinstance(result, Rejected)
        assert result.reason is DenyReason.TOKEN_SCHEME_MISMATCH
    assert isinstance(asked(BOTH, request_with(f"dPoP {bound}", dpop=proof(bound)), cache), NeedFirstUse)
    assert isinstance(asked(BOTH, request_with(f"Bearer {free}"), cache), Principal)
    assert isinstance(asked(None, request_with(f"Bearer {free}"), cache), Principal)


def test_a_binding_is_never_cached() -> None:
    """A token whose proof was believed is refused without one, and with the same one, while it is in the cache."""
    token, cache = KEY.token(cnf={"jkt": jkt()}), TokenCache()
    good = request_with(f"DPoP {token}", dpop=proof(token))
    need = asked(BOTH, good, cache)
    assert isinstance(need, NeedFirstUse)
    assert isinstance(asked(BOTH, good, cache, {need.key: True}), Principal)
    assert cache.hits == 1
    outcomes = [
        asked(BOTH, request_with(f"DPoP {token}"), cache).reason,
        asked(BOTH, request_with(f"DPoP {token}", dpop=proof(token, make_key("ES256", None, 8))), cache).reason,
        asked(BOTH, good, cache, {need.key: False}).reason,
        asked(BOTH, good, cache, {need.key: None}).reason,
        asked(BOTH, request_with(f"Bearer {token}"), cache).reason,
    ]
    assert outcomes == [
        DenyReason.DPOP_PROOF_MISSING,
        DenyReason.DPOP_KEY_MISMATCH,
        DenyReason.DPOP_PROOF_REPLAYED,
        DenyReason.PROOFS_UNAVAILABLE,
        DenyReason.TOKEN_SCHEME_MISMATCH,
    ]
    assert isinstance(asked(BOTH, good, cache), NeedFirstUse)


def test_a_reload_that_requires_dpop_reaches_cached_tokens() -> None:
    """Unbound tokens that were good are refused once the issuer's policy asks for bound ones, and good again after."""
    token, cache = KEY.token(), TokenCache()
    bearer = request_with(f"Bearer {token}")
    strict = Binding(dpop=DPOP, require_dpop=True)
    reasons = [getattr(asked(binding, bearer, cache), "reason", None) for binding in (None, strict, BOTH, strict)]
    assert reasons == [None, DenyReason.TOKEN_UNBOUND, None, DenyReason.TOKEN_UNBOUND]


def test_certificates_are_compared() -> None:
    """The very certificate, from where the policy trusts it to be (RFC 8705 section 3)."""
    token = KEY.token(cnf={"x5t#S256": DIGEST})
    other = f":{b64encode(DER + b'x').decode()}:"
    cases = {
        CERTIFICATE: None,
        other: DenyReason.CERTIFICATE_MISMATCH,
        "": DenyReason.CERTIFICATE_MISSING,
        "nonsense": DenyReason.CERTIFICATE_MALFORMED,
    }
    cache = TokenCache()
    for shown, reason in [*cases.items(), *cases.items()]:
        result = asked(BOTH, request_with(f"Bearer {token}", **{"client-cert": shown}), cache)
        assert getattr(result, "reason", None) is reason
    as_dpop = asked(BOTH, request_with(f"DPoP {token}", **{"client-cert": CERTIFICATE}), cache)
    assert as_dpop.reason is DenyReason.TOKEN_SCHEME_MISMATCH


def test_both_bindings_need_both() -> None:
    """Neither the proof nor the certificate alone is enough."""
    token = KEY.token(cnf={"jkt": jkt(), "x5t#S256": DIGEST})
    shown = {"client-cert": CERTIFICATE}
    whole = request_with(f"DPoP {token}", dpop=proof(token), **shown)
    assert isinstance(asked(BOTH, whole), NeedFirstUse)
    no_certificate = asked(BOTH, request_with(f"DPoP {token}", dpop=proof(token)))
    no_proof = asked(BOTH, request_with(f"DPoP {token}", **shown))
    assert no_certificate.reason is DenyReason.CERTIFICATE_MISSING
    assert no_proof.reason is DenyReason.DPOP_PROOF_MISSING


def test_required_dpop_takes_no_certificate_instead() -> None:
    """A token that is bound to a certificate alone is refused where DPoP is required, by issuer or rule."""
    claims = {"cnf": {"x5t#S256": DIGEST}}
    request = request_with("Bearer t", **{"client-cert": CERTIFICATE})
    for binding, by_rule in ((Binding(dpop=DPOP, certificates=TRUST, require_dpop=True), False), (BOTH, True)):
        result = confirm(claims, "t", binding, request, {}, NOW_US, require_dpop=by_rule)
        assert isinstance(result, Rejected)
        assert result.reason is DenyReason.TOKEN_UNBOUND


def test_malformed_authorization_is_no_dpop_token() -> None:
    """Nothing after the scheme, two spaces, two headers."""
    token = KEY.token(cnf={"jkt": jkt()})
    for text in ("DPoP", "DPoP ", f"DPoP  {token}", f"DPoP\t{token}", f"DPoP {token},DPoP {token}", f"DPoP{token}"):
        result = asked(BOTH, request_with(text, dpop=proof(token)))
        assert isinstance(result, Rejected)
        assert result.reason.value.startswith("credential_")
    twice = bound_request(token, proof(token), repeated=frozenset({"authorization"}))
    assert asked(BOTH, twice).reason is DenyReason.CREDENTIAL_REPEATED
    assert PROOF_KEY.alg == "ES256"
