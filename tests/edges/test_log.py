"""The operator's log: structured, bounded, without secrets, and never in the way."""

import json
import logging
import os
import pickle

import pytest
import structlog

from sidecar.core.secret import Secret
from sidecar.edges.log import (
    FIELD_CHARACTERS_MAX,
    LINE_BYTES_MAX,
    REPEAT_KEYS_MAX,
    REPEAT_WINDOW_S,
    REPEATS_MAX,
    LogSink,
    configure_log,
    get_log,
)

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"


class Log:
    """A configured log whose lines can be read, on a clock that stands still."""

    def __init__(self):
        self.now = 0.0
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        self.sink = LogSink(self._write)
        self.configure("info")

    def configure(self, level):
        configure_log(level, sink=self.sink, clock=lambda: self.now)

    def lines(self):
        data = b""
        while True:
            try:
                data += os.read(self._read, 65536)
            except BlockingIOError:
                return [json.loads(line) for line in data.splitlines()]

    def close(self):
        os.close(self._read)
        os.close(self._write)


@pytest.fixture
def log():
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    log = Log()
    yield log
    log.close()
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level


def test_one_json_line_per_event(log):
    """A line says when, how grave, which part, what, and the fields."""
    get_log("redis").warning("redis_unreachable", node="10.0.0.1", attempts=3, last=None)
    (line,) = log.lines()
    assert line.pop("ts").endswith("Z")
    assert line == {
        "level": "warning",
        "component": "redis",
        "event": "redis_unreachable",
        "node": "10.0.0.1",
        "attempts": 3,
        "last": None,
    }


def test_level_follows_the_policy(log):
    """Events below the level are left out, and a reload changes the level of loggers that exist already."""
    logger = get_log("x")
    logger.debug("a")
    logger.info("b")
    log.configure("error")
    logger.warning("c")
    logger.error("d")
    log.configure("debug")
    logger.debug("e")
    assert [line["event"] for line in log.lines()] == ["b", "d", "e"]


def test_lines_name_the_worker_where_there_are_several(log):
    """Its index is on every line, also on one that is cut; there is none in a single process."""
    get_log("x").info("alone")
    configure_log("info", worker=3, sink=log.sink, clock=lambda: log.now)
    get_log("x").info("one")
    logging.getLogger("asyncio").warning("a library's")
    get_log("x").info("cut", **{f"field{number}": "x" * FIELD_CHARACTERS_MAX for number in range(10)})
    alone, *lines = log.lines()
    assert "worker" not in alone
    assert [str(line["worker"]) for line in lines] == ["3", "3", "3"]


@pytest.mark.parametrize(
    ("fields", "leak"),
    [
        ({"error": Secret("hunter2")}, "hunter2"),
        ({"error": {"inner": [Secret("hunter2")]}}, "hunter2"),
        ({"password": "hunter2"}, "hunter2"),
        ({"error": {"authorization": "hunter2"}}, "hunter2"),
        ({"error": f"bad token {JWT}"}, "eyJzdWIiOiJ4In0"),
        ({"error": f"bad token {JWT}" + "x" * FIELD_CHARACTERS_MAX}, "c2lnbmF0dXJl"),
        ({"error": ("header Bearer abcdefghijkl",)}, "abcdefghijkl"),
        ({"error": ValueError("redis://limiter:hunter2@10.0.0.1:6379/0")}, "hunter2"),
    ],
)
def test_secrets_are_masked(log, fields, leak):
    """No secret, token, or URL password reaches the log, however it got into a field."""
    get_log("x").error("failed", **fields)
    text = json.dumps(log.lines())
    assert leak not in text
    assert "***" in text


def test_exceptions_are_told_on_one_line(log):
    """A traceback is a field, its end kept, and its secrets masked too."""
    try:
        raise ValueError(f"cannot use {JWT}")  # noqa: TRY301 - the traceback is what is tested
    except ValueError:
        get_log("x").exception("failed")
    (line,) = log.lines()
    assert line["level"] == "error"
    assert line["exception"].endswith("ValueError: cannot use ***")


def test_repeated_events_are_bounded_and_counted(log):
    """Of one event so many pass per window; the first of the next window says how many were left out."""
    logger = get_log("jwks")
    for _ in range(REPEATS_MAX + 5):
        logger.warning("fetch_failed")
    logger.warning("another")
    assert len(log.lines()) == REPEATS_MAX + 1
    log.now = REPEAT_WINDOW_S
    logger.warning("fetch_failed")
    logger.warning("fetch_failed")
    assert [line.get("suppressed") for line in log.lines()] == [5, None]


def test_memory_for_repeats_is_bounded(log):
    """Event names that never end do not grow the table of repeats."""
    logger = get_log("x")
    for number in range(REPEAT_KEYS_MAX * 2):
        name = f"event-{number}"
        logger.info(name)
        if number % 20 == 0:
            log.lines()
    processors = structlog.get_config()["processors"]
    assert [len(p._repeats) for p in processors if hasattr(p, "_repeats")] == [REPEAT_KEYS_MAX]


@pytest.mark.parametrize("text", ["x" * 100_000, "\x01" * 100_000, "\ud800" * 3000, "ä" * 100_000])
def test_lines_are_bounded(log, text):
    """However long the fields, a line fits into one atomic write to a pipe, and is JSON."""
    get_log("x").error("failed", **{f"field{number}": text for number in range(10)})
    (line,) = log.lines()
    assert line["event"] == "failed"
    assert len(json.dumps(line, ensure_ascii=False)) <= LINE_BYTES_MAX


def test_a_reader_that_hangs_costs_lines_and_no_time(log):
    """When nobody reads stderr, lines are dropped and counted instead of blocking."""
    logger = get_log("x")
    log.configure("debug")
    for _ in range(1000):
        logger.debug("filler", text="x" * 1000)
    assert log.sink.dropped > 0
    assert len(log.lines()) + log.sink.dropped == 1000
    logger.info("after")
    assert log.lines()[0]["event"] == "after"


def test_what_libraries_log_is_structured_too(log):
    """A warning through the standard library's logging comes out as an event of ours, also after a second configure."""
    log.configure("info")
    logging.getLogger("asyncio").warning("slow callback %s", JWT)
    logging.getLogger("asyncio").info("chatter")
    (line,) = log.lines()
    assert (line["component"], line["logger"], line["message"]) == ("library", "asyncio", "slow callback ***")


def test_a_secret_cannot_be_seen():
    """Printing, formatting, pickling and comparing give nothing away; only reveal does."""
    secret = Secret("hunter2")
    assert [str(secret), repr(secret), f"{secret}", f"{secret:>20}", repr([secret])] == ["***"] * 4 + ["[***]"]
    assert secret.reveal() == "hunter2"
    assert secret == Secret("hunter2")
    assert secret != Secret("hunter3")
    assert secret != "hunter2"
    assert len({secret, Secret("hunter2")}) == 1
    assert bool(secret)
    assert not Secret("")
    with pytest.raises(TypeError, match="cannot be serialised"):
        pickle.dumps(secret)
