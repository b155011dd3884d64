"""What is not believed any more although it was proved: the set of revocations, asked about every principal.

Nothing is looked up while nothing is revoked: callers look at `Revocations.active`, a plain attribute, before they
call `fault`, which looks into a few dictionaries however many entries there are (0.2 to 0.35 us with 100,000).

Names of issuers, keyrings and trusts are one space here: whoever names two of them alike revokes in both. A subject is
revoked *before* a time: tokens whose `iat` is earlier, or that have none, are refused.

How the set comes to every sidecar is the business of edges/revocations.py. All times are integer microseconds since the
epoch.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.core.claims import Rejected
from sidecar.core.decision import DenyReason

if TYPE_CHECKING:
    from sidecar.core.principal import Principal

REVOCATIONS_MAX: Final = 100_000
"""Entries in force at a time: 15 MiB in each sidecar with names as long as UUIDs."""

NAME_CHARS_MAX: Final = 256
"""Of a `jti`, `sub`, `sid`, `kid` or key id: what is longer cannot be named in a revocation."""

NEVER_US: Final = 2**53 - 1
"""As the end of an entry: it stays until it is undone. Doubles, which Redis scores are, hold it exactly."""

_US_PER_S: Final = 1_000_000


class Kind(enum.StrEnum):
    """What an entry is about."""

    TOKEN = "token"  # noqa: S105 - a kind, no secret
    """One token: its `jti` (RFC 7519 section 4.1.7)."""
    SUBJECT = "subject"
    """Tokens of a subject that were issued before a time."""
    SESSION = "session"
    """Tokens of a session: their `sid` (OpenID Connect Front-Channel Logout section 3)."""
    KEY = "key"
    """Tokens that a key signed: its `kid`."""
    CREDENTIAL = "credential"
    """An API key by its key id, or a certificate by its digest: `Principal.key_id`."""


class Revocation(NamedTuple):
    """One entry.

    Attributes:
        issuer: The policy's name of the issuer, introspection, keyring or trust.
        name: What is revoked: a `jti`, `sub`, `sid`, `kid` or key id.
        before_us: Of a subject: tokens issued before this. 0 for all other kinds.
        until_us: When the entry ends by itself.
    """

    kind: Kind
    issuer: str
    name: str
    before_us: int
    until_us: int


class _OfIssuer:
    """The entries of one issuer by their names: when each ends; of a subject, its time and when it ends."""

    __slots__ = ("credentials", "keys", "sessions", "subjects", "tokens")

    def __init__(self) -> None:
        self.tokens: dict[str, int] = {}
        self.sessions: dict[str, int] = {}
        self.keys: dict[str, int] = {}
        self.credentials: dict[str, int] = {}
        self.subjects: dict[str, tuple[int, int]] = {}

    def ends(self, kind: Kind) -> dict[str, int]:
        """When entries end, of all kinds but subjects."""
        match kind:
            case Kind.TOKEN:
                return self.tokens
            case Kind.SESSION:
                return self.sessions
            case Kind.KEY:
                return self.keys
            case _:
                return self.credentials

    def is_empty(self) -> bool:
        return not (self.tokens or self.sessions or self.keys or self.credentials or self.subjects)


_SIMPLE: Final = (Kind.TOKEN, Kind.SESSION, Kind.KEY, Kind.CREDENTIAL)


class Revocations:
    """The set, as far as this sidecar knows it.

    Attributes:
        active: Whether `fault` may find anything.
        known_until_us: While nothing newer is heard, the set counts as known until then; None: however old it is
            (`when_unknown: accept`).
        refused_total: Principals that were refused.
    """

    def __init__(self) -> None:
        self._issuers: dict[str, _OfIssuer] = {}
        self._count = 0
        self._known_until_us: int | None = None
        self.active = False
        self.refused_total = 0

    def __len__(self) -> int:
        return self._count

    @property
    def known_until_us(self) -> int | None:
        """See the class."""
        return self._known_until_us

    @known_until_us.setter
    def known_until_us(self, value: int | None) -> None:
        self._known_until_us = value
        self._look()

    def fault(self, principal: Principal, now_us: int) -> Rejected | None:
        """Why a principal, however proved, is not believed any more; None: it is.

        Call it for each principal and each time anew, also where the proof is remembered.
        """
        known_until_us = self._known_until_us
        if known_until_us is not None and now_us >= known_until_us:
            self.refused_total += 1
            return Rejected(DenyReason.REVOCATIONS_UNKNOWN, "what is revoked was not confirmed for too long")
        of = self._issuers.get(principal.issuer)
        if of is None:
            return None
        what = _revoked(of, principal, now_us)
        if what is None:
            return None
        self.refused_total += 1
        return Rejected(DenyReason.TOKEN_REVOKED, f"its {what} is revoked")

    def add(self, revocation: Revocation) -> None:
        """Put an entry in force, or give it other times."""
        kind, issuer, name, before_us, until_us = revocation
        of = self._issuers.setdefault(issuer, _OfIssuer())
        if kind is Kind.SUBJECT:
            self._count += name not in of.subjects
            of.subjects[name] = (before_us, until_us)
        else:
            ends = of.ends(kind)
            self._count += name not in ends
            ends[name] = until_us
        self._look()

    def remove(self, kind: Kind, issuer: str, name: str) -> None:
        """End an entry; nothing happens where there is none."""
        of = self._issuers.get(issuer)
        if of is None:
            return
        found = of.subjects.pop(name, None) if kind is Kind.SUBJECT else of.ends(kind).pop(name, None)
        self._count -= found is not None
        if of.is_empty():
            del self._issuers[issuer]
        self._look()

    def get(self, kind: Kind, issuer: str, name: str) -> Revocation | None:
        """The entry in force."""
        of = self._issuers.get(issuer)
        if of is None:
            return None
        if kind is Kind.SUBJECT:
            times = of.subjects.get(name)
            return None if times is None else Revocation(kind, issuer, name, *times)
        until_us = of.ends(kind).get(name)
        return None if until_us is None else Revocation(kind, issuer, name, 0, until_us)

    def become(self, other: Revocations) -> None:
        """Have the entries of another set, which is not used any more."""
        self._issuers, self._count = other._issuers, other._count
        self._look()

    def expire(self, now_us: int) -> None:
        """Drop what has ended: 13 ms for 100,000 entries."""
        for issuer, of in list(self._issuers.items()):
            for kind in _SIMPLE:
                ends = of.ends(kind)
                for name in [name for name, until_us in ends.items() if until_us <= now_us]:
                    del ends[name]
                    self._count -= 1
            for name in [name for name, (_, until_us) in of.subjects.items() if until_us <= now_us]:
                del of.subjects[name]
                self._count -= 1
            if of.is_empty():
                del self._issuers[issuer]
        self._look()

    def __iter__(self) -> Iterator[Revocation]:
        """All entries."""
        for issuer, of in self._issuers.items():
            for kind in _SIMPLE:
                for name, until_us in of.ends(kind).items():
                    yield Revocation(kind, issuer, name, 0, until_us)
            for name, times in of.subjects.items():
                yield Revocation(Kind.SUBJECT, issuer, name, *times)

    def _look(self) -> None:
        self.active = self._known_until_us is not None or self._count > 0


NO_REVOCATIONS: Final = Revocations()
"""Of a policy that does not ask for any; never added to."""


def _revoked(of: _OfIssuer, principal: Principal, now_us: int) -> Kind | None:
    """What of the principal is revoked. Claims of another type than text name nothing."""
    claims = principal.claims
    if of.tokens:
        token_id = claims.get("jti")
        if type(token_id) is str and of.tokens.get(token_id, 0) > now_us:
            return Kind.TOKEN
    if of.subjects:
        times = of.subjects.get(principal.subject)
        if times is not None and times[1] > now_us and _issued_us(principal) < times[0]:
            return Kind.SUBJECT
    if of.keys and of.keys.get(principal.signed_by, 0) > now_us:
        return Kind.KEY
    if of.sessions:
        session = claims.get("sid")
        if type(session) is str and of.sessions.get(session, 0) > now_us:
            return Kind.SESSION
    if of.credentials and of.credentials.get(principal.key_id, 0) > now_us:
        return Kind.CREDENTIAL
    return None


def _issued_us(principal: Principal) -> float:
    """Before everything, where it is not said."""
    issued = principal.claims.get("iat")
    if isinstance(issued, bool) or not isinstance(issued, (int, float)):
        return -1.0
    return issued * _US_PER_S
