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
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

from msgspec import Struct

if TYPE_CHECKING:
    from sidecar.core.calendars import Calendar

US_PER_S = 1_000_000

REQUESTS_MAX = 2**32 - 1
"""Largest limit and cost: the reference's `requests_per_unit` and `hits_addend` are uint32."""

WINDOW_US_MIN = 1_000
WINDOW_US_MAX = 366 * 86_400 * US_PER_S

LOG_ENTRIES_MAX = 10_000
"""Entries of one sliding log, hence also its largest limit: 12 bytes each, read as a whole by every charge."""

HOLDS_MAX = 1_000
"""Unexpired holds of one counter, 20 bytes each; one more is denied. Hence also the largest concurrency limit."""


class Algorithm(enum.StrEnum):
    """How a limit counts; each exists in lua/ and, as its specification, in sidecar/core/algorithms/."""

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


REQUESTS_MAX_OF = {
    Algorithm.SLIDING_WINDOW: REQUESTS_MAX,
    Algorithm.FIXED_WINDOW: REQUESTS_MAX,
    Algorithm.GCRA: REQUESTS_MAX,
    Algorithm.SLIDING_LOG: LOG_ENTRIES_MAX,
    Algorithm.CONCURRENCY: HOLDS_MAX,
}
"""The largest `requests` of each algorithm."""

