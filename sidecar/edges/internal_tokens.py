"""Signs internal tokens, keeps them for callers that come again, and publishes the keys that verify them.

A new token costs 55 us, mostly the signature, and a kept one 0.3 us (bench/internal_tokens.py): a principal's token is
used again until half of its lifetime is over, and to its end where it ends with the caller's own credential.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import msgspec

from sidecar.core import base64url
from sidecar.core.internal_tokens import InternalTokenError, claims_of, expiry_s
from sidecar.core.limits import US_PER_S
from sidecar.edges.admin import Answer, json_answer
from sidecar.edges.log import get_log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sidecar.core.decision import Decision
    from sidecar.core.internal_tokens import InternalTokens
    from sidecar.core.principal import Principal
    from sidecar.edges.admin import Route

JWKS_PATH: Final = "/.well-known/jwks.json"
JWKS_MAX_AGE_S: Final = 300
"""How long upstreams may keep the published keys (RFC 9111 section 5.2.2.1)."""

PUBLISH_AHEAD_US: Final = 2 * JWKS_MAX_AGE_S * US_PER_S
"""A key that is first seen less than this before it signs is warned of: an upstream may not know it yet."""

ENTRIES_MAX: Final = 10_000
"""Tokens that are kept, as many as verified ones."""
BYTES_MAX: Final = 32 * 1024 * 1024
"""Of all tokens that are kept."""
TOKEN_BYTES_MAX: Final = 16 * 1024
"""Envoy's own limit on all headers together is 60 KiB; a longer token is not made, and its request is denied."""

ID_BYTES: Final = 16
"""Of `jti`: 128 random bits."""

_log = get_log("internal_tokens")


class _Kept:
    """A token that was made, and the times from which and until which it is used."""

    __slots__ = ("made_us", "renew_us", "token")

    def __init__(self, token: str, made_us: int, renew_us: int) -> None:
        self.token = token
        self.made_us = made_us
        self.renew_us = renew_us


