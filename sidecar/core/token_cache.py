"""Verified tokens, so that a token's signature is verified once and not once a request.

The key is the SHA-256 digest of the token as sent: `token.parse` lets each token be spelled in one way only. What was
proved once stays proved only under the same issuer policy and while the key that proved it is still published
(`CachedToken.holds`), and within the token's dates (`begins_us`, `expires_us`): the caller asks both on every hit.
Refusals are not kept: whoever sends garbage would choose what fills the cache.
Tokens longer than `TOKEN_BYTES_MAX`, which an issuer's policy may accept, are verified anew each time.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import sha256
from typing import TYPE_CHECKING

from sidecar.core.claims import valid_within_us
from sidecar.core.confirmation import is_bound
from sidecar.core.issuer import TOKEN_BYTES_MAX

if TYPE_CHECKING:
    from sidecar.core.issuer import IssuerPolicy
    from sidecar.core.keys import KeySet, VerificationKey
    from sidecar.core.principal import Principal
    from sidecar.core.token import UnverifiedToken

ENTRIES_MAX = 10_000
BYTES_MAX = 64 * 1024 * 1024

ENTRY_BYTES = 1_500
"""What an entry takes besides its claims."""
CLAIM_BYTES_PER_TOKEN_BYTE = 3
"""Claims as Python objects, by the token's length: measured at 2 to 3 for usual tokens."""


class CachedToken:
    """What was proved about one token, and under which policy and keys.

    Attributes:
        begins_us, expires_us: `token.still_valid` is None from the one on and before the other, under `issuer`.
        bound: `confirmation.confirm` must be asked on each request: it is bound to a key or certificate, or has to be.
    """

    __slots__ = ("_keys", "begins_us", "bound", "cost_bytes", "expires_us", "issuer", "key", "principal")

    def __init__(
        self, issuer: IssuerPolicy, keys: KeySet, key: VerificationKey, principal: Principal, cost_bytes: int
    ) -> None:
        self.issuer = issuer
        self.begins_us, self.expires_us = valid_within_us(principal, issuer)
        self.bound = is_bound(principal.claims, issuer.binding)
        self.key = key
        self.principal = principal
        self.cost_bytes = cost_bytes
        self._keys = keys

    def holds(self, issuer: IssuerPolicy, keys: KeySet | None) -> bool:
        """Whether it would be verified the same way now, as far as the issuer's policy and keys decide.

        Identity answers nearly always; equality is asked once after each reload of the policy and each change of keys.
        """
        if keys is not self._keys:
            if keys is None or not keys.publishes(self.key):
                return False
            self._keys = keys
        if issuer is not self.issuer:
            if issuer != self.issuer:
                return False
            self.issuer = issuer
            self.begins_us, self.expires_us = valid_within_us(self.principal, issuer)
            self.bound = is_bound(self.principal.claims, issuer.binding)
        return True


class TokenCache:
    """The verified tokens that were used last, bounded by their number and by their estimated memory.

    Attributes:
        hits, misses, evictions: Counted since the start. An entry that no longer holds was still a hit.
        size_bytes: Estimated memory of all entries.
    """

    def __init__(self, entries_max: int = ENTRIES_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._entries: OrderedDict[bytes, CachedToken] = OrderedDict()
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, text: str) -> CachedToken | None:
        """The entry of a token as sent; before it is used, `CachedToken.holds` and its dates are asked."""
        digest = _digest(text) if len(text) <= TOKEN_BYTES_MAX else b""
        entry = self._entries.get(digest)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(digest)
        return entry

    def put(self, token: UnverifiedToken, issuer: IssuerPolicy, keys: KeySet, principal: Principal) -> None:
        """Remember what `token.verify` returned for these arguments, evicting what was not used for longest."""
        self.drop(token.text)
        key = keys.find(token.unverified_kid, token.unverified_alg)
        cost = ENTRY_BYTES + CLAIM_BYTES_PER_TOKEN_BYTE * len(token.text)
        if key is None or len(token.text) > TOKEN_BYTES_MAX or cost > self._bytes_max or self._entries_max == 0:
            return
        while len(self._entries) >= self._entries_max or self.size_bytes + cost > self._bytes_max:
            _, evicted = self._entries.popitem(last=False)
            self.size_bytes -= evicted.cost_bytes
            self.evictions += 1
        self._entries[_digest(token.text)] = CachedToken(issuer, keys, key, principal, cost)
        self.size_bytes += cost

    def drop(self, text: str) -> None:
        """Forget a token: it has expired, or no longer holds."""
        entry = self._entries.pop(_digest(text), None)
        if entry is not None:
            self.size_bytes -= entry.cost_bytes


def _digest(text: str) -> bytes:
    """Undecodable text (lone surrogates) has a digest too: it is simply never found."""
    return sha256(text.encode("utf-8", "surrogatepass")).digest()
