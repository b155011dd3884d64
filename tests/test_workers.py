"""The supervisor and its workers, as real processes; a small stand-in serves in the app's place."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.transport.service import TcpAddress, UnixAddress
from sidecar.workers import ROLE_VARIABLE, WorkerRole, role_from_environment

SUPPORT = Path(__file__).parent / "support"
TIMEOUT_S = 15


def _until(condition, what="condition"):
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"still waiting for {what}"
        time.sleep(0.02)
    return found


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Parent:
    """A supervisor in a process of its own, and its workers' port."""

    def __init__(self, directory, behaviour="good", count=2, grace_s=5.0, places=None):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.admin = str(directory / "admin.sock")
        self.log = directory / "log"
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        places = json.dumps([["127.0.0.1", self.port]] if places is None else places)
        command = [sys.executable, str(SUPPORT / "parent.py"), places, behaviour, str(count), str(grace_s), self.admin]
        environment = os.environ | {"PYTHONPATH": str(SUPPORT.parents[1]), "TMPDIR": str(self.temporary)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stderr=log)

    def events(self, name):
        return [line for line in map(json.loads, self.log.read_text().splitlines()) if line["event"] == name]

    def wait_running(self, count=2):
        _until(lambda: len(self.events("worker_running")) >= count, f"{count} workers: {self.log.read_text()}")

    def ask(self, word=b"", place=None):
        """The index and the pid of the worker that answered."""
        family = socket.AF_UNIX if place else socket.AF_INET
        with socket.socket(family) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(place or ("127.0.0.1", self.port))
            connection.sendall(word + b"\n")
            return tuple(map(int, connection.makefile().read().split()))

    def everyone(self, count=2, place=None):
        """The pids by index, once every worker has answered."""
        found = {}

        def asked():
            with contextlib.suppress(OSError, ValueError):
                index, pid = self.ask(place=place)
                found[index] = pid
            return len(found) == count

        _until(asked, f"answers of {count} workers")
        return found

    def get(self, target):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(self.admin)
            connection.sendall(f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode()

    def metric(self, name, **labels):
        return {
            sample.labels.get("worker"): sample.value
            for family in text_string_to_metric_families(self.get("/metrics")[1])
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        }

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT_S)


@pytest.fixture
def start():
    parents = []

    def start(*arguments, **options):
        # not pytest's tmp_path: a Unix socket's path is short
        directory = tempfile.TemporaryDirectory()
        parent = Parent(Path(directory.name), *arguments, **options)
        parents.append((parent, directory))
        return parent

    yield start
    for parent, directory in parents:
        if parent.process.poll() is None:
            parent.process.kill()
            parent.process.wait()
        directory.cleanup()


def test_workers_share_one_port_and_one_scrape(start):
    """Every worker answers on the one port, and one scrape adds them up; SIGTERM ends all, and leaves nothing."""
    parent = start()
    parent.wait_running()
    pids = parent.everyone()
    asked = 20
    before = sum(parent.metric("sidecar_decisions_total").values())
    for _ in range(asked):
        parent.ask()
    assert sum(parent.metric("sidecar_decisions_total").values()) == before + asked
    assert sum(parent.metric("sidecar_decision_latency_seconds_count").values()) == before + asked
    assert parent.metric("process_resident_memory_bytes").keys() == {"0", "1", "supervisor"}
    assert parent.metric("sidecar_workers", state="running") == {None: 2}
    assert parent.get("/livez")[0] == 200
    assert json.loads(parent.get("/policy")[1]) == {"generation": 1}
    assert json.loads(parent.get("/issuers")[1]) == {"issuers": {}}
    status, body = parent.get("/readyz")
    assert (status, set(json.loads(body)["components"])) == (200, {"worker-0", "worker-1"})
    assert len(list(parent.temporary.iterdir())) == 1
    assert parent.stop() == 0
    assert not any(map(_alive, pids.values()))
    assert list(parent.temporary.iterdir()) == []
    assert not Path(parent.admin).exists()


def test_a_dead_worker_is_started_again_and_its_counts_stay(start):
    """A worker that is killed is replaced while the other serves; sums never go backwards."""
    parent = start()
    parent.wait_running()
    pids = parent.everyone()
    before = sum(parent.metric("sidecar_decisions_total").values())
    os.kill(pids[0], signal.SIGKILL)
    parent.wait_running(3)
    assert sum(parent.metric("sidecar_decisions_total").values()) >= before
    again = parent.everyone()
    assert again[1] == pids[1]
    assert again[0] != pids[0]
    assert parent.metric("sidecar_worker_restarts_total") == {None: 1}
    assert parent.get("/readyz")[0] == 200
    assert parent.stop() == 0


def test_a_worker_that_keeps_failing_is_restarted_ever_more_slowly(start):
    """The pause before a restart doubles while a worker does not last."""
    parent = start(count=1)
    for number in range(1, 4):
        parent.wait_running(number)
        with contextlib.suppress(ValueError):
            parent.ask(b"crash")
        _until(lambda number=number: len(parent.events("worker_ended")) == number, "an end")
    ends = parent.events("worker_ended")
    assert [end["status"] for end in ends] == [7, 7, 7]
    assert [end["restart_in_s"] for end in ends] == [0.1, 0.2, 0.4]
    assert parent.stop() == 0