_CODES = {algorithm: code for code, algorithm in enumerate(Algorithm, 1)}
_LETTERS = {algorithm: algorithm.value[:1].encode() for algorithm in Algorithm} | {Algorithm.SLIDING_LOG: b"l"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A rate: at most `requests` per `window_us` microseconds.

    Attributes:
        count_denied: Charges also the requests that are denied, and charges them whatever the decision's other limits
            say (what envoyproxy/ratelimit does). It keeps a client that retries too fast locked out, so it is off by
            default.
        shadow: Judged and counted like any other, but it denies nothing: `Verdict.allowed` passes over it.
        burst: GCRA only: what may be taken at once; 0 means `requests`.
        calendar: Fixed window only: the windows are the calendar's, and `window_us` is only said to the caller.
        hold_us: Not 0: what is taken by a charge that names a hold is a hold, which lapses after so long unless it is
            settled before (reserve and settle). CONCURRENCY: everything that is taken is, and 0 means `window_us`,
            which has no other meaning there.
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
    """What lua/charge.lua needs of it for a plain TAKE: the first 14 bytes of its argument."""
    packed_take: bytes | None = field(init=False, repr=False, compare=False)
    """The same as the beginning of a Redis argument, for the hot path; None if a TAKE needs `packed_more` too."""
    packed_more: bytes = field(init=False, repr=False, compare=False)
    """The rest of what lua/charge.lua needs, for any other charge: 12 bytes."""

    def __post_init__(self) -> None:
        self._validate()
        code = _CODES[self.algorithm]
        packed = struct.pack(">BBIQ", code, self.count_denied + 2 * self.shadow, self.requests, self.window_us)
        is_plain = not (self.burst or self.hold_time_us or self.calendar)
        object.__setattr__(self, "key_suffix", self._key_suffix())
        object.__setattr__(self, "packed", packed)
        object.__setattr__(self, "packed_take", b"$22\r\n" + packed if is_plain else None)
        object.__setattr__(self, "packed_more", struct.pack(">QI", self.hold_time_us, self.capacity))

    @property
    def capacity(self) -> int:
        """The most that can be counted at once."""
        return self.burst or self.requests

    @property
    def hold_time_us(self) -> int:
        """How long a hold lasts; 0 if there are none."""
        return self.hold_us or (self.window_us if self.algorithm is Algorithm.CONCURRENCY else 0)

    def _key_suffix(self) -> bytes:
        letter = _LETTERS[self.algorithm]
        if self.algorithm is Algorithm.CONCURRENCY:
            return b":" + letter
        if self.calendar is not None:
            return b":%b%b@%b" % (letter, self.calendar.period.encode(), self.calendar.zone.encode())
        return b":%b%d" % (letter, self.window_us)

    def _validate(self) -> None:
        requests_max = REQUESTS_MAX_OF[self.algorithm]
        if not 0 <= self.requests <= requests_max:
            raise ValueError(f"requests of {self.algorithm} must be 0 to {requests_max}, not {self.requests}")
        if not WINDOW_US_MIN <= self.window_us <= WINDOW_US_MAX:
            raise ValueError(f"window_us must be {WINDOW_US_MIN} to {WINDOW_US_MAX}, not {self.window_us}")
        if not 0 <= self.hold_us <= WINDOW_US_MAX:
            raise ValueError(f"hold_us must be 0 to {WINDOW_US_MAX}, not {self.hold_us}")
        if self.hold_time_us and self.count_denied:
            raise ValueError("count_denied cannot go with holds: nobody settles what was denied")
        if self.calendar is not None and self.algorithm is not Algorithm.FIXED_WINDOW:
            raise ValueError(f"a calendar is for {Algorithm.FIXED_WINDOW}, not for {self.algorithm}")
        self._validate_burst()

    def _validate_burst(self) -> None:
        if self.burst and self.algorithm is not Algorithm.GCRA:
            raise ValueError(f"burst is for {Algorithm.GCRA}, not for {self.algorithm}")
        if not 0 <= self.burst <= REQUESTS_MAX:
            raise ValueError(f"burst must be 0 to {REQUESTS_MAX}, not {self.burst}")
        if self.burst * self.window_us > self.requests * WINDOW_US_MAX:
            raise ValueError(f"a burst of {self.burst} would need more than 366 days to come back")


@dataclass(slots=True, eq=False)
class Charge:
    """One limit applied to one counter key. `cost` is 0 or more; 0 looks without taking.

    Attributes:
        op: Only a TAKE is judged; the others are always allowed, and happen whatever the decision's other charges say.
        hold: A name below 2**64, or 0 for none. Where the limit has holds (`Limit.hold_us`), a TAKE or FORCE becomes a
            hold of this name, and a REFUND ends it and gives back nothing else. A SETTLE ends it and counts `cost`.
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


class Source(enum.Enum):
    """Where an outcome comes from."""

    STORE = "store"
    """It was asked."""
    REMEMBERED = "remembered"
    """An earlier denial by the store, still in force: this charge was not made."""
    LEASE = "lease"
    """Granted from what this process has taken ahead; the numbers are as of then, less what was granted since."""
    UNASKED = "unasked"
    """Nothing is known but the limit, and nothing was taken: a remembered denial has decided."""


class LimitOutcome(Struct, eq=False, gc=False):
    """What a store says about one charge, as of its own clock.

    A msgspec.Struct, as all that is made for each request: 0.05 us, as a dataclass 0.2.

    Attributes:
        allowed: This limit alone would let the request pass.
        used: What is counted after the decision, holds included.
        remaining: How much more could be taken now; 0 when denied.
        retry_after_us: Exact time after which a retry of the same cost passes this limit if nobody else takes from
            it; 0 when allowed. -1 when it never passes (the cost exceeds the limit).
        reset_after_us: Time until the limit is whole again, if nobody takes anything (fixed: until the window ends).
        source: Where it comes from.
    """

    source: ClassVar[Source] = Source.STORE

    limit: Limit
    allowed: bool
    used: int
    remaining: int
    retry_after_us: int
    reset_after_us: int


class Verdict(Struct, eq=False, gc=False):
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

OnDenied: TypeAlias = Callable[[Sequence[Charge], Verdict, float], None]
"""Told what a store denied, and the `perf_counter` time, in seconds, from before it was asked."""


class LimitStore(Protocol):
    """Counts charges.

    All charges of one call are decided together on the store's own clock: if every TAKE fits, save those of a `shadow`
    limit, all that fit are taken; otherwise none is, except those whose limit has `count_denied`, which are taken
    always. The other operations happen always. `done` is called exactly
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
