"""Where audit events go: collected for a moment, encoded in batches, written by a thread.

`put` costs the hot path an append. An event lives as an object for 64 events or 50 ms at most, then as bytes. If the
destination does not take them as fast as they come, whole batches are dropped and counted; nothing ever waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from sidecar.core.redaction import escaped_json
from sidecar.edges.audit_record import AuditRecord, audit_record
from sidecar.edges.block_writer import QUEUE_BYTES_MAX, BlockWriter
from sidecar.edges.log import get_log

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from sidecar.core.audit import DecisionEvent

BATCH_EVENTS: Final = 64
"""Encoded at once: some 150 us of the loop's time."""

FLUSH_INTERVAL_S: Final = 0.05
BLOCK_BYTES: Final = 256 * 1024
"""Handed to the thread before the interval ends; larger blocks save nothing, smaller ones wake it too often."""

_log = get_log("audit")


class AuditSink:
    """Takes one event per decision and writes it as one line of JSON.

    Args:
        loop: The loop on whose thread `put` is called.
        path: A file to append to; None for standard output.
        claims: Names of claims that a record carries besides the subject.
        lock_path: See `BlockWriter`.
        queue_bytes_max: See `BlockWriter`.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        path: str | None,
        *,
        claims: Sequence[str] = (),
        lock_path: str | None = None,
        queue_bytes_max: int = QUEUE_BYTES_MAX,
    ) -> None:
        self.claims: Sequence[str] = tuple(claims)
        self._loop = loop
        self._encoder = msgspec.json.Encoder()
        self._pending: list[DecisionEvent] = []
        self._encoded: list[bytes] = []
        self._encoded_bytes = 0
        self._encoded_events = 0
        self._dropped = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writer = BlockWriter(path, queue_bytes_max=queue_bytes_max, lock_path=lock_path, on_failure=_report)

    @property
    def written(self) -> int:
        """Events that reached the destination."""
        return self._writer.lines_written

    @property
    def dropped(self) -> int:
        """Events that were lost: the destination was too slow, or refused them."""
        return self._dropped + self._writer.lines_failed

    @property
    def queued_bytes(self) -> int:
        """What waits for the destination."""
        return self._encoded_bytes + self._writer.queued_bytes

    def put(self, *events: DecisionEvent) -> None:
        """Take events; never blocks, never raises."""
        pending = self._pending
        pending += events
        if len(pending) >= BATCH_EVENTS:
            self._encode()
        elif self._timer is None:
            self._timer = self._loop.call_later(FLUSH_INTERVAL_S, self.flush)

    def flush(self) -> None:
        """Hand everything taken so far to the writer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pending:
            self._encode()
        if self._encoded:
            self._hand_over()

    def reopen(self) -> None:
        """Open the file again: it was rotated."""
        self._writer.reopen()

    async def close(self, timeout_s: float) -> None:
        """Write what was taken, for `timeout_s` at most; what is left then counts as dropped."""
        self.flush()
        await self._writer.close(timeout_s)

    def _encode(self) -> None:
        events, self._pending = self._pending, []
        claims = self.claims
        records = [audit_record(event, claims) for event in events]
        try:
            lines = self._encoder.encode_lines(records)
        except UnicodeEncodeError:
            lines = self._encoder.encode_lines([_encodable(record) for record in records])
        lines = escaped_json(lines)
        self._encoded.append(lines)
        self._encoded_bytes += len(lines)
        self._encoded_events += len(events)
        if self._encoded_bytes >= BLOCK_BYTES:
            self._hand_over()

    def _hand_over(self) -> None:
        if not self._writer.offer(b"".join(self._encoded), self._encoded_events):
            self._dropped += self._encoded_events
            _log.warning("audit_events_dropped", events=self._encoded_events, dropped_total=self.dropped)
        self._encoded, self._encoded_bytes, self._encoded_events = [], 0, 0


def _report(error: OSError) -> None:
    _log.error("audit_write_failed", error=str(error))


def _encodable(record: AuditRecord) -> dict[str, object]:
    """The record with lone surrogates (a token's JSON may hold them) written out, since UTF-8 has none."""
    return {name: _text(value) for name, value in msgspec.structs.asdict(record).items()}


def _text(value: object) -> object:
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode("utf-8")
        case dict():
            return {name: _text(inner) for name, inner in value.items()}
        case _:
            return value