def test_a_failed_start_is_a_failure(start):
    """When no worker ever comes up, the supervisor ends with an error instead of trying for ever."""
    parent = start("fails")
    assert parent.process.wait(TIMEOUT_S) == 1
    assert parent.events("worker_ended")[0]["status"] == 3


def test_workers_get_their_time_to_drain(start):
    """A worker that needs a moment to finish its calls is waited for."""
    parent = start("lasting")
    parent.wait_running()
    assert parent.stop() == 0
    assert parent.events("stopped")[0]["statuses"] == [0, 0]


def test_a_worker_that_does_not_stop_is_killed(start):
    """After the grace time a worker is killed, and the exit status says that calls may have been cut."""
    parent = start("stubborn", grace_s=-1.5)
    parent.wait_running()
    pids = parent.everyone()
    assert parent.stop() == 1
    assert not any(map(_alive, pids.values()))
    assert len(parent.events("worker_killed")) == 2


def test_workers_end_with_their_parent(start):
    """A parent that is killed leaves no worker behind."""
    parent = start()
    parent.wait_running()
    pids = parent.everyone()
    parent.process.kill()
    parent.process.wait()
    _until(lambda: not any(map(_alive, pids.values())), "the workers' end")


def test_hangup_reaches_every_worker(start):
    """SIGHUP is passed on: every worker reloads."""
    parent = start(count=1)
    parent.wait_running(1)
    parent.process.send_signal(signal.SIGHUP)
    _until(lambda: parent.metric("sidecar_policy_reloads_total") == {None: 1}, "a reload")
    assert parent.stop() == 0


def test_a_hangup_while_workers_start_reaches_them_later(start):
    """A worker that may have read the old files is told as soon as it can be."""
    parent = start()
    _until(lambda: parent.events("supervising"), "the parent's handlers")
    parent.process.send_signal(signal.SIGHUP)
    parent.wait_running()
    _until(lambda: parent.metric("sidecar_policy_reloads_total") == {None: 1}, "a reload")
    assert parent.stop() == 0


def test_unix_socket_is_shared(start):
    """All workers accept from the Unix socket that the parent bound; it is removed at the end."""
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/grpc.sock"
        parent = start(places=[path])
        parent.wait_running()
        pids = {parent.ask(place=path)[1] for _ in range(3)}
        os.kill(pids.pop(), signal.SIGKILL)
        parent.wait_running(3)
        assert parent.ask(place=path)
        assert parent.stop() == 0
        assert not Path(path).exists()


def test_not_ready_while_a_running_worker_is_not(start):
    """One worker that says that it is not ready, or says nothing, takes the whole off the load balancer."""
    parent = start()
    parent.wait_running()
    index, _ = parent.ask(b"unready")
    status, body = parent.get("/readyz")
    components = json.loads(body)["components"]
    assert (status, components[f"worker-{index}"]["ready"], components[f"worker-{1 - index}"]["ready"]) == (
        503,
        False,
        True,
    )


def test_a_frozen_worker_does_not_hold_the_scrape_up(start):
    """A worker whose loop hangs is left out of fresh values, keeps its last ones, and is not ready."""
    parent = start()
    parent.wait_running()
    parent.everyone()
    before = sum(parent.metric("sidecar_decisions_total").values())
    with socket.create_connection(("127.0.0.1", parent.port)) as connection:
        connection.sendall(b"freeze\n")
        assert _until(lambda: parent.get("/readyz")[0] == 503, "a worker that is silent")
        assert sum(parent.metric("sidecar_decisions_total").values()) >= before


def test_an_address_that_is_taken_is_an_error_at_start(start):
    """Nobody shares a port by accident: another process that listens there fails the start."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        parent = start(places=[["127.0.0.1", other.getsockname()[1]]])
        assert parent.process.wait(TIMEOUT_S) != 0
        assert "Address already in use" in parent.log.read_text()


def test_port_zero_is_the_same_for_all_workers(start):
    """The parent picks one free port, and every worker listens on it."""
    parent = start(places=[["127.0.0.1", 0]], count=2)
    parent.wait_running()
    assert parent.get("/readyz")[0] == 200
    assert parent.stop() == 0


def test_role_travels_through_the_environment():
    """A worker reads what its parent wrote; a process without the variable has no role; nonsense is an error."""
    role = WorkerRole(1, 42, "/run/x", {"127.0.0.1:0": 4711}, {"/run/s": 5}, "/run/v")
    assert role_from_environment({ROLE_VARIABLE: msgspec.json.encode(role).decode()}) == role
    assert role_from_environment({}) is None
    with pytest.raises(msgspec.DecodeError):
        role_from_environment({ROLE_VARIABLE: "nonsense"})
    assert role.admin_address == UnixAddress("/run/x/worker-1.sock")
    assert role.output_lock == "/run/x/stdout.lock"
    addresses = (TcpAddress("127.0.0.1", 0), TcpAddress("127.0.0.1", 9), UnixAddress("/run/s"))
    assert role.listen(addresses) == (TcpAddress("127.0.0.1", 4711), *addresses[1:])
