"""The operator's log: one JSON line per event on stderr, bounded in rate and size, with secrets masked.

`get_log(component)` gives a logger whose methods take an event's name and its fields. An event that repeats is written
a few times a minute, and the next one says how many were left out. A reader of stderr that hangs costs log lines, never
the loop's time.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from sidecar.core.redaction import escaped_json, masked_text
from sidecar.core.secret import MASK, Secret

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}

LINE_BYTES_MAX: Final = select.PIPE_BUF
"""Up to here a write to a pipe is whole or not at all: the lines of several processes never mix."""

FIELD_CHARACTERS_MAX: Final = 2_000
SHORT_FIELDS_MAX: Final = 4
"""Kept of a line that is too long; at their shortest, 40 characters of up to 6 bytes, everything fits."""

REPEATS_MAX: Final = 10
"""Of one event within `REPEAT_WINDOW_S`."""
REPEAT_WINDOW_S: Final = 60.0
REPEAT_KEYS_MAX: Final = 512

_HEAD: Final = ("ts", "level", "component", "event")
_SECRET_FIELDS: Final = frozenset({"authorization", "token", "password", "secret", "cookie", "client_secret"})


def get_log(component: str) -> FilteringBoundLogger:
    """A logger whose events carry `component`."""
    return cast("FilteringBoundLogger", structlog.get_logger(component=component))


def configure_log(
    level: str = "info",
    *,
    worker: int | None = None,
    sink: LogSink | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Send everything logged from `level` up to `sink` (stderr), the standard library's warnings and errors included.

    May be called again: the last call decides. `worker` is this process's index, and on every line, where there are
    several.
    """
    sink = STDERR if sink is None else sink
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            _LevelFilter(LEVELS[level]),
            _RepeatBound(clock),
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            structlog.processors.format_exc_info,
            *([_Worker(worker)] if worker is not None else []),
            _masked,
            _rendered,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=lambda *_: sink,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, _Forward)] + [_Forward()]
    root.setLevel(logging.WARNING)


class LogSink:
    """Writes lines to a file descriptor unless that would block.

    Attributes:
        dropped: Lines that were not written, because the reader was not reading or the descriptor is broken.
    """

    def __init__(self, fd: int) -> None:
        self.dropped = 0
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._lock = threading.Lock()

    def msg(self, line: bytes) -> None:
        """Write one line; a line up to `LINE_BYTES_MAX` fits wherever poll says that there is room."""
        with self._lock:
            try:
                if self._poll.poll(0):
                    os.write(self._fd, line)
                    return
            except OSError:
                pass
            self.dropped += 1

    debug = info = warning = error = critical = exception = msg


STDERR: Final = LogSink(2)


class _Forward(logging.Handler):
    """Turns what libraries log into events of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname.lower() if record.levelname.lower() in LEVELS else "error"
        fields: dict[str, Any] = {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        getattr(get_log("library"), level)("library_" + level, **fields)


class _LevelFilter:
    def __init__(self, least: int) -> None:
        self._least = least

    def __call__(self, _logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if LEVELS.get(method, 50) < self._least:
            raise structlog.DropEvent
        return event


class _Worker:
    """Puts the worker's index before an event's own fields, so that lines that are cut keep it."""

    def __init__(self, index: int) -> None:
        self._index = index

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {"worker": self._index, **event}


@dataclass(slots=True)
class _Repeats:
    until: float
    seen: int = 0


class _RepeatBound:
    """Lets `REPEATS_MAX` events of one name and component pass per window, then counts; debug is not bounded."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._repeats: dict[tuple[object, object], _Repeats] = {}

    def __call__(self, _logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if method == "debug":
            return event
        now = self._clock()
        key = (event.get("component"), event.get("event"))
        repeats = self._repeats.get(key)
        if repeats is None or now >= repeats.until:
            if repeats is not None and repeats.seen > REPEATS_MAX:
                event["suppressed"] = repeats.seen - REPEATS_MAX
            if repeats is None and len(self._repeats) >= REPEAT_KEYS_MAX:
                del self._repeats[next(iter(self._repeats))]
            repeats = self._repeats[key] = _Repeats(now + REPEAT_WINDOW_S)
        repeats.seen += 1
        if repeats.seen > REPEATS_MAX:
            raise structlog.DropEvent
        return event


def _masked(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {name: MASK if name in _SECRET_FIELDS else _masked_value(value) for name, value in event.items()}


def _masked_value(value: Any) -> Any:
    match value:
        case str():
            text = masked_text(value).encode("utf-8", "backslashreplace").decode("utf-8")
            # An exception's last lines say more than its first.
            return text if len(text) <= FIELD_CHARACTERS_MAX else "..." + text[-FIELD_CHARACTERS_MAX:]
        case bool() | int() | float() | None:
            return value
        case Secret():
            return MASK
        case dict():
            return {
                str(name): MASK if str(name) in _SECRET_FIELDS else _masked_value(inner)
                for name, inner in value.items()
            }
        case list() | tuple() | set() | frozenset():
            return [_masked_value(inner) for inner in value]
        case _:
            return _masked_value(str(value))


def _rendered(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> bytes:
    head = {name: event.pop(name, "") for name in _HEAD}
    line = _line(head | dict(event))
    for characters in (1000, 200, 40):
        if len(line) <= LINE_BYTES_MAX:
            return line
        fields = {
            name[-characters:]: str(value)[-characters:] for name, value in list(event.items())[:SHORT_FIELDS_MAX]
        }
        line = _line({name: str(head[name])[:characters] for name in _HEAD} | fields | {"truncated": True})
    return line


def _line(event: dict[str, Any]) -> bytes:
    return escaped_json(msgspec.json.encode(event)) + b"\n"
