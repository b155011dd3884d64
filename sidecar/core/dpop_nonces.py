"""Nonces for DPoP proofs (RFC 9449 section 8): stateless, so that every sidecar with the same keys accepts them.

A nonce is the number of a period and a MAC over it. Whoever has a nonce of the period that is current, or of those on
either side (clocks differ, and a client may have fetched it just before the period ended), has asked us lately.
"""

from __future__ import annotations

import enum
import hmac
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.core import base64url

if TYPE_CHECKING:
    from sidecar.core.secret import Secret

KEYS_MAX = 4
"""The one that signs, and those that still verify while all sidecars get to know it."""

_PERIOD_BYTES = 4
_MAC_BYTES = 20
_CHARS = (_PERIOD_BYTES + _MAC_BYTES) * 4 // 3
_LABEL = b"sidecar DPoP nonce"
_US_PER_S = 1_000_000


class Freshness(enum.Enum):
    """What a nonce is worth."""

    CURRENT = "current"
    ENDING = "ending"
    """Accepted; the client is offered the next one."""
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Nonces:
    """Makes and judges nonces.

    Attributes:
        keys: The first one signs, each of them verifies.
        period_s: A nonce is accepted for one to two of these.
    """

    keys: tuple[Secret, ...]
    period_s: int

    def __post_init__(self) -> None:
        if not 1 <= len(self.keys) <= KEYS_MAX or not all(self.keys):
            raise ValueError(f"there must be 1 to {KEYS_MAX} keys, none of them empty")

    def current(self, now_us: int) -> str:
        """The nonce to offer now."""
        period = self._period(now_us).to_bytes(_PERIOD_BYTES, "big")
        return urlsafe_b64encode(period + _mac(self.keys[0], period)).decode("ascii")

    def judge(self, nonce: str, now_us: int) -> Freshness:
        """Whether a nonce is one of ours, and of these days."""
        if len(nonce) != _CHARS or not nonce.isascii():
            return Freshness.REFUSED
        try:
            raw = base64url.decode(nonce.encode("ascii"))
        except base64url.Base64UrlError:
            return Freshness.REFUSED
        packed, mac = raw[:_PERIOD_BYTES], raw[_PERIOD_BYTES:]
        age = self._period(now_us) - int.from_bytes(packed, "big")
        if age not in {-1, 0, 1}:
            return Freshness.REFUSED
        signers = [key for key in self.keys if hmac.compare_digest(mac, _mac(key, packed))]
        if not signers:
            return Freshness.REFUSED
        return Freshness.ENDING if age == 1 or signers[0] != self.keys[0] else Freshness.CURRENT

    def _period(self, now_us: int) -> int:
        return now_us // (self.period_s * _US_PER_S)


def _mac(key: Secret, period: bytes) -> bytes:
    return hmac.digest(key.reveal().encode(), _LABEL + period, "sha256")[:_MAC_BYTES]
