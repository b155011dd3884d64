"""A RateLimitRequest's bytes to what is asked: the domain's name, each descriptor's bytes, the hits.

Envoy sends the same descriptors again and again. So the top level is split by hand, and what a descriptor's bytes came
to is remembered: who is seen again costs no message object, no matching and no hashing. Whatever the splitting does not
know (fields in other encodings, fields that are not ours, malformed bytes) is left to protobuf, so that what a request
means, and whether it is one, is protobuf's word alone.
"""

from __future__ import annotations

from collections import deque
from secrets import randbits
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError
from msgspec import Struct

from sidecar.core.descriptors import Unit
from sidecar.core.limits import REQUESTS_MAX, US_PER_S, WINDOW_US_MAX, Charge, Op
from sidecar.envoy.pb.ratelimit_descriptor_pb2 import RateLimitDescriptor
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitRequest
from sidecar.envoy.pb.type_pb2 import RateLimitUnit
from sidecar.transport.service import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.core.descriptor_stats import LimitStats
    from sidecar.core.descriptors import DescriptorLimit, Domain

DESCRIPTORS_MAX: Final = 256
"""Descriptors in one request, each of which may be a counter; Envoy sends one for each configured action list."""

HITS_MAX: Final = REQUESTS_MAX + 1
"""Hits of one descriptor; more are counted as this many, which is above every limit."""

REMEMBERED_MAX: Final = 8192
"""Descriptors that are remembered, of all domains together: some 4 MB when full, 12 MB at the worst."""

REQUESTS_REMEMBERED_MAX: Final = 4096
"""Requests that are remembered as a whole: some 2 MB when full, 8 MB at the worst."""

REMEMBERED_BYTES_MAX: Final = 1024
"""Longer descriptors, and longer requests, are not remembered."""

_OVERRIDE_UNITS: Final = {number: Unit(number) for number in RateLimitUnit.values() if number}
"""Of a request's own limit: its enum has no week."""

_DOMAIN: Final = 0x0A
_DESCRIPTOR: Final = 0x12
_HITS: Final = 0x18


class InvalidRequest(Exception):  # noqa: N818 - a way out of reading, not an error of its own
    """The request is not one that can be decided; the call ends with this status and message."""

    def __init__(self, message: str, status: Status = Status.INVALID_ARGUMENT) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class Asked:
    """What one descriptor of a request comes to in its domain; the same for all requests that have it.

    Attributes:
        raw: The descriptor's bytes.
        limit: None where none applies.
        stats: Where its hits are counted.
        charge: What a request with one hit charges; None where nothing is.
        negative: The hits are given back.
        own_hits: The descriptor says how many hits it has, whatever the request says.
        holds: Each charge is a hold of its own.
    """

    __slots__ = ("charge", "holds", "limit", "negative", "own_hits", "raw", "stats")

    def __init__(
        self,
        raw: bytes,
        limit: DescriptorLimit | None = None,
        stats: LimitStats | None = None,
        charge: Charge | None = None,
        *,
        own_hits: bool = False,
    ) -> None:
        self.raw = raw
        self.limit = limit
        self.stats = stats
        self.charge = charge
        self.own_hits = own_hits
        self.negative = charge is not None and charge.op is Op.REFUND
        self.holds = charge is not None and not self.negative and charge.limit.hold_time_us != 0

    def charge_of(self, charge: Charge, hits: int) -> Charge:
        """`charge` for a request with this many hits, or of a hold."""
        cost = charge.cost if self.own_hits else hits or 1
        hold = (randbits(63) or 1) if self.holds else 0
        return Charge(charge.limit, charge.key, cost, charge.op, hold, self.raw)


def split(message: bytes) -> tuple[bytes, list[bytes], int] | None:
    """The domain's name, the descriptors and the hits, of a request that is plainly written; None for any other.

    Plain are fields 1, 2 and 3 in any order with lengths below 16,384, the first of them once. What the name and the
    descriptors contain is not looked at.
    """
    name = b""
    descriptors: list[bytes] = []
    hits = at = 0
    end = len(message)
    try:
        while at < end:
            tag = message[at]
            size = message[at + 1]
            at += 2
            if size > 127:
                high = message[at]
                if high > 127:
                    return None
                size = size & 127 | high << 7
                at += 1
            if tag == _DESCRIPTOR:
                stop = at + size
                descriptors.append(message[at:stop])
                at = stop
            elif tag == _DOMAIN and not name:
                stop = at + size
                name = message[at:stop]
                at = stop
            elif tag == _HITS:
                hits = size
            else:
                return None
    except IndexError:
        return None
    return (name, descriptors, hits) if at == end else None


