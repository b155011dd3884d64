"""Notices that files changed, by looking at them twice a second: it works on every file system and through every swap.

A file's signature is that of what its path leads to (device, inode, size, modification time), so a Kubernetes ConfigMap
that swaps its `..data` link is noticed like an editor that renames a new file over the old one. A directory's signature
is that of everything in it. A change is reported once it has been stable for one further look; a file that is missing
is given a few looks to come back, since some tools remove before they write.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, TypeAlias

from sidecar.edges.log import get_log

POLL_INTERVAL_S: Final = 0.5
MISSING_LOOKS_MAX: Final = 4
"""After so many looks a missing file is reported as it is: the reload then says what is missing."""

DIRECTORY_ENTRIES_MAX: Final = 10_000
"""More are not looked at: a directory of configuration does not have them, one given by mistake may."""
DIRECTORY_DEPTH_MAX: Final = 4

Signature: TypeAlias = tuple[object, ...] | None
"""Equal as long as nothing changed; None for what is missing."""

NOTHING_KNOWN: Final[Mapping[str, Signature]] = {}

_log = get_log("files")


class FileWatcher:
    """Watches the files that `paths` names at each look, and calls `changed` on the loop.

    A path starts with the signature in `known`, or else with the one that it has at construction or when `paths` first
    names it.

    Args:
        paths: Files and directories; asked at each look, since another policy may refer to other files.
        changed: Awaited with the paths that changed; what it raises is logged.
        known: Signatures that were taken before the files were read: a change since then is reported, too.
        interval_s: Between two looks.
    """

    def __init__(
        self,
        paths: Callable[[], Iterable[str]],
        changed: Callable[[list[str]], Awaitable[object]],
        *,
        known: Mapping[str, Signature] = NOTHING_KNOWN,
        interval_s: float = POLL_INTERVAL_S,
    ) -> None:
        self._paths = paths
        self._changed = changed
        self._interval_s = interval_s
        self._known = {**signatures(paths()), **known}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look, on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._watch(), name="file-watch")

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        before = self._known
        missing_looks = 0
        while True:
            await asyncio.sleep(self._interval_s)
            # In a thread: a look at a network file system can hang.
            now = await asyncio.to_thread(signatures, tuple(self._paths()))
            differing = [path for path, signature in now.items() if signature != self._known.get(path, signature)]
            stable = all(now[path] == before.get(path) for path in differing)
            missing_looks = missing_looks + 1 if any(now[path] is None for path in differing) else 0
            before = now
            if not differing:
                self._known = now
            elif stable and (missing_looks == 0 or missing_looks >= MISSING_LOOKS_MAX):
                self._known = now
                await self._report(differing)

    async def _report(self, paths: list[str]) -> None:
        try:
            await self._changed(paths)
        except Exception:  # noqa: BLE001 - the watch goes on, whatever became of one report
            _log.exception("file_change_failed", paths=paths)


def signatures(paths: Iterable[str]) -> dict[str, Signature]:
    """The signature of each path."""
    return {path: _signature(path, DIRECTORY_DEPTH_MAX) for path in paths}


def _signature(path: str, depth: int) -> Signature:
    try:
        found = os.stat(path)  # noqa: PTH116 - a thousand files are looked at twice a second
        if not stat.S_ISDIR(found.st_mode):
            return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        names = sorted(os.listdir(path))[:DIRECTORY_ENTRIES_MAX] if depth else []  # noqa: PTH208 - as above
    except OSError:
        return None
    # `..data` and its timestamped directory are how a ConfigMap is laid out; the links beside them lead there.
    return tuple((name, _signature(f"{path}/{name}", depth - 1)) for name in names if not name.startswith(".."))
