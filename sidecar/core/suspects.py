"""Sources whose credentials were refused too often: what they show is only believed if it was proved before.

A source is an IPv4 address, or the /64 network of an IPv6 address, which is what one site has. While its budget of
failed authentications is used up, requests from it are let through with credentials that are known - cached tokens,
cached answers about opaque tokens, API keys whose records are held - and all others are answered 429 before anything is
verified, fetched or asked. So guessing is slow, and those who share an address with whoever guesses (NAT) keep working,
as long as they have worked lately.

Times are integer microseconds since the epoch.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from sidecar.core.api_keys import NeedApiKey
from sidecar.core.claims import Rejected
from sidecar.core.decision import DenyReason
from sidecar.core.dpop import NeedFirstUse

if TYPE_CHECKING:
    from sidecar.core.methods import Findings, Need

SUSPECTS_MAX: Final = 16_384
"""Sources that are remembered, about 0.2 KiB each; of more, the one that was added first is forgotten."""

SOURCES_KEPT_MAX: Final = 4_096
"""Addresses whose source is kept: 0.1 us instead of 4."""

IPV6_PREFIX_BITS: Final = 64

KNOWN_ALONE: Final[Findings] = MappingProxyType({})
"""Findings of a request for which nothing may be verified, fetched or asked: known by its identity."""

FAILED: Final = frozenset(
    {
        DenyReason.CREDENTIAL_MALFORMED,
        DenyReason.TOKEN_MALFORMED,
        DenyReason.TOKEN_HEADER_REFUSED,
        DenyReason.TOKEN_ALGORITHM_REFUSED,
        DenyReason.TOKEN_TYPE_REFUSED,
        DenyReason.TOKEN_ISSUER_UNKNOWN,
        DenyReason.TOKEN_KEY_UNKNOWN,
        DenyReason.TOKEN_SIGNATURE_INVALID,
        DenyReason.TOKEN_CLAIM_INVALID,
        DenyReason.TOKEN_INACTIVE,
        DenyReason.DPOP_PROOF_INVALID,
        DenyReason.DPOP_PROOF_REPLAYED,
        DenyReason.API_KEY_MALFORMED,
        DenyReason.API_KEY_INVALID,
    }
)
"""What counts as a failed authentication: nobody was proved, by a fault that a client which works has never.

Not among them: that no credential was shown, that one has expired, was revoked or is for another audience or place (its
holder was proved once), and all that is the fault of a dependency.
"""


class Suspects:
    """The sources whose budget is used up, each until when.

    Attributes:
        active: Whether there are any.
        evicted_total: Sources forgotten for want of room.
    """

    def __init__(self, suspects_max: int = SUSPECTS_MAX) -> None:
        self._until_us: dict[str, int] = {}
        self._suspects_max = suspects_max
        self.active = False
        self.evicted_total = 0

    def __len__(self) -> int:
        return len(self._until_us)

    def wait_us(self, address: str, now_us: int) -> int:
        """How long the source of an address is suspected yet; 0: it is not."""
        until_us = self._until_us.get(source_of(address), 0)
        return max(0, until_us - now_us)

    def add(self, source: str, until_us: int) -> None:
        """Suspect a source; never for less long than before."""
        known_us = self._until_us.pop(source, 0)
        if len(self._until_us) >= self._suspects_max:
            del self._until_us[next(iter(self._until_us))]
            self.evicted_total += 1
        self._until_us[source] = max(known_us, until_us)
        self.active = True

    def expire(self, now_us: int) -> None:
        """Forget those whose time is over."""
        self._until_us = {source: until_us for source, until_us in self._until_us.items() if until_us > now_us}
        self.active = bool(self._until_us)


NO_SUSPECTS: Final = Suspects()
"""Of a policy without such a budget; never added to."""


@lru_cache(maxsize=SOURCES_KEPT_MAX)
def source_of(address: str) -> str:
    """What shares a budget: an IPv4 address, an IPv6 network; "" for what is no address, which has no budget."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    bits = int(parsed) >> (128 - IPV6_PREFIX_BITS) << (128 - IPV6_PREFIX_BITS)
    return f"{ipaddress.IPv6Address(bits)}/{IPV6_PREFIX_BITS}"


def is_answered_as_usual(found: Need | Rejected) -> bool:
    """Whether it goes on for a suspect as for anybody.

    So it does where no credential, or more than one, was shown; where a token that is known came with a good DPoP
    proof, of which only its first use is left to be noted; and where the record of an API key that was proved is to be
    looked up anew, since what has changed of it counts for suspects too.
    """
    if isinstance(found, NeedApiKey):
        return found.proved
    return isinstance(found, NeedFirstUse) or (isinstance(found, Rejected) and found.reason in _NOT_SHOWN)


TOO_OFTEN: Final = Rejected(
    DenyReason.AUTHENTICATIONS_FAILED_TOO_OFTEN, "the source's budget of failed authentications is used up"
)

_NOT_SHOWN: Final = (DenyReason.CREDENTIAL_MISSING, DenyReason.CREDENTIAL_REPEATED)
