"""The slots of a cluster: of which key, where, and what a node says of its own.

The table of all nodes is redis-py's reading of `CLUSTER SLOTS`. It does not tell that a slot is on its way elsewhere,
and another node may know later than the one that has it; so each primary is also asked for its own line of
`CLUSTER NODES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from redis.cluster import parse_cluster_slots
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from gateway.store.url import Address

SLOTS: Final = REDIS_CLUSTER_HASH_SLOTS
NO_SLOT: Final = -1
slot_of: Final = cast(Callable[[bytes], int], key_slot)
"""A key's slot, from 0 to 16383."""


@dataclass(frozen=True, slots=True)
class Own:
    """What a node says of itself.

    Attributes:
        primary: whether it is one.
        ranges: its slots, as `CLUSTER NODES` writes them.
        migrating: those that are on their way to another node: absent keys are already written there.
    """

    primary: bool
    ranges: tuple[str, ...]
    migrating: frozenset[int]

    def slots(self) -> set[int]:
        """All its slots."""
        found: set[int] = set()
        for text in self.ranges:
            first, _, last = text.partition("-")
            found.update(range(int(first), int(last or first) + 1))
        return found


def own_line(nodes: bytes | str) -> Own:
    """A node's own line of its `CLUSTER NODES`.

    Raises:
        ValueError: there is none, or it is not to be understood.
    """
    text = nodes.decode() if isinstance(nodes, bytes) else nodes
    for line in text.splitlines():
        words = line.split(" ")
        flags = words[2].split(",") if len(words) >= 8 else []
        if "myself" in flags:
            slots = [word for word in words[8:] if word]
            return Own(
                "master" in flags,
                tuple([word for word in slots if not word.startswith("[")]),
                frozenset(int(word[1:].partition("->-")[0]) for word in slots if "->-" in word),
            )
    raise ValueError("CLUSTER NODES has no line of the node itself")


Range = tuple[int, int, Address, tuple[Address, ...]]
"""First slot, last slot, primary and its replicas."""


def addresses(reply: Any, asked: str) -> list[Range]:
    """The ranges of slots, from the reply to `CLUSTER SLOTS`.

    Args:
        asked: the host of the node that was asked; it may mean itself by naming none.
    """
    found = []
    for (first, last), nodes in parse_cluster_slots(reply, current_host=asked).items():
        # A node of which nobody knows the address yet has none, or "?".
        primary, *replicas = [
            (str(host), int(port)) if host and host != "?" else None
            for host, port in (nodes["primary"], *nodes["replicas"])
        ]
        if primary is not None:
            found.append((int(first), int(last), primary, tuple([one for one in replicas if one is not None])))
    return found
