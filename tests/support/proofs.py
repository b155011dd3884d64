"""DPoP proofs, good ones and any other, and requests that carry them."""

from __future__ import annotations

import itertools
import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from sidecar.core.context import RequestContext
from tests.support.tokens import NOW_S, b64, make_key

if TYPE_CHECKING:
    from tests.support.tokens import SigningKey

URL = "https://api.example.com/orders/7"
PROOF_KEY = make_key("ES256", None, 7)
_numbers = itertools.count()


def public_jwk(key: SigningKey) -> dict[str, Any]:
    """The key as a proof carries it: what RFC 7638 names, and nothing else."""
    return {name: value for name, value in key.jwk.items() if name in {"kty", "crv", "x", "y", "n", "e"}}


def thumbprint(key: SigningKey) -> bytes:
    """RFC 7638 section 3."""
    return sha256(json.dumps(public_jwk(key), separators=(",", ":"), sort_keys=True).encode()).digest()


def jkt(key: SigningKey = PROOF_KEY) -> str:
    return b64(thumbprint(key))


def proof(
    token: str,
    key: SigningKey = PROOF_KEY,
    *,
    header: dict[str, Any] | bytes | None = None,
    now_s: float = NOW_S,
    url: str = URL,
    **changes: Any,
) -> str:
    """A good proof for GET `url`; `header` and `changes` replace members, None removes one; bytes replace all."""
    head = {"typ": "dpop+jwt", "alg": key.alg, "jwk": public_jwk(key)}
    if not isinstance(header, bytes):
        head = {name: value for name, value in (head | (header or {})).items() if value is not None}
    claims = {
        "jti": f"proof-{next(_numbers)}",
        "htm": "GET",
        "htu": url,
        "iat": now_s,
        "ath": b64(sha256(token.encode()).digest()),
    } | changes
    claims = {name: value for name, value in claims.items() if value is not None}
    return key.token(claims, header if isinstance(header, bytes) else head)


def bound_request(token: str, shown: str | None, **changes: Any) -> RequestContext:
    """GET `URL` with the token under the scheme DPoP, and this text as its proof."""
    headers = {"authorization": f"DPoP {token}"} | ({} if shown is None else {"dpop": shown})
    values: dict[str, Any] = {
        "request_id": "",
        "method": "GET",
        "host": "api.example.com",
        "path": "/orders/7",
        "headers": headers,
        "scheme": "https",
    }
    return RequestContext(**(values | changes))
