"""API keys in a file: changed as a whole or not at all, by one command at a time. Other keys stay as they are written.

Comments do not survive a change: a file of keys is for Git's eyes, one key a line.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from sidecar.edges.api_key_store import KeyStoreError
from sidecar.policy.api_key_file import KEYS_MAX, read_records, write_records
from sidecar.policy.faults import PolicyError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from sidecar.core.api_key_records import KeyRecord

Records: TypeAlias = "dict[str, KeyRecord]"


class FileKeyStore:
    """The keys of one keyring, with the same methods as `RedisKeyStore` has.

    Args:
        path: The file.
        keyring: The policy's name of it.
    """

    def __init__(self, path: Path, keyring: str) -> None:
        self._path = path
        self._keyring = keyring

    async def get(self, key_id: str) -> KeyRecord | None:
        """A record, None where there is none.

        Raises:
            KeyStoreError: The file cannot be read.
        """
        return self._read().get(key_id)

    async def create(self, records: Sequence[KeyRecord]) -> list[KeyRecord]:
        """Add keys; those whose id is taken are returned, and nothing was changed of them.

        Raises:
            KeyStoreError: The file cannot be changed, or would have too many keys.
        """

        def add(held: Records) -> list[KeyRecord]:
            taken = [record for record in records if record.id in held]
            held.update({record.id: record for record in records if record.id not in held})
            if len(held) > KEYS_MAX:
                raise KeyStoreError(f"a file has at most {KEYS_MAX} keys; put more into Redis")
            return taken

        return await asyncio.to_thread(self._change, add)

    async def replace(self, old: KeyRecord, new: KeyRecord) -> None:
        """Change a key.

        Raises:
            KeyStoreError: The file cannot be changed, or the key is not as `old` any more.
        """

        def put(held: Records) -> list[KeyRecord]:
            if held.get(old.id) != old:
                raise KeyStoreError(f"key {old.id} was changed by somebody else; look at it again")
            held[old.id] = new
            return []

        await asyncio.to_thread(self._change, put)

    async def remove(self, key_ids: Sequence[str]) -> None:
        """Forget keys.

        Raises:
            KeyStoreError: The file cannot be changed.
        """

        def drop(held: Records) -> list[KeyRecord]:
            for key_id in key_ids:
                held.pop(key_id, None)
            return []

        await asyncio.to_thread(self._change, drop)

    async def all(self) -> AsyncIterator[KeyRecord]:
        """Every record, in the file's order.

        Raises:
            KeyStoreError: The file cannot be read.
        """
        for record in self._read().values():
            yield record

    async def last_used(self, key_ids: Iterable[str]) -> dict[str, int]:
        """Nothing: a file is written by people, not by serving."""
        del key_ids
        return {}

    def _read(self) -> Records:
        try:
            return {key_id: held.record for key_id, held in read_records(self._path, self._keyring).items()}
        except PolicyError as error:
            raise KeyStoreError(str(error)) from None

    def _change(self, change: Callable[[Records], list[KeyRecord]]) -> list[KeyRecord]:
        try:
            path = self._path.resolve()  # what a link leads to is replaced, not the link
            with _locked(path.parent):
                held = self._read()
                left = change(held)
                _replace(path, write_records(held.values()))
        except OSError as error:
            raise KeyStoreError(f"the file {self._path} cannot be changed: {error.strerror}") from None
        return left


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other commands from changing files of a directory."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, content: bytes) -> None:
    mode = path.stat().st_mode
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(mode & 0o777)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
