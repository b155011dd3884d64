"""What people may say when they revoke, and what it means: shared by the command and the admin listener."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sidecar.core.limits import US_PER_S
from sidecar.core.revocation import NAME_CHARS_MAX, NEVER_US, Kind, Revocation
from sidecar.policy.durations import parse as parse_duration
from sidecar.policy.faults import Wrong, did_you_mean

if TYPE_CHECKING:
    from sidecar.policy.compile import CompiledDocument

SECTIONS: Final = ("issuers", "introspection", "api_keys", "certificates")
"""Whose names a revocation may name."""

_ENDING: Final = (Kind.TOKEN, Kind.SUBJECT, Kind.SESSION)
"""End after `revocation.lifetime`: a token that expires by itself needs no longer. A key that is not trusted any more
signs tokens of any lifetime, and a credential may live for years."""


class TermError(ValueError):
    """What is said cannot be done; the text says why, and what is accepted."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What may be named.

    Attributes:
        issuers: The policy's names of issuers, introspections, keyrings and trusts.
        lifetime_us: `revocation.lifetime`.
    """

    issuers: frozenset[str]
    lifetime_us: int

    @classmethod
    def of(cls, document: CompiledDocument) -> Terms:
        """By a policy.

        Raises:
            TermError: It has no section `revocation`.
        """
        settings = document.settings.revocation
        if settings is None:
            raise TermError("the policy has no section revocation: nothing would obey")
        written: dict[str, Any] = msgspec.json.decode(document.written)
        named = (written.get(section) or {} for section in SECTIONS)
        return cls(frozenset(name for section in named for name in section), settings.lifetime_us)

    def named(self, kind: str, issuer: str, name: str) -> tuple[Kind, str, str]:
        """What an entry is about.

        Raises:
            TermError: There is no such kind or issuer, or the name cannot be one.
        """
        try:
            found = Kind(kind)
        except ValueError:
            raise TermError(f"{kind[:32]!r} is no kind of revocation; {', '.join(Kind)} are") from None
        if issuer not in self.issuers:
            accepted = did_you_mean(issuer, self.issuers, "issuers")
            raise TermError(f"the policy has no issuer, introspection, keyring or trust {issuer[:64]!r}; {accepted}")
        if not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
            raise TermError(f"what is revoked is named by 1 to {NAME_CHARS_MAX} printable characters")
        return found, issuer, name

    def revocation(self, kind: str, issuer: str, name: str, before: str | None, lasting: str | None) -> Revocation:
        """An entry; `before` and `lasting` as people write them.

        Raises:
            TermError: As `named`; or a time cannot be read.
        """
        found, issuer, name = self.named(kind, issuer, name)
        now_us = time.time_ns() // 1000
        if before is not None and found is not Kind.SUBJECT:
            raise TermError("only a subject is revoked before a time")
        until_us = NEVER_US
        if lasting is not None:
            until_us = now_us + _duration(lasting)
        elif found in _ENDING:
            until_us = now_us + self.lifetime_us
        before_us = 0
        if found is Kind.SUBJECT:
            before_us = now_us if before is None else _time(before)
            if before_us > now_us + self.lifetime_us:
                raise TermError("the time before which tokens are revoked is further ahead than revocation.lifetime")
        return Revocation(found, issuer, name, before_us, until_us)


def _duration(text: str) -> int:
    try:
        return parse_duration(text)
    except Wrong as wrong:
        raise TermError(f"how long it lasts: {wrong}") from None


def _time(text: str) -> int:
    """Seconds since the epoch, or RFC 3339."""
    if text.isascii() and text.isdigit() and len(text) <= len("9999999999"):
        return int(text) * US_PER_S
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise TermError(f"{text[:40]!r} is no time; 2026-12-01T06:00:00Z is, and seconds since the epoch") from None
    if moment.tzinfo is None:
        raise TermError(f"{text[:40]!r} does not say its zone; end it in Z for UTC")
    return int(moment.astimezone(UTC).timestamp()) * US_PER_S
