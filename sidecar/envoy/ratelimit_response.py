"""What the counters said to a RateLimitResponse's bytes, joined from fragments.

The part of a status that a limit always has is encoded once for each limit. What is an option (headers, metadata) is
added by `extras`, which costs nothing where no option is on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.struct_pb2 import Struct

from sidecar.core.limits import REQUESTS_MAX, US_PER_S, LimitOutcome
from sidecar.envoy.pb.ratelimit_pb2 import RateLimitResponse
from sidecar.envoy.ratelimit_request import Asked, parse_descriptor
from sidecar.envoy.wire import delimited, struct_key, struct_list, struct_number, struct_string, varint

if TYPE_CHECKING:
    from sidecar.core.descriptors import DescriptorLimit, HeaderNames, RateLimitOptions
    from sidecar.core.limits import Limit
    from sidecar.envoy.pb.ratelimit_descriptor_pb2 import RateLimitDescriptor

_FIELDS_KEPT: Final = 4096
"""Encoded numbers of each kind that are kept: an hour's seconds, and what remains of a common limit."""

SHADOW_CHARS_MAX: Final = 1024
"""Of the header that lists limits in shadow; what is longer is cut."""

_NOT_IN_HEADERS: Final = re.compile(r"[^ -~]")

_STATUSES: Final = 0x12
_RESPONSE_HEADERS: Final = 0x1A
_METADATA: Final = 0x32
_OVERALL_OK: Final = b"\x08\x01"
_OVERALL_OVER_LIMIT: Final = b"\x08\x02"
_STATUS_OK: Final = delimited(_STATUSES, b"\x08\x01")
_STATUS_UNLIMITED: Final = delimited(_STATUSES, b"\x08\x01\x18" + varint(REQUESTS_MAX))
_HEADS: Final = tuple(bytes((_STATUSES, size)) for size in range(128))
_HELD_STATUS: Final = b"\x08\x01"

_DOMAIN: Final = struct_key("domain")
_DESCRIPTORS: Final = struct_key("descriptors")
_ENTRIES: Final = struct_key("entries")
_LIMIT: Final = struct_key("limit")
_HITS: Final = struct_key("hitsAddend")
_SHADOW: Final = struct_key("shadow")


