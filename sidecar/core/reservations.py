"""The name of a reservation: which holds a Check took, as text that travels to Envoy and back.

A Check that reserves (a cost known only afterwards) takes holds and answers with their name in its dynamic metadata.
Envoy's ratelimit filter sends the name back, once the response is done, as a descriptor of the reserved domain with
the actual cost as `hits_addend`; the rate limit service then charges a SETTLE for each hold (see envoy/settling.py).

What takes the holds owes two things:

1. Each TAKE of the decision that is a hold has the same `Charge.hold`: a fresh random number from 1 to `HOLD_MAX`. The
   name is `encode(Reservation(hold, ((limit_id, charge.key), ...)))`.
2. `limit_id` is a key of `Policy.held_limits`, whose value is a limit that counts in the same place
   (`Charge.storage_key`): the limit's name, or any other text where several limits have one name (a plan's variants).

The name is opaque to whoever carries it and it is not a secret: who can ask the rate limit service can charge any
counter anyway. It is read strictly, each reservation has one name only, and what it says is checked against the policy
before anything is charged.

Format: base64url of version (1 byte), hold (8), and for each held counter both lengths (2 and 2), limit id and key.
"""

from __future__ import annotations

import struct
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from typing import Final

from sidecar.core import base64url

HELD_MAX: Final = 16
"""Counters held by one decision: one for each limit that reserves."""

HOLD_MAX: Final = 2**63 - 1

NAME_CHARS_MAX: Final = 8192
"""Longer text is not looked at."""

LIMIT_ID_BYTES_MAX: Final = 128
KEY_BYTES_MAX: Final = 200

_VERSION: Final = 1
_HEAD: Final = struct.Struct(">BQ")
_LENGTHS: Final = struct.Struct(">HH")


class ReservationError(ValueError):
    """The text is not the name of a reservation; the message says why and quotes nothing."""


@dataclass(frozen=True, slots=True)
class Held:
    """One counter that is held: the policy's id of its limit, and `Charge.key`."""

    limit: str
    key: bytes


@dataclass(frozen=True, slots=True)
class Reservation:
    """All that one decision holds, under one number.

    Raises:
        ReservationError: `hold` is not 1 to `HOLD_MAX`, or there are no or too many counters, or one of them twice, or
            an id or a key is empty or too long.
    """

    hold: int
    held: tuple[Held, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.hold <= HOLD_MAX:
            raise ReservationError("has no number")
        if not 1 <= len(self.held) <= HELD_MAX:
            raise ReservationError(f"holds {len(self.held)} counters; 1 to {HELD_MAX} are accepted")
        if len(set(self.held)) != len(self.held):
            raise ReservationError("holds a counter twice")
        for held in self.held:
            if not 1 <= len(held.limit.encode()) <= LIMIT_ID_BYTES_MAX or not 1 <= len(held.key) <= KEY_BYTES_MAX:
                raise ReservationError("has an empty or an overlong part")


def encode(reservation: Reservation) -> str:
    """Its name: letters, digits, `-` and `_`."""
    parts = [_HEAD.pack(_VERSION, reservation.hold)]
    for held in reservation.held:
        limit = held.limit.encode()
        parts += _LENGTHS.pack(len(limit), len(held.key)), limit, held.key
    return urlsafe_b64encode(b"".join(parts)).rstrip(b"=").decode("ascii")


def parse(text: str) -> Reservation:
    """The reservation that a name stands for.

    Raises:
        ReservationError: It is no reservation's name.
    """
    if len(text) > NAME_CHARS_MAX:
        raise ReservationError("is too long")
    try:
        raw = base64url.decode(text.encode("ascii"))
    except UnicodeEncodeError:
        raise ReservationError("has a character outside of the base64url alphabet") from None
    except base64url.Base64UrlError as error:
        raise ReservationError(str(error)) from None
    if len(raw) < _HEAD.size:
        raise ReservationError("is cut short")
    version, hold = _HEAD.unpack_from(raw)
    if version != _VERSION:
        raise ReservationError("is of another version")
    held, at = [], _HEAD.size
    while at < len(raw):
        one, at = _held(raw, at)
        held.append(one)
    return Reservation(hold, tuple(held))


def _held(raw: bytes, at: int) -> tuple[Held, int]:
    """The held counter that begins at `at`, and where the next one does."""
    start = at + _LENGTHS.size
    if start > len(raw):
        raise ReservationError("is cut short")
    limit_bytes, key_bytes = _LENGTHS.unpack_from(raw, at)
    middle, end = start + limit_bytes, start + limit_bytes + key_bytes
    if end > len(raw):
        raise ReservationError("is cut short")
    try:
        return Held(raw[start:middle].decode("utf-8"), raw[middle:end]), end
    except UnicodeDecodeError:
        raise ReservationError("names a limit that is not text") from None
