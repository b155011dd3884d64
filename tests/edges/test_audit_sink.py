"""The audit sink: every event is written, or dropped and counted; nothing ever waits for the destination."""

import asyncio
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from sidecar.core.audit import DecisionEvent
from sidecar.core.context import RequestContext
from sidecar.core.decision import Decision, DenyReason
from sidecar.core.limits import Limit, LimitOutcome
from sidecar.core.principal import Principal
from sidecar.core.rules import PrefixPath, RequestMatch, Rule
from sidecar.edges.audit_record import TEXT_CHARACTERS_MAX, audit_record
from sidecar.edges.audit_sink import BATCH_EVENTS, AuditSink

RULE = Rule(name="orders", match=RequestMatch(path=PrefixPath("/")), anonymous=True)
PRINCIPAL = Principal(
    "main",
    "alice",
    "shop",
    frozenset(),
    frozenset(),
    {"sub": "alice", "tier": "gold", "levels": [1], "odd": "\ud800"},
)
LIMIT = Limit(name="per-user", requests=10, window_us=1_000_000)


def _request(**fields):
    known = {
        "request_id": "r-1",
        "method": "GET",
        "host": "api.example.com",
        "path": "/orders/1",
        "headers": {"authorization": "Bearer hunter2", "x-secret": "hunter2"},
        "source_address": "10.0.0.9",
    }
    return RequestContext(**known | fields)


def _event(number=0, reason=None, **fields):
    outcome = LimitOutcome(LIMIT, reason is None, 4, 6, 0, 0)
    decision = Decision(reason, RULE, PRINCIPAL, (outcome,), 7, detail="why")
    return DecisionEvent(1_700_000_000_000_000 + number, 345, _request(**fields), decision)


async def _sink(path, **options):
    return AuditSink(asyncio.get_running_loop(), None if path is None else str(path), **options)


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


async def _until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another thread
            await asyncio.sleep(0.005)


async def test_a_record_says_who_did_what_and_why(tmp_path):
    """Each field of the record, and nothing of headers, token or query."""
    sink = await _sink(tmp_path / "audit", claims=("tier", "levels", "none"))
    sink.put(_event())
    await sink.close(5)
    assert _lines(tmp_path / "audit") == [
        {
            "event": "decision",
            "time": "2023-11-14T22:13:20Z",
            "request_id": "r-1",
            "decision": "allowed",
            "reason": "allowed",
            "detail": "why",
            "rule": "orders",
            "issuer": "main",
            "subject": "alice",
            "client": "shop",
            "credential": "token",
            "key_id": "",
            "tier": "",
            "tenant": "",
            "method": "GET",
            "host": "api.example.com",
            "path": "/orders/1",
            "source_address": "10.0.0.9",
            "limits": [{"name": "per-user", "allowed": True, "remaining": 6, "shadow": False}],
            "degraded": False,
            "latency_us": 345,
            "generation": 7,
            "claims": {"tier": "gold", "levels": None, "none": None},
        }
    ]
    assert "hunter2" not in (tmp_path / "audit").read_text()
    assert (tmp_path / "audit").stat().st_mode & 0o777 == 0o640


def test_a_record_of_nothing_known():
    """A Check that could not be read still has a record, with the same fields."""
    event = DecisionEvent(0, 1, None, Decision(DenyReason.REQUEST_UNDECODABLE, None, None, (), 1))
    record = audit_record(event)
    known = audit_record(_event())
    assert msgspec.structs.asdict(record).keys() == msgspec.structs.asdict(known).keys()
    assert (record.rule, record.decision, record.reason) == ("-", "denied", "request_undecodable")


def test_long_texts_are_cut():
    """What a client can make long is cut at the limit, and not below it."""
    full = audit_record(_event(path="/" * TEXT_CHARACTERS_MAX))
    cut = audit_record(_event(path="/" * (TEXT_CHARACTERS_MAX + 1), host="h" * 5000, request_id="r" * 5000))
    assert len(full.path) == len(cut.path) == len(cut.host) == len(cut.request_id) == TEXT_CHARACTERS_MAX


async def test_events_are_written_in_order_without_asking(tmp_path):
    """A few events leave by the timer, many in batches; all arrive, in order."""
    sink = await _sink(tmp_path / "audit")
    sink.put(_event())
    await _until(lambda: sink.written == 1)
    count = BATCH_EVENTS * 40 + 3
    for number in range(1, count):
        sink.put(_event(number, request_id=str(number)))
    await sink.close(5)
    assert (sink.written, sink.dropped) == (count, 0)
    assert [line["request_id"] for line in _lines(tmp_path / "audit")[1:]] == [str(n) for n in range(1, count)]


async def test_control_characters_and_lone_surrogates_stay_on_one_line(tmp_path):
    """Nothing that a client sends can forge a line or break the encoding of its batch."""
    sink = await _sink(tmp_path / "audit", claims=("odd",))
    sink.put(_event(path='/\r\n{"event":"decision"}'))
    sink.put(_event(path="/\ud800"))
    await sink.close(5)
    first, second = _lines(tmp_path / "audit")
    assert first["path"] == '/\r\n{"event":"decision"}'
    assert (second["path"], second["claims"]) == ("/\\ud800", {"odd": "\\ud800"})


