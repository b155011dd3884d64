"""Writes blocks of whole lines to stdout or a file from a thread, so that neither can ever hold the loop up.

What does not fit into the queue is refused at once: the caller counts it. A file that was rotated is opened again.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

STDOUT: Final = 1
FILE_MODE: Final = 0o640
QUEUE_BYTES_MAX: Final = 8 * 1024 * 1024
"""Some 20,000 events: half a second of full load, and all that a stuck reader may cost in memory."""

WRITE_BYTES_MAX: Final = 1024 * 1024
"""Written at once: the thread has to win the interpreter's lock from a busy loop for each write, milliseconds each."""


@dataclass(slots=True)
class _Block:
    data: bytes
    lines: int


class BlockWriter:
    """Owns one destination and the thread that writes to it.

    Args:
        path: The file to append to; None for standard output.
        queue_bytes_max: What may wait to be written, besides the at most `WRITE_BYTES_MAX` that are being written.
        lock_path: A file that the processes sharing one standard output lock while they write, so that their lines do
            not mix; None where there is one process only.
        on_failure: Called from the thread with each error of writing or opening.

    Attributes:
        lines_written: Lines that reached the destination.
        lines_failed: Lines that were accepted and then lost, because writing failed or the time to close was over.
    """

    def __init__(
        self,
        path: str | None,
        *,
        queue_bytes_max: int = QUEUE_BYTES_MAX,
        lock_path: str | None = None,
        on_failure: Callable[[OSError], None] | None = None,
    ) -> None:
        self.lines_written = 0
        self.lines_failed = 0
        self._path = path
        self._queue_bytes_max = queue_bytes_max
        self._on_failure = on_failure
        self._queue: deque[_Block] = deque()
        self._queued_bytes = 0
        self._ready = threading.Condition()
        self._writing_lines = 0
        self._closing = False
        self._abandoned = False
        self._reopen = False
        self._torn = False
        self._fd = STDOUT if path is None else _open(path)
        self._lock_fd = None if lock_path is None else os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._thread = threading.Thread(target=self._run, name="block-writer", daemon=True)
        self._thread.start()

    @property
    def queued_bytes(self) -> int:
        """How much waits to be written."""
        return self._queued_bytes

    def offer(self, data: bytes, lines: int) -> bool:
        """Queue a block of whole lines; False, at once, when the queue is full or the writer is closing."""
        with self._ready:
            if self._closing or self._queued_bytes + len(data) > self._queue_bytes_max:
                return False
            self._queue.append(_Block(data, lines))
            self._queued_bytes += len(data)
            self._ready.notify()
        return True

    def reopen(self) -> None:
        """Open the file again before the next block (SIGHUP after rotation); a rename alone is noticed without it."""
        self._reopen = True

    async def close(self, timeout_s: float) -> None:
        """Write what is queued, for `timeout_s` at most; what is left then counts as failed."""
        with self._ready:
            self._closing = True
            self._ready.notify()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, timeout_s)
        with self._ready:
            self._abandoned = True  # a write that hangs is not counted once more when it ends
            self.lines_failed += self._writing_lines + sum(block.lines for block in self._queue)
            self._queue.clear()
            self._queued_bytes = 0

    def _run(self) -> None:
        while (block := self._next()) is not None:
            try:
                self._write(block.data)
            except OSError as error:
                self._count(failed=block.lines)
                if self._on_failure is not None:
                    self._on_failure(error)
            else:
                self._count(written=block.lines)
        if self._path is not None:
            os.close(self._fd)
        if self._lock_fd is not None:
            os.close(self._lock_fd)

    def _next(self) -> _Block | None:
        with self._ready:
            while not self._queue:
                if self._closing:
                    return None
                self._ready.wait()
            blocks = [self._queue.popleft()]
            size = len(blocks[0].data)
            while self._queue and size + len(self._queue[0].data) <= WRITE_BYTES_MAX:
                blocks.append(self._queue.popleft())
                size += len(blocks[-1].data)
            self._queued_bytes -= size
            self._writing_lines = sum(block.lines for block in blocks)
        return _Block(b"".join(block.data for block in blocks), self._writing_lines)

    def _count(self, *, written: int = 0, failed: int = 0) -> None:
        with self._ready:
            if not self._abandoned:
                self.lines_written += written
                self.lines_failed += failed
            self._writing_lines = 0

    def _write(self, data: bytes) -> None:
        if self._path is not None:
            self._follow_rotation(self._path)
        if self._lock_fd is not None:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
        try:
            self._write_all(data)
        finally:
            if self._lock_fd is not None:
                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def _write_all(self, data: bytes) -> None:
        # A block that failed halfway left an unfinished line behind: end it before the next one.
        rest = memoryview(b"\n" + data if self._torn else data)
        while rest:
            written = os.write(self._fd, rest)
            rest = rest[written:]
            self._torn = bool(rest)

    def _follow_rotation(self, path: str) -> None:
        if not self._reopen and _same_file(path, self._fd):
            return
        fresh = _open(path)
        os.close(self._fd)
        self._fd, self._reopen, self._torn = fresh, False, False


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)


def _same_file(path: str, fd: int) -> bool:
    try:
        named, opened = Path(path).stat(), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)
