"""What the server asks of an HTTP/2 peer: by SETTINGS, which it is told, and by ngh2's limits, which it meets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ngh2

if TYPE_CHECKING:
    from sidecar.transport.service import ServerLimits

STREAM_WINDOW_BYTES = 256 * 1024
CONNECTION_WINDOW_BYTES = 1024 * 1024

HEADER_HARD_FACTOR = 8
"""How many times over the header limits a block may be before it costs the peer its connection."""

RESETS_BURST, RESETS_PER_S = 1000, 200
"""Streams that a peer may reset (rapid reset, CVE-2023-44487); gateways cancel what their own clients abandon."""


def configuration(limits: ServerLimits) -> ngh2.Configuration:
    """What ngh2 enforces on a peer."""
    return ngh2.Configuration(
        stream_reset_rate_limit=(RESETS_BURST, RESETS_PER_S),
        max_inbound_header_list_size=limits.header_list_bytes_max * HEADER_HARD_FACTOR,
        max_inbound_header_count=limits.header_count_max * HEADER_HARD_FACTOR,
    )


def settings(limits: ServerLimits) -> dict[int, int]:
    """What the peer is told."""
    return {
        ngh2.Setting.MAX_CONCURRENT_STREAMS: limits.concurrent_streams_max,
        ngh2.Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
        ngh2.Setting.MAX_HEADER_LIST_SIZE: limits.header_list_bytes_max,
    }
