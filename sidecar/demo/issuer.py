"""An OIDC issuer with freshly made keys: discovery and JWKS over HTTP, tokens minted in process."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from sidecar.demo.httpd import HttpServer, Request, Response

RSA_BITS = 2048
TOKEN_SECONDS = 3600


class DemoIssuer:
    """Signs tokens with an RSA or an EC key and publishes both."""

    def __init__(self, port: int = 0) -> None:
        self._rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)
        self._ec_key = ec.generate_private_key(ec.SECP256R1())
        self._server = HttpServer(self._answer, port)

    def start(self) -> Self:
        """Serve discovery and keys."""
        self._server.start()
        return self

    def stop(self) -> None:
        """Stop serving."""
        self._server.stop()

    @property
    def url(self) -> str:
        """The issuer identifier."""
        return f"http://127.0.0.1:{self._server.port}"

    def jwks(self) -> dict[str, object]:
        """The public keys (RFC 7517)."""
        rsa_key = RSAAlgorithm.to_jwk(self._rsa_key.public_key(), as_dict=True)
        ec_key = ECAlgorithm.to_jwk(self._ec_key.public_key(), as_dict=True)
        return {
            "keys": [
                {**rsa_key, "kid": "demo-RS256", "use": "sig", "alg": "RS256"},
                {**ec_key, "kid": "demo-ES256", "use": "sig", "alg": "ES256"},
            ]
        }

    def token(
        self,
        claims: Mapping[str, object] | None = None,
        *,
        algorithm: str = "RS256",
        expires_in_s: int = TOKEN_SECONDS,
        header: Mapping[str, object] | None = None,
    ) -> str:
        """A signed token for alice with `orders:read`, changed by `claims` (None removes a claim)."""
        now = int(time.time())
        payload: dict[str, object] = {
            "iss": self.url,
            "sub": "alice",
            "aud": "orders-api",
            "scope": "orders:read",
            "iat": min(now, now + expires_in_s - 1),
            "exp": now + expires_in_s,
            **(claims or {}),
        }
        payload = {name: value for name, value in payload.items() if value is not None}
        headers: dict[str, object] = {"kid": f"demo-{algorithm}", **(header or {})}
        key = self._rsa_key if algorithm == "RS256" else self._ec_key
        return jwt.encode(payload, key, algorithm=algorithm, headers=headers)

    async def _answer(self, request: Request) -> Response:
        documents: dict[str, object] = {
            "/.well-known/openid-configuration": {"issuer": self.url, "jwks_uri": f"{self.url}/keys"},
            "/keys": self.jwks(),
        }
        document = documents.get(request.target)
        return Response(404, b"{}\n") if document is None else Response(200, json.dumps(document).encode())


def tampered(token: str) -> str:
    """The token with another subject under the old signature."""
    header, payload, signature = token.split(".")
    claims = json.loads(jwt.utils.base64url_decode(payload))
    forged = jwt.utils.base64url_encode(json.dumps({**claims, "sub": "admin"}).encode()).decode()
    return f"{header}.{forged}.{signature}"
