"""Limits, charges and what came of them: the vocabulary shared by the policy, the stores and the answers.

A *limit* is a rate over a window. A *charge* is one limit applied to one key with a cost. A *verdict* is what a store
says about all charges of one decision together: all of them are taken, or none (save those that count denials).
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol, TypeAlias

US_PER_S = 1_000_000

REQUESTS_MAX = 2**32 - 1
"""Largest limit and cost: the reference's `requests_per_unit` and `hits_addend` are uint32."""

WINDOW_US_MIN = 1_000
WINDOW_US_MAX = 366 * 86_400 * US_PER_S


class Algorithm(enum.StrEnum):
    """How a limit counts; each exists in lua/ and, as its specification, in windows.py."""

    SLIDING_WINDOW = "sliding_window"
    FIXED_WINDOW = "fixed_window"
    GCRA = "gcra"
    SLIDING_LOG = "sliding_log"
    CONCURRENCY = "concurrency"


class Op(enum.IntEnum):
    """What a charge does to its counter."""

    TAKE = 0
    """Takes the cost where the limit has room for it: what a request does."""
    FORCE = 1
    """Counts the cost whatever the limit says: what was granted elsewhere, such as in this process without Redis."""
    REFUND = 2
    """Gives the cost back, down to an empty counter: never mints credit."""
    SETTLE = 3
    """Ends the hold `hold` and counts the cost instead of what it held; a hold that lapsed counts all the same."""


class OnFailure(enum.StrEnum):
    """What happens to a request while Redis cannot answer."""

    DENY = "deny"
    ERROR = "error"
    LOCAL = "local"
    ALLOW = "allow"


class Period(enum.StrEnum):
    """A calendar window."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"


@dataclass(frozen=True, slots=True)
class Calendar:
    """Windows that begin at midnight of a time zone (IANA name), so that they differ in length."""

    period: Period
    zone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A rate: at most `requests` per `window_us` microseconds.

    Attributes:
        count_denied: Charges also the requests that are denied, and charges them whatever the decision's other limits
            say (what envoyproxy/ratelimit does). It keeps a client that retries too fast locked out, so it is off by
            default.
        shadow: Judged and counted like any other, but it denies nothing: `Verdict.allowed` passes over it.
        burst: GCRA only: what may be taken at once; 0 means `requests`.
        calendar: Fixed window only: the windows are the calendar's, and `window_us` is their greatest length.
        hold_us: Not 0: what is taken is a hold, which lapses after so long unless it is settled before (reserve and
            settle; always so with CONCURRENCY, whose holds count only while they last).
        lease: Not 0: a process may take this much ahead for a hot key and grant it by itself.
        deny_cache: A process may remember a denial until the time at which the key can pass again.
        warn_above: Above this count an answer warns; None: never.
    """

    name: str
    requests: int
    window_us: int
    algorithm: Algorithm = Algorithm.SLIDING_WINDOW
    count_denied: bool = False
    shadow: bool = False
    burst: int = 0
    calendar: Calendar | None = None
    hold_us: int = 0
    lease: int = 0
    deny_cache: bool = True
    warn_above: int | None = None
    key_suffix: bytes = field(init=False, repr=False, compare=False)
    """Keeps counters of another algorithm or window apart, so that a changed limit never misreads what it finds."""
    packed: bytes = field(init=False, repr=False, compare=False)
    """All of it that lua/charge.lua needs."""

    def __post_init__(self) -> None:
        if not 0 <= self.requests <= REQUESTS_MAX:
            raise ValueError(f"requests must be 0 to {REQUESTS_MAX}, not {self.requests}")
        if not WINDOW_US_MIN <= self.window_us <= WINDOW_US_MAX:
            raise ValueError(f"window_us must be {WINDOW_US_MIN} to {WINDOW_US_MAX}, not {self.window_us}")
        sliding = self.algorithm is Algorithm.SLIDING_WINDOW
        suffix = b":%s%d" % (b"s" if sliding else b"f", self.window_us)
        object.__setattr__(self, "key_suffix", suffix)
        packed = struct.pack(">BBIQ", 1 if sliding else 2, self.count_denied, self.requests, self.window_us)
        object.__setattr__(self, "packed", packed)


@dataclass(slots=True, eq=False)
class Charge:
    """One limit applied to one counter key. `cost` is 0 or more; 0 looks without taking.

    Attributes:
        op: Only a TAKE is judged; the others are always allowed, and happen whatever the decision's other charges say.
        hold: Not 0: a TAKE is a hold of this name (see `Limit.hold_us`), and a SETTLE ends the hold of this name.
    """

    limit: Limit
    key: bytes
    cost: int = 1
    op: Op = Op.TAKE
    hold: int = 0
    subject: object = None
    """What the key was made of, for people: the parts of a policy limit's key, or a descriptor's bytes."""

    @property
    def storage_key(self) -> bytes:
        """The key under which a store keeps the counter."""
        return self.key + self.limit.key_suffix


@dataclass(slots=True, eq=False)
class LimitOutcome:
    """What a store says about one charge, as of its own clock.

    Attributes:
        allowed: This limit alone would let the request pass.
        used: What is counted in the current window after the decision.
        remaining: How much more could be taken now; 0 when denied.
        retry_after_us: Exact time after which a retry of the same cost passes this limit if nobody else takes from
            it; 0 when allowed. -1 when it never passes (the cost exceeds the limit).
        reset_after_us: Time until the limit is whole again (sliding) or until the window ends (fixed).
    """

    limit: Limit
    allowed: bool
    used: int
    remaining: int
    retry_after_us: int
    reset_after_us: int


@dataclass(slots=True, eq=False)
class Verdict:
    """What came of all charges of one decision, in their order."""

    allowed: bool
    outcomes: tuple[LimitOutcome, ...]
    local: bool = False
    """Decided by this process alone, because Redis could not be asked."""


class StoreFailure(enum.Enum):
    """Why a store could not answer; the value is its label in metrics."""

    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    CIRCUIT_OPEN = "circuit_open"
    OVERLOADED = "overloaded"
    ERROR_REPLY = "error_reply"


Done: TypeAlias = Callable[["Verdict | StoreFailure"], None]


class LimitStore(Protocol):
    """Counts charges.

    All charges of one call are decided together on the store's own clock: if every one is allowed, all are taken;
    otherwise none is, except those whose limit has `count_denied`, which are taken always. `done` is called exactly
    once, from the event loop, possibly before `charge` returns. An implementation MUST call it by `deadline` (loop
    time, seconds), MUST NOT repeat a charge whose fate is unknown, and MUST NOT raise.
    """

    def charge(self, charges: Sequence[Charge], deadline: float, done: Done) -> None:
        """Decide all charges together, then call `done`."""


_EMPTY = blake2b(digest_size=16)  # copied, since that costs a third of making a new one
_length = struct.Struct(">I").pack


def counter_key(prefix: bytes, parts: Sequence[str | None]) -> bytes:
    """The key of one counter: injective over its parts (each is length-prefixed, then all are hashed to 128 bits).

    None (an absent claim or header) differs from the empty string. The prefix stays readable for operators. The hash
    is the key's hash tag: in a Redis Cluster it alone chooses the slot, so that limits whose keys have the same parts
    can be charged together.
    """
    digest = _EMPTY.copy()
    for part in parts:
        if part is None:
            digest.update(b"\xff\xff\xff\xff")
        else:
            raw = part.encode("utf-8", "surrogatepass")
            digest.update(_length(len(raw)) + raw)
    return b"%b{%b}" % (prefix, digest.hexdigest().encode("ascii"))