class InternalTokenSigner:
    """Makes tokens as the current policy says.

    Args:
        tokens: How; None: the policy has no such section.
        entries_max, bytes_max: Bounds on what is kept.

    Attributes:
        signed, hits: Tokens that were made, and uses of kept ones, since the start.
        size_bytes: Of all kept tokens.
    """

    def __init__(
        self, tokens: InternalTokens | None, *, entries_max: int = ENTRIES_MAX, bytes_max: int = BYTES_MAX
    ) -> None:
        self.signed = 0
        self.hits = 0
        self.size_bytes = 0
        self._tokens = tokens
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._kept: OrderedDict[tuple[Principal, tuple[str, ...]], _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def replace(self, tokens: InternalTokens | None, now_us: int) -> None:
        """Go on with another policy's tokens; what the old one made is kept if the new one would make the same."""
        before, self._tokens = self._tokens, tokens
        if before is None or tokens is None or not tokens.makes_the_same(before):
            self._kept.clear()
            self.size_bytes = 0
        if before is not None and tokens is not None:
            known = {key.kid for key in before.keys}
            for key in tokens.keys:
                if key.kid not in known and key.signs_from_us < now_us + PUBLISH_AHEAD_US:
                    _log.warning("internal_key_published_late", kid=key.kid, ahead_s_min=PUBLISH_AHEAD_US // US_PER_S)

    def sign(self, principal: Principal, now_us: int, audiences: tuple[str, ...] = ()) -> str:
        """The token that says who was proved.

        Args:
            principal: Who; the same object each time that the same credential was proved, as the caches return it.
            now_us: Microseconds since the epoch.
            audiences: The rule's own; the policy's where it is empty.

        Raises:
            InternalTokenError: No token can be made: the request must be denied.
        """
        place = (principal, audiences)
        kept = self._kept.get(place)
        if kept is not None and kept.made_us <= now_us < kept.renew_us:
            self.hits += 1
            self._kept.move_to_end(place)
            return kept.token
        made = self._make(principal, audiences, now_us)
        self._keep(place, made)
        return made.token

    def token_for(self, decision: Decision, now_us: int) -> str:
        """What replaces the credential of an allowed decision; "" where nothing does.

        Raises:
            InternalTokenError: As `sign`.
        """
        rule, principal = decision.rule, decision.principal
        if decision.reason is not None or rule is None or principal is None or not rule.token_header:
            return ""
        return self.sign(principal, now_us, rule.token_audiences)

    def jwks(self, now_us: int) -> dict[str, list[Mapping[str, str]]] | None:
        """The published keys as a JWK set (RFC 7517 section 5); None where the policy has no such section."""
        return None if self._tokens is None else {"keys": [key.jwk for key in self._tokens.published(now_us)]}

    def detail(self, now_us: int) -> dict[str, object]:
        """What an operator wants to know, for `/readyz`: which key signs, and which are published."""
        tokens = self._tokens
        if tokens is None:
            return {"used": False}
        signing = tokens.signing(now_us)
        return {
            "signing": signing.kid,
            "signing_for_s": self.signing_for_s(now_us),
            "published": [key.kid for key in tokens.published(now_us)],
        }

    def signing_for_s(self, now_us: int) -> int:
        """For how long the key that signs has been the one, in seconds."""
        return 0 if self._tokens is None else max(0, now_us - self._tokens.signing(now_us).signs_from_us) // US_PER_S

    def _make(self, principal: Principal, audiences: tuple[str, ...], now_us: int) -> _Kept:
        tokens = self._tokens
        if tokens is None:
            raise InternalTokenError("the policy has no internal_tokens section")
        key = tokens.signing(now_us)
        now_s = now_us // US_PER_S
        expires_s = expiry_s(tokens, principal, now_s)
        jti = base64url.encode(os.urandom(ID_BYTES))
        claims = claims_of(tokens, principal, audiences, now_s, expires_s, jti)
        try:
            head = msgspec.json.encode({"alg": key.algorithm, "typ": tokens.token_type, "kid": key.kid})
            signing_input = f"{base64url.encode(head)}.{base64url.encode(msgspec.json.encode(claims))}"
        except (UnicodeEncodeError, TypeError, ValueError, RecursionError):
            raise InternalTokenError("a claim cannot be written as JSON") from None
        token = f"{signing_input}.{base64url.encode(key.sign(signing_input.encode('ascii')))}"
        if len(token) > TOKEN_BYTES_MAX:
            raise InternalTokenError(f"the token would have more than {TOKEN_BYTES_MAX} bytes")
        self.signed += 1
        ends_with_credential = expires_s < now_s + tokens.lifetime_s  # a new one would live no longer
        renew_us = expires_s * US_PER_S if ends_with_credential else now_us + tokens.lifetime_s * US_PER_S // 2
        return _Kept(token, now_us, max(renew_us, now_us + US_PER_S))

    def _keep(self, place: tuple[Principal, tuple[str, ...]], made: _Kept) -> None:
        replaced = self._kept.pop(place, None)
        if replaced is not None:
            self.size_bytes -= len(replaced.token)
        self._kept[place] = made
        self.size_bytes += len(made.token)
        while len(self._kept) > self._entries_max or self.size_bytes > self._bytes_max:
            _, evicted = self._kept.popitem(last=False)
            self.size_bytes -= len(evicted.token)


def jwks_route(signer: InternalTokenSigner, now_us: Callable[[], int]) -> Route:
    """`/.well-known/jwks.json`; 404 where the policy has no such section."""

    async def jwks(_headers: Mapping[str, str]) -> Answer:
        return jwks_answer(signer.jwks(now_us()))

    return jwks


def jwks_answer(keys: Mapping[str, Sequence[object]] | None) -> Answer:
    """The key set with the time for which it may be kept."""
    if keys is None:
        return json_answer({"error": "the policy has no internal_tokens section"}, 404)
    body = msgspec.json.encode(keys) + b"\n"
    return Answer(200, body, "application/jwk-set+json", f"public, max-age={JWKS_MAX_AGE_S}")