def read(message: bytes) -> tuple[bytes, list[bytes], int]:
    """The same of any request, as protobuf reads it.

    Raises:
        InvalidRequest: It is no RateLimitRequest, or has no domain, or no descriptors or too many.
    """
    try:
        request = RateLimitRequest.FromString(message)
    except (DecodeError, ValueError):  # a UnicodeDecodeError, where protobuf runs without its C part
        raise InvalidRequest("the message is not a RateLimitRequest") from None
    if not request.domain:
        raise InvalidRequest("rate limit domain must not be empty")
    count = len(request.descriptors)
    if not count:
        raise InvalidRequest("rate limit descriptor list must not be empty")
    if count > DESCRIPTORS_MAX:
        raise InvalidRequest(f"{count} descriptors in one request; at most {DESCRIPTORS_MAX} are accepted")
    descriptors = [descriptor.SerializeToString() for descriptor in request.descriptors]
    return request.domain.encode("utf-8"), descriptors, request.hits_addend


def parse_descriptor(raw: bytes) -> RateLimitDescriptor:
    """A descriptor from its bytes.

    Raises:
        InvalidRequest: It is none.
    """
    try:
        return RateLimitDescriptor.FromString(raw)
    except (DecodeError, ValueError):
        raise InvalidRequest("the message is not a RateLimitRequest") from None


class Understood(Struct, eq=False, gc=False):
    """What a whole request comes to; the same each time that its bytes arrive."""

    domain: str
    hits: int
    asked: Sequence[Asked]
    charges: Sequence[Charge]


class Memory:
    """What descriptors came to, by their bytes, in each domain's `asked`; forgets those that came first.

    A request all of whose descriptors were remembered is remembered as a whole when it comes again, so that a flood of
    requests that come once finds no way in.

    Args:
        key_prefix: Of all counter keys.

    Attributes:
        config: Of what all that is remembered holds.
        requests: What whole requests came to, by their bytes.
    """

    def __init__(self, key_prefix: bytes) -> None:
        self.config: object = None
        self.requests: dict[bytes, Understood] = {}
        self._key_prefix = key_prefix
        self._order: deque[tuple[dict[bytes, Asked], bytes]] = deque()
        self._requests_order: deque[bytes] = deque()

    def keep(self, config: object, message: bytes, understood: Understood) -> None:
        """Remember a request as a whole, if it is short."""
        if len(message) > REMEMBERED_BYTES_MAX:
            return
        self._hold_of(config)
        if len(self._requests_order) >= REQUESTS_REMEMBERED_MAX:
            del self.requests[self._requests_order.popleft()]
        if message not in self.requests:
            self._requests_order.append(message)
        self.requests[message] = understood

    def _hold_of(self, config: object) -> None:
        if self.config is not config:
            self.config = config
            self.requests.clear()
            self._order.clear()
            self._requests_order.clear()

    def ask(self, config: object, domain: Domain, raw: bytes) -> Asked:
        """Read a descriptor, find its limit, and remember both.

        Args:
            config: What the domain belongs to; with another one, everything is forgotten.
            domain: Where to look.
            raw: The descriptor's bytes.

        Raises:
            InvalidRequest: It is no descriptor, or its own limit is none.
        """
        asked = self._ask(domain, raw)
        if len(raw) <= REMEMBERED_BYTES_MAX:
            self._hold_of(config)
            if len(self._order) >= REMEMBERED_MAX:
                forgotten, by = self._order.popleft()
                forgotten.pop(by, None)
            domain.asked[raw] = asked
            self._order.append((domain.asked, raw))
        return asked

    def _ask(self, domain: Domain, raw: bytes) -> Asked:
        descriptor = parse_descriptor(raw)
        entries = list(descriptor.entries)  # read once: protobuf makes a new object for each look
        limit = _override(domain, descriptor) if descriptor.HasField("limit") else domain.find(entries)
        if limit is None or limit.limit is None:
            return Asked(raw, limit)
        own_hits = descriptor.HasField("hits_addend")
        cost = min(descriptor.hits_addend.value, HITS_MAX) if own_hits else 1
        op = Op.REFUND if descriptor.is_negative_hits else Op.TAKE
        key = domain.counter_key(self._key_prefix, limit, entries)
        charge = Charge(limit.limit, key, cost, op, subject=raw)
        return Asked(raw, limit, domain.stats_of(limit, entries), charge, own_hits=own_hits)


def _override(domain: Domain, descriptor: RateLimitDescriptor) -> DescriptorLimit:
    override = descriptor.limit
    unit = _OVERRIDE_UNITS.get(override.unit)
    if unit is None:
        accepted = ", ".join(f"{unit.name} ({number})" for number, unit in _OVERRIDE_UNITS.items())
        raise InvalidRequest(f"{int(override.unit)} is not the unit of a rate limit; {accepted} are accepted")
    multiplier = override.unit_multiplier.value if override.HasField("unit_multiplier") else 1
    if not 0 < unit.seconds * multiplier * US_PER_S <= WINDOW_US_MAX:
        raise InvalidRequest(f"a window of {multiplier} {unit.name} is not accepted; from 1 SECOND to 366 days are")
    try:
        return domain.override(override.requests_per_unit, unit, multiplier)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