class Statuses:
    """The response of statuses in order, and what it says.

    The whole is over the limit when a status is, except that limits in quota mode count only together: when all of
    them are over.

    Args:
        asked: The descriptors, in order.
        outcomes: One for each that has a charge, in order.
        quota_mode: The global one is on; then, as in the reference, a descriptor without a limit is one that is not
            over its quota.

    Attributes:
        fields: What a RateLimitResponse is joined of; the first is the overall code.
        is_over_limit: As a whole.
        over_limit: How many of the statuses are.
    """

    __slots__ = ("fields", "is_over_limit", "over_limit")

    def __init__(self, asked: Sequence[Asked], outcomes: Sequence[LimitOutcome], *, quota_mode: bool = False) -> None:
        fields = self.fields = [_OVERALL_OK]
        quota = over_quota = over = taken = 0
        reset_us, until_reset = 0, b""  # of the status before; limits with equal windows end together
        for one in asked:
            limit = one.limit
            if limit is None:
                fields.append(_STATUS_OK)
                quota += quota_mode
                continue
            if one.charge is None:
                fields.append(_STATUS_UNLIMITED)
                continue
            outcome = outcomes[taken]
            taken += 1
            is_over = not outcome.allowed and not limit.shadow_mode and not one.negative
            if outcome.reset_after_us != reset_us:
                reset_us = outcome.reset_after_us
                until_reset = _until_reset(-(-reset_us // US_PER_S))
            begin = limit.encoded
            if begin is None or outcome.limit is not limit.limit:  # its key has another figure of its own
                begin = _encode(limit, outcome.limit)
            status = begin[is_over] + _remaining(outcome.remaining) + until_reset
            if len(status) < 128:
                fields += (_HEADS[len(status)], status)
            else:
                fields.append(delimited(_STATUSES, status))
            if is_over:
                over += 1
            if limit.quota_mode:
                quota += 1
                over_quota += is_over
        self.over_limit = over
        self.is_over_limit = over > over_quota or 0 < quota == over_quota
        if self.is_over_limit:
            fields[0] = _OVERALL_OVER_LIMIT

    def pass_all_the_same(self) -> None:
        """What the global shadow mode makes of a response: OK as a whole; the statuses stay."""
        self.fields[0] = _OVERALL_OK

    @property
    def response(self) -> bytes:
        """A RateLimitResponse's bytes."""
        return b"".join(self.fields)


@lru_cache(maxsize=_FIELDS_KEPT)
def _remaining(requests: int) -> bytes:
    return b"\x18" + varint(requests) if requests else b""


@lru_cache(maxsize=_FIELDS_KEPT)
def _until_reset(seconds: int) -> bytes:
    return delimited(0x22, b"\x08" + varint(seconds)) if seconds else b""


def _encode(limit: DescriptorLimit, applied: Limit) -> tuple[bytes, bytes]:
    """What all statuses of a limit begin with, while within and while over it: code and current_limit."""
    if limit.unit is None:
        raise AssertionError("an unlimited descriptor has no current_limit")
    current = RateLimitResponse.RateLimit(
        requests_per_unit=applied.requests,
        unit=RateLimitResponse.RateLimit.Unit.Name(limit.unit),
        name=limit.name,
    )
    if limit.unit_multiplier != 1:
        current.unit_multiplier.value = limit.unit_multiplier
    field = delimited(0x12, current.SerializeToString())
    encoded = b"\x08\x01" + field, b"\x08\x02" + field
    if applied is limit.limit:
        limit.encoded = encoded
    return encoded


def settled(remaining: Sequence[int]) -> bytes:
    """The response to settlements: OK, and for each what remains of the tightest limit that it settled."""
    return _OVERALL_OK + b"".join(delimited(_STATUSES, _HELD_STATUS + _remaining(each)) for each in remaining)


def extras(
    options: RateLimitOptions, domain: str, hits: int, asked: Sequence[Asked], outcomes: Sequence[LimitOutcome]
) -> list[bytes]:
    """The fields of a RateLimitResponse that are options.

    Args:
        options: Which ones.
        domain: As the request named it.
        hits: The request's own `hits_addend`.
        asked: The descriptors, in order.
        outcomes: One for each that has a charge, in order.
    """
    following = iter(outcomes)
    judged = [(one, next(following) if one.charge is not None else None) for one in asked]
    fields: list[bytes] = []
    if options.response_headers is not None:
        fields += _limit_headers(options.response_headers, judged)
    shadowed = _shadowed(judged, everything=options.shadow_mode)
    if options.shadow_header is not None and shadowed:
        fields.append(_header(options.shadow_header, _NOT_IN_HEADERS.sub("?", ", ".join(shadowed))[:SHADOW_CHARS_MAX]))
    if options.response_dynamic_metadata:
        fields.append(_dynamic_metadata(domain, hits, judged, shadowed))
    return fields


def _shadowed(judged: Sequence[tuple[Asked, LimitOutcome | None]], *, everything: bool) -> list[str]:
    """The limits that are over and refuse nothing, because of their own shadow mode or the global one.

    By their paths in the configuration, never by what `detailed_metric` makes of a request's values.
    """
    found = [
        one.limit.stats.limit
        for one, outcome in judged
        if outcome is not None and not outcome.allowed and one.limit is not None
        if everything or one.limit.shadow_mode
    ]
    return list(dict.fromkeys(found))


def _limit_headers(names: HeaderNames, judged: Sequence[tuple[Asked, LimitOutcome | None]]) -> list[bytes]:
    """Of the status with the least remaining, the first of equals; but the last that refuses goes before all."""
    chosen, least = None, REQUESTS_MAX
    for one, outcome in judged:
        limit = one.limit
        if outcome is None or limit is None:
            continue
        if outcome.remaining < least:
            chosen, least = outcome, outcome.remaining
        if not outcome.allowed and not limit.shadow_mode and not limit.quota_mode:
            chosen, least = outcome, 0
    if chosen is None:
        return []
    return [
        _header(names.limit, str(chosen.limit.requests)),
        _header(names.remaining, str(chosen.remaining)),
        _header(names.reset, str(-(-chosen.reset_after_us // US_PER_S))),
    ]


def _header(name: str, value: str) -> bytes:
    return delimited(
        _RESPONSE_HEADERS,
        delimited(0x0A, name.encode("ascii")) + delimited(0x12, value.encode("ascii")),
    )


def _dynamic_metadata(
    domain: str, hits: int, judged: Sequence[tuple[Asked, LimitOutcome | None]], shadowed: Sequence[str]
) -> bytes:
    described = b"".join(_described(parse_descriptor(one.raw)) for one, _ in judged)
    fields = [struct_string(_DOMAIN, domain.encode()), struct_list(_DESCRIPTORS, described)]
    if hits:
        fields.append(struct_number(_HITS, hits))
    merged: dict[str, Any] = {}
    for one, outcome in judged:
        if outcome is None or one.limit is None or one.limit.metadata is None:
            continue
        if outcome.allowed or one.limit.shadow_mode:
            merge(merged, one.limit.metadata)
    if merged:
        whole = Struct()
        whole.update({"metadata": merged})
        fields.append(whole.SerializeToString())
    if shadowed:
        fields.append(struct_list(_SHADOW, b"".join(_list_string(path) for path in shadowed)))
    return delimited(_METADATA, b"".join(fields))


def merge(into: dict[str, Any], metadata: Mapping[str, Any]) -> None:
    """Add what `into` does not have yet, at every depth; `metadata` and what it holds are never changed."""
    for key, value in metadata.items():
        mine = into.get(key)
        if isinstance(value, Mapping):
            if key not in into:
                mine = into[key] = {}
            if isinstance(mine, dict):
                merge(mine, value)
        elif key not in into:
            into[key] = value


def _described(descriptor: RateLimitDescriptor) -> bytes:
    """A descriptor of the request, as an element of a list."""
    entries = b"".join(_list_string(f"{entry.key}={entry.value}") for entry in descriptor.entries)
    fields = struct_list(_ENTRIES, entries)
    if descriptor.HasField("limit"):
        limit = " ".join(str(descriptor.limit).split())
        fields += struct_string(_LIMIT, limit.encode())
    if descriptor.HasField("hits_addend"):
        fields += struct_number(_HITS, descriptor.hits_addend.value)
    return delimited(0x0A, delimited(0x2A, fields))


def _list_string(text: str) -> bytes:
    return delimited(0x0A, delimited(0x1A, text.encode()))