async def test_no_credential_and_nothing_deceptive_is_recorded(tmp_path):
    """User information is cut, tokens are masked, and what could make a terminal show another line is escaped."""
    token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"
    sink = await _sink(tmp_path / "audit")
    sink.put(_event(host=f"ann:hunter2@{token}.example", path=f"/t/{token}/\u202e\x7f\x85\u2028"))
    await sink.close(5)
    written = (tmp_path / "audit").read_text()
    assert "hunter2" not in written
    assert "eyJ" not in written
    assert "/t/***/\\u202e\\u007f\\u0085\\u2028" in written
    (line,) = _lines(tmp_path / "audit")
    assert (line["host"], line["path"]) == ("***.example", "/t/***/\u202e\x7f\x85\u2028")


async def test_a_blocked_destination_drops_and_counts(tmp_path):
    """While nobody reads, the loop goes on: the queue fills to its limit, then events are dropped and counted."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    queue_bytes_max = 300_000
    sink = await _sink(path, queue_bytes_max=queue_bytes_max)
    count = BATCH_EVENTS * 100
    for number in range(count):
        sink.put(_event(number, path="/" * 500))
        sink.flush()
        assert sink.queued_bytes <= queue_bytes_max
    assert sink.dropped > 0

    received = await asyncio.to_thread(_read_all, reading, sink, count)
    os.close(reading)
    assert sink.written + sink.dropped == count
    assert len(received.splitlines()) == sink.written
    assert all(json.loads(line)["event"] == "decision" for line in received.splitlines())
    await sink.close(5)


def _read_all(fd, sink, count):
    """What comes out of the pipe until every event is accounted for."""
    data = b""
    deadline = time.monotonic() + 10
    while sink.written + sink.dropped < count or select.select([fd], [], [], 0)[0]:
        assert time.monotonic() < deadline
        if select.select([fd], [], [], 0.01)[0]:
            data += os.read(fd, 65536)
    return data


async def test_closing_is_bounded_when_the_destination_is_blocked(tmp_path):
    """Closing gives up after its time; what was not written counts as dropped."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink = await _sink(path)
    for number in range(1000):
        sink.put(_event(number))
    sink.flush()
    for number in range(10):
        sink.put(_event(number))
    async with asyncio.timeout(5):
        await sink.close(0.05)
    assert (sink.written, sink.dropped) == (0, 1010)
    os.close(reading)  # the stuck write fails, and the thread ends
    await _until(lambda: not sink._writer._thread.is_alive())
    assert (sink.written, sink.dropped) == (0, 1010)


async def test_a_file_that_was_rotated_is_opened_again(tmp_path):
    """After a rename the next events go to a new file of the same name, also when it was deleted."""
    path = tmp_path / "audit"
    sink = await _sink(path)
    for number, rotate in enumerate((lambda: path.rename(tmp_path / "audit.1"), path.unlink), start=1):
        sink.put(_event(request_id=f"before-{number}"))
        sink.flush()
        await _until(lambda number=number: sink.written == 2 * number - 1)
        rotate()
        sink.put(_event(request_id=f"after-{number}"))
        sink.flush()
        await _until(lambda number=number: sink.written == 2 * number)
    await sink.close(5)
    assert [line["request_id"] for line in _lines(tmp_path / "audit.1")] == ["before-1"]
    assert [line["request_id"] for line in _lines(path)] == ["after-2"]


async def test_a_full_disk_loses_events_and_is_counted():
    """A destination that refuses writing costs the events, not the process."""
    sink = await _sink("/dev/full")
    sink.put(_event())
    await sink.close(5)
    assert (sink.written, sink.dropped) == (0, 1)


async def test_a_file_that_cannot_be_opened_is_told_at_once(tmp_path):
    """A wrong path is an error at start, not a silent loss."""
    with pytest.raises(FileNotFoundError):
        await _sink(tmp_path / "missing" / "audit")


STDOUT_WORKER = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from sidecar.core.audit import DecisionEvent
from sidecar.core.decision import Decision
from sidecar.edges.audit_record import TEXT_CHARACTERS_MAX, audit_record
from sidecar.edges.audit_sink import AuditSink

async def main():
    sink = AuditSink(asyncio.get_running_loop(), None, lock_path=sys.argv[2])
    for number in range(3000):
        sink.put(DecisionEvent(number, 1, None, Decision(None, None, None, (), 1, detail="x" * 200)))
    await sink.close(20)

asyncio.run(main())
"""


def test_workers_share_one_standard_output(tmp_path):
    """Large batches of two processes on one pipe never mix within a line."""
    reading, writing = os.pipe()
    command = [sys.executable, "-c", STDOUT_WORKER, str(Path.cwd()), str(tmp_path / "lock")]
    workers = [subprocess.Popen(command, stdout=writing) for _ in range(2)]
    os.close(writing)
    with os.fdopen(reading, "rb") as output:
        lines = output.read().splitlines()
    assert [worker.wait() for worker in workers] == [0, 0]
    assert len(lines) == 6000
    assert all(json.loads(line)["event"] == "decision" for line in lines)
