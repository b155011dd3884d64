"""What is held of credentials prints without them: a stray `repr` in a log line or a traceback gives nothing away."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.core import token as tokens
from sidecar.core.api_key_format import key_digest
from sidecar.core.api_key_records import Peppers
from sidecar.core.api_keys import Keyring, NeedApiKey
from sidecar.core.context import RequestContext
from sidecar.core.dpop import DpopPolicy, NeedFirstUse, prove
from sidecar.core.introspection import NeedIntrospection, token_key
from sidecar.core.keys import parse_jwks
from sidecar.core.secret import Secret
from sidecar.core.token_cache import TokenCache
from tests.support.introspection import introspection_policy
from tests.support.proofs import PROOF_KEY, bound_request, proof, thumbprint
from tests.support.secrecy import leaks
from tests.support.tokens import NOW_US, issuer_policy, jwks, make_key

KEY = make_key("ES256")
TOKEN = KEY.token()
PROOF = proof(TOKEN)
API_KEY = "acme_live_0123456789ab_s3cretS3cretS3cretS3cretS3cABCDEF"
OPAQUE = "opaque-ooch2Ohphoo8aiRah9aish7e"
PEPPER = b"pepper-Ahph7shie4ooceeYohro0aiBei"
SECRETS = {"token": TOKEN, "proof": PROOF, "API key": API_KEY, "opaque token": OPAQUE, "pepper": PEPPER.decode()}


def parsed() -> tokens.UnverifiedToken:
    found = tokens.parse(TOKEN)
    assert isinstance(found, tokens.UnverifiedToken)
    return found


def cached() -> Any:
    cache, keys, token = TokenCache(), parse_jwks(jwks(KEY)), parsed()
    principal = tokens.verify(token, issuer_policy(), keys, NOW_US)
    cache.put(token, issuer_policy(), keys, principal)
    return [cache, cache.get(TOKEN), principal, keys]


def first_use() -> NeedFirstUse:
    dpop = DpopPolicy(algorithms=frozenset({"ES256"}), origin="https://api.example.com")
    found = prove(TOKEN, thumbprint(PROOF_KEY), dpop, bound_request(TOKEN, PROOF), {}, NOW_US)
    assert isinstance(found, NeedFirstUse)
    return found


def request_of_all() -> RequestContext:
    headers = {
        "authorization": f"DPoP {TOKEN}",
        "dpop": PROOF,
        "x-api-key": API_KEY,
        "cookie": f"session={OPAQUE}",
    }
    return RequestContext("17", "GET", "api.example.com", "/orders", headers, query=f"access_token={OPAQUE}")


POLICY = introspection_policy()
PEPPERS = Peppers({1: PEPPER})
HELD: dict[str, Any] = {
    "a request": request_of_all,
    "a parsed token": parsed,
    "a cached token": cached,
    "a proof's first use": first_use,
    "a question for an endpoint": lambda: NeedIntrospection(POLICY, token_key(POLICY, OPAQUE), OPAQUE),
    "a question for a key": lambda: NeedApiKey(Keyring(name="k", family="acme", peppers=PEPPERS), "0123456789ab"),
    "peppers": lambda: [PEPPERS, Keyring(name="k", family="acme", peppers=PEPPERS)],
    "a digest": lambda: key_digest(API_KEY),
    "secrets": lambda: [Secret(OPAQUE), {"x": Secret(API_KEY)}],
}


@pytest.mark.parametrize("held", HELD.values(), ids=HELD.keys())
def test_nothing_that_holds_a_credential_shows_it(held: Any) -> None:
    """Neither `repr`, nor `str`, nor formatting."""
    it = held()
    assert leaks({"repr": repr(it).encode(), "str": str(it).encode(), "format": f"{it}".encode()}, SECRETS) == []
