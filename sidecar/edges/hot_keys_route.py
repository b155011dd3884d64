"""`/limits/top`: the counters that are charged most, as the process estimates; several workers' together."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import DecodeError

from sidecar.edges.admin import Route, json_route
from sidecar.envoy.pb.ratelimit_descriptor_pb2 import RateLimitDescriptor

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.core.hot_keys import HotKey, HotKeys

TOP_PATH: Final = "/limits/top"
TOP_MAX: Final = 100
"""Keys that are shown."""


def hot_keys_route(hot_keys: Callable[[], HotKeys], now_us: Callable[[], int]) -> Route:
    """The route of one process."""
    return json_route(lambda: {"keys": [_described(each) for each in hot_keys().top(TOP_MAX, now_us())]})


def merged_hot_keys(answers: Iterable[Any]) -> dict[str, Any]:
    """What several processes answered, as one answer."""
    together: dict[tuple[str, tuple[str | None, ...]], float] = {}
    for answer in answers:
        for each in answer["keys"]:
            counter = each["limit"], tuple(each["key"])
            together[counter] = together.get(counter, 0.0) + each["per_second"]
    top = heapq.nlargest(TOP_MAX, together.items(), key=lambda item: item[1])
    return {"keys": [{"limit": limit, "key": key, "per_second": rate} for (limit, key), rate in top]}


def _described(hot: HotKey) -> dict[str, Any]:
    return {"limit": hot.limit, "key": _readable(hot.subject), "per_second": round(hot.per_second, 2)}


def _readable(subject: object) -> Sequence[str | None]:
    """A policy limit's parts as they are, a descriptor's entries as `key=value`."""
    if isinstance(subject, bytes):
        try:
            descriptor = RateLimitDescriptor.FromString(subject)
        except DecodeError:
            return ["(unreadable)"]
        return [f"{entry.key}={entry.value}" for entry in descriptor.entries]
    return list(subject) if isinstance(subject, tuple) else []
