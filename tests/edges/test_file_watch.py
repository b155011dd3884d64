"""The file watch, on real files that change the way people and machines change them."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from sidecar.edges import file_watch
from sidecar.edges.file_watch import FileWatcher, signatures

INTERVAL_S = 0.01


class Changes:
    """Collects reports; `next` waits for one."""

    def __init__(self):
        self.reports = asyncio.Queue()

    async def changed(self, paths):
        await self.reports.put(paths)

    async def next(self):
        async with asyncio.timeout(5):
            return await self.reports.get()


@asynccontextmanager
async def _watching(*paths, changed=None):
    changes = Changes()
    watcher = FileWatcher(lambda: map(str, paths), changed or changes.changed, interval_s=INTERVAL_S)
    watcher.start()
    try:
        yield changes
    finally:
        await watcher.close()


async def _looks(count):
    """Let so many looks happen, seen by a change that comes out after them."""
    await asyncio.sleep(INTERVAL_S * count)


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text("rules: []\n")
    return path


async def test_a_file_written_in_place(policy):
    """New content of a watched file is reported with its path, once."""
    async with _watching(policy) as changes:
        policy.write_text("rules: [1]\n")
        assert await changes.next() == [str(policy)]
        policy.write_text("rules: [1, 2]\n")
        assert await changes.next() == [str(policy)]
        assert changes.reports.empty()


async def test_a_file_renamed_over_the_old_one(policy, tmp_path):
    """What editors do: write another file and rename it; also of the same size and time."""
    async with _watching(policy) as changes:
        fresh = tmp_path / ".policy.swp"
        fresh.write_text("rules: {}\n")
        fresh.rename(policy)
        assert await changes.next() == [str(policy)]


async def test_a_configmap_swaps_its_link(tmp_path):
    """What Kubernetes does: every file is a link through `..data`, which is renamed over; a directory sees it too."""
    for version in ("1", "2"):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "policy.yaml").write_text(f"version: {version}\n")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "policy.yaml").symlink_to("..data/policy.yaml")
    async with _watching(tmp_path / "policy.yaml", tmp_path) as changes:
        (tmp_path / "..data_tmp").symlink_to("..2")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        assert await changes.next() == [str(tmp_path / "policy.yaml"), str(tmp_path)]
        assert (tmp_path / "policy.yaml").read_text() == "version: 2\n"


async def test_files_of_a_directory(tmp_path, policy):
    """A file that is added, changed, or removed anywhere in a watched directory is a change of the directory."""
    directory = tmp_path / "ratelimit"
    (directory / "inner").mkdir(parents=True)
    async with _watching(policy, directory) as changes:
        (directory / "inner" / "a.yaml").write_text("domain: a\n")
        assert await changes.next() == [str(directory)]
        (directory / "inner" / "a.yaml").write_text("domain: ab\n")
        assert await changes.next() == [str(directory)]
        (directory / "inner" / "a.yaml").unlink()
        assert await changes.next() == [str(directory)]


async def test_a_file_that_vanishes_for_a_moment_is_not_reported_missing(policy, monkeypatch):
    """Between removing and writing again nothing is reported; the new content is."""
    monkeypatch.setattr(file_watch, "MISSING_LOOKS_MAX", 1_000_000)
    async with _watching(policy) as changes:
        policy.unlink()
        await _looks(5)
        policy.write_text("rules: [1]\n")
        assert await changes.next() == [str(policy)]
        assert policy.exists()
        assert changes.reports.empty()


async def test_a_file_that_stays_away_is_reported_once(policy):
    """A file that is gone is a change, so that the reload can say so; its return is another."""
    async with _watching(policy) as changes:
        policy.unlink()
        assert await changes.next() == [str(policy)]
        policy.write_text("rules: [1]\n")
        assert await changes.next() == [str(policy)]
        assert changes.reports.empty()


async def test_a_change_before_the_start_is_not_missed(policy):
    """What changes after the signature was taken, so perhaps after the file was read, is reported at the first look."""
    known = signatures([str(policy)])
    policy.write_text("rules: [1]\n")
    changes = Changes()
    watcher = FileWatcher(lambda: [str(policy)], changes.changed, known=known, interval_s=INTERVAL_S)
    watcher.start()
    assert await changes.next() == [str(policy)]
    await watcher.close()


async def test_a_path_that_joins_later_is_watched_from_then_on(policy, tmp_path):
    """Another policy may name other files: those are no change by themselves, their changes are."""
    other = tmp_path / "jwks.json"
    other.write_text("{}")
    paths = [str(policy)]
    changes = Changes()
    watcher = FileWatcher(lambda: list(paths), changes.changed, interval_s=INTERVAL_S)
    watcher.start()
    paths.append(str(other))
    while str(other) not in watcher._known:  # noqa: ASYNC110 - nothing tells when a look has been made
        await asyncio.sleep(INTERVAL_S)
    other.write_text('{"keys": []}')
    assert await changes.next() == [str(other)]
    await watcher.close()


async def test_a_failing_report_does_not_end_the_watch(policy):
    """What the callback raises is logged; the next change is reported again."""
    changes = Changes()

    async def failing(paths):
        await changes.changed(paths)
        raise RuntimeError("a bug")

    async with _watching(policy, changed=failing):
        policy.write_text("rules: [1]\n")
        await changes.next()
        policy.write_text("rules: [1, 2]\n")
        await changes.next()


def test_only_so_many_entries_and_levels_are_looked_at(tmp_path, monkeypatch):
    """A directory given by mistake does not make the watch look at a whole disk."""
    monkeypatch.setattr(file_watch, "DIRECTORY_ENTRIES_MAX", 3)
    for number in range(3):
        (tmp_path / f"{number}").write_text("")
    three = signatures([str(tmp_path)])
    (tmp_path / "3").write_text("")
    assert signatures([str(tmp_path)]) == three
    deep = tmp_path / "0d" / "1" / "2" / "3" / "4"
    deep.mkdir(parents=True)
    before = signatures([str(tmp_path / "0d")])
    (deep / "file").write_text("")
    assert signatures([str(tmp_path / "0d")]) == before
