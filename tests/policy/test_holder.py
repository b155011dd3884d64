"""The policy holder: replaces the policy whole or not at all, while the old one goes on deciding."""

import asyncio
import sys
import threading

import pytest

from sidecar.edges.file_watch import FileWatcher
from sidecar.policy import holder as holder_module
from sidecar.policy.compile import load
from sidecar.policy.holder import PolicyHolder

POLICY = """
server: {{workers: {workers}}}
rules:
  - name: {name}
    match: {{path: {{prefix: /}}}}
    anonymous: true
log: {{level: {level}}}
"""


class Files:
    """A policy file, and a holder of what is in it."""

    def __init__(self, directory):
        self.path = directory / "policy.yaml"
        self.now_s = 1000.0
        self.write()
        self.holder = PolicyHolder(self.path, load(self.path, 1), now_s=lambda: self.now_s)

    def write(self, name="first", workers=1, level="info", more=""):
        self.path.write_text(POLICY.format(name=name, workers=workers, level=level) + more)

    @property
    def rule_names(self):
        return [rule.name for rule in self.holder.policy.rules.rules]


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


async def test_an_accepted_policy_replaces_the_old_one(files):
    """The reference, the generation, the counters and the time change, and subscribers are told."""
    told = []
    files.holder.subscribe(told.append)
    files.write("second")
    files.now_s = 2000.0
    assert await files.holder.reload()
    assert (files.rule_names, files.holder.policy.generation) == (["second"], 2)
    assert told == [files.holder.document]
    assert (files.holder.accepted_total, files.holder.refused_total, files.holder.accepted_s) == (1, 0, 2000.0)
    assert files.holder.detail() == {"generation": 2, "accepted_s": 2000.0}


@pytest.mark.parametrize("text", ["", "rules: []\n", "rules: [", "rules: {}\nnonsense: 1\n", "\x00"])
async def test_a_bad_policy_keeps_the_old_one(files, text):
    """A file that is empty, cut short or wrong changes nothing; its faults are shown until a good one comes."""
    told = []
    files.holder.subscribe(told.append)
    before = files.holder.policy
    files.path.write_text(text)
    assert not await files.holder.reload()
    assert files.holder.policy is before
    assert (files.holder.accepted_total, files.holder.refused_total, told) == (0, 1, [])
    detail = files.holder.detail()["last_reload"]
    assert detail["refused_s"] == 1000.0
    assert detail["faults_total"] >= 1
    assert str(files.path) in detail["faults"][0]

    files.write("second")
    assert await files.holder.reload()
    assert files.holder.policy.generation == 2
    assert "last_reload" not in files.holder.detail()


async def test_a_missing_file_keeps_the_old_policy(files):
    """A policy file that is gone is a refused reload."""
    files.path.unlink()
    assert not await files.holder.reload()
    assert files.rule_names == ["first"]
    assert files.holder.faults


async def test_rate_limits_are_not_replaced_by_nothing(files, tmp_path):
    """A directory of rate limits that lost its files keeps the old ones; a policy that names none drops them."""
    directory = tmp_path / "ratelimit"
    directory.mkdir()
    (directory / "a.yaml").write_text(
        "domain: a\ndescriptors: [{key: k, rate_limit: {unit: second, requests_per_unit: 1}}]"
    )
    section = "ratelimit: {directory: ratelimit}\nredis: {url: embedded}\n"
    files.write(more=section)
    assert await files.holder.reload(), files.holder.faults
    assert set(files.holder.policy.ratelimit.domains) == {"a"}
    (directory / "a.yaml").unlink()
    assert not await files.holder.reload()
    assert set(files.holder.policy.ratelimit.domains) == {"a"}
    files.write()
    assert await files.holder.reload()
    assert not files.holder.policy.ratelimit.domains


async def test_a_fault_of_ours_keeps_the_old_policy(files, monkeypatch):
    """Whatever loading raises, the old policy stays, and no particulars of the exception are shown."""

    def broken(_path, _generation):
        raise RuntimeError("hunter2")

    monkeypatch.setattr(holder_module, "load", broken)
    assert not await files.holder.reload()
    assert files.rule_names == ["first"]
    assert files.holder.faults == ("the policy could not be loaded: RuntimeError",)


async def test_a_failing_subscriber_does_not_hold_the_others_up(files):
    """Each subscriber is told, whatever another one raises, and the replacement stands."""
    told = []

    def failing(_document):
        raise RuntimeError("a bug")

    files.holder.subscribe(failing)
    files.holder.subscribe(told.append)
    assert await files.holder.reload()
    assert len(told) == 1
    assert files.holder.policy.generation == 2


async def test_the_old_policy_decides_while_the_new_one_loads(files, monkeypatch):
    """The loop runs on and sees the old policy, whole, until the new one is swapped in."""
    loading, go_on = threading.Event(), threading.Event()

    def slow(path, generation):
        loading.set()
        assert go_on.wait(5)
        return load(path, generation)

    monkeypatch.setattr(holder_module, "load", slow)
    before = files.holder.policy
    reload = asyncio.ensure_future(files.holder.reload())
    while not loading.is_set():  # noqa: ASYNC110 - a thread sets it
        await asyncio.sleep(0.001)
    assert files.holder.policy is before
    go_on.set()
    assert await reload
    assert files.holder.policy.generation == 2


async def test_overlapping_reloads_follow_one_another(files):
    """Each reload is a generation of its own; none is lost, none is counted twice."""
    assert await asyncio.gather(*(files.holder.reload() for _ in range(5))) == [True] * 5
    assert files.holder.policy.generation == 6


async def test_settings_that_need_a_restart_are_named(files):
    """A changed setting of the process is reported as long as it differs from what it was started with."""
    files.write(workers=2, level="debug")
    assert await files.holder.reload()
    assert files.holder.detail()["restart_needed_for"] == ("workers",)
    files.write(level="debug")
    assert await files.holder.reload()
    assert "restart_needed_for" not in files.holder.detail()


async def test_many_faults_are_shown_in_part(files, monkeypatch):
    """A file with many faults does not flood the probe's answer: some are shown, all are counted."""
    monkeypatch.setattr(holder_module, "FAULTS_SHOWN_MAX", 2)
    files.path.write_text("rules: []\na: 1\nb: 1\nc: 1\nd: 1\n")
    assert not await files.holder.reload()
    detail = files.holder.detail()["last_reload"]
    assert len(detail["faults"]) == 2
    assert detail["faults_total"] > 2


async def test_file_change_to_new_policy(files):
    """Watch and holder together: writing the file is all that it takes."""
    replaced = asyncio.Event()
    files.holder.subscribe(lambda _document: replaced.set())
    watcher = FileWatcher(lambda: [str(files.path)], lambda _paths: files.holder.reload(), interval_s=0.01)
    watcher.start()
    files.write("second")
    async with asyncio.timeout(5):
        await replaced.wait()
    assert files.rule_names == ["second"]
    await watcher.close()


async def test_loading_leaves_the_interpreter_as_it_was(files):
    """The finer switching of threads while loading ends with it, also when the policy is refused."""
    before = sys.getswitchinterval()
    assert await files.holder.reload()
    files.path.write_text("")
    assert not await files.holder.reload()
    assert sys.getswitchinterval() == before
