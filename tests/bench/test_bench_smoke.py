"""The benchmarks work: rows come out, every answer is right, no process is left. Never what they measure."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench.measure import Budget
from sidecar.demo.processes import Child, free_port
from sidecar.policy.ratelimit_files import load_directory

ROOT = Path(__file__).parents[2]
ENDS_WITHIN_S = 60.0
INTERRUPT_AGAIN_S = 5


def bench(*names):
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "bench", "--quick", *names],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_sidecar_or_bench(pid):
    try:
        return b"bench" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_rows_come_out_and_every_answer_is_right():
    """The decision and the rate limit benchmarks print each row, every answer as it must be, and each budget."""
    process = bench("decision", "ratelimit")
    output, _ = process.communicate(timeout=ENDS_WITHIN_S)
    assert process.returncode == 0, output
    assert "WRONG" not in output
    rows = re.findall(r"^(.*\S)\s+[\d,]+\s+\d+\.\d\s+\d+\.\d\dx$", output, re.MULTILINE)
    assert rows == [
        "constant answer, http2",
        "match an anonymous rule, http2",
        "  + token, scope, identity headers",
        "  + limit in Redis",
        "  + audit: hot decision, http2",
        "hot decision, grpcio",
        "constant answer, grpcio",
        "constant answer",
        "descriptors: 1",
        "descriptors: 2",
        "descriptors: 10",
    ]
    assert len(re.findall(r"p50 .* p99 .* p99\.9 ", output)) == 4
    assert len(re.findall(r"^(?:held  |MISSED)  .*\((?:at most|at least) ", output, re.MULTILINE)) == 5


def test_limits_are_measured_in_every_form():
    """Algorithms, layers, topologies and the fixed pace print their rows, every answer as it must be."""
    process = bench("pace", "algorithms", "layers", "cluster")
    output, _ = process.communicate(timeout=ENDS_WITHIN_S)
    assert process.returncode == 0, output
    assert "WRONG" not in output
    rows = re.findall(r"^(.*\S)\s+[\d,]+\s+\d+\.\d\s+\d+\.\d\dx", output, re.MULTILINE)
    assert rows == [
        "constant answer",
        "fixed_window",
        "sliding_window",
        "gcra",
        "sliding_log",
        "concurrency",
        "constant answer",
        "counted",
        "denied",
        "remembered",
        "leased",
        *(f"{topology}, descriptors: {count}" for count in (1, 2, 10) for topology in ("single", "Cluster")),
    ]
    assert re.search(r"^counted .* 1\.\d+ scripts a call$", output, re.MULTILINE)
    assert re.search(r"^remembered .* 0\.\d+ scripts a call$", output, re.MULTILINE)
    assert (
        len(re.findall(r"^(?:constant answer|descriptors: 1) +p50 .* p90 .* p99 .* p99\.9 ", output, re.MULTILINE)) == 2
    )


def test_a_peer_is_asked_the_same_in_the_same_run(tmp_path):
    """Its row stands beside ours; what it does not answer as it must is shown."""
    port, ready = free_port(), tmp_path / "ready"
    command = [sys.executable, "-m", "bench.constant", "--engine", "http2", "--port", str(port), "--ready", ready]
    peer = Child("peer", command, tmp_path / "log")
    try:
        peer.wait_ready(ready.exists)
        process = bench("pace", "--peer", f"127.0.0.1:{port}", "--peer-pid", str(peer.pid))
        output, _ = process.communicate(timeout=ENDS_WITHIN_S)
    finally:
        peer.stop()
    assert process.returncode == 0, output
    assert re.search(r"^peer, descriptors: 1 +p50 .*  WRONG: \{'not accepted': \d+\}$", output, re.MULTILINE)
    assert output.count("WRONG") == 1


def test_what_a_peer_must_load_is_written(tmp_path):
    """Nothing is measured; the file is a configuration that we accept."""
    process = bench("--write-config", str(tmp_path / "limits"))
    assert process.communicate(timeout=ENDS_WITHIN_S) == ("", None)
    assert list(load_directory(tmp_path / "limits").domains) == ["orders"]


def interrupted(process: subprocess.Popen[str]) -> str:
    """What a process printed until Ctrl-C ended it; one that comes in the middle of a fork is lost on its hooks."""
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=INTERRUPT_AGAIN_S)[0]
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError("it goes on")


def test_an_interrupted_benchmark_leaves_no_process():
    """Ctrl-C in the middle ends every server that was started."""
    process = bench("decision")
    deadline = time.monotonic() + ENDS_WITHIN_S
    while len(started := [pid for pid in children(process.pid) if is_sidecar_or_bench(pid)]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)  # between looks, until servers run
    output = interrupted(process)
    assert process.returncode == 130, output
    assert not [pid for pid in started if is_sidecar_or_bench(pid)]


def test_a_budget_is_held_up_to_its_bound():
    """At the bound it is held, beyond it is missed, and the text says which."""
    assert str(Budget(what="a", figure=4.0, unit="x", at_most=4)) == "held    a: 4.00x (at most 4x)"
    assert str(Budget(what="a", figure=4.01, unit="x", at_most=4)) == "MISSED  a: 4.01x (at most 4x)"
    assert str(Budget(what="b", figure=8.0, unit="x", at_least=8)) == "held    b: 8.00x (at least 8x)"
    assert str(Budget(what="b", figure=7.99, unit="x", at_least=8)) == "MISSED  b: 7.99x (at least 8x)"


def test_credentials_are_measured():
    """Every kind of credential and mixed traffic have their rows, each decision as it must be."""
    process = bench("tokens", "credentials")
    output, _ = process.communicate(timeout=ENDS_WITHIN_S)
    assert process.returncode == 0, output
    assert "WRONG" not in output
    for row in (
        "cold RS256",
        "cold ES512",
        "warm API key",
        "warm opaque token",
        "refused: a malformed API key",
        "cold token, ES256",
        "cold token, ES256, with a proof (DPoP)",
        "warm alone",
        "refused: a malformed token",
    ):
        assert re.search(rf"^{re.escape(row)}.* \d+\.\d+", output, re.MULTILINE), row
    assert "2,000 tokens, 3 issuers" in output
    assert re.search(r"^(?:held  |MISSED)  CPU, warm API key / warm token: .*\(at most 1x\)", output, re.MULTILINE)
