"""A client's own JWT, which proves to an authorization server who asks (RFC 7523 section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import json

from sidecar.core import base64url
from sidecar.core.private_keys import read_private_key

if TYPE_CHECKING:
    from collections.abc import Mapping

LIFETIME_S = 60
"""From `iat` to `exp`: it is used at once, and clocks differ."""


class Signer:
    """Signs assertions with a private key.

    Args:
        pem: The key; see `private_keys.read_private_key`.

    Raises:
        KeyFileError: It is none that can be used.
    """

    __slots__ = ("_key",)

    def __init__(self, pem: bytes) -> None:
        self._key = read_private_key(pem)

    @property
    def algorithm(self) -> str:
        """`alg` (RFC 7518 section 3.1)."""
        return self._key.algorithm

    def assertion(self, client_id: str, audience: str, key_id: str | None, jti: str, now_s: int) -> str:
        """A JWT for one use, which `jti` names: nobody can guess it, and it never comes again."""
        header = {"alg": self._key.algorithm, "typ": "JWT"} | ({} if key_id is None else {"kid": key_id})
        claims = {
            "iss": client_id,
            "sub": client_id,
            "aud": audience,
            "jti": jti,
            "iat": now_s,
            "exp": now_s + LIFETIME_S,
        }
        signing_input = f"{_segment(header)}.{_segment(claims)}"
        return f"{signing_input}.{base64url.encode(self._key.sign(signing_input.encode()))}"


def _segment(members: Mapping[str, object]) -> str:
    return base64url.encode(json.encode(members))
