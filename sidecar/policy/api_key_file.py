"""A file of API keys: `keys`, a list of records, each a mapping as `sidecar keys` writes it on one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from sidecar.core.api_key_records import HeldKey, KeyRecord, RecordError, hold
from sidecar.policy.faults import PolicyError
from sidecar.policy.yaml import Mapping, Sequence, Source, read

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

KEYS_MAX: Final = 50_000
"""More belong into Redis: a file is read as a whole whenever it changes."""

_ACCEPTED: Final = "a record as `sidecar keys create` writes it"


def read_records(path: Path, keyring: str) -> dict[str, HeldKey]:
    """The keys of a file, by their ids.

    Raises:
        PolicyError: With every fault of the file.
    """
    return held_records(read(path), keyring)


def held_records(source: Source, keyring: str) -> dict[str, HeldKey]:
    """The same for a file that was read already.

    Raises:
        PolicyError: With every fault of the file.
    """
    root = source.root
    if not isinstance(root, Mapping) or root.keys() != {"keys"} or not isinstance(root["keys"], Sequence):
        raise PolicyError([source.fault((), "it is not a file of API keys", "keys: [...] and nothing beside it")])
    if len(root["keys"]) > KEYS_MAX:
        message = f"there are {len(root['keys'])} keys"
        raise PolicyError([source.fault(("keys",), message, f"at most {KEYS_MAX} in a file; more in Redis")])
    held: dict[str, HeldKey] = {}
    faults = []
    for number, item in enumerate(root["keys"]):
        where = ("keys", number)
        try:
            key = hold(msgspec.convert(item, KeyRecord), keyring)
        except (msgspec.ValidationError, RecordError) as error:
            faults.append(source.fault(where, str(error), _ACCEPTED))
            continue
        if key.record.id in held:
            faults.append(source.fault(where, f"key {key.record.id} is there twice", "each key once"))
        held[key.record.id] = key
    if faults:
        raise PolicyError(faults)
    return held


def write_records(records: Iterable[KeyRecord]) -> bytes:
    """The content of a file with these keys: YAML, one key a line."""
    lines = [b"  - " + msgspec.json.encode(record) + b"\n" for record in records]
    return b"keys:\n" + b"".join(lines) if lines else b"keys: []\n"
