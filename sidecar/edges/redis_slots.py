"""Which slot a key is in, and which master has it: what a Cluster says of itself, read and checked."""

from __future__ import annotations

from binascii import crc_hqx
from dataclasses import dataclass
from typing import Any

SLOTS = 16_384

NODES_MAX = 1_000
"""The largest Cluster that is followed; Redis's own recommendation ends there."""

Address = tuple[str, int]


def slot_of(key: bytes) -> int:
    """A key's slot: CRC16 of its hash tag, or of all of it where it has none."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) & (SLOTS - 1)


@dataclass(frozen=True, slots=True)
class Topology:
    """Who is responsible for what.

    Attributes:
        ranges: First slot, last slot, master.
        replicas: To be asked when no master answers.
    """

    ranges: tuple[tuple[int, int, Address], ...]
    replicas: tuple[Address, ...]

    @property
    def masters(self) -> list[Address]:
        """Each once."""
        return list(dict.fromkeys(address for _, _, address in self.ranges))


class TopologyError(Exception):
    """What a server said about the Cluster cannot be used."""


def read_slots(reply: Any, asked: Address) -> Topology:
    """The reply of CLUSTER SLOTS. A server that does not know its own address is at the one that was asked.

    Raises:
        TopologyError: It is none, or says that nobody has any slot.
    """

    def address(node: Any) -> Address:
        host = node[0].decode() if node[0] else ""
        return (asked[0] if host in {"", "?"} else host, int(node[1]))

    try:
        ranges = tuple(sorted((int(entry[0]), int(entry[1]), address(entry[2])) for entry in reply))
        replicas = tuple(sorted({address(node) for entry in reply for node in entry[3:]}))
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise TopologyError("the reply to CLUSTER SLOTS cannot be read") from error
    if not ranges:
        raise TopologyError("no server has any slot")
    if any(not 0 <= first <= last < SLOTS for first, last, _ in ranges) or len({r[2] for r in ranges}) > NODES_MAX:
        raise TopologyError("the reply to CLUSTER SLOTS makes no sense")
    return Topology(ranges, replicas)
