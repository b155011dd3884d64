"""Settling reservations over the rate limit service.

A request to the domain `sidecar` whose descriptors each have the one entry `reservation=<name>` (see
core/reservations.py) ends the holds of a Check that reserved, and counts the descriptor's hits instead of what was
held; with `is_negative_hits` nothing is counted. Envoy asks so once the response is done (`apply_on_stream_done`), with
the name from the Check's dynamic metadata. There is nothing to refuse any more: the answer is OK.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sidecar.core.limits import Charge, Op
from sidecar.core.reservations import Held, ReservationError, parse
from sidecar.envoy.ratelimit_request import HITS_MAX, InvalidRequest, parse_descriptor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.core.limits import Limit

DOMAIN: Final = "sidecar"
ENTRY_KEY: Final = "reservation"

CHARGES_MAX: Final = 256
"""Holds that one request settles; a store takes no more charges at once."""


class Settling:
    """Reads settlements.

    Args:
        key_prefix: Of all counter keys, with the colon.
    """

    def __init__(self, key_prefix: bytes) -> None:
        self._counter = re.compile(re.escape(key_prefix) + rb"[A-Za-z0-9][A-Za-z0-9._-]*:\{[0-9a-f]{32}\}")

    def charges(self, limits: Mapping[str, Limit], descriptors: Sequence[bytes], hits: int) -> list[list[Charge]]:
        """What to charge for each descriptor.

        Args:
            limits: The policy's `held_limits`.
            descriptors: Their bytes.
            hits: The request's own `hits_addend`.

        Raises:
            InvalidRequest: A descriptor is not the one entry, or does not name a reservation of limits that are there.
        """
        charges = [self._of(limits, raw, hits) for raw in descriptors]
        if sum(map(len, charges)) > CHARGES_MAX:
            raise InvalidRequest(f"more than {CHARGES_MAX} holds in one request")
        return charges

    def _of(self, limits: Mapping[str, Limit], raw: bytes, hits: int) -> list[Charge]:
        descriptor = parse_descriptor(raw)
        if len(descriptor.entries) != 1 or descriptor.entries[0].key != ENTRY_KEY:
            raise InvalidRequest(f"a descriptor of the domain {DOMAIN} has one entry, {ENTRY_KEY}=<its name>")
        try:
            reservation = parse(descriptor.entries[0].value)
        except ReservationError as error:
            raise InvalidRequest(f"not a reservation's name: it {error}") from None
        if descriptor.is_negative_hits:
            op, cost = Op.REFUND, 0
        elif descriptor.HasField("hits_addend"):
            op, cost = Op.SETTLE, min(descriptor.hits_addend.value, HITS_MAX)
        else:
            op, cost = Op.SETTLE, hits or 1
        return [Charge(self._limit(limits, held), held.key, cost, op, reservation.hold) for held in reservation.held]

    def _limit(self, limits: Mapping[str, Limit], held: Held) -> Limit:
        if not self._counter.fullmatch(held.key):
            raise InvalidRequest("not a reservation's name: it holds what is no counter of a limit here")
        limit = limits.get(held.limit)
        if limit is None:
            raise InvalidRequest("the reservation is of a limit that the policy does not have (any more)")
        return limit
